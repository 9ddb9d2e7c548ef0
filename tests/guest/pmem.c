// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-pmem driver, virtio 1.2 section 5.19.
#include "tests/guest/tiny.h"

static struct virtio pmem;

bool pmem_init(void) { return virtio_init(&pmem, 1, VIRTIO_PMEM); }

static u64 config(u32 at)
{
	return mmio_read(pmem.base + VIRTIO_CONFIG + at) | (u64)mmio_read(pmem.base + VIRTIO_CONFIG + at + 4)
								   << 32;
}

volatile u64 *pmem_word(u64 i, u64 *ret_bytes)
{
	*ret_bytes = config(8);
	return (volatile u64 *)config(0) + i;
}

bool pmem_flush(u32 *ret)
{
	static volatile u32 type, result;
	u32 len;
	const struct virtio_buf bufs[] = { { &type, sizeof type, false }, { &result, sizeof result, true } };
	result = 77;
	bool ok = virtio_request(&pmem, bufs, 2, &len);
	*ret = result;
	return ok && len == sizeof result;
}
