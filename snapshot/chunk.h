// SPDX-License-Identifier: Apache-2.0
// A compressed memory file: guest memory in chunks of 64 KiB that can be read one by one.
//
//   header (64 bytes): magic "THAWCHNK", le16 major, le16 minor, le32 chunk bytes,
//                      le64 memory bytes, le64 chunks, le64 index offset, le64 XXH3-64 of
//                      the index, le64 zero, le64 XXH3-64 of the 56 bytes before it
//   stored chunks, in any order
//   index:             per chunk 24 bytes: le64 offset, le32 stored bytes, le32 kind,
//                      le64 XXH3-64 of the stored bytes; it ends with the file
//
// Chunk i is the bytes from i * 64 KiB of what a raw memory file would hold. An incremental
// file (le16 minor 1, otherwise 0) holds only what changed since its parent snapshot: a chunk
// of kind PARENT is as it was there, and of a PATCH these pages of 4 KiB are new:
//
//   le16 mask (bit k: page k of the chunk; neither 0 nor all its pages), then the pages in
//   ascending order, as they are (n * 4096 bytes) or as one LZ4 block (fewer bytes)
//
// A chunk all of whose pages changed is stored as in a full file. All bytes read
// here are hostile: chunks may overlap, but lie between header and index; what they decode
// to has exactly the size it must have. A struct chunk_index is only read after it was
// made: any thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/bytes.h"
#include "microvm/base/err.h"
#include "microvm/base/gmem.h"

#define CHUNK_MAGIC "THAWCHNK"
#define CHUNK_MAJOR 1
#define CHUNK_MINOR 1 // written only when there are kinds from PARENT on
#define CHUNK_BYTES 65536u
#define CHUNK_HEAD_BYTES 64u
#define CHUNK_PAGE_BYTES 4096u // of a PATCH

enum chunk_kind {
	CHUNK_ZERO,   // nothing stored; the other fields are zero
	CHUNK_RAW,    // did not get smaller
	CHUNK_LZ4,    // one LZ4 block
	CHUNK_PARENT, // nothing stored: as in the parent snapshot; the other fields are zero
	CHUNK_PATCH,  // some pages stored, the others as in the parent snapshot
};

struct chunk_entry { // as it is in the file, checked
	le64_t offset;
	le32_t stored_bytes, kind;
	le64_t xxh3;
};

struct chunk_index {
	uint64_t memory_bytes, n_chunks, n_stored; // stored: neither ZERO nor PARENT
	struct chunk_entry *entry;
};

// Writes the memory of a VM that stands still to `fd`, an empty file, with up to n_threads
// threads (0: one per CPU). ret_file_bytes: length of the file. No sync. -EINVAL: not an
// empty file; -ENOSPC and the like with a sentence. high: smaller and slower, see codec.h.
int chunk_write(int fd, const struct gmem *m, bool high, unsigned n_threads, uint64_t *ret_file_bytes,
		struct mv_err *err);

// The same as an incremental file: of the pages that `changed` names, a bit for each page of
// 4 KiB by its place in the memory file, or, when it is NULL, of the private pages of the
// mapping: what copy-on-write made of a clone's memory since it was mapped. Pages that did not
// change are not touched. -ENOTSUP: NULL, and this system can't tell which pages those are.
int chunk_write_changed(int fd, const struct gmem *m, const uint64_t *changed, bool high, unsigned n_threads,
			uint64_t *ret_file_bytes, struct mv_err *err);

// Reads and checks header and index. -EINVAL: damaged, not of memory_bytes, or it needs a
// parent; -ENOMEM. The second one takes files that need a parent, too.
int chunk_index_read(int fd, uint64_t memory_bytes, struct chunk_index *ret_index, struct mv_err *err);
int chunk_index_read_incremental(int fd, uint64_t memory_bytes, struct chunk_index *ret_index,
				 struct mv_err *err);
void chunk_index_fini(struct chunk_index *x); // idempotent

static inline uint32_t chunk_kind(const struct chunk_index *x, uint64_t i)
{
	return le32_get(x->entry[i].kind);
}

// Bytes of chunk i: all but a last one are CHUNK_BYTES.
static inline uint32_t chunk_len(const struct chunk_index *x, uint64_t i)
{
	uint64_t left = x->memory_bytes - i * CHUNK_BYTES;
	return left < CHUNK_BYTES ? (uint32_t)left : CHUNK_BYTES;
}

// Decodes chunk i < n_chunks of a complete file into to[CHUNK_BYTES], checksum first;
// scratch[CHUNK_BYTES] is the caller's. Allocates nothing. 0; -EBADMSG: damaged; -ENODATA and
// other read errors.
int chunk_read(const struct chunk_index *x, int fd, uint64_t i, uint8_t *scratch, uint8_t *to);

// The same for the entry of a RAW or LZ4 chunk of len bytes.
int chunk_entry_read(const struct chunk_entry *e, uint32_t len, int fd, uint8_t *scratch, uint8_t *to);

// And of a PATCH: writes those pages of `wanted` (a mask) that it has into their places in `to`;
// ret_has: the mask of all that it has. scratch is 2 * CHUNK_BYTES.
int chunk_patch_read(const struct chunk_entry *e, uint32_t len, int fd, unsigned wanted, uint8_t *scratch,
		     uint8_t *to, unsigned *ret_has);

// Everything: header, index, and every chunk that is stored decoded. -EINVAL names the first
// bad chunk. incremental: the file may need a parent.
int chunk_verify(int fd, uint64_t memory_bytes, bool incremental, struct mv_err *err);
