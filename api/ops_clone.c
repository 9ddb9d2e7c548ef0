// SPDX-License-Identifier: Apache-2.0
// POST /v1/snapshots/{name}/clone: N new VMs of one snapshot; POST /v1/vms/{name}/clone: of a VM as
// it runs.
//
// Theory of operation. The manifest is read and the snapshot's files are opened once per
// request and checked, and the host's CPU compared with the guest's, or that was done before
// (prepare.h); a pool (pool.h) has done all that. Then clones are started, up to MAX_STARTING at a time so
// that the loop stays free and N is not bounded by descriptors in flight; each that ends its start lets the
// next one begin. The answer goes out when all have either answered or are completely gone: 201 all there,
// 207 some, else the first one's error.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/entry.h"
#include "api/fork.h"
#include "api/hugepages.h"
#include "api/lifetime.h"
#include "api/metadata.h"
#include "api/metrics.h"
#include "api/ops.h"
#include "api/ops_snapshot.h"
#include "api/pool.h"
#include "api/prepare.h"
#include "api/record.h"
#include "api/routes.h"
#include "api/spawn.h"
#include "api/tap.h"
#include "api/templates.h"
#include "api/vmfds.h"
#include "api/vmjson.h"
#include "api/vmrec.h"
#include "api/vms.h"
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"

#define MAX_STARTING 8
#define CLAIM_TIMEOUT_MS 30000
#define FORK_TIMEOUT_MS 30000
#define MANY 256 // clones: freeing what is known of them takes a while

struct clone_job;

struct clone_item {
	struct clone_job *job;
	const struct clone_spec *spec;
	struct vm *vm; // held until the answer is out
	struct vm_waiter end;
	char name[VMCFG_NAME_LEN];
	const struct api_err *err; // NULL: it is there
	bool claimed;              // of the pool
	struct fork_wait forked;   // of a running VM
};

struct clone_job {
	struct prepare own;
	const struct prepare *p; // own, or the pool's
	struct pool *pool;       // a reference, or NULL
	// Of a running VM: a reference to it, its configuration then, and its frozen copy.
	struct vm *parent;
	struct vmcfg parent_cfg;
	struct fork_source fork;
	struct layer_source layers;
	uint64_t pause_ns;
	struct server *s;
	struct http_req *req;
	char target[ROUTE_NAME_LEN]; // of the route
	struct worker_job parse;     // and, of a large one, freeing
	bool large;
	struct api_err parse_err;
	int parse_result;
	void (*parsed)(struct clone_job *j);
	struct clone_body body;
	struct clone_item *items; // body.count
	uint32_t next, starting, n_failed;
	struct mv_work work;
	uint32_t n_shown; // in the answer so far
	struct mv_buf text;
	unsigned next_number; // of the names chosen with name_prefix
};

static const struct api_err no_memory = { API_OUT_OF_MEMORY, "no memory for the clone" };

static void free_run(struct worker_job *job)
{
	struct clone_job *j = MV_CONTAINER(job, struct clone_job, parse);
	for (uint32_t i = 0; j->items && i < j->body.count; i++)
		if (j->items[i].err != &no_memory)
			free((void *)j->items[i].err);
	free(j->items);
	clone_body_fini(&j->body);
}

static void free_done(struct worker_job *job) { free(MV_CONTAINER(job, struct clone_job, parse)); }

// What grows with a large body is freed by the thread that parsed it: thousands of clones are some 30 MB.
static void job_free(struct clone_job *j)
{
	for (uint32_t i = 0; j->items && i < j->body.count; i++)
		vm_unref(j->items[i].vm);
	mv_buf_fini(&j->text);
	prepare_fini(&j->own);
	pool_unref(j->pool);
	fork_source_fini(&j->fork);
	vm_unref(j->parent);
	j->parse.run = free_run;
	j->parse.done = free_done;
	if (j->large || j->body.count > MANY) {
		worker_add(&j->s->reader, &j->parse);
		return;
	}
	free_run(&j->parse);
	free_done(&j->parse);
}

// --- the answer -----------------------------------------------------------------------
static js *item_json(const struct clone_item *it, uint64_t received_ns)
{
	js *o = js_object();
	const struct vm *vm = it->vm;
	if (it->name[0])
		js_put_str(o, "name", it->name);
	if (it->err) {
		js_put(o, "error", err_json(it->err));
		return o;
	}
	js *t = js_object();
	js_put_str(o, "id", vm->cfg.id);
	js_put_str(o, "state", vm_state_name(vm->state));
	js_put_bool(o, "prepared", it->claimed);
	if (vm->cfg.vsock.present)
		js_put_str(o, "vsock_path", vm->cfg.vsock.path);
	js_put_uint(t, "accepted", 0);
	put_us(t, "process_ready", vm->times.process_start, received_ns);
	put_us(t, "kvm_ready", vm->times.kvm_ready, received_ns);
	put_us(t, "state_loaded", vm->times.loaded, received_ns);
	put_us(t, "ordered", vm->times.request, received_ns);
	put_us(t, "running", vm->times.running, received_ns);
	js_put(o, "timing_us", t);
	record_json(o, vm);
	return o;
}

static void put_text(struct clone_job *j, js *v)
{
	MV_FREE char *text = js_text(v, false);
	if (text)
		mv_buf_append(&j->text, text, strlen(text) - 1); // without its newline
	else
		j->text.failed = true;
}

static void put(struct clone_job *j, const char *text) { mv_buf_append(&j->text, text, strlen(text)); }

static void answer_begin(struct clone_job *j)
{
	char pause[48];
	put(j, "{");
	if (j->n_failed == j->body.count) {
		put(j, "\"error\":");
		put_text(j, err_json(j->items[0].err));
		put(j, ",");
	}
	snprintf(pause, sizeof pause, "\"pause_us\":%llu,", (unsigned long long)j->pause_ns / 1000);
	if (j->parent)
		put(j, pause);
	put(j, "\"clones\":[");
}

static void answer_end(struct clone_job *j)
{
	unsigned status = j->n_failed ? 207 : 201;
	if (j->n_failed == j->body.count)
		status = api_code_info(j->items[0].err->code)->status;
	put(j, "]}\n");
	for (uint32_t i = 0; i < j->body.count; i++)
		if (!j->items[i].err)
			vmrec_keep(j->items[i].vm);
	reply_text(j->req, status, &j->text);
	job_free(j);
}

// A clone more of it, or its end: then true.
static bool answer(struct clone_job *j)
{
	if (!j->n_shown)
		answer_begin(j);
	if (j->n_shown == j->body.count) {
		answer_end(j);
		return true;
	}
	if (j->n_shown)
		put(j, ",");
	put_text(j, item_json(&j->items[j->n_shown++], j->req->received_ns));
	return false;
}

// --- one clone ----------------------------------------------------------------------------
static void advance(struct clone_job *j);

static void item_failed(struct clone_item *it, const struct api_err *err)
{
	struct api_err *copy = malloc(sizeof *copy);
	if (copy)
		*copy = *err;
	it->err = copy ? copy : &no_memory;
	it->job->n_failed++;
	metrics_add(M_CLONE_FAILURES, err->code, 1);
}

static void on_undone(void *arg, struct vm *vm)
{
	struct clone_item *it = arg;
	(void)vm;
	it->job->starting--;
	advance(it->job);
}

// Nothing of it is left when its item counts as failed.
static void undo(struct clone_item *it)
{
	struct vm *vm = it->vm;
	vms_remove(vm);
	if (vm_has_process(vm)) { // answered when it is gone, so that nothing is left behind
		vm_wait_end(vm, &it->end, on_undone, it);
		vm_kill(vm);
	} else {
		on_undone(it, vm);
	}
}

static void on_restored(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct clone_item *it = arg;
	(void)reply;
	vm->op = NULL;
	if (!err) {
		metrics_clone(&vm->times, vm->requested_ns, it->claimed);
		vm_show(vm);
		on_undone(it, vm);
		return;
	}
	item_failed(it, err);
	undo(it);
}

// <prefix>-<n>, the first n that is free.
static int choose_name(struct clone_job *j, struct vmcfg *cfg, struct api_err *err)
{
	const char *own = j->parent ? j->parent_cfg.name : j->p->m.name;
	const char *prefix = j->body.name_prefix[0] ? j->body.name_prefix : own;
	bool count = !j->body.name_prefix[0] && !j->parent;
	struct known_snapshot *t = count ? template_get(j->s, &j->p->m) : NULL;
	unsigned *next = t ? &t->next_clone : &j->next_number;
	for (unsigned n = *next;; n++) {
		char name[VMCFG_NAME_LEN + 12];
		snprintf(name, sizeof name, "%s-%u", prefix, n);
		if (mv_strcpy(cfg->name, sizeof cfg->name, name))
			return api_fail(err, API_INVALID_VALUE,
					"name_prefix: \"%s\" is too long for \"-%u\" behind it", prefix, n);
		if (vms_name_taken(j->s, name))
			continue;
		*next = n + 1;
		return 0;
	}
}

static const char *handler_of(const struct clone_body *b, const struct clone_spec *spec)
{
	return spec->page_handler[0] ? spec->page_handler : b->page_handler;
}

// It is in the table under its name from here on.
static int name_it(struct clone_item *it, struct vm *vm, const char *name, struct api_err *err)
{
	int r = 0;
	vm->op = "clone";
	vm->requested_ns = it->job->req->received_ns;
	if (name[0])
		mv_strcpy(vm->cfg.name, sizeof vm->cfg.name, name);
	else
		r = choose_name(it->job, &vm->cfg, err);
	memcpy(it->name, vm->cfg.name, sizeof it->name);
	return r ? r : vms_add(it->job->s, vm, err);
}

// What the guest of a clone reads about itself.
static int set_metadata(struct clone_item *it, struct vm *vm, struct api_err *err)
{
	const char *text = it->spec->metadata;
	int r = metadata_check(&vm->cfg, text, err);
	if (r || !text)
		return r;
	vm->metadata = strdup(text);
	return vm->metadata ? 0 : api_fail(err, API_OUT_OF_MEMORY, "no memory for the metadata");
}

static int make_vm(struct clone_item *it, const struct vmcfg *base, struct api_err *err)
{
	static struct vmcfg cfg; // the loop's thread only
	struct clone_job *j = it->job;
	int r = clone_config(base, &j->body, it->spec, &cfg, err);
	if (r)
		return r;
	ops_default_sockets(j->s, &cfg);
	it->vm = vm_new(j->s, &cfg);
	if (!it->vm)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	it->vm->policy = clone_policy(&j->body, it->spec);
	r = set_metadata(it, it->vm, err);
	return r ? r : name_it(it, it->vm, it->spec->name, err);
}

static int start_cold(struct clone_item *it, struct api_err *err)
{
	struct clone_job *j = it->job;
	int r = make_vm(it, &j->p->m.cfg, err);
	if (!r && it->spec->has_record)
		it->vm->record.limit_ms =
			it->spec->record.limit_ms ? it->spec->record.limit_ms : RECORD_DEFAULT_MS;
	if (!r)
		it->vm->populate = it->spec->populate || !it->spec->has_populate;
	if (!r)
		memcpy(it->vm->page_handler, handler_of(&j->body, it->spec), sizeof it->vm->page_handler);
	if (!r && (r = ops_restore(it->vm, j->p, j->body.run, on_restored, it, err)))
		vms_remove(it->vm);
	return r;
}

// --- of the pool -----------------------------------------------------------------------------
static void on_claimed(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct clone_item *it = arg;
	struct api_err e;
	// A shell that died is not the fault of the request.
	if (!err || (err->code != API_VM_GONE && err->code != API_VM_CRASHED)) {
		on_restored(arg, vm, err, reply);
		return;
	}
	vms_remove(vm);
	it->vm = NULL;
	it->claimed = false;
	if (start_cold(it, &e)) {
		item_failed(it, &e);
		on_undone(it, vm);
	}
	vm_unref(vm);
}

// Another vsock socket than the shell's own.
static int open_vsock(struct vm *vm, const struct clone_vsock *o, struct vm_fds *fds, struct api_err *err)
{
	if (o->has_cid)
		vm->cfg.vsock.cid = o->cid;
	if (!o->has_path || !strcmp(o->path, vm->cfg.vsock.path))
		return 0;
	struct vmcfg_vsock v = vm->cfg.vsock;
	memcpy(v.path, o->path, sizeof o->path);
	int r = vmfds_vsock(&v, &fds->vsock, err);
	if (r)
		return r;
	if (vm->owns_sockets)
		unlink(vm->cfg.vsock.path);
	vm->cfg.vsock = v;
	vm->owns_sockets = true;
	return 0;
}

// The shell is named, and gets what the request gives it.
static int identify(struct clone_item *it, struct api_err *err)
{
	struct vm *vm = it->vm;
	int r = set_metadata(it, vm, err);
	r = r ? r : name_it(it, vm, it->spec->name, err);
	r = r ? r : metadata_send_first(vm, err);
	if (r)
		return r;
	vm->policy = clone_policy(&it->job->body, it->spec);
	return lifetime_reserve(it->job->s, vm) ? api_fail(err, API_OUT_OF_MEMORY, "no memory for the clone")
						: 0;
}

// net: as configured for this clone.
static int claim(struct clone_item *it, const struct vmcfg *cfg, struct vm_fds *fds, struct api_err *err)
{
	static struct msg_claim body; // the loop's thread only
	struct vm *vm = it->vm;
	int list[VM_FDS_MAX];
	int r = it->spec->has_vsock ? open_vsock(vm, &it->spec->vsock, fds, err) : 0;
	r = r ? r : identify(it, err);
	if (r)
		return r;
	vm->shell = false;
	memcpy(vm->cfg.net, cfg->net, sizeof vm->cfg.net);
	body = (struct msg_claim){ .vsock = vm->cfg.vsock,
				   .run = it->job->body.run,
				   .n_nets = vm->cfg.n_nets };
	memcpy(body.net, cfg->net, sizeof body.net);
	memcpy(body.name, vm->cfg.name, sizeof body.name);
	unsigned n = vm_fds_pack(fds, list, &body.fd_mask);
	return vm_call(vm, MSG_CLAIM, &msg_claim_table, &body, list, n, CLAIM_TIMEOUT_MS, "clone", on_claimed,
		       it, err);
}

// Takes a shell of the pool; 0 with it->vm NULL: there is none.
static int start_claim(struct clone_item *it, struct api_err *err)
{
	static struct vmcfg cfg; // the loop's thread only
	struct vm_fds fds;
	vm_fds_init(&fds);
	// What may fail for the request's own reasons comes before a shell is spent.
	int r = clone_config(&it->job->p->m.cfg, &it->job->body, it->spec, &cfg, err);
	for (uint32_t i = 0; !r && i < cfg.n_nets; i++)
		if (cfg.net[i].tap[0])
			r = tap_open(&cfg.net[i], fds.tap[i], err);
	if (!r && (it->vm = pool_claim(it->job->pool))) {
		it->claimed = true;
		r = claim(it, &cfg, &fds, err);
		if (r) {
			vms_remove(it->vm);
			vm_kill(it->vm);
		}
	}
	vm_fds_close(&fds);
	return r;
}

static bool has_tap(const struct vmcfg *cfg, const char *id)
{
	for (uint32_t i = 0; i < cfg->n_nets; i++)
		if (!strcmp(cfg->net[i].id, id))
			return cfg->net[i].tap[0];
	return false;
}

// What a shell has already can't be changed, nor the cgroup that it runs in.
static bool can_claim(const struct clone_job *j, const struct clone_spec *spec)
{
	for (uint32_t i = 0; i < spec->n_nets; i++)
		if (spec->net[i].has_socket || spec->net[i].user.present ||
		    (spec->net[i].has_tap && !has_tap(&j->p->m.cfg, spec->net[i].id)))
			return false;
	uint32_t huge_pages = j->p->m.cfg.huge_pages;
	if (clone_huge_pages(huge_pages, &j->body, spec) != huge_pages)
		return false;
	return !spec->ready.present && !spec->has_record && !spec->n_drives && !spec->n_consoles &&
	       !spec->n_pmems && !handler_of(&j->body, spec)[0] && !j->body.policy.has_limits &&
	       !spec->policy.has_limits && (!spec->has_vsock || j->p->m.cfg.vsock.present);
}

// --- of a running VM ----------------------------------------------------------------------------
static void on_forked(void *arg, struct vm_process *p, const struct api_err *err)
{
	struct clone_item *it = arg;
	struct vm *vm = it->vm;
	struct api_err e;
	struct vm_fds fds;
	if (!err && !ops_open_files(vm, &it->job->layers, &fds, &e) &&
	    !vm_adopt(vm, p, it->job->body.run, &fds, on_restored, it, &e))
		return;
	item_failed(it, err ? err : &e);
	undo(it);
}

static int start_fork(struct clone_item *it, struct api_err *err)
{
	struct clone_job *j = it->job;
	if (it->spec->has_record)
		return api_fail(err, API_INVALID_VALUE,
				"record: a working set is of a snapshot; a fork of a VM has none");
	int r = make_vm(it, &j->parent_cfg, err);
	if (r)
		return r;
	struct vm *vm = it->vm;
	if (vm->cfg.huge_pages != j->parent_cfg.huge_pages) {
		vms_remove(vm);
		return api_fail(err, API_INVALID_VALUE,
				"huge_pages: a fork has the memory of the VM; clone a snapshot of it");
	}
	if (vm->policy.has_limits) { // it runs in the cgroup of the process that it is forked from
		vms_remove(vm);
		return api_fail(err, API_LIMITS_UNAVAILABLE,
				"limits: a fork of a running VM can't have any; clone a snapshot of it");
	}
	memcpy(vm->forked_from, j->parent_cfg.name, sizeof vm->forked_from);
	memcpy(vm->forked_from_id, j->parent_cfg.id, sizeof vm->forked_from_id);
	memcpy(vm->from_snapshot, j->parent->from_snapshot, sizeof vm->from_snapshot);
	memcpy(vm->from_snapshot_id, j->parent->from_snapshot_id, sizeof vm->from_snapshot_id);
	r = fork_ask(&j->fork, &it->forked, on_forked, it, err);
	if (r)
		vms_remove(vm);
	return r;
}

static int start_item(struct clone_item *it, struct api_err *err)
{
	struct clone_job *j = it->job;
	if (j->s->stopping)
		return api_fail(err, API_SHUTTING_DOWN, "the daemon is ending");
	if (j->parent)
		return start_fork(it, err);
	if (j->pool && can_claim(j, it->spec) && !vms_name_taken(j->s, it->spec->name)) {
		int r = start_claim(it, err);
		if (it->vm ? !r || err->code != API_VM_GONE : r)
			return r;
	} else if (j->pool) {
		pool_miss(j->pool);
	}
	vm_unref(MV_TAKE(it->vm)); // a shell that is ending: as in on_claimed()
	it->claimed = false;
	return start_cold(it, err);
}

static void start_next(struct clone_job *j)
{
	static const struct clone_spec plain;
	uint32_t i = j->next++;
	struct clone_item *it = &j->items[i];
	struct api_err err;
	it->job = j;
	it->spec = j->body.clones ? &j->body.clones[i] : &plain;
	if (start_item(it, &err))
		item_failed(it, &err);
	else
		j->starting++;
}

static enum mv_work_more step(void *arg)
{
	struct clone_job *j = arg;
	if (j->next < j->body.count) {
		if (j->starting >= MAX_STARTING)
			return MV_WORK_OVER;
		start_next(j);
		return MV_WORK_MORE;
	}
	if (j->starting)
		return MV_WORK_OVER;
	return answer(j) ? MV_WORK_GONE : MV_WORK_MORE;
}

static void advance(struct clone_job *j) { mv_work_start(&j->s->loop, &j->work, step, j); }

// --- the job --------------------------------------------------------------------------------
static void fail_job(struct clone_job *j, const struct api_err *err)
{
	reply_err(j->req, err);
	job_free(j);
}

static uint32_t count_handlers(const struct clone_body *b)
{
	uint32_t n = 0;
	if (b->page_handler[0])
		return b->count;
	for (uint32_t i = 0; i < b->n_clones; i++)
		n += b->clones[i].page_handler[0] != 0;
	return n;
}

// Do clones copy the memory, so that all of it must be there first: some by their request, some if the
// snapshot's VM had huge pages?
static void want_whole(const struct clone_job *j, struct prepare *p)
{
	static const struct clone_spec plain;
	for (uint32_t i = 0; i < (j->body.clones ? j->body.count : 1); i++) {
		const struct clone_spec *s = j->body.clones ? &j->body.clones[i] : &plain;
		p->whole |= clone_huge_pages(GMEM_4K, &j->body, s) != GMEM_4K;
		p->whole_if_huge |= clone_huge_pages(GMEM_THP, &j->body, s) != GMEM_4K;
	}
}

static void on_prepared(struct prepare *p, const struct api_err *err)
{
	struct clone_job *j = MV_CONTAINER(p, struct clone_job, own);
	if (err)
		metrics_add(M_CLONE_FAILURES, err->code, j->body.count);
	if (!err) {
		advance(j);
	} else if (p->cpu.n_missing) {
		reply_json(j->req, api_code_info(err->code)->status, cpu_error_json(p->m.name, &p->cpu));
		job_free(j);
	} else {
		fail_job(j, err);
	}
}

// --- the request: only a small one is parsed right here ---
static void parse_run(struct worker_job *job)
{
	struct clone_job *j = MV_CONTAINER(job, struct clone_job, parse);
	j->parse_result = clone_parse(j->req->body, j->req->body_len, &j->body, &j->parse_err);
	if (j->parse_result)
		return;
	j->items = calloc(j->body.count, sizeof *j->items);
	if (!j->items)
		j->parse_result =
			api_fail(&j->parse_err, API_OUT_OF_MEMORY, "no memory for %u clones", j->body.count);
}

static void parse_done(struct worker_job *job)
{
	struct clone_job *j = MV_CONTAINER(job, struct clone_job, parse);
	if (j->parse_result)
		fail_job(j, &j->parse_err);
	else
		j->parsed(j);
}

static void job_begin(struct server *s, struct http_req *r, const char *target,
		      void (*parsed)(struct clone_job *j))
{
	struct api_err err;
	struct clone_job *j = calloc(1, sizeof *j);
	if (!j) {
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
		reply_err(r, &err);
		return;
	}
	j->s = s;
	j->req = r;
	j->next_number = 1;
	j->p = &j->own;
	j->own.state_fd = j->own.memory_fd = j->own.working_set_fd = -1;
	j->parsed = parsed;
	j->parse = (struct worker_job){ .run = parse_run, .done = parse_done };
	mv_strcpy(j->target, sizeof j->target, target);
	j->large = !entry_body_is_small(r);
	if (j->large) {
		worker_add(&s->reader, &j->parse);
		return;
	}
	parse_run(&j->parse);
	parse_done(&j->parse);
}

static void clone_parsed(struct clone_job *j)
{
	struct server *s = j->s;
	struct pool *pool;
	j->own.fill = true;
	j->own.no_memory = count_handlers(&j->body) == j->body.count;
	want_whole(j, &j->own);
	pool = pool_find(s, j->target);
	const struct lazy *lazy = pool ? pool_source(pool)->lazy : NULL;
	if (pool && !(lazy && j->own.whole && !lazy_is_complete(lazy))) {
		j->pool = pool_ref(pool);
		j->p = pool_source(pool);
		advance(j);
	} else {
		prepare_begin(&j->own, s, j->target, on_prepared);
	}
}

void op_clone(struct server *s, struct http_req *r, const char *name) { job_begin(s, r, name, clone_parsed); }

static void on_frozen(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct clone_job *j = arg;
	struct api_err e;
	vm->op = NULL;
	if (err ||
	    fork_source_init(&j->fork, j->s, MV_TAKE_FD(j->fork.socket), vm->pid, (pid_t)reply->pid, &e)) {
		metrics_add(M_CLONE_FAILURES, (err ? err : &e)->code, j->body.count);
		fail_job(j, err ? err : &e);
		return;
	}
	j->pause_ns = reply->pause_ns;
	j->layers.vm = vm;
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		if (vm->cfg.drive[i].layer != VMCFG_LAYER_NONE)
			j->layers.n_layers[i] = vm->n_layers[i] - 1; // the last one is its own
	advance(j);
}

static int freeze(struct clone_job *j, struct vm *vm, struct api_err *err)
{
	struct layer_fds layers;
	struct mv_err e = { 0 };
	MV_FD theirs = -1;
	if (spawn_socket(&j->fork.socket, &theirs, &e))
		return api_from(err, &e, API_INTERNAL);
	int r = layers_freeze(vm, &layers, err);
	if (r)
		return r;
	int fds[1 + MV_ARRAY_LEN(layers.fd)] = { theirs };
	memcpy(fds + 1, layers.fd, layers.n * sizeof fds[0]);
	r = vm_call(vm, MSG_FORK, NULL, NULL, fds, 1 + layers.n, FORK_TIMEOUT_MS, "fork", on_frozen, j, err);
	layer_fds_close(&layers);
	if (r)
		layers_freeze_end(vm, false);
	return r;
}

static void fork_parsed(struct clone_job *j)
{
	struct api_err err;
	struct vm *vm;
	j->fork.socket = -1;
	int result = vms_find(j->s, j->target, &vm, &err);
	if (!result && count_handlers(&j->body))
		result = api_fail(
			&err, API_INVALID_VALUE,
			"page_handler: a fork has the memory of the VM; it is for clones of snapshots");
	if (!result && !vm->op && vm->state != VM_RUNNING && vm->state != VM_PAUSED)
		result = api_fail(&err, API_WRONG_STATE,
				  "VM %s is %s; a fork needs one that is running or paused", vm->cfg.name,
				  vm_state_name(vm->state));
	if (!result && vm->cgroup.fd >= 0)
		result = api_fail(&err, API_LIMITS_UNAVAILABLE,
				  "VM %s has limits, which its forks would share; clone a snapshot of it",
				  vm->cfg.name);
	if (!result && gmem_pages_pooled(vm->cfg.huge_pages))
		result = api_fail(
			&err, API_HUGE_PAGES_UNAVAILABLE,
			"VM %s has huge pages of the host's pool, and nothing would reserve those that "
			"its forks need when they write; clone a snapshot of it",
			vm->cfg.name);
	if (!result)
		result = ops_begin(vm, "clone", &err);
	if (!result) {
		j->parent = vm_ref(vm);
		j->parent_cfg = vm->cfg;
		result = freeze(j, vm, &err);
		if (result)
			vm->op = NULL;
	}
	if (result) {
		mv_close(&j->fork.socket);
		metrics_add(M_CLONE_FAILURES, err.code, j->body.count);
		fail_job(j, &err);
	}
}

void op_vm_clone(struct server *s, struct http_req *r, const char *name)
{
	job_begin(s, r, name, fork_parsed);
}
