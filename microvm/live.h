// SPDX-License-Identifier: Apache-2.0
// Live snapshots: the VM stands still only for its vCPU and device state and one fork(2).
// The child is the frozen view: the kernel shares the pages and copies those that the VM
// writes from then on, and the child writes state and memory out while the VM runs.
// See docs/architecture.md for why fork and not another mechanism.
//
// Loop lock held for all calls. One at a time per VM.
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#include "microvm/vm.h"

struct live_result {
	int code; // 0 or a positive errno
	char text[360];
	uint64_t state_bytes, memory_bytes, memory_data_bytes;
};

struct live_pause {
	uint64_t ns;        // how long the vCPUs stood still
	bool layers_frozen; // the drives have fresh layers, also when the rest failed
};

struct live_snapshot {
	pid_t pid; // 0: none under way
	int result_fd;
	struct mv_watch watch;
	struct live_pause pause;
	struct vm *vm;
	bool copies_layers; // so that the VM must not run meanwhile
	void (*done)(void *arg, const struct live_snapshot *s, const struct live_result *result);
	void *arg;
};

// What both kinds of frozen copies have in common (the other one: zygote.h). Pauses a running or
// paused VM, freezes its drives' layers (layer_fds: as vm_freeze(); NULL: they stay), calls split() to fork
// with the state, and lets it go on in the state it had. After a failure split()'s child is to be ended.
// whole: lazily loaded memory is loaded first, since the copy has no userfaultfd.
typedef int live_split_fn(void *arg, const struct mv_buf *state, struct mv_err *err);
int live_freeze(struct vm *vm, bool whole, int *layer_fds, unsigned n_fds, live_split_fn *split, void *arg,
		struct live_pause *ret_pause, struct mv_err *err);

// Freezes a running or paused VM, lets it go on in the state it had, and calls done() from
// the loop when the child has ended. fds: as MSG_SNAPSHOT has them; those of layers that are
// used are taken and set to -1, the others stay the caller's, the child has copies. `how` asks
// for a compressed memory file, and for an incremental one: of what changed since the snapshot
// before, or where that was not confirmed, since the one before that, and so on (dirty.h); in a
// VM that does not track that, since it was restored; in a raw file always (dirty_complete()). -EBUSY: one is
// under way, or the VM is in no state for it: layers are only copied of a paused one; -EINVAL: there is
// nothing that an incremental one could refer to.
int live_start(struct live_snapshot *s, struct vm *vm, int *fds, unsigned n_fds,
	       const struct msg_snapshot *how,
	       void (*done)(void *arg, const struct live_snapshot *s, const struct live_result *result),
	       void *arg, struct mv_err *err);

// Waits for the one under way, if any, and calls done(): what is left to do when the guest
// has ended in the meantime.
void live_finish(struct live_snapshot *s);

// Kills the one under way, if any; done() is not called.
void live_abort(struct live_snapshot *s);
