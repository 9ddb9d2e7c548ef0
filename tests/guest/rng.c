// SPDX-License-Identifier: Apache-2.0
/*
 * The tiny guest's virtio-rng driver: one queue of four, one request at a time,
 * polled, over virtio-mmio version 2. Virtio 1.2 sections 2.7, 4.2 and 5.4.
 */
#include "tiny.h"

static inline void barrier(void) { __asm__ volatile("mfence" : : : "memory"); }

#define VIRTIO_FIRST 0xd0000000ULL
#define VIRTIO_SLOTS 32
#define VIRTIO_MAGIC 0x74726976
#define VIRTIO_ID_RNG 4

// Registers, virtio 1.2 section 4.2.2.
#define R_MAGIC 0x00
#define R_VERSION 0x04
#define R_DEVICE 0x08
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

#define QUEUE_NUM 4
#define DESC_WRITE 2
#define AVAIL_NO_IRQ 1
#define POLL_ROUNDS 200000000ULL

static struct {
	struct {
		u64 addr;
		u32 len;
		u16 flags, next;
	} desc[QUEUE_NUM];
	struct {
		u16 flags, idx, ring[QUEUE_NUM];
	} avail;
	struct {
		u16 flags, idx;
		struct {
			u32 id, len;
		} ring[QUEUE_NUM];
	} used __attribute__((aligned(4)));
	u8 data[RNG_MAX];
} volatile rng __attribute__((aligned(16)));
static u64 rng_base;
static u16 rng_idx;

static bool is_rng(u64 base)
{
	return mmio_read(base + R_MAGIC) == VIRTIO_MAGIC && mmio_read(base + R_VERSION) == 2 &&
	       mmio_read(base + R_DEVICE) == VIRTIO_ID_RNG;
}

// By the kernel's parameter virtio_mmio.device=SIZE@ADDR:IRQ, else by looking.
static u64 find_rng(void)
{
	bool named = false;
	for (const char *p = cmdline; *p; p++) {
		u64 v;
		if (!starts(p, "virtio_mmio.device="))
			continue;
		while (*p && *p != ' ' && *p != '@')
			p++;
		if (*p != '@')
			break;
		const char *s = p + 1;
		named = true;
		if (number(&s, &v) && v < MAPPED_END && is_rng(v))
			return v;
	}
	for (u64 a = VIRTIO_FIRST; !named && a < VIRTIO_FIRST + VIRTIO_SLOTS * PAGE; a += PAGE)
		if (is_rng(a))
			return a;
	return 0;
}

bool rng_init(void)
{
	if (rng_base)
		return true;
	u64 b = find_rng();
	if (!b)
		return false;
	mmio_write(b + R_STATUS, 0);
	mmio_write(b + R_STATUS, S_ACKNOWLEDGE | S_DRIVER);
	mmio_write(b + R_DRIVER_FEATURES_SEL, 0);
	mmio_write(b + R_DRIVER_FEATURES, 0);
	mmio_write(b + R_DRIVER_FEATURES_SEL, 1);
	mmio_write(b + R_DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
	mmio_write(b + R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	mmio_write(b + R_QUEUE_SEL, 0);
	if (!(mmio_read(b + R_STATUS) & S_FEATURES_OK) || mmio_read(b + R_QUEUE_NUM_MAX) < QUEUE_NUM)
		return false;
	rng.avail.flags = AVAIL_NO_IRQ;
	mmio_write(b + R_QUEUE_NUM, QUEUE_NUM);
	const u64 part[3][2] = { { R_DESC, (u64)rng.desc },
				 { R_AVAIL, (u64)&rng.avail },
				 { R_USED, (u64)&rng.used } };
	for (int i = 0; i < 3; i++) {
		mmio_write(b + part[i][0], (u32)part[i][1]);
		mmio_write(b + part[i][0] + 4, 0);
	}
	mmio_write(b + R_QUEUE_READY, 1);
	mmio_write(b + R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	rng_base = b;
	return true;
}

// One request of n bytes into rng.data; how many came, 0 = none within the time.
static u32 rng_read(u32 n)
{
	u16 slot = rng_idx % QUEUE_NUM;
	rng.desc[0].addr = (u64)rng.data;
	rng.desc[0].len = n;
	rng.desc[0].flags = DESC_WRITE;
	rng.avail.ring[slot] = 0;
	barrier();
	rng.avail.idx = ++rng_idx;
	barrier();
	mmio_write(rng_base + R_NOTIFY, 0);
	for (u64 i = 0; rng.used.idx != rng_idx; i++) {
		if (i == POLL_ROUNDS)
			return 0;
		__asm__ volatile("pause");
	}
	mmio_write(rng_base + R_IRQ_ACK, mmio_read(rng_base + R_IRQ_STATUS));
	return rng.used.ring[slot].len <= n ? rng.used.ring[slot].len : 0;
}

bool rng_fill(u8 *to, u64 n)
{
	while (n) {
		u32 len = rng_read((u32)n);
		if (!len)
			return false;
		n -= len;
		for (u32 i = 0; i < len; i++)
			*to++ = rng.data[i];
	}
	return true;
}
