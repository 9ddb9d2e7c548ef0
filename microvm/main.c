// SPDX-License-Identifier: Apache-2.0
// thaw-vmm: one VM, one process. The daemon starts it with a control socket as descriptor
// 3 and tells it everything else by message.
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "microvm/vcpu.h"
#include "microvm/zygote.h"

static int usage(FILE *to, int status)
{
	fprintf(to,
		"usage: thaw-vmm [--version] [--help] [--api-sock PATH]...\n"
		"One VM of thaw. Started by thawd, with a control socket as descriptor %d;\n"
		"see thawd(8) and thaw(1). With other options, or by the name firecracker, it is\n"
		"thaw-firecracker: one VM that is driven by Firecracker's API.\n"
		"       thaw-vmm --device-tree VCPUS MEMORY_MIB DEVICES [GIC_VERSION]\n"
		"Writes the device tree that such a VM's guest gets, as a blob, to the standard output.\n",
		VMM_CONTROL_FD);
	return status;
}

// Firecracker's API is spoken by a program of its own, which has HTTP and JSON: beside this one, or where
// `make install` puts what people don't call themselves.
static int become_firecracker(char **argv)
{
	static const char *const places[] = { "thaw-firecracker", "../libexec/thaw/thaw-firecracker" };
	char self[PATH_MAX], path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash = n > 0 ? memrchr(self, '/', (size_t)n) : NULL;
	for (size_t i = 0; slash && i < MV_ARRAY_LEN(places); i++) {
		int len = snprintf(path, sizeof path, "%.*s/%s", (int)(slash - self), self, places[i]);
		if (len < (int)sizeof path)
			execv(path, argv);
	}
	fprintf(stderr, "thaw-vmm: there is no thaw-firecracker beside it: %s\n", strerror(errno));
	return 1;
}

static int device_tree(char **number)
{
	const unsigned max[] = { VMCFG_MAX_VCPUS, VMCFG_MAX_MEM_MIB, VM_MAX_DEVICES, 3 };
	const unsigned min[] = { 1, VMCFG_MIN_MEM_MIB, 0, 2 };
	unsigned value[MV_ARRAY_LEN(max)] = { 0 };
	for (size_t i = 0; i < MV_ARRAY_LEN(max) && number[i]; i++) {
		char *end;
		unsigned long v = strtoul(number[i], &end, 10);
		if (end == number[i] || *end || v < min[i] || v > max[i]) {
			fprintf(stderr, "thaw-vmm: --device-tree: \"%s\" is not a number from %u to %u\n",
				number[i], min[i], max[i]);
			return 2;
		}
		value[i] = (unsigned)v;
	}
	struct arch_description d = { value[0], value[1], value[2], value[3] };
	struct mv_err err;
	if (arch_describe(STDOUT_FILENO, &d, &err))
		fprintf(stderr, "thaw-vmm: %s\n", err.msg);
	else
		return 0;
	return 1;
}

static bool called_firecracker(const char *name)
{
	const char *slash = strrchr(name, '/');
	return !strcmp(slash ? slash + 1 : name, "firecracker");
}

static bool is_control_socket(int fd)
{
	int type = 0;
	socklen_t len = sizeof type;
	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) && type == SOCK_SEQPACKET;
}

// An idle VM keeps little. What is large in here is a message, gone in a moment: in a mapping of its own it
// takes only the pages that are used, none of them is cleared by hand, and it leaves no hole in the heap. A
// mapping is made only where the heap's end has no room, hence the other two. A vCPU's thread allocates too
// rarely for an arena of its own.
static void keep_little(void)
{
	mallopt(M_MMAP_THRESHOLD, 8 << 10);
	mallopt(M_TOP_PAD, 4 << 10);
	malloc_trim(0); // what libc began with
	mallopt(M_ARENA_MAX, 1);
}

int main(int argc, char **argv)
{
	uint64_t start = mv_now_ns();

	if (argc > 0 && called_firecracker(argv[0]))
		return become_firecracker(argv);
	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts("thaw-vmm " THAW_VERSION);
		return 0;
	}
	if (argc == 2 && !strcmp(argv[1], "--help"))
		return usage(stdout, 0);
	if ((argc == 5 || argc == 6) && !strcmp(argv[1], "--device-tree"))
		return device_tree(argv + 2);
	if (argc > 1)
		return become_firecracker(argv);
	if (!is_control_socket(VMM_CONTROL_FD))
		return usage(stderr, 2);

	keep_little();
	mv_log_init("thaw-vmm", MV_INFO);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);  // the kernel's, to a stopped process whose parent ends: the daemon crashed
	signal(SIGXFSZ, SIG_IGN); // a limit on file sizes is an error of the write, not the end of the VM
	vcpu_setup_signal();
	return vmm_serve(start, NULL);
}
