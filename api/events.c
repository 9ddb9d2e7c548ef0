// SPDX-License-Identifier: Apache-2.0
#include "api/events.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "api/json.h"
#include "api/routes.h"
#include "api/vm.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define MAX_LINE PIPE_BUF
#define LINES_AT_ONCE 8

struct entry {
	uint64_t unix_ns, count;
	enum event_type type;
	char vm[VMCFG_NAME_LEN], vm_id[MV_UUID_LEN];
	char snapshot[VMCFG_NAME_LEN], snapshot_id[MV_UUID_LEN];
	char reason[32], detail[128];
	char *line; // as text, once somebody wanted it
};

struct stream {
	LIST_ENTRY(stream) link;
	struct events *ev;
	int fd; // ours of the pipe; -1: ended
	struct mv_watch watch;
	uint64_t next;      // number of the event it gets next
	uint64_t types;     // a bit per type
	uint64_t lost_from; // what it asked for is not there: the number behind which; 0: nothing
	uint64_t heartbeat; // due, CLOCK_MONOTONIC ns
	bool full, follow, cut;
	struct mv_work work; // it is being written to
};

struct events {
	struct server *s;
	struct entry ring[EVENTS_KEPT];
	uint64_t first, next; // numbers of the first event of this run, and of the one to come
	struct mv_timer deliver, heartbeat;
	bool pending;
	LIST_HEAD(, stream) streams;
	unsigned n_streams;
};

static const char *const names[EVENT_N_TYPES] = {
#define X(sym, name, doc) name,
	EVENT_TYPES(X)
#undef X
};

const char *event_type_name(enum event_type type) { return names[type]; }

static uint64_t unix_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t oldest(const struct events *ev)
{
	return ev->next - ev->first > EVENTS_KEPT ? ev->next - EVENTS_KEPT : ev->first;
}

// --- lines ------------------------------------------------------------------------------
static void put_word(js *o, const char *key, const char *text)
{
	if (text[0])
		js_put_str(o, key, text);
}

static js *line_begin(uint64_t seq, uint64_t time_ns, const char *type)
{
	js *o = js_object();
	js_put_uint(o, "seq", seq);
	put_time(o, "time", time_ns);
	js_put_str(o, "type", type);
	return o;
}

static js *entry_json(uint64_t seq, const struct entry *e)
{
	js *o = line_begin(seq, e->unix_ns, names[e->type]);
	put_word(o, "vm", e->vm);
	put_word(o, "vm_id", e->vm_id);
	put_word(o, "snapshot", e->snapshot);
	put_word(o, "snapshot_id", e->snapshot_id);
	put_word(o, "reason", e->reason);
	put_word(o, "detail", e->detail);
	if (e->count)
		js_put_uint(o, "count", e->count);
	return o;
}

// --- streams ------------------------------------------------------------------------------
static void stream_end(struct stream *t)
{
	mv_watch_del(&t->watch);
	mv_close(&t->fd);
}

static void deliver_to(struct stream *t);

static void on_room(void *arg, uint32_t events)
{
	struct stream *t = arg;
	(void)events;
	mv_watch_del(&t->watch);
	t->full = false;
	deliver_to(t);
}

// One line. False: not now, or never again.
static bool put_text(struct stream *t, const char *text)
{
	size_t len = text ? strlen(text) : 0;
	ssize_t n = text && len <= MAX_LINE ? write(t->fd, text, len) : -1;
	if (n == (ssize_t)len && text) {
		t->heartbeat = mv_now_ns() + EVENTS_HEARTBEAT_MS * 1000000ull;
		return true;
	}
	t->full = text && errno == EAGAIN &&
		  !mv_watch_add(&t->ev->s->loop, &t->watch, t->fd, EPOLLOUT, on_room, t);
	if (!t->full)
		stream_end(t); // the client is gone, or there is no memory
	return false;
}

static bool put_json(struct stream *t, js *o)
{
	MV_FREE char *text = js_text(o, false);
	return put_text(t, text);
}

// It is told where it goes on, by the number of the event before.
static bool put_lost(struct stream *t)
{
	js *o = line_begin(t->next - 1, unix_ns(), "lost");
	js_put_uint(o, "after", t->lost_from);
	if (t->cut)
		js_put_str(o, "reason", "too slow");
	if (!put_json(t, o))
		return false;
	t->lost_from = 0;
	if (t->cut)
		stream_end(t);
	return !t->cut;
}

static enum mv_work_more deliver_some(void *arg)
{
	struct stream *t = arg;
	struct events *ev = t->ev;
	if (t->fd < 0 || t->full)
		return MV_WORK_OVER;
	if (t->next < oldest(ev)) { // the ring went over it while it did not read
		t->cut = true;
		t->lost_from = t->next - 1;
		t->next = oldest(ev);
	}
	if (t->lost_from && !put_lost(t))
		return MV_WORK_OVER;
	for (unsigned n = 0; t->next < ev->next; t->next++) {
		struct entry *e = &ev->ring[t->next % EVENTS_KEPT];
		if (!(t->types & 1ull << e->type))
			continue;
		if (n++ == LINES_AT_ONCE)
			return MV_WORK_MORE;
		if (!e->line)
			e->line = js_text(entry_json(t->next, e), false);
		if (!put_text(t, e->line))
			return MV_WORK_OVER;
	}
	if (!t->follow)
		stream_end(t);
	return MV_WORK_OVER;
}

static void deliver_to(struct stream *t) { mv_work_start(&t->ev->s->loop, &t->work, deliver_some, t); }

static void deliver(void *arg)
{
	struct events *ev = arg;
	struct stream *t;
	ev->pending = false;
	LIST_FOREACH (t, &ev->streams, link)
		deliver_to(t);
}

// Also how a client that went away without a word is noticed.
static void on_heartbeat(void *arg)
{
	struct events *ev = arg;
	struct stream *t;
	uint64_t now = mv_now_ns(), next = now + EVENTS_HEARTBEAT_MS * 1000000ull;
	LIST_FOREACH (t, &ev->streams, link) {
		if (t->fd >= 0 && !t->full && t->heartbeat <= now)
			put_json(t, line_begin(ev->next - 1, unix_ns(), "heartbeat"));
		if (t->fd >= 0 && !t->full && t->heartbeat < next)
			next = t->heartbeat;
	}
	if (ev->n_streams)
		mv_timer_arm(&ev->heartbeat, next - now);
}

// http.c: at the end of the pipe, and when the connection is done with it.
static bool on_stream(void *arg, bool at_end)
{
	struct stream *t = arg;
	if (at_end)
		return true;
	stream_end(t);
	mv_work_cancel(&t->work);
	LIST_REMOVE(t, link);
	t->ev->n_streams--;
	free(t);
	return false;
}

// --- the route ------------------------------------------------------------------------------
// "vm" means all types that begin with "vm.".
static int parse_types(const char *text, uint64_t *ret_types, struct api_err *err)
{
	uint64_t types = 0;
	while (*text) {
		size_t n = strcspn(text, ",");
		uint64_t found = 0;
		for (unsigned i = 0; i < EVENT_N_TYPES; i++)
			if (n && !strncmp(names[i], text, n) && (!names[i][n] || names[i][n] == '.'))
				found |= 1ull << i;
		if (!found)
			return api_fail(
				err, API_INVALID_VALUE,
				"types: \"%.*s\" is no type of an event; vm, snapshot, template, pager, "
				"pool, daemon, or one of them as vm.exited",
				(int)(n < 64 ? n : 64), text);
		types |= found;
		text += n + (text[n] == ',');
	}
	*ret_types = types;
	return types ? 0 : api_fail(err, API_INVALID_VALUE, "types: is empty");
}

static int parse_query(struct events *ev, struct http_req *r, struct stream *t, struct api_err *err)
{
	const char *types = http_query(r, "types"), *follow = http_query(r, "follow");
	uint64_t since;
	if (query_uint(r, "since", INT64_MAX, ev->next - 1, &since, err) ||
	    query_bool(r, "follow", &t->follow, err) || (types && parse_types(types, &t->types, err)))
		return -EINVAL;
	t->follow |= !follow;
	t->next = since + 1;
	if (since && (t->next < oldest(ev) || t->next > ev->next))
		t->lost_from = since; // also one of a clock that was ahead of ours
	if (t->next < oldest(ev) || t->next > ev->next)
		t->next = oldest(ev);
	if (!since && ev->next - ev->first > EVENTS_KEPT)
		t->lost_from = ev->first - 1;
	return 0;
}

static int stream_begin(struct events *ev, struct http_req *r, struct stream *t, int *ret_fd,
			struct api_err *err)
{
	int fds[2];
	if (parse_query(ev, r, t, err))
		return -EINVAL;
	if (ev->n_streams >= EVENTS_MAX_STREAMS)
		return api_fail(err, API_LIMIT_REACHED, "%d clients follow the events already",
				EVENTS_MAX_STREAMS);
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK))
		return api_fail(err, API_LIMIT_REACHED, "no pipe: %s", strerror(errno));
	*ret_fd = fds[0];
	t->fd = fds[1];
	return 0;
}

void op_events(struct server *s, struct http_req *r, const char *name)
{
	struct events *ev = s->events;
	struct stream *t = calloc(1, sizeof *t);
	struct api_err err;
	int fd = -1;
	(void)name;
	if (!t) {
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
		reply_err(r, &err);
		return;
	}
	*t = (struct stream){ .ev = ev, .fd = -1, .types = UINT64_MAX };
	if (stream_begin(ev, r, t, &fd, &err)) {
		free(t);
		reply_err(r, &err);
		return;
	}
	t->heartbeat = mv_now_ns() + EVENTS_HEARTBEAT_MS * 1000000ull;
	LIST_INSERT_HEAD(&ev->streams, t, link);
	if (!ev->n_streams++)
		mv_timer_arm(&ev->heartbeat, EVENTS_HEARTBEAT_MS * 1000000ull);
	deliver_to(t);
	http_reply_stream(r, 200, "application/x-ndjson", fd, on_stream, t);
}

// --- events ---------------------------------------------------------------------------------
static void copy(char *dst, size_t size, const char *src) { snprintf(dst, size, "%s", src ? src : ""); }

void event_emit(struct server *s, enum event_type type, const struct event_info *info)
{
	struct events *ev = s->events;
	if (!ev)
		return; // before the daemon serves, or after
	struct entry *e = &ev->ring[ev->next++ % EVENTS_KEPT];
	free(MV_TAKE(e->line));
	e->unix_ns = unix_ns();
	e->type = type;
	e->count = info->count;
	copy(e->vm, sizeof e->vm, info->vm ? info->vm->cfg.name : info->vm_name);
	copy(e->vm_id, sizeof e->vm_id, info->vm ? info->vm->cfg.id : NULL);
	copy(e->snapshot, sizeof e->snapshot, info->snapshot);
	copy(e->snapshot_id, sizeof e->snapshot_id, info->snapshot_id);
	copy(e->reason, sizeof e->reason, info->reason);
	copy(e->detail, sizeof e->detail, info->detail);
	if (!ev->n_streams || ev->pending)
		return;
	ev->pending = true; // written in the loop's next turn, not in the path of a clone
	mv_timer_arm(&ev->deliver, 0);
}

unsigned events_streams(const struct server *s) { return s->events ? s->events->n_streams : 0; }

int events_new(struct server *s, struct mv_err *err)
{
	struct events *ev = calloc(1, sizeof *ev);
	if (!ev)
		return mv_fail(err, ENOMEM, "no memory for events");
	ev->s = s;
	ev->first = ev->next = unix_ns() / 1000;
	LIST_INIT(&ev->streams);
	s->events = ev;
	int r = mv_timer_init(&s->loop, &ev->deliver, deliver, ev);
	r = r ? r : mv_timer_init(&s->loop, &ev->heartbeat, on_heartbeat, ev);
	if (r) {
		events_free(s);
		return mv_fail(err, -r, "events: no timer: %s", strerror(-r));
	}
	event_emit(s, EVENT_DAEMON_STARTED, &(struct event_info){ .detail = THAW_VERSION });
	return 0;
}

void events_end(struct server *s)
{
	struct events *ev = s->events;
	struct stream *t;
	if (!ev)
		return;
	event_emit(s, EVENT_DAEMON_STOPPING, &(struct event_info){ 0 });
	LIST_FOREACH (t, &ev->streams, link) {
		while (deliver_some(t) == MV_WORK_MORE)
			;
		stream_end(t);
	}
}

void events_free(struct server *s)
{
	struct events *ev = s->events;
	if (!ev)
		return;
	mv_timer_fini(&ev->deliver);
	mv_timer_fini(&ev->heartbeat);
	for (unsigned i = 0; i < EVENTS_KEPT; i++)
		free(ev->ring[i].line);
	s->events = NULL;
	free(ev);
}
