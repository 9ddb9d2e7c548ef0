// SPDX-License-Identifier: Apache-2.0
// GET /v1/snapshots and GET /v1/snapshots/{name}. The reader's thread reads what they show, a thousand
// manifests for a list of a thousand, and makes the text; it shares nothing but the store with the loop.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/etag.h"
#include "api/ops_snapshot.h"
#include "api/page.h"
#include "api/pool.h"
#include "api/record.h"
#include "api/routes.h"

struct listing {
	struct worker_job job;
	struct server *s;
	struct http_req *req;
	char *text; // NULL: no memory
	js *list;
	struct page page;
	struct chain_list chains;
	struct store_usage total;
};

static int add_snapshot(void *arg, const char *name, const struct manifest *m, const struct mv_err *err)
{
	struct listing *l = arg;
	bool wanted = page_has(&l->page, name);
	js *o = NULL;
	if (m) {
		struct store_usage u = store_usage(&l->s->store, m);
		l->total.apparent_bytes += u.apparent_bytes;
		l->total.disk_bytes += u.disk_bytes;
		o = wanted ? manifest_json(l->s, m) : NULL;
		chain_list_add(&l->chains, o, m); // it may be the parent of one that is
	} else if (wanted) {
		o = js_object();
		js_put_str(o, "name", name);
		js_put_str(o, "damaged", err->msg);
	}
	if (o)
		js_add(l->list, o);
	return 0;
}

static void list_run(struct worker_job *job)
{
	struct listing *l = (struct listing *)job;
	js *o = js_object();
	l->list = js_list();
	store_list(&l->s->store, add_snapshot, l);
	chain_list_put(&l->chains);
	js_put(o, "snapshots", l->list);
	put_usage(o, "storage", &l->total);
	page_put_next(o, &l->page);
	l->text = js_text(o, false);
}

static void list_done(struct worker_job *job)
{
	struct listing *l = (struct listing *)job;
	http_reply(l->req, l->text ? 200 : 500, "application/json", l->text, l->text ? strlen(l->text) : 0,
		   NULL, 0);
	free(l);
}

void op_snap_list(struct server *s, struct http_req *r, const char *name)
{
	struct listing *l = calloc(1, sizeof *l);
	struct api_err err;
	(void)name;
	if (!l)
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
	if (!l ||
	    page_query(r, &l->page, &err)) { // its words are the request's, which stays until the answer
		free(l);
		reply_err(r, &err);
		return;
	}
	l->s = s;
	l->req = r;
	l->job = (struct worker_job){ .run = list_run, .done = list_done };
	worker_add(&s->reader, &l->job);
}

// --- one ------------------------------------------------------------------------------------
static void put_cpu(js *o, struct server *s, const struct manifest *m)
{
	struct cpu_report r = { 0 };
	MV_FD state_fd = -1;
	MV_FD memory_fd = -1;
	if (store_files(&s->store, m, false, &state_fd, &memory_fd, NULL) ||
	    cpu_report(state_fd, s->kvm_path, &m->cfg.cpu, &r, NULL))
		return; // damaged: `verify` says how
	js *cpu = js_object();
	js_put_str(cpu, "vendor", r.vendor);
	if (r.model[0])
		js_put_str(cpu, "model_name", r.model);
	js_put_uint(cpu, "family", r.family);
	js_put_uint(cpu, "model", r.model_number);
	js_put_uint(cpu, "stepping", r.stepping);
	js_put(cpu, "features", js_split((const char *)r.features.p, ", "));
	if (r.compared)
		js_put(cpu, "missing", js_split((const char *)r.missing.p, ", "));
	js_put(o, "cpu", cpu);
	cpu_report_fini(&r);
}

struct showing {
	struct worker_job job;
	struct server *s;
	struct http_req *req;
	struct manifest m; // before: only the name
	int result;
	struct mv_err err;
	struct etag tag;
	js *o;
};

static void show_run(struct worker_job *job)
{
	struct showing *w = (struct showing *)job;
	w->result = store_show(&w->s->store, w->m.name, &w->m, &w->err);
	if (w->result)
		return;
	w->tag = etag_of_snapshot(w->s, &w->m);
	w->o = snapshot_json(w->s, &w->m);
	put_cpu(w->o, w->s, &w->m);
	js *set = working_set_json(w->s, &w->m);
	if (set)
		js_put(w->o, "working_set", set);
}

static void show_done(struct worker_job *job)
{
	struct showing *w = (struct showing *)job;
	struct api_err err;
	if (w->result) {
		snap_error(&err, &w->err, API_SNAPSHOT_CORRUPT);
		reply_err(w->req, &err);
	} else if (etag_reply_unchanged(w->req, &w->tag)) {
		js_free(w->o);
	} else {
		const struct lazy *t = lazy_find(w->s, &w->m);
		const struct pool *pool = pool_find(w->s, w->m.name);
		if (t)
			js_put(w->o, "template", lazy_json(t));
		if (pool)
			js_put(w->o, "pool", pool_json(pool));
		etag_reply(w->req, 200, &w->tag, w->o);
	}
	free(w);
}

void op_snap_show(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct showing *w = NULL;
	int result = snap_name_check(name, &err);
	if (!result && !(w = calloc(1, sizeof *w)))
		result = api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
	if (result) {
		reply_err(r, &err);
		return;
	}
	w->s = s;
	w->req = r;
	mv_strcpy(w->m.name, sizeof w->m.name, name);
	w->job = (struct worker_job){ .run = show_run, .done = show_done };
	worker_add(&s->reader, &w->job);
}
