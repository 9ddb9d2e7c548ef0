// SPDX-License-Identifier: Apache-2.0
// Records the working set of a clone (snapshot/working_set.h): when the guest is ready, or after a
// time that counts from its first run, the page tables are walked once and the pages that were
// touched since the restore are written to a file of the daemon. Loop's thread and lock.
// A VM that ends before records nothing.
#pragma once
#include "microvm/base/gmem.h"
#include "microvm/base/loop.h"
#include "microvm/base/msg.h"

struct record {
	int fd;      // the daemon's file; -1: nothing is (any more) to be recorded
	int uffd_fd; // lazy_exact(); -1: none
	uint32_t limit_ms;
	struct mv_timer timer;
	bool started;
};

// After gmem_map(), before anything touches the memory. `watched`: lazy_register() keeps
// neighbours out already. Takes fd, also on failure, which is one of the record alone: then the
// neighbours of pages that were read count as read.
void record_prepare(struct record *r, int fd, const struct gmem *m, bool watched, int device_fd);

// The guest runs: on_limit is called when the time is over. Idempotent.
void record_start(struct record *r, struct mv_loop *loop, void (*on_limit)(void *arg), void *arg);

// Records; false: there was nothing (more) to do. Otherwise ret_done is to be told.
bool record_take(struct record *r, const struct gmem *m, struct msg_recorded *ret_done);
void record_fini(struct record *r); // idempotent; of a zeroed one with fds -1 too
