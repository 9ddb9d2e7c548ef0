// SPDX-License-Identifier: Apache-2.0
// Which pages of guest memory changed between two snapshots: what the guest wrote (KVM's dirty
// log, which has KVM's own writes for the guest too) and what this process wrote (gmem_wrote()).
//
//       writes of the guest            -> KVM's log ---.
//                                                      +-- dirty_take() --> set --> snapshot
//       writes of devices and the VMM  -> mem.written -'
//
// Whether a snapshot becomes one is known only after the VM has done its part: until the next
// one says that it was published (`confirmed`), its set is kept and is part of the next set. So
// a set covers everything since the last confirmed snapshot, or, in a clone without one, since
// the snapshot it was made from. Full snapshots count like incremental ones.
//
// Without `track_dirty` nothing is noted; a clone then has its mapping's private pages.
// Loop lock held for all calls.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/gmem.h"
#include "microvm/base/msg.h"

struct dirty {
	// The pages that the latest snapshot had to have, a bit each by their place in the memory
	// file; NULL: not tracked.
	uint64_t *set;
	uint64_t *log;    // scratch for KVM's log of one slot
	uint64_t n_words; // of set
	bool has_parent;  // made from a snapshot, or one of its own was confirmed
	bool taken, lost; // a snapshot was begun; and it is known to have failed
	bool from_file;   // restored: private pages are those that changed since
	bool forked;      // its memory is older than its set
};

// Memory mapped, nothing written yet; from_file: MAP_PRIVATE of a snapshot's memory. -ENOMEM.
int dirty_init(struct dirty *d, struct gmem *m, bool track, bool from_file, struct mv_err *err);
void dirty_fini(struct dirty *d, struct gmem *m); // idempotent

// First for every snapshot: takes note of `confirmed`; -EINVAL: it can't be incremental (a raw one always
// can).
int dirty_check(struct dirty *d, const struct msg_snapshot *how, struct mv_err *err);

// In the pause, when nothing writes guest memory until it is frozen: makes d->set. What KVM's log
// gave before an error is kept for the next time. Not tracked: nothing.
int dirty_take(struct dirty *d, struct gmem *m, int vm_fd, bool confirmed, struct mv_err *err);

// Before a VM of KVM's is closed, when no vCPU runs: keeps what its log has for the next dirty_take(), which
// needs none then (vm_fd -1) of what was written before.
int dirty_keep_log(struct dirty *d, struct gmem *m, int vm_fd, struct mv_err *err);

// Into a set from its page `first` on: KVM's log of n pages of the host, each of which is n_each of the set's
// (a power of two, up to 16; first is a multiple of it, and of 64 where it is 1).
void dirty_add_log(uint64_t *set, uint64_t first, const uint64_t *log, uint64_t n, unsigned n_each);

// The snapshot that dirty_take() was called for will not come; whatever is said later.
void dirty_failed(struct dirty *d);

// For a raw file with changes, in the frozen copy: makes d->set what it is to have. Nobody keeps a word
// about what such a file is laid over, so the beginning is where the set's is: the snapshot before that was
// confirmed, or where memory begins: a boot (all zeros), or the files it was restored from. Where nothing is
// tracked it is every page that may have changed since then, which is right over any later snapshot too:
// a clone's private pages; else all that may hold something, and if memory was given back to the host, all.
int dirty_complete(struct dirty *d, const struct gmem *m, struct mv_err *err);

// Keeps of a set what is private to this process's mapping. -ENOTSUP: can't be told.
int dirty_keep_private(uint64_t *set, const struct gmem *m, struct mv_err *err);
