// SPDX-License-Identifier: Apache-2.0
#include "api/fc/work.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "api/fc/routes.h"
#include "microvm/base/util.h"

void fc_work_add(struct fc *fc, struct http_req *q)
{
	if (fc->work.n_waiting < FC_MAX_CONNECTIONS) // each connection has one at most
		fc->work.waiting[fc->work.n_waiting++] = q;
	else
		http_reply(q, 503, NULL, NULL, 0, NULL, 0);
}

static void do_first(struct fc *fc)
{
	struct fc_work *w = &fc->work;
	struct http_req *q = w->waiting[0];
	memmove(w->waiting, w->waiting + 1, --w->n_waiting * sizeof w->waiting[0]);
	fc_answer(fc, q);
	mv_loop_settle(&fc->loop); // which may bring the next one
}

static void flush_metrics(struct fc *fc)
{
	struct api_err err;
	if (MV_TAKE_AS(fc->work.flush_due, false) && fc_metrics_flush(fc, &err))
		fc_log(fc, FC_ERROR, "Failed to flush metrics: %s", err.msg);
}

int fc_work(struct fc *fc)
{
	int r = 0;
	while (!r && !fc->end && !fc->signal && !fc->vmm.exited) {
		flush_metrics(fc);
		if (fc->work.n_waiting)
			do_first(fc);
		else
			r = mv_loop_turn(&fc->loop);
	}
	fc->end = true;
	while (fc->work.n_waiting)
		do_first(fc);
	return r;
}

struct aside {
	int (*fn)(void *arg);
	void *arg;
	int result, fd; // fd: readable when it is over
	bool over;
	struct mv_watch watch;
};

static void *run_aside(void *arg)
{
	struct aside *a = arg;
	uint64_t one = 1;
	a->result = a->fn(a->arg);
	ssize_t n = write(a->fd, &one, sizeof one); // an eventfd at 0 takes it
	(void)n;
	return NULL;
}

static void on_over(void *arg, uint32_t events)
{
	struct aside *a = arg;
	(void)events;
	a->over = true;
	mv_watch_del(&a->watch);
}

int fc_aside(struct fc *fc, int (*fn)(void *arg), void *arg)
{
	struct aside a = { .fn = fn, .arg = arg };
	pthread_t thread;
	MV_FD fd = eventfd(0, EFD_CLOEXEC);
	a.fd = fd;
	if (fd < 0 || mv_watch_add(&fc->loop, &a.watch, fd, EPOLLIN, on_over, &a))
		return fn(arg);
	if (pthread_create(&thread, NULL, run_aside, &a)) {
		mv_watch_del(&a.watch);
		return fn(arg);
	}
	while (!a.over && !mv_loop_turn(&fc->loop))
		;
	pthread_join(thread, NULL);
	mv_watch_del(&a.watch);
	return a.result;
}
