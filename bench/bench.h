// SPDX-License-Identifier: Apache-2.0
// The parts of the bench program: each adds its series to the results, 0 or -errno.
#pragma once
#include <stdbool.h>

#include "bench/floor.h"
#include "bench/stats.h"

struct bench_env {
	const char *bin;   // folder with thawd, thaw, thaw-vmm
	const char *guest; // the tiny guest
	const char *out;   // where results and temporary files go
	char vmm[1024];
	int samples;
	bool quick, verbose;
};

int bench_boot(const struct bench_env *env, struct bench_results *res);        // boot_*
int bench_restore(const struct bench_env *env, struct bench_results *res);     // floor_*, clone_cold_*
int bench_freeze(const struct bench_env *env, struct bench_results *res);      // freeze_*
int bench_live(const struct bench_env *env, struct bench_results *res);        // snapshot_live_*
int bench_lazy(const struct bench_env *env, struct bench_results *res);        // compressed memory
int bench_rest(const struct bench_env *env, struct bench_results *res);        // through the daemon
int bench_working_set(const struct bench_env *env, struct bench_results *res); // ready_*
int bench_memory(const struct bench_env *env, struct bench_results *res);      // memory_*
int bench_net(const struct bench_env *env, struct bench_results *res);         // net_*, vsock_*
int bench_blk(const struct bench_env *env, struct bench_results *res);         // blk_*: no VM
int bench_pool(const struct bench_env *env, struct bench_results *res); // clones made in advance, forks
int bench_diff(const struct bench_env *env, struct bench_results *res); // diff_*, fc_*: no VM
int bench_firecracker(const struct bench_env *env, struct bench_results *res);
int bench_loop(const struct bench_env *env, struct bench_results *res); // loop_*: who waits for whom
int bench_idle(const struct bench_env *env, struct bench_results *res); // idle_* alone; only if asked for
