// SPDX-License-Identifier: Apache-2.0
// Cold clones through the daemon: request sent to the guest's first I/O, teardown,
// the API's own share, and what an idle clone costs the host.
#include "bench/bench.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/client.h"
#include "api/json.h"
#include "microvm/base/util.h"

#define WAIT_STEPS 2000 // of 5 ms: the bound of every wait

extern char **environ;

struct daemon {
	pid_t pid;
	char dir[600], socket[700];
	struct client *client;
};

static void pause_ms(int ms) { poll(NULL, 0, ms); }

static void remove_tree(const char *dir)
{
	char path[1400];
	DIR *d = opendir(dir);
	for (struct dirent *e; d && (e = readdir(d));) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (unlink(path) && errno == EISDIR)
			remove_tree(path);
	}
	if (d)
		closedir(d);
	rmdir(dir);
}

// One call that must succeed; the answer (NULL on failure, or when it has no body).
static js *call(struct daemon *d, const char *method, const char *path, const char *body, int *ret)
{
	struct client_reply r = { 0 };
	struct mv_err err = { 0 };
	struct api_err parse_err;
	js *v = NULL;

	*ret = client_call(d->client, method, path, body, body ? strlen(body) : 0, &r, &err);
	if (*ret)
		fprintf(stderr, "bench: %s %s: %s\n", method, path, err.msg);
	else if (r.status >= 300) {
		fprintf(stderr, "bench: %s %s: %u %s\n", method, path, r.status, r.body ? r.body : "");
		*ret = -EIO;
	} else if (r.len && r.body[0] == '{')
		v = js_parse(r.body, r.len, &parse_err);
	client_reply_fini(&r);
	return v;
}

static int act(struct daemon *d, const char *method, const char *path, const char *body)
{
	int r;
	js_free(call(d, method, path, body, &r));
	return r;
}

static int start(const struct bench_env *env, struct daemon *d)
{
	char program[1100], state[1400];
	struct mv_err err = { 0 };

	snprintf(d->dir, sizeof d->dir, "%.500s/rest-XXXXXX", env->out);
	if (!mkdtemp(d->dir))
		return -errno;
	snprintf(d->socket, sizeof d->socket, "%s/thaw.sock", d->dir);
	snprintf(state, sizeof state, "%s/state", d->dir);
	snprintf(program, sizeof program, "%s/thawd", env->bin);
	char *argv[] = { program, "--socket", d->socket, "--state-dir", state, "--log-level", "error", NULL };
	int r = posix_spawn(&d->pid, program, NULL, NULL, argv, environ);
	if (r)
		return -r;
	r = client_new(d->socket, &d->client, &err);
	for (int i = 0; !r && i < WAIT_STEPS && access(d->socket, F_OK); i++)
		pause_ms(5);
	return r;
}

static void stop(struct daemon *d)
{
	client_free(d->client);
	if (d->pid > 0) {
		kill(d->pid, SIGTERM);
		waitpid(d->pid, NULL, 0);
	}
	if (d->dir[0])
		remove_tree(d->dir);
}

// The VM's time of first I/O, relative to ret_zero_ns (CLOCK_MONOTONIC). The daemon hears of
// it by an event, so ask until it is there.
static int first_io(struct daemon *d, const char *name, uint64_t *ret_zero_ns, double *ret_us)
{
	char path[200];
	int r = 0;
	snprintf(path, sizeof path, "/v1/vms/%s", name);
	for (int i = 0; !r && i < WAIT_STEPS; i++) {
		js *v = call(d, "GET", path, NULL, &r);
		int64_t us = js_int(v, "timing_us.first_io", -1);
		*ret_zero_ns = (uint64_t)js_int(v, "timing_zero_ns", 0);
		js_free(v);
		if (us >= 0) {
			*ret_us = (double)us;
			return 0;
		}
		pause_ms(1);
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
		 "{\"name\":\"source\",\"kernel\":\"%s\",\"discovery\":\"cmdline\","
		 "\"cmdline\":\"thaw.genid=0xfe000\",\"start\":true}",
		 guest);
	free(guest);
	int r = act(d, "POST", "/v1/vms", body);
	r = r ? r : first_io(d, "source", &zero, &us);
	r = r ? r : act(d, "POST", "/v1/snapshots", "{\"name\":\"snap\",\"vm\":\"source\"}");
	// The first clone also pays for the check of the memory file; it is not counted.
	r = r ? r : act(d, "POST", "/v1/snapshots/snap/clone", "{\"clones\":[{\"name\":\"first\"}]}");
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
		r = act(d, "POST", "/v1/snapshots/snap/clone", "{\"clones\":[{\"name\":\"c\"}]}");
		bench_add(answer, (double)(mv_now_ns() - sent) / 1000);
		if (r || (r = first_io(d, "c", &zero, &us)))
			break;
		bench_add(total, us + (double)(zero - sent) / 1000);
		sent = mv_now_ns();
		r = act(d, "DELETE", "/v1/vms/c", NULL);
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
	int r = act(d, "POST", "/v1/snapshots",
		    "{\"name\":\"snap-lz4\",\"vm\":\"source\",\"format\":\"lz4\"}");
	r = r ? r : act(d, "POST", "/v1/snapshots/snap-lz4/prepare", "{\"wait\":true}");
	for (int i = 0; !r && i < env->samples; i++) {
		double us[2];
		for (int k = 0; !r && k < 2; k++) {
			uint64_t zero = 0, sent = mv_now_ns();
			r = act(d, "POST", path[k], "{\"clones\":[{\"name\":\"z\"}]}");
			r = r ? r : first_io(d, "z", &zero, &us[k]);
			us[k] += (double)(zero - sent) / 1000;
			r = r ? r : act(d, "DELETE", "/v1/vms/z", NULL);
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
		r = act(d, "GET", "/v1/info", NULL);
		bench_add(s, (double)(mv_now_ns() - sent) / 1000);
	}
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

static int density(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *s = bench_series(res, "idle_clone_all_in", "bytes",
					      "MemAvailable difference / number of idle clones");
	int n = env->quick ? 50 : 200;
	char body[100];
	double before = mem_available();
	snprintf(body, sizeof body, "{\"count\":%d,\"name_prefix\":\"idle\"}", n);
	int r = act(d, "POST", "/v1/snapshots/snap/clone", body);
	pause_ms(300); // let the last ones become idle
	bench_add(s, (before - mem_available()) / n);
	return r;
}

int bench_rest(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	int r = start(env, &d);
	r = r ? r : make_snapshot(env, &d);
	r = r ? r : cold_clones(env, &d, res);
	r = r ? r : lz4_clones(env, &d, res);
	r = r ? r : overhead(env, &d, res);
	r = r ? r : density(env, &d, res);
	stop(&d);
	return r;
}
