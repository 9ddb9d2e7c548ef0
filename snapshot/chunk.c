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

// What a PATCH may take: a mask and all pages but one.
static uint32_t patch_max(uint32_t len) { return 2 + len - len % CHUNK_PAGE_BYTES - CHUNK_PAGE_BYTES; }

static bool entry_ok(const struct chunk_index *x, uint64_t i, uint64_t data_end)
{
	const struct chunk_entry *e = &x->entry[i];
	uint64_t at = le64_get(e->offset), n = le32_get(e->stored_bytes), max = CHUNK_BYTES;
	uint32_t len = chunk_len(x, i);
	switch (le32_get(e->kind)) {
	case CHUNK_ZERO:
	case CHUNK_PARENT: return !at && !n && !le64_get(e->xxh3);
	case CHUNK_RAW: max = n == len ? n : 0; break;
	case CHUNK_LZ4: break;
	case CHUNK_PATCH: max = len > CHUNK_PAGE_BYTES && n > 2 ? patch_max(len) : 0; break;
	default: return false;
	}
	return n > 0 && n <= max && at >= CHUNK_HEAD_BYTES && at <= data_end && n <= data_end - at;
}

static bool needs_parent(uint32_t kind) { return kind == CHUNK_PARENT || kind == CHUNK_PATCH; }

static int check_entries(struct chunk_index *x, bool incremental, uint64_t data_end, struct mv_err *err)
{
	for (uint64_t i = 0; i < x->n_chunks; i++) {
		uint32_t kind = chunk_kind(x, i);
		if (!entry_ok(x, i, data_end))
			return mv_fail(err, EINVAL, "memory: chunk %llu has a malformed entry in the index",
				       (unsigned long long)i);
		if (!incremental && needs_parent(kind))
			return mv_fail(err, EINVAL,
				       "memory: the file is incremental, but here must be a complete one");
		x->n_stored += kind != CHUNK_ZERO && kind != CHUNK_PARENT;
	}
	return 0;
}

static int index_read(int fd, uint64_t memory_bytes, bool incremental, struct chunk_index *ret_index,
		      struct mv_err *err)
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
	r = check_entries(&x, incremental, le64_get(h.index_offset), err);
	if (r)
		return r;
	x.entry = MV_TAKE(entry);
	*ret_index = x;
	return 0;
}

int chunk_index_read(int fd, uint64_t memory_bytes, struct chunk_index *ret_index, struct mv_err *err)
{
	return index_read(fd, memory_bytes, false, ret_index, err);
}

int chunk_index_read_incremental(int fd, uint64_t memory_bytes, struct chunk_index *ret_index,
				 struct mv_err *err)
{
	return index_read(fd, memory_bytes, true, ret_index, err);
}

void chunk_index_fini(struct chunk_index *x)
{
	free(x->entry);
	*x = (struct chunk_index){ 0 };
}

static int read_stored(const struct chunk_entry *e, int fd, uint8_t *to)
{
	uint32_t n = le32_get(e->stored_bytes);
	int r = mv_pread_full(fd, to, n, le64_get(e->offset));
	if (r)
		return r;
	return snap_xxh3(to, n) == le64_get(e->xxh3) ? 0 : -EBADMSG;
}

int chunk_entry_read(const struct chunk_entry *e, uint32_t len, int fd, uint8_t *scratch, uint8_t *to)
{
	bool raw = le32_get(e->kind) == CHUNK_RAW;
	int r = read_stored(e, fd, raw ? to : scratch);
	return r || raw ? r : codec_decompress(scratch, le32_get(e->stored_bytes), to, len);
}

int chunk_patch_read(const struct chunk_entry *e, uint32_t len, int fd, unsigned wanted, uint8_t *scratch,
		     uint8_t *to, unsigned *ret_has)
{
	uint32_t n = le32_get(e->stored_bytes), all = (1u << len / CHUNK_PAGE_BYTES) - 1;
	const uint8_t *page = scratch + 2;
	int r = read_stored(e, fd, scratch);
	if (r)
		return r;
	unsigned has = scratch[0] | (unsigned)scratch[1] << 8;
	if (!has || has >= all) // none, all, or some outside
		return -EBADMSG;
	uint32_t bytes = (uint32_t)__builtin_popcount(has) * CHUNK_PAGE_BYTES;
	if (n - 2 != bytes) {
		r = codec_decompress(page, n - 2, scratch + CHUNK_BYTES, bytes);
		page = scratch + CHUNK_BYTES;
	}
	if (r)
		return r;
	for (unsigned k = 0; k < len / CHUNK_PAGE_BYTES; k++) {
		if (!(has & 1u << k))
			continue;
		if (wanted & 1u << k)
			memcpy(to + k * CHUNK_PAGE_BYTES, page, CHUNK_PAGE_BYTES);
		page += CHUNK_PAGE_BYTES;
	}
	*ret_has = has;
	return 0;
}

int chunk_read(const struct chunk_index *x, int fd, uint64_t i, uint8_t *scratch, uint8_t *to)
{
	uint32_t len = chunk_len(x, i);
	if (chunk_kind(x, i) == CHUNK_ZERO) {
		memset(to, 0, len);
		return 0;
	}
	return chunk_entry_read(&x->entry[i], len, fd, scratch, to);
}

// Of a chunk that needs the parent: what is stored here.
static int check_chunk(const struct chunk_index *x, int fd, uint64_t i, uint8_t *scratch, uint8_t *to)
{
	unsigned has;
	switch (chunk_kind(x, i)) {
	case CHUNK_PARENT: return 0;
	case CHUNK_PATCH: return chunk_patch_read(&x->entry[i], chunk_len(x, i), fd, 0, scratch, to, &has);
	default: return chunk_read(x, fd, i, scratch, to);
	}
}

int chunk_verify(int fd, uint64_t memory_bytes, bool incremental, struct mv_err *err)
{
	struct chunk_index x;
	MV_FREE uint8_t *buf = malloc(3 * CHUNK_BYTES);
	if (!buf)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = index_read(fd, memory_bytes, incremental, &x, err);
	if (r)
		return r;
	for (uint64_t i = 0; !r && i < x.n_chunks; i++) {
		r = check_chunk(&x, fd, i, buf, buf + (size_t)2 * CHUNK_BYTES);
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

int chunk_finish(int fd, uint64_t memory_bytes, bool incremental, const struct chunk_entry *entry,
		 uint64_t index_offset)
{
	uint64_t n = (memory_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
	struct chunk_head h = { .major = le16_make(CHUNK_MAJOR),
				.minor = le16_make(incremental ? CHUNK_MINOR : 0),
				.chunk_bytes = le32_make(CHUNK_BYTES),
				.memory_bytes = le64_make(memory_bytes),
				.n_chunks = le64_make(n),
				.index_offset = le64_make(index_offset),
				.index_xxh3 = le64_make(snap_xxh3(entry, n * sizeof *entry)) };
	memcpy(h.magic, CHUNK_MAGIC, sizeof h.magic);
	h.head_xxh3 = le64_make(snap_xxh3(&h, offsetof(struct chunk_head, head_xxh3)));
	int r = mv_pwrite_full(fd, entry, n * sizeof *entry, index_offset);
	return r ? r : mv_pwrite_full(fd, &h, sizeof h, 0);
}
