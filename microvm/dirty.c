// SPDX-License-Identifier: Apache-2.0
#include "microvm/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/util.h"
#include "microvm/kvm.h"
#include "snapshot/pages.h"

#define WORD_BYTES (64ull * GMEM_PAGE_BYTES) // of memory, that a word of a set stands for

int dirty_init(struct dirty *d, struct gmem *m, bool track, bool from_file, struct mv_err *err)
{
	*d = (struct dirty){ .from_file = from_file, .has_parent = from_file };
	m->written = NULL; // a forked process has its parent's
	if (!track)
		return 0;
	d->n_words = (m->total_bytes + WORD_BYTES - 1) / WORD_BYTES;
	for (unsigned i = 0; i < m->n_regions; i++) // KVM's words must be ours
		if (m->region[i].file_offset % WORD_BYTES)
			return mv_fail(err, EINVAL, "track_dirty: memory of odd size");
	m->written = calloc(d->n_words, sizeof *d->set);
	d->set = calloc(d->n_words, sizeof *d->set);
	d->log = malloc(d->n_words * sizeof *d->set);
	return m->written && d->set && d->log ? 0 : mv_fail(err, ENOMEM, "out of memory");
}

void dirty_fini(struct dirty *d, struct gmem *m)
{
	free(m->written);
	free(d->set);
	free(d->log);
	m->written = d->set = d->log = NULL;
}

int dirty_check(struct dirty *d, const struct msg_snapshot *how, struct mv_err *err)
{
	if (how->confirmed && d->taken && !d->lost)
		d->has_parent = true;
	if (!how->incremental || !how->lz4) // a raw one: dirty_complete()
		return 0;
	if (!d->set && !d->from_file)
		return mv_fail(err, EINVAL,
			       "not made from a snapshot, and without track_dirty, so nobody knows what "
			       "changed: make a full snapshot");
	if (!d->has_parent)
		return mv_fail(err, EINVAL,
			       "no snapshot of this VM was made yet: the first one must be full");
	return 0;
}

void dirty_add_log(uint64_t *set, uint64_t first, const uint64_t *log, uint64_t n, unsigned n_each)
{
	uint64_t all = (1ull << n_each) - 1;
	for (uint64_t w = 0; w < (n + 63) / 64; w++) {
		if (n_each == 1) {
			set[first / 64 + w] |= log[w];
			continue;
		}
		for (uint64_t left = log[w]; left; left &= left - 1) {
			uint64_t page = first + (w * 64 + (unsigned)__builtin_ctzll(left)) * n_each;
			set[page / 64] |= all << page % 64;
		}
	}
}

int dirty_keep_log(struct dirty *d, struct gmem *m, int vm_fd, struct mv_err *err)
{
	for (unsigned i = 0; d->set && i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		int e = kvm_get_dirty_log(vm_fd, i, d->log, err);
		if (e < 0)
			return e;
		dirty_add_log(m->written, r->file_offset / GMEM_PAGE_BYTES, d->log,
			      r->size_bytes / mv_host_page_bytes(), mv_host_page_bytes() / GMEM_PAGE_BYTES);
	}
	return 0;
}

int dirty_take(struct dirty *d, struct gmem *m, int vm_fd, bool confirmed, struct mv_err *err)
{
	int r = d->set && vm_fd >= 0 ? dirty_keep_log(d, m, vm_fd, err) : 0;
	if (!d->set || r)
		return r;
	bool keep = !confirmed || d->lost;
	for (uint64_t k = 0; k < d->n_words; k++)
		d->set[k] = m->written[k] | (keep ? d->set[k] : 0);
	memset(m->written, 0, d->n_words * sizeof *m->written);
	d->taken = true;
	d->lost = false;
	return 0;
}

void dirty_failed(struct dirty *d) { d->lost = d->taken; }

static int note(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to)
{
	uint64_t *private = arg;
	for (; from < to; from += GMEM_PAGE_BYTES) {
		uint64_t page = (r->file_offset + (uint64_t)(from - r->hva)) / GMEM_PAGE_BYTES;
		private[page / 64] |= 1ULL << page % 64;
	}
	return 0;
}

int dirty_complete(struct dirty *d, const struct gmem *m, struct mv_err *err)
{
	if (d->set && !d->forked)
		return 0;
	uint64_t n = (m->total_bytes + WORD_BYTES - 1) / WORD_BYTES;
	uint64_t *pages = calloc(n, sizeof *pages);
	int r = pages ? 0 : -ENOMEM;
	if (!r && d->from_file)
		r = snap_private_walk(SNAP_MEMORY_AUTO, m, note, pages);
	else if (!r && m->discarded)
		memset(pages, 0xff, n * sizeof *pages);
	else if (!r)
		r = snap_pages_walk(SNAP_MEMORY_AUTO, m, note, pages);
	free(d->set);
	d->set = pages;
	return r ? mv_fail(err, -r, "cannot tell which pages changed: %s", strerror(-r)) : 0;
}

int dirty_keep_private(uint64_t *set, const struct gmem *m, struct mv_err *err)
{
	uint64_t n = (m->total_bytes + WORD_BYTES - 1) / WORD_BYTES;
	MV_FREE uint64_t *private = calloc(n, sizeof *private);
	int r = private ? snap_private_walk(SNAP_MEMORY_AUTO, m, note, private) : -ENOMEM;
	for (uint64_t k = 0; !r && k < n; k++)
		set[k] &= private[k];
	return r ? mv_fail(err, -r, "cannot tell which pages are there: %s", strerror(-r)) : 0;
}
