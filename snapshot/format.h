// SPDX-License-Identifier: Apache-2.0
// The container around a snapshot's `state` and `manifest` files, the sections inside
// `state`, and the checksums of all snapshot files (the only includer of xxhash).
//
//   container: header (32 bytes), payload
//   header:    magic[8], le16 major, le16 minor, le32 zero, le64 payload bytes,
//              le64 XXH3-64 of the 24 bytes before it and the payload
//   section:   le32 kind, le32 index (e.g. vCPU number), le32 length, le32 zero, bytes
//
// A larger minor adds things that an older reader may skip; a larger major can't be
// read. All bytes read here are hostile. No state: any thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/util.h"

#define SNAP_MAGIC_STATE "THAWSTAT"
#define SNAP_MAGIC_MANIFEST "THAWMANI"
#define SNAP_FORMAT_MAJOR 1
#define SNAP_FORMAT_MINOR 0
#define SNAP_STATE_MAX_BYTES (16u << 20) // of the payload: 32 vCPUs of large XSAVE fit many times
#define SNAP_MANIFEST_MAX_BYTES (256u << 10)

// Writes at offset 0 of an empty file (no sync). -ENOSPC etc. with a sentence.
int snap_container_write(int fd, const char magic[8], const void *payload, size_t len, struct mv_err *err);

// Reads a whole file (whatever the file position) and checks all of it. `what` begins
// each message ("state"). -EINVAL: bad bytes, the message says which way; -EFBIG: the
// payload is over max_len; -ENOMEM. *ret_payload is for mv_scratch_free() - or free(), where there is no
// region -, never NULL.
int snap_container_read(int fd, const char magic[8], const char *what, size_t max_len, uint8_t **ret_payload,
			size_t *ret_len, struct mv_err *err);

// Appends one section. Errors stay in buf->failed.
void snap_section_append(struct mv_buf *buf, uint32_t kind, uint32_t index, const void *bytes, size_t len);

// The same in two steps, for bytes that are appended in pieces: begin returns a mark
// that end takes to fill in the length. Sections don't nest.
size_t snap_section_begin(struct mv_buf *buf, uint32_t kind, uint32_t index);
void snap_section_end(struct mv_buf *buf, size_t mark);

struct snap_section {
	uint32_t kind, index;
	const uint8_t *bytes; // inside the payload
	size_t len;
};

// Walks a payload: *pos starts at 0. 1: *ret_section filled and *pos moved on; 0: the
// end; -EINVAL: malformed.
int snap_section_next(const uint8_t *payload, size_t len, size_t *pos, struct snap_section *ret_section,
		      struct mv_err *err);

// XXH3-64 of some bytes.
uint64_t snap_xxh3(const void *bytes, size_t len);

// The hash of a file's content: XXH3-64 over the list of le64 XXH3-64s of its chunks of
// 64 KiB (the last one may be shorter; an empty file is the hash of the empty list).
// It depends on the content only: a hole hashes as the zeros it reads as, but the file
// system is asked for holes, so a chunk inside one costs nothing. Also counts the bytes
// that are not in holes, to the file system's granularity.
// Reads with pread(2), never by mapping: whoever else holds the file may truncate it.
// -ENODATA: the file is (or became) shorter than size_bytes.
#define SNAP_HASH_CHUNK_BYTES (64u << 10)
int snap_xxh3_file(int fd, uint64_t size_bytes, uint64_t *ret_xxh3, uint64_t *ret_data_bytes);

// Where the next data at or after `at` begins and ends; [size, size) when only a hole
// is left. A file system that knows no holes says that all is data.
int snap_next_data(int fd, uint64_t at, uint64_t size_bytes, uint64_t *ret_start, uint64_t *ret_end);

// How many bytes are data, by the same word.
int snap_data_bytes(int fd, uint64_t size_bytes, uint64_t *ret_data_bytes);

// XXH3-64 of `bytes`, seeded with that of a head before them.
uint64_t snap_xxh3_record(const void *head, size_t head_len, const void *bytes, size_t len);
