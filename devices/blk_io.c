// SPDX-License-Identifier: Apache-2.0
// Requests of virtio-blk (virtio 1.2 section 5.2.6), each a small state machine:
//
//   read, write     queue_io() -> on_done() -> the rest: when it was short, or when a read's sectors
//                   lie in different layers of the disk (disk.h), which are read one after the other
//   zeros           next_range() -> on_zeroed() -> the next one; where the file can't make zeros, they
//                   are written: queue_zeros() -> on_zeros_written() -> the rest
//   durable         what was written for a driver that does not flush: disk_flush() -> on_flushed()
//   flush           disk_flush() -> on_flushed()
//
// What a completion queues is submitted by the ring, which called it (ring.h).
// Each ends in end_request(): status byte, used ring, interrupt. With all requests in flight, buffers
// stay in the queue, and the next completion goes on; beyond the rate limit they stay there, too, and a
// timer goes on.
#include <errno.h>
#include <string.h>

#include "devices/blk.h"
#include "microvm/base/util.h"

enum { POPS_PER_KICK = 256 };
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
enum { RANGE_UNMAP = 1 };

struct blk_header {
	le32_t type, reserved;
	le64_t sector;
};

#define ZEROS_BYTES (64u << 10)
static const uint8_t zeros[ZEROS_BYTES] __attribute__((aligned(4096)));

static struct blk_req *take_req(struct blk_queue *q)
{
	struct blk_req *r = q->free_list;
	if (r)
		q->free_list = r->next_free;
	else if (q->n_used < BLK_N_REQUESTS)
		r = &q->req[q->n_used++];
	return r;
}

static void give_req(struct blk_req *r)
{
	r->next_free = r->q->free_list;
	r->q->free_list = r;
}

static void finish(struct blk_req *r, uint8_t status)
{
	// The status byte counts as written only if everything before it was (section 2.7.8.2).
	bool to_the_end = r->data != &r->chain.writable || !r->data->bytes;
	*r->status = status;
	vq_push(&r->q->blk->dev.s.queue[r->q->index], r->chain.head, r->written + to_the_end);
	give_req(r);
}

static void queue_io(struct blk_req *r);

// The bounce buffer goes to the next one that waits for it.
static void end_bouncing(struct blk_queue *q)
{
	struct blk_req *next = q->first_waiting;
	q->bouncing = NULL;
	if (!next)
		return;
	q->first_waiting = next->next_free;
	if (!q->first_waiting)
		q->last_waiting = &q->first_waiting;
	queue_io(next);
}

static void end_request(struct blk_req *r, uint8_t status)
{
	struct blk_queue *q = r->q;
	if (!--q->n_inflight && q->own.running)
		pthread_cond_broadcast(&q->idle);
	if (q->bouncing == r)
		end_bouncing(q);
	finish(r, status);
	vio_signal_queue(&q->blk->dev, q->index);
	if (q->starved)
		blk_run_queue(q);
}

static void on_flushed(struct disk_wait *w, int result)
{
	end_request(MV_CONTAINER(w, struct blk_req, wait), result ? S_IOERR : S_OK);
}

static void on_synced(struct mv_io *io, int result)
{
	end_request(MV_CONTAINER(io, struct blk_req, io), result ? S_IOERR : S_OK);
}

// The disk's flushes, which gather those that come at the same time, are the VM's loop's.
static void flush(struct blk_req *r)
{
	struct disk *disk = &r->q->blk->disk;
	if (r->q->blk->unsafe) {
		end_request(r, S_OK);
		return;
	}
	if (!r->q->own.running) {
		disk_flush(disk, &r->wait);
		return;
	}
	r->io.op = MV_IO_FDATASYNC;
	r->io.done = on_synced;
	disk_write_place(disk, 0, &r->io.fd, &r->io.offset);
	mv_ring_queue(r->q->ring, &r->io);
}

// Section 5.2.6.2: for a driver that cannot flush, or wants write-through, a write is durable when done.
static void end_write(struct blk_req *r)
{
	const struct vio_blk *b = r->q->blk;
	uint64_t acked = b->dev.s.features_acked;
	if (acked & BLK_F_CONFIG_WCE ? b->saved.write_through : !(acked & BLK_F_FLUSH)) {
		flush(r);
	} else {
		end_request(r, S_OK);
	}
}

// --- reads and writes -----------------------------------------------------------------
// The first `bytes` of what is left, as iovecs of the request.
static unsigned cut_piece(struct blk_req *r, uint64_t bytes)
{
	unsigned n = 0;
	for (; bytes; n++) {
		r->piece[n] = r->data->iov[n];
		if (r->piece[n].iov_len > bytes)
			r->piece[n].iov_len = bytes;
		bytes -= r->piece[n].iov_len;
	}
	return n;
}

static bool is_aligned(const struct vq_span *s, uint32_t align)
{
	uintptr_t all = 0;
	for (unsigned i = 0; i < s->n; i++)
		all |= (uintptr_t)s->iov[i].iov_base | s->iov[i].iov_len;
	return !(all & (align - 1));
}

// The first of what is left, by way of the bounce buffer; false: it waits for that.
static bool bounce(struct blk_req *r)
{
	struct blk_queue *q = r->q;
	if (q->bouncing && q->bouncing != r) {
		r->next_free = NULL;
		*q->last_waiting = r;
		q->last_waiting = &r->next_free;
		return false;
	}
	q->bouncing = r;
	size_t bytes = r->data->bytes < BLK_BOUNCE_BYTES ? r->data->bytes : BLK_BOUNCE_BYTES, done = 0;
	unsigned n = cut_piece(r, bytes);
	for (unsigned i = 0; i < n && r->io.op == MV_IO_WRITEV; i++) {
		memcpy(q->bounce + done, r->piece[i].iov_base, r->piece[i].iov_len);
		done += r->piece[i].iov_len;
	}
	r->bounced = true;
	r->piece[0] = (struct iovec){ q->bounce, bytes };
	r->io.iov = r->piece;
	r->io.n_iov = 1;
	return true;
}

static void queue_io(struct blk_req *r)
{
	const struct disk *disk = &r->q->blk->disk;
	uint64_t bytes = r->data->bytes;
	if (disk->memory_align && !is_aligned(r->data, disk->memory_align)) {
		if (!bounce(r))
			return;
		disk_write_place(disk, r->pos, &r->io.fd, &r->io.offset);
		mv_ring_queue(r->q->ring, &r->io);
		return;
	}
	r->io.iov = r->data->iov;
	r->io.n_iov = r->data->n;
	if (r->io.op == MV_IO_WRITEV) {
		disk_write_place(disk, r->pos, &r->io.fd, &r->io.offset);
	} else if ((bytes = disk_read_place(disk, r->pos, bytes, &r->io.fd, &r->io.offset)) !=
		   r->data->bytes) {
		r->io.n_iov = cut_piece(r, bytes);
		r->io.iov = r->piece;
	}
	mv_ring_queue(r->q->ring, &r->io);
}

static void on_done(struct mv_io *io, int result)
{
	struct blk_req *r = MV_CONTAINER(io, struct blk_req, io);
	bool write = io->op == MV_IO_WRITEV;

	if (result <= 0) { // 0: the file became shorter
		end_request(r, S_IOERR);
		return;
	}
	if (r->bounced && !write)
		vq_span_write(r->data, r->q->bounce, (size_t)result);
	else
		vq_span_skip(r->data, (size_t)result);
	r->bounced = false;
	r->pos += (uint64_t)result;
	if (!write)
		r->written += (uint32_t)result;
	if (r->data->bytes) {
		queue_io(r);
	} else if (write) {
		disk_wrote(&r->q->blk->disk, r->sector, r->n_sectors);
		end_write(r);
	} else {
		end_request(r, S_OK);
	}
}

static bool range_ok(const struct vio_blk *b, uint64_t sector, uint64_t n_sectors)
{
	uint64_t capacity = b->saved.capacity_sectors;
	return sector <= capacity && n_sectors <= capacity - sector;
}

static void start_transfer(struct blk_req *r, enum mv_io_op op, struct vq_span *data, uint64_t sector)
{
	const struct vio_blk *b = r->q->blk;
	r->data = data;
	if (data->bytes % BLK_SECTOR || !range_ok(b, sector, data->bytes / BLK_SECTOR) ||
	    (op == MV_IO_WRITEV && b->saved.read_only)) {
		finish(r, S_IOERR);
	} else if (!data->bytes) {
		finish(r, S_OK);
	} else {
		r->io.op = op;
		r->io.done = on_done;
		r->sector = sector;
		r->n_sectors = data->bytes / BLK_SECTOR;
		r->pos = sector * BLK_SECTOR;
		r->q->n_inflight++;
		queue_io(r);
	}
}

// --- DISCARD and WRITE_ZEROES -----------------------------------------------------------
static void next_range(struct blk_req *r);

static void end_range(struct blk_req *r)
{
	disk_wrote(&r->q->blk->disk, r->sector, r->n_sectors);
	r->n_ranges_done++;
	next_range(r);
}

static void on_zeros_written(struct mv_io *io, int result);

// As many as the iovecs hold, from r->pos on.
static void queue_zeros(struct blk_req *r)
{
	uint64_t left = (r->sector + r->n_sectors) * BLK_SECTOR - r->pos;
	unsigned n = 0;
	for (; left && n < MV_ARRAY_LEN(r->piece); n++) {
		size_t len = left < ZEROS_BYTES ? (size_t)left : ZEROS_BYTES;
		r->piece[n] = (struct iovec){ (void *)(uintptr_t)zeros, len };
		left -= len;
	}
	r->io.op = MV_IO_WRITEV;
	r->io.done = on_zeros_written;
	r->io.iov = r->piece;
	r->io.n_iov = n;
	disk_write_place(&r->q->blk->disk, r->pos, &r->io.fd, &r->io.offset);
	mv_ring_queue(r->q->ring, &r->io);
}

static void on_zeros_written(struct mv_io *io, int result)
{
	struct blk_req *r = MV_CONTAINER(io, struct blk_req, io);
	if (result <= 0) {
		end_request(r, S_IOERR);
		return;
	}
	r->pos += (uint64_t)result;
	if (r->pos < (r->sector + r->n_sectors) * BLK_SECTOR)
		queue_zeros(r);
	else
		end_range(r);
}

static void on_zeroed(struct mv_io *io, int result)
{
	struct blk_req *r = MV_CONTAINER(io, struct blk_req, io);
	if (!result)
		end_range(r);
	else if (result != -EOPNOTSUPP)
		end_request(r, S_IOERR);
	else if (r->type == T_DISCARD)
		end_request(r, S_UNSUPP);
	else
		queue_zeros(r);
}

// Discarded blocks read as zeros as well: in a layer a hole must not show what is below it.
static void next_range(struct blk_req *r)
{
	if (r->n_ranges_done == r->n_ranges) {
		end_write(r);
		return;
	}
	const struct blk_range *range = &r->range[r->n_ranges_done];
	bool may_unmap = r->type == T_DISCARD || le32_get(range->flags) & RANGE_UNMAP;
	r->sector = le64_get(range->sector);
	r->n_sectors = le32_get(range->n_sectors);
	r->pos = r->sector * BLK_SECTOR;
	r->io.op = may_unmap || r->q->blk->disk.n_layers ? MV_IO_PUNCH : MV_IO_ZERO;
	r->io.done = on_zeroed;
	r->io.bytes = r->n_sectors * BLK_SECTOR;
	disk_write_place(&r->q->blk->disk, r->pos, &r->io.fd, &r->io.offset);
	mv_ring_queue(r->q->ring, &r->io);
}

// All of them are read and checked before the first is carried out. Empty ones are left out.
static uint8_t take_ranges(struct blk_req *r)
{
	const struct vio_blk *b = r->q->blk;
	struct vq_span *in = &r->chain.readable;
	uint64_t feature = r->type == T_DISCARD ? BLK_F_DISCARD : BLK_F_WRITE_ZEROES;
	uint32_t known_flags = r->type == T_DISCARD ? 0 : RANGE_UNMAP;
	r->n_ranges = r->n_ranges_done = 0;
	if (!(b->dev.s.features_acked & feature))
		return S_UNSUPP;
	if (b->saved.read_only || !in->bytes || in->bytes % sizeof *r->range || in->bytes > sizeof r->range)
		return S_IOERR;
	while (in->bytes) {
		struct blk_range *range = &r->range[r->n_ranges];
		vq_span_read(in, range, sizeof *range);
		uint32_t n = le32_get(range->n_sectors);
		if (le32_get(range->flags) & ~known_flags)
			return S_UNSUPP;
		if (n > BLK_MAX_RANGE_SECTORS || !range_ok(b, le64_get(range->sector), n))
			return S_IOERR;
		r->n_ranges += n > 0;
	}
	return S_OK;
}

static void start_ranges(struct blk_req *r)
{
	uint8_t status = take_ranges(r);
	if (status != S_OK || !r->n_ranges) {
		finish(r, status);
	} else {
		r->q->n_inflight++;
		next_range(r);
	}
}

// --- the queue ------------------------------------------------------------------------
static void start(struct blk_req *r, uint64_t sector)
{
	struct blk_queue *q = r->q;
	struct vq_chain *c = &r->chain;
	r->wait.done = on_flushed;
	r->bounced = false;
	r->data = &c->readable;
	r->written = 0;
	switch (r->type) {
	case T_IN: start_transfer(r, MV_IO_READV, &c->writable, sector); break;
	case T_OUT: start_transfer(r, MV_IO_WRITEV, &c->readable, sector); break;
	case T_DISCARD:
	case T_WRITE_ZEROES: start_ranges(r); break;
	case T_FLUSH:
		q->n_inflight++;
		flush(r);
		break;
	case T_GET_ID:
		r->data = &c->writable;
		r->written = (uint32_t)vq_span_write(&c->writable, q->blk->serial, BLK_ID_BYTES);
		finish(r, S_OK);
		break;
	default: finish(r, S_UNSUPP);
	}
}

// Beyond the rate limit: the request goes back into the queue, and the timer looks again.
static bool throttle(struct blk_queue *q, const struct blk_req *r)
{
	struct vio_blk *b = q->blk;
	uint64_t bytes = 0;
	if (!mv_rate_limited(&b->rate))
		return false;
	if (r->type == T_IN)
		bytes = r->chain.writable.bytes;
	else if (r->type == T_OUT)
		bytes = r->chain.readable.bytes;
	pthread_mutex_lock(&b->rate_lock);
	uint64_t wait_ns = mv_rate_take(&b->rate, bytes, mv_now_ns());
	pthread_mutex_unlock(&b->rate_lock);
	if (!wait_ns)
		return false;
	vq_unpop(&b->dev.s.queue[q->index]);
	q->throttled = true;
	mv_timer_arm(&q->again, wait_ns);
	return true;
}

// Header and status of a popped request; false: it is to be popped again, or the driver broke a rule.
static bool take_request(struct blk_queue *q, struct blk_req *r)
{
	struct blk_header h;
	struct vq_chain *c = &r->chain;
	r->q = q;
	if (vq_span_read(&c->readable, &h, sizeof h) < sizeof h ||
	    !(r->status = vq_span_take_last(&c->writable))) {
		vio_queue_broken(&q->blk->dev, q->index, "a request without header or status");
		return false;
	}
	r->type = le32_get(h.type);
	if (throttle(q, r))
		return false;
	start(r, le64_get(h.sector));
	return true;
}

void blk_run_queue(struct blk_queue *q)
{
	struct vio_dev *d = &q->blk->dev;
	struct blk_req *r = NULL;
	unsigned left = POPS_PER_KICK;

	q->starved = false;
	if (q->throttled)
		return;
	do {
		if (vio_live(d, q->index))
			vq_disable_notify(&d->s.queue[q->index]);
		while (left && (r = take_req(q)) && vio_pop(d, q->index, &r->chain) && take_request(q, r))
			left--;
		if (!left || !r)
			break;
		r->q = q;
		give_req(r);
	} while (!q->throttled && vio_rearm(d, q->index));
	q->starved = left && !r;
	if (!left)
		vio_again(d, q->index);
	vio_signal_queue(d, q->index);
	mv_ring_submit(q->ring);
}
