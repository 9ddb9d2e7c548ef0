// SPDX-License-Identifier: Apache-2.0
// Compressed memory files (snapshot/chunk.h), alone and as what lies over a raw one
// (snapshot/chain.h). The bytes are tried as a whole file, and as index and data behind a header and
// checksums that are made good, so that entries, blocks and patches are reached.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "microvm/base/util.h"
#include "snapshot/chain.h"
#include "snapshot/chunk_head.h"
#include "snapshot/format.h"

enum { CHUNKS = 3, MEMORY = CHUNKS * CHUNK_BYTES - 4096 };

static int fd = -1, base_fd = -1; // base: bytes of 0x55, and a hole

// Twice over the base. What it says of a chunk twice must read as once.
static void try_chain(void)
{
	static uint8_t scratch[CHAIN_SCRATCH_BYTES], once[CHUNK_BYTES], twice[CHUNK_BYTES];
	const int fds[] = { fd, fd, base_fd };
	struct mv_err err = { 0 };
	struct chain c, cc;
	if (chain_open(fds + 1, 2, true, MEMORY, &c, &err)) {
		if (!err.msg[0])
			abort();
		return;
	}
	if (chain_open(fds, 3, true, MEMORY, &cc, &err))
		abort();
	for (uint64_t i = 0; i < c.n_chunks; i++) {
		int r = chain_read(&c, i, scratch, once);
		if (r != chain_read(&cc, i, scratch, twice) || (!r && memcmp(once, twice, chain_len(&c, i))))
			abort();
	}
	chain_fini(&cc);
	chain_fini(&c);
}

static void try_file(void)
{
	static uint8_t scratch[CHUNK_BYTES], to[CHUNK_BYTES];
	struct mv_err err = { 0 };
	struct chunk_index x;
	try_chain();
	if (chunk_index_read(fd, MEMORY, &x, &err)) {
		if (!err.msg[0])
			abort();
		return;
	}
	for (uint64_t i = 0; i < x.n_chunks; i++)
		chunk_read(&x, fd, i, scratch, to);
	chunk_index_fini(&x);
}

static void put(const void *bytes, size_t len, uint64_t offset)
{
	if (mv_pwrite_full(fd, bytes, len, offset))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct chunk_entry e[CHUNKS];
	if (fd < 0) {
		static uint8_t bytes[CHUNK_BYTES];
		memset(bytes, 0x55, sizeof bytes);
		fd = memfd_create("fuzz", MFD_CLOEXEC);
		base_fd = memfd_create("base", MFD_CLOEXEC);
		if (ftruncate(base_fd, MEMORY) || mv_pwrite_full(base_fd, bytes, sizeof bytes, 0))
			abort();
	}
	if (ftruncate(fd, 0))
		abort();
	put(data, size, 0);
	try_file();

	if (size < sizeof e || ftruncate(fd, 0))
		return 0;
	memcpy(e, data, sizeof e);
	const uint8_t *stored = data + sizeof e;
	size_t len = size - sizeof e;
	for (unsigned i = 0; i < CHUNKS; i++) { // right checksums for entries that lie within
		uint64_t at = le64_get(e[i].offset);
		uint32_t n = le32_get(e[i].stored_bytes);
		if (at >= CHUNK_HEAD_BYTES && at - CHUNK_HEAD_BYTES <= len &&
		    n <= len - (at - CHUNK_HEAD_BYTES))
			e[i].xxh3 = le64_make(snap_xxh3(stored + (at - CHUNK_HEAD_BYTES), n));
	}
	struct chunk_head h = { .major = le16_make(CHUNK_MAJOR),
				.chunk_bytes = le32_make(CHUNK_BYTES),
				.memory_bytes = le64_make(MEMORY),
				.n_chunks = le64_make(CHUNKS),
				.index_offset = le64_make(CHUNK_HEAD_BYTES + len),
				.index_xxh3 = le64_make(snap_xxh3(e, sizeof e)) };
	memcpy(h.magic, CHUNK_MAGIC, sizeof h.magic);
	h.head_xxh3 = le64_make(snap_xxh3(&h, offsetof(struct chunk_head, head_xxh3)));
	put(&h, sizeof h, 0);
	put(stored, len, CHUNK_HEAD_BYTES);
	put(e, sizeof e, CHUNK_HEAD_BYTES + len);
	try_file();
	return 0;
}
