// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-blk driver, virtio 1.2 section 5.2: the first drive.
#include "tiny.h"

enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4 };

static struct virtio blk;

bool blk_init(void) { return virtio_init(&blk, 1, VIRTIO_BLK); }

static bool request(u32 type, u64 sector, void *data)
{
	static volatile struct {
		u32 type, reserved;
		u64 sector;
	} header;
	static volatile u8 status;
	struct virtio_buf bufs[3] = { { &header, sizeof header, false },
				      { data, BLK_SECTOR, type == TYPE_IN } };
	u32 n = 1, len;
	header.type = type;
	header.sector = sector;
	status = 0xff;
	n += data != NULL;
	bufs[n++] = (struct virtio_buf){ &status, 1, true };
	return virtio_request(&blk, bufs, n, &len) && status == 0;
}

bool blk_read(u64 sector, u8 to[BLK_SECTOR]) { return request(TYPE_IN, sector, to); }
bool blk_write(u64 sector, u8 from[BLK_SECTOR]) { return request(TYPE_OUT, sector, from); }
bool blk_flush(void) { return request(TYPE_FLUSH, 0, NULL); }
