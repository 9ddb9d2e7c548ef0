// SPDX-License-Identifier: Apache-2.0
/*
 * The tiny guest's virtio drivers' common part: small queues, polled, most with one request at
 * a time, over virtio-mmio version 2. Virtio 1.2 sections 2.7 and 4.2.
 */
#include "tests/guest/tiny.h"

#define VIRTIO_MAGIC 0x74726976

// Registers, virtio 1.2 section 4.2.2.
#define R_MAGIC 0x00
#define R_VERSION 0x04
#define R_DEVICE 0x08
#define R_DEVICE_FEATURES_SEL 0x14
#define R_DRIVER_FEATURES 0x20
#define R_DRIVER_FEATURES_SEL 0x24
#define R_QUEUE_SEL 0x30
#define R_QUEUE_NUM_MAX 0x34
#define R_QUEUE_NUM 0x38
#define R_QUEUE_READY 0x44
#define R_NOTIFY 0x50
#define R_IRQ_STATUS 0x60
#define R_IRQ_ACK 0x64
#define R_STATUS 0x70
#define R_DESC 0x80
#define R_AVAIL 0x90
#define R_USED 0xa0

#define S_ACKNOWLEDGE 1
#define S_DRIVER 2
#define S_DRIVER_OK 4
#define S_FEATURES_OK 8

#define DESC_NEXT 1
#define DESC_WRITE 2
#define AVAIL_NO_IRQ 1

static bool is_device(u64 base, u32 id)
{
	return mmio_read(base + R_MAGIC) == VIRTIO_MAGIC && mmio_read(base + R_VERSION) == 2 &&
	       mmio_read(base + R_DEVICE) == id;
}

static u64 find_device(u32 id)
{
	u64 base;
	for (u32 n = 0; (base = machine_virtio(n)); n++)
		if (is_device(base, id))
			return base;
	return 0;
}

static bool make_queue(struct virtio *d, u64 b, u16 index)
{
	mmio_write(b + R_QUEUE_SEL, index);
	if (mmio_read(b + R_QUEUE_NUM_MAX) < VIRTIO_QUEUE)
		return false;
	d->avail.flags = AVAIL_NO_IRQ;
	mmio_write(b + R_QUEUE_NUM, VIRTIO_QUEUE);
	const u64 part[3][2] = { { R_DESC, (u64)d->desc },
				 { R_AVAIL, (u64)&d->avail },
				 { R_USED, (u64)&d->used } };
	for (int i = 0; i < 3; i++) {
		mmio_write(b + part[i][0], (u32)part[i][1]);
		mmio_write(b + part[i][0] + 4, (u32)(part[i][1] >> 32));
	}
	mmio_write(b + R_QUEUE_READY, 1);
	d->queue = index;
	return true;
}

bool virtio_init(struct virtio *d, u32 n, u32 id)
{
	static const u32 wanted[] = { [VIRTIO_NET] = VIRTIO_NET_FEATURES,
				      [VIRTIO_BLK] = VIRTIO_BLK_FEATURES,
				      [VIRTIO_RNG] = VIRTIO_RING_F_EVENT_IDX,
				      [VIRTIO_CONSOLE] = VIRTIO_CONSOLE_F_MULTIPORT,
				      [VIRTIO_BALLOON] = VIRTIO_BALLOON_FEATURES };
	if (d->base)
		return true;
	u64 b = find_device(id);
	if (!b)
		return false;
	mmio_write(b + R_STATUS, 0);
	mmio_write(b + R_STATUS, S_ACKNOWLEDGE | S_DRIVER);
	mmio_write(b + R_DEVICE_FEATURES_SEL, 0);
	mmio_write(b + R_DRIVER_FEATURES_SEL, 0);
	mmio_write(b + R_DRIVER_FEATURES,
		   id < sizeof wanted / sizeof *wanted ? wanted[id] & mmio_read(b + R_DEVICE_FEATURES) : 0);
	mmio_write(b + R_DRIVER_FEATURES_SEL, 1);
	mmio_write(b + R_DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
	mmio_write(b + R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	if (!(mmio_read(b + R_STATUS) & S_FEATURES_OK))
		return false;
	for (u32 i = 0; i < n; i++)
		if (!make_queue(&d[i], b, (u16)i))
			return false;
	mmio_write(b + R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	for (u32 i = 0; i < n; i++)
		d[i].base = b;
	return true;
}

void virtio_submit(struct virtio *d, const struct virtio_buf *bufs, u32 n)
{
	u16 slot = d->idx % VIRTIO_QUEUE;
	for (u32 i = 0; i < n; i++) {
		d->desc[i].addr = (u64)bufs[i].at;
		d->desc[i].len = bufs[i].len;
		d->desc[i].flags = (u16)((bufs[i].writable ? DESC_WRITE : 0) | (i + 1 < n ? DESC_NEXT : 0));
		d->desc[i].next = (u16)(i + 1);
	}
	d->avail.ring[slot] = 0;
	d->avail.used_event = (u16)(d->idx - 1); // no interrupt, with EVENT_IDX
	d->idx++;
	virtio_kick(d);
}

void virtio_kick(struct virtio *d)
{
	barrier();
	d->avail.idx = d->idx;
	barrier();
	mmio_write(d->base + R_NOTIFY, d->queue);
}

bool virtio_wait(struct virtio *d, u64 rounds, u32 *ret_len)
{
	u16 slot = (u16)(d->idx - 1) % VIRTIO_QUEUE;
	for (u64 i = 0; d->used.idx != d->idx; i++) {
		if (i == rounds)
			return false;
		relax();
	}
	read_barrier();
	mmio_write(d->base + R_IRQ_ACK, mmio_read(d->base + R_IRQ_STATUS));
	*ret_len = d->used.ring[slot].len;
	return true;
}

bool virtio_request(struct virtio *d, const struct virtio_buf *bufs, u32 n, u32 *ret_len)
{
	virtio_submit(d, bufs, n);
	return virtio_wait(d, POLL_ROUNDS, ret_len);
}
