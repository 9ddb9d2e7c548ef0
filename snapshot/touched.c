// SPDX-License-Identifier: Apache-2.0
#include "snapshot/touched.h"

#include <errno.h>
#include <fcntl.h>

#include "microvm/base/util.h"
#include "snapshot/pagemap_scan.h"

enum {
	SCAN_BATCH = 512,
	PAGEMAP_ENTRIES = 4096, // read at once, of 8 bytes for a page of the host
};

struct walk {
	snap_touched_fn *fn;
	void *arg;
	int fd; // /proc/self/pagemap
	const struct gmem_region *region;
};

static const uint8_t *at(uint64_t address) { return (const uint8_t *)(uintptr_t)address; }

static int by_scan(struct walk *w, const uint8_t *from, const uint8_t *to)
{
	struct scan_region vec[SCAN_BATCH];
	while (from < to) {
		struct scan_arg arg = { .size = sizeof arg,
					.start = (uintptr_t)from,
					.end = (uintptr_t)to,
					.vec = (uintptr_t)vec,
					.vec_len = SCAN_BATCH,
					.category_anyof_mask = SCAN_IS_PRESENT | SCAN_IS_SWAPPED,
					.return_mask = SCAN_IS_FILE | SCAN_IS_PFNZERO };
		int n = ioctl(w->fd, SCAN_IOCTL, &arg);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == ENOTTY || errno == EINVAL ? -ENOTSUP : -errno;
		for (int i = 0; i < n; i++) {
			bool written = !(vec[i].categories & (SCAN_IS_FILE | SCAN_IS_PFNZERO));
			int r = w->fn(w->arg, w->region, at(vec[i].start), at(vec[i].end), written);
			if (r)
				return r;
		}
		from = at(arg.walk_end);
	}
	return 0;
}

// Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 62 swapped, 61 of a file.
enum { UNTOUCHED, READ, WRITTEN };
static unsigned kind(uint64_t entry)
{
	if (!(entry >> 62))
		return UNTOUCHED;
	return entry >> 61 & 1 ? READ : WRITTEN;
}

static int by_pagemap(struct walk *w, const uint8_t *from, const uint8_t *to)
{
	uint64_t entry[PAGEMAP_ENTRIES];
	uint32_t page_bytes = mv_host_page_bytes();
	while (from < to) {
		size_t n = (size_t)(to - from) / page_bytes, end;
		if (n > PAGEMAP_ENTRIES)
			n = PAGEMAP_ENTRIES;
		int r = mv_pread_full(w->fd, entry, n * 8, (uintptr_t)from / page_bytes * 8);
		for (size_t i = 0; !r && i < n; i = end) {
			unsigned k = kind(entry[i]);
			for (end = i + 1; end < n && kind(entry[end]) == k; end++)
				;
			if (k != UNTOUCHED)
				r = w->fn(w->arg, w->region, from + i * page_bytes, from + end * page_bytes,
					  k == WRITTEN);
		}
		if (r)
			return r;
		from += n * page_bytes;
	}
	return 0;
}

int snap_touched_walk(enum snap_memory_finder finder, const struct gmem *m, snap_touched_fn *fn, void *arg)
{
	MV_FD fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct walk w = { .fn = fn, .arg = arg, .fd = fd };
	int r = fd < 0 || finder == SNAP_MEMORY_ALL ? -ENOTSUP : 0;
	for (unsigned i = 0; !r && i < m->n_regions; i++) {
		const uint8_t *from = m->region[i].hva, *to = from + m->region[i].size_bytes;
		w.region = &m->region[i];
		r = finder == SNAP_MEMORY_PAGEMAP ? -ENOTSUP : by_scan(&w, from, to);
		if (r == -ENOTSUP && finder != SNAP_MEMORY_SCAN)
			r = by_pagemap(&w, from, to);
	}
	return r;
}
