// SPDX-License-Identifier: Apache-2.0
#include "snapshot/format.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "microvm/base/bytes.h"
#include "microvm/base/progress.h"
#include "microvm/base/scratch.h"

struct head {
	char magic[8];
	le16_t major, minor;
	le32_t zero;
	le64_t payload_bytes;
	le64_t xxh3; // of everything above and the payload
};
_Static_assert(sizeof(struct head) == 32, "the header is 32 bytes in the file");

struct section_head {
	le32_t kind, index, len, zero;
};

static int out_of_memory(struct mv_err *err) { return mv_fail(err, ENOMEM, "out of memory"); }

static int hash_container(const struct head *h, const void *payload, size_t len, uint64_t *ret_hash)
{
	XXH3_state_t *x = XXH3_createState();
	if (!x)
		return -ENOMEM;
	XXH3_64bits_reset(x);
	XXH3_64bits_update(x, h, offsetof(struct head, xxh3));
	XXH3_64bits_update(x, payload, len);
	*ret_hash = XXH3_64bits_digest(x);
	XXH3_freeState(x);
	return 0;
}

int snap_container_write(int fd, const char magic[8], const void *payload, size_t len, struct mv_err *err)
{
	struct head h = { .major = le16_make(SNAP_FORMAT_MAJOR),
			  .minor = le16_make(SNAP_FORMAT_MINOR),
			  .payload_bytes = le64_make(len) };
	uint64_t hash;

	memcpy(h.magic, magic, sizeof h.magic);
	if (hash_container(&h, payload, len, &hash))
		return out_of_memory(err);
	h.xxh3 = le64_make(hash);
	int r = mv_pwrite_full(fd, &h, sizeof h, 0);
	if (!r)
		r = mv_pwrite_full(fd, payload, len, sizeof h);
	if (r == -ENOSPC || r == -EDQUOT)
		return mv_fail(err, -r, "cannot write %zu bytes: the file system is full", sizeof h + len);
	if (r)
		return mv_fail(err, -r, "cannot write %zu bytes: %s", sizeof h + len, strerror(-r));
	return 0;
}

// What the header says about itself, before anything is believed or allocated.
static int check_head(const struct head *h, const char magic[8], const char *what, uint64_t size_bytes,
		      size_t max_len, struct mv_err *err)
{
	unsigned major = le16_get(h->major);
	uint64_t len = le64_get(h->payload_bytes);

	if (memcmp(h->magic, magic, sizeof h->magic))
		return mv_fail(err, EINVAL, "%s: not a thaw %s file (its first bytes are not %.8s)", what,
			       what, magic);
	if (major > SNAP_FORMAT_MAJOR)
		return mv_fail(err, EINVAL, "%s: made by a newer thaw: format %u, this one reads up to %u",
			       what, major, SNAP_FORMAT_MAJOR);
	if (major == 0 || le32_get(h->zero))
		return mv_fail(err, EINVAL, "%s: damaged header", what);
	if (len > max_len)
		return mv_fail(err, EFBIG, "%s: %llu bytes long by its header, the limit is %zu", what,
			       (unsigned long long)len, max_len);
	if (len > size_bytes - sizeof *h)
		return mv_fail(err, EINVAL, "%s: truncated: %llu bytes of %llu are there", what,
			       (unsigned long long)(size_bytes - sizeof *h), (unsigned long long)len);
	if (len < size_bytes - sizeof *h)
		return mv_fail(err, EINVAL, "%s: %llu bytes too many at its end", what,
			       (unsigned long long)(size_bytes - sizeof *h - len));
	return 0;
}

int snap_container_read(int fd, const char magic[8], const char *what, size_t max_len, uint8_t **ret_payload,
			size_t *ret_len, struct mv_err *err)
{
	struct stat st;
	struct head h;
	uint64_t hash;

	if (fstat(fd, &st))
		return mv_fail(err, errno, "%s: %s", what, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return mv_fail(err, EINVAL, "%s: not a regular file", what);
	if ((uint64_t)st.st_size < sizeof h)
		return mv_fail(err, EINVAL, "%s: too short: %lld bytes, the header alone has %zu", what,
			       (long long)st.st_size, sizeof h);
	int r = mv_pread_full(fd, &h, sizeof h, 0);
	if (r)
		return mv_fail(err, -r, "%s: cannot read: %s", what, strerror(-r));
	r = check_head(&h, magic, what, (uint64_t)st.st_size, max_len, err);
	if (r)
		return r;
	size_t len = (size_t)le64_get(h.payload_bytes);
	MV_SCRATCH uint8_t *payload = mv_scratch(len ? len : 1);
	if (!payload)
		return out_of_memory(err);
	r = mv_pread_full(fd, payload, len, sizeof h);
	if (r == -ENODATA)
		return mv_fail(err, EINVAL, "%s: truncated while it was read", what);
	if (r)
		return mv_fail(err, -r, "%s: cannot read: %s", what, strerror(-r));
	if (hash_container(&h, payload, len, &hash))
		return out_of_memory(err);
	if (hash != le64_get(h.xxh3))
		return mv_fail(err, EINVAL, "%s: checksum wrong: the file is damaged", what);
	*ret_payload = MV_TAKE(payload);
	*ret_len = len;
	return 0;
}

size_t snap_section_begin(struct mv_buf *buf, uint32_t kind, uint32_t index)
{
	struct section_head h = { .kind = le32_make(kind), .index = le32_make(index) };
	size_t mark = buf->len;
	mv_buf_append(buf, &h, sizeof h);
	return mark;
}

void snap_section_end(struct mv_buf *buf, size_t mark)
{
	if (buf->failed)
		return;
	size_t len = buf->len - mark - sizeof(struct section_head);
	if (len > UINT32_MAX) {
		buf->failed = true;
		return;
	}
	le32_t v = le32_make((uint32_t)len);
	memcpy(buf->p + mark + offsetof(struct section_head, len), &v, sizeof v);
}

void snap_section_append(struct mv_buf *buf, uint32_t kind, uint32_t index, const void *bytes, size_t len)
{
	size_t mark = snap_section_begin(buf, kind, index);
	mv_buf_append(buf, bytes, len);
	snap_section_end(buf, mark);
}

int snap_section_next(const uint8_t *payload, size_t len, size_t *pos, struct snap_section *ret_section,
		      struct mv_err *err)
{
	struct section_head h;
	size_t at = *pos;

	if (at >= len)
		return 0;
	if (len - at < sizeof h)
		return mv_fail(err, EINVAL, "section at byte %zu: cut off", at);
	memcpy(&h, payload + at, sizeof h);
	if (le32_get(h.zero) || le32_get(h.len) > len - at - sizeof h)
		return mv_fail(err, EINVAL, "section %u.%u at byte %zu: cut off or malformed",
			       le32_get(h.kind), le32_get(h.index), at);
	*ret_section = (struct snap_section){ .kind = le32_get(h.kind),
					      .index = le32_get(h.index),
					      .bytes = payload + at + sizeof h,
					      .len = le32_get(h.len) };
	*pos = at + sizeof h + ret_section->len;
	return 1;
}

uint64_t snap_xxh3(const void *bytes, size_t len) { return XXH3_64bits(bytes, len); }

// --- file hash ---

enum { CHUNK = SNAP_HASH_CHUNK_BYTES, READ_BYTES = 4 * CHUNK }; // the buffer stays in the L2 cache

struct file_hash {
	XXH3_state_t *list; // over the chunk hashes
	uint64_t zero_hash; // of a whole chunk of zeros
	uint8_t *buf;
};

static void add_chunk(struct file_hash *f, uint64_t chunk_hash)
{
	le64_t v = le64_make(chunk_hash);
	XXH3_64bits_update(f->list, &v, sizeof v);
}

// Hashes [at, end): data, or at least not known to be a hole. `at` on a chunk's start.
static int hash_data(struct file_hash *f, int fd, uint64_t at, uint64_t end)
{
	while (at < end) {
		size_t n = end - at < READ_BYTES ? (size_t)(end - at) : READ_BYTES;
		int r = mv_pread_full(fd, f->buf, n, at);
		if (r)
			return r;
		for (size_t k = 0; k < n; k += CHUNK)
			add_chunk(f, XXH3_64bits(f->buf + k, n - k < CHUNK ? n - k : CHUNK));
		at += n;
		mv_progress_add(n);
	}
	return 0;
}

int snap_next_data(int fd, uint64_t at, uint64_t size_bytes, uint64_t *ret_start, uint64_t *ret_end)
{
	off_t start = lseek(fd, (off_t)at, SEEK_DATA);
	if (start < 0 && errno == ENXIO) {
		*ret_start = *ret_end = size_bytes;
		return 0;
	}
	off_t end = start < 0 ? -1 : lseek(fd, start, SEEK_HOLE);
	if (start < 0 || end < 0)
		return -errno;
	*ret_start = (uint64_t)start < size_bytes ? (uint64_t)start : size_bytes;
	*ret_end = (uint64_t)end < size_bytes ? (uint64_t)end : size_bytes;
	return 0;
}

uint64_t snap_xxh3_record(const void *head, size_t head_len, const void *bytes, size_t len)
{
	return XXH3_64bits_withSeed(bytes, len, XXH3_64bits(head, head_len));
}

static int hash_file(struct file_hash *f, int fd, uint64_t size_bytes)
{
	uint64_t at = 0, start, end; // `at`: the start of the first chunk not yet hashed

	while (at < size_bytes) {
		int r = snap_next_data(fd, at, size_bytes, &start, &end);
		if (r)
			return r;
		const uint64_t before = at;
		for (; at + CHUNK <= start; at += CHUNK)
			add_chunk(f, f->zero_hash);
		mv_progress_add(at - before);
		// Chunks with any data are read whole, and so is a last short one.
		end = start < size_bytes ? mv_align_up(end, CHUNK) : size_bytes;
		if (end > size_bytes)
			end = size_bytes;
		r = hash_data(f, fd, at, end);
		if (r)
			return r;
		at = end;
	}
	return 0;
}

int snap_data_bytes(int fd, uint64_t size_bytes, uint64_t *ret_data_bytes)
{
	uint64_t at = 0, start, end, data = 0;

	while (at < size_bytes) {
		int r = snap_next_data(fd, at, size_bytes, &start, &end);
		if (r)
			return r;
		data += end - start;
		at = end;
	}
	*ret_data_bytes = data;
	return 0;
}

int snap_xxh3_file(int fd, uint64_t size_bytes, uint64_t *ret_xxh3, uint64_t *ret_data_bytes)
{
	struct stat st;
	struct file_hash f = { 0 };
	uint64_t data_bytes = 0;

	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size < size_bytes)
		return -ENODATA;
	MV_FREE uint8_t *buf = calloc(1, READ_BYTES);
	f.buf = buf;
	f.list = XXH3_createState();
	if (!f.buf || !f.list) {
		XXH3_freeState(f.list);
		return -ENOMEM;
	}
	f.zero_hash = XXH3_64bits(f.buf, CHUNK);
	mv_progress_expect(size_bytes);
	XXH3_64bits_reset(f.list);
	int r = hash_file(&f, fd, size_bytes);
	if (!r)
		r = snap_data_bytes(fd, size_bytes, &data_bytes);
	if (!r) {
		*ret_xxh3 = XXH3_64bits_digest(f.list);
		*ret_data_bytes = data_bytes;
	}
	XXH3_freeState(f.list);
	return r;
}
