// SPDX-License-Identifier: Apache-2.0
// Handlers of /v1/snapshots/{name}/prepare: templates and pools.
#include <errno.h>
#include <stdlib.h>

#include "api/ops_snapshot.h"
#include "api/pool.h"
#include "api/prepare.h"
#include "api/routes.h"
#include "api/vmjson.h"

struct prepare_op {
	struct prepare p;
	struct server *s;
	struct http_req *req;
	struct prepare_body body;
	struct manifest m; // what was prepared
	struct lazy *lazy; // its template: a reference, or NULL
	struct pool_waiter waiter;
	struct worker_job show;
	js *shown;
};

static void show_run(struct worker_job *j)
{
	struct prepare_op *o = MV_CONTAINER(j, struct prepare_op, show);
	o->shown = snapshot_json(o->s, &o->m);
}

static void show_done(struct worker_job *j)
{
	struct prepare_op *o = MV_CONTAINER(j, struct prepare_op, show);
	const struct pool *pool = pool_find(o->s, o->m.name);
	js *v = o->shown;
	if (o->lazy)
		js_put(v, "template", lazy_json(o->lazy));
	if (pool)
		js_put(v, "pool", pool_json(pool));
	reply_json(o->req, 200, v);
	lazy_unref(o->lazy);
	prepare_fini(&o->p);
	free(o);
}

// By the reader: its chain may be long.
static void prepare_answer(void *arg)
{
	struct prepare_op *o = arg;
	o->show = (struct worker_job){ .run = show_run, .done = show_done };
	worker_add(&o->s->reader, &o->show);
}

static int make_pool(struct prepare_op *o, struct api_err *err)
{
	const struct prepare_pool *b = &o->body.pool;
	struct pool_settings set = { b->size, b->min, b->max, b->idle_s };
	if (!o->body.has_pool)
		return 0;
	if (!b->size && !b->max) {
		pool_drop(o->s, o->m.name);
		return 0;
	}
	for (uint32_t i = 0; i < o->m.cfg.n_nets; i++)
		if (o->m.cfg.net[i].socket[0])
			return api_fail(
				err, API_INVALID_VALUE,
				"pool: net %s of snapshot %s is a socket, which a clone made in advance "
				"can't have; it can have taps and user networks",
				o->m.cfg.net[i].id, o->m.name);
	return pool_set(&o->p, &set, err);
}

static void on_prepared(struct prepare *p, const struct api_err *err)
{
	struct prepare_op *o = MV_CONTAINER(p, struct prepare_op, p);
	struct api_err e;
	if (err && p->cpu.n_missing) {
		reply_json(o->req, api_code_info(err->code)->status, cpu_error_json(p->m.name, &p->cpu));
	} else if (err) {
		reply_err(o->req, err);
	} else {
		o->m = p->m;
		o->lazy = p->lazy ? lazy_ref(p->lazy) : NULL;
		if (!make_pool(o, &e)) {
			struct pool *pool = o->body.wait ? pool_find(o->s, o->m.name) : NULL;
			if (pool)
				pool_wait(pool, &o->waiter, prepare_answer, o);
			else
				prepare_answer(o);
			return;
		}
		reply_err(o->req, &e);
		lazy_unref(o->lazy);
	}
	prepare_fini(p);
	free(o);
}

void op_snap_prepare(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct prepare_op *o = calloc(1, sizeof *o);
	int result = o ? prepare_parse(body_of(r), &o->body, &err)
		       : api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (result) {
		free(o);
		reply_err(r, &err);
		return;
	}
	o->s = s;
	o->req = r;
	o->p.fill = o->p.start_fill = o->body.fill;
	o->p.wait = o->body.wait;
	o->p.whole_if_huge = o->body.has_pool;
	prepare_begin(&o->p, s, name, on_prepared);
}

void op_snap_unprepare(struct server *s, struct http_req *r, const char *name)
{
	static struct manifest m; // the loop's thread only
	struct mv_err e = { 0 };
	struct api_err err;
	int result = snap_name_check(name, &err);
	if (!result && store_show(&s->store, name, &m, &e))
		result = snap_error(&err, &e, API_SNAPSHOT_CORRUPT);
	if (result) {
		reply_err(r, &err);
		return;
	}
	pool_drop(s, name);
	lazy_drop(s, name);
	reply_empty(r);
}
