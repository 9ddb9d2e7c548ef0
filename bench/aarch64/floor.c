// SPDX-License-Identifier: Apache-2.0
// There is no floor for arm64: the bench says what thaw takes, and not beside what.
#include "bench/floor.h"

#include <errno.h>

int bench_floor_prepare(const char *guest, const char *dir, struct bench_floor **ret_floor)
{
	(void)guest;
	(void)dir;
	(void)ret_floor;
	return -ENOTSUP;
}

int bench_floor_cold_restore(struct bench_floor *f, struct bench_floor_sample *ret_sample)
{
	(void)f;
	(void)ret_sample;
	return -ENOTSUP;
}

int bench_floor_pooled_restore(struct bench_floor *f, struct bench_floor_sample *ret_sample)
{
	(void)f;
	(void)ret_sample;
	return -ENOTSUP;
}

int bench_floor_hold(struct bench_floor *f, unsigned n, pid_t *ret_pids)
{
	(void)f;
	(void)n;
	(void)ret_pids;
	return -ENOTSUP;
}

void bench_floor_release(const pid_t *pids, unsigned n)
{
	(void)pids;
	(void)n;
}

void bench_floor_free(struct bench_floor *f) { (void)f; }
