// SPDX-License-Identifier: Apache-2.0
// Finds the pages of guest memory that may hold something, for the writers of memory
// files (memory.c, chunk_write.c). Called by the VM process while nothing writes its
// guest's memory; does not fault in what was never touched.
#pragma once
#include <stdint.h>

#include "microvm/base/gmem.h"

#define SNAP_PAGE_BYTES 4096 // of a memory file

// How the pages that may hold something are found. Without /proc every page is looked at.
enum snap_memory_finder {
	SNAP_MEMORY_AUTO,    // the first of these that works here
	SNAP_MEMORY_SCAN,    // ioctl PAGEMAP_SCAN (Linux 6.7)
	SNAP_MEMORY_PAGEMAP, // read /proc/self/pagemap
	SNAP_MEMORY_ALL,     // every page
};

// [from, to) of the region's host memory: whole pages of the host, ascending. Nonzero ends the walk.
typedef int snap_pages_fn(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to);

// Calls fn for every run of pages that may hold something other than zeros. Returns what
// fn returned, or -errno; -ENOTSUP: this kernel lacks the finder (never for AUTO).
int snap_pages_walk(enum snap_memory_finder finder, const struct gmem *m, snap_pages_fn *fn, void *arg);

// The same for the pages that are private to this mapping, MAP_PRIVATE of a file, whatever they hold: what
// was written since it was made, and what is no mapping of the file any more. -ENOTSUP also for AUTO, where
// there is no /proc: to take every page for private would read those that are not loaded yet.
int snap_private_walk(enum snap_memory_finder finder, const struct gmem *m, snap_pages_fn *fn, void *arg);
