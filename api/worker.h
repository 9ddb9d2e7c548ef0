// SPDX-License-Identifier: Apache-2.0
// One thread for work that would block the loop for long (hashing, syncing, deleting).
// Jobs run one after the other, in order. A job is embedded in its owner and must live
// until its done() was called, on the loop's thread.
#pragma once
#include <pthread.h>
#include <stdbool.h>

#include "microvm/base/err.h"
#include "microvm/base/log.h"
#include "microvm/base/loop.h"

struct worker_job {
	void (*run)(struct worker_job *j);  // the worker's thread: touches nothing shared
	void (*done)(struct worker_job *j); // the loop's thread
	struct worker_job *next;
	struct mv_log_tag tag; // of whoever handed it in: lines of run() and done() have it
};

struct worker {
	pthread_t thread;
	bool started, stop;
	pthread_mutex_t lock;
	pthread_cond_t todo_cond;
	struct worker_job *todo, **todo_end, *finished, **finished_end;
	unsigned n_jobs; // loop's thread: handed in, not done
	int event_fd;
	struct mv_watch watch;
	struct mv_work collect;
};

int worker_init(struct worker *w, struct mv_loop *l, struct mv_err *err);
// Finishes the job in progress, calls done() of all that finished; jobs still queued are
// finished too (they are few, and nobody is left half-done).
void worker_fini(struct worker *w);
void worker_add(struct worker *w, struct worker_job *j); // of one that has ended: does it at once
