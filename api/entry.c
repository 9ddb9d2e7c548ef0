// SPDX-License-Identifier: Apache-2.0
#include "api/entry.h"

#include <stdlib.h>
#include <string.h>

#include "api/etag.h"
#include "api/idem.h"
#include "api/vmjson.h"
#include "microvm/base/util.h"

#define SMALL_BODY 8192 // bytes; and it has at most SMALL_COUNT objects and arrays
#define SMALL_COUNT 64

struct entry {
	struct worker_job job;
	struct server *s;
	const struct route *t;
	struct http_req *r;
	char name[ROUTE_NAME_LEN];
	bool parses, looks;
	js *tree;
	int result;
	struct api_err err;
	struct etag_seen seen;
};

static void enter(struct server *s, const struct route *t, struct http_req *r, const char *name,
		  const struct entry *e)
{
	struct api_err err;
	if (s->stopping) {
		api_fail(&err, API_SHUTTING_DOWN, "the daemon is ending");
		reply_err(r, &err);
		return;
	}
	int begun = idem_begin(s, t, r, &err); // first: a repeated request finds its object changed
	if (!begun)
		begun = etag_check(s, t, r, name, e && e->looks ? &e->seen : NULL, &err);
	if (!begun && e && e->result) {
		begun = e->result;
		err = e->err;
	}
	if (begun < 0)
		reply_err(r, &err);
	if (begun)
		return;
	r->parsed = e ? e->tree : NULL;
	t->fn(s, r, name);
}

static void look_run(struct worker_job *j)
{
	struct entry *e = (struct entry *)j;
	if (e->parses)
		e->result = js_body_parse(e->t->body, e->r->body, e->r->body_len, &e->tree, &e->err);
	if (e->looks)
		etag_look(e->s, e->name, &e->seen);
}

// As long as parsing takes freeing what it made.
static void free_run(struct worker_job *j) { js_free(((struct entry *)j)->tree); }
static void free_done(struct worker_job *j) { free(j); }

static void look_done(struct worker_job *j)
{
	struct entry *e = (struct entry *)j;
	enter(e->s, e->t, e->r, e->name, e);
	if (!e->tree) {
		free(e);
		return;
	}
	e->job.run = free_run;
	e->job.done = free_done;
	worker_add(&e->s->reader, &e->job);
}

bool entry_body_is_small(const struct http_req *r)
{
	unsigned n = 0;
	for (size_t i = 0; i < r->body_len && r->body_len <= SMALL_BODY; i++)
		n += r->body[i] == '{' || r->body[i] == '[';
	return r->body_len <= SMALL_BODY && n <= SMALL_COUNT;
}

// Thousands of clones are more than decoding can leave for the loop, so their handlers have a way of their
// own.
static bool must_parse(const struct route *t, const struct http_req *r)
{
	return t->body && t->body != &clone_table && !entry_body_is_small(r);
}

void entry_begin(struct server *s, const struct route *t, struct http_req *r, const char *name)
{
	bool parses = must_parse(t, r), looks = etag_must_look(t, r, name);
	struct api_err err;
	if (!parses && !looks) {
		enter(s, t, r, name, NULL);
		return;
	}
	struct entry *e = calloc(1, sizeof *e);
	if (!e) {
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
		reply_err(r, &err);
		return;
	}
	*e = (struct entry){ .job = { .run = look_run, .done = look_done },
			     .s = s,
			     .t = t,
			     .r = r,
			     .parses = parses,
			     .looks = looks };
	mv_strcpy(e->name, sizeof e->name, name);
	worker_add(&s->reader, &e->job);
}
