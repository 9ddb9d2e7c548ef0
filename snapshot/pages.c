// SPDX-License-Identifier: Apache-2.0
// Theory of operation. A page can hold something other than zeros if
//  - it belongs to an anonymous mapping and is present or swapped out, or
//  - it belongs to a mapping of a file (a clone: what the guest did not write is still
//    the template's content), whether present or not.
// /proc/self/maps says which kind of mapping an address has (the kernel's word, so
// nobody has to keep a flag in step), the page tables say what is present.
//
// Private to a mapping of a file are the pages that are present or swapped out and neither of the file
// nor the kernel's page of zeros, which a userfaultfd maps for a chunk of zeros. Where an anonymous
// mapping has taken the file's place (gmem_discard()) every page is.
#include "snapshot/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "microvm/base/util.h"
#include "snapshot/pagemap_scan.h"

enum { PAGEMAP_ENTRIES = 4096 }; // read at once, of 8 bytes for a page of the host

struct walk {
	snap_pages_fn *fn;
	void *arg;
	int pagemap_fd; // -1: finder ALL
	enum snap_memory_finder finder;
	bool private;
	const struct gmem_region *region;
};

static int found(struct walk *w, const uint8_t *from, const uint8_t *to)
{
	return from < to ? w->fn(w->arg, w->region, from, to) : 0;
}

// --- finding present pages of anonymous memory ---

// Present or swapped, but not the shared page of zeros that a mere read maps, nor a page of a
// file. (In an anonymous mapping there are none of those.)
static struct scan_arg scan_arg(const uint8_t *from, const uint8_t *to, struct scan_region *vec, size_t n)
{
	return (struct scan_arg){ .size = sizeof(struct scan_arg),
				  .start = (uintptr_t)from,
				  .end = (uintptr_t)to,
				  .vec = (uintptr_t)vec,
				  .vec_len = n,
				  .category_inverted = SCAN_IS_PFNZERO | SCAN_IS_FILE,
				  .category_mask = SCAN_IS_PFNZERO | SCAN_IS_FILE,
				  .category_anyof_mask = SCAN_IS_PRESENT | SCAN_IS_SWAPPED,
				  .return_mask = SCAN_IS_PRESENT | SCAN_IS_SWAPPED };
}

static int find_by_scan(struct walk *w, const uint8_t *from, const uint8_t *to)
{
	struct scan_region vec[256];
	while (from < to) {
		struct scan_arg arg = scan_arg(from, to, vec, MV_ARRAY_LEN(vec));
		int n = ioctl(w->pagemap_fd, SCAN_IOCTL, &arg);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++) {
			int r = found(w, (const uint8_t *)(uintptr_t)vec[i].start,
				      (const uint8_t *)(uintptr_t)vec[i].end);
			if (r)
				return r;
		}
		from = (const uint8_t *)(uintptr_t)arg.walk_end;
	}
	return 0;
}

// Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bit 62 swapped, bit 61 of a file.
// It can't tell the page of zeros from others: it counts as anonymous.
static bool is_anonymous(uint64_t entry) { return entry >> 62 && !(entry >> 61 & 1); }

static int find_by_pagemap(struct walk *w, const uint8_t *from, const uint8_t *to)
{
	uint64_t entry[PAGEMAP_ENTRIES];
	uint32_t page_bytes = mv_host_page_bytes();
	while (from < to) {
		size_t n = (size_t)(to - from) / page_bytes;
		if (n > PAGEMAP_ENTRIES)
			n = PAGEMAP_ENTRIES;
		int r = mv_pread_full(w->pagemap_fd, entry, n * 8, (uintptr_t)from / page_bytes * 8);
		for (size_t i = 0; !r && i < n;) {
			size_t first = i;
			while (i < n && is_anonymous(entry[i]))
				i++;
			r = found(w, from + first * page_bytes, from + i * page_bytes);
			while (i < n && !is_anonymous(entry[i]))
				i++;
		}
		if (r)
			return r;
		from += n * page_bytes;
	}
	return 0;
}

static int walk_anonymous(struct walk *w, const uint8_t *from, const uint8_t *to)
{
	switch (w->finder) {
	case SNAP_MEMORY_SCAN: return find_by_scan(w, from, to);
	case SNAP_MEMORY_PAGEMAP: return find_by_pagemap(w, from, to);
	default: return found(w, from, to);
	}
}

// --- the parts of a region by kind of mapping ---

static void close_stream(FILE **f)
{
	if (*f)
		fclose(*f);
}

static int walk_region(struct walk *w)
{
	const uint8_t *at = w->region->hva, *end = at + w->region->size_bytes;
	if (!w->private && w->finder == SNAP_MEMORY_ALL)
		return found(w, at, end);
	__attribute__((cleanup(close_stream))) FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	if (!maps) // pagemap alone can't tell a clone's untouched pages from zeros
		return w->private ? -ENOTSUP : found(w, at, end);
	while (at < end && fgets(line, sizeof line, maps)) {
		unsigned long long start, stop, inode;
		size_t len = strlen(line);
		if (sscanf(line, "%llx-%llx %*s %*s %*s %llu", &start, &stop, &inode) == 3) {
			const uint8_t *from = (const uint8_t *)(uintptr_t)start;
			const uint8_t *to = (const uint8_t *)(uintptr_t)stop;
			if (to > at && from < end) {
				if (from > at) // a hole in the address space
					return -EFAULT;
				if (to > end)
					to = end;
				int r = !inode == w->private ? found(w, at, to) : walk_anonymous(w, at, to);
				if (r)
					return r;
				at = to;
			}
		}
		while (len && line[len - 1] != '\n' && fgets(line, sizeof line, maps))
			len = strlen(line); // the rest of a long path
	}
	return at == end ? 0 : -EFAULT;
}

// --- setup ---

// Opens what the finder needs; settles AUTO. Never fails for AUTO.
static int choose_finder(struct walk *w)
{
	if (w->finder == SNAP_MEMORY_ALL)
		return 0;
	w->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool has_pagemap = w->pagemap_fd >= 0;
	struct scan_region vec[1];
	const uint8_t *page = (const uint8_t *)mv_align_down((uintptr_t)vec, mv_host_page_bytes());
	struct scan_arg probe = scan_arg(page, page + mv_host_page_bytes(), vec, 1);
	bool has_scan = has_pagemap && ioctl(w->pagemap_fd, SCAN_IOCTL, &probe) >= 0;

	switch (w->finder) {
	case SNAP_MEMORY_SCAN: return has_scan ? 0 : -ENOTSUP;
	case SNAP_MEMORY_PAGEMAP: return has_pagemap ? 0 : -ENOTSUP;
	default:
		w->finder = has_scan ? SNAP_MEMORY_SCAN : has_pagemap ? SNAP_MEMORY_PAGEMAP : SNAP_MEMORY_ALL;
		return 0;
	}
}

static int walk_regions(struct walk *w, const struct gmem *m)
{
	for (unsigned i = 0; i < m->n_regions; i++) {
		w->region = &m->region[i];
		int r = walk_region(w);
		if (r)
			return r;
	}
	return 0;
}

static int walk(struct walk *w, const struct gmem *m)
{
	int r = choose_finder(w);
	if (!r && w->private && w->finder == SNAP_MEMORY_ALL)
		r = -ENOTSUP;
	r = r ? r : walk_regions(w, m);
	mv_close(&w->pagemap_fd);
	return r;
}

int snap_pages_walk(enum snap_memory_finder finder, const struct gmem *m, snap_pages_fn *fn, void *arg)
{
	return walk(&(struct walk){ .fn = fn, .arg = arg, .pagemap_fd = -1, .finder = finder }, m);
}

int snap_private_walk(enum snap_memory_finder finder, const struct gmem *m, snap_pages_fn *fn, void *arg)
{
	return walk(
		&(struct walk){ .fn = fn, .arg = arg, .pagemap_fd = -1, .finder = finder, .private = true },
		m);
}
