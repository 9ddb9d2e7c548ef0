// SPDX-License-Identifier: Apache-2.0
// Working sets (snapshot/working_set.h): the bytes as a whole file, and as the payload of a good
// container with the right id and size of memory, so that extents are reached.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "microvm/base/bytes.h"
#include "snapshot/format.h"
#include "snapshot/working_set.h"

#define MEMORY (64ull << 20)
#define ID_AT 16

static int fd = -1;

static void try_file(void)
{
	struct mv_err err = { 0 };
	struct working_set w;
	uint64_t end = 0, pages = 0;
	if (ws_read(fd, "", MEMORY, &w, &err)) {
		if (!err.msg[0])
			abort();
		return;
	}
	for (uint32_t i = 0; i < w.n_extents; i++) {
		if (w.extent[i].page < end || !w.extent[i].n_pages)
			abort();
		end = (uint64_t)w.extent[i].page + w.extent[i].n_pages;
		pages += w.extent[i].n_pages;
	}
	if (end > MEMORY / WS_PAGE_BYTES || pages != w.read_pages + w.written_pages)
		abort();
	ws_fini(&w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t payload[1 << 16];
	le64_t memory = le64_make(MEMORY);
	struct mv_err err;
	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (ftruncate(fd, 0) || mv_pwrite_full(fd, data, size, 0))
		abort();
	try_file();
	if (size > sizeof payload || size < 64 || ftruncate(fd, 0))
		return 0;
	memcpy(payload, data, size);
	memcpy(payload, &memory, sizeof memory);
	memset(payload + ID_AT, 0, 40);
	le32_t n = le32_make((uint32_t)(size - 64) / 8);
	memcpy(payload + 56, &n, sizeof n);
	memset(payload + 60, 0, 4);
	if (snap_container_write(fd, WS_MAGIC, payload, 64 + (size - 64) / 8 * 8, &err))
		abort();
	try_file();
	return 0;
}
