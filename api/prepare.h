// SPDX-License-Identifier: Apache-2.0
// What comes before clones: the snapshot is read by name and checked. A raw memory file is
// hashed once per run of the daemon (templates.h). Of a compressed one, and of those of the
// parents that it needs, the index is checked and a template is made (lazy.h); chunks are checked
// when they are first used. The host's CPU is compared with the guest's, and the layers of drives are
// hashed, for both, and also when the memory file is not wanted at all.
// Loop's thread only; the checking is done by the worker.
#pragma once
#include "api/error.h"
#include "api/lazy.h"
#include "api/server.h"
#include "microvm/cpu_report.h"

struct prepare;
typedef void prepare_fn(struct prepare *p, const struct api_err *err); // err NULL: done

struct prepare { // embedded in its owner
	struct worker_job work;
	struct server *s;
	struct manifest m;
	int state_fd, memory_fd;
	int working_set_fd;        // -1: the snapshot has none
	struct store_chain files;  // of a template that is to be made
	struct lazy *lazy;         // a reference; NULL: a raw memory file
	bool no_memory;            // a page handler has it: the memory file is not looked at, it may be gone
	bool fill;                 // a new template also fills in the background
	bool start_fill;           // so does one that is there already
	bool whole;                // until it is complete: clones copy it (huge pages)
	bool whole_if_huge;        // the same if the snapshot's VM had huge pages, since its clones keep them
	bool wait;                 // until it is complete, where it is needed or asked for
	struct lazy_waiter waiter; // for all of the template, or for its working set
	struct cpu_report cpu;     // n_missing: why done was called with API_CPU_INCOMPATIBLE
	int result;
	struct mv_err err;
	prepare_fn *done;
};

// Calls done once, now or later, with the files open and m read.
void prepare_begin(struct prepare *p, struct server *s, const char *name, prepare_fn *done);
void prepare_take(struct prepare *p, struct prepare *to); // after a good done: what it found moves
void prepare_fini(struct prepare *p);                     // after done
