// SPDX-License-Identifier: Apache-2.0
// Cold clones through the daemon: request sent to the guest's first I/O, teardown,
// the API's own share, and what an idle clone costs the host.
#include "bench/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/api_load.h"
#include "bench/daemon.h"
#include "microvm/base/util.h"

#define WAIT_STEPS 2000 // of 1 ms: the bound of every wait

// The VM's time of first I/O, relative to ret_zero_ns (CLOCK_MONOTONIC). The daemon hears of
// it by an event, so ask until it is there.
static int first_io(struct daemon *d, const char *name, uint64_t *ret_zero_ns, double *ret_us)
{
	char path[200];
	int r = 0;
	snprintf(path, sizeof path, "/v1/vms/%s", name);
	for (int i = 0; !r && i < WAIT_STEPS; i++) {
		js *v = daemon_call(d, "GET", path, NULL, &r);
		int64_t us = js_int(v, "timing_us.first_io", -1);
		*ret_zero_ns = (uint64_t)js_int(v, "timing_zero_ns", 0);
		js_free(v);
		if (us >= 0) {
			*ret_us = (double)us;
			return 0;
		}
		daemon_pause_ms(1);
	}
	return r ? r : -ETIMEDOUT;
}

static int make_snapshot(const struct bench_env *env, struct daemon *d)
{
	char body[1400];
	double us;
	uint64_t zero;
	char *guest = realpath(env->guest, NULL);
	if (!guest)
		return -errno;
	snprintf(body, sizeof body,
		 "{\"name\":\"source\",\"kernel\":\"%s\","
		 "\"cmdline\":\"thaw.genid=0xfe000\",\"start\":true}",
		 guest);
	free(guest);
	int r = daemon_act(d, "POST", "/v1/vms", body);
	r = r ? r : first_io(d, "source", &zero, &us);
	r = r ? r : daemon_act(d, "POST", "/v1/snapshots", "{\"name\":\"snap\",\"vm\":\"source\"}");
	// The first clone also pays for the check of the memory file; it is not counted.
	r = r ? r : daemon_act(d, "POST", "/v1/snapshots/snap/clone", "{\"clones\":[{\"name\":\"first\"}]}");
	return r;
}

static int cold_clones(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *total =
		bench_series(res, "clone_cold_total", "us", "REST request sent to the clone's first I/O");
	struct bench_series *answer =
		bench_series(res, "clone_cold_answer", "us", "REST request sent to answer received");
	struct bench_series *down = bench_series(res, "teardown", "us", "DELETE sent to the VM process gone");
	int r = 0;
	for (int i = 0; !r && i < env->samples; i++) {
		uint64_t zero = 0, sent = mv_now_ns();
		double us;
		r = daemon_act(d, "POST", "/v1/snapshots/snap/clone", "{\"clones\":[{\"name\":\"c\"}]}");
		bench_add(answer, (double)(mv_now_ns() - sent) / 1000);
		if (r || (r = first_io(d, "c", &zero, &us)))
			break;
		bench_add(total, us + (double)(zero - sent) / 1000);
		sent = mv_now_ns();
		r = daemon_act(d, "DELETE", "/v1/vms/c", NULL);
		bench_add(down, (double)(mv_now_ns() - sent) / 1000);
	}
	return r;
}

// The same from a compressed snapshot whose template is complete, beside raw ones.
static int lz4_clones(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	static const char *const path[] = { "/v1/snapshots/snap/clone", "/v1/snapshots/snap-lz4/clone" };
	struct bench_series *raw = bench_series(res, "clone_raw_beside_lz4", "us",
						"REST request to first I/O, raw, in turns with the next");
	struct bench_series *lz4 =
		bench_series(res, "clone_lz4_complete", "us", "REST request to first I/O, complete template");
	struct bench_series *ratio = bench_series(res, "clone_lz4_over_raw", "ratio", "pairwise");
	int r = daemon_act(d, "POST", "/v1/snapshots",
			   "{\"name\":\"snap-lz4\",\"vm\":\"source\",\"format\":\"lz4\"}");
	r = r ? r : daemon_act(d, "POST", "/v1/snapshots/snap-lz4/prepare", "{\"wait\":true}");
	for (int i = 0; !r && i < env->samples; i++) {
		double us[2];
		for (int k = 0; !r && k < 2; k++) {
			uint64_t zero = 0, sent = mv_now_ns();
			r = daemon_act(d, "POST", path[k], "{\"clones\":[{\"name\":\"z\"}]}");
			r = r ? r : first_io(d, "z", &zero, &us[k]);
			us[k] += (double)(zero - sent) / 1000;
			r = r ? r : daemon_act(d, "DELETE", "/v1/vms/z", NULL);
		}
		if (r)
			break;
		bench_add(raw, us[0]);
		bench_add(lz4, us[1]);
		bench_add(ratio, us[1] / us[0]);
	}
	return r;
}

static int overhead(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *s = bench_series(res, "api_overhead", "us", "GET /v1/info, one connection");
	int r = 0;
	for (int i = 0; !r && i < env->samples; i++) {
		uint64_t sent = mv_now_ns();
		r = daemon_act(d, "GET", "/v1/info", NULL);
		bench_add(s, (double)(mv_now_ns() - sent) / 1000);
	}
	return r;
}

int bench_rest(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	int r = daemon_start(env, &d, NULL);
	r = r ? r : make_snapshot(env, &d);
	r = r ? r : cold_clones(env, &d, res);
	r = r ? r : lz4_clones(env, &d, res);
	r = r ? r : overhead(env, &d, res);
	r = r ? r : bench_api_load(env, &d, res);
	daemon_stop(&d);
	return r;
}
