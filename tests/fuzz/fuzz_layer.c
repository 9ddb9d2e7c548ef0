// SPDX-License-Identifier: Apache-2.0
// Layer files (devices/layer.h): the input is the header, the first bytes of the map, and a
// list of ranges that are looked up and marked. Every second input leaves the header as it is,
// since a checksum stops nearly all others.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/disk.h"
#include "microvm/base/util.h"

enum { SECTORS = 40000, HEADER = 64 };

static void must(bool ok)
{
	if (!ok)
		abort();
}

static int new_layer(uint64_t *ret_bytes)
{
	static const uint8_t base[LAYER_ID_BYTES];
	struct layer l;
	int fd = memfd_create("layer", MFD_CLOEXEC);
	must(!layer_open(&l, dup(fd), SECTORS, base, true, NULL));
	*ret_bytes = layer_offset(&l, SECTORS);
	layer_close(&l);
	return fd;
}

// Each run is as the single bits say.
static void look_up(const struct disk *d, uint64_t sector, uint64_t n)
{
	uint64_t offset, next;
	int fd, next_fd;
	uint64_t run = disk_read_place(d, sector * LAYER_SECTOR, n * LAYER_SECTOR, &fd, &offset);
	must(run && run % LAYER_SECTOR == 0 && run <= n * LAYER_SECTOR);
	run /= LAYER_SECTOR;
	for (uint64_t i = 0; i < n && i <= run; i++) {
		disk_read_place(d, (sector + i) * LAYER_SECTOR, LAYER_SECTOR, &next_fd, &next);
		must((next_fd == fd && next == offset + i * LAYER_SECTOR) == (i < run));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t bytes;
	struct disk d;
	struct disk_files files = { .base_fd = memfd_create("base", MFD_CLOEXEC), .n_layers = 1 };
	must(!ftruncate(files.base_fd, (off_t)SECTORS * LAYER_SECTOR));
	files.layer_fd[0] = new_layer(&bytes);
	int fd = dup(files.layer_fd[0]);
	size_t n = size && data[0] & 1 ? HEADER : 0; // of hostile header
	n = n < size ? n : size;
	must(!mv_pwrite_full(fd, data, n, 0));
	data += n;
	size -= n;
	n = size < 256 ? size / 2 : 128; // of hostile map
	must(!mv_pwrite_full(fd, data, n, LAYER_MAP_OFFSET));
	must(!mv_pwrite_full(fd, data, n, LAYER_MAP_OFFSET + SECTORS / 8 - n / 2));
	data += n;
	size -= n;
	close(fd);
	if (disk_open(&d, &files, NULL, NULL))
		return 0;
	for (; size >= 4; data += 4, size -= 4) {
		uint64_t sector = (data[0] | (uint64_t)data[1] << 8) % SECTORS, len = 1 + data[2];
		sector = data[3] & 2 ? SECTORS - 1 - sector % 1024 : sector % 1024;
		len = len < SECTORS - sector ? len : SECTORS - sector;
		if (data[3] & 1)
			disk_wrote(&d, sector, len);
		look_up(&d, sector, len);
	}
	must(!layer_write_map(&d.layer[0], true));
	disk_close(&d);
	return 0;
}
