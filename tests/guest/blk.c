// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-blk driver, virtio 1.2 section 5.2: the first drive.
#include "tests/guest/tiny.h"

enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4, TYPE_DISCARD = 11, TYPE_WRITE_ZEROES = 13 };

static struct virtio blk[BLK_QUEUES]; // as many as the device has
static u32 used, n_queues;

bool blk_init(void)
{
	for (u32 n = BLK_QUEUES; n && !n_queues; n--)
		if (virtio_init(blk, n, VIRTIO_BLK))
			n_queues = n;
	return n_queues;
}

bool blk_use(u64 queue)
{
	if (queue >= n_queues)
		return false;
	used = (u32)queue;
	return true;
}

static volatile struct {
	u32 type, reserved;
	u64 sector;
	u8 status; // the last of the request
} request_of[BLK_QUEUES];

static void submit(u32 q, u32 type, u64 sector, volatile void *data, u32 len)
{
	struct virtio_buf bufs[3] = { { &request_of[q], 16, false }, { data, len, type == TYPE_IN } };
	u32 n = 1;
	request_of[q].type = type;
	request_of[q].status = 0xff;
	request_of[q].sector = sector;
	n += data != NULL;
	bufs[n++] = (struct virtio_buf){ &request_of[q].status, 1, true };
	virtio_submit(&blk[q], bufs, n);
}

static bool finish(u32 q)
{
	u32 len;
	return virtio_wait(&blk[q], POLL_ROUNDS, &len) && request_of[q].status == 0;
}

static bool request(u32 type, u64 sector, volatile void *data, u32 len)
{
	submit(used, type, sector, data, len);
	return finish(used);
}

bool blk_read(u64 sector, u8 to[BLK_SECTOR]) { return request(TYPE_IN, sector, to, BLK_SECTOR); }
bool blk_write(u64 sector, u8 from[BLK_SECTOR]) { return request(TYPE_OUT, sector, from, BLK_SECTOR); }
bool blk_flush(void) { return request(TYPE_FLUSH, 0, NULL, 0); }

bool blk_traffic(u64 sectors, u64 rounds, bool write)
{
	static volatile u64 data[BLK_QUEUES][BLK_SECTOR / 8];
	bool ok = true;
	for (u64 i = 0; ok && i < rounds; i++)
		for (u32 type = write ? TYPE_OUT : TYPE_IN, again = 1; again; type = TYPE_IN) {
			again = type != TYPE_IN;
			for (u32 q = 0; q < n_queues; q++) {
				u64 sector = (i * n_queues + q) % sectors;
				data[q][0] = again ? sector : ~0ull;
				data[q][1] = again ? i : ~0ull;
				submit(q, type, sector, data[q], BLK_SECTOR);
			}
			for (u32 q = 0; q < n_queues; q++) {
				u64 sector = (i * n_queues + q) % sectors;
				ok = finish(q) && ok;
				ok = ok && data[q][0] == sector && (!write || data[q][1] == i);
			}
		}
	return ok;
}

bool blk_zero(u64 sector, u32 n, bool discard)
{
	static volatile struct {
		u64 sector;
		u32 n, flags;
	} range;
	range.sector = sector;
	range.n = n;
	return request(discard ? TYPE_DISCARD : TYPE_WRITE_ZEROES, 0, &range, sizeof range);
}

// Of the configuration space: the capacity's lower half.
u32 blk_sectors(void) { return mmio_read(blk[0].base + VIRTIO_CONFIG); }
