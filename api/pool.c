// SPDX-License-Identifier: Apache-2.0
#include "api/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/ops.h"
#include "api/vm.h"
#include "api/vmjson.h"
#include "microvm/base/util.h"

#define MAX_STARTING 2                 // at a time, in one pool
#define MAX_FAILURES 3                 // in a row; then it is left as it is
#define REFILL_NS (2ull * 1000 * 1000) // after a claim: the clone goes first
#define TICK_NS 1000000000ull
// Of a shell, what its process does not show: KVM, page tables, threads. Where KVM shadows page tables, it
// also keeps 10 bytes for each page of a memory slot: its reverse map (8) and its write tracking (2).
#define KERNEL_BYTES (384u * 1024)
#define SHADOW_BYTES_PER_MIB (10u * 256)
#define MIN_AVAILABLE_PERCENT 5 // of the host's memory: below, nothing is made in advance

struct shell {
	TAILQ_ENTRY(shell) link;
	struct pool *pool;
	struct vm *vm;
	struct vm_waiter end;
};

struct pool {
	LIST_ENTRY(pool) link;
	struct server *s;
	unsigned refs; // one until it is dropped, one of each shell, of each job
	struct prepare src;
	struct store_stamp stamp;
	struct pool_settings set;
	TAILQ_HEAD(, shell) ready;
	unsigned n_ready, n_starting, target;
	bool dropped;
	bool waits_for_template;
	struct lazy_waiter template_waiter;
	LIST_HEAD(, pool_waiter) waiters;
	// by rate
	unsigned claims; // in this second
	double peak;
	uint64_t last_claim_ns;
	// told to people
	uint64_t hits, misses, started, failed, shell_bytes;
	unsigned failures; // in a row
	char error[200];   // why it is not full
};

// --- memory ---

// The sum of the lines that begin with one of the keys, in bytes; the files of proc(5).
static uint64_t sum_kib(const char *path, const char *key1, const char *key2)
{
	char line[160];
	uint64_t total = 0;
	FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, key1, strlen(key1)) || (key2 && !strncmp(line, key2, strlen(key2))))
			total += strtoull(strchr(line, ':') + 1, NULL, 10) * 1024;
	if (f)
		fclose(f);
	return total;
}

static uint64_t memory_total(void)
{
	static uint64_t total;
	if (!total)
		total = sum_kib("/proc/meminfo", "MemTotal:", NULL);
	return total;
}

// Without one of these KVM shadows page tables.
static bool two_stage_paging(void)
{
	static const char *const paths[] = { "/sys/module/kvm_intel/parameters/ept",
					     "/sys/module/kvm_amd/parameters/npt" };
	bool yes = false;
	for (size_t i = 0; i < MV_ARRAY_LEN(paths); i++) {
		FILE *f = fopen(paths[i], "re");
		int c = f ? fgetc(f) : EOF; // npt was a number once
		yes |= c == 'Y' || c == '1';
		if (f)
			fclose(f);
	}
	return yes;
}

static uint64_t kernel_bytes(const struct pool *p)
{
	return KERNEL_BYTES +
	       (two_stage_paging() ? 0 : (uint64_t)p->src.m.cfg.mem_mib * SHADOW_BYTES_PER_MIB);
}

// By the reader's thread: the kernel walks all page tables of the process.
struct measuring {
	struct worker_job job;
	struct pool *pool; // a reference
	struct vm *vm;     // likewise
	pid_t pid;
	uint64_t bytes;
};

static void measure_run(struct worker_job *job)
{
	struct measuring *m = (struct measuring *)job;
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", (int)m->pid);
	m->bytes = sum_kib(path, "Private_Clean:", "Private_Dirty:");
}

static void measure_done(struct worker_job *job)
{
	struct measuring *m = (struct measuring *)job;
	if (m->vm->pid == m->pid) // else it may have been another's process
		m->pool->shell_bytes = kernel_bytes(m->pool) + m->bytes;
	vm_unref(m->vm);
	pool_unref(m->pool);
	free(m);
}

static void measure(struct pool *p, struct vm *vm)
{
	struct measuring *m = malloc(sizeof *m);
	if (!m)
		return; // the last figure stays
	*m = (struct measuring){ .job = { .run = measure_run, .done = measure_done } };
	m->pool = pool_ref(p);
	m->vm = vm_ref(vm);
	m->pid = vm->pid;
	worker_add(&p->s->reader, &m->job);
}

static uint64_t bytes_of_all(const struct server *s)
{
	const struct pool *p;
	uint64_t bytes = 0;
	LIST_FOREACH (p, &s->pools, link)
		bytes += (p->n_ready + p->n_starting) * p->shell_bytes;
	return bytes;
}

static bool memory_left(struct pool *p)
{
	if (bytes_of_all(p->s) + p->shell_bytes > p->s->pool_max_bytes) {
		snprintf(p->error, sizeof p->error, "the pools' memory is used up (%llu MiB, --pool-memory)",
			 (unsigned long long)(p->s->pool_max_bytes >> 20));
		return false;
	}
	if (sum_kib("/proc/meminfo", "MemAvailable:", NULL) < memory_total() / 100 * MIN_AVAILABLE_PERCENT) {
		snprintf(p->error, sizeof p->error, "the host has less than %d %% of its memory left",
			 MIN_AVAILABLE_PERCENT);
		return false;
	}
	return true;
}

// --- shells ---

static void tell_waiters(struct pool *p)
{
	struct pool_waiter *w;
	bool growing = p->waits_for_template || p->n_starting || (!p->error[0] && p->n_ready < p->target);
	while (!growing && (w = LIST_FIRST(&p->waiters))) {
		LIST_REMOVE(w, link);
		w->fn(w->arg);
	}
}

static void free_shell(struct shell *h)
{
	struct pool *p = h->pool;
	vm_wait_cancel(&h->end);
	vm_unref(h->vm);
	free(h);
	pool_unref(p);
}

static void on_shell_end(void *arg, struct vm *vm)
{
	struct shell *h = arg;
	struct pool *p = h->pool;
	TAILQ_REMOVE(&p->ready, h, link);
	p->n_ready--;
	p->failed++;
	snprintf(p->error, sizeof p->error, "a shell ended: %s %s", vm_exit_name(vm->exit_reason),
		 vm->exit_detail);
	mv_log(MV_WARN, "pool of %s: %s", p->src.m.name, p->error);
	free_shell(h);
}

static void refill(struct pool *p);

static void on_restored(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct shell *h = arg;
	struct pool *p = h->pool;
	(void)reply;
	p->n_starting--;
	if (err) {
		p->failed++;
		p->failures++;
		snprintf(p->error, sizeof p->error, "%.180s", err->msg);
		mv_log(MV_WARN, "pool of %s: %s", p->src.m.name, err->msg);
	}
	if (err || p->dropped || p->s->stopping) {
		if (p->dropped)
			tell_waiters(p); // nothing else comes back to it
		vm_kill(vm);
		free_shell(h);
		return;
	}
	p->failures = 0;
	p->error[0] = 0;
	if (p->started++ % 64 == 0)
		measure(p, vm);
	TAILQ_INSERT_TAIL(&p->ready, h, link);
	p->n_ready++;
	vm_wait_end(vm, &h->end, on_shell_end, h);
	refill(p);
}

static int start_shell(struct pool *p, struct api_err *err)
{
	static const struct clone_spec plain;
	static struct vmcfg cfg; // the loop's thread only
	int r = clone_config(&p->src.m.cfg, NULL, &plain, &cfg, err);
	struct shell *h = r ? NULL : calloc(1, sizeof *h);
	if (!h)
		return r ? r : api_fail(err, API_OUT_OF_MEMORY, "no memory for a shell");
	mv_strcpy(cfg.name, sizeof cfg.name, "shell");
	ops_default_sockets(p->s, &cfg);
	h->pool = pool_ref(p);
	h->vm = vm_new(p->s, &cfg);
	if (!h->vm) {
		r = api_fail(err, API_OUT_OF_MEMORY, "no memory for a shell");
	} else {
		h->vm->shell = h->vm->populate = true;
		r = ops_restore(h->vm, &p->src, false, on_restored, h, err);
	}
	if (r)
		free_shell(h);
	else
		p->n_starting++;
	return r;
}

static bool can_grow(struct pool *p)
{
	return !p->dropped && !p->s->stopping && !p->waits_for_template && p->failures < MAX_FAILURES &&
	       p->n_ready + p->n_starting < p->target && p->n_starting < MAX_STARTING && memory_left(p);
}

static void refill(struct pool *p)
{
	struct api_err err;
	pool_ref(p);
	while (can_grow(p))
		if (start_shell(p, &err)) {
			p->failed++;
			p->failures++;
			snprintf(p->error, sizeof p->error, "%.180s", err.msg);
			break;
		}
	tell_waiters(p);
	pool_unref(p);
}

static void end_shells(struct pool *p, unsigned keep)
{
	while (p->n_ready > keep) {
		struct shell *h = TAILQ_FIRST(&p->ready);
		TAILQ_REMOVE(&p->ready, h, link);
		p->n_ready--;
		vm_kill(h->vm);
		free_shell(h);
	}
}

// --- how many ---

static void set_target(struct pool *p, uint64_t now)
{
	const struct pool_settings *set = &p->set;
	bool idle = set->idle_s && now - p->last_claim_ns >= set->idle_s * 1000000000ull;
	if (set->size) {
		p->target = idle ? 0 : set->size;
		return;
	}
	uint32_t want = idle ? 0 : (uint32_t)p->peak + 1;
	p->target = want < set->min ? set->min : want > set->max ? set->max : want;
}

// Once a second: what was claimed in it, or nine tenths of what it was before.
static void on_tick(void *arg)
{
	struct server *s = arg;
	struct pool *p, *next;
	uint64_t now = mv_now_ns();
	for (p = LIST_FIRST(&s->pools); p; p = next) {
		next = LIST_NEXT(p, link);
		p->peak = p->claims > p->peak * 0.9 ? p->claims : p->peak * 0.9;
		p->claims = 0;
		set_target(p, now);
		end_shells(p, p->target);
		refill(p);
	}
	if (!LIST_EMPTY(&s->pools))
		mv_timer_arm(&s->pool_tick, TICK_NS);
}

static void on_refill(void *arg)
{
	struct server *s = arg;
	struct pool *p, *next;
	for (p = LIST_FIRST(&s->pools); p; p = next) {
		next = LIST_NEXT(p, link);
		refill(p);
	}
	s->pool_refill_armed = false;
}

struct vm *pool_claim(struct pool *p)
{
	struct shell *h = TAILQ_FIRST(&p->ready);
	p->claims++;
	p->last_claim_ns = mv_now_ns();
	if (!p->target)
		set_target(p, p->last_claim_ns); // it had drained
	if (!p->s->pool_refill_armed) {
		p->s->pool_refill_armed = true;
		mv_timer_arm(&p->s->pool_refill, REFILL_NS);
	}
	if (!h) {
		pool_miss(p);
		return NULL;
	}
	struct vm *vm = vm_ref(h->vm);
	p->hits++;
	metrics_add(M_POOL_HITS, 0, 1);
	TAILQ_REMOVE(&p->ready, h, link);
	p->n_ready--;
	free_shell(h);
	return vm;
}

void pool_miss(struct pool *p)
{
	p->misses++;
	metrics_add(M_POOL_MISSES, 0, 1);
}

unsigned pools_ready(const struct server *s)
{
	const struct pool *p;
	unsigned n = 0;
	LIST_FOREACH (p, &s->pools, link)
		n += p->n_ready;
	return n;
}

// count: how many it is to have at most; none: dropped.
static void tell_change(const struct pool *p)
{
	uint32_t most = p->set.size ? p->set.size : p->set.max;
	event_emit(p->s, EVENT_POOL_CHANGED,
		   &(struct event_info){ .snapshot = p->src.m.name,
					 .snapshot_id = p->src.m.id,
					 .reason = p->dropped ? "dropped" : "set",
					 .count = p->dropped ? 0 : most });
}

// --- pools ---

int pools_init(struct server *s)
{
	LIST_INIT(&s->pools);
	if (!s->pool_max_bytes)
		s->pool_max_bytes = memory_total() / 4;
	int r = mv_timer_init(&s->loop, &s->pool_tick, on_tick, s);
	return r ? r : mv_timer_init(&s->loop, &s->pool_refill, on_refill, s);
}

int cpu_latency_hold(int32_t us, int *ret_fd, struct mv_err *err)
{
	const char *path = "/dev/cpu_dma_latency";
	MV_FD fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, &us, sizeof us) != sizeof us)
		return mv_fail(err, errno, "%s: %s", path, strerror(errno));
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static void hold_cpus(struct server *s)
{
	struct mv_err err;
	if (LIST_EMPTY(&s->pools))
		mv_close(&s->cpu_latency_fd);
	else if (s->cpu_latency_us >= 0 && s->cpu_latency_fd < 0 &&
		 cpu_latency_hold(s->cpu_latency_us, &s->cpu_latency_fd, &err))
		mv_log_limited(MV_WARN, "idle states of CPUs stay as they are: %s", err.msg);
}

static void drop(struct pool *p)
{
	if (p->dropped)
		return;
	p->dropped = true;
	tell_change(p);
	LIST_REMOVE(p, link);
	hold_cpus(p->s);
	end_shells(p, 0);
	snprintf(p->error, sizeof p->error, "dropped");
	tell_waiters(p);
	pool_unref(p);
}

void pools_stop(struct server *s)
{
	struct pool *p;
	while ((p = LIST_FIRST(&s->pools)))
		drop(p);
	mv_timer_fini(&s->pool_tick);
	mv_timer_fini(&s->pool_refill);
}

struct pool *pool_ref(struct pool *p)
{
	p->refs++;
	return p;
}

void pool_unref(struct pool *p)
{
	if (!p || --p->refs)
		return;
	prepare_fini(&p->src);
	free(p);
}

const struct prepare *pool_source(const struct pool *p) { return &p->src; }

static struct pool *by_name(struct server *s, const char *name)
{
	struct pool *p;
	LIST_FOREACH (p, &s->pools, link)
		if (!strcmp(p->src.m.name, name))
			break;
	return p;
}

bool pool_drop(struct server *s, const char *name)
{
	struct pool *p = by_name(s, name);
	if (p)
		drop(p);
	return p != NULL;
}

// The same snapshot in a new folder (flattened) is as good; another one of its name is not.
struct pool *pool_find(struct server *s, const char *name)
{
	static struct manifest m; // the loop's thread only
	struct store_stamp now;
	struct pool *p = by_name(s, name);
	if (!p || (!store_stamp(&s->store, name, &now) && store_stamp_same(&now, &p->stamp)))
		return p;
	if (!store_show(&s->store, name, &m, NULL) && !strcmp(m.id, p->src.m.id)) {
		p->stamp = now;
		return p;
	}
	mv_log(MV_WARN, "pool of %s: the snapshot is gone, or another one", name);
	drop(p);
	return NULL;
}

static void on_template(void *arg, bool complete)
{
	struct pool *p = arg;
	p->waits_for_template = false;
	if (!complete) {
		p->failures = MAX_FAILURES;
		snprintf(p->error, sizeof p->error, "the snapshot's memory can't be loaded as a whole");
	}
	refill(p);
	pool_unref(p);
}

static int pool_new(struct prepare *from, struct pool **ret_p, struct api_err *err)
{
	struct pool *p = calloc(1, sizeof *p);
	if (!p || store_stamp(&from->s->store, from->m.name, &p->stamp)) {
		free(p);
		return p ? api_fail(err, API_SNAPSHOT_NOT_FOUND, "snapshot %s vanished", from->m.name)
			 : api_fail(err, API_OUT_OF_MEMORY, "no memory for a pool");
	}
	p->s = from->s;
	p->refs = 1;
	prepare_take(from, &p->src);
	TAILQ_INIT(&p->ready);
	p->last_claim_ns = mv_now_ns();
	p->shell_bytes = kernel_bytes(p);
	LIST_INSERT_HEAD(&p->s->pools, p, link);
	hold_cpus(p->s);
	// Shells of a template that is not complete would wait for each page, so fill it first.
	if (p->src.lazy && p->src.start_fill && !lazy_is_complete(p->src.lazy)) {
		p->waits_for_template = true;
		lazy_wait(p->src.lazy, &p->template_waiter, on_template, pool_ref(p));
	}
	*ret_p = p;
	return 0;
}

int pool_set(struct prepare *from, const struct pool_settings *set, struct api_err *err)
{
	struct pool *p = pool_find(from->s, from->m.name);
	int r = p ? 0 : pool_new(from, &p, err);
	if (r)
		return r;
	// Recorded since the pool was made: the shells are made anew, with it.
	if (p->src.working_set_fd < 0 && from->working_set_fd >= 0) {
		p->src.working_set_fd = MV_TAKE_FD(from->working_set_fd);
		end_shells(p, 0);
	}
	p->set = *set;
	p->failures = 0;
	p->error[0] = 0;
	p->last_claim_ns = mv_now_ns();
	set_target(p, p->last_claim_ns);
	end_shells(p, p->target);
	refill(p);
	mv_timer_arm(&p->s->pool_tick, TICK_NS);
	tell_change(p);
	return 0;
}

void pool_wait(struct pool *p, struct pool_waiter *w, void (*fn)(void *arg), void *arg)
{
	*w = (struct pool_waiter){ .fn = fn, .arg = arg };
	LIST_INSERT_HEAD(&p->waiters, w, link);
	tell_waiters(p);
}

js *pool_json(const struct pool *p)
{
	js *o = js_object();
	if (p->set.size) {
		js_put_uint(o, "size", p->set.size);
	} else {
		js_put_uint(o, "min", p->set.min);
		js_put_uint(o, "max", p->set.max);
	}
	js_put_uint(o, "idle_s", p->set.idle_s);
	js_put_uint(o, "target", p->target);
	js_put_uint(o, "ready", p->n_ready);
	js_put_uint(o, "starting", p->n_starting);
	js_put_uint(o, "hits", p->hits);
	js_put_uint(o, "misses", p->misses);
	js_put_uint(o, "failed", p->failed);
	js_put_uint(o, "shell_bytes", p->shell_bytes);
	if (p->error[0])
		js_put_str(o, "error", p->error);
	return o;
}
