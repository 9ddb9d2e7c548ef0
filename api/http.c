// SPDX-License-Identifier: Apache-2.0
// Theory of operation. libmicrohttpd runs in "external epoll" mode: its epoll descriptor is
// one watch of our loop. pump() lets it work; it is called when that descriptor is
// readable, when its time-out is due, and after any batch of events in which a suspended
// request was answered (so a reply leaves in the same turn of the loop).
//
// One request: on_uri() makes it -> on_access() with headers, with each piece of the body,
// and once more at its end -> handler. Answered inside the handler: the response is queued
// there. Otherwise the connection is suspended, http_reply() resumes it, and on_access()
// comes once more and queues. on_completed() frees it; only when the connection of an upload
// breaks it lives on until it is answered.
//
// Bodies that flow: a connection whose pipe is full (upload) or empty (stream) is suspended, and
// a watch of the pipe resumes it.
#include "api/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define DISCARD_MAX (16u * 1024 * 1024) // of a body that is too large, before we hang up
#define PUMP_ROUNDS 8
#define HANDLERS_NS 400000u // of a turn; a request beyond it is for the next one, which costs it some 5 us
#define STREAM_BLOCK (128u * 1024)
#define REPLY_BLOCK (32u * 1024) // of a large answer, for one connection at a time

// An answer that flows; made by http_reply_stream(), freed by stream_end().
struct stream {
	LIST_ENTRY(stream) link;
	struct http *h;
	struct MHD_Connection *con;
	int fd;                      // -1: cut off
	struct mv_watch watch, gone; // the pipe; the connection, while suspended
	bool suspended;
	http_stream_fn *fn;
	void *arg;
};

struct request {
	struct http_req pub;
	struct http *h;
	struct MHD_Connection *con; // NULL: an upload whose connection broke
	struct mv_buf body;
	size_t discarded;
	bool handed_over, answered, suspended;
	struct mv_work later; // the turn was over before it was handed over
	// upload
	LIST_ENTRY(request) link;
	int body_fd; // -1: not there, or the rest is thrown away
	struct mv_watch body_watch;
	bool body_suspended;
	// the answer
	unsigned status;
	char content_type[40];
	void *reply;
	size_t reply_len;
	struct http_header headers[HTTP_MAX_HEADERS];
	unsigned n_headers;
	struct stream *stream;
};

struct http {
	struct mv_loop *loop;
	struct MHD_Daemon *mhd;
	struct mv_watch watch;
	struct mv_timer timer;
	http_handler *fn;
	void *arg;
	int listen_fd;
	http_is_upload_fn *is_upload;
	http_answered_fn *answered;
	LIST_HEAD(, request) uploads; // with a body_fd
	LIST_HEAD(, stream) streams;  // with an fd
	unsigned pending, n_connections, max_connections;
	size_t max_body;
	bool work; // something was resumed
	bool look; // the last turn was cut: the rest of its events come before ours, so look
	uint64_t turn_ns, handlers_ns; // the turn, and how long its handlers took
	uint64_t id_base, last_id;     // of requests without an id of their own
};

static void pump(struct http *h)
{
	MHD_UNSIGNED_LONG_LONG ms = 0;
	int has = MHD_NO;
	for (int i = 0; i < PUMP_ROUNDS; i++) {
		h->work = false;
		MHD_run(h->mhd);
		has = MHD_get_timeout(h->mhd, &ms);
		if ((!h->work && (has == MHD_NO || ms > 0)) || !mv_loop_has_time(h->loop))
			break;
	}
	if (has == MHD_YES || h->work)
		mv_timer_arm(&h->timer, h->work ? 0 : ms * 1000000u);
	else
		mv_timer_disarm(&h->timer);
}

static void on_epoll(void *arg, uint32_t events)
{
	(void)events;
	pump(arg);
}

static void on_timer(void *arg) { pump(arg); }

static void before_wait(void *arg)
{
	struct http *h = arg;
	if (h->work || h->look)
		pump(h);
	h->look = h->loop->cut;
}

// The mark of a connection that came when there were enough.
static char one_too_many;

static void on_connection(void *arg, struct MHD_Connection *con, void **mark,
			  enum MHD_ConnectionNotificationCode what)
{
	struct http *h = arg;
	(void)con;
	if (what == MHD_CONNECTION_NOTIFY_CLOSED)
		h->n_connections--;
	else if (++h->n_connections > h->max_connections)
		*mark = &one_too_many;
}

static bool is_one_too_many(struct MHD_Connection *con)
{
	const union MHD_ConnectionInfo *i = MHD_get_connection_info(con, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	return i && i->socket_context == &one_too_many;
}

static void *on_uri(void *arg, const char *uri, struct MHD_Connection *con)
{
	struct request *r = calloc(1, sizeof *r);
	if (r) {
		r->h = arg;
		r->con = con;
		r->body_fd = -1;
		r->pub.received_ns = mv_now_ns();
		if (strlen(uri) > HTTP_MAX_URI)
			r->pub.refusal = HTTP_URI_TOO_LONG;
	}
	return r;
}

// --- bodies that flow ---

static void resume(struct http *h, struct MHD_Connection *con, struct mv_watch *w, bool *suspended)
{
	mv_watch_del(w);
	if (!*suspended)
		return;
	*suspended = false;
	h->work = true;
	MHD_resume_connection(con);
}

static void body_ready(void *arg, uint32_t events)
{
	struct request *r = arg;
	(void)events;
	resume(r->h, r->con, &r->body_watch, &r->body_suspended);
}

static void body_end(struct request *r)
{
	if (r->body_fd < 0)
		return;
	resume(r->h, r->con, &r->body_watch, &r->body_suspended);
	mv_close(&r->body_fd);
	LIST_REMOVE(r, link);
}

// Takes what the pipe takes; the rest comes again.
static enum MHD_Result body_data(struct request *r, const char *data, size_t *data_size)
{
	ssize_t n = r->body_fd < 0 ? 0 : write(r->body_fd, data, *data_size);
	if (n < 0 && errno == EAGAIN) {
		if (mv_watch_add(r->h->loop, &r->body_watch, r->body_fd, EPOLLOUT, body_ready, r))
			return MHD_NO;
		r->body_suspended = true;
		MHD_suspend_connection(r->con);
	} else if (n <= 0) { // the reader wants no more
		body_end(r);
		*data_size = 0;
	} else {
		*data_size -= (size_t)n;
	}
	return MHD_YES;
}

static void stream_resume(struct stream *t)
{
	mv_watch_del(&t->gone);
	resume(t->h, t->con, &t->watch, &t->suspended);
}

static void stream_ready(void *arg, uint32_t events)
{
	(void)events;
	stream_resume(arg);
}

static void stream_cut(struct stream *t);

static void stream_gone(void *arg, uint32_t events)
{
	(void)events;
	stream_cut(arg);
}

// Until there is something in the pipe. libmicrohttpd does not look at a suspended connection,
// so a hang-up is noticed by a watch of ours; without one, at the next byte.
static bool stream_wait(struct stream *t)
{
	const union MHD_ConnectionInfo *i =
		MHD_get_connection_info(t->con, MHD_CONNECTION_INFO_CONNECTION_FD);
	if (mv_watch_add(t->h->loop, &t->watch, t->fd, EPOLLIN, stream_ready, t))
		return false;
	if (i)
		mv_watch_add(t->h->loop, &t->gone, i->connect_fd, 0, stream_gone, t);
	t->suspended = true;
	MHD_suspend_connection(t->con);
	return true;
}

static ssize_t stream_read(void *arg, uint64_t pos, char *buf, size_t max)
{
	struct stream *t = arg;
	(void)pos;
	if (t->fd < 0)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	ssize_t n = read(t->fd, buf, max);
	if (n > 0)
		return n;
	if (n == 0)
		return t->fn(t->arg, true) ? MHD_CONTENT_READER_END_OF_STREAM
					   : MHD_CONTENT_READER_END_WITH_ERROR;
	return errno == EAGAIN && stream_wait(t) ? 0 : MHD_CONTENT_READER_END_WITH_ERROR;
}

static void stream_cut(struct stream *t)
{
	if (t->fd < 0)
		return;
	stream_resume(t);
	mv_close(&t->fd);
	LIST_REMOVE(t, link);
	t->fn(t->arg, false);
}

static void stream_end(void *arg)
{
	struct stream *t = arg;
	stream_cut(t);
	free(t);
}

void http_set_answered(struct http *h, http_answered_fn *fn) { h->answered = fn; }
void http_set_uploads(struct http *h, http_is_upload_fn *fn) { h->is_upload = fn; }

void http_take_body(struct http_req *pub, int fd)
{
	struct request *r = (struct request *)pub;
	r->body_fd = fd;
	LIST_INSERT_HEAD(&r->h->uploads, r, link);
}

void http_abort_bodies(struct http *h)
{
	while (!LIST_EMPTY(&h->uploads))
		body_end(LIST_FIRST(&h->uploads));
	struct stream *t;
	LIST_FOREACH (t, &h->streams, link)
		stream_resume(t);
	for (int i = 0; i < PUMP_ROUNDS && !LIST_EMPTY(&h->streams); i++)
		MHD_run(h->mhd);
	while (!LIST_EMPTY(&h->streams))
		stream_cut(LIST_FIRST(&h->streams));
}

// --- requests ---

static void request_free(struct request *r)
{
	if (r->stream) // never got to be sent
		stream_end(r->stream);
	free(r->reply);
	mv_buf_fini(&r->body);
	free(r);
}

static void on_completed(void *arg, struct MHD_Connection *con, void **con_cls,
			 enum MHD_RequestTerminationCode why)
{
	struct request *r = *con_cls;
	(void)arg, (void)con, (void)why;
	*con_cls = NULL;
	if (!r)
		return;
	if (r->handed_over && !r->answered && r->pub.upload) {
		body_end(r); // the handler will learn it from the pipe, and answer
		r->con = NULL;
		r->pub.path = r->pub.method = "(gone)";
		return;
	}
	if (r->handed_over && !r->answered) { // can't happen while suspended
		mv_log(MV_ERROR, "http: a request ended unanswered");
		return; // its owner still points to it
	}
	body_end(r);
	request_free(r);
}

// A whole answer at once into a socket would take milliseconds.
static ssize_t reply_read(void *reply, uint64_t pos, char *buf, size_t max)
{
	memcpy(buf, (const char *)reply + pos, max); // never more than is left
	return (ssize_t)max;
}

static struct MHD_Response *make_reply(struct request *r)
{
	if (r->stream)
		return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, stream_read,
							 r->stream, stream_end);
	if (r->reply_len > REPLY_BLOCK)
		return MHD_create_response_from_callback(r->reply_len, REPLY_BLOCK, reply_read, r->reply,
							 free);
	return MHD_create_response_from_buffer(r->reply_len, r->reply, MHD_RESPMEM_MUST_FREE);
}

static enum MHD_Result queue_reply(struct request *r)
{
	struct MHD_Response *m = make_reply(r);
	if (!m)
		return MHD_NO;
	r->reply = NULL;
	r->stream = NULL;
	if (r->content_type[0])
		MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, r->content_type);
	MHD_add_response_header(m, HTTP_REQUEST_ID, r->pub.id.text);
	if (r->pub.refusal == HTTP_FULL)
		MHD_add_response_header(m, MHD_HTTP_HEADER_CONNECTION, "close");
	for (unsigned i = 0; i < r->n_headers; i++)
		MHD_add_response_header(m, r->headers[i].name, r->headers[i].value);
	enum MHD_Result ok = MHD_queue_response(r->con, r->status, m);
	MHD_destroy_response(m);
	return ok;
}

static void run_handler(struct request *r)
{
	struct mv_log_tag before = mv_log_set_tag(r->pub.id);
	const struct mv_part part = mv_loop_enter(r->h->loop);
	uint64_t began_ns = mv_now_ns();
	r->h->fn(r->h->arg, &r->pub);
	r->h->handlers_ns += mv_now_ns() - began_ns;
	mv_loop_leave(r->h->loop, &part, r->pub.method, r->pub.path);
	mv_log_set_tag(before);
}

static enum mv_work_more run_later(void *arg)
{
	run_handler(arg);
	return MV_WORK_GONE;
}

static bool no_time(struct http *h)
{
	if (h->turn_ns != h->loop->woke_ns)
		h->handlers_ns = 0;
	h->turn_ns = h->loop->woke_ns;
	return h->handlers_ns > HANDLERS_NS;
}

// later: in the next turn, since this one's time is up: hundreds of clients may have asked at once.
static void hand_over(struct request *r, bool later)
{
	r->pub.body = (const char *)r->body.p;
	r->pub.body_len = r->body.len;
	r->handed_over = true;
	r->h->pending++;
	if (later)
		mv_work_start(r->h->loop, &r->later, run_later, r);
	else
		run_handler(r);
}

static bool id_ok(const char *s)
{
	size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:=+/-");
	return n && !s[n] && n < sizeof((struct mv_log_tag *)NULL)->text;
}

static enum MHD_Result add_size(void *arg, enum MHD_ValueKind kind, const char *key, const char *value)
{
	size_t *sum = arg;
	(void)kind;
	*sum += strlen(key) + (value ? strlen(value) : 0);
	return MHD_YES;
}

static void check_limits(struct request *r)
{
	size_t fields = 0;
	MHD_get_connection_values(r->con, MHD_HEADER_KIND, add_size, &fields);
	if (fields > HTTP_MAX_FIELDS)
		r->pub.refusal = HTTP_FIELDS_TOO_LARGE;
	if (is_one_too_many(r->con))
		r->pub.refusal = HTTP_FULL;
}

static void identify(struct request *r)
{
	const char *s = http_field(&r->pub, HTTP_REQUEST_ID);
	char *id = r->pub.id.text;
	r->pub.id_invalid = s && !id_ok(s);
	if (s && !r->pub.id_invalid)
		mv_strcpy(id, sizeof r->pub.id.text, s);
	else
		snprintf(id, sizeof r->pub.id.text, "%016llx-%llu", (unsigned long long)r->h->id_base,
			 (unsigned long long)++r->h->last_id);
}

// Somewhat too large a body is read and thrown away, so that its sender gets to see the
// answer; one beyond all measure is answered at once and the connection closed.
static bool announced_too_large(struct MHD_Connection *con)
{
	const char *s = MHD_lookup_connection_value(con, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
	return s && strtoull(s, NULL, 10) > DISCARD_MAX;
}

static bool expects_continue(struct MHD_Connection *con)
{
	const char *s = MHD_lookup_connection_value(con, MHD_HEADER_KIND, MHD_HTTP_HEADER_EXPECT);
	return s && !strcasecmp(s, "100-continue");
}

static enum MHD_Result wait_for_answer(struct request *r)
{
	r->suspended = true;
	MHD_suspend_connection(r->con);
	return MHD_YES;
}

// All calls for an upload after its headers. An early answer waits for the body's end: most
// clients read none before.
static enum MHD_Result on_upload(struct request *r, const char *data, size_t *data_size)
{
	if (*data_size)
		return body_data(r, data, data_size);
	body_end(r);
	return r->answered ? queue_reply(r) : wait_for_answer(r);
}

static enum MHD_Result on_access(void *arg, struct MHD_Connection *con, const char *url, const char *method,
				 const char *version, const char *data, size_t *data_size, void **con_cls)
{
	struct request *r = *con_cls;
	(void)arg, (void)version;
	if (!r)
		return MHD_NO;
	if (r->pub.upload)
		return on_upload(r, data, data_size);
	if (r->answered)
		return queue_reply(r);
	if (!r->pub.path) { // the headers are there
		r->pub.path = url;
		r->pub.method = method;
		identify(r);
		check_limits(r);
		r->pub.upload = r->h->is_upload && r->h->is_upload(method, url);
		if (r->pub.upload) {
			hand_over(r, false);
			return r->answered && expects_continue(con) ? queue_reply(r) : MHD_YES;
		}
		if (!announced_too_large(con))
			return MHD_YES;
		r->pub.body_too_large = true; // answered before the body is read
		hand_over(r, false);
		return r->answered ? queue_reply(r) : MHD_NO;
	}
	if (*data_size) {
		if (r->pub.body_too_large || *data_size > r->h->max_body - r->body.len) {
			r->pub.body_too_large = true;
			mv_buf_fini(&r->body);
			r->discarded += *data_size;
		} else {
			mv_buf_append(&r->body, data, *data_size);
		}
		*data_size = 0;
		return r->discarded > DISCARD_MAX || r->body.failed ? MHD_NO : MHD_YES;
	}
	hand_over(r, no_time(r->h));
	if (r->answered)
		return queue_reply(r);
	return wait_for_answer(r);
}

int http_new(struct mv_loop *l, int listen_fd, http_handler *fn, void *arg, const struct http_limits *limits,
	     struct http **ret_http, struct mv_err *err)
{
	const struct http_limits none = { 0 };
	struct http *h = calloc(1, sizeof *h);
	limits = limits ? limits : &none;
	if (!h)
		return mv_fail(err, ENOMEM, "http: no memory");
	*h = (struct http){ .loop = l, .fn = fn, .arg = arg, .listen_fd = listen_fd };
	h->max_body = limits->body_bytes ? limits->body_bytes : HTTP_MAX_BODY;
	h->max_connections = limits->connections ? limits->connections : HTTP_MAX_CONNECTIONS;
	mv_random(&h->id_base, sizeof h->id_base);
	h->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_access, h,
				  MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT,
				  h->max_connections + HTTP_SPARE_CONNECTIONS, MHD_OPTION_NOTIFY_CONNECTION,
				  on_connection, h, MHD_OPTION_CONNECTION_TIMEOUT,
				  limits->no_idle ? 0u : HTTP_IDLE_SECONDS, MHD_OPTION_NOTIFY_COMPLETED,
				  on_completed, h, MHD_OPTION_URI_LOG_CALLBACK, on_uri, h, MHD_OPTION_END);
	int r = h->mhd ? 0 : mv_fail(err, EIO, "http: libmicrohttpd refused to start");
	if (!r && mv_timer_init(l, &h->timer, on_timer, h))
		r = mv_fail(err, EMFILE, "http: no timer");
	if (!r) {
		const union MHD_DaemonInfo *i = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD);
		if (!i || mv_watch_add(l, &h->watch, i->epoll_fd, EPOLLIN, on_epoll, h))
			r = mv_fail(err, EIO, "http: no epoll descriptor");
	}
	if (r) {
		http_free(h);
		return r;
	}
	l->timed = true;
	l->before_wait = before_wait;
	l->before_wait_arg = h;
	*ret_http = h;
	return 0;
}

void http_free(struct http *h)
{
	if (!h)
		return;
	h->loop->before_wait = NULL;
	mv_watch_del(&h->watch);
	mv_timer_fini(&h->timer);
	for (int i = 0; h->mhd && i < PUMP_ROUNDS; i++)
		MHD_run(h->mhd); // the last answers leave, nothing stays suspended
	if (h->pending) {        // libmicrohttpd would abort
		mv_log(MV_ERROR, "http: %u requests were never answered", h->pending);
		return;
	}
	if (h->mhd)
		MHD_stop_daemon(h->mhd); // also closes listen_fd
	free(h);
}

void http_quiesce(struct http *h)
{
	if (h->listen_fd < 0)
		return;
	int fd = MHD_quiesce_daemon(h->mhd);
	if (fd >= 0)
		close(fd);
	h->listen_fd = -1;
}

unsigned http_pending(const struct http *h) { return h->pending; }

unsigned http_connections(const struct http *h)
{
	const union MHD_DaemonInfo *i = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);
	return i ? i->num_connections : 0;
}

const char *http_query(struct http_req *r, const char *name)
{
	struct request *q = (struct request *)r;
	const char *value = NULL;
	enum MHD_Result there = MHD_lookup_connection_value_n(q->con, MHD_GET_ARGUMENT_KIND, name,
							      strlen(name), &value, NULL);
	return there == MHD_YES && !value ? "" : value; // "?name" is "?name="
}

const char *http_field(struct http_req *r, const char *header)
{
	return MHD_lookup_connection_value(((struct request *)r)->con, MHD_HEADER_KIND, header);
}

struct unknown {
	const char *const *known;
	const char *found;
};

static enum MHD_Result check_query(void *arg, enum MHD_ValueKind kind, const char *key, const char *value)
{
	struct unknown *u = arg;
	(void)kind, (void)value;
	for (unsigned i = 0; u->known[i]; i++)
		if (!strcmp(u->known[i], key))
			return MHD_YES;
	u->found = key;
	return MHD_NO;
}

const char *http_unknown_query(struct http_req *r, const char *const *known)
{
	struct unknown u = { .known = known };
	MHD_get_connection_values(((struct request *)r)->con, MHD_GET_ARGUMENT_KIND, check_query, &u);
	return u.found;
}

bool http_client_gone(struct http_req *pub)
{
	struct request *r = (struct request *)pub;
	const union MHD_ConnectionInfo *i =
		MHD_get_connection_info(r->con, MHD_CONNECTION_INFO_CONNECTION_FD);
	char byte;
	ssize_t n = i ? recv(i->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : 0;
	return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

// The answer is there: it is sent now, or when the body has ended.
static void answered(struct request *r)
{
	r->answered = true;
	r->h->pending--;
	if (r->h->answered)
		r->h->answered(r->h->arg, &r->pub, r->status, r->reply, r->reply_len);
	mv_buf_fini(&r->body);
	if (r->suspended) {
		r->suspended = false;
		r->h->work = true;
		MHD_resume_connection(r->con);
	}
	if (!r->con)
		request_free(r);
}

void http_reply_stream(struct http_req *pub, unsigned status, const char *content_type, int fd,
		       http_stream_fn *fn, void *arg)
{
	struct request *r = (struct request *)pub;
	struct stream *t = calloc(1, sizeof *t);
	if (!t) {
		close(fd);
		fn(arg, false);
		http_reply(pub, 503, NULL, NULL, 0, NULL, 0);
		return;
	}
	*t = (struct stream){ .h = r->h, .con = r->con, .fd = fd, .fn = fn, .arg = arg };
	LIST_INSERT_HEAD(&r->h->streams, t, link);
	r->stream = t;
	r->status = status;
	mv_strcpy(r->content_type, sizeof r->content_type, content_type);
	answered(r);
}

void http_reply(struct http_req *pub, unsigned status, const char *content_type, void *body, size_t body_len,
		const struct http_header *headers, unsigned n_headers)
{
	struct request *r = (struct request *)pub;
	r->status = status;
	if (!content_type || mv_strcpy(r->content_type, sizeof r->content_type, content_type))
		r->content_type[0] = 0;
	r->reply = body;
	r->reply_len = body_len;
	for (unsigned i = 0; i < n_headers && i < HTTP_MAX_HEADERS; i++)
		r->headers[r->n_headers++] = headers[i];
	answered(r);
}
