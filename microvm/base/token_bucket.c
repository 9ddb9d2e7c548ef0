// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/token_bucket.h"

#include <string.h>

typedef unsigned __int128 u128; // tokens (below 2^63) times ns

static uint64_t refill_ns(const struct mv_bucket *b) { return b->cfg.refill_ms * 1000000; }

static void refill(struct mv_bucket *b, uint64_t now_ns)
{
	u128 gained = (u128)(now_ns - b->at_ns) * b->cfg.size + b->rest;
	u128 tokens = gained / refill_ns(b);
	b->at_ns = now_ns;
	if (tokens >= (u128)((int64_t)b->cfg.size - b->tokens)) {
		b->tokens = (int64_t)b->cfg.size;
		b->rest = 0; // a full bucket gains nothing
	} else {
		b->tokens += (int64_t)tokens;
		b->rest = (uint64_t)(gained % refill_ns(b));
	}
}

static uint64_t beyond_burst(const struct mv_bucket *b, uint64_t n)
{
	return n > b->burst ? n - b->burst : 0;
}

// Until n tokens can be taken; 0: now.
static uint64_t wait_ns(struct mv_bucket *b, uint64_t n, uint64_t now_ns)
{
	if (!b->cfg.size)
		return 0;
	refill(b, now_ns);
	uint64_t need = beyond_burst(b, n);
	if (need > b->cfg.size)
		need = b->cfg.size;
	if (!need || b->tokens >= (int64_t)need)
		return 0;
	u128 missing = (u128)((int64_t)need - b->tokens) * refill_ns(b) - b->rest;
	u128 ns = (missing + b->cfg.size - 1) / b->cfg.size;
	return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

static void take(struct mv_bucket *b, uint64_t n)
{
	if (!b->cfg.size)
		return;
	uint64_t need = beyond_burst(b, n);
	b->burst -= n - need;
	b->tokens -= (int64_t)need;
}

uint64_t mv_rate_take(struct mv_rate *r, uint64_t bytes, uint64_t now_ns)
{
	uint64_t a = wait_ns(&r->bandwidth, bytes, now_ns), b = wait_ns(&r->ops, 1, now_ns);
	if (a || b)
		return a > b ? a : b;
	take(&r->bandwidth, bytes);
	take(&r->ops, 1);
	return 0;
}

static void set(struct mv_bucket *b, const struct vmcfg_bucket *cfg, uint64_t now_ns)
{
	if (!memcmp(&b->cfg, cfg, sizeof *cfg))
		return;
	*b = (struct mv_bucket){
		.cfg = *cfg, .tokens = (int64_t)cfg->size, .burst = cfg->burst, .at_ns = now_ns
	};
}

void mv_rate_set(struct mv_rate *r, const struct vmcfg_rate *cfg, uint64_t now_ns)
{
	set(&r->bandwidth, &cfg->bandwidth, now_ns);
	set(&r->ops, &cfg->ops, now_ns);
}
