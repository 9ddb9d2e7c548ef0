// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 section 5.2): the device. Its requests are in blk_io.c.
// A completed write is in the page cache; FLUSH makes it durable.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "devices/blk.h"
#include "microvm/base/util.h"

static const struct mv_field blk_fields[] = {
	MV_INT(struct blk_state, capacity_sectors, 1, MV_U64, 1, INT64_MAX / BLK_SECTOR),
	MV_FLAG(struct blk_state, read_only, 2),
	MV_OPT_FLAG(struct blk_state, write_through, 3),
};
static MV_DEFINE_TABLE(blk_table, struct blk_state, blk_fields);

static void blk_kick(struct vio_dev *d, unsigned q)
{
	(void)q;
	blk_run_queue(&MV_CONTAINER(d, struct vio_blk, dev)->queue);
}

static void on_again(void *arg)
{
	struct blk_queue *q = arg;
	q->throttled = false;
	blk_run_queue(q);
}

static void blk_quiesce(struct vio_dev *d)
{
	struct blk_queue *q = &MV_CONTAINER(d, struct vio_blk, dev)->queue;
	while (q->n_inflight)
		mv_ring_wait(q->ring);
}

static void show_writeback(struct vio_blk *b) { b->config.writeback = !b->saved.write_through; }

static void blk_reset(struct vio_dev *d)
{
	struct vio_blk *b = MV_CONTAINER(d, struct vio_blk, dev);
	bool quiesced = d->quiesced;
	d->quiesced = true; // no new requests while the old ones finish
	blk_quiesce(d);
	d->quiesced = quiesced;
	b->saved.write_through = false;
	show_writeback(b);
}

static void blk_write_config(struct vio_dev *d, uint32_t offset, const void *data, uint32_t len)
{
	struct vio_blk *b = MV_CONTAINER(d, struct vio_blk, dev);
	uint8_t v;
	if (offset != offsetof(struct blk_config, writeback) || len != sizeof v ||
	    !(d->s.features_acked & BLK_F_CONFIG_WCE))
		return;
	memcpy(&v, data, sizeof v);
	b->saved.write_through = !v;
	show_writeback(b);
}

static void blk_restored(struct vio_dev *d) { show_writeback(MV_CONTAINER(d, struct vio_blk, dev)); }

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
	mv_timer_fini(&b->queue.again);
	free(MV_TAKE(b->queue.bounce));
	disk_close(&b->disk); // gives the locks back
	vio_dev_fini(d);
	free(b);
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
	.check_state = blk_check_state,
	.free = blk_free,
};

// Block sizes and limits that help a guest to lay out its requests: section 5.2.5.
static struct blk_config make_config(const struct disk *disk, uint32_t block_bytes)
{
	const struct disk_topology *t = &disk->topology;
	struct blk_config c = {
		.size_max = le32_make(BLK_SIZE_MAX),
		.seg_max = le32_make(VQ_MAX_DATA),
		.blk_size = le32_make(block_bytes),
		.min_io_blocks = le16_make((uint16_t)(t->min_io_bytes / block_bytes)),
		.opt_io_blocks = le32_make(t->opt_io_bytes / block_bytes),
		.writeback = 1,
		.num_queues = le16_make(1),
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

static uint64_t features(bool read_only)
{
	uint64_t f =
		VIO_FEATURES | BLK_F_SIZE_MAX | BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY;
	return f | (read_only ? BLK_F_RO : BLK_F_CONFIG_WCE | BLK_F_DISCARD | BLK_F_WRITE_ZEROES);
}

int vio_blk_new(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring, const char *name,
		const struct vio_blk_options *o, const struct disk_files *files, struct vio_dev **ret_dev,
		struct mv_err *err)
{
	bool read_only = files->read_only;
	char label[VIO_NAME_BYTES];
	struct disk disk;
	snprintf(label, sizeof label, "drive %s", name);
	int r = disk_open(&disk, files, ring, err);
	if (r)
		return r;
	uint32_t least = disk.offset_align > BLK_SECTOR ? disk.offset_align : BLK_SECTOR;
	uint32_t block_bytes = o->block_bytes ? o->block_bytes : least;
	MV_FREE struct vio_blk *b = calloc(1, sizeof *b);
	if (!b)
		r = mv_fail(err, ENOMEM, "out of memory");
	else if (block_bytes < least)
		r = mv_fail(err, EINVAL, "direct I/O of this file needs block_size %u", least);
	else if (disk.memory_align && !(b->queue.bounce = aligned_alloc(DISK_MAX_ALIGN, BLK_BOUNCE_BYTES)))
		r = mv_fail(err, ENOMEM, "out of memory");
	else if (disk.n_sectors < block_bytes / BLK_SECTOR)
		r = mv_fail(err, EINVAL, "the file is smaller than a block of %u bytes", block_bytes);
	else
		r = vio_dev_init(&b->dev, &blk_ops, label, mem, loop, features(read_only), err);
	if (r) {
		disk_close(&disk);
		if (b)
			free(b->queue.bounce);
		return r;
	}
	b->disk = disk;
	b->config = make_config(&disk, block_bytes);
	b->saved.read_only = read_only;
	set_capacity(b);
	b->dev.config = &b->config;
	memcpy(b->serial, o->serial, strnlen(o->serial, sizeof b->serial));
	b->queue.blk = b;
	b->queue.ring = ring;
	b->queue.last_waiting = &b->queue.first_waiting;
	r = vio_blk_set_rate(&b->dev, &o->rate, err);
	if (r)
		vio_free(&MV_TAKE(b)->dev);
	else
		*ret_dev = &MV_TAKE(b)->dev;
	return r;
}

int vio_blk_set_rate(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err)
{
	struct vio_blk *b = MV_CONTAINER(d, struct vio_blk, dev);
	struct blk_queue *q = &b->queue;
	bool limited = rate->bandwidth.size || rate->ops.size;
	int r = limited && !q->again.watch.loop ? mv_timer_init(d->loop, &q->again, on_again, q) : 0;
	if (r)
		return mv_fail(err, -r, "%s: cannot make a timer: %s", d->name, strerror(-r));
	mv_rate_set(&b->rate, rate, mv_now_ns());
	if (q->throttled)
		mv_timer_arm(&q->again, 0); // by the new limit
	return 0;
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
