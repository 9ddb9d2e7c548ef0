// SPDX-License-Identifier: Apache-2.0
// Between blk.c (the device: features, configuration space, its life) and blk_io.c (requests). Nobody
// else includes it; devices.h has what others call.
//
// Threads: a queue belongs to its loop and is touched with that loop's lock held. The device itself
// (configuration, saved state, disk) is read by all of them and written with all their locks held, see
// vio_ops.exclude; the rate limit has a lock, since queues share it. Disks with layers are written by
// requests, so their queues are all served by the VM's loop.
#pragma once
#include "devices/devices.h"
#include "devices/disk.h"
#include "devices/thread.h"
#include "microvm/base/loop.h"
#include "microvm/base/token_bucket.h"

// virtio 1.2 section 5.2.3
#define BLK_F_SIZE_MAX (1ULL << 1)
#define BLK_F_SEG_MAX (1ULL << 2)
#define BLK_F_RO (1ULL << 5)
#define BLK_F_BLK_SIZE (1ULL << 6)
#define BLK_F_FLUSH (1ULL << 9)
#define BLK_F_TOPOLOGY (1ULL << 10)
#define BLK_F_CONFIG_WCE (1ULL << 11)
#define BLK_F_MQ (1ULL << 12)
#define BLK_F_DISCARD (1ULL << 13)
#define BLK_F_WRITE_ZEROES (1ULL << 14)

enum { BLK_SECTOR = 512, BLK_ID_BYTES = 20 };
enum { BLK_N_REQUESTS = 128, BLK_QUEUE_SIZE = 256 };
// Segments of one DISCARD or WRITE_ZEROES, and the most sectors of each: 64 MiB, since where the file
// system can't make zeros they are written, and a pause waits for that.
enum { BLK_MAX_RANGES = 16, BLK_MAX_RANGE_SECTORS = 1 << 17 };
#define BLK_BOUNCE_BYTES (1u << 20)
#define BLK_SIZE_MAX (16u << 20) // of a piece: so a whole request fits into one system call

struct blk_config { // section 5.2.4
	le64_t capacity_sectors;
	le32_t size_max, seg_max, geometry, blk_size;
	uint8_t physical_block_exp, alignment_offset;
	le16_t min_io_blocks;
	le32_t opt_io_blocks;
	uint8_t writeback, unused0;
	le16_t num_queues;
	le32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	le32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
	le32_t max_secure_erase_sectors; // not offered
};
_Static_assert(sizeof(struct blk_config) == 64, "as the guest sees it");

struct blk_state {
	uint64_t capacity_sectors;
	bool read_only;
	bool write_through; // the guest's choice, by CONFIG_WCE
};

struct blk_range { // section 5.2.6
	le64_t sector;
	le32_t n_sectors, flags;
};

struct blk_req {
	struct mv_io io;
	struct blk_queue *q;
	struct blk_req *next_free;
	struct disk_wait wait;
	uint64_t sector, n_sectors; // being transferred or made zeros, as asked for
	uint64_t pos;               // byte of the disk where what is left begins
	struct vq_span *data;       // what is left to transfer: part of chain
	uint32_t written;           // bytes of data given to the driver
	uint8_t *status;            // in guest memory
	uint32_t type;
	bool bounced; // its data in flight is in q->bounce
	unsigned n_ranges, n_ranges_done;
	// the large part: only the used fronts are ever touched
	struct blk_range range[BLK_MAX_RANGES]; // checked
	struct vq_chain chain;
	struct iovec piece[VQ_MAX_IOV]; // a part of data, or zeros to write
};

struct blk_queue {
	struct vio_blk *blk;
	unsigned index;
	struct mv_ring *ring;
	// of the queue's own; without them it is served by the VM's loop, and ring is the VM's
	struct vio_thread own;
	pthread_cond_t idle; // with own.loop.lock: n_inflight is 0
	bool starved;        // buffers left in the queue for want of a request
	bool throttled;      // until `again` fires
	struct mv_timer again;
	unsigned n_inflight, n_used; // n_used: requests ever handed out, the rest is untouched memory
	struct blk_req *free_list;
	// Direct I/O of memory that is not aligned goes through this, one request at a time.
	uint8_t *bounce;
	struct blk_req *bouncing, *first_waiting, **last_waiting;
	struct blk_req req[BLK_N_REQUESTS];
};

struct vio_blk {
	struct vio_dev dev;
	struct blk_config config;
	struct blk_state saved;
	struct disk disk;
	struct mv_ring *ring;      // the VM's
	char serial[BLK_ID_BYTES]; // padded with NULs, no NUL when full
	bool unsafe;               // a flush does nothing
	struct mv_rate rate;
	pthread_mutex_t rate_lock;
	struct blk_queue *queue[VMCFG_MAX_BLK_QUEUES];
};

// Serves the queue as far as there are requests in it and room for them.
void blk_run_queue(struct blk_queue *q);
