// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "microvm/base/loop.h"
#include "microvm/base/util.h"

struct fixture {
	struct mv_loop l;
	struct source {
		struct fixture *f;
		struct mv_watch w;
		int fd, calls;
	} s[40];
	int remove; // -1, or the watch that the first callback removes
	bool readd;
	struct mv_timer t, t2;
	int fired, batches;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	f->remove = -1;
	for (size_t i = 0; i < MV_ARRAY_LEN(f->s); i++) {
		f->s[i].f = f;
		f->s[i].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	}
	*state = f;
	return mv_loop_init(&f->l);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	for (size_t i = 0; i < MV_ARRAY_LEN(f->s); i++) {
		mv_watch_del(&f->s[i].w);
		mv_watch_del(&f->s[i].w);
		close(f->s[i].fd);
	}
	mv_timer_fini(&f->t);
	mv_timer_fini(&f->t);
	mv_timer_fini(&f->t2);
	mv_loop_fini(&f->l);
	free(f);
	return 0;
}

static void kick(struct source *s)
{
	uint64_t one = 1;
	assert_int_equal(write(s->fd, &one, sizeof one), sizeof one);
}

static void on_source(void *arg, uint32_t events)
{
	struct source *s = arg;
	struct fixture *f = s->f;
	uint64_t n;
	assert_true(events & EPOLLIN);
	assert_int_equal(pthread_mutex_trylock(&f->l.lock), EBUSY); // held by the loop
	assert_int_equal(read(s->fd, &n, sizeof n), sizeof n);
	s->calls++;
	if (f->remove >= 0) {
		struct source *victim = &f->s[f->remove];
		f->remove = -1;
		mv_watch_del(&victim->w);
		if (f->readd) // the slot is used again while an event for it may be pending
			assert_false(mv_watch_add(&f->l, &victim->w, victim->fd, 0, on_source, victim));
	}
	mv_loop_stop(&f->l);
}

static void add(struct fixture *f, int i)
{
	assert_int_equal(mv_watch_add(&f->l, &f->s[i].w, f->s[i].fd, EPOLLIN, on_source, &f->s[i]), 0);
}

static void run(struct fixture *f)
{
	f->l.stop = false;
	assert_int_equal(mv_loop_run(&f->l), 0);
}

static void dispatches_many(void **state)
{
	struct fixture *f = *state;
	for (int i = 0; i < 40; i++) // more than one growth of the slot table
		add(f, i);
	for (int i = 39; i >= 0; i--) {
		kick(&f->s[i]);
		run(f);
		assert_int_equal(f->s[i].calls, 1);
	}
}

static void removed_watch_is_not_called(void **state)
{
	struct fixture *f = *state;
	add(f, 0);
	add(f, 1);
	kick(&f->s[0]);
	kick(&f->s[1]);
	f->remove = 1; // both are fetched in one batch; 0 comes first and removes 1
	run(f);
	assert_int_equal(f->s[0].calls, 1);
	assert_int_equal(f->s[1].calls, 0);
	assert_null(f->s[1].w.loop);
	add(f, 1);
	run(f); // still readable: level-triggered
	assert_int_equal(f->s[1].calls, 1);
}

static void removed_and_added_again(void **state)
{
	struct fixture *f = *state;
	add(f, 0);
	add(f, 1);
	kick(&f->s[0]);
	kick(&f->s[1]);
	f->remove = 1;
	f->readd = true;
	run(f);
	assert_int_equal(f->s[1].calls, 0); // the old event is not for the new watch
	assert_int_equal(mv_watch_mod(&f->s[1].w, EPOLLIN), 0);
	run(f);
	assert_int_equal(f->s[1].calls, 1);
}

static void removes_itself(void **state)
{
	struct fixture *f = *state;
	add(f, 3);
	f->remove = 3;
	kick(&f->s[3]);
	run(f);
	assert_int_equal(f->s[3].calls, 1);
	assert_int_equal(mv_watch_mod(&f->s[3].w, EPOLLIN), -ENOENT);
}

static void silenced(void **state)
{
	struct fixture *f = *state;
	add(f, 0);
	add(f, 1);
	assert_int_equal(mv_watch_mod(&f->s[0].w, 0), 0);
	kick(&f->s[0]);
	kick(&f->s[1]);
	run(f);
	assert_int_equal(f->s[0].calls, 0);
	assert_int_equal(mv_watch_mod(&f->s[0].w, EPOLLIN), 0);
	run(f);
	assert_int_equal(f->s[0].calls, 1);
}

static void bad_fd(void **state)
{
	struct fixture *f = *state;
	struct mv_watch w = { 0 };
	assert_int_equal(mv_watch_add(&f->l, &w, -1, EPOLLIN, on_source, f), -EBADF);
	assert_null(w.loop);
	add(f, 0);
	assert_int_equal(mv_watch_add(&f->l, &w, f->s[0].fd, EPOLLIN, on_source, f), -EEXIST);
	assert_null(w.loop);
	kick(&f->s[0]);
	run(f);
	assert_int_equal(f->s[0].calls, 1);
}

static void on_timer(void *arg)
{
	struct fixture *f = arg;
	f->fired++;
	mv_loop_stop(&f->l);
}

static void timers(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(mv_timer_init(&f->l, &f->t, on_timer, f), 0);
	assert_int_equal(mv_timer_init(&f->l, &f->t2, on_timer, f), 0);
	uint64_t start = mv_now_ns();
	assert_int_equal(mv_timer_arm(&f->t, 20000000), 0);
	assert_int_equal(mv_timer_arm(&f->t2, 5000000), 0);
	mv_timer_disarm(&f->t2); // or it would fire first
	run(f);
	assert_int_equal(f->fired, 1);
	assert_true(mv_now_ns() - start >= 20000000);
	assert_int_equal(mv_timer_arm(&f->t, 3600ull * 1000000000), 0);
	assert_int_equal(mv_timer_arm(&f->t, 0), 0); // armed again: the last one counts; 0 is now
	run(f);
	assert_int_equal(f->fired, 2);
}

static void on_batch(void *arg)
{
	struct fixture *f = arg;
	f->batches++;
	assert_int_equal(pthread_mutex_trylock(&f->l.lock), EBUSY);
}

static void before_wait_runs_after_each_batch(void **state)
{
	struct fixture *f = *state;
	f->l.before_wait = on_batch;
	f->l.before_wait_arg = f;
	add(f, 0);
	kick(&f->s[0]);
	run(f);
	assert_int_equal(f->batches, 1);
}

static void *stop_later(void *arg)
{
	usleep(20000);
	mv_loop_stop(arg);
	return NULL;
}

static void stop_from_another_thread(void **state)
{
	struct fixture *f = *state;
	pthread_t t;
	assert_int_equal(pthread_create(&t, NULL, stop_later, &f->l), 0);
	assert_int_equal(mv_loop_run(&f->l), 0);
	pthread_join(t, NULL);
	assert_int_equal(mv_loop_run(&f->l), 0); // stopped before it starts: returns at once
	f->fired = 0;
	struct mv_timer timer;
	assert_int_equal(mv_timer_init(&f->l, &timer, on_timer, f), 0);
	assert_int_equal(mv_timer_arm(&timer, 1000000), 0);
	mv_loop_again(&f->l);
	assert_int_equal(mv_loop_run(&f->l), 0);
	assert_int_equal(f->fired, 1);
	mv_timer_fini(&timer);
}

// --- lent to another thread ---
struct lending {
	struct mv_loop l;
	struct mv_watch w;
	int fd;
	pthread_t runner, borrower;
	pthread_t self;  // of the runner
	pthread_t by[4]; // who ran the n-th callback
	int n, returned;
};

static void on_return(void *arg)
{
	struct lending *x = arg;
	x->returned = x->n;
	assert_true(pthread_equal(pthread_self(), x->self));
}

// The first callback lends the loop, the third gives it back, the fourth ends it. Each calls for the next.
static void on_turn(void *arg, uint32_t events)
{
	struct lending *x = arg;
	uint64_t value;
	(void)events;
	assert_int_equal(read(x->fd, &value, sizeof value), sizeof value);
	x->by[x->n++] = pthread_self();
	if (x->n == 1)
		mv_loop_lend(&x->l, on_return, x);
	else if (x->n == 3)
		mv_loop_return(&x->l);
	if (x->n == 4)
		mv_loop_stop(&x->l);
	else
		eventfd_write(x->fd, 1);
}

static void *run_it(void *arg)
{
	struct lending *x = arg;
	x->self = pthread_self();
	return (void *)(intptr_t)mv_loop_run(&x->l);
}

static void *borrow_it(void *arg)
{
	struct lending *x = arg;
	mv_loop_borrow(&x->l);
	return NULL;
}

static void setup_lending(struct lending *x)
{
	memset(x, 0, sizeof *x);
	assert_int_equal(mv_loop_init(&x->l), 0);
	x->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_int_equal(mv_watch_add(&x->l, &x->w, x->fd, EPOLLIN, on_turn, x), 0);
	assert_int_equal(pthread_create(&x->borrower, NULL, borrow_it, x), 0);
	assert_int_equal(pthread_create(&x->runner, NULL, run_it, x), 0);
}

static void end_lending(struct lending *x)
{
	void *result;
	pthread_join(x->runner, &result);
	assert_null(result);
	pthread_join(x->borrower, NULL);
	mv_watch_del(&x->w);
	close(x->fd);
	mv_loop_fini(&x->l);
}

static void lent_and_returned(void **state)
{
	struct lending x;
	(void)state;
	for (int i = 0; i < 200; i++) {
		setup_lending(&x);
		eventfd_write(x.fd, 1);
		end_lending(&x);
		assert_int_equal(x.n, 4);
		assert_int_equal(x.returned, 3);
		assert_true(pthread_equal(x.by[0], x.by[3]));
		assert_true(pthread_equal(x.by[1], x.by[2]));
		assert_false(pthread_equal(x.by[0], x.by[1]));
	}
}

// Nobody is left waiting, whether it is lent or not.
static void stopped_while_lent(void **state)
{
	struct lending x;
	(void)state;
	for (int i = 0; i < 100; i++) {
		setup_lending(&x);
		if (i % 2) {
			mv_loop_lock(&x.l);
			mv_loop_lend(&x.l, NULL, NULL);
			mv_loop_unlock(&x.l);
		}
		mv_loop_stop(&x.l);
		end_lending(&x);
		assert_int_equal(x.n, 0);
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(dispatches_many),
		T(removed_watch_is_not_called),
		T(removed_and_added_again),
		T(removes_itself),
		T(silenced),
		T(bad_fd),
		T(timers),
		T(before_wait_runs_after_each_batch),
		T(stop_from_another_thread),
		T(lent_and_returned),
		T(stopped_while_lent),
	};
	return cmocka_run_group_tests_name("base/loop", tests, NULL, NULL);
}
