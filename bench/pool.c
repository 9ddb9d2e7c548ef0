// SPDX-License-Identifier: Apache-2.0
// Clones that were made in advance, through the daemon: a claim's way from the request to the
// guest's first I/O, alone, while others end, and among a thousand; a thousand at once; claims
// in a row; what an idle clone costs the host, beside a bare VM; forks of a running VM.
#include "bench/bench.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bench/daemon.h"
#include "lib/thaw.h"
#include "microvm/base/util.h"

enum {
	THOUSAND = 1000,
	WAIT_STEPS = 20000, // of 1 ms: the bound of every wait
	IDLE = 100,
	POOL = 16,
};

static const char prepare_path[] = "/v1/snapshots/snap/prepare", clone_path[] = "/v1/snapshots/snap/clone";

static int make_snapshot(const struct bench_env *env, struct daemon *d)
{
	char body[1400];
	char *guest = realpath(env->guest, NULL);
	if (!guest)
		return -errno;
	snprintf(body, sizeof body,
		 "{\"name\":\"source\",\"kernel\":\"%s\",\"memory_mib\":128,"
		 "\"cmdline\":\"thaw.genid=0xfe000\",\"start\":true}",
		 guest);
	free(guest);
	int r = daemon_act(d, "POST", "/v1/vms", body);
	for (int i = 0; !r && i < WAIT_STEPS; i++) {
		js *v = daemon_call(d, "GET", "/v1/vms/source", NULL, &r);
		bool there = js_int(v, "timing_us.first_io", -1) >= 0;
		js_free(v);
		if (there)
			return daemon_act(d, "POST", "/v1/snapshots",
					  "{\"name\":\"snap\",\"vm\":\"source\"}");
		daemon_pause_ms(1);
	}
	return r ? r : -ETIMEDOUT;
}

static int fill_pool(struct daemon *d, unsigned n)
{
	char body[80];
	snprintf(body, sizeof body, "{\"pool\":{\"size\":%u},\"wait\":true}", n);
	return daemon_act(d, "POST", prepare_path, body);
}

static int wait_full(struct daemon *d)
{
	int r = 0;
	for (int i = 0; !r && i < WAIT_STEPS; i++) {
		js *v = daemon_call(d, "GET", "/v1/snapshots/snap", NULL, &r);
		bool full = js_int(v, "pool.ready", -1) >= js_int(v, "pool.target", 0);
		js_free(v);
		if (r || full)
			return r;
		daemon_pause_ms(1);
	}
	return r ? r : -ETIMEDOUT;
}

struct claim {
	double total_us, inproc_us; // request sent to first I/O; order received to KVM_RUN
};

// One clone named c, its times, and its end.
static int claim(struct daemon *d, bool prepared, struct claim *ret)
{
	uint64_t sent = mv_now_ns();
	int r;
	js *v = daemon_call(d, "POST", clone_path, "{\"clones\":[{\"name\":\"c\"}]}", &r);
	js *first = js_at(js_get(v, "clones"), 0);
	if (!r && js_true(first, "prepared") != prepared)
		r = -EPROTO;
	js_free(v);
	for (int i = 0; !r && i < WAIT_STEPS; i++) {
		v = daemon_call(d, "GET", "/v1/vms/c", NULL, &r);
		int64_t io = js_int(v, "timing_us.first_io", -1);
		int64_t run = js_int(v, "timing_us.running", -1), order = js_int(v, "timing_us.ordered", -1);
		uint64_t zero = (uint64_t)js_int(v, "timing_zero_ns", 0);
		js_free(v);
		if (io >= 0) {
			*ret = (struct claim){ (double)io + (double)(zero - sent) / 1000,
					       (double)(run - order) };
			return daemon_act(d, "DELETE", "/v1/vms/c", NULL);
		}
		daemon_pause_ms(1);
	}
	return r ? r : -ETIMEDOUT;
}

static int claims(struct daemon *d, int n, struct bench_series *total, struct bench_series *inproc)
{
	struct claim c;
	int r = 0;
	for (int i = 0; !r && i < n; i++) {
		r = wait_full(d);
		daemon_pause_ms(5); // the ends of the one before and of the refill
		r = r ? r : claim(d, true, &c);
		if (r)
			break;
		bench_add(total, c.total_us);
		if (inproc)
			bench_add(inproc, c.inproc_us);
	}
	return r;
}

// What a clone touches in its first moments.
static int record(struct daemon *d)
{
	int r = daemon_act(d, "POST", clone_path,
			   "{\"clones\":[{\"name\":\"rec\",\"record\":{\"limit_ms\":200}}]}");
	for (int i = 0; !r && i < WAIT_STEPS; i++) {
		js *v = daemon_call(d, "GET", "/v1/snapshots/snap", NULL, &r);
		bool there = js_get(v, "working_set");
		js_free(v);
		if (there)
			return daemon_act(d, "DELETE", "/v1/vms/rec", NULL);
		daemon_pause_ms(1);
	}
	return r ? r : -ETIMEDOUT;
}

static int alone(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *plain = bench_series(res, "clone_prepared_total_plain", "us",
						  "the next without a recorded working set");
	struct bench_series *total =
		bench_series(res, "clone_prepared_total", "us", "REST request sent to first I/O, of a pool");
	struct bench_series *inproc = bench_series(res, "clone_prepared_inproc", "us",
						   "order received by the VM process to KVM_RUN entered");
	int r = fill_pool(d, POOL);
	r = r ? r : claims(d, env->samples, plain, NULL);
	r = r ? r : record(d);
	r = r ? r : fill_pool(d, POOL);
	return r ? r : claims(d, env->samples, total, inproc);
}

// Ten clones are being ended while one is claimed.
static int beside_teardown(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *total = bench_series(res, "clone_prepared_total_teardown", "us",
						  "the same while 10 clones are ended");
	char path[64];
	struct claim c;
	int r = 0;
	for (int i = 0; !r && i < env->samples / 2; i++) {
		r = daemon_act(d, "POST", clone_path, "{\"count\":10,\"name_prefix\":\"old\"}");
		r = r ? r : wait_full(d);
		for (int k = 1; !r && k <= 10; k++) { // kill, so that the answer does not wait for the end
			snprintf(path, sizeof path, "/v1/vms/old-%d/stop", k);
			r = daemon_act(d, "POST", path, "{\"mode\":\"kill\"}");
		}
		r = r ? r : claim(d, true, &c);
		if (!r)
			bench_add(total, c.total_us);
		for (int k = 1; !r && k <= 10; k++) {
			snprintf(path, sizeof path, "/v1/vms/old-%d", k);
			r = daemon_act(d, "DELETE", path, NULL);
		}
	}
	return r;
}

// --- claim, run, end, again and again ---
struct row {
	pthread_t thread;
	struct daemon d; // the same one, over a connection of its own
	unsigned number;
	int n, result;
};

static void *run_row(void *arg)
{
	struct row *w = arg;
	char body[64], path[64];
	snprintf(body, sizeof body, "{\"clones\":[{\"name\":\"r%u\"}]}", w->number);
	snprintf(path, sizeof path, "/v1/vms/r%u", w->number);
	for (int i = 0; !w->result && i < w->n; i++) {
		w->result = daemon_act(&w->d, "POST", clone_path, body);
		w->result = w->result ? w->result : daemon_act(&w->d, "DELETE", path, NULL);
	}
	return NULL;
}

static int in_a_row(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *rate = bench_series(res, "clone_rate_sustained", "1/s",
						 "claim, run, delete until gone, over 4 connections");
	struct row row[4];
	int r = fill_pool(d, POOL), n = env->quick ? 100 : 500;
	unsigned started = 0;
	uint64_t start = mv_now_ns();
	for (; !r && started < MV_ARRAY_LEN(row); started++) {
		struct row *w = &row[started];
		*w = (struct row){ .d = *d, .number = started, .n = n };
		r = thaw_open(d->socket, &w->d.client);
		if (!r && (r = -pthread_create(&w->thread, NULL, run_row, w)))
			thaw_close(w->d.client);
		if (r)
			break;
	}
	for (unsigned i = 0; i < started; i++) {
		pthread_join(row[i].thread, NULL);
		thaw_close(row[i].d.client);
		r = r ? r : row[i].result;
	}
	if (!r)
		bench_add(rate, started * n * 1e9 / (double)(mv_now_ns() - start));
	return r;
}

static double mem_available(void)
{
	char line[128];
	double kib = 0;
	FILE *f = fopen("/proc/meminfo", "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "MemAvailable: %lf kB", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib * 1024;
}

// The last clone's first I/O, in microseconds since sent.
static int last_first_io(struct daemon *d, unsigned n, uint64_t sent, double *ret_us)
{
	int r = 0;
	for (int i = 0; !r && i < WAIT_STEPS / 10; i++) {
		js *v = daemon_call(d, "GET", "/v1/vms", NULL, &r), *list = js_get(v, "vms");
		unsigned there = 0;
		*ret_us = 0;
		for (size_t k = 0; k < js_len(list); k++) {
			js *vm = js_at(list, k);
			int64_t io = js_int(vm, "timing_us.first_io", -1);
			uint64_t zero = (uint64_t)js_int(vm, "timing_zero_ns", 0);
			if (strncmp(js_str(vm, "name", ""), "burst-", 6) || io < 0)
				continue;
			double us = (double)io + (double)(zero - sent) / 1000;
			there++;
			*ret_us = us > *ret_us ? us : *ret_us;
		}
		js_free(v);
		if (r || there == n)
			return r;
		daemon_pause_ms(10);
	}
	return r ? r : -ETIMEDOUT;
}

static int end_burst(struct daemon *d, unsigned n)
{
	char path[64];
	int r = 0;
	for (unsigned k = 1; !r && k <= n; k++) {
		snprintf(path, sizeof path, "/v1/vms/burst-%u/stop", k);
		r = daemon_act(d, "POST", path, "{\"mode\":\"kill\"}");
	}
	for (unsigned k = 1; !r && k <= n; k++) {
		snprintf(path, sizeof path, "/v1/vms/burst-%u", k);
		r = daemon_act(d, "DELETE", path, NULL);
	}
	return r;
}

static int burst_of(struct daemon *d, unsigned n, const char *more, struct bench_series *s)
{
	char body[100];
	snprintf(body, sizeof body, "{\"count\":%u,\"name_prefix\":\"burst\"%s}", n, more);
	uint64_t sent = mv_now_ns();
	double us;
	int r = daemon_act(d, "POST", clone_path, body);
	r = r ? r : last_first_io(d, n, sent, &us);
	if (!r && s)
		bench_add(s, us);
	return r;
}

static int burst(struct daemon *d, unsigned n, struct bench_series *s) { return burst_of(d, n, "", s); }

// Memory comes back for a while after its VM has ended: waits until as much is there as before, but for a
// hundredth; not for long, since others may have taken it.
static double memory_back(double before)
{
	double now = mem_available();
	for (int i = 0; i < 100 && now < before - 0.01 * before; i++) {
		daemon_pause_ms(100);
		now = mem_available();
	}
	return now;
}

// Processes with nothing but one restored VM each: what no monitor can save.
static int idle_floor(struct bench_floor *floor, unsigned n, double at_start, double *ret_bytes)
{
	static pid_t pids[THOUSAND];
	double before = memory_back(at_start);
	int r = bench_floor_hold(floor, n, pids);
	if (r)
		return r;
	daemon_pause_ms(1000);
	*ret_bytes = (before - mem_available()) / n;
	bench_floor_release(pids, n);
	return 0;
}

static int idle_clones(struct daemon *d, unsigned n, double at_start, struct bench_series *cold,
		       double *ret_bytes)
{
	double before = memory_back(at_start);
	int r = burst(d, n, cold);
	daemon_pause_ms(1000); // let the last ones become idle
	*ret_bytes = (before - mem_available()) / n;
	return r;
}

// The same of clones that have given their KVM VMs back.
static int idle_parked(struct daemon *d, unsigned n, double at_start, double *ret_bytes)
{
	double before = memory_back(at_start);
	int r = burst_of(d, n, ",\"idle_park_ms\":200", NULL);
	for (unsigned k = 1, i = 0; !r && k <= n && i < WAIT_STEPS; i++) {
		char path[64];
		snprintf(path, sizeof path, "/v1/vms/burst-%u", k);
		js *v = daemon_call(d, "GET", path, NULL, &r);
		if (js_true(v, "parking.parked"))
			k++;
		else
			daemon_pause_ms(10);
		js_free(v);
		if (i == WAIT_STEPS - 1)
			r = -ETIMEDOUT;
	}
	daemon_pause_ms(1000);
	*ret_bytes = (before - mem_available()) / n;
	return r;
}

// A line to a guest's console, and its answer: 2 ms of it are the daemon's wait for the rest of a line.
static int console_echo(struct daemon *d, const char *vm, uint64_t *offset, struct bench_series *s)
{
	static const char line[] = "echo 0123456789\n", answer[] = "OK 0123456789\n";
	uint64_t sent = mv_now_ns(), end = *offset + sizeof answer - 1;
	int r = thaw_console_write(d->client, vm, line, sizeof line - 1);
	while (!r && *offset < end) {
		uint64_t before = *offset;
		r = thaw_console_read(d->client, vm, offset, 5000, NULL);
		r = r || *offset > before ? r : -ETIMEDOUT;
	}
	if (!r)
		bench_add(s, (double)(mv_now_ns() - sent) / 1000);
	return r;
}

// Parked clones are spoken to, twice each: the first time they have to be woken.
static int wakes(struct daemon *d, unsigned n, struct bench_results *res)
{
	struct bench_series *first =
		bench_labelled(res, "console_echo", "us", "{\"parked\":true}",
			       "REST: a line to a parked clone's console, and its answer");
	struct bench_series *again =
		bench_labelled(res, "console_echo", "us", "{\"parked\":false}", "the same again, at once");
	int r = 0;
	for (unsigned k = 1; !r && k <= n; k++) {
		char vm[32];
		uint64_t offset = 0;
		snprintf(vm, sizeof vm, "burst-%u", k);
		r = thaw_console_read(d->client, vm, &offset, 0, NULL);
		r = r ? r : console_echo(d, vm, &offset, first);
		r = r ? r : console_echo(d, vm, &offset, again);
	}
	return r;
}

// N clones, N bare VMs and N parked clones in turns; leaves the last clones running.
static int idle_memory(const struct bench_env *env, struct daemon *d, unsigned n, struct bench_series *cold,
		       struct bench_results *res)
{
	const int rounds = env->quick ? 1 : 3;
	const char *label = n == THOUSAND ? "{\"clones\":1000}" : "{\"clones\":100}";
	struct bench_series *all = bench_labelled(res, "idle_clone_all_in", "bytes", label,
						  "MemAvailable difference / idle clones of 128 MiB");
	struct bench_series *bare =
		bench_labelled(res, "idle_vm_floor", "bytes", label,
			       "the same of processes with nothing but one restored KVM VM");
	struct bench_series *over =
		bench_labelled(res, "idle_clone_over_floor", "bytes", label, "what thaw adds, pairwise");
	struct bench_series *given_back = bench_labelled(res, "parked_clone_all_in", "bytes", label,
							 "the first, of clones that are parked");
	struct bench_floor *floor = NULL;
	double vm = 0, clone = 0, parked = 0;
	int r = bench_floor_prepare(env->guest, env->out, &floor);
	if (r == -ENOTSUP)
		r = 0;         // an architecture without one
	daemon_pause_ms(1500); // the ends of what ran before
	double at_start = mem_available();
	for (int i = 0; !r && i < rounds; i++) {
		r = i ? end_burst(d, n) : 0;
		r = r || !floor ? r : idle_floor(floor, n, at_start, &vm);
		r = r ? r : idle_parked(d, n, at_start, &parked);
		r = r || i ? r : wakes(d, n, res);
		r = r ? r : end_burst(d, n);
		r = r ? r : idle_clones(d, n, at_start, cold, &clone);
		if (r)
			break;
		bench_add(all, clone);
		bench_add(given_back, parked);
		if (floor) {
			bench_add(bare, vm);
			bench_add(over, clone - vm);
		}
	}
	bench_floor_free(floor);
	return r;
}

static int thousand(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *among = bench_series(res, "clone_prepared_total_at_1000", "us",
						  "clone_prepared_total with 1,000 VMs running");
	struct bench_series *cold = bench_labelled(res, "clone_burst_1000", "us", "{\"pool\":0}",
						   "one request to the last of 1,000 first I/Os");
	struct bench_series *pooled =
		bench_labelled(res, "clone_burst_1000", "us", "{\"pool\":1000}", "the same, all of a pool");
	int r = daemon_act(d, "DELETE", prepare_path, NULL);
	r = r ? r : idle_memory(env, d, THOUSAND, cold, res);
	r = r ? r : fill_pool(d, POOL);
	r = r ? r : claims(d, env->samples, among, NULL);
	r = r ? r : end_burst(d, THOUSAND);
	r = r ? r : fill_pool(d, THOUSAND);
	r = r ? r : burst(d, THOUSAND, pooled);
	r = r ? r : daemon_act(d, "DELETE", prepare_path, NULL);
	return r ? r : end_burst(d, THOUSAND);
}

static int forks(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *pause =
		bench_labelled(res, "fork_live_pause", "us", "{\"memory_mib\":128,\"dirty\":\"small\"}",
			       "a running VM forked: how long it stood still");
	struct bench_series *total =
		bench_series(res, "fork_live_total", "us", "REST request sent to the fork's first I/O");
	int r = 0;
	for (int i = 0; !r && i < env->samples / 2; i++) {
		uint64_t sent = mv_now_ns();
		js *v = daemon_call(d, "POST", "/v1/vms/source/clone", "{\"clones\":[{\"name\":\"f\"}]}", &r);
		int64_t us = js_int(v, "pause_us", -1), io = -1;
		js_free(v);
		for (int k = 0; !r && io < 0 && k < WAIT_STEPS; k++) {
			v = daemon_call(d, "GET", "/v1/vms/f", NULL, &r);
			io = js_int(v, "timing_us.first_io", -1);
			if (io >= 0)
				bench_add(total,
					  (double)io +
						  (double)((uint64_t)js_int(v, "timing_zero_ns", 0) - sent) /
							  1000);
			js_free(v);
		}
		if (!r)
			bench_add(pause, (double)us);
		r = r ? r : daemon_act(d, "DELETE", "/v1/vms/f", NULL);
	}
	return r;
}

// By a daemon of its own, which keeps CPUs awake.
static int awake(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	if (access("/dev/cpu_dma_latency", W_OK)) {
		fprintf(stderr, "bench: no clone_prepared_total_awake: /dev/cpu_dma_latency: %s\n",
			strerror(errno));
		return 0;
	}
	struct bench_series *total = bench_series(res, "clone_prepared_total_awake", "us",
						  "clone_prepared_total by thawd --cpu-latency 0");
	int r = daemon_start(env, &d, "--cpu-latency=0");
	r = r ? r : make_snapshot(env, &d);
	r = r ? r : fill_pool(&d, POOL);
	r = r ? r : record(&d);
	r = r ? r : fill_pool(&d, POOL);
	r = r ? r : claims(&d, env->samples, total, NULL);
	daemon_stop(&d);
	return r;
}

int bench_pool(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	int r = daemon_start(env, &d, NULL);
	r = r ? r : make_snapshot(env, &d);
	r = r ? r : alone(env, &d, res);
	r = r ? r : beside_teardown(env, &d, res);
	r = r ? r : in_a_row(env, &d, res);
	r = r ? r : thousand(env, &d, res);
	r = r ? r : forks(env, &d, res);
	daemon_stop(&d);
	return r ? r : awake(env, res);
}

// Where a thousand would be too many: only what an idle clone costs.
int bench_idle(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	int r = daemon_start(env, &d, NULL);
	r = r ? r : make_snapshot(env, &d);
	r = r ? r : idle_memory(env, &d, IDLE, NULL, res);
	r = r ? r : end_burst(&d, IDLE);
	daemon_stop(&d);
	return r;
}
