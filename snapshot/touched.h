// SPDX-License-Identifier: Apache-2.0
// Which pages of a restored VM's memory were touched, and which of them written, from the page
// tables: memory is a private mapping of the template, so a page that is present and still
// the file's was read, and one that is anonymous was written (copied). Called by the VM
// process, also while its guest runs.
//
// The kernel may map neighbours of a page that was read (fault-around, 64 KiB); they count as
// read. A userfaultfd that tracks writes keeps it from that: lazy_exact() in microvm/lazy.h.
#pragma once
#include "microvm/base/gmem.h"
#include "snapshot/pages.h"

// [from, to) of the region's host memory: whole pages, ascending, of one kind. Nonzero ends the
// walk.
typedef int snap_touched_fn(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to,
			    bool written);

// AUTO: by SCAN or else by PAGEMAP, which takes a page of zeros that was only read for a
// written one. Returns what fn returned, or -errno; -ENOTSUP: this host has neither.
int snap_touched_walk(enum snap_memory_finder finder, const struct gmem *m, snap_touched_fn *fn, void *arg);
