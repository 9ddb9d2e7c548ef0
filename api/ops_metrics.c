// SPDX-License-Identifier: Apache-2.0
// GET /v1/metrics and GET /v1/vms/{name}/metrics.
//
// What a VM process uses of the host is read from /proc by a thread of its own: the kernel walks
// all page tables of the process for smaps_rollup, which takes milliseconds per GiB. A reading
// counts only if the VM still has that process afterwards: the daemon alone reaps it, so until
// then nobody else has its pid. What its devices did it tells itself, ahead of that.
//
//   VMs asked -> /proc of each read -> the daemon's own read -> snapshots counted -> text
//   usage_work   usage_worker          reader                   reader              text_work
//   -------- per_vm, or of one VM ----------------------------- of all --------     --------
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "api/balloon.h"
#include "api/counts.h"
#include "api/devices.h"
#include "api/events.h"
#include "api/lazy.h"
#include "api/metrics.h"
#include "api/ops.h"
#include "api/pool.h"
#include "api/routes.h"
#include "api/vms.h"

#define SAMPLES_AT_ONCE 32
#define TEXT_TYPE "text/plain; version=0.0.4"

// Of one VM's process.
struct usage {
	uint64_t rss, pss, private, huge, cpu_ns, minor_faults, major_faults, threads;
	bool there;
	// Of all its devices and vCPUs
	uint64_t kicks, kicks_by_exit, requests, interrupts, suppressed, mmio_exits, io_exits, other_exits;
	bool told;
};

static const struct usage_field {
	size_t offset;
	enum metric_type type;
	enum metric_unit unit;
	const char *key, *name, *help; // key: in JSON, where CPU time is in us
	bool is_told;                  // by the VM process; else from /proc
} fields[] = {
#define F(member, type, unit, key, name, help)                                                               \
	{                                                                                                    \
		offsetof(struct usage, member), METRIC_##type, METRIC_##unit, key, "thaw_vm_" name, help,    \
			false                                                                                \
	}
#define D(member, name, help)                                                                                \
	{                                                                                                    \
		offsetof(struct usage, member), METRIC_COUNTER, METRIC_ONE, name, "thaw_vm_" name "_total",  \
			help, true                                                                           \
	}
	F(rss, GAUGE, BYTES, "resident_bytes", "resident_bytes",
	  "memory of the VM process, shared pages in full"),
	F(pss, GAUGE, BYTES, "proportional_bytes", "proportional_bytes",
	  "the same, shared pages divided among their users"),
	F(private, GAUGE, BYTES, "private_bytes", "private_bytes",
	  "pages that it alone has: what its end would free"),
	F(huge, GAUGE, BYTES, "huge_bytes", "huge_bytes",
	  "memory in huge pages; those of the host's pool are in no other figure"),
	F(cpu_ns, COUNTER, NS, "cpu_us", "cpu_seconds_total", "CPU time, guest and monitor"),
	F(minor_faults, COUNTER, ONE, "minor_faults", "minor_faults_total",
	  "page faults without disk access"),
	F(major_faults, COUNTER, ONE, "major_faults", "major_faults_total", "page faults with disk access"),
	F(threads, GAUGE, ONE, "threads", "threads", "threads of the process"),
	D(kicks, "kicks", "notifications of its virtio drivers, by ioeventfd"),
	D(kicks_by_exit, "kicks_by_exit", "those that took an exit to user space"),
	D(requests, "requests", "requests that its virtio devices returned"),
	D(interrupts, "interrupts", "interrupts for batches of them, and for changed configurations"),
	D(suppressed, "interrupts_suppressed", "batches that the driver wanted no interrupt for"),
	D(mmio_exits, "mmio_exits", "exits to user space for memory-mapped I/O"),
	D(io_exits, "io_exits", "exits to user space for port I/O"),
	D(other_exits, "other_exits", "other exits to user space"),
#undef F
#undef D
};

#define N_FIELDS ((unsigned)MV_ARRAY_LEN(fields))

static uint64_t field(const struct usage *u, const struct usage_field *f)
{
	return *(const uint64_t *)(const void *)((const char *)u + f->offset);
}

struct usage_item {
	struct usage_op *op;
	struct vm *vm;
	pid_t pid;
	struct usage u;
};

struct process {
	uint64_t rss, cpu_ns, fds;
};

struct usage_op {
	struct worker_job job;
	struct counts_job counts;
	struct mv_work work;
	struct server *s;
	struct http_req *req;
	struct usage_item *items;
	unsigned n, n_asked; // n_asked: VMs that have not told about their devices yet, and one while we ask
	bool one, json;      // of one VM
	struct process process;
	// the text so far
	struct mv_buf text;
	unsigned series, next; // of fields and then balloon_metrics; of items
	bool begun;
};

// --- /proc: the worker's thread ---------------------------------------------------------------
static bool read_proc(pid_t pid, const char *name, char *text, size_t size)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
	FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, size - 1, f) : 0;
	text[n] = 0;
	if (f)
		fclose(f);
	return n > 0;
}

static uint64_t kib_of(const char *text, const char *key)
{
	const char *p = strstr(text, key);
	return p ? strtoull(p + strlen(key), NULL, 10) * 1024 : 0;
}

static bool read_usage(pid_t pid, struct usage *u)
{
	char text[4096];
	unsigned long long minor, major, user, system;
	long long threads;
	if (!read_proc(pid, "smaps_rollup", text, sizeof text))
		return false;
	u->rss = kib_of(text, "\nRss:");
	u->pss = kib_of(text, "\nPss:");
	u->private = kib_of(text, "\nPrivate_Clean:") + kib_of(text, "\nPrivate_Dirty:");
	u->huge = kib_of(text, "\nAnonHugePages:") + kib_of(text, "\nPrivate_Hugetlb:") +
		  kib_of(text, "\nShared_Hugetlb:");
	if (!read_proc(pid, "stat", text, sizeof text))
		return false;
	const char *p = strrchr(text, ')'); // the name may hold anything
	// proc(5): fields 10 minflt, 12 majflt, 14 utime, 15 stime, 20 num_threads
	if (!p ||
	    sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %llu %*u %llu %*u %llu %llu %*d %*d %*d %*d %lld",
		   &minor, &major, &user, &system, &threads) != 5)
		return false;
	u->minor_faults = minor;
	u->major_faults = major;
	u->cpu_ns = (user + system) * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
	u->threads = (uint64_t)threads;
	return true;
}

static void usage_run(struct worker_job *j)
{
	struct usage_op *o = (struct usage_op *)j;
	for (unsigned i = 0; i < o->n; i++)
		o->items[i].u.there = o->items[i].pid && read_usage(o->items[i].pid, &o->items[i].u);
}

// --- the daemon's own: the reader's thread ------------------------------------------------------
static unsigned count_fds(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");
	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n ? n - 1 : 0; // the one that reads them
}

static void process_run(struct worker_job *j)
{
	struct process *p = &((struct usage_op *)j)->process;
	char text[200];
	unsigned long long size = 0, resident = 0;
	struct rusage r = { 0 };
	if (read_proc(getpid(), "statm", text, sizeof text) &&
	    sscanf(text, "%llu %llu", &size, &resident) == 2)
		p->rss = resident * (uint64_t)sysconf(_SC_PAGESIZE);
	getrusage(RUSAGE_SELF, &r);
	p->cpu_ns = (uint64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000000u +
		    (uint64_t)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1000u;
	p->fds = count_fds();
}

// --- gauges -------------------------------------------------------------------------------------
static void count_vm(void *arg, struct vm *vm)
{
	(void)arg;
	if (vm->shown)
		metrics_add(M_VMS, vm->state, 1);
	if (vm->shown && vm->park.told.parked && vm_has_process(vm))
		metrics_add(M_VMS_PARKED, 0, 1);
}

static void set_gauges(struct server *s, const struct process *p)
{
	for (unsigned i = 0; i <= VM_EXITED; i++)
		metrics_set(M_VMS, i, 0);
	metrics_set(M_VMS_PARKED, 0, 0);
	vms_each(s, count_vm, NULL);
	lazy_metrics(s);
	metrics_set(M_VM_PROCESSES, 0, s->n_live);
	metrics_set(M_SNAPSHOTS, 0, s->counts.n);
	metrics_set(M_SNAPSHOT_DISK, 0, s->counts.total.disk_bytes);
	metrics_set(M_POOL_SIZE, 0, pools_ready(s));
	metrics_set(M_HTTP_PENDING, 0, http_pending(s->http));
	metrics_set(M_HTTP_CONNECTIONS, 0, http_connections(s->http));
	metrics_set(M_EVENT_STREAMS, 0, events_streams(s));
	metrics_set(M_WORKER_QUEUE, 0, s->worker.n_jobs);
	metrics_set(M_RSS, 0, p->rss);
	metrics_set(M_CPU, 0, p->cpu_ns);
	metrics_set(M_OPEN_FDS, 0, p->fds);
}

// --- answers ----------------------------------------------------------------------------------
static void reply_samples(struct http_req *r, struct mv_buf *b)
{
	struct api_err err;
	if (b->failed) {
		mv_buf_fini(b);
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
		reply_err(r, &err);
		return;
	}
	http_reply(r, 200, TEXT_TYPE, b->p, b->len, NULL, 0);
	*b = (struct mv_buf){ 0 };
}

static bool is_current(const struct usage_item *it) { return it->u.there && it->vm->pid == it->pid; }

static bool is_known(const struct usage_item *it, const struct usage_field *f)
{
	return is_current(it) && (it->u.told || !f->is_told);
}

static void put_sample(struct usage_op *o, const struct usage_item *it)
{
	const struct usage_field *f = o->series < N_FIELDS ? &fields[o->series] : NULL;
	const struct balloon_metric *m = f ? NULL : &balloon_metrics[o->series - N_FIELDS];
	const struct vm *vm = it->vm;
	char labels[160];
	uint64_t v;
	if (f ? !is_known(it, f) : !is_current(it) || !balloon_value(vm, o->series - N_FIELDS, &v))
		return;
	snprintf(labels, sizeof labels, "vm=\"%s\",id=\"%s\"", vm->cfg.name, vm->cfg.id);
	metrics_sample(&o->text, f ? f->name : m->name, "", labels, f ? field(&it->u, f) : v,
		       f ? f->unit : m->unit);
}

// Some samples of one series; true: of the last one.
static bool put_samples(struct usage_op *o)
{
	if (o->series == N_FIELDS + balloon_n_metrics)
		return true;
	if (!o->next && o->series < N_FIELDS)
		metrics_head(&o->text, fields[o->series].name, fields[o->series].type,
			     fields[o->series].help);
	else if (!o->next)
		metrics_head(&o->text, balloon_metrics[o->series - N_FIELDS].name,
			     balloon_metrics[o->series - N_FIELDS].type,
			     balloon_metrics[o->series - N_FIELDS].help);
	for (unsigned i = 0; i < SAMPLES_AT_ONCE && o->next < o->n; i++)
		put_sample(o, &o->items[o->next++]);
	if (o->next == o->n) {
		o->series++;
		o->next = 0;
	}
	return false;
}

static js *usage_json(const struct usage_item *it)
{
	js *o = js_object();
	const struct vm *vm = it->vm;
	js_put_str(o, "name", vm->cfg.name);
	js_put_str(o, "id", vm->cfg.id);
	js_put_str(o, "state", vm_state_name(vm->state));
	js_put_bool(o, "measured", is_current(it));
	for (const struct usage_field *f = fields; f < fields + MV_ARRAY_LEN(fields); f++)
		if (is_known(it, f))
			js_put_uint(o, f->key, field(&it->u, f) / (f->unit == METRIC_NS ? 1000 : 1));
	js *t = lazy_clone_json(vm);
	if (t)
		js_put(o, "template", t);
	return o;
}

static void op_free(struct usage_op *o)
{
	mv_buf_fini(&o->text);
	for (unsigned i = 0; i < o->n; i++)
		vm_unref(o->items[i].vm);
	free(o->items);
	free(o);
}

static enum mv_work_more put_text(void *arg)
{
	struct usage_op *o = arg;
	if (!o->begun && !o->one) {
		set_gauges(o->s, &o->process);
		metrics_text(&o->text);
		o->begun = true;
		return MV_WORK_MORE;
	}
	if (o->items && !put_samples(o))
		return MV_WORK_MORE;
	reply_samples(o->req, &o->text);
	op_free(o);
	return MV_WORK_GONE;
}

static void on_counted(void *arg)
{
	struct usage_op *o = arg;
	mv_work_start(&o->s->loop, &o->work, put_text, o);
}

static void process_done(struct worker_job *j)
{
	struct usage_op *o = (struct usage_op *)j;
	counts_get(o->s, &o->counts, on_counted, o);
}

static void read_process(struct usage_op *o)
{
	o->job.run = process_run;
	o->job.done = process_done;
	worker_add(&o->s->reader, &o->job);
}

static void usage_done(struct worker_job *j)
{
	struct usage_op *o = (struct usage_op *)j;
	if (o->json) {
		reply_json(o->req, 200, usage_json(&o->items[0]));
		op_free(o);
	} else if (o->one) {
		on_counted(o);
	} else {
		read_process(o);
	}
}

// --- devices ------------------------------------------------------------------------------------
static void add_device(void *arg, uint32_t slot, const struct msg_device *d)
{
	struct usage *u = &((struct usage_item *)arg)->u;
	(void)slot;
	for (uint32_t i = 0; i < d->n_queues; i++) {
		const struct msg_queue *q = &d->queue[i];
		u->kicks += q->kicks_by_event;
		u->kicks_by_exit += q->kicks_by_exit;
		u->requests += q->used;
		u->interrupts += q->interrupts;
		u->suppressed += q->suppressed;
	}
	u->interrupts += d->config_interrupts;
	for (uint32_t i = 0; i < d->n_vcpus; i++) {
		u->mmio_exits += d->vcpu[i].mmio;
		u->io_exits += d->vcpu[i].io;
		u->other_exits += d->vcpu[i].hlt + d->vcpu[i].other;
	}
}

static void asked(struct usage_op *o)
{
	if (!--o->n_asked)
		worker_add(&o->s->usage_worker, &o->job);
}

static void on_told(void *arg, struct vm *vm, const struct api_err *err)
{
	struct usage_item *it = arg;
	(void)vm;
	it->u.told = !err; // one that is ending has no numbers
	asked(it->op);
}

static enum mv_work_more ask_next(void *arg)
{
	struct usage_op *o = arg;
	struct api_err ignored;
	if (o->next == o->n) {
		o->next = 0;
		asked(o);
		return MV_WORK_OVER;
	}
	struct usage_item *it = &o->items[o->next++];
	it->op = o;
	if (vm_has_process(it->vm) && it->vm->state != VM_EXITED)
		o->n_asked += !devices_walk(it->vm, add_device, on_told, it, &ignored);
	return MV_WORK_MORE;
}

static void usage_start(struct usage_op *o)
{
	o->n_asked = 1;
	mv_work_start(&o->s->loop, &o->work, ask_next, o);
}

static void take_vm(void *arg, struct vm *vm)
{
	struct usage_op *o = arg;
	if (vm->shown && vm_has_process(vm))
		o->items[o->n++] = (struct usage_item){ .vm = vm_ref(vm), .pid = vm->pid };
}

// room: for so many VMs; none: not of them.
static struct usage_op *usage_new(struct server *s, struct http_req *r, unsigned room, struct api_err *err)
{
	struct mv_err e = { 0 };
	struct usage_op *o = calloc(1, sizeof *o);
	if (o && room)
		o->items = calloc(room, sizeof *o->items);
	if (!o || (room && !o->items)) {
		free(o);
		api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
		return NULL;
	}
	if (room && !s->usage_worker.started && worker_init(&s->usage_worker, &s->loop, &e)) {
		op_free(o);
		api_from(err, &e, API_INTERNAL);
		return NULL;
	}
	o->s = s;
	o->req = r;
	o->job.run = usage_run;
	o->job.done = usage_done;
	return o;
}

void op_metrics(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	bool per_vm;
	(void)name;
	struct usage_op *o = NULL;
	int result = query_bool(r, "per_vm", &per_vm, &err);
	if (!result && !(o = usage_new(s, r, per_vm ? s->n_vms + 1 : 0, &err)))
		result = -ENOMEM;
	if (result) {
		reply_err(r, &err);
	} else if (per_vm) {
		vms_each(s, take_vm, o);
		usage_start(o);
	} else {
		read_process(o);
	}
}

void op_vm_metrics(struct server *s, struct http_req *r, const char *name)
{
	const char *format = http_query(r, "format");
	struct api_err err;
	struct vm *vm;
	struct usage_op *o = NULL;
	int result = vms_find(s, name, &vm, &err);
	if (!result && format && strcmp(format, "json") && strcmp(format, "prometheus"))
		result = api_fail(&err, API_INVALID_VALUE, "format: \"%.32s\" is neither json nor prometheus",
				  format);
	if (!result && !(o = usage_new(s, r, 1, &err)))
		result = -ENOMEM;
	if (result) {
		reply_err(r, &err);
		return;
	}
	o->one = true;
	o->json = !format || !strcmp(format, "json");
	o->items[o->n++] = (struct usage_item){ .vm = vm_ref(vm), .pid = vm->pid };
	usage_start(o);
}
