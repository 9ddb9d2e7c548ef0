// SPDX-License-Identifier: Apache-2.0
// Starts VM processes in a thread of its own: posix_spawn(3) holds up its caller until the new program runs,
// 2.6 to 3 ms in the median while hundreds start on two CPUs, in which the loop would hear nobody. One after
// the other, in order. The thread is the parent whose end PR_SET_PDEATHSIG means, so it lives as long as the
// daemon.
#pragma once
#include "api/server.h"

struct spawn_job { // embedded in its owner, which lives until done()
	struct worker_job job;
	struct server *s;
	int theirs;    // the process's end of its control socket; closed when it was started, or not
	int cgroup_fd; // borrowed; -1: the daemon's
	void (*done)(struct spawn_job *j); // the loop's thread
	// by then
	pid_t pid; // 0: failed
	int pidfd;
	struct mv_err err;
};

int spawner_init(struct server *s, struct mv_err *err);
void spawner_fini(struct server *s); // after what is in progress: done() is called for each. Idempotent
// All of j but the last three is set.
void spawner_start(struct spawn_job *j);
