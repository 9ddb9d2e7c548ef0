// SPDX-License-Identifier: Apache-2.0
// Where the sectors of a drive are: in one file, or in copy-on-write layers (layer.h) over
// a base file that is never written. Reads come from the newest layer that has the sector,
// writes go to the newest; all others are read-only and may be shared by any number of VMs.
//
//   ephemeral  the newest layer is gone with the VM: a flush has nothing to do, the map
//              stays in memory and is written when the layer is frozen
//   kept       a flush makes data durable first and then the map, so what was flushed is
//              there after a crash of the VM or of the host, and nothing half-written shows
//
// Threads: the loop's, lock held; requests go through the VM's ring.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "devices/layer.h"
#include "microvm/base/ring.h"
#include "microvm/base/vmcfg.h"

#define DISK_MAX_ALIGN 4096u // of direct I/O

struct disk_files {
	int base_fd;
	int layer_fd[VMCFG_MAX_LAYERS]; // oldest first; the last one is open for writing
	unsigned n_layers;              // 0: the base is the disk
	bool read_only;                 // without layers only
	bool keep;                      // the newest layer outlives the VM
	bool direct;                    // past the page cache; without layers only
};

struct disk_wait {                                     // embedded in a flush request; called once, lock held
	void (*done)(struct disk_wait *w, int result); // 0 or -errno
	struct disk_wait *next;
};

struct disk_topology { // of the base; powers of two, but for the last two, which may be 0
	uint32_t physical_bytes;
	uint32_t offset_bytes; // of the first physical block
	uint32_t min_io_bytes, opt_io_bytes;
};

struct disk {
	int base_fd;
	uint64_t n_sectors;
	struct disk_topology topology;
	// direct: what addresses and lengths of memory, and what offsets have to be multiples of; else 0
	uint32_t memory_align, offset_align;
	bool read_only, keep;
	struct layer layer[VMCFG_MAX_LAYERS];
	unsigned n_layers;
	struct mv_ring *ring;
	// a freeze that is prepared
	struct layer next, reader;
	// the flush in progress, and who waits for it and for the one after it
	enum { DISK_IDLE, DISK_DATA, DISK_MAP, DISK_MAP_SYNC } step;
	struct mv_io io;
	struct iovec iov;
	struct layer_pages pages;
	uint32_t pages_done;
	struct disk_wait *running, *waiting;
};

// Takes all descriptors, also on failure. Checks, locks (base: shared unless it is to be
// written) and opens. -EINVAL: no file of 512 bytes or more, or a wrong layer, direct I/O where
// the file system has none, a device that can only be read; -EACCES; -EBUSY.
int disk_open(struct disk *d, const struct disk_files *f, struct mv_ring *ring, struct mv_err *err);
void disk_close(struct disk *d); // nothing in flight; idempotent

// Where to read the disk's byte pos: returns how many of the n bytes from there are in one place.
uint64_t disk_read_place(const struct disk *d, uint64_t pos, uint64_t n, int *ret_fd, uint64_t *ret_offset);
// Where to write byte pos and all behind it; when a write is complete, disk_wrote().
void disk_write_place(const struct disk *d, uint64_t pos, int *ret_fd, uint64_t *ret_offset);
void disk_wrote(struct disk *d, uint64_t sector, uint64_t n);

// Gives the file this size, which is not less than it has; 0: looks at what it has now.
// -EINVAL: smaller, layers, or no regular file.
int disk_resize(struct disk *d, uint64_t bytes, struct mv_err *err);

// Another file, taken in every case, instead of the base. Requests in flight end in the old one. As
// disk_open(), and -EINVAL: layers or direct I/O.
int disk_replace(struct disk *d, int fd, struct mv_err *err);

// Makes durable what was written before. done() may be called from inside. One flush
// runs at a time; those that come meanwhile share the next one.
void disk_flush(struct disk *d, struct disk_wait *w);

// All that the layers have, nothing in flight, as one layer on the base, into an empty file (taken, also on
// failure). Blocks on the disk; may run in a process that was forked. -ENOSPC and the like.
int disk_copy_layers(const struct disk *d, int fd, struct mv_err *err);

// Freezing the newest layer, nothing in flight: the first step can fail and changes nothing
// that shows; the second can't. reader_fd: the newest layer's file, read-only; fresh_fd: a
// new empty file. Both are taken, also on failure. -E2BIG: too many layers.
int disk_freeze(struct disk *d, int reader_fd, int fresh_fd, struct mv_err *err);
void disk_freeze_end(struct disk *d, bool commit);
