// SPDX-License-Identifier: Apache-2.0
// Starts a VM process. Loop's thread only.
#pragma once
#include <sys/types.h>

#include "microvm/base/err.h"

// Runs the program at `path` with one end of a SOCK_SEQPACKET pair as VMM_CONTROL_FD, its
// standard error shared with ours, standard input and output /dev/null, and nothing else
// open. It is in a process group of its own, so a Ctrl-C meant for the daemon does not
// reach it. The caller owns the other end (non-blocking) and the pidfd, and reaps.
int spawn_vmm(const char *path, int *ret_socket, int *ret_pidfd, pid_t *ret_pid,
	      struct mv_err *err);
