// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 section 5.2) on an io_uring shared by the VM's drives.
//
// queue -> vq_pop() into a preallocated request -> header copied and checked -> ring ->
// on_done(): the rest of a transfer, or status byte, used ring, interrupt. A transfer
// has a rest when it was short, or when a read's sectors lie in different layers of the
// disk (disk.h): those are read one after the other.
// With all N_REQUESTS in flight, buffers stay in the queue; the next completion goes on.
// A completed write is in the page cache; FLUSH makes it durable.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "devices/devices.h"
#include "devices/disk.h"
#include "microvm/base/util.h"

enum { N_REQUESTS = 128, QUEUE_SIZE = 256, POPS_PER_KICK = 256, SECTOR = 512, ID_BYTES = 20 };

#define F_SEG_MAX (1ULL << 2) // section 5.2.3
#define F_RO (1ULL << 5)
#define F_BLK_SIZE (1ULL << 6)
#define F_FLUSH (1ULL << 9)

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8 }; // section 5.2.6
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };

struct blk_header {
	le32_t type, reserved;
	le64_t sector;
};

struct blk_config { // section 5.2.4, as far as our features give it a meaning
	le64_t capacity_sectors;
	le32_t size_max, seg_max, geometry, blk_size;
};

struct blk_state {
	uint64_t capacity_sectors;
	bool read_only;
};

static const struct mv_field blk_fields[] = {
	MV_INT(struct blk_state, capacity_sectors, 1, MV_U64, 1, INT64_MAX / SECTOR),
	MV_FLAG(struct blk_state, read_only, 2),
};
static MV_DEFINE_TABLE(blk_table, struct blk_state, blk_fields);

struct blk_req {
	struct mv_io io;
	struct vio_blk *blk;
	struct blk_req *next_free;
	struct disk_wait wait;
	uint64_t sector, n_sectors; // as asked for
	uint64_t pos;               // byte of the disk where what is left begins
	struct vq_span *data;       // what is left to transfer: part of chain
	uint32_t written;           // bytes of data given to the driver
	uint8_t *status;            // in guest memory
	// the large part: only the used fronts are ever touched
	struct vq_chain chain;
	struct iovec piece[VQ_MAX_IOV]; // a part of data
};

struct vio_blk {
	struct vio_dev dev;
	struct blk_config config;
	struct blk_state saved;
	struct mv_ring *ring;
	struct disk disk;
	char serial[ID_BYTES];       // padded with NULs, no NUL when full
	bool starved;                // buffers left in the queue for want of a request
	unsigned n_inflight, n_used; // n_used: requests ever handed out, the rest is untouched memory
	struct blk_req *free_list;
	struct blk_req req[N_REQUESTS];
};

static struct blk_req *take_req(struct vio_blk *b)
{
	struct blk_req *r = b->free_list;
	if (r)
		b->free_list = r->next_free;
	else if (b->n_used < N_REQUESTS)
		r = &b->req[b->n_used++];
	return r;
}

static void give_req(struct vio_blk *b, struct blk_req *r)
{
	r->next_free = b->free_list;
	b->free_list = r;
}

static void finish(struct blk_req *r, uint8_t status)
{
	// The status byte counts as written only if everything before it was (section 2.7.8.2).
	bool to_the_end = r->data != &r->chain.writable || !r->data->bytes;
	*r->status = status;
	vq_push(&r->blk->dev.s.queue[0], r->chain.head, r->written + to_the_end);
	give_req(r->blk, r);
}

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

static void queue_io(struct blk_req *r)
{
	struct vio_blk *b = r->blk;
	uint64_t bytes = r->data->bytes;
	r->io.iov = r->data->iov;
	r->io.n_iov = r->data->n;
	if (r->io.op == MV_IO_WRITEV) {
		disk_write_place(&b->disk, r->pos, &r->io.fd, &r->io.offset);
	} else if ((bytes = disk_read_place(&b->disk, r->pos, bytes, &r->io.fd, &r->io.offset)) !=
		   r->data->bytes) {
		r->io.n_iov = cut_piece(r, bytes);
		r->io.iov = r->piece;
	}
	mv_ring_queue(b->ring, &r->io);
}

static void run_queue(struct vio_blk *b);

static void end_request(struct blk_req *r, uint8_t status)
{
	struct vio_blk *b = r->blk;
	b->n_inflight--;
	finish(r, status);
	vio_signal_queue(&b->dev, 0);
	if (b->starved)
		run_queue(b);
}

static void on_flushed(struct disk_wait *w, int result)
{
	end_request(MV_CONTAINER(w, struct blk_req, wait), result ? S_IOERR : S_OK);
}

static void on_done(struct mv_io *io, int result)
{
	struct blk_req *r = MV_CONTAINER(io, struct blk_req, io);
	struct vio_blk *b = r->blk;
	bool write = io->op == MV_IO_WRITEV;

	if (result <= 0) { // 0: the file became shorter
		end_request(r, S_IOERR);
		return;
	}
	vq_span_skip(r->data, (size_t)result);
	r->pos += (uint64_t)result;
	if (!write)
		r->written += (uint32_t)result;
	if (r->data->bytes) {
		queue_io(r);
		mv_ring_submit(b->ring);
		return;
	}
	if (write)
		disk_wrote(&b->disk, r->sector, r->n_sectors);
	// Section 5.2.6.2: for a driver that cannot flush, a write is durable when done.
	if (write && !(b->dev.s.features_acked & F_FLUSH)) {
		disk_flush(&b->disk, &r->wait);
		mv_ring_submit(b->ring);
		return;
	}
	end_request(r, S_OK);
}

static bool range_ok(const struct vio_blk *b, uint64_t sector, size_t bytes)
{
	uint64_t capacity = b->saved.capacity_sectors;
	return bytes % SECTOR == 0 && sector <= capacity && bytes / SECTOR <= capacity - sector;
}

static void start_transfer(struct blk_req *r, enum mv_io_op op, struct vq_span *data, uint64_t sector)
{
	struct vio_blk *b = r->blk;
	r->data = data;
	if (!range_ok(b, sector, data->bytes) || (op == MV_IO_WRITEV && b->saved.read_only)) {
		finish(r, S_IOERR);
	} else if (!data->bytes) {
		finish(r, S_OK);
	} else {
		r->io.op = op;
		r->sector = sector;
		r->n_sectors = data->bytes / SECTOR;
		r->pos = sector * SECTOR;
		b->n_inflight++;
		queue_io(r);
	}
}

static void start(struct vio_blk *b, struct blk_req *r)
{
	struct blk_header h;
	struct vq_chain *c = &r->chain;
	if (vq_span_read(&c->readable, &h, sizeof h) < sizeof h ||
	    !(r->status = vq_span_take_last(&c->writable))) {
		vio_needs_reset(&b->dev, "a request without header or status");
		give_req(b, r);
		return;
	}
	r->blk = b;
	r->io.done = on_done;
	r->wait.done = on_flushed;
	r->data = &c->readable;
	r->written = 0;
	switch (le32_get(h.type)) {
	case T_IN: start_transfer(r, MV_IO_READV, &c->writable, le64_get(h.sector)); break;
	case T_OUT: start_transfer(r, MV_IO_WRITEV, &c->readable, le64_get(h.sector)); break;
	case T_FLUSH:
		b->n_inflight++;
		disk_flush(&b->disk, &r->wait);
		break;
	case T_GET_ID:
		r->data = &c->writable;
		r->written = (uint32_t)vq_span_write(&c->writable, b->serial, ID_BYTES);
		finish(r, S_OK);
		break;
	default: finish(r, S_UNSUPP);
	}
}

static void run_queue(struct vio_blk *b)
{
	struct vio_dev *d = &b->dev;
	struct blk_req *r = NULL;
	unsigned left = POPS_PER_KICK;

	b->starved = false;
	do {
		if (vio_live(d, 0))
			vq_disable_notify(&d->s.queue[0]);
		while (left && (r = take_req(b)) && vio_pop(d, 0, &r->chain)) {
			left--;
			start(b, r);
		}
		if (!left || !r)
			break;
		give_req(b, r);
	} while (vio_rearm(d, 0));
	b->starved = left && !r;
	if (!left)
		vio_again(d, 0);
	vio_signal_queue(d, 0);
	mv_ring_submit(b->ring);
}

static void blk_kick(struct vio_dev *d, unsigned q)
{
	(void)q;
	run_queue(MV_CONTAINER(d, struct vio_blk, dev));
}

static void blk_quiesce(struct vio_dev *d)
{
	struct vio_blk *b = MV_CONTAINER(d, struct vio_blk, dev);
	while (b->n_inflight)
		mv_ring_wait(b->ring);
}

static void blk_reset(struct vio_dev *d)
{
	bool quiesced = d->quiesced;
	d->quiesced = true; // no new requests while the old ones finish
	blk_quiesce(d);
	d->quiesced = quiesced;
}

static int blk_check_state(const struct vio_dev *d, const void *loaded, struct mv_err *err)
{
	const struct vio_blk *b = MV_CONTAINER(d, const struct vio_blk, dev);
	const struct blk_state *s = loaded;
	if (s->capacity_sectors != b->saved.capacity_sectors)
		return mv_fail(err, EINVAL,
			       "the file has %llu sectors, the snapshot's drive had %llu: "
			       "give a copy of that drive",
			       (unsigned long long)b->saved.capacity_sectors,
			       (unsigned long long)s->capacity_sectors);
	if (s->read_only != b->saved.read_only)
		return mv_fail(err, EINVAL, "the snapshot's drive was %s: it must be so here",
			       s->read_only ? "read-only" : "writable");
	return 0;
}

static void blk_free(struct vio_dev *d)
{
	struct vio_blk *b = MV_CONTAINER(d, struct vio_blk, dev);
	blk_reset(d);
	disk_close(&b->disk); // gives the locks back
	vio_dev_fini(d);
	free(b);
}

static const struct vio_ops blk_ops = {
	.device_id = 2,
	.config_bytes = sizeof(struct blk_config),
	.n_queues = 1,
	.queue_size_max = QUEUE_SIZE,
	.state = &blk_table,
	.state_offset = offsetof(struct vio_blk, saved),
	.kick = blk_kick,
	.reset = blk_reset,
	.quiesce = blk_quiesce,
	.check_state = blk_check_state,
	.free = blk_free,
};

int vio_blk_new_layered(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring, const char *name,
			const char *serial, const struct disk_files *files, struct vio_dev **ret_dev,
			struct mv_err *err)
{
	bool read_only = files->read_only;
	char label[VIO_NAME_BYTES];
	struct disk disk;
	snprintf(label, sizeof label, "drive %s", name);
	int r = disk_open(&disk, files, ring, err);
	if (r)
		return r;
	MV_FREE struct vio_blk *b = calloc(1, sizeof *b);
	uint64_t features = VIO_FEATURES | F_FLUSH | F_SEG_MAX | F_BLK_SIZE | (read_only ? F_RO : 0);
	r = b ? vio_dev_init(&b->dev, &blk_ops, label, mem, loop, features, err)
	      : mv_fail(err, ENOMEM, "out of memory");
	if (r) {
		disk_close(&disk);
		return r;
	}
	b->saved = (struct blk_state){ .capacity_sectors = disk.n_sectors, .read_only = read_only };
	b->config = (struct blk_config){ .capacity_sectors = le64_make(b->saved.capacity_sectors),
					 .seg_max = le32_make(VQ_MAX_DATA),
					 .blk_size = le32_make(SECTOR) };
	b->dev.config = &b->config;
	memcpy(b->serial, serial, strnlen(serial, sizeof b->serial));
	b->ring = ring;
	b->disk = disk;
	*ret_dev = &MV_TAKE(b)->dev;
	return 0;
}

int vio_blk_new(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring, const char *name,
		const char *serial, int fd, bool read_only, struct vio_dev **ret_dev, struct mv_err *err)
{
	struct disk_files f = { .base_fd = fd, .read_only = read_only };
	return vio_blk_new_layered(mem, loop, ring, name, serial, &f, ret_dev, err);
}

int vio_blk_freeze(struct vio_dev *d, int reader_fd, int fresh_fd, struct mv_err *err)
{
	struct vio_blk *b = MV_CONTAINER(d, struct vio_blk, dev);
	int r = disk_freeze(&b->disk, reader_fd, fresh_fd, err);
	return r ? mv_wrap(err, "%s", d->name) : 0;
}

void vio_blk_freeze_end(struct vio_dev *d, bool commit)
{
	disk_freeze_end(&MV_CONTAINER(d, struct vio_blk, dev)->disk, commit);
}

unsigned vio_blk_layers(const struct vio_dev *d)
{
	return MV_CONTAINER(d, const struct vio_blk, dev)->disk.n_layers;
}
