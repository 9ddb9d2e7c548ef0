// SPDX-License-Identifier: Apache-2.0
// Answers: their header fields, and values of their JSON (jansson).
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/private.h"

#define MAX_KEY_LEN 64

void lib_append(struct lib_buf *b, const void *bytes, size_t n)
{
	if (!b->failed && b->cap - b->len <= n) {
		size_t cap = b->cap ? b->cap : 256;
		while (cap - b->len <= n) // both are far below SIZE_MAX / 2
			cap *= 2;
		char *p = realloc(b->p, cap);
		b->failed = !p;
		b->p = p ? p : b->p;
		b->cap = p ? cap : b->cap;
	}
	if (b->failed)
		return;
	if (n)
		memcpy(b->p + b->len, bytes, n);
	b->len += n;
	b->p[b->len] = 0;
}

void lib_forget_json(struct thaw_reply *r)
{
	json_decref(r->json);
	r->json = NULL;
}

void thaw_reply_free(struct thaw_reply *r)
{
	if (!r)
		return;
	lib_forget_json(r);
	free(r->body.p);
	free(r->headers.p);
	free(r);
}

unsigned thaw_reply_status(const struct thaw_reply *r) { return r->status; }

const char *thaw_reply_body(const struct thaw_reply *r, size_t *ret_len)
{
	if (ret_len)
		*ret_len = r->body.len;
	return r->body.p ? r->body.p : "";
}

const char *thaw_reply_header(const struct thaw_reply *r, const char *name)
{
	size_t n = strlen(name);
	const char *end = r->headers.p + r->headers.len;
	for (const char *p = r->headers.p; p && p < end; p += strlen(p) + 1)
		if (!strncasecmp(p, name, n) && p[n] == ':')
			return p + n + 1 + strspn(p + n + 1, " \t");
	return NULL;
}

// NULL: nothing has this path.
static json_t *value(struct thaw_reply *r, const char *path)
{
	if (!r->json && !r->is_no_json) {
		r->json = json_loadb(r->body.p ? r->body.p : "", r->body.len, 0, NULL);
		r->is_no_json = !r->json;
	}
	json_t *v = r->json;
	while (v && *path) {
		char key[MAX_KEY_LEN], *end;
		size_t n = strcspn(path, ".");
		if (n >= sizeof key)
			return NULL;
		memcpy(key, path, n);
		key[n] = 0;
		if (json_is_array(v)) {
			unsigned long i = strtoul(key, &end, 10);
			v = n && key[0] >= '0' && key[0] <= '9' && !*end ? json_array_get(v, i) : NULL;
		} else {
			v = json_object_get(v, key);
		}
		path += n + (path[n] == '.');
	}
	return v;
}

const char *thaw_reply_str(struct thaw_reply *r, const char *path, const char *otherwise)
{
	const char *s = json_string_value(value(r, path));
	return s ? s : otherwise;
}

int64_t thaw_reply_int(struct thaw_reply *r, const char *path, int64_t otherwise)
{
	const json_t *v = value(r, path);
	return json_is_integer(v) ? json_integer_value(v) : otherwise;
}

bool thaw_reply_bool(struct thaw_reply *r, const char *path, bool otherwise)
{
	const json_t *v = value(r, path);
	return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

size_t thaw_reply_count(struct thaw_reply *r, const char *path)
{
	const json_t *v = value(r, path);
	return json_is_array(v) ? json_array_size(v) : json_object_size(v);
}

char *thaw_quote(const char *text)
{
	json_t *v = json_string(text);
	char *s = v ? json_dumps(v, JSON_ENCODE_ANY) : NULL;
	json_decref(v);
	return s;
}
