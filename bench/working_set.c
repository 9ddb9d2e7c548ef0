// SPDX-License-Identifier: Apache-2.0
// What a working set saves: a guest that after its resume reads some pages here and there,
// writes others, and says that it is ready; first from a template of which nothing is loaded,
// then the same with the working set that the first one recorded. A fresh template each time,
// both in turns.
#include "bench/bench.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/daemon.h"
#include "microvm/base/util.h"

// 600 reads and 150 writes in the 64 MiB that the source has written.
#define RECORD_STEPS 5000 // of 1 ms: the bound of the wait for a record
#define WORK "work 5 600 150 16384\n"
#define READY "\"ready\":{\"console\":\"OK \"}"

// Minor faults of all threads but the first: of the vCPUs, so those that the guest waits for.
static int guest_faults(int64_t pid, double *ret_n)
{
	char path[400], text[1024];
	snprintf(path, sizeof path, "/proc/%" PRId64 "/task", pid);
	DIR *d = opendir(path);
	if (!d)
		return -errno;
	*ret_n = 0;
	for (struct dirent *e; (e = readdir(d));) {
		unsigned long minor = 0;
		if (e->d_name[0] == '.' || strtoll(e->d_name, NULL, 10) == pid)
			continue;
		snprintf(path, sizeof path, "/proc/%" PRId64 "/task/%s/stat", pid, e->d_name);
		FILE *f = fopen(path, "re");
		size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
		if (f)
			fclose(f);
		text[n] = 0;
		const char *at = strrchr(text, ')'); // proc(5): field 10 is minflt
		if (at && sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %lu", &minor) == 1)
			*ret_n += (double)minor;
	}
	closedir(d);
	return 0;
}

struct run {
	double ready_us, faults;
};

static int number(struct daemon *d, const char *path, const char *what, int64_t *ret_n)
{
	int r;
	js *v = daemon_call(d, "GET", path, NULL, &r);
	*ret_n = js_int(v, what, -1);
	js_free(v);
	return r ? r : *ret_n < 0 ? -EPROTO : 0;
}

// One clone from a fresh template, up to its being ready, and its end.
static int resume(struct daemon *d, const char *spec, struct run *ret_run)
{
	char body[400];
	int64_t pid, faults;
	int r = daemon_act(d, "DELETE", "/v1/snapshots/ws/prepare", NULL);
	snprintf(body, sizeof body, "{\"clones\":[{\"name\":\"c\"," READY "%s}]}", spec);
	uint64_t start = mv_now_ns();
	r = r ? r : daemon_act(d, "POST", "/v1/snapshots/ws/clone", body);
	r = r ? r : daemon_act(d, "GET", "/v1/vms/c?wait=ready", NULL);
	ret_run->ready_us = (double)(mv_now_ns() - start) / 1000;
	r = r ? r : number(d, "/v1/vms/c", "pid", &pid);
	r = r ? r : guest_faults(pid, &ret_run->faults);
	r = r ? r : number(d, "/v1/snapshots/ws", "template.faults", &faults);
	ret_run->faults += r ? 0 : (double)faults;
	for (int i = 0; !r && i < RECORD_STEPS; i++) {
		js *v = daemon_call(d, "GET", "/v1/vms/c", NULL, &r);
		bool recording = js_true(v, "recording");
		js_free(v);
		if (!recording)
			return r ? r : daemon_act(d, "DELETE", "/v1/vms/c", NULL);
		daemon_pause_ms(1);
	}
	return r ? r : -ETIMEDOUT;
}

static int make_snapshot(const struct bench_env *env, struct daemon *d)
{
	char body[1400];
	char *guest = realpath(env->guest, NULL);
	if (!guest)
		return -errno;
	snprintf(body, sizeof body,
		 "{\"name\":\"ws\",\"kernel\":\"%s\",\"memory_mib\":256,\"start\":"
		 "true,"
		 "\"ready\":{\"console\":\"OK 16384\"}}",
		 guest);
	free(guest);
	int r = daemon_act(d, "POST", "/v1/vms", body);
	r = r ? r : daemon_act(d, "PUT", "/v1/vms/ws/console", "fill 0 16384 7\n");
	r = r ? r : daemon_act(d, "GET", "/v1/vms/ws?wait=ready&timeout_ms=120000", NULL);
	// Its input is in the snapshot: clones work at once.
	r = r ? r : daemon_act(d, "POST", "/v1/vms/ws/pause", NULL);
	r = r ? r : daemon_act(d, "PUT", "/v1/vms/ws/console", WORK);
	r = r ? r
	      : daemon_act(d, "POST", "/v1/snapshots", "{\"name\":\"ws\",\"vm\":\"ws\",\"format\":\"lz4\"}");
	return r ? r : daemon_act(d, "DELETE", "/v1/vms/ws", NULL);
}

static int compare(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *lazy = bench_series(
		res, "ready_lazy", "us", "clone request to ready, 750 pages touched, nothing loaded before");
	struct bench_series *with =
		bench_series(res, "ready_ws", "us", "likewise with a working set; its loading is in it");
	struct bench_series *speedup = bench_series(res, "ready_ws_speedup", "ratio", "pairwise");
	struct bench_series *faults =
		bench_series(res, "fault_reduction_ws", "ratio",
			     "faults with the set / without: userfaultfd messages and the vCPU's");
	struct bench_series *first = bench_series(res, "faults_first_resume", "1", "of the latter");
	int r = 0;
	for (int i = 0; !r && i < (env->quick ? 8 : 30); i++) {
		struct run without = { 0 }, set = { 0 }, ignored = { 0 };
		r = daemon_act(d, "DELETE", "/v1/snapshots/ws/working-set", NULL);
		r = r ? r : resume(d, "", &without);
		r = r ? r : resume(d, ",\"record\":{}", &ignored);
		r = r ? r : resume(d, "", &set);
		if (r)
			break;
		bench_add(lazy, without.ready_us);
		bench_add(with, set.ready_us);
		bench_add(speedup, without.ready_us / set.ready_us);
		bench_add(faults, set.faults / without.faults);
		bench_add(first, without.faults);
	}
	return r;
}

int bench_working_set(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	int r = daemon_start(env, &d, NULL);
	r = r ? r : make_snapshot(env, &d);
	r = r ? r : compare(env, &d, res);
	daemon_stop(&d);
	return r;
}
