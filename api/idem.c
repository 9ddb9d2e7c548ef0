// SPDX-License-Identifier: Apache-2.0
#include "api/idem.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/util.h"

struct waiter {
	SLIST_ENTRY(waiter) link;
	struct http_req *req;
};

struct idem_entry {
	char key[IDEM_KEY_MAX + 1]; // first: what the tree compares
	const struct route *route;
	struct mv_buf request; // path, NUL, body
	SLIST_HEAD(, waiter) waiters;
	// the answer, once it is there: then in the list
	TAILQ_ENTRY(idem_entry) link;
	uint64_t done_ns;
	unsigned status;
	struct mv_buf answer;
};

static int by_key(const void *a, const void *b) { return strcmp(a, b); }

bool idem_of(const struct route *t) { return !strcmp(t->method, "POST"); }

static size_t size_of(const struct idem_entry *e) { return sizeof *e + e->request.len + e->answer.len; }

static void forget(struct server *s, struct idem_entry *e)
{
	tdelete(e, &s->idem.by_key, by_key);
	mv_buf_fini(&e->request);
	mv_buf_fini(&e->answer);
	free(e);
}

// Those that are too old or too many.
static void trim(struct server *s)
{
	struct idem *all = &s->idem;
	uint64_t keep_ns = all->keep_s * 1000000000ull, now = mv_now_ns();
	struct idem_entry *e;
	while ((e = TAILQ_FIRST(&all->kept)) &&
	       (now - e->done_ns >= keep_ns || all->n_kept > IDEM_MAX_KEYS || all->bytes > IDEM_MAX_BYTES)) {
		TAILQ_REMOVE(&all->kept, e, link);
		all->n_kept--;
		all->bytes -= size_of(e);
		forget(s, e);
	}
}

static void replay(struct http_req *r, unsigned status, const void *body, size_t len)
{
	const struct http_header h = { IDEM_REPLAYED, "true" };
	char *copy = len ? malloc(len) : NULL;
	if (len && !copy) {
		struct api_err err;
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
		reply_err(r, &err);
		return;
	}
	if (len)
		memcpy(copy, body, len);
	http_reply(r, status, len ? "application/json" : NULL, copy, len, &h, 1);
}

static int wait_for(struct idem_entry *e, struct http_req *r, struct api_err *err)
{
	struct waiter *w = calloc(1, sizeof *w);
	if (!w)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	w->req = r;
	SLIST_INSERT_HEAD(&e->waiters, w, link);
	return 1;
}

static bool same(const struct idem_entry *e, const struct route *t, const struct http_req *r)
{
	size_t n = strlen(r->path) + 1;
	return e->route == t && e->request.len == n + r->body_len && !memcmp(e->request.p, r->path, n) &&
	       (!r->body_len || !memcmp(e->request.p + n, r->body, r->body_len));
}

static int again(struct idem_entry *e, const struct route *t, struct http_req *r, struct api_err *err)
{
	if (!same(e, t, r))
		return api_fail(err, API_IDEMPOTENCY_MISMATCH,
				IDEM_HEADER " \"%s\" was used by another request: %s %s with a body of %zu "
					    "bytes",
				e->key, e->route->method, (char *)e->request.p,
				e->request.len - strlen((char *)e->request.p) - 1);
	if (!e->done_ns)
		return wait_for(e, r, err);
	replay(r, e->status, e->answer.p, e->answer.len);
	return 1;
}

static int first(struct server *s, const struct route *t, struct http_req *r, const char *key,
		 struct api_err *err)
{
	if (s->idem.n_running >= IDEM_MAX_KEYS)
		return api_fail(err, API_LIMIT_REACHED, "%d requests with an " IDEM_HEADER " are in progress",
				IDEM_MAX_KEYS);
	struct idem_entry *e = calloc(1, sizeof *e);
	if (!e)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	mv_strcpy(e->key, sizeof e->key, key);
	e->route = t;
	mv_buf_append(&e->request, r->path, strlen(r->path) + 1);
	if (r->body_len)
		mv_buf_append(&e->request, r->body, r->body_len);
	if (e->request.failed || !tsearch(e, &s->idem.by_key, by_key)) {
		mv_buf_fini(&e->request);
		free(e);
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	}
	s->idem.n_running++;
	r->keyed = e;
	return 0;
}

int idem_begin(struct server *s, const struct route *t, struct http_req *r, struct api_err *err)
{
	const char *key = idem_of(t) ? http_field(r, IDEM_HEADER) : NULL;
	if (!key)
		return 0;
	size_t n = 0;
	while (key[n] > ' ' && key[n] <= '~')
		n++;
	if (!n || key[n] || n > IDEM_KEY_MAX)
		return api_fail(err, API_INVALID_VALUE,
				IDEM_HEADER ": 1 to %d visible ASCII characters are allowed", IDEM_KEY_MAX);
	trim(s);
	struct idem_entry **at = tfind(key, &s->idem.by_key, by_key);
	return at ? again(*at, t, r, err) : first(s, t, r, key, err);
}

void idem_answered(struct server *s, const struct http_req *r, unsigned status, const void *body, size_t len)
{
	struct idem_entry *e = r->keyed;
	struct waiter *w;
	s->idem.n_running--;
	while ((w = SLIST_FIRST(&e->waiters))) {
		SLIST_REMOVE_HEAD(&e->waiters, link);
		replay(w->req, status, body, len);
		free(w);
	}
	if (len)
		mv_buf_append(&e->answer, body, len);
	if (status >= 500 || status == 408 || status == 409 || status == 412 || e->answer.failed) {
		forget(s, e);
		return;
	}
	e->status = status;
	e->done_ns = mv_now_ns();
	TAILQ_INSERT_TAIL(&s->idem.kept, e, link);
	s->idem.n_kept++;
	s->idem.bytes += size_of(e);
	trim(s);
}

void idem_free(struct server *s)
{
	while (s->idem.by_key)
		forget(s, *(struct idem_entry **)s->idem.by_key);
}
