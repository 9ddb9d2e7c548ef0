// SPDX-License-Identifier: Apache-2.0
// Memory for what is gone in a moment, of which one thread has a region for as long as it makes a VM: a page
// that is touched for the first time costs more than most of what it is used for. Without a region it is
// malloc()'s.
#pragma once
#include <stdbool.h>
#include <stddef.h>

// A region of this thread; nothing happens where it has one, or there is no memory. touched: its pages are
// there.
void mv_scratch_make(size_t bytes, bool touched);
void mv_scratch_drop(void); // what was taken from it was given back

void *mv_scratch(size_t bytes); // zeros; NULL: no memory
void mv_scratch_free(void *p);  // by the same thread

static inline void mv_cleanup_scratch(void *p) { mv_scratch_free(*(void **)p); }
#define MV_SCRATCH __attribute__((cleanup(mv_cleanup_scratch)))
