// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-blk driver, virtio 1.2 section 5.2: the first drive.
#include "tiny.h"

enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4, TYPE_DISCARD = 11, TYPE_WRITE_ZEROES = 13 };

static struct virtio blk[2]; // the second one is there only if the device has it
static u32 used;

bool blk_init(void)
{
	return blk[0].base || virtio_init(blk, 2, VIRTIO_BLK) || virtio_init(blk, 1, VIRTIO_BLK);
}

bool blk_use(u64 queue)
{
	if (queue > 1 || !blk[queue].base)
		return false;
	used = (u32)queue;
	return true;
}

static bool request(u32 type, u64 sector, volatile void *data, u32 len)
{
	static volatile struct {
		u32 type, reserved;
		u64 sector;
	} header;
	static volatile u8 status;
	struct virtio_buf bufs[3] = { { &header, sizeof header, false }, { data, len, type == TYPE_IN } };
	u32 n = 1;
	header.type = type;
	header.sector = sector;
	status = 0xff;
	n += data != NULL;
	bufs[n++] = (struct virtio_buf){ &status, 1, true };
	return virtio_request(&blk[used], bufs, n, &len) && status == 0;
}

bool blk_read(u64 sector, u8 to[BLK_SECTOR]) { return request(TYPE_IN, sector, to, BLK_SECTOR); }
bool blk_write(u64 sector, u8 from[BLK_SECTOR]) { return request(TYPE_OUT, sector, from, BLK_SECTOR); }
bool blk_flush(void) { return request(TYPE_FLUSH, 0, NULL, 0); }

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
