// SPDX-License-Identifier: Apache-2.0
// Rate limits of a device: bytes and operations, a bucket of tokens each (struct vmcfg_rate). A bucket
// holds `size` tokens, gains as many in refill_ms, evenly, and starts full; its burst is taken first
// and never comes back. Whoever finds too little does nothing, is told how long to wait, and asks again.
//
// A request larger than the bucket goes when the bucket is full, and leaves a debt that is refilled
// before the next one: so it is late, but never stuck, and the rate holds.
// Integers only, nothing is lost by rounding. The clock is the caller's (mv_now_ns()) and must not go back.
// Threads: one at a time (the loop's lock). Belongs to the device; nothing to free, in no snapshot.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/vmcfg.h"

struct mv_bucket {
	struct vmcfg_bucket cfg; // size 0: no limit
	int64_t tokens;          // at at_ns; negative: a debt
	uint64_t burst;          // what is left of it
	uint64_t rest;           // of a token: rest / refill time
	uint64_t at_ns;
};

struct mv_rate {
	struct mv_bucket bandwidth, ops;
};

// All zero: no limit. Again with another limit: a bucket whose limit is unchanged goes on as it is,
// another one starts full. The configuration was checked (vmcfg_check()).
void mv_rate_set(struct mv_rate *r, const struct vmcfg_rate *cfg, uint64_t now_ns);

static inline bool mv_rate_limited(const struct mv_rate *r)
{
	return r->bandwidth.cfg.size || r->ops.cfg.size;
}

// One operation of this many bytes (below 2^62). 0: it may go, its tokens are taken. Otherwise none
// are, and it may not before this many ns have passed.
uint64_t mv_rate_take(struct mv_rate *r, uint64_t bytes, uint64_t now_ns);
