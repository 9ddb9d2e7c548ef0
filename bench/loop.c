// SPDX-License-Identifier: Apache-2.0
// Does anything keep the daemon's loop to itself? One client after the other connects and asks for GET
// /v1/info while another asks for what grows with the number of VMs: how long do they wait, and how many
// turns of the loop were held for more than 1 ms (thaw_loop_held_seconds)?
#include "bench/bench.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bench/daemon.h"
#include "lib/thaw.h"
#include "microvm/base/util.h"

enum { N = 200 }; // clones

// --- those who ask beside it ---
struct prober {
	pthread_t thread;
	const char *socket;
	struct bench_series *wait;
	bool stop;
	int result;
};

static int probe(const char *path)
{
	static const char request[] = "GET /v1/info HTTP/1.1\r\nHost: thaw\r\nConnection: close\r\n\r\n";
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	char buf[4096];
	ssize_t n;
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || mv_strcpy(a.sun_path, sizeof a.sun_path, path) ||
	    connect(fd, (const struct sockaddr *)&a, sizeof a) ||
	    send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != sizeof request - 1)
		return -errno;
	while ((n = read(fd, buf, sizeof buf)) > 0)
		;
	return n < 0 ? -errno : 0;
}

static void *probe_on(void *arg)
{
	struct prober *p = arg;
	while (!p->result && !__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE)) {
		uint64_t sent = mv_now_ns();
		p->result = probe(p->socket);
		bench_add(p->wait, (double)(mv_now_ns() - sent) / 1000);
		usleep(100);
	}
	return NULL;
}

typedef int act_fn(struct daemon *d);

static int beside(struct daemon *d, struct bench_series *wait, act_fn *act)
{
	struct prober p = { .socket = d->socket, .wait = wait };
	int r = -pthread_create(&p.thread, NULL, probe_on, &p);
	if (r)
		return r;
	r = act(d);
	__atomic_store_n(&p.stop, true, __ATOMIC_RELEASE);
	pthread_join(p.thread, NULL);
	return r ? r : p.result;
}

// --- what they ask beside ---
static int clone_all(struct daemon *d)
{
	char body[60];
	snprintf(body, sizeof body, "{\"count\":%d,\"name_prefix\":\"c\"}", N);
	return daemon_act(d, "POST", "/v1/snapshots/snap/clone", body);
}

static int list(struct daemon *d) { return daemon_act(d, "GET", "/v1/vms", NULL); }
static int metrics(struct daemon *d) { return daemon_act(d, "GET", "/v1/metrics?per_vm=true", NULL); }

static int delete_all(struct daemon *d)
{
	char path[40];
	int r = 0;
	for (int i = 1; !r && i <= N; i++) {
		snprintf(path, sizeof path, "/v1/vms/c-%d", i);
		r = daemon_act(d, "DELETE", path, NULL);
	}
	return r;
}

static const struct {
	const char *name, *what;
	act_fn *act;
} acts[] = {
	{ "loop_wait_clone_200", "connect, GET /v1/info, answer, while one call makes 200 clones",
	  clone_all },
	{ "loop_wait_list_200", "the same while GET /v1/vms lists them", list },
	{ "loop_wait_metrics_200", "the same while GET /v1/metrics?per_vm=true asks them", metrics },
	{ "loop_wait_delete_200", "the same while they are deleted, one after the other", delete_all },
};

// --- turns ---
static int count_turns(struct daemon *d, double *ret_all, double *ret_held)
{
	static const char within[] = "\nthaw_loop_held_seconds_bucket{le=\"0.001\"} ",
			  all[] = "\nthaw_loop_held_seconds_count ";
	struct thaw_request q = THAW_REQUEST_INIT;
	struct thaw_reply *reply = NULL;
	size_t len;
	q.method = "GET";
	q.path = "/v1/metrics";
	int r = thaw_request(d->client, &q, &reply);
	if (r)
		return r;
	const char *text = thaw_reply_body(reply, &len), *a = strstr(text, within), *b = strstr(text, all);
	if (a && b) {
		*ret_all = strtod(b + sizeof all - 1, NULL);
		*ret_held = *ret_all - strtod(a + sizeof within - 1, NULL);
	}
	thaw_reply_free(reply);
	return a && b ? 0 : -ENOENT;
}

static int make_snapshot(const struct bench_env *env, struct daemon *d)
{
	char body[1400];
	MV_FREE char *guest = realpath(env->guest, NULL);
	if (!guest)
		return -errno;
	snprintf(body, sizeof body,
		 "{\"name\":\"source\",\"kernel\":\"%s\",\"memory_mib\":32,"
		 "\"start\":true}",
		 guest);
	int r = daemon_act(d, "POST", "/v1/vms", body);
	r = r ? r : daemon_act(d, "POST", "/v1/snapshots", "{\"name\":\"snap\",\"vm\":\"source\"}");
	return r ? r
		 : daemon_act(d, "POST", "/v1/snapshots/snap/clone", "{\"clones\":[{\"name\":\"first\"}]}");
}

int bench_loop(const struct bench_env *env, struct bench_results *res)
{
	struct daemon d = { 0 };
	struct bench_series *wait[MV_ARRAY_LEN(acts)];
	double all = 0, held = 0;
	for (size_t i = 0; i < MV_ARRAY_LEN(acts); i++)
		wait[i] = bench_series(res, acts[i].name, "us", acts[i].what);
	struct bench_series *held_turns = bench_series(res, "loop_held_turns", "turns",
						       "turns of the loop held for more than 1 ms meanwhile"),
			    *turns = bench_series(res, "loop_turns", "turns", "of so many");
	int r = daemon_start(env, &d, NULL);
	r = r ? r : make_snapshot(env, &d);
	for (int round = 0; !r && round < (env->quick ? 2 : 10); round++)
		for (size_t i = 0; !r && i < MV_ARRAY_LEN(acts); i++)
			r = beside(&d, wait[i], acts[i].act);
	r = r ? r : count_turns(&d, &all, &held);
	if (!r) {
		bench_add(held_turns, held);
		bench_add(turns, all);
	}
	daemon_stop(&d);
	return r;
}
