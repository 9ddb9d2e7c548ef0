// SPDX-License-Identifier: Apache-2.0
// Theory of operation. The pages that may hold something (pages.h) are compared with zeros,
// and runs of what is left are written.
#include "snapshot/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "microvm/base/progress.h"
#include "microvm/base/util.h"
#include "snapshot/chunk.h"
#include "snapshot/format.h"

enum {
	PAGE = SNAP_PAGE_BYTES,
	WRITE_BYTES = 1 << 20, // longest write: compared and copied while in the cache
};

struct writer {
	int fd;
	const struct gmem_region *region;
	uint64_t data_bytes;
};

// --- writing ---

static bool is_zero(const uint8_t *page)
{
	static const uint8_t zeros[PAGE];
	return !memcmp(page, zeros, PAGE);
}

static int write_run(struct writer *w, const uint8_t *from, const uint8_t *to)
{
	size_t len = (size_t)(to - from);
	if (!len)
		return 0;
	w->data_bytes += len;
	mv_progress_at(w->region->file_offset + (uint64_t)(to - w->region->hva));
	return mv_pwrite_full(w->fd, from, len, w->region->file_offset + (uint64_t)(from - w->region->hva));
}

static int write_nonzero(void *arg, const struct gmem_region *region, const uint8_t *from, const uint8_t *to)
{
	struct writer *w = arg;
	w->region = region;
	const uint8_t *run = from; // [run, p) is not zero and not yet written
	for (const uint8_t *p = from; p < to; p += PAGE) {
		bool zero = is_zero(p);
		if (!zero && p - run < WRITE_BYTES)
			continue;
		int r = write_run(w, run, p);
		if (r)
			return r;
		run = zero ? p + PAGE : p;
	}
	return write_run(w, run, to);
}

static int cannot_write(int r, const struct writer *w, const struct gmem *m, struct mv_err *err)
{
	if (r == -ENOSPC || r == -EDQUOT)
		return mv_fail(err, -r,
			       "memory: the file system is full after %llu of at most %llu MiB of data",
			       (unsigned long long)(w->data_bytes >> 20),
			       (unsigned long long)(m->total_bytes >> 20));
	return mv_fail(err, -r, "memory: cannot write: %s", strerror(-r));
}

int snap_memory_write_by(enum snap_memory_finder finder, int fd, const struct gmem *m, uint64_t *ret_bytes,
			 uint64_t *ret_data_bytes, struct mv_err *err)
{
	struct writer w = { .fd = fd };
	struct stat st;

	if (fstat(fd, &st))
		return mv_fail(err, errno, "memory: %s", strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size)
		return mv_fail(err, EINVAL, "memory: not an empty file");
	if (ftruncate(fd, (off_t)m->total_bytes))
		return mv_fail(err, errno, "memory: cannot make a file of %llu MiB: %s",
			       (unsigned long long)(m->total_bytes >> 20), strerror(errno));
	mv_progress_begin(MV_PROGRESS_WRITES, m->total_bytes);
	int r = snap_pages_walk(finder, m, write_nonzero, &w);
	if (r == -ENOTSUP)
		return mv_fail(err, -r, "memory: this kernel cannot tell which pages are in use");
	if (r)
		return cannot_write(r, &w, m, err);
	mv_progress_at(m->total_bytes);
	*ret_bytes = m->total_bytes;
	*ret_data_bytes = w.data_bytes;
	return 0;
}

int snap_memory_write(int fd, const struct gmem *m, uint64_t *ret_bytes, uint64_t *ret_data_bytes,
		      struct mv_err *err)
{
	return snap_memory_write_by(SNAP_MEMORY_AUTO, fd, m, ret_bytes, ret_data_bytes, err);
}

// --- what changed ---

// The first page of the set at or after `page`, and before `end`.
static uint64_t next_page(const uint64_t *set, uint64_t page, uint64_t end)
{
	while (page < end) {
		uint64_t word = set[page / 64] >> page % 64;
		if (word) {
			page += (unsigned)__builtin_ctzll(word);
			break;
		}
		page = (page / 64 + 1) * 64;
	}
	return page < end ? page : end;
}

// Whole pages of the host: a file system in memory has no holes that are smaller.
static int write_set(struct writer *w, const struct gmem *m, const uint64_t *set)
{
	uint32_t each = mv_host_page_bytes() / PAGE;
	for (unsigned i = 0; i < m->n_regions; i++) {
		const struct gmem_region *r = w->region = &m->region[i];
		uint64_t first = r->file_offset / PAGE, end = first + r->size_bytes / PAGE, stop;
		for (uint64_t page = first; (page = next_page(set, page, end)) < end; page = stop) {
			page = mv_align_down(page, each);
			for (stop = page; stop < end && next_page(set, stop, stop + each) < stop + each;)
				stop += each;
			int e = write_run(w, r->hva + (page - first) * PAGE, r->hva + (stop - first) * PAGE);
			if (e)
				return e;
		}
	}
	return 0;
}

// Who lays the file over another one takes all that is data for changed.
static int check_holes(int fd, const struct writer *w, uint64_t size_bytes, struct mv_err *err)
{
	uint64_t data = 0;
	int r = snap_data_bytes(fd, size_bytes, &data);
	if (r)
		return mv_fail(err, -r, "memory: cannot look for holes: %s", strerror(-r));
	if (data == w->data_bytes)
		return 0;
	return mv_fail(
		err, ENOTSUP,
		"memory: this file system can't tell pages that were written from holes, so a file "
		"with changes only would be wrong: put it on another one (ext4, XFS, Btrfs, tmpfs), or "
		"write over a copy of the snapshot before");
}

int snap_memory_write_changed(int fd, const struct gmem *m, const uint64_t *changed, uint64_t *ret_bytes,
			      uint64_t *ret_data_bytes, struct mv_err *err)
{
	struct writer w = { .fd = fd };
	struct stat st;

	if (fstat(fd, &st))
		return mv_fail(err, errno, "memory: %s", strerror(errno));
	if (!S_ISREG(st.st_mode) || (st.st_size && (uint64_t)st.st_size != m->total_bytes))
		return mv_fail(err, EINVAL,
			       "memory: changes are written to an empty file, or over one of %llu MiB",
			       (unsigned long long)(m->total_bytes >> 20));
	mv_progress_begin(MV_PROGRESS_WRITES, m->total_bytes);
	int r = !st.st_size && ftruncate(fd, (off_t)m->total_bytes) ? -errno : write_set(&w, m, changed);
	if (r)
		return cannot_write(r, &w, m, err);
	if (!st.st_size && (r = check_holes(fd, &w, m->total_bytes, err)))
		return r;
	*ret_bytes = m->total_bytes;
	*ret_data_bytes = w.data_bytes;
	return 0;
}

int snap_memory_write_as(enum snap_memory_kind kind, int fd, const struct gmem *m, uint64_t *ret_bytes,
			 uint64_t *ret_data_bytes, struct mv_err *err)
{
	if (kind == SNAP_MEMORY_RAW)
		return snap_memory_write(fd, m, ret_bytes, ret_data_bytes, err);
	int r = chunk_write(fd, m, kind == SNAP_MEMORY_LZ4_HIGH, 0, ret_bytes, err);
	if (!r)
		*ret_data_bytes = *ret_bytes;
	return r;
}
