// SPDX-License-Identifier: Apache-2.0
// Handlers of /v1/snapshots, but for those in the files beside it (reading them: ops_snapread.c). Hashing,
// syncing and deleting are done by the worker; the VM goes on as soon as its own part is finished.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/counts.h"
#include "api/etag.h"
#include "api/events.h"
#include "api/layers.h"
#include "api/metrics.h"
#include "api/operation.h"
#include "api/ops.h"
#include "api/ops_snapshot.h"
#include "api/page.h"
#include "api/pool.h"
#include "api/prepare.h"
#include "api/record.h"
#include "api/routes.h"
#include "api/templates.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "snapshot/working_set.h"

#define SNAPSHOT_TIMEOUT_MS 600000

int snap_error(struct api_err *err, const struct mv_err *e, enum api_code otherwise)
{
	switch (e->code) {
	case ENOENT: return api_fail(err, API_SNAPSHOT_NOT_FOUND, "%s; GET /v1/snapshots lists them", e->msg);
	case EEXIST: return api_fail(err, API_SNAPSHOT_EXISTS, "%s", e->msg);
	default: return api_from(err, e, otherwise);
	}
}

int snap_name_check(const char *name, struct api_err *err)
{
	if (vmcfg_name_ok(name))
		return 0;
	return api_fail(err, API_SNAPSHOT_NOT_FOUND, "\"%s\" is no name of a snapshot", name);
}

js *cpu_error_json(const char *snapshot, const struct cpu_report *r)
{
	const char *missing = (const char *)r->missing.p;
	struct api_err err;
	js *o = js_object(), *e;
	api_fail(&err, API_CPU_INCOMPATIBLE, "snapshot %s needs what this host's CPU or KVM lacks (%u): %s",
		 snapshot, r->n_missing, missing);
	e = err_json(&err);
	js_put(e, "missing", js_split(missing, ", "));
	js_put(o, "error", e);
	return o;
}

void put_usage(js *o, const char *key, const struct store_usage *u)
{
	js *v = js_object();
	js_put_uint(v, "apparent_bytes", u->apparent_bytes);
	js_put_uint(v, "disk_bytes", u->disk_bytes);
	js_put(o, key, v);
}

js *manifest_json(struct server *s, const struct manifest *m)
{
	js *o = js_object(), *files = js_object();
	js_put_str(o, "name", m->name);
	js_put_str(o, "id", m->id);
	js_put_str(o, "vm", m->parent);
	if (m->parent_snapshot[0]) {
		js_put_str(o, "parent_snapshot", m->parent_snapshot);
		js_put_str(o, "parent_snapshot_id", m->parent_snapshot_id);
		js_put_bool(o, "needs_parent", m->needs_parent);
	}
	put_time(o, "created", m->created_unix_ns);
	js_put_str(o, "thaw_version", m->thaw_version);
	js_put_str(o, "arch", manifest_arch_name(m->arch));
	for (uint32_t i = 0; i < m->n_files; i++) {
		js *f = js_object();
		js_put_uint(f, "size_bytes", m->file[i].size_bytes);
		js_put_uint(f, "data_bytes", m->file[i].data_bytes);
		if (!strcmp(m->file[i].name, "memory"))
			js_put_str(f, "format", m->file[i].format == MANIFEST_LZ4 ? "lz4" : "raw");
		js_put(files, m->file[i].name, f);
	}
	js_put(o, "files", files);
	struct store_usage u = store_usage(&s->store, m);
	put_usage(o, "storage", &u);
	js_put(o, "config", js_encode(&config_table, &m->cfg));
	return o;
}

js *snapshot_json(struct server *s, const struct manifest *m)
{
	js *o = manifest_json(s, m);
	put_chain(o, s, m);
	return o;
}

// --- create ---------------------------------------------------------------------------
struct snap_op {
	struct worker_job job;
	struct server *s;
	struct http_req *req;
	struct vm *vm; // create
	struct store_draft draft;
	struct manifest m; // create: to be written; verify: read; delete: only the name
	struct mv_err err;
	int result;
	struct operation op;       // create, verify
	struct snapshot_body body; // create
	struct api_err begin_err;  // create
	uint64_t pause_ns;
	bool force;            // delete
	struct mv_buf deleted; // names, each with its NUL
	js *shown;             // the snapshot, made by the worker: its chain may be long. NULL: no memory
};

// Answers what the worker could not do.
static bool snap_op_failed(const struct snap_op *o, enum api_code otherwise)
{
	struct api_err err;
	if (!o->result)
		return false;
	snap_error(&err, &o->err, otherwise);
	reply_err(o->req, &err);
	return true;
}

static struct snap_op *snap_op_new(struct server *s, struct http_req *r, struct api_err *err)
{
	struct snap_op *o = calloc(1, sizeof *o);
	if (!o) {
		api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
		return NULL;
	}
	o->s = s;
	o->req = r;
	return o;
}

static void count_created(const struct snap_op *o)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < 2; i++) // state and memory; layers are linked
		bytes += o->m.file[i].data_bytes;
	metrics_add(M_SNAPSHOTS_WRITTEN, 0, 1);
	metrics_add(M_SNAPSHOT_BYTES, 0, bytes);
	metrics_observe(M_SNAPSHOT_SECONDS, mv_now_ns() - o->req->received_ns);
	metrics_observe(M_PAUSE_SECONDS, o->pause_ns);
	event_emit(o->s, EVENT_SNAPSHOT_CREATED,
		   &(struct event_info){ .vm = o->vm, .snapshot = o->m.name, .snapshot_id = o->m.id });
}

static void create_end(struct snap_op *o, const struct api_err *err)
{
	operation_end(&o->op);
	if (err) {
		metrics_add(M_SNAPSHOT_FAILURES, err->code, 1);
		reply_err(o->req, err);
	} else {
		count_created(o);
		js_put_uint(o->shown, "pause_us", o->pause_ns / 1000);
		reply_json(o->req, 201, o->shown);
	}
	vm_unref(o->vm);
	free(o);
}

static void commit_run(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	mv_progress_set(&o->op.progress);
	o->result = store_commit(&o->s->store, &o->draft, &o->m, &o->err);
	mv_progress_set(NULL);
	o->shown = o->result ? NULL : snapshot_json(o->s, &o->m);
}

static void commit_done(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	struct api_err err;
	o->vm->publishing = false;
	snap_set_base(o->vm, &o->m, !o->result);
	if (o->result)
		snap_error(&err, &o->err, API_VM_FAILED);
	create_end(o, o->result ? &err : NULL);
}

static void on_snapshot_taken(void *arg, struct vm *vm, const struct api_err *err,
			      const struct msg_reply *reply)
{
	struct snap_op *o = arg;
	vm->op = NULL;
	operation_by_us(&o->op);
	if (err) {
		store_abort(&o->s->store, &o->draft);
		create_end(o, err);
		return;
	}
	if (layers_link(vm, &o->draft, &o->err)) {
		struct api_err e;
		snap_set_base(vm, &o->m, false);
		store_abort(&o->s->store, &o->draft);
		snap_error(&e, &o->err, API_INTERNAL);
		create_end(o, &e);
		return;
	}
	vm->publishing = vm->cfg.track_dirty;
	o->pause_ns = reply->pause_ns;
	o->job.run = commit_run;
	o->job.done = commit_done;
	worker_add(&o->s->worker, &o->job);
}

static void fill_manifest(struct manifest *m, const struct vm *vm)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	mv_uuid(m->id);
	memcpy(m->parent, vm->cfg.name, sizeof m->parent);
	mv_strcpy(m->thaw_version, sizeof m->thaw_version, THAW_VERSION);
	m->created_unix_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	m->arch = manifest_arch_here();
	memcpy(m->parent_snapshot, vm->from_snapshot, sizeof m->parent_snapshot);
	memcpy(m->parent_snapshot_id, vm->from_snapshot_id, sizeof m->parent_snapshot_id);
	m->cfg = vm->cfg;
}

// Into the draft that is there.
static int order(struct snap_op *o, struct api_err *err)
{
	const struct snapshot_body *b = &o->body;
	struct msg_snapshot body = { .lz4 = b->format,
				     .incremental = b->incremental,
				     .confirmed = o->vm->confirmed };
	o->m.file[1].format = b->format == SNAP_MEMORY_RAW ? MANIFEST_RAW : MANIFEST_LZ4;
	struct layer_fds layers;
	int r = layers_freeze(o->vm, &layers, err);
	if (!r) {
		int fds[3 + MV_ARRAY_LEN(layers.fd)] = { o->draft.state_fd, o->draft.memory_fd };
		fds[2] = operation_by_vm(&o->op, (uint64_t)o->vm->cfg.mem_mib << 20);
		body.progress = fds[2] >= 0;
		memcpy(fds + 2 + body.progress, layers.fd, layers.n * sizeof fds[0]);
		r = vm_call(o->vm, MSG_SNAPSHOT, &msg_snapshot_table, &body, fds,
			    2 + body.progress + layers.n, SNAPSHOT_TIMEOUT_MS, "snapshot", on_snapshot_taken,
			    o, err);
		layer_fds_close(&layers);
		if (r)
			layers_freeze_end(o->vm, false);
	}
	if (r)
		store_abort(&o->s->store, &o->draft);
	return r;
}

static void begin_run(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	if (o->body.incremental && (o->result = snap_check_base(o->s, o->vm->cfg.name, &o->m, &o->begin_err)))
		return;
	o->result = store_begin(&o->s->store, o->body.name, &o->draft, &o->err);
	if (o->result)
		snap_error(&o->begin_err, &o->err, API_INTERNAL);
}

static void begin_done(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	struct api_err err = o->begin_err;
	if (!o->result)
		o->result = order(o, &err);
	if (!o->result)
		return;
	o->vm->op = NULL;
	create_end(o, &err);
}

// By the reader: the chain of an incremental one's base may be long, and a file system may take its time
// for a folder and files.
static int create_begin(struct snap_op *o, struct api_err *err)
{
	fill_manifest(&o->m, o->vm);
	int r = o->body.incremental ? snap_choose_base(o->vm, &o->m, err) : 0;
	if (r)
		return r;
	o->job = (struct worker_job){ .run = begin_run, .done = begin_done };
	worker_add(&o->s->reader, &o->job);
	return 0;
}

static int snapshot_vm(struct server *s, struct http_req *r, const struct snapshot_body *b,
		       struct api_err *err)
{
	struct vm *vm;
	int result = vms_find(s, b->vm, &vm, err);
	if (result)
		return result;
	if (!vm->op && vm->state != VM_RUNNING && vm->state != VM_PAUSED)
		return api_fail(err, API_WRONG_STATE,
				"VM %s is %s; a snapshot needs one that is running or paused", vm->cfg.name,
				vm_state_name(vm->state));
	if (vm->publishing)
		return api_fail(err, API_BUSY, "VM %s: its last snapshot is being published; try again then",
				vm->cfg.name);
	struct snap_op *o = snap_op_new(s, r, err);
	if (!o)
		return -ENOMEM;
	o->vm = vm_ref(vm);
	o->body = *b;
	result = ops_begin(vm, "snapshot", err);
	if (!result) {
		operation_begin(s, &o->op, OPERATION_SNAPSHOT, b->name, b->vm, r);
		if ((result = create_begin(o, err)))
			vm->op = NULL;
	}
	if (result) {
		operation_end(&o->op);
		vm_unref(vm);
		free(o);
	}
	return result;
}

void op_snap_create(struct server *s, struct http_req *r, const char *name)
{
	struct snapshot_body b = { .format = SNAPSHOT_FORMAT_DEFAULT };
	struct api_err err;
	(void)name;
	int result = js_decode_body(&snapshot_table, body_of(r), &b, &err);
	if (b.format == SNAPSHOT_FORMAT_DEFAULT)
		b.format = b.incremental ? SNAP_MEMORY_LZ4 : SNAP_MEMORY_RAW;
	if (!result && b.incremental && b.format == SNAP_MEMORY_RAW)
		result = api_fail(&err, API_INVALID_VALUE,
				  "format: an incremental snapshot is lz4; flatten it to get a raw one");
	if (!result && (result = snapshot_vm(s, r, &b, &err)))
		metrics_add(M_SNAPSHOT_FAILURES, err.code, 1);
	if (result)
		reply_err(r, &err);
}

// --- verify, delete: by the worker ----------------------------------------------------------
static void verify_run(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	MV_FD state_fd = -1;
	MV_FD memory_fd = -1;
	o->result = store_show(&o->s->store, o->m.name, &o->m, &o->err);
	mv_progress_set(&o->op.progress);
	mv_progress_begin(MV_PROGRESS_CHECKS, 0);
	if (!o->result)
		o->result = store_files(&o->s->store, &o->m, true, &state_fd, &memory_fd, &o->err);
	mv_progress_set(NULL);
	o->shown = o->result ? NULL : snapshot_json(o->s, &o->m);
}

static void verify_done(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	operation_end(&o->op);
	if (snap_op_failed(o, API_SNAPSHOT_CORRUPT)) {
		template_drop(o->s, o->m.name);
	} else {
		js_put_bool(o->shown, "verified", true);
		reply_json(o->req, 200, o->shown);
	}
	free(o);
}

// All that went, also when one of them then failed.
static void on_deleted(void *arg, const char *name)
{
	struct snap_op *o = arg;
	mv_buf_append(&o->deleted, name, strlen(name) + 1);
}

static void delete_run(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	o->result = store_delete_tree(&o->s->store, o->m.name, o->force, on_deleted, o, &o->err);
}

static void delete_done(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	if (!snap_op_failed(o, API_INTERNAL))
		reply_empty(o->req);
	for (size_t at = 0; at < o->deleted.len; at += strlen((char *)o->deleted.p + at) + 1) {
		event_emit(o->s, EVENT_SNAPSHOT_DELETED,
			   &(struct event_info){ .snapshot = (char *)o->deleted.p + at });
		template_drop(o->s, (char *)o->deleted.p + at);
		lazy_drop(o->s, (char *)o->deleted.p + at);
		pool_drop(o->s, (char *)o->deleted.p + at);
	}
	mv_buf_fini(&o->deleted);
	free(o);
}

static void drop_set_run(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	o->result = ws_store_remove(&o->s->store, o->m.name, &o->err);
}

static void drop_set_done(struct worker_job *j)
{
	struct snap_op *o = (struct snap_op *)j;
	if (!snap_op_failed(o, API_INTERNAL)) {
		counts_stale(o->s);
		reply_empty(o->req);
	}
	free(o);
}

#define MAX_NAMED 3

struct users {                 // VMs with a process that were cloned from a snapshot
	const char *name, *id; // id: empty: not known, the snapshot is damaged
	unsigned n;
	char text[MAX_NAMED * (VMCFG_NAME_LEN + 4)];
};

static void find_user(void *arg, struct vm *vm)
{
	struct users *u = arg;
	if (!vm_has_process(vm) || strcmp(vm->from_snapshot, u->name) ||
	    (u->id[0] && strcmp(vm->from_snapshot_id, u->id)) || u->n++ >= MAX_NAMED)
		return;
	size_t used = strlen(u->text);
	snprintf(u->text + used, sizeof u->text - used, "%s%s", used ? ", " : "VM ", vm->cfg.name);
}

static void by_worker(struct server *s, struct http_req *r, const char *name, bool force,
		      void (*run)(struct worker_job *), void (*done)(struct worker_job *))
{
	struct api_err err;
	struct snap_op *o = NULL;
	int result = js_decode_body(&empty_table, body_of(r), NULL, &err);
	if (!result)
		result = snap_name_check(name, &err);
	if (!result && !(o = snap_op_new(s, r, &err)))
		result = -ENOMEM;
	if (result) {
		reply_err(r, &err);
		return;
	}
	mv_strcpy(o->m.name, sizeof o->m.name, name);
	o->force = force;
	o->job.run = run;
	o->job.done = done;
	if (run == verify_run)
		operation_begin(s, &o->op, OPERATION_VERIFY, name, NULL, r);
	worker_add(&s->worker, &o->job);
}

void op_snap_verify(struct server *s, struct http_req *r, const char *name)
{
	by_worker(s, r, name, false, verify_run, verify_done);
}

void op_snap_drop_set(struct server *s, struct http_req *r, const char *name)
{
	by_worker(s, r, name, false, drop_set_run, drop_set_done);
}

void op_snap_delete(struct server *s, struct http_req *r, const char *name)
{
	static struct manifest m; // the loop's thread only
	struct users u = { .name = name, .id = m.id };
	struct mv_err e;
	struct api_err err;
	bool force = false;
	if (query_bool(r, "force", &force, &err)) {
		reply_err(r, &err);
		return;
	}
	if (store_show(&s->store, name, &m, NULL))
		m.id[0] = 0;
	vms_each(s, find_user, &u);
	if (u.n && !force) { // EBUSY: in_use
		mv_fail(&e, EBUSY,
			"snapshot %s: %s%s run%s from it; delete them first, or give force=true and they "
			"go on without it",
			name, u.text, u.n > MAX_NAMED ? " and others" : "", u.n == 1 ? "s" : "");
		snap_error(&err, &e, API_INTERNAL);
		reply_err(r, &err);
		return;
	}
	by_worker(s, r, name, force, delete_run, delete_done);
}
