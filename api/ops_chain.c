// SPDX-License-Identifier: Apache-2.0
// Snapshots that need their parents: what an incremental one refers to, how long chains are, and
// POST /v1/snapshots/{name}/flatten.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/events.h"
#include "api/lazy.h"
#include "api/operation.h"
#include "api/ops_snapshot.h"
#include "api/routes.h"
#include "api/vmjson.h"
#include "microvm/base/util.h"

// --- the base of an incremental snapshot ----------------------------------------------------
static int no_base(const struct vm *vm, struct api_err *err)
{
	if (vm->cfg.huge_pages)
		return api_fail(
			err, API_WRONG_STATE,
			"VM %s has huge_pages, so its memory is a copy and nothing says what it changed; "
			"take a full snapshot",
			vm->cfg.name);
	if (vm->cfg.track_dirty)
		return api_fail(err, API_WRONG_STATE,
				"VM %s has no snapshot yet that an incremental one could refer to; take a "
				"full one first",
				vm->cfg.name);
	return api_fail(err, API_WRONG_STATE,
			"VM %s is no clone of a snapshot and was created without track_dirty, so nothing "
			"says what it "
			"changed; take a full snapshot",
			vm->cfg.name);
}

int snap_choose_base(const struct vm *vm, struct manifest *m, struct api_err *err)
{
	bool own = vm->base_snapshot[0]; // else what it was cloned from
	// The memory of a fork, or from a page handler, or of huge pages, is no mapping of the snapshot's.
	if (!own &&
	    (!vm->from_snapshot[0] || vm->forked_from[0] || vm->page_handler[0] || vm->cfg.huge_pages))
		return no_base(vm, err);
	memcpy(m->parent_snapshot, own ? vm->base_snapshot : vm->from_snapshot, sizeof m->parent_snapshot);
	memcpy(m->parent_snapshot_id, own ? vm->base_snapshot_id : vm->from_snapshot_id,
	       sizeof m->parent_snapshot_id);
	m->needs_parent = true;
	return 0;
}

int snap_check_base(struct server *s, const char *vm, const struct manifest *m, struct api_err *err)
{
	struct mv_err e = { 0 };
	unsigned n;
	switch (-store_chain_length(&s->store, m, &n, &e)) {
	case 0: return 0;
	case ENOENT:
		return api_fail(err, API_WRONG_STATE,
				"an incremental snapshot of VM %s is not possible: %s; take a full one", vm,
				e.msg);
	case E2BIG: return api_fail(err, API_LIMIT_REACHED, "VM %s: %s", vm, e.msg);
	default: return snap_error(err, &e, API_SNAPSHOT_CORRUPT);
	}
}

void snap_set_base(struct vm *vm, const struct manifest *m, bool published)
{
	vm_changed(vm);
	vm->confirmed = published;
	if (!published || !vm->cfg.track_dirty)
		return;
	memcpy(vm->base_snapshot, m->name, sizeof vm->base_snapshot);
	memcpy(vm->base_snapshot_id, m->id, sizeof vm->base_snapshot_id);
}

// --- lengths --------------------------------------------------------------------------------
void put_chain(js *o, struct server *s, const struct manifest *m)
{
	unsigned n;
	if (!store_chain_length(&s->store, m, &n, NULL))
		js_put_uint(o, "chain_length", n);
}

struct chain_row {
	char id[MV_UUID_LEN], needs_id[MV_UUID_LEN]; // needs_id: empty: complete
	js *o;
};

void chain_list_add(struct chain_list *l, js *o, const struct manifest *m)
{
	struct chain_row row = { .o = o };
	memcpy(row.id, m->id, sizeof row.id);
	if (m->needs_parent)
		memcpy(row.needs_id, m->parent_snapshot_id, sizeof row.needs_id);
	mv_buf_append(&l->rows, &row, sizeof row);
}

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct chain_row *)a)->id, ((const struct chain_row *)b)->id);
}

// All at once, from what the manifests said: without reading the parents for each again.
void chain_list_put(struct chain_list *l)
{
	struct chain_row *row = (struct chain_row *)(void *)l->rows.p, key = { 0 };
	size_t n = l->rows.failed ? 0 : l->rows.len / sizeof *row;
	if (n)
		qsort(row, n, sizeof *row, by_id);
	for (size_t i = 0; i < n; i++) {
		const struct chain_row *at = &row[i];
		size_t length = 1;
		for (; at && at->needs_id[0] && length <= n; length++) {
			memcpy(key.id, at->needs_id, sizeof key.id);
			at = bsearch(&key, row, n, sizeof *row, by_id);
		}
		if (row[i].o && at && length <= n) // else a parent is missing
			js_put_uint(row[i].o, "chain_length", length);
	}
	mv_buf_fini(&l->rows);
}

// --- flatten --------------------------------------------------------------------------------
struct flatten_op {
	struct worker_job job;
	struct server *s;
	struct http_req *req;
	struct flatten_body body;
	char name[VMCFG_NAME_LEN];
	struct manifest m;
	bool changed;
	int result;
	struct mv_err err;
	js *shown;
	struct operation op;
};

static void flatten_run(struct worker_job *j)
{
	struct flatten_op *o = (struct flatten_op *)j;
	mv_progress_set(&o->op.progress);
	o->result = store_flatten(&o->s->store, o->name, o->body.name[0] ? o->body.name : NULL,
				  o->body.format, &o->m, &o->changed, &o->err);
	mv_progress_set(NULL);
	o->shown = o->result ? NULL : snapshot_json(o->s, &o->m);
}

static void flatten_done(struct worker_job *j)
{
	struct flatten_op *o = (struct flatten_op *)j;
	struct api_err err;
	operation_end(&o->op);
	if (o->result) {
		snap_error(&err, &o->err, o->err.code == EINVAL ? API_SNAPSHOT_CORRUPT : API_INTERNAL);
		reply_err(o->req, &err);
	} else {
		// New clones of a raw one map the file; those that run keep the template.
		if (o->changed && !o->body.name[0] &&
		    manifest_file_find(&o->m, "memory")->format == MANIFEST_RAW)
			lazy_drop(o->s, o->name);
		if (o->changed)
			event_emit(o->s, o->body.name[0] ? EVENT_SNAPSHOT_CREATED : EVENT_SNAPSHOT_FLATTENED,
				   &(struct event_info){ .snapshot = o->m.name, .snapshot_id = o->m.id });
		js_put_bool(o->shown, "changed", o->changed);
		reply_json(o->req, o->body.name[0] ? 201 : 200, o->shown);
	}
	free(o);
}

void op_snap_flatten(struct server *s, struct http_req *r, const char *name)
{
	struct flatten_body b = { .format = STORE_FORMAT_KEEP };
	struct api_err err;
	int result = js_decode_body(&flatten_table, body_of(r), &b, &err);
	if (!result)
		result = snap_name_check(name, &err);
	struct flatten_op *o = result ? NULL : calloc(1, sizeof *o);
	if (!result && !o)
		result = api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (result) {
		reply_err(r, &err);
		return;
	}
	*o = (struct flatten_op){
		.job = { .run = flatten_run, .done = flatten_done }, .s = s, .req = r, .body = b
	};
	mv_strcpy(o->name, sizeof o->name, name);
	operation_begin(s, &o->op, OPERATION_FLATTEN, name, NULL, r);
	worker_add(&s->worker, &o->job);
}
