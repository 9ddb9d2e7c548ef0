// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-rng driver, virtio 1.2 section 5.4.
#include "tests/guest/tiny.h"

#define EVENT_ROUNDS 200000000ull

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

bool rng_events(u64 n, bool kick_each, bool wish)
{
	static volatile u8 data[VIRTIO_QUEUE];
	rng.avail.used_event = (u16)(rng.idx + (wish ? n : 0) - 1);
	while (n) {
		u64 group = kick_each ? 1 : n < VIRTIO_QUEUE ? n : VIRTIO_QUEUE;
		for (u64 i = 0; i < group; i++, rng.idx++) {
			u16 slot = rng.idx % VIRTIO_QUEUE;
			rng.desc[slot].addr = (u64)&data[slot];
			rng.desc[slot].len = 1;
			rng.desc[slot].flags = 2; // for the device to write
			rng.avail.ring[slot] = slot;
		}
		virtio_kick(&rng);
		for (u64 i = 0; rng.used.idx != rng.idx; i++) {
			if (i == EVENT_ROUNDS)
				return false;
			relax();
		}
		read_barrier();
		n -= group;
	}
	return true;
}
