// SPDX-License-Identifier: Apache-2.0
// The event loop: epoll, timers, and one lock. A device belongs to one loop; every
// callback runs with the loop's lock held, and whoever touches a device from
// another thread (a vCPU on a register access) takes that lock first. So a device
// has one thread at a time and needs no lock of its own.
// A turn is what the loop does between two looks at what came: MV_LOOP_TURN_NS of callbacks at most and the
// one that goes beyond it. What takes long is done in pieces (struct mv_work), or by a thread.
// Watches, timers and works are embedded in their owners and may be removed at any time,
// also from inside a callback and also for an event already fetched.
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/queue.h>

#define MV_LOOP_TURN_NS 300000u
#define MV_LOOP_HELD_NS 1000000u // no turn is to

typedef void mv_watch_fn(void *arg, uint32_t events);

// busy_ns: by the clock; held_ns: what of it is the loop's own doing: its CPU time when it never slept, else
// all.
typedef void mv_turn_fn(uint64_t busy_ns, uint64_t held_ns);

struct mv_loop;

struct mv_watch { // zero-initialised = not watching
	struct mv_loop *loop;
	int fd; // borrowed
	uint32_t slot;
	mv_watch_fn *fn;
	void *arg;
	const char *name; // of fn
};

struct mv_loop {
	int epoll_fd, wake_fd;
	bool stop;
	bool timed;       // turns end in time
	bool cut;         // before_wait: this one has, more of what came is for the next
	uint64_t woke_ns; // timed: when this turn began
	struct {
		uint64_t cpu_ns;
		long sleeps;
	} woke;              // on_turn: of this thread until then
	mv_turn_fn *on_turn; // timed: what each turn took; one of more than MV_LOOP_HELD_NS is logged (debug)
	uint64_t inner_ns;   // of parts, see mv_loop_leave()
	struct {
		uint64_t took_ns;
		char what[100];
	} longest; // part of this turn
	TAILQ_HEAD(, mv_work) works;
	pthread_mutex_t lock;
	struct mv_loop_slot *slots;
	uint32_t n_slots;
	struct mv_watch wake;
	// Lent to another thread, which drives it instead of mv_loop_run()'s: see mv_loop_lend().
	bool lent, waiting;     // waiting: mv_loop_run() stands still
	pthread_cond_t changed; // with lock: these two
	void (*on_return)(void *arg);
	void *on_return_arg;
	void (*before_wait)(void *arg); // runs with the lock held after each turn (e.g. io_uring submit)
	void *before_wait_arg;
};

// A part of a turn, so that what held the loop has a name. Parts may be within others, which are without
// them.
struct mv_part {
	uint64_t began_ns, inner_ns;
};
struct mv_part mv_loop_enter(const struct mv_loop *l);
void mv_loop_leave(struct mv_loop *l, const struct mv_part *p, const char *what, const char *more);

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
#define mv_watch_add(l, w, fd, events, fn, arg) mv_watch_add_as(l, w, fd, events, fn, arg, MV_LOOP_NAME(fn))
#define MV_LOOP_NAME(fn) __FILE__ " " #fn
int mv_watch_add_as(struct mv_loop *l, struct mv_watch *w, int fd, uint32_t events, mv_watch_fn *fn,
		    void *arg,
		    const char *name); // static
int mv_watch_mod(struct mv_watch *w, uint32_t events);
void mv_watch_del(struct mv_watch *w); // idempotent; call before closing the fd

typedef void mv_timer_fn(void *arg);

struct mv_timer { // a timerfd; zero-initialised, then init
	int fd;
	struct mv_watch watch;
	mv_timer_fn *fn;
	void *arg;
};
#define mv_timer_init(l, t, fn, arg) mv_timer_init_as(l, t, fn, arg, MV_LOOP_NAME(fn))
int mv_timer_init_as(struct mv_loop *l, struct mv_timer *t, mv_timer_fn *fn, void *arg, const char *name);
int mv_timer_arm(struct mv_timer *t, uint64_t delay_ns); // one shot; 0 fires at once
void mv_timer_disarm(struct mv_timer *t);
void mv_timer_fini(struct mv_timer *t); // idempotent

// Work that grows with the number of something: step does a piece of it, some 10 us. When the turn's time is
// up the rest is for the next one; each turn does one step at least, and works take turns.
enum mv_work_more {
	MV_WORK_MORE,
	MV_WORK_OVER, // it may be started again
	MV_WORK_GONE, // and the struct mv_work does not exist any more
};
typedef enum mv_work_more mv_work_fn(void *arg);

struct mv_work { // zero-initialised: not in progress
	TAILQ_ENTRY(mv_work) link;
	struct mv_loop *loop; // NULL: not in progress
	bool queued;          // else it is in its step
	mv_work_fn *step;
	void *arg;
	const char *name;
};

// Lock held. Does the first steps itself while the turn has time. In progress already: nothing happens.
#define mv_work_start(l, w, step, arg) mv_work_start_as(l, w, step, arg, MV_LOOP_NAME(step))
void mv_work_start_as(struct mv_loop *l, struct mv_work *w, mv_work_fn *step, void *arg, const char *name);
void mv_work_cancel(struct mv_work *w);         // idempotent; not from within its step
void mv_works_finish(struct mv_loop *l);        // all to their ends, once the loop has ended
bool mv_loop_has_time(const struct mv_loop *l); // the turn; one that is not timed has none
