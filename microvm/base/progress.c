// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/progress.h"

#include <stddef.h>

static _Thread_local struct mv_progress *mine;

void mv_progress_set(struct mv_progress *p) { mine = p; }
struct mv_progress *mv_progress_get(void) { return mine; }

void mv_progress_begin(enum mv_progress_step step, uint64_t total_bytes)
{
	if (!mine)
		return;
	atomic_store(&mine->done_bytes, 0);
	atomic_store(&mine->total_bytes, total_bytes);
	atomic_store(&mine->step, step);
}

void mv_progress_expect(uint64_t more_bytes)
{
	if (mine)
		atomic_fetch_add(&mine->total_bytes, more_bytes);
}

void mv_progress_add(uint64_t bytes)
{
	if (mine)
		atomic_fetch_add_explicit(&mine->done_bytes, bytes, memory_order_relaxed);
}

void mv_progress_at(uint64_t done_bytes)
{
	if (mine)
		atomic_store_explicit(&mine->done_bytes, done_bytes, memory_order_relaxed);
}
