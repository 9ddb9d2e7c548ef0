// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-rng driver, virtio 1.2 section 5.4.
#include "tiny.h"

static struct virtio rng;

bool rng_init(void) { return virtio_init(&rng, 1, VIRTIO_RNG); }

bool rng_fill(u8 *to, u64 n)
{
	static volatile u8 data[RNG_MAX];
	while (n) {
		u32 len;
		if (!virtio_request(&rng, &(struct virtio_buf){ data, (u32)n, true }, 1, &len) || !len ||
		    len > n)
			return false;
		n -= len;
		for (u32 i = 0; i < len; i++)
			*to++ = data[i];
	}
	return true;
}
