// SPDX-License-Identifier: Apache-2.0
// thaw-pager: started by thawd with a socket as descriptor 3 (snapshot/pager.h). It works on
// the descriptors it is given and needs neither files nor rights of its own (sandbox.h).
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "snapshot/pager.h"
#include "snapshot/sandbox.h"

// 0 when the daemon closed the socket.
static int run(struct mv_err *err)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); // guests' memory passes through here
	int r = sandbox_drop_rights(err);
	r = r ? r : pager_init(VMM_CONTROL_FD, err);
	r = r ? r : sandbox_pager(VMM_CONTROL_FD, err);
	if (r)
		return r;
	if (sandbox_lacks_filter())
		mv_log(MV_WARN, "no system call filter: %s", sandbox_lacks_filter());
	r = pager_run();
	return r ? mv_fail(err, -r, "%s", strerror(-r)) : 0;
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
	struct mv_err err = { 0 };
	int r = run(&err);
	if (r)
		mv_log(MV_ERROR, "ends: %s", err.msg);
	return r ? 1 : 0;
}
