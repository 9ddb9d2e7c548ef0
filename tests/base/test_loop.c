// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
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

// --- works ---
struct job {
	struct mv_work w;
	struct fixture *f;
	char name;
	int left, spent; // steps
	bool freed;      // it is, with its last step
};
static char order[64];

static enum mv_work_more do_step(void *arg)
{
	struct job *j = arg;
	strncat(order, &j->name, 1);
	j->spent++;
	mv_work_start(&j->f->l, &j->w, do_step, j); // in progress: nothing happens
	if (--j->left)
		return MV_WORK_MORE;
	if (!j->freed)
		return MV_WORK_OVER;
	free(j);
	return MV_WORK_GONE;
}

static void on_turn_end(void *arg)
{
	struct fixture *f = arg;
	strncat(order, ".", 2);
	if (++f->batches == 6)
		mv_loop_stop(&f->l);
}

// A loop that is not timed does one step a turn.
static void works_take_turns(void **state)
{
	struct fixture *f = *state;
	struct job a = { .f = f, .name = 'a', .left = 3 }, *b = calloc(1, sizeof *b);
	*b = (struct job){ .f = f, .name = 'b', .left = 2, .freed = true };
	order[0] = 0;
	f->l.before_wait = on_turn_end;
	f->l.before_wait_arg = f;
	mv_work_start(&f->l, &a.w, do_step, &a);
	mv_work_start(&f->l, &a.w, do_step, &a);
	mv_work_start(&f->l, &b->w, do_step, b);
	assert_string_equal(order, "");
	assert_non_null(a.w.loop);
	add(f, 0);
	kick(&f->s[0]);
	run(f); // the event comes first, and ends the loop
	assert_int_equal(f->s[0].calls, 1);
	assert_string_equal(order, "a.");
	for (int i = 0; i < 4; i++) {
		f->batches = 5; // one turn
		run(f);
	}
	assert_string_equal(order, "a.b.a.b.a.");
	assert_null(a.w.loop);
	a.left = 1;
	mv_work_start(&f->l, &a.w, do_step, &a); // again
	mv_works_finish(&f->l);
	assert_string_equal(order, "a.b.a.b.a.a");
}

static void works_cancelled_and_finished(void **state)
{
	struct fixture *f = *state;
	struct job a = { .f = f, .name = 'a', .left = 3 }, b = { .f = f, .name = 'b', .left = 2 };
	order[0] = 0;
	mv_work_start(&f->l, &a.w, do_step, &a);
	mv_work_start(&f->l, &b.w, do_step, &b);
	mv_work_cancel(&a.w);
	mv_work_cancel(&a.w);
	assert_null(a.w.loop);
	mv_works_finish(&f->l);
	assert_string_equal(order, "bb");
	assert_null(b.w.loop);
}

// --- turns ---
#define BURN_NS (MV_LOOP_TURN_NS / 3)

static enum mv_work_more burn(void *arg)
{
	struct job *j = arg;
	uint64_t until = mv_now_ns() + BURN_NS;
	j->spent++;
	while (mv_now_ns() < until)
		;
	return --j->left ? MV_WORK_MORE : MV_WORK_OVER;
}

static int most_steps, steps_before;

static void count_steps(void *arg)
{
	struct job *j = arg;
	int n = j->spent - steps_before;
	most_steps = n > most_steps ? n : most_steps;
	steps_before = j->spent;
	if (!j->left)
		mv_loop_stop(&j->f->l);
}

// Counted, since a busy machine only makes it fewer steps a turn: by the clock each takes a third of one.
static void turn_ends_in_time(void **state)
{
	struct fixture *f = *state;
	struct job a = { .f = f, .left = 30 };
	most_steps = steps_before = 0;
	f->l.timed = true;
	f->l.before_wait = count_steps;
	f->l.before_wait_arg = &a;
	mv_work_start(&f->l, &a.w, burn, &a); // before its first turn a loop has no time
	assert_int_equal(a.spent, 0);
	run(f);
	assert_int_equal(a.spent, 30);
	assert_in_range(most_steps, 1, 3);
}

static void burn_source(void *arg, uint32_t events)
{
	struct source *s = arg;
	struct job j = { .left = 1 };
	(void)events;
	burn(&j);
	s->calls++;
	mv_watch_del(&s->w);
}

static void count_calls(void *arg)
{
	struct fixture *f = arg;
	int n = 0;
	for (int i = 0; i < 20; i++)
		n += f->s[i].calls;
	int now = n - steps_before;
	most_steps = now > most_steps ? now : most_steps;
	steps_before = n;
	if (n == 20)
		mv_loop_stop(&f->l);
}

// What came at once is not one turn; and none of it is lost.
static void batch_is_cut(void **state)
{
	struct fixture *f = *state;
	most_steps = steps_before = 0;
	f->l.timed = true;
	f->l.before_wait = count_calls;
	f->l.before_wait_arg = f;
	for (int i = 0; i < 20; i++) {
		struct source *s = &f->s[i];
		assert_int_equal(mv_watch_add(&f->l, &s->w, s->fd, EPOLLIN, burn_source, s), 0);
		kick(s);
	}
	run(f);
	assert_in_range(most_steps, 1, 3);
	for (int i = 0; i < 20; i++)
		assert_int_equal(f->s[i].calls, 1);
}

static uint64_t turn_busy_ns, turn_held_ns;

static void note_turn(uint64_t busy_ns, uint64_t held_ns)
{
	turn_busy_ns = busy_ns;
	turn_held_ns = held_ns;
}

static void sleep_source(void *arg, uint32_t events)
{
	usleep(20000);
	on_source(arg, events);
}

// What a turn slept counts as its own; what it takes is told with its name.
static void turns_are_measured(void **state)
{
	struct fixture *f = *state;
	struct source *s = &f->s[0];
	f->l.timed = true;
	f->l.on_turn = note_turn;
	assert_int_equal(mv_watch_add(&f->l, &s->w, s->fd, EPOLLIN, sleep_source, s), 0);
	kick(s);
	run(f);
	assert_true(turn_busy_ns >= 20000000 && turn_held_ns == turn_busy_ns);
	assert_non_null(strstr(f->l.longest.what, "test_loop.c sleep_source"));
	assert_true(f->l.longest.took_ns >= 20000000);
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
		T(works_take_turns),
		T(works_cancelled_and_finished),
		T(turn_ends_in_time),
		T(batch_is_cut),
		T(turns_are_measured),
	};
	return cmocka_run_group_tests_name("base/loop", tests, NULL, NULL);
}
