// SPDX-License-Identifier: Apache-2.0
// thaw-pager: started by thawd with a socket as descriptor 3 (snapshot/pager.h). It works on
// the descriptors it is given and needs neither files nor rights of its own.
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "microvm/base/log.h"
#include "snapshot/pager.h"

static void drop_rights(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); // guests' memory passes through here
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (syscall(SYS_capset, &head, none))
		mv_log(MV_WARN, "can't drop capabilities");
}

int main(int argc, char **argv)
{
	int type = 0;
	socklen_t len = sizeof type;
	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts("thaw-pager " THAW_VERSION);
		return 0;
	}
	if (argc > 1 || getsockopt(VMM_CONTROL_FD, SOL_SOCKET, SO_TYPE, &type, &len) ||
	    type != SOCK_SEQPACKET) {
		fprintf(stderr, "thaw-pager is started by thawd, with a socket as descriptor %d.\n",
			VMM_CONTROL_FD);
		return 2;
	}
	mv_log_init("thaw-pager", MV_INFO);
	signal(SIGPIPE, SIG_IGN);
	drop_rights();
	int r = pager_run(VMM_CONTROL_FD);
	if (r)
		mv_log(MV_ERROR, "ends: %s", strerror(-r));
	return r ? 1 : 0;
}
