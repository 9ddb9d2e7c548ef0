// SPDX-License-Identifier: Apache-2.0
// Theory of operation. libmicrohttpd runs in "external epoll" mode: its epoll descriptor is
// one watch of our loop. pump() lets it work; it is called when that descriptor is
// readable, when its time-out is due, and after any batch of events in which a suspended
// request was answered (so a reply leaves in the same turn of the loop).
//
// One request: on_uri() makes it -> on_access() with headers, with each piece of the body,
// and once more at its end -> handler. Answered inside the handler: the response is queued
// there. Otherwise the connection is suspended, http_reply() resumes it, and on_access()
// comes once more and queues. on_completed() frees it in every case.
#include "api/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define DISCARD_MAX (16u * 1024 * 1024) // of a body that is too large, before we hang up
#define PUMP_ROUNDS 8

struct request {
	struct http_req pub;
	struct http *h;
	struct MHD_Connection *con;
	struct mv_buf body;
	size_t discarded;
	bool handed_over, answered, suspended;
	// the answer
	unsigned status;
	char content_type[40];
	void *reply;
	size_t reply_len;
	struct http_header headers[HTTP_MAX_HEADERS];
	unsigned n_headers;
};

struct http {
	struct mv_loop *loop;
	struct MHD_Daemon *mhd;
	struct mv_watch watch;
	struct mv_timer timer;
	http_handler *fn;
	void *arg;
	int listen_fd;
	unsigned pending;
	bool work; // something was resumed
};

static void pump(struct http *h)
{
	MHD_UNSIGNED_LONG_LONG ms = 0;
	int has = MHD_NO;
	for (int i = 0; i < PUMP_ROUNDS; i++) {
		h->work = false;
		MHD_run(h->mhd);
		has = MHD_get_timeout(h->mhd, &ms);
		if (!h->work && (has == MHD_NO || ms > 0))
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
	if (h->work)
		pump(h);
}

static void *on_uri(void *arg, const char *uri, struct MHD_Connection *con)
{
	(void)uri;
	struct request *r = calloc(1, sizeof *r);
	if (r) {
		r->h = arg;
		r->con = con;
		r->pub.received_ns = mv_now_ns();
	}
	return r;
}

static void on_completed(void *arg, struct MHD_Connection *con, void **con_cls,
			 enum MHD_RequestTerminationCode why)
{
	struct request *r = *con_cls;
	(void)arg, (void)con, (void)why;
	*con_cls = NULL;
	if (!r)
		return;
	if (r->handed_over && !r->answered) { // can't happen while suspended
		mv_log(MV_ERROR, "http: a request ended unanswered");
		return; // its owner still points to it
	}
	free(r->reply);
	mv_buf_fini(&r->body);
	free(r);
}

static enum MHD_Result queue_reply(struct request *r)
{
	struct MHD_Response *m =
		MHD_create_response_from_buffer(r->reply_len, r->reply, MHD_RESPMEM_MUST_FREE);
	if (!m)
		return MHD_NO;
	r->reply = NULL;
	if (r->content_type[0])
		MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, r->content_type);
	for (unsigned i = 0; i < r->n_headers; i++)
		MHD_add_response_header(m, r->headers[i].name, r->headers[i].value);
	enum MHD_Result ok = MHD_queue_response(r->con, r->status, m);
	MHD_destroy_response(m);
	return ok;
}

static void hand_over(struct request *r)
{
	r->pub.body = (const char *)r->body.p;
	r->pub.body_len = r->body.len;
	r->handed_over = true;
	r->h->pending++;
	r->h->fn(r->h->arg, &r->pub);
}

// Somewhat too large a body is read and thrown away, so that its sender gets to see the
// answer; one beyond all measure is answered at once and the connection closed.
static bool announced_too_large(struct MHD_Connection *con)
{
	const char *s = MHD_lookup_connection_value(con, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
	return s && strtoull(s, NULL, 10) > DISCARD_MAX;
}

static enum MHD_Result on_access(void *arg, struct MHD_Connection *con, const char *url, const char *method,
				 const char *version, const char *data, size_t *data_size, void **con_cls)
{
	struct request *r = *con_cls;
	(void)arg, (void)version;
	if (!r)
		return MHD_NO;
	if (r->answered)
		return queue_reply(r);
	if (!r->pub.path) { // the headers are there
		r->pub.path = url;
		r->pub.method = method;
		if (!announced_too_large(con))
			return MHD_YES;
		r->pub.body_too_large = true; // answered before the body is read
		hand_over(r);
		return r->answered ? queue_reply(r) : MHD_NO;
	}
	if (*data_size) {
		if (r->pub.body_too_large || *data_size > HTTP_MAX_BODY - r->body.len) {
			r->pub.body_too_large = true;
			mv_buf_fini(&r->body);
			r->discarded += *data_size;
		} else {
			mv_buf_append(&r->body, data, *data_size);
		}
		*data_size = 0;
		return r->discarded > DISCARD_MAX || r->body.failed ? MHD_NO : MHD_YES;
	}
	hand_over(r);
	if (r->answered)
		return queue_reply(r);
	r->suspended = true;
	MHD_suspend_connection(con);
	return MHD_YES;
}

int http_new(struct mv_loop *l, int listen_fd, http_handler *fn, void *arg, struct http **ret_http,
	     struct mv_err *err)
{
	struct http *h = calloc(1, sizeof *h);
	if (!h)
		return mv_fail(err, ENOMEM, "http: no memory");
	*h = (struct http){ .loop = l, .fn = fn, .arg = arg, .listen_fd = listen_fd };
	h->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_access, h,
				  MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT,
				  (unsigned)HTTP_MAX_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
				  (unsigned)HTTP_IDLE_SECONDS, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
				  MHD_OPTION_URI_LOG_CALLBACK, on_uri, h, MHD_OPTION_END);
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
	return MHD_lookup_connection_value(q->con, MHD_GET_ARGUMENT_KIND, name);
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
	r->answered = true;
	r->h->pending--;
	mv_buf_fini(&r->body);
	if (r->suspended) {
		r->suspended = false;
		r->h->work = true;
		MHD_resume_connection(r->con);
	}
}
