// SPDX-License-Identifier: Apache-2.0
#include "api/etag.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/answers.h"
#include "api/ops_snapshot.h"
#include "api/record.h"
#include "api/vms.h"
#include "microvm/base/util.h"
#include "snapshot/format.h"

static const char vm_prefix[] = "/v1/vms/{name}", snapshot_prefix[] = "/v1/snapshots/{name}";

static bool of_vm(const struct route *t) { return !strncmp(t->pattern, vm_prefix, sizeof vm_prefix - 1); }

static bool of_snapshot(const struct route *t) // an import makes its own
{
	return !strncmp(t->pattern, snapshot_prefix, sizeof snapshot_prefix - 1) && t->fn != op_snap_import;
}

bool etag_shown(const struct route *t) { return t->answer == &vm_answer || t->answer == &snapshot_answer; }

bool etag_unchanged_of(const struct route *t) { return etag_shown(t) && !strcmp(t->method, "GET"); }

bool etag_match_of(const struct route *t)
{
	return (of_vm(t) || of_snapshot(t)) && strcmp(t->method, "GET") != 0;
}

static struct etag tag_of(uint64_t v)
{
	struct etag tag;
	snprintf(tag.text, sizeof tag.text, "\"%016" PRIx64 "\"", v);
	return tag;
}

struct etag etag_of_vm(const struct vm *vm) { return tag_of(vm->version); }

struct etag etag_of_snapshot(struct server *s, const struct manifest *m)
{
	js *o = snapshot_json(s, m), *w = working_set_json(s, m);
	if (w)
		js_put(o, "working_set", w);
	js_put_bool(o, "storage", false); // its space on disk moves by itself
	MV_FREE char *text = js_text(o, false);
	return tag_of(text ? snap_xxh3(text, strlen(text)) : 0);
}

// Is the tag in a list of them? Weak ones count only where `weak` allows; what is malformed matches nothing.
static bool listed(const char *p, const struct etag *tag, bool weak)
{
	const size_t n = strlen(tag->text);
	if (!strcmp(p, "*"))
		return true;
	for (;;) {
		p += strspn(p, " \t,");
		bool is_weak = !strncmp(p, "W/", 2);
		p += is_weak ? 2 : 0;
		const char *end = *p == '"' ? strchr(p + 1, '"') : NULL;
		if (!end)
			return false;
		if ((weak || !is_weak) && (size_t)(end + 1 - p) == n && !memcmp(p, tag->text, n))
			return true;
		p = end + 1;
	}
}

static int failed(const char *what, const char *name, const struct etag *tag, struct api_err *err)
{
	return api_fail(err, API_PRECONDITION_FAILED, "If-Match: %s %s is another one by now, %s", what, name,
			tag->text);
}

bool etag_must_look(const struct route *t, struct http_req *r, const char *name)
{
	struct api_err none;
	return of_snapshot(t) && etag_match_of(t) && http_field(r, "If-Match") &&
	       !snap_name_check(name, &none);
}

void etag_look(struct server *s, const char *name, struct etag_seen *ret_seen)
{
	ret_seen->result = store_show(&s->store, name, &ret_seen->m, &ret_seen->err);
	if (!ret_seen->result)
		ret_seen->tag = etag_of_snapshot(s, &ret_seen->m);
}

int etag_check(struct server *s, const struct route *t, struct http_req *r, const char *name,
	       const struct etag_seen *seen, struct api_err *err)
{
	const char *field = http_field(r, "If-Match");
	struct api_err none;
	struct etag tag;
	struct vm *vm;
	if (!field)
		return 0;
	if (!etag_match_of(t))
		return api_fail(err, API_PRECONDITION_FAILED, "If-Match: %s %s has no version to compare",
				t->method, t->pattern);
	if (of_vm(t)) {
		if (vms_find(s, name, &vm, &none))
			return 0;
		tag = etag_of_vm(vm);
		if (!listed(field, &tag, false))
			return failed("VM", name, &tag, err);
		if (strcmp(field, "*") != 0)
			vm_changed(vm);
		return 0;
	}
	if (!seen || seen->result == -ENOENT)
		return 0;
	if (seen->result)
		return api_fail(err, API_PRECONDITION_FAILED, "If-Match: %s", seen->err.msg);
	return listed(field, &seen->tag, false) ? 0 : failed("snapshot", name, &seen->tag, err);
}

static struct http_header header(const struct etag *tag)
{
	struct http_header h = { .name = "ETag" };
	mv_strcpy(h.value, sizeof h.value, tag->text);
	return h;
}

bool etag_reply_unchanged(struct http_req *r, const struct etag *tag)
{
	const char *field = http_field(r, "If-None-Match");
	const struct http_header h = header(tag);
	if (!field || !listed(field, tag, true))
		return false;
	http_reply(r, 304, NULL, NULL, 0, &h, 1);
	return true;
}

void etag_reply(struct http_req *r, unsigned status, const struct etag *tag, js *body)
{
	const struct http_header h = header(tag);
	char *text = js_text(body, false);
	http_reply(r, text ? status : 500, "application/json", text, text ? strlen(text) : 0, &h, 1);
}

void etag_reply_vm(struct http_req *r, unsigned status, const struct vm *vm)
{
	const struct etag tag = etag_of_vm(vm);
	etag_reply(r, status, &tag, vm_json(vm));
}
