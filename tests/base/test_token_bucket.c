// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include "microvm/base/token_bucket.h"
#include "microvm/base/util.h"

#define MS 1000000ULL
#define START (5 * MS) // any time but 0

static struct mv_rate make(struct vmcfg_rate cfg)
{
	struct mv_rate r = { 0 };
	mv_rate_set(&r, &cfg, START);
	return r;
}

static void no_limit(void **state)
{
	struct mv_rate r = make((struct vmcfg_rate){ 0 });
	(void)state;
	assert_false(mv_rate_limited(&r));
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(mv_rate_take(&r, 1ULL << 40, START), 0);
}

static void starts_full_and_refills(void **state)
{
	struct mv_rate r = make((struct vmcfg_rate){ .bandwidth = { 1000, 0, 100 } });
	(void)state;
	assert_true(mv_rate_limited(&r));
	assert_int_equal(mv_rate_take(&r, 600, START), 0);
	assert_int_equal(mv_rate_take(&r, 400, START), 0);
	assert_int_equal(mv_rate_take(&r, 0, START), 0);
	assert_int_equal(mv_rate_take(&r, 1, START), 100 * MS / 1000);
	assert_int_equal(mv_rate_take(&r, 500, START), 50 * MS);
	assert_int_equal(mv_rate_take(&r, 500, START + 50 * MS - 1), 1);
	assert_int_equal(mv_rate_take(&r, 500, START + 50 * MS), 0);
	assert_int_equal(mv_rate_take(&r, 1, START + 50 * MS), 100 * MS / 1000);
	// Never more than full, however long it waits.
	assert_int_equal(mv_rate_take(&r, 1000, UINT64_MAX), 0);
	assert_int_equal(mv_rate_take(&r, 1000, UINT64_MAX), 100 * MS);
}

static void burst_goes_first_and_once(void **state)
{
	struct mv_rate r = make((struct vmcfg_rate){ .ops = { 2, 3, 1000 } });
	(void)state;
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(mv_rate_take(&r, 1ULL << 30, START), 0);
	assert_int_equal(mv_rate_take(&r, 0, START), 500 * MS);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(mv_rate_take(&r, 0, START + 3600 * 1000 * MS), 0);
	assert_int_equal(mv_rate_take(&r, 0, START + 3600 * 1000 * MS), 500 * MS);
	// Partly of the burst, partly of the bucket.
	r = make((struct vmcfg_rate){ .bandwidth = { 100, 50, 100 } });
	assert_int_equal(mv_rate_take(&r, 120, START), 0);
	assert_int_equal(mv_rate_take(&r, 31, START), 1 * MS);
	assert_int_equal(mv_rate_take(&r, 30, START), 0);
}

static void both_or_none(void **state)
{
	struct mv_rate r = make((struct vmcfg_rate){ .bandwidth = { 100, 0, 100 }, .ops = { 1, 0, 10 } });
	(void)state;
	assert_int_equal(mv_rate_take(&r, 10, START), 0);
	assert_int_equal(mv_rate_take(&r, 90, START), 10 * MS); // no operation left, and no byte taken
	assert_int_equal(mv_rate_take(&r, 90, START + 10 * MS), 0);
	assert_int_equal(mv_rate_take(&r, 100, START + 10 * MS),
			 90 * MS); // no bytes left, no operation taken
	assert_int_equal(mv_rate_take(&r, 100, START + 100 * MS), 0);
}

// More than the bucket holds: when it is full, and what follows waits for the debt.
static void larger_than_the_bucket(void **state)
{
	struct mv_rate r = make((struct vmcfg_rate){ .bandwidth = { 1000, 0, 100 } });
	(void)state;
	assert_int_equal(mv_rate_take(&r, 1, START), 0);
	assert_int_equal(mv_rate_take(&r, 5000, START), MS / 10);
	assert_int_equal(mv_rate_take(&r, 5000, START + MS / 10), 0);
	assert_int_equal(mv_rate_take(&r, 1, START + MS / 10), 400 * MS + MS / 10);
	assert_int_equal(mv_rate_take(&r, 5000, START + MS / 10), 500 * MS);
	assert_int_equal(mv_rate_take(&r, 5000, START + MS / 10 + 500 * MS), 0);
}

// Whoever asks often, at odd times and for odd numbers gets the rate, to the token.
static void exact_in_the_long_run(void **state)
{
	static const struct vmcfg_bucket cfgs[] = { { 7, 0, 3 },
						    { 1000003, 0, 1000 },
						    { 1, 0, 86400000 },
						    { VMCFG_MAX_TOKENS, 0, 1 },
						    { 333, 0, VMCFG_MAX_REFILL_MS } };
	(void)state;
	for (size_t k = 0; k < MV_ARRAY_LEN(cfgs); k++) {
		struct mv_rate r = make((struct vmcfg_rate){ .bandwidth = cfgs[k] });
		uint64_t now = START, taken = 0, seed = k + 1;
		uint64_t step = cfgs[k].refill_ms * MS / cfgs[k].size + 3;
		for (unsigned i = 0; i < 100000; i++) {
			uint64_t n = 1 + t_rand(&seed) % cfgs[k].size / 3, wait = mv_rate_take(&r, n, now);
			taken += wait ? 0 : n;
			if (wait && i % 2) { // as long as was told, and not longer
				assert_true(wait <= 1 || mv_rate_take(&r, n, now + wait - 1));
				now += wait;
				assert_int_equal(mv_rate_take(&r, n, now), 0);
				taken += n;
			}
			now += t_rand(&seed) % step;
		}
		__uint128_t may = (__uint128_t)(now - START) * cfgs[k].size / (cfgs[k].refill_ms * MS);
		assert_true(taken <= may + cfgs[k].size);
		// A bucket of one is full, and loses what comes, while nobody asks.
		assert_true(cfgs[k].size == 1 || (__uint128_t)taken + 2 * cfgs[k].size >= may);
	}
}

static void another_limit(void **state)
{
	struct vmcfg_rate cfg = { .bandwidth = { 100, 0, 100 }, .ops = { 1, 0, 10 } };
	struct mv_rate r = make(cfg);
	(void)state;
	assert_int_equal(mv_rate_take(&r, 100, START), 0);
	cfg.ops = (struct vmcfg_bucket){ 5, 0, 10 };
	mv_rate_set(&r, &cfg, START);
	assert_int_equal(mv_rate_take(&r, 0, START), 0);        // the new one is full
	assert_int_equal(mv_rate_take(&r, 50, START), 50 * MS); // the other as empty as it was
	cfg = (struct vmcfg_rate){ 0 };
	mv_rate_set(&r, &cfg, START);
	assert_false(mv_rate_limited(&r));
	assert_int_equal(mv_rate_take(&r, 1ULL << 40, START), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_limit),
		cmocka_unit_test(starts_full_and_refills),
		cmocka_unit_test(burst_goes_first_and_once),
		cmocka_unit_test(both_or_none),
		cmocka_unit_test(larger_than_the_bucket),
		cmocka_unit_test(exact_in_the_long_run),
		cmocka_unit_test(another_limit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
