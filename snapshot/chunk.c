// SPDX-License-Identifier: Apache-2.0
#include "snapshot/chunk.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/chunk_head.h"
#include "snapshot/codec.h"
#include "snapshot/format.h"

static int damaged(struct mv_err *err, const char *why)
{
	return mv_fail(err, EINVAL, "memory: %s: the file is damaged", why);
}

static int check_head(const struct chunk_head *h, uint64_t file_bytes, uint64_t memory_bytes,
		      struct mv_err *err)
{
	unsigned major = le16_get(h->major);
	uint64_t n = le64_get(h->n_chunks), at = le64_get(h->index_offset), index_bytes;

	if (memcmp(h->magic, CHUNK_MAGIC, sizeof h->magic))
		return mv_fail(err, EINVAL,
			       "memory: not a compressed memory file (its first bytes are not %s)",
			       CHUNK_MAGIC);
	if (major > CHUNK_MAJOR)
		return mv_fail(err, EINVAL,
			       "memory: made by a newer thaw: format %u, this one reads up to %u", major,
			       CHUNK_MAJOR);
	if (snap_xxh3(h, offsetof(struct chunk_head, head_xxh3)) != le64_get(h->head_xxh3))
		return damaged(err, "checksum of the header wrong");
	if (major == 0 || le64_get(h->zero) || le32_get(h->chunk_bytes) != CHUNK_BYTES)
		return damaged(err, "header malformed");
	if (le64_get(h->memory_bytes) != memory_bytes || n != (memory_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES)
		return mv_fail(err, EINVAL, "memory: of %llu bytes of memory, %llu are wanted",
			       (unsigned long long)le64_get(h->memory_bytes),
			       (unsigned long long)memory_bytes);
	index_bytes = n * sizeof(struct chunk_entry);
	if (at < sizeof *h || at > file_bytes || file_bytes - at < index_bytes)
		return mv_fail(err, EINVAL, "memory: truncated: the index is not there");
	return file_bytes - at == index_bytes ? 0 : damaged(err, "bytes behind its end");
}

static bool entry_ok(const struct chunk_index *x, uint64_t i, uint64_t data_end)
{
	const struct chunk_entry *e = &x->entry[i];
	uint64_t at = le64_get(e->offset), n = le32_get(e->stored_bytes);
	switch (le32_get(e->kind)) {
	case CHUNK_ZERO: return !at && !n && !le64_get(e->xxh3);
	case CHUNK_RAW: break;
	case CHUNK_LZ4: break;
	default: return false;
	}
	if (n == 0 || n > CHUNK_BYTES || (le32_get(e->kind) == CHUNK_RAW && n != chunk_len(x, i)))
		return false;
	return at >= CHUNK_HEAD_BYTES && at <= data_end && n <= data_end - at;
}

static int check_entries(struct chunk_index *x, uint64_t data_end, struct mv_err *err)
{
	for (uint64_t i = 0; i < x->n_chunks; i++) {
		if (chunk_kind(x, i) == CHUNK_PARENT)
			return mv_fail(err, EINVAL, "memory: incremental, which this version can't read");
		if (!entry_ok(x, i, data_end))
			return mv_fail(err, EINVAL, "memory: chunk %llu has a malformed entry in the index",
				       (unsigned long long)i);
		x->n_stored += chunk_kind(x, i) != CHUNK_ZERO;
	}
	return 0;
}

int chunk_index_read(int fd, uint64_t memory_bytes, struct chunk_index *ret_index, struct mv_err *err)
{
	struct chunk_head h;
	struct stat st;

	if (fstat(fd, &st))
		return mv_fail(err, errno, "memory: %s", strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof h)
		return mv_fail(err, EINVAL, "memory: truncated: too short for a header");
	int r = mv_pread_full(fd, &h, sizeof h, 0);
	if (r)
		return mv_fail(err, -r, "memory: cannot read: %s", strerror(-r));
	r = check_head(&h, (uint64_t)st.st_size, memory_bytes, err);
	if (r)
		return r;
	struct chunk_index x = { .memory_bytes = memory_bytes, .n_chunks = le64_get(h.n_chunks) };
	size_t index_bytes = x.n_chunks * sizeof *x.entry;
	MV_FREE struct chunk_entry *entry = malloc(index_bytes ? index_bytes : 1);
	if (!entry)
		return mv_fail(err, ENOMEM, "memory: no memory for its index");
	x.entry = entry;
	r = mv_pread_full(fd, entry, index_bytes, le64_get(h.index_offset));
	if (r)
		return mv_fail(err, r == -ENODATA ? EINVAL : -r, "memory: cannot read the index: %s",
			       r == -ENODATA ? "truncated" : strerror(-r));
	if (snap_xxh3(entry, index_bytes) != le64_get(h.index_xxh3))
		return damaged(err, "checksum of the index wrong");
	r = check_entries(&x, le64_get(h.index_offset), err);
	if (r)
		return r;
	x.entry = MV_TAKE(entry);
	*ret_index = x;
	return 0;
}

void chunk_index_fini(struct chunk_index *x)
{
	free(x->entry);
	*x = (struct chunk_index){ 0 };
}

int chunk_read(const struct chunk_index *x, int fd, uint64_t i, uint8_t *scratch, uint8_t *to)
{
	const struct chunk_entry *e = &x->entry[i];
	uint32_t len = chunk_len(x, i), n = le32_get(e->stored_bytes), kind = le32_get(e->kind);

	if (kind == CHUNK_ZERO) {
		memset(to, 0, len);
		return 0;
	}
	uint8_t *stored = kind == CHUNK_RAW ? to : scratch;
	int r = mv_pread_full(fd, stored, n, le64_get(e->offset));
	if (r)
		return r;
	if (snap_xxh3(stored, n) != le64_get(e->xxh3))
		return -EBADMSG;
	return kind == CHUNK_RAW ? 0 : codec_decompress(stored, n, to, len);
}

int chunk_verify(int fd, uint64_t memory_bytes, struct mv_err *err)
{
	struct chunk_index x;
	MV_FREE uint8_t *buf = malloc(2 * CHUNK_BYTES);
	if (!buf)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = chunk_index_read(fd, memory_bytes, &x, err);
	if (r)
		return r;
	for (uint64_t i = 0; !r && i < x.n_chunks; i++) {
		r = chunk_read(&x, fd, i, buf, buf + CHUNK_BYTES);
		if (r == -EBADMSG || r == -ENODATA)
			r = mv_fail(err, EINVAL,
				    "memory: chunk %llu (from byte %llu of the memory) is damaged",
				    (unsigned long long)i, (unsigned long long)i * CHUNK_BYTES);
		else if (r)
			mv_fail(err, -r, "memory: cannot read: %s", strerror(-r));
	}
	chunk_index_fini(&x);
	return r;
}
