// SPDX-License-Identifier: Apache-2.0
// Export, import and garbage collection.
//
// Theory of operation. An export or import has a thread of its own, since it lasts as long as
// its client is slow; it knows only files and one end of a pipe. http.c moves the bytes between
// the other end and the connection without ever waiting. What publishes or deletes is done
// by the one worker, as all such work is, in order.
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "api/events.h"
#include "api/operation.h"
#include "api/ops_snapshot.h"
#include "api/routes.h"
#include "api/vmjson.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "snapshot/transfer.h"

#define PIPE_BYTES (1 << 20)

struct transfer {
	struct worker_job job;
	struct server *s;
	int fd; // the thread's end of the pipe
	int result;
	struct mv_err err;
	struct operation op;
	// export: used by its job and by the stream, whichever ends last
	unsigned refs;
	atomic_bool intact;
	struct store_export *x;
	// import
	struct http_req *req;
	struct store_draft draft;
	struct manifest m;
	js *shown;
};

static struct transfer *transfer_new(struct server *s)
{
	struct transfer *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	t->s = s;
	t->fd = -1;
	t->refs = 1;
	return t;
}

static void transfer_unref(struct transfer *t)
{
	if (--t->refs)
		return;
	mv_close(&t->fd);
	store_export_free(t->x);
	free(t);
}

// A thread that has nothing to do; made when it is first needed.
static int find_worker(struct server *s, struct worker **ret_w, struct api_err *err)
{
	struct mv_err e;
	for (unsigned i = 0; i < MAX_TRANSFERS; i++) {
		struct worker *w = &s->transfers[i];
		if (w->n_jobs)
			continue;
		if (!w->started && worker_init(w, &s->loop, &e))
			return api_from(err, &e, API_INTERNAL);
		*ret_w = w;
		return 0;
	}
	return api_fail(err, API_LIMIT_REACHED, "%d exports and imports are in progress; wait for one to end",
			MAX_TRANSFERS);
}

// Makes the pipe: `mine` (0: reads, 1: writes) is the thread's end, the other one never blocks.
static int make_pipe(struct transfer *t, int mine, int *ret_fd, struct api_err *err)
{
	int fds[2];
	if (pipe2(fds, O_CLOEXEC))
		return api_fail(err, API_LIMIT_REACHED, "no pipe: %s", strerror(errno));
	fcntl(fds[0], F_SETPIPE_SZ, PIPE_BYTES); // else slower
	fcntl(fds[!mine], F_SETFL, fcntl(fds[!mine], F_GETFL) | O_NONBLOCK);
	t->fd = fds[mine];
	*ret_fd = fds[!mine];
	return 0;
}

typedef int begin_fn(struct transfer *t, const char *name, struct worker **ret_w, int *ret_fd,
		     struct api_err *err);

// NULL: what failed has been answered.
static struct transfer *transfer_begin(struct server *s, struct http_req *r, const char *name,
				       begin_fn *begin, struct worker **ret_w, int *ret_fd)
{
	struct transfer *t = transfer_new(s);
	struct api_err err;
	int result = t ? begin(t, name, ret_w, ret_fd, &err)
		       : api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (!result)
		return t;
	if (t)
		transfer_unref(t);
	reply_err(r, &err);
	return NULL;
}

// --- export ---------------------------------------------------------------------------
static void export_run(struct worker_job *j)
{
	struct transfer *t = (struct transfer *)j;
	mv_progress_set(&t->op.progress);
	t->result = store_export_write(t->x, t->fd, &t->err);
	mv_progress_set(NULL);
	atomic_store(&t->intact, !t->result);
	mv_close(&t->fd);
}

static void export_done(struct worker_job *j)
{
	struct transfer *t = (struct transfer *)j;
	operation_end(&t->op);
	if (t->result && t->result != -EPIPE) // the client went away: its own affair
		mv_log(MV_ERROR, "export of snapshot %s: %s", t->x->m.name, t->err.msg);
	transfer_unref(t);
}

static bool on_stream(void *arg, bool at_end)
{
	struct transfer *t = arg;
	if (at_end)
		return atomic_load(&t->intact);
	transfer_unref(t);
	return false;
}

static int export_begin(struct transfer *t, const char *name, struct worker **ret_w, int *ret_fd,
			struct api_err *err)
{
	struct mv_err e = { 0 };
	if (snap_name_check(name, err))
		return -EINVAL;
	if (store_export_open(&t->s->store, name, &t->x, &e))
		return snap_error(err, &e, API_SNAPSHOT_CORRUPT);
	int r = find_worker(t->s, ret_w, err);
	return r ? r : make_pipe(t, 1, ret_fd, err);
}

void op_snap_export(struct server *s, struct http_req *r, const char *name)
{
	struct worker *w;
	int fd;
	struct transfer *t = transfer_begin(s, r, name, export_begin, &w, &fd);
	if (!t)
		return;
	t->job.run = export_run;
	t->job.done = export_done;
	t->refs++;
	operation_begin(s, &t->op, OPERATION_EXPORT, name, NULL, r);
	http_reply_stream(r, 200, "application/octet-stream", fd, on_stream, t);
	worker_add(w, &t->job);
}

// --- import ---------------------------------------------------------------------------------
static void import_end(struct worker_job *j)
{
	struct transfer *t = (struct transfer *)j;
	struct api_err err;
	operation_end(&t->op);
	if (t->result) {
		// ENOENT: a parent that is not here
		enum api_code code = t->err.code == EINVAL || t->err.code == EFBIG || t->err.code == ENOENT
					     ? API_IMPORT_INVALID
					     : API_INTERNAL;
		if (t->err.code == EEXIST)
			snap_error(&err, &t->err, code);
		else
			api_from(&err, &t->err, code);
		reply_err(t->req, &err);
	} else {
		event_emit(t->s, EVENT_SNAPSHOT_CREATED,
			   &(struct event_info){ .snapshot = t->m.name, .snapshot_id = t->m.id });
		reply_json(t->req, 201, t->shown);
	}
	transfer_unref(t);
}

static void commit_run(struct worker_job *j)
{
	struct transfer *t = (struct transfer *)j;
	mv_progress_set(&t->op.progress);
	t->result = store_commit_import(&t->s->store, &t->draft, &t->m, &t->err);
	mv_progress_set(NULL);
	t->shown = t->result ? NULL : manifest_json(t->s, &t->m);
}

static void import_run(struct worker_job *j)
{
	struct transfer *t = (struct transfer *)j;
	mv_progress_set(&t->op.progress);
	t->result = store_import_read(&t->draft, t->fd, &t->m, &t->err);
	mv_progress_set(NULL);
	mv_close(&t->fd); // the rest of the body is thrown away
	if (t->result)
		store_abort(&t->s->store, &t->draft);
}

static void import_done(struct worker_job *j)
{
	struct transfer *t = (struct transfer *)j;
	if (t->result) {
		import_end(j);
		return;
	}
	t->job.run = commit_run;
	t->job.done = import_end;
	worker_add(&t->s->worker, &t->job);
}

static int import_begin(struct transfer *t, const char *name, struct worker **ret_w, int *ret_fd,
			struct api_err *err)
{
	struct mv_err e = { 0 };
	int r = find_worker(t->s, ret_w, err);
	if (r)
		return r;
	if (store_begin_import(&t->s->store, name, &t->draft, &e))
		return e.code == EINVAL ? api_fail(err, API_INVALID_VALUE, "%s", e.msg)
					: snap_error(err, &e, API_INTERNAL);
	r = make_pipe(t, 0, ret_fd, err);
	if (r)
		store_abort(&t->s->store, &t->draft);
	return r;
}

void op_snap_import(struct server *s, struct http_req *r, const char *name)
{
	struct worker *w;
	int fd;
	struct transfer *t = transfer_begin(s, r, name, import_begin, &w, &fd);
	if (!t)
		return;
	t->req = r;
	t->job.run = import_run;
	t->job.done = import_done;
	operation_begin(s, &t->op, OPERATION_IMPORT, name, NULL, r);
	http_take_body(r, fd);
	worker_add(w, &t->job);
}

// --- leftovers ------------------------------------------------------------------------------
struct gc_job {
	struct worker_job job;
	struct server *s;
	struct http_req *req;
	js *list;
	struct store_gc gc;
	int result;
	struct mv_err err;
};

static void add_removed(void *arg, const char *entry, uint64_t bytes)
{
	js *o = js_object();
	js_put_str(o, "entry", entry);
	js_put_str(o, "was",
		   !strncmp(entry, "draft-", 6)  ? "unfinished snapshot"
		   : !strncmp(entry, "gone-", 5) ? "deleted snapshot"
						 : "foreign");
	js_put_uint(o, "disk_bytes", bytes);
	js_add(arg, o);
}

static void gc_run(struct worker_job *j)
{
	struct gc_job *g = (struct gc_job *)j;
	g->result = store_gc(&g->s->store, add_removed, g->list, &g->gc, &g->err);
}

static void gc_done(struct worker_job *j)
{
	struct gc_job *g = (struct gc_job *)j;
	struct api_err err;
	if (g->result) {
		js_free(g->list);
		api_from(&err, &g->err, API_INTERNAL);
		reply_err(g->req, &err);
	} else {
		js *o = js_object();
		js_put(o, "removed", g->list);
		js_put_uint(o, "freed_bytes", g->gc.freed_bytes);
		js_put_uint(o, "kept", g->gc.kept);
		reply_json(g->req, 200, o);
	}
	free(g);
}

void op_gc(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct gc_job *g = NULL;
	int result = js_decode_body(&empty_table, body_of(r), NULL, &err);
	(void)name;
	if (!result && !(g = calloc(1, sizeof *g)))
		result = api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (result) {
		reply_err(r, &err);
		return;
	}
	*g = (struct gc_job){ .job.run = gc_run, .job.done = gc_done, .s = s, .req = r, .list = js_list() };
	worker_add(&s->worker, &g->job);
}
