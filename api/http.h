// SPDX-License-Identifier: Apache-2.0
// The HTTP/1.1 server on an already listening Unix socket, driven by the caller's event
// loop (http.c is the only includer of libmicrohttpd). No thread of its own.
//
// A complete request goes to the handler, which answers at once or later, each request
// exactly once, by http_reply(). Until then the connection is suspended: it costs nothing
// and does not time out. A client that went away is noticed at the reply; nothing special
// is to be done for it. A body of an upload route is not collected but flows through a pipe, and
// an answer may come from one. Limits: body 1 MiB (not of an upload), HTTP_MAX_CONNECTIONS,
// HTTP_IDLE_SECONDS, HTTP_MAX_URI, HTTP_MAX_FIELDS. What is beyond one is the handler's to refuse
// (http_req.refusal, body_too_large), so that it is told in its words; what does not fit into the library's
// 32 KiB, or is no HTTP, is refused by that.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/log.h"
#include "microvm/base/loop.h"

#define HTTP_MAX_BODY (1024u * 1024)
#define HTTP_MAX_CONNECTIONS 1000
#define HTTP_SPARE_CONNECTIONS 64 // to tell those who come then; the next ones wait to be accepted
#define HTTP_MAX_URI 4096         // bytes, query included
#define HTTP_MAX_FIELDS 8192      // bytes of names and values of header fields
#define HTTP_IDLE_SECONDS 30
#define HTTP_MAX_HEADERS 4
#define HTTP_REQUEST_ID "X-Request-Id" // 1 to 64 of A-Z a-z 0-9 . _ : = + / -

struct http;

struct http_header {
	char name[32], value[96];
};

enum http_refusal { HTTP_FINE, HTTP_FULL, HTTP_URI_TOO_LONG, HTTP_FIELDS_TOO_LARGE };

struct http_req {                  // valid until http_reply()
	const char *method, *path; // path: without the query, percent-decoded
	const char *body;          // not NUL-terminated
	size_t body_len;
	enum http_refusal refusal;
	bool body_too_large;  // the body was thrown away
	bool upload;          // of an upload route: the body is still to come
	uint64_t received_ns; // CLOCK_MONOTONIC when its first line was there
	unsigned tag;         // the handler's own, for http_set_answered()
	struct mv_log_tag id; // the client's X-Request-Id, or one made here; the answer has it, too
	void *keyed;          // of a request with an idempotency key (idem.c)
	void *parsed;         // a large body (entry.c), during the handler's call
	bool id_invalid;      // the client's is none: one was made here
};

typedef void http_handler(void *arg, struct http_req *r);

// Other limits than those above; what is 0 stays.
struct http_limits {
	size_t body_bytes;
	unsigned connections;
	bool no_idle; // connections without a request stay open
};

// limits: NULL: those above.
int http_new(struct mv_loop *l, int listen_fd, http_handler *fn, void *arg, const struct http_limits *limits,
	     struct http **ret_http, struct mv_err *err);

// Which requests are uploads. Their handler is called as soon as the headers are there; it
// answers at once, or calls http_take_body().
typedef bool http_is_upload_fn(const char *method, const char *path);
void http_set_uploads(struct http *h, http_is_upload_fn *fn);

// Called with every answer, just before it is sent; body: NULL: none, or one that flows.
typedef void http_answered_fn(void *arg, const struct http_req *r, unsigned status, const void *body,
			      size_t body_len);
void http_set_answered(struct http *h, http_answered_fn *fn);

// The body is written into fd, a non-blocking pipe that is taken over and closed when the body
// has ended, also by a broken connection: what is written must tell by itself whether all of
// it is there. When the reader closes its side the rest is thrown away. The answer is sent
// when the body has ended.
void http_take_body(struct http_req *r, int fd);

// Cuts all bodies off, both ways: the other ends of their pipes see the end. An answer whose
// pipe has ended already is sent as a whole if its client takes it now.
void http_abort_bodies(struct http *h);

// Every request must have been answered. Closes listen_fd. NULL allowed.
void http_free(struct http *h);

// Stops taking new connections and requests; what is in progress may still be answered.
void http_quiesce(struct http *h);
unsigned http_pending(const struct http *h); // requests not yet answered
unsigned http_connections(const struct http *h);

const char *http_query(struct http_req *r, const char *name);   // NULL: not there
const char *http_field(struct http_req *r, const char *header); // of the request; likewise
// The first query parameter that is not in `known` (NULL-terminated); NULL: none.
const char *http_unknown_query(struct http_req *r, const char *const *known);

// For requests that wait long: has the client closed its side? Then an early answer is in place.
bool http_client_gone(struct http_req *r);

// Takes over body (malloc'd; NULL: empty). Ends the request.
void http_reply(struct http_req *r, unsigned status, const char *content_type, void *body, size_t body_len,
		const struct http_header *headers, unsigned n_headers);

// Answers with what comes out of a non-blocking pipe until its end, or until the client closes
// its connection. Ends the request. Later
// fn(arg, true) is called at the pipe's end: false makes the client see a broken answer. And
// once fn(arg, false): the pipe was closed, nothing is called any more.
typedef bool http_stream_fn(void *arg, bool at_end);
void http_reply_stream(struct http_req *r, unsigned status, const char *content_type, int fd,
		       http_stream_fn *fn, void *arg);
