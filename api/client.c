// SPDX-License-Identifier: Apache-2.0
#include "api/client.h"

#include <curl/curl.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#include "microvm/base/util.h"

#define MAX_REPLY (256u * 1024 * 1024)
#define STREAM_BLOCK (512l * 1024)

struct client {
	CURL *curl;
	struct curl_slist *headers;
	char socket_path[PATH_MAX];
};

struct incoming {
	CURL *curl;
	int out_fd, error;  // out_fd: -1: into body
	client_data_fn *fn; // instead of out_fd
	void *arg;
	int stop;
	struct mv_buf body;
	struct client_reply *r;
};

static size_t on_body(char *data, size_t one, size_t n, void *arg)
{
	struct incoming *in = arg;
	long status = 0;
	(void)one;
	if (in->out_fd >= 0 || in->fn)
		curl_easy_getinfo(in->curl, CURLINFO_RESPONSE_CODE, &status);
	if (status / 100 == 2 && in->fn)
		return (in->stop = in->fn(in->arg, data, n)) ? 0 : n;
	if (status / 100 == 2) {
		in->error = -mv_write_full(in->out_fd, data, n);
		return in->error ? 0 : n;
	}
	if (in->body.len + n > MAX_REPLY)
		return 0;
	mv_buf_append(&in->body, data, n);
	return in->body.failed ? 0 : n;
}

static void take_number(const char *line, size_t len, const char *name, uint64_t *v)
{
	char text[32];
	size_t skip = strlen(name);
	if (len <= skip || strncasecmp(line, name, skip) || len - skip >= sizeof text)
		return;
	memcpy(text, line + skip, len - skip);
	text[len - skip] = 0;
	*v = strtoull(text, NULL, 10);
}

static size_t on_header(char *line, size_t one, size_t n, void *arg)
{
	struct incoming *in = arg;
	(void)one;
	take_number(line, n, "Thaw-Console-Offset:", &in->r->console_offset);
	take_number(line, n, "Thaw-Console-Next:", &in->r->console_next);
	return n;
}

int client_new(const char *socket_path, struct client **ret_c, struct mv_err *err)
{
	if (strlen(socket_path) >= sizeof((struct sockaddr_un *)0)->sun_path)
		return mv_fail(err, ENAMETOOLONG, "--socket %.200s: longer than %zu bytes", socket_path,
			       sizeof((struct sockaddr_un *)0)->sun_path - 1);
	struct client *c = calloc(1, sizeof *c);
	if (!c)
		return mv_fail(err, ENOMEM, "out of memory");
	curl_global_init(CURL_GLOBAL_NOTHING);
	c->curl = curl_easy_init();
	// No "Expect: 100-continue" and no form type: the body is JSON or raw bytes.
	c->headers = curl_slist_append(NULL, "Expect:");
	if (c->headers)
		curl_slist_append(c->headers, "Content-Type:");
	if (!c->curl || !c->headers || mv_strcpy(c->socket_path, sizeof c->socket_path, socket_path)) {
		client_free(c);
		return mv_fail(err, ENOMEM, "can't make an HTTP client for %.200s", socket_path);
	}
	*ret_c = c;
	return 0;
}

void client_free(struct client *c)
{
	if (!c)
		return;
	curl_slist_free_all(c->headers);
	if (c->curl)
		curl_easy_cleanup(c->curl);
	free(c);
}

static int explain(const struct client *c, CURLcode code, struct mv_err *err)
{
	if (code == CURLE_COULDNT_CONNECT)
		return mv_fail(err, ECONNREFUSED,
			       "no daemon answers on %s; start thawd, or give --socket or THAW_SOCKET",
			       c->socket_path);
	return mv_fail(err, EIO, "talking to the daemon on %s: %s", c->socket_path, curl_easy_strerror(code));
}

static size_t read_body(char *buf, size_t one, size_t n, void *arg)
{
	ssize_t got = read(*(int *)arg, buf, one * n);
	return got < 0 ? CURL_READFUNC_ABORT : (size_t)got;
}

// As the functions of the header, which say what is not there.
static int call(struct client *c, const char *method, const char *path, const void *body, size_t len,
		int in_fd, struct incoming *to, struct client_reply *ret_r, struct mv_err *err)
{
	char url[512];
	struct client_reply r = { 0 };
	struct incoming in = *to;
	long status = 0;

	in.curl = c->curl;
	in.r = &r;
	if (snprintf(url, sizeof url, "http://thaw%s", path) >= (int)sizeof url)
		return mv_fail(err, ENAMETOOLONG, "path too long");
	curl_easy_reset(c->curl);
	curl_easy_setopt(c->curl, CURLOPT_UNIX_SOCKET_PATH, c->socket_path);
	curl_easy_setopt(c->curl, CURLOPT_URL, url);
	curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c->curl, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, c->headers);
	curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, &in);
	curl_easy_setopt(c->curl, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(c->curl, CURLOPT_HEADERDATA, &in);
	if (in_fd >= 0) { // chunked; with "Expect: 100-continue", so that a refusal comes before the body
		curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, NULL);
		curl_easy_setopt(c->curl, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(c->curl, CURLOPT_READFUNCTION, read_body);
		curl_easy_setopt(c->curl, CURLOPT_READDATA, &in_fd);
		curl_easy_setopt(c->curl, CURLOPT_UPLOAD_BUFFERSIZE, STREAM_BLOCK);
		curl_easy_setopt(c->curl, CURLOPT_CUSTOMREQUEST, method);
	} else if (strcmp(method, "GET")) {
		curl_easy_setopt(c->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
		curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, body ? body : "");
		curl_easy_setopt(c->curl, CURLOPT_CUSTOMREQUEST, method);
	}
	CURLcode code = curl_easy_perform(c->curl);
	to->stop = in.stop;
	if (code != CURLE_OK) {
		mv_buf_fini(&in.body);
		if (in.error)
			return mv_fail(err, in.error, "can't write: %s", strerror(in.error));
		return explain(c, code, err);
	}
	curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
	mv_buf_append(&in.body, "", 1);
	if (in.body.failed) {
		mv_buf_fini(&in.body);
		return mv_fail(err, ENOMEM, "out of memory");
	}
	r.status = (unsigned)status;
	r.body = (char *)in.body.p;
	r.len = in.body.len - 1;
	*ret_r = r;
	return 0;
}

int client_call(struct client *c, const char *method, const char *path, const void *body, size_t len,
		struct client_reply *ret_r, struct mv_err *err)
{
	return call(c, method, path, body, len, -1, &(struct incoming){ .out_fd = -1 }, ret_r, err);
}

int client_stream(struct client *c, const char *method, const char *path, int in_fd, int out_fd,
		  struct client_reply *ret_r, struct mv_err *err)
{
	return call(c, method, path, NULL, 0, in_fd, &(struct incoming){ .out_fd = out_fd }, ret_r, err);
}

int client_follow(struct client *c, const char *path, client_data_fn *fn, void *arg, int *ret_stop,
		  struct client_reply *ret_r, struct mv_err *err)
{
	struct incoming in = { .out_fd = -1, .fn = fn, .arg = arg };
	int r = call(c, "GET", path, NULL, 0, -1, &in, ret_r, err);
	*ret_stop = in.stop;
	return r;
}

void client_reply_fini(struct client_reply *r)
{
	free(r->body);
	*r = (struct client_reply){ 0 };
}
