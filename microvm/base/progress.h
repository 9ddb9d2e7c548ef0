// SPDX-License-Identifier: Apache-2.0
// How far long work on files is, for who looks meanwhile. Each thread may have one struct mv_progress, into
// which what it calls writes; it costs an atomic store per 64 KiB or more, and nothing for a thread without.
// The struct may be in shared memory; what another process wrote there is not to be trusted.
#pragma once
#include <stdatomic.h>
#include <stdint.h>

enum mv_progress_step {
	MV_PROGRESS_WAITS,
	MV_PROGRESS_WRITES,
	MV_PROGRESS_CHECKS,
	MV_PROGRESS_N_STEPS,
};

struct mv_progress { // of the step
	atomic_uint_fast64_t step, done_bytes, total_bytes;
};
_Static_assert(sizeof(struct mv_progress) == 24, "two processes share it");

// This thread's from here on; NULL: none. Lives until then.
void mv_progress_set(struct mv_progress *p);
struct mv_progress *mv_progress_get(void); // for threads that work for this one

// On this thread's; total_bytes: 0: not known yet.
void mv_progress_begin(enum mv_progress_step step, uint64_t total_bytes);
void mv_progress_expect(uint64_t more_bytes); // more in all than was said
void mv_progress_add(uint64_t bytes);
void mv_progress_at(uint64_t done_bytes);
