// SPDX-License-Identifier: Apache-2.0
// Raw sockets and one poll loop, so that the client costs little beside the daemon; what the daemon can do is
// told by its own CPU time, since the client shares the machine with it.
#include "bench/api_load.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "microvm/base/util.h"

#define CONNECTIONS 64
#define ROUND 2000 // requests
#define STALL_MS 5000
#define PACE_NS 500000 // 2,000 requests a second: some part of what one core can answer

static const char request[] = "GET /v1/info HTTP/1.1\r\nHost: thaw\r\n\r\n";

struct load {
	struct pollfd p[CONNECTIONS];
	uint64_t sent_ns[CONNECTIONS]; // 0: none is in flight
	char answer[CONNECTIONS][4096];
	size_t len[CONNECTIONS];
};

static int ask(struct load *l, unsigned i)
{
	l->len[i] = 0;
	l->sent_ns[i] = mv_now_ns();
	return mv_write_full(l->p[i].fd, request, sizeof request - 1);
}

static int open_all(struct load *l, const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (mv_strcpy(a.sun_path, sizeof a.sun_path, path))
		return -ENAMETOOLONG;
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		l->p[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		l->p[i].events = POLLIN;
		if (l->p[i].fd < 0 || connect(l->p[i].fd, (const struct sockaddr *)&a, sizeof a))
			return -errno;
	}
	return 0;
}

// 1: the answer is there; 0: not yet.
static int take(struct load *l, unsigned i)
{
	char *text = l->answer[i];
	ssize_t n = recv(l->p[i].fd, text + l->len[i], sizeof l->answer[i] - 1 - l->len[i], 0);
	if (n <= 0)
		return n ? -errno : -EPIPE;
	l->len[i] += (size_t)n;
	text[l->len[i]] = 0;
	const char *body = strstr(text, "\r\n\r\n"), *length = strstr(text, "Content-Length: ");
	if (!body)
		return 0;
	if (strncmp(text, "HTTP/1.1 200 ", 13) != 0 || !length)
		return -EPROTO;
	size_t whole = (size_t)(body + 4 - text) + strtoull(length + strlen("Content-Length: "), NULL, 10);
	return whole >= sizeof l->answer[i] ? -EMSGSIZE : l->len[i] >= whole;
}

static int one_round(struct load *l, struct bench_series *latency)
{
	unsigned sent = 0, done = 0;
	int r = 0;
	for (; !r && sent < CONNECTIONS; sent++)
		r = ask(l, sent);
	while (!r && done < ROUND) {
		int n = poll(l->p, CONNECTIONS, STALL_MS);
		if (n <= 0)
			return n ? -errno : -ETIMEDOUT;
		for (unsigned i = 0; r >= 0 && i < CONNECTIONS; i++) {
			if (!l->p[i].revents || !(r = take(l, i)) || r < 0)
				continue;
			bench_add(latency, (double)(mv_now_ns() - l->sent_ns[i]) / 1000);
			done++;
			r = sent < ROUND ? ask(l, i) : 0;
			sent++;
		}
		r = r < 0 ? r : 0;
	}
	return r;
}

static int take_all(struct load *l, struct bench_series *latency)
{
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		int r = l->p[i].revents ? take(l, i) : 0;
		if (r < 0)
			return r;
		if (r)
			bench_add(latency, (double)(mv_now_ns() - l->sent_ns[i]) / 1000);
		if (r)
			l->sent_ns[i] = 0;
	}
	return 0;
}

// At the pace's times, one connection after the other. A request counts from when it was to be sent, so an
// answer that is late makes those behind it late as well.
static int paced_round(struct load *l, struct bench_series *latency)
{
	uint64_t due = mv_now_ns() + PACE_NS;
	memset(l->sent_ns, 0, sizeof l->sent_ns);
	for (unsigned n = 0; n < ROUND + CONNECTIONS; due += PACE_NS, n++) {
		unsigned i = n % CONNECTIONS;
		bool last = n >= ROUND; // only wait for the answer
		for (;;) {
			uint64_t now = mv_now_ns();
			bool wait = l->sent_ns[i] || (now < due && !last);
			uint64_t left = l->sent_ns[i] ? STALL_MS * 1000000ull : due - now;
			struct timespec t = { (time_t)(left / 1000000000u), (long)(left % 1000000000u) };
			if (!wait)
				break;
			int k = ppoll(l->p, CONNECTIONS, &t, NULL);
			if (k < 0 || (!k && l->sent_ns[i]))
				return k ? -errno : -ETIMEDOUT;
			k = k ? take_all(l, latency) : 0;
			if (k)
				return k;
		}
		int r = last ? 0 : ask(l, i);
		if (r)
			return r;
		l->sent_ns[i] = last ? 0 : due;
	}
	return 0;
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int bench_api_load(const struct bench_env *env, struct daemon *d, struct bench_results *res)
{
	struct bench_series *latency = bench_series(
		res, "api_saturated_64", "us", "GET /v1/info, 64 connections, each always with a request");
	struct bench_series *paced = bench_series(res, "api_overhead_64", "us",
						  "GET /v1/info, 2,000 a second over 64 connections");
	struct bench_series *rate = bench_series(res, "api_rate", "1/s", "all at once, answers");
	struct bench_series *core =
		bench_series(res, "api_rate_core", "1/s", "the same, answers per second of the daemon's CPU");
	MV_FREE struct load *l = calloc(1, sizeof *l);
	clockid_t cpu;
	if (!l)
		return -ENOMEM;
	for (unsigned i = 0; i < CONNECTIONS; i++)
		l->p[i].fd = -1;
	int r = clock_getcpuclockid(d->pid, &cpu);
	r = r ? -r : open_all(l, d->socket);
	for (int i = 0; !r && i < (env->quick ? 2 : 10); i++)
		r = paced_round(l, paced);
	for (int i = 0; !r && i < (env->quick ? 5 : 20); i++) {
		uint64_t began = mv_now_ns(), used = clock_ns(cpu);
		if ((r = one_round(l, latency)))
			break;
		bench_add(rate, ROUND * 1e9 / (double)(mv_now_ns() - began));
		bench_add(core, ROUND * 1e9 / (double)(clock_ns(cpu) - used));
	}
	for (unsigned i = 0; i < CONNECTIONS; i++)
		mv_close(&l->p[i].fd);
	if (r)
		fprintf(stderr, "bench: GET /v1/info by %d connections: %s\n", CONNECTIONS, strerror(-r));
	return r;
}
