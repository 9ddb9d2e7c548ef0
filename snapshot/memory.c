// SPDX-License-Identifier: Apache-2.0
// Theory of operation. The pages that may hold something (pages.h) are compared with zeros,
// and runs of what is left are written.
#include "snapshot/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "microvm/base/util.h"
#include "snapshot/chunk.h"

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
	int r = snap_pages_walk(finder, m, write_nonzero, &w);
	if (r == -ENOTSUP)
		return mv_fail(err, -r, "memory: this kernel cannot tell which pages are in use");
	if (r == -ENOSPC || r == -EDQUOT)
		return mv_fail(
			err, -r, "memory: the file system is full after %llu of at most %llu MiB of data",
			(unsigned long long)(w.data_bytes >> 20), (unsigned long long)(m->total_bytes >> 20));
	if (r)
		return mv_fail(err, -r, "memory: cannot write: %s", strerror(-r));
	*ret_bytes = m->total_bytes;
	*ret_data_bytes = w.data_bytes;
	return 0;
}

int snap_memory_write(int fd, const struct gmem *m, uint64_t *ret_bytes, uint64_t *ret_data_bytes,
		      struct mv_err *err)
{
	return snap_memory_write_by(SNAP_MEMORY_AUTO, fd, m, ret_bytes, ret_data_bytes, err);
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
