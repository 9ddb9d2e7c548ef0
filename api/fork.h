// SPDX-License-Identifier: Apache-2.0
// The daemon's end of a zygote (microvm/zygote.h): the frozen copy of a running VM, which forks
// VM processes. It is as hostile as the VM: a process is only taken from it when the kernel says that
// it is its child. Loop's thread only.
#pragma once
#include <sys/queue.h>

#include "api/error.h"
#include "api/vm.h"

struct fork_wait { // embedded in its owner
	TAILQ_ENTRY(fork_wait) link;
	uint64_t id;
	int socket; // the daemon's end
	// p: to be taken (its descriptors set to -1), or NULL and why.
	void (*fn)(void *arg, struct vm_process *p, const struct api_err *err);
	void *arg;
};

struct fork_source {
	struct server *s;
	int socket; // -1: it is gone
	pid_t pid;
	uint64_t last_id;
	struct mv_watch watch;
	struct mv_timer timer; // for the first that waits
	TAILQ_HEAD(, fork_wait) waiting;
};

// `socket` is taken. parent_pid: of the VM process; pid: what it said is its zygote's. -EPERM: it is not.
int fork_source_init(struct fork_source *f, struct server *s, int socket, pid_t parent_pid, pid_t pid,
		     struct api_err *err);
void fork_source_fini(struct fork_source *f); // idempotent; nobody waits

// Asks for a process; 0: fn is called once, later.
int fork_ask(struct fork_source *f, struct fork_wait *w,
	     void (*fn)(void *arg, struct vm_process *p, const struct api_err *err), void *arg,
	     struct api_err *err);
