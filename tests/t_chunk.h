// SPDX-License-Identifier: Apache-2.0
// A second, simple reader of incremental memory files (snapshot/chunk.h), so that the writer and
// the product's reader can't be wrong together. Fails the test at every broken rule.
#pragma once
#include "tests/t.h"

#include "microvm/base/util.h"
#include "snapshot/chunk_head.h"
#include "snapshot/codec.h"
#include "snapshot/format.h"

enum { T_PAGE = 4096, T_CHUNK_PAGES = 16 };

static inline void t_apply_chunk(int fd, const struct chunk_entry *e, uint8_t *chunk, uint32_t len,
				 uint16_t *ret_mask)
{
	static uint8_t stored[CHUNK_BYTES], pages[CHUNK_BYTES];
	uint32_t n = le32_get(e->stored_bytes), kind = le32_get(e->kind), n_pages = 0;
	uint16_t all = (uint16_t)((1u << len / T_PAGE) - 1);

	*ret_mask = kind == CHUNK_PARENT ? 0 : all;
	if (kind == CHUNK_PARENT || kind == CHUNK_ZERO) {
		assert_true(!le64_get(e->offset) && !n && !le64_get(e->xxh3));
		if (kind == CHUNK_ZERO)
			memset(chunk, 0, len);
		return;
	}
	assert_in_range(n, 1, CHUNK_BYTES);
	assert_int_equal(mv_pread_full(fd, stored, n, le64_get(e->offset)), 0);
	assert_int_equal(snap_xxh3(stored, n), le64_get(e->xxh3));
	if (kind == CHUNK_RAW) {
		assert_int_equal(n, len);
		memcpy(chunk, stored, len);
		return;
	}
	if (kind == CHUNK_LZ4) {
		assert_int_equal(codec_decompress(stored, n, chunk, len), 0);
		return;
	}
	assert_int_equal(kind, CHUNK_PATCH);
	uint16_t mask = *ret_mask = (uint16_t)(stored[0] | stored[1] << 8);
	assert_true(mask && mask < all);
	for (unsigned k = 0; k < T_CHUNK_PAGES; k++)
		n_pages += mask >> k & 1;
	assert_true(n <= 2 + n_pages * T_PAGE);
	if (n == 2 + n_pages * T_PAGE)
		memcpy(pages, stored + 2, n - 2);
	else
		assert_int_equal(codec_decompress(stored + 2, n - 2, pages, n_pages * T_PAGE), 0);
	for (unsigned k = 0, at = 0; k < T_CHUNK_PAGES; k++)
		if (mask >> k & 1)
			memcpy(chunk + k * T_PAGE, pages + at++ * T_PAGE, T_PAGE);
}

// The file over what memory[] holds. ret_kinds and ret_stored, the pages that the file has, may
// be NULL; returns the number of those.
static inline uint64_t t_apply(int fd, uint8_t *memory, uint64_t bytes, uint32_t *ret_kinds,
			       uint64_t *ret_stored)
{
	struct chunk_head h;
	bool incremental = false;
	uint64_t n = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES, n_stored = 0;
	assert_int_equal(mv_pread_full(fd, &h, sizeof h, 0), 0);
	assert_memory_equal(h.magic, CHUNK_MAGIC, sizeof h.magic);
	assert_int_equal(snap_xxh3(&h, offsetof(struct chunk_head, head_xxh3)), le64_get(h.head_xxh3));
	assert_int_equal(le64_get(h.memory_bytes), bytes);
	assert_int_equal(le64_get(h.n_chunks), n);
	struct chunk_entry *entry = malloc(n * sizeof *entry);
	assert_non_null(entry);
	assert_int_equal(mv_pread_full(fd, entry, n * sizeof *entry, le64_get(h.index_offset)), 0);
	assert_int_equal(snap_xxh3(entry, n * sizeof *entry), le64_get(h.index_xxh3));
	for (uint64_t i = 0; i < n; i++) {
		uint64_t left = bytes - i * CHUNK_BYTES;
		uint16_t mask;
		t_apply_chunk(fd, &entry[i], memory + i * CHUNK_BYTES,
			      left < CHUNK_BYTES ? (uint32_t)left : CHUNK_BYTES, &mask);
		incremental |= le32_get(entry[i].kind) >= CHUNK_PARENT;
		n_stored += (uint64_t)__builtin_popcount(mask);
		if (ret_kinds)
			ret_kinds[i] = le32_get(entry[i].kind);
		if (ret_stored)
			ret_stored[i / 4] |= (uint64_t)mask << i % 4 * T_CHUNK_PAGES;
	}
	assert_int_equal(le16_get(h.minor), incremental);
	free(entry);
	return n_stored;
}
