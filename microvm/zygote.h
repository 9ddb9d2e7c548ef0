// SPDX-License-Identifier: Apache-2.0
// Live forks. The VM stands still as for a live snapshot (live.h), and the process that fork(2)
// freezes it in is a zygote: it holds memory and state as they were, and forks a VM process for
// each control socket it is sent. Such a process restores from what it inherited; the kernel
// shares the pages with the parent and all siblings. Nothing is written anywhere.
//
// The zygote lives as long as somebody holds the other end of its socket, and dies with the VM;
// the processes that it forked do not.
#pragma once
#include <sys/types.h>

#include "microvm/live.h"

// What a forked VM process starts from; see vm_restore().
struct vm_seed {
	struct gmem mem; // mapped
	const uint8_t *state;
	size_t state_bytes;
};

struct zygote {    // in the VM that was forked; loop lock held for all
	pid_t pid; // 0: none
	int end_fd;
	struct mv_watch watch;
};

// fds: as MSG_FORK has them, those of layers taken where used. ret_pause: how long the vCPUs
// stood still. z: none is running. -EBUSY: the VM is in no state for it.
int zygote_start(struct zygote *z, struct vm *vm, int *fds, unsigned n_fds, struct live_pause *ret_pause,
		 struct mv_err *err);
void zygote_abort(struct zygote *z); // idempotent

// In control.c: the life of a VM process, from its control socket on descriptor VMM_CONTROL_FD; seed NULL:
// it was not forked. Its exit status.
int vmm_serve(uint64_t start_ns, const struct vm_seed *seed);
