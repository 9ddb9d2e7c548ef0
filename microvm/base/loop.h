// SPDX-License-Identifier: Apache-2.0
// The event loop: epoll, timers, and one lock. A device belongs to one loop; every
// callback runs with the loop's lock held, and whoever touches a device from
// another thread (a vCPU on a register access) takes that lock first. So a device
// has one thread at a time and needs no lock of its own.
// Watches and timers are embedded in their owners and may be removed at any time,
// also from inside a callback and also for an event already fetched.
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

typedef void mv_watch_fn(void *arg, uint32_t events);

struct mv_loop;

struct mv_watch { // zero-initialised = not watching
	struct mv_loop *loop;
	int fd; // borrowed
	uint32_t slot;
	mv_watch_fn *fn;
	void *arg;
};

struct mv_loop {
	int epoll_fd, wake_fd;
	bool stop;
	bool timed;       // woke_ns is kept
	uint64_t woke_ns; // when the events of this batch came
	pthread_mutex_t lock;
	struct mv_loop_slot *slots;
	uint32_t n_slots;
	struct mv_watch wake;
	// Lent to another thread, which drives it instead of mv_loop_run()'s: see mv_loop_lend().
	bool lent, waiting;     // waiting: mv_loop_run() stands still
	pthread_cond_t changed; // with lock: these two
	void (*on_return)(void *arg);
	void *on_return_arg;
	void (*before_wait)(void *arg); // runs with the lock held after each batch (e.g. io_uring submit)
	void *before_wait_arg;
};

int mv_loop_init(struct mv_loop *l); // 0 or -errno
void mv_loop_fini(struct mv_loop *l);

static inline void mv_loop_lock(struct mv_loop *l) { pthread_mutex_lock(&l->lock); }
static inline void mv_loop_unlock(struct mv_loop *l) { pthread_mutex_unlock(&l->lock); }

// Runs until mv_loop_stop(); 0, or -errno when epoll itself fails.
int mv_loop_run(struct mv_loop *l);
// For a program that drives its loop itself, one thread alone, instead of mv_loop_run(): waits for events and
// handles them. 0, or -errno when epoll itself fails. Not from a callback. mv_loop_settle(): what the end of
// a turn does (before_wait), for what was done outside of one.
int mv_loop_turn(struct mv_loop *l);
void mv_loop_settle(struct mv_loop *l);

void mv_loop_stop(struct mv_loop *l);  // any thread; a signal handler too
void mv_loop_again(struct mv_loop *l); // after a stop: it may be run again

// From a callback: once it is over, the thread in mv_loop_borrow() drives the loop, until a
// callback calls mv_loop_return(). Then mv_loop_run() goes on, by on_return (may be NULL, lock held), while
// the borrower has nothing to wait for: a thread that is to do what an event asks for should be
// the one that hears of it.
void mv_loop_lend(struct mv_loop *l, void (*on_return)(void *arg), void *arg);
void mv_loop_borrow(struct mv_loop *l); // waits until it is lent; returns when it was given back, or stopped
void mv_loop_return(struct mv_loop *l); // not lent: nothing happens

// Lock held (or the loop not running yet). EPOLLIN etc., level-triggered unless with EPOLLET; 0 events
// keeps the watch but silences it.
int mv_watch_add(struct mv_loop *l, struct mv_watch *w, int fd, uint32_t events, mv_watch_fn *fn, void *arg);
int mv_watch_mod(struct mv_watch *w, uint32_t events);
void mv_watch_del(struct mv_watch *w); // idempotent; call before closing the fd

typedef void mv_timer_fn(void *arg);

struct mv_timer { // a timerfd; zero-initialised, then init
	int fd;
	struct mv_watch watch;
	mv_timer_fn *fn;
	void *arg;
};
int mv_timer_init(struct mv_loop *l, struct mv_timer *t, mv_timer_fn *fn, void *arg);
int mv_timer_arm(struct mv_timer *t, uint64_t delay_ns); // one shot; 0 fires at once
void mv_timer_disarm(struct mv_timer *t);
void mv_timer_fini(struct mv_timer *t); // idempotent
