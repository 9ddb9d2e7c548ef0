// SPDX-License-Identifier: Apache-2.0
// Requests over the daemon's Unix socket: the only includer of libcurl. One multi handle keeps the
// connections; a slot is one request in progress.
#include <curl/curl.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/private.h"

#define MAX_ANSWER (256u << 20)
#define MAX_PATH 600
#define MAX_KEY 128
#define MAX_FDS 4
#define STEP_MS 250 // so that progress is told
#define STREAM_BLOCK (512l * 1024)

struct transfer {
	struct thaw_client *client;
	CURL *curl;
	struct curl_slist *fields;
	struct thaw_request q;
	struct thaw_reply *reply;
	bool in_progress;
	CURLcode code;
	int stopped; // by what a callback returned
	uint64_t sent, received;
};

struct thaw_client {
	CURLM *multi;
	struct transfer slots[LIB_N_SLOTS];
	char socket_path[sizeof((struct sockaddr_un *)0)->sun_path], key[MAX_KEY + 1];
	unsigned timeout_ms;
	thaw_progress_fn *progress;
	void *progress_arg;
	bool moved; // bytes, since progress was told
	struct thaw_error error;
	char message[400], code[64], request_id[80];
	struct lib_buf error_body;
};

// --- clients --------------------------------------------------------------------------------------
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool curl_is_there;

static void init_curl(void) { curl_is_there = !curl_global_init(CURL_GLOBAL_NOTHING); }

// As thawd's, api/paths.c.
static int default_socket(char *path, size_t size)
{
	const char *env = getenv("THAW_SOCKET"), *run = getenv("XDG_RUNTIME_DIR");
	int n = 0;
	if (env && *env)
		n = snprintf(path, size, "%s", env);
	else if (geteuid() == 0)
		n = snprintf(path, size, "/run/thaw/thaw.sock");
	else if (run && *run)
		n = snprintf(path, size, "%s/thaw.sock", run);
	return !n ? -ENOENT : n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

int thaw_open(const char *socket_path, struct thaw_client **ret_client)
{
	struct thaw_client *c = calloc(1, sizeof *c);
	int r = c ? 0 : -ENOMEM;
	if (!r && !socket_path)
		r = default_socket(c->socket_path, sizeof c->socket_path);
	else if (!r && (size_t)snprintf(c->socket_path, sizeof c->socket_path, "%s", socket_path) >=
			       sizeof c->socket_path)
		r = -ENAMETOOLONG;
	pthread_once(&once, init_curl);
	if (!r && (!curl_is_there || !(c->multi = curl_multi_init())))
		r = -ENOMEM;
	for (int i = 0; !r && i < LIB_N_SLOTS; i++) {
		c->slots[i].client = c;
		if (!(c->slots[i].curl = curl_easy_init()))
			r = -ENOMEM;
	}
	if (r) {
		thaw_close(c);
		return r;
	}
	c->error = (struct thaw_error){ 0, 0, "", "nothing has failed", "", "" };
	*ret_client = c;
	return 0;
}

void thaw_close(struct thaw_client *c)
{
	if (!c)
		return;
	for (int i = 0; i < LIB_N_SLOTS; i++) {
		lib_abandon(c, (enum lib_slot)i);
		if (c->slots[i].curl)
			curl_easy_cleanup(c->slots[i].curl);
	}
	if (c->multi)
		curl_multi_cleanup(c->multi);
	free(c->error_body.p);
	free(c);
}

const char *thaw_socket_path(const struct thaw_client *c) { return c->socket_path; }
const char *thaw_version(void) { return THAW_VERSION; }
void thaw_set_timeout_ms(struct thaw_client *c, unsigned timeout_ms) { c->timeout_ms = timeout_ms; }
const struct thaw_error *thaw_last_error(const struct thaw_client *c) { return &c->error; }

void thaw_set_progress(struct thaw_client *c, thaw_progress_fn *fn, void *arg)
{
	c->progress = fn;
	c->progress_arg = arg;
}

// What goes into a header field: no spaces, so nothing that could end it.
static bool is_visible(const char *s, size_t max)
{
	size_t n = 0;
	while (s[n] > ' ' && s[n] < 0x7f)
		n++;
	return n && n <= max && !s[n];
}

int thaw_set_idempotency_key(struct thaw_client *c, const char *key)
{
	if (key && !is_visible(key, MAX_KEY))
		return lib_fail(c, EINVAL, "an idempotency key has 1 to %d visible ASCII characters",
				MAX_KEY);
	snprintf(c->key, sizeof c->key, "%s", key ? key : "");
	return 0;
}

// --- errors ---------------------------------------------------------------------------------------
static int set_error(struct thaw_client *c, int errnum, unsigned status, const char *body)
{
	c->error = (struct thaw_error){ errnum, status, c->code, c->message, c->request_id, body };
	return -errnum;
}

int lib_fail(struct thaw_client *c, int errnum, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(c->message, sizeof c->message, fmt, ap);
	va_end(ap);
	c->code[0] = c->request_id[0] = 0;
	return set_error(c, errnum, 0, "");
}

int lib_refused(struct thaw_client *c, const struct thaw_reply *r)
{
	struct thaw_reply parsed = { .body = r->body }; // read here, freed by its owner
	const char *id = thaw_reply_header(r, "X-Request-Id");
	snprintf(c->code, sizeof c->code, "%s", thaw_reply_str(&parsed, "error.code", ""));
	snprintf(c->message, sizeof c->message, "%s",
		 thaw_reply_str(&parsed, "error.message", "the daemon's answer makes no sense"));
	snprintf(c->request_id, sizeof c->request_id, "%s", id ? id : "");
	lib_forget_json(&parsed);
	c->error_body.len = 0;
	lib_append(&c->error_body, r->body.p, r->body.len);
	c->error_body.failed = false;
	return set_error(c, EREMOTEIO, r->status, c->error_body.p ? c->error_body.p : "");
}

static int explain(struct thaw_client *c, struct transfer *t)
{
	long error = 0;
	curl_easy_getinfo(t->curl, CURLINFO_OS_ERRNO, &error);
	if (t->code == CURLE_OPERATION_TIMEDOUT)
		return lib_fail(c, ETIMEDOUT, "no answer within %u ms", c->timeout_ms);
	if (t->code == CURLE_OUT_OF_MEMORY)
		return lib_fail(c, ENOMEM, "out of memory, or the answer's header is too large");
	if (t->code != CURLE_COULDNT_CONNECT)
		return lib_fail(c, EIO, "talking to the daemon on %s: %s", c->socket_path,
				curl_easy_strerror(t->code));
	if (error == EACCES || error == ENOENT)
		return lib_fail(c, (int)error, "no daemon can be reached on %s: %s", c->socket_path,
				strerror((int)error));
	return lib_fail(c, ECONNREFUSED, "no daemon answers on %s", c->socket_path);
}

// --- one request ----------------------------------------------------------------------------------
static size_t on_body(char *bytes, size_t one, size_t n, void *arg)
{
	struct transfer *t = arg;
	long status = 0;
	(void)one;
	t->received += n;
	t->client->moved = true;
	if (t->q.write)
		curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
	if (status / 100 == 2)
		return (t->stopped = t->q.write(t->q.write_arg, bytes, n)) ? 0 : n;
	if (t->reply->body.len + n > MAX_ANSWER)
		return 0;
	lib_append(&t->reply->body, bytes, n);
	return t->reply->body.failed ? 0 : n;
}

static size_t on_header(char *line, size_t one, size_t n, void *arg)
{
	struct transfer *t = arg;
	size_t len = n;
	(void)one;
	if (len >= 5 && !strncmp(line, "HTTP/", 5)) { // also behind "100 Continue"
		t->reply->headers.len = 0;
		return n;
	}
	while (len && (line[len - 1] == '\r' || line[len - 1] == '\n'))
		len--;
	if (len) {
		lib_append(&t->reply->headers, line, len);
		lib_append(&t->reply->headers, "", 1);
	}
	return t->reply->headers.failed ? 0 : n;
}

static size_t on_read(char *buf, size_t one, size_t n, void *arg)
{
	struct transfer *t = arg;
	long got = t->q.read(t->q.read_arg, buf, one * n);
	if (got < 0 || (size_t)got > one * n) {
		t->stopped = got < 0 ? (int)got : -EIO;
		return CURL_READFUNC_ABORT;
	}
	t->sent += (uint64_t)got;
	t->client->moved = true;
	return (size_t)got;
}

static bool add_field(struct transfer *t, const char *name, const char *value)
{
	char line[1200];
	if (value && (size_t)snprintf(line, sizeof line, "%s: %s", name, value) >= sizeof line)
		return false;
	struct curl_slist *more = curl_slist_append(t->fields, value ? line : name);
	t->fields = more ? more : t->fields;
	return more;
}

// Header fields of a client are visible characters with single spaces ("a", "b") between.
static bool is_field(const char *s)
{
	if (s)
		for (; *s >= ' ' && *s < 0x7f; s++)
			;
	return !s || !*s;
}

static int set_fields(struct thaw_client *c, struct transfer *t)
{
	const struct thaw_request *q = &t->q;
	const char *key = q->idempotency_key;
	if (!key && c->key[0] && !strcmp(q->method, "POST"))
		key = c->key;
	if (!is_field(key) || !is_field(q->if_match) || !is_field(q->if_none_match) ||
	    !is_field(q->request_id))
		return lib_fail(c, EINVAL, "a header field has characters that can't be in one");
	// No "Expect: 100-continue" but of what is streamed, where a refusal is to come before the body; no
	// type of a form: a body is JSON or bytes.
	bool ok = (q->read || add_field(t, "Expect:", NULL)) && add_field(t, "Content-Type:", NULL);
	ok = ok && (!key || add_field(t, "Idempotency-Key", key));
	ok = ok && (!q->if_match || add_field(t, "If-Match", q->if_match));
	ok = ok && (!q->if_none_match || add_field(t, "If-None-Match", q->if_none_match));
	ok = ok && (!q->request_id || add_field(t, "X-Request-Id", q->request_id));
	if (key == c->key)
		c->key[0] = 0;
	return ok ? 0 : lib_fail(c, EINVAL, "a header field is too long");
}

static void set_options(struct thaw_client *c, struct transfer *t, const char *url)
{
	const struct thaw_request *q = &t->q;
	CURL *e = t->curl;
	curl_easy_reset(e);
	curl_easy_setopt(e, CURLOPT_PRIVATE, t);
	curl_easy_setopt(e, CURLOPT_UNIX_SOCKET_PATH, c->socket_path);
	curl_easy_setopt(e, CURLOPT_URL, url);
	curl_easy_setopt(e, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(e, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(e, CURLOPT_HTTPHEADER, t->fields);
	curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(e, CURLOPT_WRITEDATA, t);
	curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(e, CURLOPT_HEADERDATA, t);
	if (c->timeout_ms && !q->stream)
		curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)c->timeout_ms);
	if (q->read) {
		curl_easy_setopt(e, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(e, CURLOPT_READFUNCTION, on_read);
		curl_easy_setopt(e, CURLOPT_READDATA, t);
		curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, STREAM_BLOCK);
	} else if (strcmp(q->method, "GET")) {
		curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)q->body_len);
		curl_easy_setopt(e, CURLOPT_POSTFIELDS, q->body ? q->body : "");
	}
	curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, q->method);
}

int lib_begin(struct thaw_client *c, enum lib_slot slot, const struct thaw_request *q)
{
	struct transfer *t = &c->slots[slot];
	char url[MAX_PATH + 20];
	*t = (struct transfer){ .client = c, .curl = t->curl };
	int r = lib_take_sized(c, &t->q, sizeof t->q, q);
	if (r)
		return r;
	if (!t->q.method || !is_visible(t->q.method, 20) || !t->q.path || t->q.path[0] != '/' ||
	    !is_visible(t->q.path, MAX_PATH))
		return lib_fail(c, EINVAL, "a request has a method, and a path of at most %d bytes",
				MAX_PATH);
	snprintf(url, sizeof url, "http://thaw%s", t->q.path);
	t->reply = calloc(1, sizeof *t->reply);
	r = t->reply ? set_fields(c, t) : lib_fail(c, ENOMEM, "out of memory");
	if (!r) {
		set_options(c, t, url);
		if (curl_multi_add_handle(c->multi, t->curl))
			r = lib_fail(c, ENOMEM, "out of memory");
	}
	t->in_progress = !r;
	c->moved = false;
	if (r)
		lib_abandon(c, slot);
	return r;
}

bool lib_in_progress(const struct thaw_client *c, enum lib_slot slot) { return c->slots[slot].in_progress; }

void lib_abandon(struct thaw_client *c, enum lib_slot slot)
{
	struct transfer *t = &c->slots[slot];
	if (t->in_progress)
		curl_multi_remove_handle(c->multi, t->curl);
	t->in_progress = false;
	thaw_reply_free(t->reply);
	t->reply = NULL;
	curl_slist_free_all(t->fields);
	t->fields = NULL;
}

static void take_ended(struct thaw_client *c)
{
	int left;
	for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left));) {
		struct transfer *t = NULL;
		CURLcode code = m->data.result;
		curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t);
		curl_multi_remove_handle(c->multi, t->curl);
		t->in_progress = false;
		t->code = code;
	}
}

static int tell_progress(struct thaw_client *c)
{
	const struct transfer *t = &c->slots[LIB_MAIN];
	c->moved = false;
	if (!t->reply || !c->progress || !c->progress(c->progress_arg, t->sent, t->received))
		return 0;
	lib_abandon(c, LIB_MAIN);
	return lib_fail(c, ECANCELED, "ended by the progress function");
}

int lib_step(struct thaw_client *c, struct pollfd *fds, unsigned n)
{
	struct curl_waitfd more[MAX_FDS] = { 0 };
	int running = 0, ready = 0;
	CURLMcode m = curl_multi_perform(c->multi, &running);
	take_ended(c);
	for (unsigned i = 0; i < n; i++) {
		more[i].fd = fds[i].fd;
		more[i].events = CURL_WAIT_POLLIN;
		fds[i].revents = 0;
	}
	bool ended = false;
	for (int i = 0; i < LIB_N_SLOTS; i++)
		ended |= c->slots[i].reply && !c->slots[i].in_progress;
	if (m == CURLM_OK && !ended)
		m = curl_multi_poll(c->multi, n ? more : NULL, n, STEP_MS, &ready);
	if (m != CURLM_OK)
		return lib_fail(c, EIO, "waiting for the daemon: %s", curl_multi_strerror(m));
	if (n && poll(fds, n, 0) < 0 && errno != EINTR) // curl does not tell of POLLNVAL
		return lib_fail(c, errno, "poll: %s", strerror(errno));
	return c->moved || !ready ? tell_progress(c) : 0;
}

int lib_end(struct thaw_client *c, enum lib_slot slot, struct thaw_reply **ret_reply)
{
	struct transfer *t = &c->slots[slot];
	struct thaw_reply *reply = t->reply;
	long status = 0;
	int r = 0;
	t->reply = NULL;
	curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
	reply->status = (unsigned)status;
	if (t->stopped < 0)
		r = lib_fail(c, -t->stopped, "ended by its function: %s", strerror(-t->stopped));
	else if (!t->stopped && t->code != CURLE_OK)
		r = explain(c, t);
	else if (status / 100 != 2 && status != 304)
		r = lib_refused(c, reply);
	lib_abandon(c, slot);
	if (r || !ret_reply)
		thaw_reply_free(reply);
	else
		*ret_reply = reply;
	return r;
}

int thaw_request(struct thaw_client *c, const struct thaw_request *q, struct thaw_reply **ret)
{
	int r = lib_begin(c, LIB_MAIN, q);
	while (!r && lib_in_progress(c, LIB_MAIN))
		r = lib_step(c, NULL, 0);
	if (!r)
		return lib_end(c, LIB_MAIN, ret);
	lib_abandon(c, LIB_MAIN);
	return r;
}
