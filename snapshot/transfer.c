// SPDX-License-Identifier: Apache-2.0
#include "snapshot/transfer.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "microvm/base/bytes.h"
#include "microvm/base/progress.h"
#include "snapshot/format.h"
#include "snapshot/store_dir.h"

struct header {
	char magic[8];
	le16_t major, minor;
	le32_t zero;
	le64_t xxh3;
};

struct record {
	le32_t kind, file;
	le64_t offset, len;
	le64_t xxh3;
};
_Static_assert(sizeof(struct header) == 24 && sizeof(struct record) == 32, "as they are in the stream");

enum { KIND_MANIFEST = 1, KIND_DATA = 2, KIND_END = 3 };
enum { DATA_MAX = 256 << 10, MANIFEST_MAX = SNAP_MANIFEST_MAX_BYTES + 4096, BUF_BYTES = MANIFEST_MAX };
_Static_assert(DATA_MAX <= BUF_BYTES, "one buffer for both");

static uint64_t data_bytes(const struct manifest *m)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < m->n_files; i++)
		sum += m->file[i].data_bytes;
	return sum;
}

// --- out ---

struct writer {
	int fd;
	uint64_t n_records;
	uint8_t *buf;
};

static int put(int fd, const void *bytes, size_t len, struct mv_err *err)
{
	int r = mv_write_full(fd, bytes, len);
	return r ? mv_fail(err, -r, "cannot write the export: %s", strerror(-r)) : 0;
}

static int put_record(struct writer *w, uint32_t kind, uint32_t file, uint64_t offset, size_t len,
		      struct mv_err *err)
{
	struct record h = { .kind = le32_make(kind),
			    .file = le32_make(file),
			    .offset = le64_make(offset),
			    .len = le64_make(len) };
	h.xxh3 = le64_make(snap_xxh3_record(&h, offsetof(struct record, xxh3), w->buf, len));
	w->n_records++;
	int r = put(w->fd, &h, sizeof h, err);
	return r ? r : put(w->fd, w->buf, len, err);
}

static int put_range(struct writer *w, uint32_t file, const char *name, int fd, uint64_t at, uint64_t end,
		     struct mv_err *err)
{
	while (at < end) {
		size_t n = end - at < DATA_MAX ? (size_t)(end - at) : DATA_MAX;
		int r = mv_pread_full(fd, w->buf, n, at);
		if (r)
			return mv_fail(err, r == -ENODATA ? EINVAL : -r, "%s: cannot read: %s", name,
				       r == -ENODATA ? "truncated meanwhile" : strerror(-r));
		r = put_record(w, KIND_DATA, file, at, n, err);
		if (r)
			return r;
		at += n;
		mv_progress_add(n);
	}
	return 0;
}

static int put_file(struct writer *w, uint32_t file, const struct manifest_file *f, int fd,
		    struct mv_err *err)
{
	uint64_t at = 0, start, end;

	while (at < f->size_bytes) {
		int r = snap_next_data(fd, at, f->size_bytes, &start, &end);
		if (r)
			return mv_fail(err, -r, "%s: cannot read: %s", f->name, strerror(-r));
		r = put_range(w, file, f->name, fd, start, end, err);
		if (r)
			return r;
		at = end;
	}
	return 0;
}

static int put_manifest(struct writer *w, int fd, struct mv_err *err)
{
	struct stat st;
	if (fstat(fd, &st) || (uint64_t)st.st_size > MANIFEST_MAX ||
	    mv_pread_full(fd, w->buf, (size_t)st.st_size, 0))
		return mv_fail(err, EINVAL, "manifest: changed meanwhile");
	return put_record(w, KIND_MANIFEST, 0, 0, (size_t)st.st_size, err);
}

int store_export_write(const struct store_export *x, int out_fd, struct mv_err *err)
{
	MV_FREE uint8_t *buf = malloc(BUF_BYTES);
	struct writer w = { .fd = out_fd, .buf = buf };
	struct header h = { .major = le16_make(SNAP_FORMAT_MAJOR), .minor = le16_make(SNAP_FORMAT_MINOR) };

	if (!buf)
		return mv_fail(err, ENOMEM, "out of memory");
	memcpy(h.magic, TRANSFER_MAGIC, sizeof h.magic);
	h.xxh3 = le64_make(snap_xxh3_record(&h, offsetof(struct header, xxh3), "", 0));
	mv_progress_begin(MV_PROGRESS_WRITES, data_bytes(&x->m));
	int r = put(out_fd, &h, sizeof h, err);
	if (!r)
		r = put_manifest(&w, x->manifest_fd, err);
	for (uint32_t i = 0; !r && i < x->m.n_files; i++)
		r = put_file(&w, i, &x->m.file[i], x->fd[i], err);
	return r ? r : put_record(&w, KIND_END, 0, w.n_records, 0, err);
}

int store_export_open(struct store *s, const char *name, struct store_export **ret_x, struct mv_err *err)
{
	struct store_export *x = malloc(sizeof *x);
	if (!x)
		return mv_fail(err, ENOMEM, "out of memory");
	x->manifest_fd = -1;
	for (size_t i = 0; i < MV_ARRAY_LEN(x->fd); i++)
		x->fd[i] = -1;
	MV_FD dir_fd = -1;
	int r = store_dir_open(s, name, &dir_fd, err);
	bool found = !r;
	r = r ? r : store_dir_manifest(dir_fd, name, &x->m, err);
	r = r ? r : store_dir_file(dir_fd, &x->m, "manifest", false, &x->manifest_fd, err);
	for (uint32_t i = 0; !r && i < x->m.n_files; i++)
		r = store_dir_file(dir_fd, &x->m, x->m.file[i].name, false, &x->fd[i], err);
	if (r && found)
		mv_wrap(err, "snapshot %s", name);
	if (r) {
		store_export_free(x);
		return r;
	}
	*ret_x = x;
	return 0;
}

void store_export_free(struct store_export *x)
{
	if (!x)
		return;
	mv_close(&x->manifest_fd);
	for (size_t i = 0; i < MV_ARRAY_LEN(x->fd); i++)
		mv_close(&x->fd[i]);
	free(x);
}

// --- in ---

struct reader {
	int fd;
	uint64_t n_records;
	uint8_t *buf;
	struct record h; // checked, its bytes are in buf
};

// How much came before the end, at most len; or -errno.
static ssize_t get(int fd, void *bytes, size_t len)
{
	size_t have = 0;
	while (have < len) {
		ssize_t n = read(fd, (uint8_t *)bytes + have, len - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		have += (size_t)n;
	}
	return (ssize_t)have;
}

static int get_all(struct reader *r, void *bytes, size_t len, struct mv_err *err)
{
	ssize_t n = get(r->fd, bytes, len);
	if (n < 0)
		return mv_fail(err, (int)-n, "cannot read the export: %s", strerror((int)-n));
	if ((size_t)n < len)
		return mv_fail(err, EINVAL, "the export is cut off");
	return 0;
}

static int get_header(struct reader *r, struct mv_err *err)
{
	struct header h;
	ssize_t n = get(r->fd, &h, sizeof h);
	if (n < 0)
		return mv_fail(err, (int)-n, "cannot read the export: %s", strerror((int)-n));
	if ((size_t)n < sizeof h || memcmp(h.magic, TRANSFER_MAGIC, sizeof h.magic))
		return mv_fail(err, EINVAL,
			       "not an exported snapshot (its first bytes are not " TRANSFER_MAGIC ")");
	if (le16_get(h.major) > SNAP_FORMAT_MAJOR)
		return mv_fail(err, EINVAL, "made by a newer thaw: format %u, this one reads up to %u",
			       le16_get(h.major), SNAP_FORMAT_MAJOR);
	if (le64_get(h.xxh3) != snap_xxh3_record(&h, offsetof(struct header, xxh3), "", 0) ||
	    !le16_get(h.major) || le32_get(h.zero))
		return mv_fail(err, EINVAL, "the export's header is damaged");
	return 0;
}

static int get_record(struct reader *r, struct mv_err *err)
{
	struct record h;
	int x = get_all(r, &h, sizeof h, err);
	if (x)
		return x;
	uint64_t len = le64_get(h.len);
	uint32_t kind = le32_get(h.kind);
	uint64_t max = kind == KIND_DATA ? DATA_MAX : kind == KIND_MANIFEST ? MANIFEST_MAX : 0;
	if (kind < KIND_MANIFEST || kind > KIND_END || len > max)
		return mv_fail(err, EINVAL, "record %llu is malformed", (unsigned long long)r->n_records);
	x = get_all(r, r->buf, (size_t)len, err);
	if (x)
		return x;
	if (le64_get(h.xxh3) != snap_xxh3_record(&h, offsetof(struct record, xxh3), r->buf, (size_t)len))
		return mv_fail(err, EINVAL, "record %llu: checksum wrong: damaged on its way",
			       (unsigned long long)r->n_records);
	r->h = h;
	r->n_records++;
	return 0;
}

static int get_manifest(struct reader *r, struct manifest *m, struct mv_err *err)
{
	int x = get_record(r, err);
	if (x)
		return x;
	if (le32_get(r->h.kind) != KIND_MANIFEST)
		return mv_fail(err, EINVAL, "the export does not begin with a manifest");
	MV_FD fd = memfd_create("manifest", MFD_CLOEXEC);
	x = fd < 0 ? -errno : mv_pwrite_full(fd, r->buf, (size_t)le64_get(r->h.len), 0);
	return x ? mv_fail(err, -x, "manifest: %s", strerror(-x)) : manifest_load(fd, m, err);
}

static int end_file(int *fd, const struct manifest_file *f, struct mv_err *err)
{
	int r = ftruncate(*fd, (off_t)f->size_bytes) ? -errno : 0; // a hole at its end
	mv_close(fd);
	return r ? mv_fail(err, -r, "%s: cannot write: %s", f->name, strerror(-r)) : 0;
}

// The records up to `end`: file after file.
static int get_files(struct reader *r, struct store_draft *d, const struct manifest *m, struct mv_err *err)
{
	MV_FD fd = -1;
	uint32_t next = 0; // file to be opened; the open one is next - 1
	uint64_t at = 0;   // in the open one

	for (;;) {
		int x = get_record(r, err);
		if (x)
			return x;
		uint32_t kind = le32_get(r->h.kind), file = le32_get(r->h.file);
		uint64_t offset = le64_get(r->h.offset), len = le64_get(r->h.len);
		bool end = kind == KIND_END;
		if (kind == KIND_MANIFEST || (end && offset != r->n_records - 1) ||
		    (!end && (file >= m->n_files || file + 1 < next)))
			return mv_fail(err, EINVAL, "record %llu is out of place",
				       (unsigned long long)(r->n_records - 1));
		for (; next < m->n_files && (end || next <= file); next++, at = 0) {
			x = fd >= 0 ? end_file(&fd, &m->file[next - 1], err) : 0;
			if (!x)
				x = store_draft_file(d, m->file[next].name, &fd, err);
			if (x)
				return x;
		}
		if (end)
			return fd >= 0 ? end_file(&fd, &m->file[next - 1], err) : 0;
		if (offset < at || offset > m->file[file].size_bytes ||
		    len > m->file[file].size_bytes - offset)
			return mv_fail(err, EINVAL, "record %llu: outside of the file %s",
				       (unsigned long long)(r->n_records - 1), m->file[file].name);
		x = mv_pwrite_full(fd, r->buf, (size_t)len, offset);
		if (x)
			return mv_fail(err, -x, "%s: cannot write: %s", m->file[file].name, strerror(-x));
		at = offset + len;
		mv_progress_add(len);
	}
}

int store_import_read(struct store_draft *d, int in_fd, struct manifest *ret_m, struct mv_err *err)
{
	MV_FREE uint8_t *buf = malloc(BUF_BYTES);
	struct reader r = { .fd = in_fd, .buf = buf };
	char more;

	int x = buf ? get_header(&r, err) : mv_fail(err, ENOMEM, "out of memory");
	if (!x)
		x = get_manifest(&r, ret_m, err);
	if (!x) {
		mv_progress_begin(MV_PROGRESS_WRITES, data_bytes(ret_m));
		x = get_files(&r, d, ret_m, err);
	}
	if (!x && get(in_fd, &more, 1) != 0)
		x = mv_fail(err, EINVAL, "there are bytes behind the export's end");
	if (x)
		mv_wrap(err, "snapshot %s", d->name);
	return x;
}
