// SPDX-License-Identifier: Apache-2.0
// thaw-vmm: one VM, one process. The daemon starts it with a control socket as descriptor
// 3 and tells it everything else by message.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "microvm/control.h"
#include "microvm/vcpu.h"

static int usage(FILE *to, int status)
{
	fprintf(to,
		"usage: thaw-vmm [--version] [--help]\n"
		"One VM of thaw. Started by thawd, with a control socket as descriptor %d;\n"
		"see thawd(1) and thaw(1).\n",
		VMM_CONTROL_FD);
	return status;
}

static bool is_control_socket(int fd)
{
	int type = 0;
	socklen_t len = sizeof type;
	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) && type == SOCK_SEQPACKET;
}

int main(int argc, char **argv)
{
	static struct vm vm;
	static struct control control;
	uint64_t start = mv_now_ns();
	struct mv_err err;

	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts("thaw-vmm " THAW_VERSION);
		return 0;
	}
	if (argc == 2 && !strcmp(argv[1], "--help"))
		return usage(stdout, 0);
	if (argc > 1 || !is_control_socket(VMM_CONTROL_FD))
		return usage(stderr, 2);

	mv_log_init("thaw-vmm", MV_INFO);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); // a limit on file sizes is an error of the write, not the end of the VM
	vcpu_setup_signal();
	if (vm_init(&vm, &err) || control_init(&control, &vm, VMM_CONTROL_FD, start, &err)) {
		mv_log(MV_ERROR, "%s", err.msg);
		return 1;
	}
	int r = mv_loop_run(&vm.loop);
	control_fini(&control);
	// A vCPU may wait for a page that nobody fills any more; it can't be joined.
	if (vm.uffd_fd >= 0)
		_exit(r ? 1 : 0);
	vm_fini(&vm);
	return r ? 1 : 0;
}
