// SPDX-License-Identifier: Apache-2.0
// The requests of the metadata service, HTTP/1.0 and 1.1 (RFC 9112), as Firecracker's MMDS has them: GET of a
// path in the document, and PUT of /latest/api/token. A body is allowed and not looked at.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "devices/mmds.h"
#include "devices/mmds_tcp.h"

#define TOKEN_PATH "/latest/api/token"
#define TTL_HEADER "X-metadata-token-ttl-seconds"
#define EC2_TTL_HEADER "X-aws-ec2-metadata-token-ttl-seconds"

struct text {
	const char *p;
	size_t len;
};

struct request {
	struct text method, path;
	bool http_1_0, keep_alive;
	bool json;                         // accepted
	size_t body_bytes;                 // that follow
	const char *unknown;               // what can't be understood; NULL: nothing
	struct text token, ttl, forwarded; // p NULL: not there
	const char *ttl_name;
};

struct answer {
	int status;
	const char *type;
	uint32_t ttl_s; // of a new token; 0: none
	struct mv_buf body;
};

static bool is(struct text t, const char *word) { return t.len == strlen(word) && !memcmp(t.p, word, t.len); }

static bool is_nocase(struct text t, const char *word)
{
	return t.len == strlen(word) && !strncasecmp(t.p, word, t.len);
}

static struct text trim(struct text t)
{
	while (t.len && (t.p[0] == ' ' || t.p[0] == '\t'))
		t.p++, t.len--;
	while (t.len && (t.p[t.len - 1] == ' ' || t.p[t.len - 1] == '\t'))
		t.len--;
	return t;
}

// What comes up to the first `c` of *rest, which moves behind it.
static struct text cut(struct text *rest, char c)
{
	const char *at = memchr(rest->p, c, rest->len);
	struct text t = { rest->p, at ? (size_t)(at - rest->p) : rest->len };
	size_t used = t.len + (at != NULL);
	rest->p += used;
	rest->len -= used;
	return t;
}

// A line without its end.
static struct text line(struct text *rest)
{
	struct text t = cut(rest, '\n');
	t.len -= t.len && t.p[t.len - 1] == '\r';
	return t;
}

// Does a list of words have this one? What follows a ';' is about a word, and not of it.
static bool lists(struct text list, const char *word)
{
	while (list.len) {
		struct text item = cut(&list, ',');
		if (is_nocase(trim(cut(&item, ';')), word))
			return true;
	}
	return false;
}

static bool decimal(struct text t, uint32_t *ret_v)
{
	uint64_t v = 0;
	if (!t.len)
		return false;
	for (; t.len; t.p++, t.len--) {
		if (*t.p < '0' || *t.p > '9' || v > UINT32_MAX / 10)
			return false;
		v = v * 10 + (uint64_t)(*t.p - '0');
	}
	*ret_v = (uint32_t)v;
	return v <= UINT32_MAX;
}

static void header(struct request *q, struct text name, struct text value)
{
	uint32_t n;
	if (is_nocase(name, "Accept")) {
		q->json = lists(value, "application/json");
	} else if (is_nocase(name, "Connection")) {
		q->keep_alive = !lists(value, "close") && (!q->http_1_0 || lists(value, "keep-alive"));
	} else if (is_nocase(name, "Content-Length")) {
		if (decimal(value, &n))
			q->body_bytes = n;
		else
			q->unknown = "Invalid Content-Length.";
	} else if (is_nocase(name, "Transfer-Encoding")) {
		q->unknown = "Transfer-Encoding is not supported.";
	} else if (is_nocase(name, "X-metadata-token") || is_nocase(name, "X-aws-ec2-metadata-token")) {
		q->token = value;
	} else if (is_nocase(name, TTL_HEADER) || is_nocase(name, EC2_TTL_HEADER)) {
		q->ttl = value;
		q->ttl_name = is_nocase(name, TTL_HEADER) ? TTL_HEADER : EC2_TTL_HEADER;
	} else if (is_nocase(name, "X-Forwarded-For")) {
		q->forwarded = value;
	}
}

// RFC 9112 section 3.2: a path, or a whole URI.
static struct text path_of(struct text target)
{
	static const char scheme[] = "http://";
	struct text t = target;
	if (t.len >= sizeof scheme - 1 && !strncasecmp(t.p, scheme, sizeof scheme - 1)) {
		const char *slash = memchr(t.p + sizeof scheme - 1, '/', t.len - (sizeof scheme - 1));
		t.len = slash ? (size_t)(t.p + t.len - slash) : 0;
		t.p = slash ? slash : t.p;
	}
	return t.len && t.p[0] == '/' ? t : (struct text){ NULL, 0 };
}

static void parse(struct text head, struct request *ret_q)
{
	struct text first = line(&head), version;
	*ret_q = (struct request){ .method = cut(&first, ' ') };
	ret_q->path = path_of(cut(&first, ' '));
	version = first;
	ret_q->http_1_0 = is(version, "HTTP/1.0");
	ret_q->keep_alive = !ret_q->http_1_0;
	if (!ret_q->method.len || (!ret_q->http_1_0 && !is(version, "HTTP/1.1")))
		ret_q->unknown = "Not a request of HTTP/1.0 or HTTP/1.1.";
	else if (!ret_q->path.p)
		ret_q->unknown = "Invalid URI.";
	while (head.len) {
		struct text value = line(&head), name = cut(&value, ':');
		header(ret_q, name, trim(value));
	}
}

// The bytes of a head with its empty line; 0: it is not whole.
static size_t head_bytes(const char *p, size_t len)
{
	for (size_t at = 0; at < len; at++) {
		const char *end = memchr(p + at, '\n', len - at);
		if (!end)
			return 0;
		at = (size_t)(end - p);
		size_t next = at + 1 < len && p[at + 1] == '\r' ? at + 2 : at + 1;
		if (next < len && p[next] == '\n')
			return next + 1;
	}
	return 0;
}

static void say(struct answer *a, int status, const char *before, struct text t, const char *after)
{
	a->status = status;
	mv_buf_append(&a->body, before, strlen(before));
	mv_buf_append(&a->body, t.p, t.len);
	mv_buf_append(&a->body, after, strlen(after));
}

static const struct text nothing = { "", 0 };

static void get(struct mmds *m, const struct request *q, struct answer *a)
{
	const bool plain = m->config.imds_compat || !q->json;
	if (m->config.tokens && !q->token.p) {
		say(a, 401,
		    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to "
		    "specify the session token.",
		    nothing, "");
		return;
	}
	if (m->config.tokens && !mmds_token_ok(m, q->token.p, q->token.len)) {
		say(a, 401, "MMDS token not valid.", nothing, "");
		return;
	}
	switch (mmds_look_up(m, q->path.p, q->path.len, plain, &a->body)) {
	case 0:
		a->status = 200;
		a->type = plain ? "text/plain" : "application/json";
		break;
	case -ENOTSUP:
		say(a, 501, "Cannot retrieve value. The value has an unsupported type.", nothing, "");
		break;
	default: say(a, 404, "Resource not found: ", q->path, ".");
	}
}

static void put(struct mmds *m, const struct request *q, struct answer *a)
{
	char token[MMDS_TOKEN_CHARS], before[128];
	uint32_t ttl_s = 0;
	if (q->forwarded.p) { // by a proxy, which is not to get one for whoever is behind it
		say(a, 400, "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For", nothing,
		    "");
	} else if (!is(q->path, TOKEN_PATH) && !is(q->path, TOKEN_PATH "/")) {
		say(a, 404, "Resource not found: ", q->path, ".");
	} else if (!q->ttl.p) {
		say(a, 400,
		    "Token time to live value not found. Use `" TTL_HEADER "` or `" EC2_TTL_HEADER
		    "` header to specify the token's lifetime.",
		    nothing, "");
	} else if (!decimal(q->ttl, &ttl_s)) {
		snprintf(before, sizeof before,
			 "Invalid header. Reason: Invalid value. Key:%s; Value:", q->ttl_name);
		say(a, 400, before, q->ttl, "");
	} else if (!ttl_s || ttl_s > MMDS_TTL_MAX_S) {
		say(a, 400, "Invalid time to live value provided for token: ", q->ttl,
		    ". Please provide a value between 1 and 21600.");
	} else {
		mmds_make_token(m, ttl_s, token);
		a->ttl_s = ttl_s;
		say(a, 200, "", (struct text){ token, sizeof token }, "");
	}
}

static const char *reason(int status)
{
	switch (status) {
	case 200: return "OK";
	case 400: return "Bad Request";
	case 401: return "Unauthorized";
	case 404: return "Not Found";
	case 405: return "Method Not Allowed";
	case 413: return "Content Too Large";
	default: return "Not Implemented";
	}
}

static void send(const struct request *q, const struct answer *a, struct mv_buf *out)
{
	char head[400], ttl[80] = "";
	if (a->ttl_s)
		snprintf(ttl, sizeof ttl, "%s: %u\r\n", q->ttl_name, a->ttl_s);
	int n = snprintf(head, sizeof head,
			 "HTTP/1.%d %d %s\r\nServer: thaw\r\nConnection: %s\r\nContent-Type: %s\r\n"
			 "Content-Length: %zu\r\n%s%s\r\n",
			 q->http_1_0 ? 0 : 1, a->status, reason(a->status),
			 q->keep_alive ? "keep-alive" : "close", a->type, a->body.len,
			 a->status == 405 ? "Allow: GET, PUT\r\n" : "", ttl);
	mv_buf_append(out, head, (size_t)n);
	if (!is(q->method, "HEAD"))
		mv_buf_append(out, a->body.p, a->body.len);
	out->failed |= a->body.failed;
}

size_t mmds_http_request(void *arg, const uint8_t *bytes, size_t len, struct mv_buf *answer, bool *ret_last)
{
	struct mmds *m = arg;
	size_t head = head_bytes((const char *)bytes, len);
	struct request q = { .method = nothing };
	struct answer a = { .type = "text/plain" };
	if (!head && len < MMDS_TCP_ROOM)
		return 0;
	if (head)
		parse((struct text){ (const char *)bytes, head }, &q);
	if (head && !q.unknown && head + q.body_bytes <= MMDS_TCP_ROOM && len < head + q.body_bytes)
		return 0;
	// Where the next request begins is known only behind one that was understood.
	if (!head || head + q.body_bytes > MMDS_TCP_ROOM)
		say(&a, 413, "A request has at most 4096 bytes.", nothing, "");
	else if (q.unknown)
		say(&a, 400, q.unknown, nothing, "");
	q.keep_alive = q.keep_alive && !a.status;
	if (!a.status && is(q.method, "GET"))
		get(m, &q, &a);
	else if (!a.status && is(q.method, "PUT"))
		put(m, &q, &a);
	else if (!a.status)
		say(&a, 405, "Not allowed HTTP method.", nothing, "");
	send(&q, &a, answer);
	mv_buf_fini(&a.body);
	*ret_last = !q.keep_alive;
	return a.status == 413 || q.unknown ? len : head + q.body_bytes;
}
