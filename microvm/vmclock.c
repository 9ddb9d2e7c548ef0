// SPDX-License-Identifier: Apache-2.0
// It has no time here, since the guest's clocks are moved on with a restore: only the marker of disruption,
// the generation counter and the notification.
//
// Its numbers live in guest memory alone: a snapshot holds them, each restore and fork counts on from there.
// A guest that writes them misleads itself. In a snapshot of a machine without it the page is zeros.
#include "microvm/vmclock.h"

#include <errno.h>

#include "microvm/base/bytes.h"

#define MAGIC 0x4b4c4356u // "VCLK"
#define VERSION 1
#define COUNTER_INVALID 0xff
#define TIME_MONOTONIC 2 // of no epoch: there is no time
#define HAS_GENERATION (1u << 8)
#define HAS_NOTIFICATION (1u << 9)

struct vmclock {
	le32_t magic, size;
	le16_t version;
	uint8_t counter_id, time_type;
	le32_t seq_count; // odd while it changes, which no vCPU sees
	le64_t disruption_marker, flags;
	uint8_t none[72]; // status "unknown", and a time that is not there
	le64_t generation;
};
_Static_assert(sizeof(struct vmclock) == 112, "vmclock-abi.h");

static int write_page(struct gmem *m, gpa_t at, uint32_t bytes, uint32_t seq, uint64_t marker,
		      uint64_t generation)
{
	const struct vmclock c = { .magic = le32_make(MAGIC),
				   .size = le32_make(bytes),
				   .version = le16_make(VERSION),
				   .counter_id = COUNTER_INVALID,
				   .time_type = TIME_MONOTONIC,
				   .seq_count = le32_make(seq & ~1u),
				   .disruption_marker = le64_make(marker),
				   .flags = le64_make(HAS_GENERATION | HAS_NOTIFICATION),
				   .generation = le64_make(generation) };
	return gmem_write(m, at, &c, sizeof c);
}

int vmclock_boot(struct gmem *m, gpa_t at, uint32_t bytes) { return write_page(m, at, bytes, 0, 0, 0); }

int vmclock_restored(struct gmem *m, gpa_t at)
{
	struct vmclock c;
	int r = gmem_read(m, at, &c, sizeof c);
	if (r || le32_get(c.magic) != MAGIC)
		return r;
	return write_page(m, at, le32_get(c.size), le32_get(c.seq_count) + 2,
			  le64_get(c.disruption_marker) + 1, le64_get(c.generation) + 1);
}
