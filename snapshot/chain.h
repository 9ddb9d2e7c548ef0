// SPDX-License-Identifier: Apache-2.0
// Memory that is spread over several files: the newest one says what changed since the next,
// and so on; the last is complete, compressed (chunk.h) or raw (memory.h).
//
// chain_open() reads all indexes once and keeps per chunk what is needed of them, newest
// first, and nothing behind the first complete one. So a chunk costs as much to read in a chain
// of 1,000 as in one file, unless patches of it lie over each other. All files are hostile.
// Only read after it was opened: any thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "snapshot/chunk.h"

#define CHAIN_MAX 1000 // files
#define CHAIN_SCRATCH_BYTES (2 * CHUNK_BYTES)
#define CHAIN_ZEROS UINT32_MAX           // in place of a part: zeros
#define CHAIN_RAW_BASE (UINT32_MAX - 1u) // the bytes of the raw file

struct chain_part { // a stored chunk or patch
	struct chunk_entry entry;
	uint32_t next; // below a patch: what its other pages are
	uint32_t file;
};

struct chain {
	uint64_t memory_bytes, n_chunks, n_stored; // stored: not zeros
	const int *fd;                             // newest first; the caller's
	unsigned n_files;
	bool raw_base;
	uint32_t *first; // per chunk
	struct chain_part *part;
	uint32_t n_parts, cap;
};

// n files, newest first; they stay the caller's and open, with the array, until chain_fini().
// raw_base: the last one is raw. -EINVAL: one is damaged, of another size, or the last one
// needs a parent (says which); -E2BIG: n > CHAIN_MAX; -ENOMEM.
int chain_open(const int *fd, unsigned n, bool raw_base, uint64_t memory_bytes, struct chain *ret_chain,
	       struct mv_err *err);
void chain_fini(struct chain *c); // idempotent

static inline bool chain_is_zero(const struct chain *c, uint64_t i) { return c->first[i] == CHAIN_ZEROS; }

// Bytes of chunk i: all but a last one are CHUNK_BYTES.
static inline uint32_t chain_len(const struct chain *c, uint64_t i)
{
	uint64_t left = c->memory_bytes - i * CHUNK_BYTES;
	return left < CHUNK_BYTES ? (uint32_t)left : CHUNK_BYTES;
}

// Decodes chunk i < n_chunks into to[CHUNK_BYTES]; scratch[CHAIN_SCRATCH_BYTES] is the caller's.
// Checksums of all that is used are checked; a raw file has none. Allocates nothing.
// 0; -EBADMSG: damaged; -ENODATA and other read errors.
int chain_read(const struct chain *c, uint64_t i, uint8_t *scratch, uint8_t *to);
