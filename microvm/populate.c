// SPDX-License-Identifier: Apache-2.0
#include "microvm/populate.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "snapshot/working_set.h"

#ifndef MADV_POPULATE_READ // Linux 5.14
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

// Of a file that is all there a read maps 16 pages around (fault-around), so extents that near
// are one call.
#define NEAR_PAGES 16

static int advise(uint8_t *at, uint64_t len, bool write)
{
	while (madvise(at, len, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ))
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	return 0;
}

// An extent may lie in several regions, since those follow each other in the file. One that was recorded on a
// host with smaller pages may begin and end within a page of this one.
static int advise_pages(const struct gmem *m, uint64_t page, uint64_t n_pages, bool write)
{
	uint64_t from = mv_align_down(page * WS_PAGE_BYTES, mv_host_page_bytes());
	uint64_t to = mv_align_up((page + n_pages) * WS_PAGE_BYTES, mv_host_page_bytes());
	int r = 0;
	for (unsigned i = 0; !r && i < m->n_regions; i++) {
		const struct gmem_region *g = &m->region[i];
		uint64_t end = g->file_offset + g->size_bytes;
		uint64_t a = from > g->file_offset ? from : g->file_offset, b = to < end ? to : end;
		if (a < b)
			r = advise(g->hva + (a - g->file_offset), b - a, write);
	}
	return r;
}

// Written pages first: a page that is mapped to be read would fault again.
static int advise_all(const struct gmem *m, const struct working_set *w, bool write, uint32_t near)
{
	int r = 0;
	for (uint32_t i = 0, next; !r && i < w->n_extents; i = next) {
		const struct ws_extent *e = &w->extent[i];
		uint64_t end = (uint64_t)e->page + e->n_pages;
		next = i + 1;
		if (e->written != write)
			continue;
		for (; !write && next < w->n_extents && w->extent[next].page - end <= near; next++)
			end = (uint64_t)w->extent[next].page + w->extent[next].n_pages;
		r = advise_pages(m, e->page, end - e->page, write);
	}
	return r;
}

void populate(const struct gmem *m, int fd, const char *snapshot_id, bool lazy)
{
	struct working_set w;
	struct mv_err err = { 0 };
	int r = ws_read(fd, snapshot_id, m->total_bytes, &w, &err);
	if (r) {
		mv_log(MV_WARN, "%s; memory is loaded as the guest touches it", err.msg);
		return;
	}
	r = advise_all(m, &w, true, 0);
	r = r ? r : advise_all(m, &w, false, lazy ? 0 : NEAR_PAGES);
	if (r)
		mv_log(MV_WARN, "can't populate memory: %s", strerror(-r));
	ws_fini(&w);
}
