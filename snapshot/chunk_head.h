// SPDX-License-Identifier: Apache-2.0
// The header of a compressed memory file, for its writer and its reader (chunk.h).
#pragma once
#include "microvm/base/bytes.h"
#include "snapshot/chunk.h"

struct chunk_head {
	char magic[8];
	le16_t major, minor;
	le32_t chunk_bytes;
	le64_t memory_bytes, n_chunks, index_offset, index_xxh3, zero;
	le64_t head_xxh3; // of everything above
};
_Static_assert(sizeof(struct chunk_head) == CHUNK_HEAD_BYTES, "the header is 64 bytes in the file");
_Static_assert(sizeof(struct chunk_entry) == 24, "an index entry is 24 bytes in the file");

// Writes an index at its place, and then the header: so a file whose writer died is not taken for a
// good one. incremental: there are kinds from PARENT on. -errno.
int chunk_finish(int fd, uint64_t memory_bytes, bool incremental, const struct chunk_entry *entry,
		 uint64_t index_offset);
