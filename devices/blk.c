// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 section 5.2): the device. Its requests are in blk_io.c.
// A completed write is in the page cache; FLUSH makes it durable.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "devices/blk.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

static const struct mv_field blk_fields[] = {
	MV_INT(struct blk_state, capacity_sectors, 1, MV_U64, 1, INT64_MAX / BLK_SECTOR),
	MV_FLAG(struct blk_state, read_only, 2),
	MV_OPT_FLAG(struct blk_state, write_through, 3),
};
static MV_DEFINE_TABLE(blk_table, struct blk_state, blk_fields);

static struct vio_blk *blk_of(struct vio_dev *d) { return MV_CONTAINER(d, struct vio_blk, dev); }

static void blk_kick(struct vio_dev *d, unsigned q) { blk_run_queue(blk_of(d)->queue[q]); }

static void blk_exclude(struct vio_dev *d, bool on)
{
	struct vio_blk *b = blk_of(d);
	for (unsigned i = 0; i < d->n_queues && b->queue[i]; i++)
		if (b->queue[i]->own.running)
			(on ? mv_loop_lock : mv_loop_unlock)(&b->queue[i]->own.loop);
}

static void on_again(void *arg)
{
	struct blk_queue *q = arg;
	q->throttled = false;
	blk_run_queue(q);
}

static void blk_quiesce(struct vio_dev *d)
{
	struct vio_blk *b = blk_of(d);
	for (unsigned i = 0; i < d->n_queues && b->queue[i]; i++) {
		struct blk_queue *q = b->queue[i];
		if (!q->own.running) {
			while (q->n_inflight)
				mv_ring_wait(q->ring);
			continue;
		}
		mv_loop_lock(&q->own.loop);
		while (q->n_inflight)
			pthread_cond_wait(&q->idle, &q->own.loop.lock);
		mv_loop_unlock(&q->own.loop);
	}
}

static void set_write_through(struct vio_blk *b, bool v)
{
	blk_exclude(&b->dev, true);
	b->saved.write_through = v;
	blk_exclude(&b->dev, false);
	b->config.writeback = !v;
}

static void blk_reset(struct vio_dev *d)
{
	blk_exclude(d, true);
	d->s.status &= ~(uint32_t)VIO_DRIVER_OK; // no new requests while the old ones finish
	blk_exclude(d, false);
	blk_quiesce(d);
	set_write_through(blk_of(d), false);
}

static void blk_write_config(struct vio_dev *d, uint32_t offset, const void *data, uint32_t len)
{
	uint8_t v;
	if (offset != offsetof(struct blk_config, writeback) || len != sizeof v ||
	    !(d->s.features_acked & BLK_F_CONFIG_WCE))
		return;
	memcpy(&v, data, sizeof v);
	set_write_through(blk_of(d), !v);
}

static void blk_restored(struct vio_dev *d) { set_write_through(blk_of(d), blk_of(d)->saved.write_through); }

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

// Nothing in flight, or never used.
static void free_queue(struct blk_queue *q)
{
	vio_thread_stop(&q->own);
	mv_timer_fini(&q->again);
	mv_watch_del(&q->blk->dev.kick[q->index].watch);
	if (q->ring != q->blk->ring) {
		mv_ring_free(q->ring);
		mv_loop_fini(&q->own.loop);
	}
	free(q->bounce);
	free(q);
}

static void blk_free(struct vio_dev *d)
{
	struct vio_blk *b = blk_of(d);
	blk_reset(d);
	for (unsigned i = 0; i < d->n_queues && b->queue[i]; i++)
		free_queue(b->queue[i]);
	disk_close(&b->disk); // gives the locks back
	vio_dev_fini(d);
	free(b);
}

// A loop, ring and thread of its own.
static int start_thread(struct blk_queue *q, struct mv_err *err)
{
	struct vio_dev *d = &q->blk->dev;
	struct mv_loop *loop = &q->own.loop;
	int r = mv_loop_init(loop);
	if (r)
		return mv_fail(err, -r, "event loop: %s", strerror(-r));
	q->ring = NULL;
	if ((r = mv_ring_new(loop, BLK_N_REQUESTS, false, &q->ring, err)))
		return r;
	pthread_cond_init(&q->idle, NULL);
	if ((r = vio_move_queue(d, q->index, loop)))
		return mv_fail(err, -r, "%s: queue %u: %s", d->name, q->index, strerror(-r));
	return vio_thread_start(&q->own, d, "blk-queue", err);
}

static int new_queue(struct vio_blk *b, unsigned index, struct mv_err *err)
{
	struct blk_queue *q = calloc(1, sizeof *q);
	if (!q)
		return mv_fail(err, ENOMEM, "out of memory");
	b->queue[index] = q;
	q->blk = b;
	q->index = index;
	q->ring = b->ring;
	q->last_waiting = &q->first_waiting;
	if (b->disk.memory_align && !(q->bounce = aligned_alloc(DISK_MAX_ALIGN, BLK_BOUNCE_BYTES)))
		return mv_fail(err, ENOMEM, "out of memory");
	return index && !b->disk.n_layers ? start_thread(q, err) : 0;
}

static void set_capacity(struct vio_blk *b)
{
	uint64_t block_sectors = le32_get(b->config.blk_size) / BLK_SECTOR;
	b->saved.capacity_sectors = b->disk.n_sectors / block_sectors * block_sectors;
	b->config.capacity_sectors = le64_make(b->saved.capacity_sectors);
}

static const struct vio_ops blk_ops = {
	.device_id = 2,
	.config_bytes = sizeof(struct blk_config),
	.n_queues = 1,
	.queue_size_max = BLK_QUEUE_SIZE,
	.state = &blk_table,
	.state_offset = offsetof(struct vio_blk, saved),
	.kick = blk_kick,
	.reset = blk_reset,
	.write_config = blk_write_config,
	.restored = blk_restored,
	.quiesce = blk_quiesce,
	.exclude = blk_exclude,
	.check_state = blk_check_state,
	.free = blk_free,
};

// Block sizes and limits that help a guest to lay out its requests: section 5.2.5.
static struct blk_config make_config(const struct disk *disk, uint32_t block_bytes, unsigned n_queues)
{
	const struct disk_topology *t = &disk->topology;
	struct blk_config c = {
		.size_max = le32_make(BLK_SIZE_MAX),
		.seg_max = le32_make(VQ_MAX_DATA),
		.blk_size = le32_make(block_bytes),
		.min_io_blocks = le16_make((uint16_t)(t->min_io_bytes / block_bytes)),
		.opt_io_blocks = le32_make(t->opt_io_bytes / block_bytes),
		.writeback = 1,
		.num_queues = le16_make((uint16_t)n_queues),
		.max_discard_sectors = le32_make(BLK_MAX_RANGE_SECTORS),
		.max_discard_seg = le32_make(BLK_MAX_RANGES),
		.discard_sector_alignment = le32_make(t->physical_bytes / BLK_SECTOR),
		.max_write_zeroes_sectors = le32_make(BLK_MAX_RANGE_SECTORS),
		.max_write_zeroes_seg = le32_make(BLK_MAX_RANGES),
		.write_zeroes_may_unmap = 1,
	};
	while (block_bytes << c.physical_block_exp < t->physical_bytes)
		c.physical_block_exp++;
	c.alignment_offset = (uint8_t)(t->offset_bytes / block_bytes);
	return c;
}

static uint64_t features(bool read_only, unsigned n_queues)
{
	uint64_t f =
		VIO_FEATURES | BLK_F_SIZE_MAX | BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY;
	f |= read_only ? BLK_F_RO : BLK_F_CONFIG_WCE | BLK_F_DISCARD | BLK_F_WRITE_ZEROES;
	return f | (n_queues > 1 ? BLK_F_MQ : 0);
}

static int check_block(const struct disk *disk, uint32_t block_bytes, struct mv_err *err)
{
	if (block_bytes < disk->offset_align)
		return mv_fail(err, EINVAL, "direct I/O of this file needs block_size %u",
			       disk->offset_align);
	if (disk->n_sectors < block_bytes / BLK_SECTOR)
		return mv_fail(err, EINVAL, "the file is smaller than a block of %u bytes", block_bytes);
	return 0;
}

int vio_blk_new(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring, const char *name,
		const struct vio_blk_options *o, const struct disk_files *files, struct vio_dev **ret_dev,
		struct mv_err *err)
{
	unsigned n_queues = o->n_queues ? o->n_queues : 1;
	char label[VIO_NAME_BYTES];
	struct disk disk;
	snprintf(label, sizeof label, "drive %s", name);
	int r = disk_open(&disk, files, ring, err);
	if (r)
		return r;
	uint32_t least = disk.offset_align > BLK_SECTOR ? disk.offset_align : BLK_SECTOR;
	uint32_t block_bytes = o->block_bytes ? o->block_bytes : least;
	MV_FREE struct vio_blk *b = calloc(1, sizeof *b);
	r = b ? check_block(&disk, block_bytes, err) : mv_fail(err, ENOMEM, "out of memory");
	if (!r) {
		b->dev.n_queues = n_queues;
		r = vio_dev_init(&b->dev, &blk_ops, label, mem, loop, features(files->read_only, n_queues),
				 err);
	}
	if (r) {
		disk_close(&disk);
		return r;
	}
	b->disk = disk;
	b->ring = ring;
	b->unsafe = o->unsafe;
	b->config = make_config(&disk, block_bytes, n_queues);
	b->saved.read_only = files->read_only;
	set_capacity(b);
	b->dev.config = &b->config;
	memcpy(b->serial, o->serial, strnlen(o->serial, sizeof b->serial));
	pthread_mutex_init(&b->rate_lock, NULL);
	struct vio_dev *d = &MV_TAKE(b)->dev;
	for (unsigned i = 0; !r && i < n_queues; i++)
		r = new_queue(blk_of(d), i, err);
	if (!r)
		r = vio_blk_set_rate(d, &o->rate, err);
	if (r)
		vio_free(d);
	else
		*ret_dev = d;
	return r;
}

// Section 5.2.6: the driver reads the capacity again after a configuration interrupt. What it had in
// flight beyond a smaller size ends with an error; so there is no need to wait for that.
static int change_file(struct vio_dev *d, int new_fd, uint64_t bytes, struct mv_err *err)
{
	struct vio_blk *b = blk_of(d);
	uint64_t before = b->saved.capacity_sectors;
	blk_exclude(d, true);
	int r = new_fd < 0 ? disk_resize(&b->disk, bytes, err) : disk_replace(&b->disk, new_fd, err);
	r = r ? r : check_block(&b->disk, le32_get(b->config.blk_size), err);
	if (!r)
		set_capacity(b);
	blk_exclude(d, false);
	if (!r && b->saved.capacity_sectors != before && d->s.status & VIO_DRIVER_OK)
		vio_signal_config(d);
	return r ? mv_wrap(err, "%s", d->name) : 0;
}

int vio_blk_resize(struct vio_dev *d, uint64_t bytes, struct mv_err *err)
{
	return change_file(d, -1, bytes, err);
}

int vio_blk_replace(struct vio_dev *d, int fd, struct mv_err *err) { return change_file(d, fd, 0, err); }

uint64_t vio_blk_bytes(const struct vio_dev *d)
{
	return MV_CONTAINER(d, const struct vio_blk, dev)->saved.capacity_sectors * BLK_SECTOR;
}

int vio_blk_set_rate(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err)
{
	struct vio_blk *b = blk_of(d);
	bool limited = rate->bandwidth.size || rate->ops.size;
	int r = 0;
	blk_exclude(d, true);
	for (unsigned i = 0; !r && limited && i < d->n_queues; i++) {
		struct blk_queue *q = b->queue[i];
		if (!q->again.watch.loop)
			r = mv_timer_init(q->own.running ? &q->own.loop : d->loop, &q->again, on_again, q);
	}
	if (!r)
		mv_rate_set(&b->rate, rate, mv_now_ns());
	for (unsigned i = 0; !r && i < d->n_queues; i++)
		if (b->queue[i]->throttled)
			mv_timer_arm(&b->queue[i]->again, 0); // by the new limit
	blk_exclude(d, false);
	return r ? mv_fail(err, -r, "%s: cannot make a timer: %s", d->name, strerror(-r)) : 0;
}

int vio_blk_freeze(struct vio_dev *d, int reader_fd, int fresh_fd, struct mv_err *err)
{
	struct vio_blk *b = blk_of(d);
	int r = disk_freeze(&b->disk, reader_fd, fresh_fd, err);
	return r ? mv_wrap(err, "%s", d->name) : 0;
}

void vio_blk_freeze_end(struct vio_dev *d, bool commit) { disk_freeze_end(&blk_of(d)->disk, commit); }

int vio_blk_copy_layers(const struct vio_dev *d, int fd, struct mv_err *err)
{
	int r = disk_copy_layers(&MV_CONTAINER(d, const struct vio_blk, dev)->disk, fd, err);
	return r ? mv_wrap(err, "%s", d->name) : 0;
}

unsigned vio_blk_layers(const struct vio_dev *d)
{
	return MV_CONTAINER(d, const struct vio_blk, dev)->disk.n_layers;
}
