// SPDX-License-Identifier: Apache-2.0
#include "snapshot/working_set.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/bytes.h"
#include "microvm/base/scratch.h"
#include "snapshot/format.h"

#define WRITTEN (1u << 31)

struct head {
	le64_t memory_bytes, recorded_unix_ns;
	char snapshot_id[40];
	le32_t n_extents, zero;
};
struct file_extent {
	le32_t page, pages;
};
_Static_assert(sizeof(struct head) == 64 && MV_UUID_LEN <= 40, "as in the file");
#define MAX_BYTES (sizeof(struct head) + WS_MAX_EXTENTS * sizeof(struct file_extent))

void ws_fini(struct working_set *w)
{
	free(w->extent);
	*w = (struct working_set){ 0 };
}

static int append(struct working_set *w, struct ws_extent e)
{
	if (w->n_extents == WS_MAX_EXTENTS)
		return -E2BIG;
	if (w->n_extents == w->capacity) {
		uint32_t capacity = w->capacity ? 2 * w->capacity : 256;
		struct ws_extent *list = realloc(w->extent, capacity * sizeof *list);
		if (!list)
			return -ENOMEM;
		w->extent = list;
		w->capacity = capacity;
	}
	w->extent[w->n_extents++] = e;
	return 0;
}

int ws_add(struct working_set *w, uint64_t page, uint64_t n_pages, bool written)
{
	struct ws_extent *last = w->n_extents ? &w->extent[w->n_extents - 1] : NULL;
	uint64_t end = last ? (uint64_t)last->page + last->n_pages : 0,
		 total = w->memory_bytes / WS_PAGE_BYTES;
	if (page < end || page >= total || !n_pages || n_pages > total - page)
		return -EINVAL;
	if (last && page == end && last->written == written) {
		last->n_pages += (uint32_t)n_pages;
	} else {
		int r = append(w, (struct ws_extent){ (uint32_t)page, (uint32_t)n_pages, written });
		if (r)
			return r;
	}
	*(written ? &w->written_pages : &w->read_pages) += n_pages;
	return 0;
}

int ws_write(int fd, const struct working_set *w, struct mv_err *err)
{
	MV_BUF out = { 0 };
	struct head h = { .memory_bytes = le64_make(w->memory_bytes),
			  .recorded_unix_ns = le64_make(w->recorded_unix_ns),
			  .n_extents = le32_make(w->n_extents) };
	memcpy(h.snapshot_id, w->snapshot_id, sizeof w->snapshot_id);
	mv_buf_append(&out, &h, sizeof h);
	for (uint32_t i = 0; i < w->n_extents; i++) {
		const struct ws_extent *e = &w->extent[i];
		struct file_extent f = { le32_make(e->page),
					 le32_make(e->n_pages | (e->written ? WRITTEN : 0)) };
		mv_buf_append(&out, &f, sizeof f);
	}
	if (out.failed)
		return mv_fail(err, ENOMEM, "out of memory");
	return snap_container_write(fd, WS_MAGIC, out.p, out.len, err);
}

static int parse(const uint8_t *bytes, size_t len, const char *snapshot_id, uint64_t memory_bytes,
		 struct working_set *w, struct mv_err *err)
{
	struct head h;
	char id[sizeof h.snapshot_id] = { 0 };
	if (len < sizeof h)
		return mv_fail(err, EINVAL, "working set: too short for a header");
	memcpy(&h, bytes, sizeof h);
	w->memory_bytes = le64_get(h.memory_bytes);
	w->recorded_unix_ns = le64_get(h.recorded_unix_ns);
	if (mv_strcpy(id, sizeof id, snapshot_id) || memcmp(id, h.snapshot_id, sizeof id))
		return mv_fail(err, EINVAL, "working set: it is of another snapshot");
	memcpy(w->snapshot_id, id, sizeof w->snapshot_id);
	if (w->memory_bytes != memory_bytes)
		return mv_fail(err, EINVAL, "working set: of %llu bytes of memory, the snapshot has %llu",
			       (unsigned long long)w->memory_bytes, (unsigned long long)memory_bytes);
	uint64_t n = le32_get(h.n_extents);
	if (le32_get(h.zero) || len - sizeof h != n * sizeof(struct file_extent))
		return mv_fail(err, EINVAL, "working set: its length is not that of its %llu extents",
			       (unsigned long long)n);
	for (uint64_t i = 0; i < n; i++) {
		struct file_extent f;
		memcpy(&f, bytes + sizeof h + i * sizeof f, sizeof f);
		uint32_t pages = le32_get(f.pages);
		int r = ws_add(w, le32_get(f.page), pages & ~WRITTEN, pages & WRITTEN);
		if (r)
			return mv_fail(err, -r, "working set: extent %llu: %s", (unsigned long long)i,
				       r == -EINVAL ? "out of order, or outside the memory" : strerror(-r));
	}
	return 0;
}

int ws_read(int fd, const char *snapshot_id, uint64_t memory_bytes, struct working_set *ret_w,
	    struct mv_err *err)
{
	struct working_set w = { 0 };
	MV_SCRATCH uint8_t *bytes = NULL;
	size_t len;
	int r = snap_container_read(fd, WS_MAGIC, "working set", MAX_BYTES, &bytes, &len, err);
	r = r ? r : parse(bytes, len, snapshot_id, memory_bytes, &w, err);
	if (r)
		ws_fini(&w);
	else
		*ret_w = w;
	return r;
}

// --- in the store

static int open_folder(struct store *s, const char *snapshot, int *ret_fd, struct mv_err *err)
{
	if (!vmcfg_name_ok(snapshot))
		return mv_fail(err, EINVAL, "\"%.64s\" is not a name", snapshot);
	*ret_fd = openat(s->snapshots_fd, snapshot, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return *ret_fd < 0 ? mv_fail(err, errno, "snapshot %s: %s", snapshot, strerror(errno)) : 0;
}

int ws_store_open(struct store *s, const char *snapshot, int *ret_fd, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	struct stat st;
	int r = open_folder(s, snapshot, &dir_fd, err);
	if (r)
		return r;
	MV_FD fd = openat(dir_fd, WS_FILE, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return mv_fail(err, errno, "snapshot %s: working set: %s", snapshot, strerror(errno));
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return mv_fail(err, EINVAL, "snapshot %s: working set: not a regular file", snapshot);
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static int replace(int dir_fd, const struct working_set *w, struct mv_err *err)
{
	unlinkat(dir_fd, WS_NEW_FILE, 0); // of a crash
	MV_FD fd = openat(dir_fd, WS_NEW_FILE, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return mv_fail(err, errno, "cannot make the file: %s", strerror(errno));
	int r = ws_write(fd, w, err);
	if (!r && (fchmod(fd, 0400) || fsync(fd) || renameat(dir_fd, WS_NEW_FILE, dir_fd, WS_FILE) ||
		   fsync(dir_fd)))
		r = mv_fail(err, errno, "cannot publish it: %s", strerror(errno));
	if (r)
		unlinkat(dir_fd, WS_NEW_FILE, 0);
	return r;
}

int ws_store_save(struct store *s, const char *snapshot, const struct working_set *w, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	MV_FREE struct manifest *m = malloc(sizeof *m);
	int r = m ? open_folder(s, snapshot, &dir_fd, err) : mv_fail(err, ENOMEM, "out of memory");
	r = r ? r : store_show(s, snapshot, m, err);
	if (!r && strcmp(m->id, w->snapshot_id))
		r = mv_fail(err, ENOENT, "snapshot %s: another one has its name", snapshot);
	if (r)
		return r;
	r = replace(dir_fd, w, err);
	return r ? mv_wrap(err, "snapshot %s: working set", snapshot) : 0;
}

int ws_store_remove(struct store *s, const char *snapshot, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	int r = open_folder(s, snapshot, &dir_fd, err);
	if (r)
		return r;
	if ((unlinkat(dir_fd, WS_FILE, 0) && errno != ENOENT) || fsync(dir_fd))
		return mv_fail(err, errno, "snapshot %s: working set: %s", snapshot, strerror(errno));
	return 0;
}
