// SPDX-License-Identifier: Apache-2.0
// gmem_discard(): memory that the guest does without goes back to the host.
//
// Theory of operation. Anonymous memory (a booted VM, its forks, memory of a page handler): MADV_DONTNEED,
// and the next touch finds zeros. In a clone, whose memory is a private mapping of a file, that would bring
// back what the snapshot holds: no harm to a guest that asked for nothing else, but none of it would be zeros
// for one that counts on them (init_on_free), nor in a snapshot of the clone. So there the mapping itself is
// replaced by an anonymous one; snapshot/pages.c finds out by the kernel's word that it is no file's any
// more. A userfaultfd loses such pages with the old mapping: nobody has to fill them. Each replaced piece is
// a mapping of its own, of which a process may have 65,530 (vm.max_map_count), hence the limit.
#include <errno.h>
#include <sys/mman.h>

#include "microvm/base/gmem.h"
#include "microvm/base/util.h"

#define MAX_PIECES 16384u

static bool is_replaced(const struct gmem *m, uint64_t page)
{
	return m->replaced && m->replaced[page / 64] >> page % 64 & 1;
}

// How many pieces there are more (or fewer) when [page, end), none of it replaced yet, is.
static int more_pieces(const struct gmem *m, uint64_t page, uint64_t end)
{
	uint64_t n = m->total_bytes / mv_host_page_bytes();
	return 1 - (page && is_replaced(m, page - 1)) - (end < n && is_replaced(m, end));
}

static int replace(struct gmem *m, uint8_t *p, uint64_t page, uint64_t end)
{
	size_t len = (end - page) * mv_host_page_bytes();
	if (!m->replaced)
		m->replaced = calloc(m->total_bytes / mv_host_page_bytes() / 64 + 1, sizeof *m->replaced);
	if (!m->replaced || (int64_t)m->n_pieces + more_pieces(m, page, end) > MAX_PIECES)
		return -ENOSPC;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	const void *got = mmap(p, len, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (got == MAP_FAILED)
		return -ENOSPC;
	madvise(p, len, MADV_DONTDUMP);
	m->n_pieces = (uint32_t)((int)m->n_pieces + more_pieces(m, page, end));
	for (; page < end; page++)
		m->replaced[page / 64] |= 1ULL << page % 64;
	return 0;
}

static const struct gmem_region *region_of(const struct gmem *m, const uint8_t *p, size_t len)
{
	for (unsigned i = 0; i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		uint64_t at = (uintptr_t)p - (uintptr_t)r->hva; // wraps to a huge number below it
		if (at < r->size_bytes && len <= r->size_bytes - at)
			return r;
	}
	return NULL;
}

int gmem_discard(struct gmem *m, void *start, size_t len)
{
	uint32_t page_bytes = mv_host_page_bytes();
	const struct gmem_region *r = region_of(m, start, len);
	if (!r)
		return -EFAULT;
	uint64_t at = r->file_offset + (uint64_t)((uint8_t *)start - r->hva);
	uint64_t page = mv_align_up(at, page_bytes) / page_bytes, end = (at + len) / page_bytes;
	uint8_t *p = r->hva + (page * page_bytes - r->file_offset);
	int result = 0;
	while (page < end) {
		bool whole = !m->from_file, again = is_replaced(m, page);
		uint64_t to = whole ? end : page + 1;
		while (to < end && is_replaced(m, to) == again)
			to++;
		size_t n = (to - page) * page_bytes;
		int e = 0;
		if (!whole && !again)
			e = replace(m, p, page, to);
		else if (madvise(p, n, MADV_DONTNEED))
			e = -errno;
		if (e)
			result = e;
		else
			gmem_wrote(m, p, n);
		m->discarded_bytes += e ? 0 : n;
		m->discarded |= whole;
		p += n;
		page = to;
	}
	return result;
}
