// SPDX-License-Identifier: Apache-2.0
// An epoll event carries slot number and generation, not a pointer: an event that
// was fetched before its watch was removed no longer resolves.
#include "microvm/base/loop.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

struct mv_loop_slot {
	struct mv_watch *watch; // NULL: free
	uint32_t generation;
};

static void on_wake(void *arg, uint32_t events)
{
	struct mv_loop *l = arg;
	uint64_t n;
	(void)events;
	if (read(l->wake_fd, &n, sizeof n) < 0)
		return;
}

int mv_loop_init(struct mv_loop *l)
{
	*l = (struct mv_loop){ .epoll_fd = -1, .wake_fd = -1 };
	TAILQ_INIT(&l->works);
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = l->epoll_fd < 0 || l->wake_fd < 0 ? -errno : 0;
	if (!r)
		r = mv_watch_add(l, &l->wake, l->wake_fd, EPOLLIN, on_wake, l);
	if (r)
		mv_loop_fini(l);
	return r;
}

void mv_loop_fini(struct mv_loop *l)
{
	mv_close(&l->epoll_fd);
	mv_close(&l->wake_fd);
	free(l->slots);
	l->slots = NULL;
	l->n_slots = 0;
}

bool mv_loop_has_time(const struct mv_loop *l) { return mv_now_ns() - l->woke_ns < MV_LOOP_TURN_NS; }

struct mv_part mv_loop_enter(const struct mv_loop *l)
{
	return (struct mv_part){ l->on_turn ? mv_now_ns() : 0, l->inner_ns };
}

void mv_loop_leave(struct mv_loop *l, const struct mv_part *p, const char *what, const char *more)
{
	if (!p->began_ns)
		return;
	uint64_t took = mv_now_ns() - p->began_ns, own = took - (l->inner_ns - p->inner_ns);
	l->inner_ns = p->inner_ns + took;
	if (own <= l->longest.took_ns)
		return;
	l->longest.took_ns = own;
	snprintf(l->longest.what, sizeof l->longest.what, "%s %s", what, more);
}

static void dispatch(struct mv_loop *l, const struct epoll_event *ev)
{
	uint32_t slot = (uint32_t)ev->data.u64, generation = (uint32_t)(ev->data.u64 >> 32);
	if (slot >= l->n_slots || l->slots[slot].generation != generation || !l->slots[slot].watch)
		return;
	struct mv_watch *w = l->slots[slot].watch;
	const char *name = w->name; // w may be gone afterwards
	const struct mv_part part = mv_loop_enter(l);
	w->fn(w->arg, ev->events);
	mv_loop_leave(l, &part, name, "");
}

static bool stopped(const struct mv_loop *l) { return __atomic_load_n(&l->stop, __ATOMIC_ACQUIRE); }

// --- works ---
static enum mv_work_more step(struct mv_work *w)
{
	struct mv_loop *l = w->loop;
	const char *name = w->name;
	const struct mv_part part = mv_loop_enter(l);
	enum mv_work_more more = w->step(w->arg);
	mv_loop_leave(l, &part, name, "");
	if (more == MV_WORK_OVER)
		w->loop = NULL;
	return more;
}

static void queue(struct mv_work *w)
{
	w->queued = true;
	TAILQ_INSERT_TAIL(&w->loop->works, w, link);
}

static struct mv_work *take_work(struct mv_loop *l)
{
	struct mv_work *w = TAILQ_FIRST(&l->works);
	if (w) {
		TAILQ_REMOVE(&l->works, w, link);
		w->queued = false;
	}
	return w;
}

static void run_works(struct mv_loop *l)
{
	struct mv_work *w;
	do {
		if (!(w = take_work(l)))
			return;
		if (step(w) == MV_WORK_MORE)
			queue(w);
	} while (mv_loop_has_time(l));
}

void mv_work_start_as(struct mv_loop *l, struct mv_work *w, mv_work_fn *fn, void *arg, const char *name)
{
	if (w->loop)
		return;
	*w = (struct mv_work){ .loop = l, .step = fn, .arg = arg, .name = name };
	while (mv_loop_has_time(l))
		if (step(w) != MV_WORK_MORE)
			return;
	queue(w);
}

void mv_work_cancel(struct mv_work *w)
{
	if (w->loop && w->queued)
		TAILQ_REMOVE(&w->loop->works, w, link);
	w->loop = NULL;
}

void mv_works_finish(struct mv_loop *l)
{
	for (struct mv_work *w; (w = take_work(l));)
		if (step(w) == MV_WORK_MORE)
			queue(w);
}

// --- turns ---
// getrusage(2) has the CPU time as of the last tick only.
static void read_usage(uint64_t *ret_cpu_ns, long *ret_sleeps)
{
	struct rusage r = { 0 };
	struct timespec t = { 0 };
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	getrusage(RUSAGE_THREAD, &r);
	*ret_cpu_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	*ret_sleeps = r.ru_nvcsw;
}

static void begin_turn(struct mv_loop *l)
{
	if (l->timed)
		l->woke_ns = mv_now_ns();
	if (l->on_turn)
		read_usage(&l->woke.cpu_ns, &l->woke.sleeps);
	l->longest.took_ns = 0;
}

static void end_turn(struct mv_loop *l)
{
	uint64_t cpu_ns;
	long sleeps;
	const struct mv_part part = mv_loop_enter(l);
	if (l->before_wait)
		l->before_wait(l->before_wait_arg);
	mv_loop_leave(l, &part, "the end of the turn", "");
	if (!l->on_turn || !l->woke_ns)
		return;
	read_usage(&cpu_ns, &sleeps);
	uint64_t busy_ns = mv_now_ns() - l->woke_ns;
	uint64_t held_ns = sleeps == l->woke.sleeps ? cpu_ns - l->woke.cpu_ns : busy_ns;
	l->on_turn(busy_ns, held_ns);
	if (held_ns > MV_LOOP_HELD_NS)
		mv_log(MV_DEBUG,
		       "loop: held for %llu us (CPU time %llu us, slept %ld times), %llu of it by %s",
		       (unsigned long long)held_ns / 1000,
		       (unsigned long long)(cpu_ns - l->woke.cpu_ns) / 1000, sleeps - l->woke.sleeps,
		       (unsigned long long)l->longest.took_ns / 1000, l->longest.what);
}

// What is left of a batch when a turn's time is up is for the next turn, so that one who always has
// something to say keeps nobody else from being heard.
static int run_batch(struct mv_loop *l)
{
	struct epoll_event ev[32];
	int n = epoll_wait(l->epoll_fd, ev, MV_ARRAY_LEN(ev), TAILQ_EMPTY(&l->works) ? -1 : 0);
	if (n < 0 && errno != EINTR)
		return -errno;
	begin_turn(l);
	mv_loop_lock(l);
	for (int i = 0; i < n; i++) {
		dispatch(l, &ev[i]);
		if (l->timed && i + 1 < n && !mv_loop_has_time(l)) {
			l->cut = true;
			end_turn(l);
			l->cut = false;
			begin_turn(l);
		}
	}
	run_works(l);
	end_turn(l);
	return 0; // locked
}

// Lock held: until the borrower has given it back.
static void wait_for_return(struct mv_loop *l)
{
	l->waiting = true;
	pthread_cond_broadcast(&l->changed);
	while (l->lent && !stopped(l))
		pthread_cond_wait(&l->changed, &l->lock);
	l->waiting = false;
	if (l->on_return && !stopped(l))
		l->on_return(l->on_return_arg);
}

int mv_loop_run(struct mv_loop *l)
{
	int r = 0;
	while (!r && !stopped(l)) {
		r = run_batch(l);
		if (r)
			break;
		if (l->lent)
			wait_for_return(l);
		mv_loop_unlock(l);
	}
	mv_loop_lock(l);
	pthread_cond_broadcast(&l->changed); // a borrower that waits goes, too
	mv_loop_unlock(l);
	return r;
}

int mv_loop_turn(struct mv_loop *l)
{
	int r = run_batch(l);
	if (!r)
		mv_loop_unlock(l);
	return r;
}

void mv_loop_settle(struct mv_loop *l)
{
	mv_loop_lock(l);
	if (l->before_wait)
		l->before_wait(l->before_wait_arg);
	mv_loop_unlock(l);
}

void mv_loop_lend(struct mv_loop *l, void (*on_return)(void *arg), void *arg)
{
	l->lent = true;
	l->on_return = on_return;
	l->on_return_arg = arg;
}

void mv_loop_borrow(struct mv_loop *l)
{
	mv_loop_lock(l);
	while (!l->waiting && !stopped(l))
		pthread_cond_wait(&l->changed, &l->lock);
	while (l->lent && !stopped(l)) {
		mv_loop_unlock(l);
		if (run_batch(l))
			mv_loop_lock(l);
	}
	if (stopped(l))
		pthread_cond_broadcast(&l->changed);
	mv_loop_unlock(l);
}

void mv_loop_return(struct mv_loop *l)
{
	l->lent = false;
	pthread_cond_broadcast(&l->changed);
}

void mv_loop_again(struct mv_loop *l) { __atomic_store_n(&l->stop, false, __ATOMIC_RELEASE); }

void mv_loop_stop(struct mv_loop *l)
{
	uint64_t one = 1;
	__atomic_store_n(&l->stop, true, __ATOMIC_RELEASE);
	ssize_t ignored = write(l->wake_fd, &one, sizeof one);
	(void)ignored;
}

static int take_slot(struct mv_loop *l, uint32_t *ret_slot)
{
	for (uint32_t i = 0; i < l->n_slots; i++)
		if (!l->slots[i].watch) {
			*ret_slot = i;
			return 0;
		}
	uint32_t n = l->n_slots ? l->n_slots * 2 : 16;
	struct mv_loop_slot *s = realloc(l->slots, n * sizeof *s);
	if (!s)
		return -ENOMEM;
	memset(s + l->n_slots, 0, (n - l->n_slots) * sizeof *s);
	*ret_slot = l->n_slots;
	l->slots = s;
	l->n_slots = n;
	return 0;
}

static struct epoll_event watch_event(const struct mv_watch *w, uint32_t events)
{
	uint64_t generation = w->loop->slots[w->slot].generation;
	return (struct epoll_event){ .events = events, .data.u64 = generation << 32 | w->slot };
}

int mv_watch_add_as(struct mv_loop *l, struct mv_watch *w, int fd, uint32_t events, mv_watch_fn *fn,
		    void *arg, const char *name)
{
	uint32_t slot;
	int r = take_slot(l, &slot);
	if (r)
		return r;
	struct mv_watch made = { .loop = l, .fd = fd, .slot = slot, .fn = fn, .arg = arg, .name = name };
	struct epoll_event ev = watch_event(&made, events);
	if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev))
		return -errno;
	*w = made;
	l->slots[slot].watch = w;
	return 0;
}

int mv_watch_mod(struct mv_watch *w, uint32_t events)
{
	if (!w->loop)
		return -ENOENT;
	struct epoll_event ev = watch_event(w, events);
	return epoll_ctl(w->loop->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev) ? -errno : 0;
}

void mv_watch_del(struct mv_watch *w)
{
	if (!w->loop)
		return;
	epoll_ctl(w->loop->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
	w->loop->slots[w->slot].watch = NULL;
	w->loop->slots[w->slot].generation++;
	w->loop = NULL;
}

static void on_timer(void *arg, uint32_t events)
{
	struct mv_timer *t = arg;
	uint64_t n;
	(void)events;
	if (read(t->fd, &n, sizeof n) == sizeof n)
		t->fn(t->arg);
}

int mv_timer_init_as(struct mv_loop *l, struct mv_timer *t, mv_timer_fn *fn, void *arg, const char *name)
{
	*t = (struct mv_timer){ .fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC),
				.fn = fn,
				.arg = arg };
	if (t->fd < 0)
		return -errno;
	int r = mv_watch_add_as(l, &t->watch, t->fd, EPOLLIN, on_timer, t, name);
	if (r)
		mv_close(&t->fd);
	return r;
}

int mv_timer_arm(struct mv_timer *t, uint64_t delay_ns)
{
	struct itimerspec when = { .it_value = { .tv_sec = (time_t)(delay_ns / 1000000000u),
						 .tv_nsec = (long)(delay_ns % 1000000000u) } };
	if (!delay_ns)
		when.it_value.tv_nsec = 1;
	return timerfd_settime(t->fd, 0, &when, NULL) ? -errno : 0;
}

void mv_timer_disarm(struct mv_timer *t)
{
	struct itimerspec never = { 0 };
	timerfd_settime(t->fd, 0, &never, NULL);
}

void mv_timer_fini(struct mv_timer *t)
{
	if (!t->watch.loop) // never initialised, or already gone
		return;
	mv_watch_del(&t->watch);
	mv_close(&t->fd);
}
