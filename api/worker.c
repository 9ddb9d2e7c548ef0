// SPDX-License-Identifier: Apache-2.0
#include "api/worker.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "microvm/base/util.h"

static struct worker_job *take_first(struct worker_job **head, struct worker_job ***end)
{
	struct worker_job *j = *head;
	if (j && !(*head = j->next))
		*end = head;
	return j;
}

static void put_last(struct worker_job ***end, struct worker_job *j)
{
	j->next = NULL;
	**end = j;
	*end = &j->next;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	const uint64_t one = 1;
	pthread_mutex_lock(&w->lock);
	for (;;) {
		struct worker_job *j = take_first(&w->todo, &w->todo_end);
		if (!j && w->stop)
			break;
		if (!j) {
			pthread_cond_wait(&w->todo_cond, &w->lock);
			continue;
		}
		pthread_mutex_unlock(&w->lock);
		mv_log_set_tag(j->tag);
		j->run(j);
		pthread_mutex_lock(&w->lock);
		put_last(&w->finished_end, j);
		pthread_mutex_unlock(&w->lock); // the loop, woken, would find it taken
		ssize_t ignored = write(w->event_fd, &one, sizeof one); // never full
		(void)ignored;
		pthread_mutex_lock(&w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static enum mv_work_more collect_one(void *arg)
{
	struct worker *w = arg;
	pthread_mutex_lock(&w->lock);
	struct worker_job *j = take_first(&w->finished, &w->finished_end);
	pthread_mutex_unlock(&w->lock);
	if (!j)
		return MV_WORK_OVER;
	w->n_jobs--;
	struct mv_log_tag before = mv_log_set_tag(j->tag);
	j->done(j);
	mv_log_set_tag(before);
	return MV_WORK_MORE;
}

static void on_event(void *arg, uint32_t events)
{
	struct worker *w = arg;
	uint64_t n;
	(void)events;
	if (read(w->event_fd, &n, sizeof n) == sizeof n)
		mv_work_start(w->watch.loop, &w->collect, collect_one, w); // hundreds may have ended
}

int worker_init(struct worker *w, struct mv_loop *l, struct mv_err *err)
{
	memset(w, 0, sizeof *w);
	w->todo_end = &w->todo;
	w->finished_end = &w->finished;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->todo_cond, NULL);
	w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->event_fd < 0 || mv_watch_add(l, &w->watch, w->event_fd, EPOLLIN, on_event, w)) {
		mv_close(&w->event_fd);
		return mv_fail(err, EMFILE, "worker: no event descriptor");
	}
	int r = pthread_create(&w->thread, NULL, work, w);
	if (r) {
		mv_watch_del(&w->watch);
		mv_close(&w->event_fd);
		return mv_fail(err, r, "worker: no thread: %s", strerror(r));
	}
	w->started = true;
	return 0;
}

void worker_fini(struct worker *w)
{
	if (!w->started)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->todo_cond);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	mv_work_cancel(&w->collect);
	while (collect_one(w) == MV_WORK_MORE)
		;
	mv_watch_del(&w->watch);
	mv_close(&w->event_fd);
	w->started = false;
}

void worker_add(struct worker *w, struct worker_job *j)
{
	j->tag = mv_log_tag();
	if (w->stop) {
		j->run(j);
		j->done(j);
		return;
	}
	w->n_jobs++;
	pthread_mutex_lock(&w->lock);
	put_last(&w->todo_end, j);
	pthread_mutex_unlock(&w->lock);
	pthread_cond_signal(&w->todo_cond);
}
