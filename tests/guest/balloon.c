// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-balloon driver, virtio 1.2 section 5.5. Queues as Linux numbers them: reports come
// by the last one of those that the device has with the features that it offers.
#include "tests/guest/tiny.h"

#define NUM_PAGES (VIRTIO_CONFIG + 0)
#define ACTUAL (VIRTIO_CONFIG + 4)
#define COMMAND (VIRTIO_CONFIG + 8)
#define COMMAND_STOP 0
#define FIRST_ROUND 2
#define COMMAND_ROUNDS 200000 // each a read of a register
#define STAT_FREE 4
#define PAGES_AT_ONCE 256

enum { INFLATE, DEFLATE, STATS, THIRD, FOURTH, QUEUES };
static struct virtio queue[QUEUES];

bool balloon_init(void) { return virtio_init(queue, QUEUES, VIRTIO_BALLOON); }

u32 balloon_target(void) { return mmio_read(queue[0].base + NUM_PAGES); }

bool balloon_move(bool in, u64 addr, u32 n)
{
	static volatile u32 page[PAGES_AT_ONCE];
	u32 actual = mmio_read(queue[0].base + ACTUAL), len;
	for (u32 i = 0, k; i < n; i += k) {
		for (k = 0; k < PAGES_AT_ONCE && i + k < n; k++)
			page[k] = (u32)(addr / PAGE) + i + k;
		if (!virtio_request(&queue[in ? INFLATE : DEFLATE],
				    &(struct virtio_buf){ page, k * (u32)sizeof *page, false }, 1, &len))
			return false;
	}
	mmio_write(queue[0].base + ACTUAL, in ? actual + n : actual - n);
	return true;
}

static bool has_hints(void) { return mmio_read(queue[0].base + R_DEVICE_FEATURES) & VIRTIO_BALLOON_F_HINT; }

bool balloon_report(u64 addr, u32 n)
{
	u32 len;
	return virtio_request(&queue[has_hints() ? FOURTH : THIRD],
			      &(struct virtio_buf){ (volatile void *)addr, n * (u32)PAGE, true }, 1, &len);
}

// The device keeps the buffer until it wants the next.
bool balloon_stats(u64 free_bytes)
{
	static volatile struct {
		u16 tag;
		u64 value;
	} __attribute__((packed)) stat;
	static bool given;
	u32 len;
	if (given && !virtio_wait(&queue[STATS], 2000000000ULL, &len))
		return false;
	stat.tag = STAT_FREE;
	stat.value = free_bytes;
	virtio_submit(&queue[STATS], &(struct virtio_buf){ &stat, sizeof stat, false }, 1);
	return given = true;
}

u32 balloon_command(void) { return mmio_read(queue[0].base + COMMAND); }

static bool say(u32 id)
{
	static volatile u32 word;
	u32 len;
	word = id;
	return has_hints() &&
	       virtio_request(&queue[THIRD], &(struct virtio_buf){ &word, sizeof word, false }, 1, &len);
}

bool balloon_hint(u64 addr, u32 n)
{
	u32 id = 0, len;
	for (u32 i = 0; i < COMMAND_ROUNDS && id < FIRST_ROUND; i++)
		id = balloon_command();
	if (id < FIRST_ROUND || !say(id))
		return false;
	for (u32 i = 0, k; i < n; i += k) {
		k = n - i < PAGES_AT_ONCE ? n - i : PAGES_AT_ONCE;
		if (!virtio_request(
			    &queue[THIRD],
			    &(struct virtio_buf){ (volatile void *)(addr + i * PAGE), k * (u32)PAGE, true },
			    1, &len))
			return false;
	}
	return true;
}

bool balloon_hint_stop(void) { return say(COMMAND_STOP); }
