// SPDX-License-Identifier: Apache-2.0
// One copy-on-write layer of a disk: a sparse file that holds the sectors written to it,
// and a map, one bit per 512-byte sector, that says which those are.
//
//   0        header (struct layer_header in layer.c), checksummed, written once
//   64 KiB   map: bit s % 8 of byte s / 8 is sector s
//   then     data, aligned to 64 KiB: sector s at its own place, s * 512
//
// There are no pointers in the file: every map is a valid map, and what it says can't
// lead outside. A bit is set after its sector was written and never cleared, so a map
// page that is half old and half new is a valid map as well.
// Trust: the file is hostile until layer_open() checked it; afterwards its bits may still be
// anything, and a file cut short ends the process by SIGBUS, as one of guest memory does.
// Threads: one at a time (the loop's lock).
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/err.h"

#define LAYER_SECTOR 512u
#define LAYER_ID_BYTES 16
#define LAYER_MAP_OFFSET (64u << 10)
#define LAYER_MAP_PAGE 4096u // what the map is written in; covers 16 MiB of disk

struct layer {
	int fd;
	bool writable;
	uint64_t n_sectors;
	uint8_t id[LAYER_ID_BYTES];
	uint8_t *map; // private mapping of the file's map
	size_t map_bytes;
	uint8_t *dirty; // writable: per page of the map, not in the file yet
	uint32_t n_dirty;
};

// Takes fd, also on failure. `below` is the id of the layer underneath, all zeros on the base.
// A writable file without any data (a new one) is made a layer with a fresh id.
// -EINVAL: no layer, damaged, of another disk or on another layer; -EBUSY: another VM has
// it (OFD lock: exclusive for writable); -ENOTSUP: a newer format.
int layer_open(struct layer *l, int fd, uint64_t n_sectors, const uint8_t below[LAYER_ID_BYTES],
	       bool writable, struct mv_err *err);
void layer_close(struct layer *l); // idempotent

uint64_t layer_offset(const struct layer *l, uint64_t sector); // of its data in the file

// How many sectors from `sector` on (at most n, at least 1) are all there or all not.
uint64_t layer_run(const struct layer *l, uint64_t sector, uint64_t n, bool *ret_has);

// These sectors are written.
void layer_mark(struct layer *l, uint64_t sector, uint64_t n);

// Copies of the map pages that are not in the file yet, which thereby count as clean.
// Write them when the data of all sectors marked so far is durable; layer_undo_pages() if that fails.
struct layer_pages {
	uint32_t n;
	uint32_t *page; // ascending
	uint8_t *bytes; // n * LAYER_MAP_PAGE
};
int layer_take_pages(struct layer *l, struct layer_pages *ret_p); // 0 or -ENOMEM
void layer_undo_pages(struct layer *l, const struct layer_pages *p);
void layer_pages_free(struct layer_pages *p);

// Writes the map to the file at once; with `sync` after the data is durable. 0 or -errno.
int layer_write_map(struct layer *l, bool sync);

// The same layer by another descriptor of its file, open read-only (taken, also on failure;
// -EINVAL when it is not that). The map must be written.
int layer_reader(const struct layer *l, int fd, struct layer *ret_reader, struct mv_err *err);
// l becomes the reader, so that nobody has the file open for writing any more.
void layer_freeze(struct layer *l, struct layer *reader);
