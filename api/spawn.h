// SPDX-License-Identifier: Apache-2.0
// Starts a VM process, the pager, or passt. Any one thread.
#pragma once
#include <stdint.h>
#include <sys/types.h>

#include "microvm/base/err.h"

// The control socket, before there is a process: what is sent into ours is there when the
// process looks. Both ends are the caller's; ours is non-blocking.
int spawn_socket(int *ret_ours, int *ret_theirs, struct mv_err *err);

// What proc(5) says of a process, 0 or -ESRCH: its parent, and when it started, which tells it from
// others that had its number.
int spawn_stat(pid_t pid, pid_t *ret_parent, uint64_t *ret_start_ticks);

// Runs the program at `path` with `theirs` as VMM_CONTROL_FD, its standard error shared with
// ours, standard input and output /dev/null, and nothing else open. It is in a process group
// of its own, so a Ctrl-C meant for the daemon does not reach it. cgroup_fd: the folder of the
// cgroup v2 it begins in; -1: ours. The caller owns the pidfd, closes theirs, and reaps.
int spawn_vmm(const char *path, int theirs, int cgroup_fd, int *ret_pidfd, pid_t *ret_pid,
	      struct mv_err *err);

// The same with arguments, and with out_fd as its standard output and error.
int spawn_helper(const char *path, char *const argv[], int theirs, int out_fd, int *ret_pidfd, pid_t *ret_pid,
		 struct mv_err *err);
