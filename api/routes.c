// SPDX-License-Identifier: Apache-2.0
#include "api/routes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/answers.h"
#include "api/entry.h"
#include "api/etag.h"
#include "api/idem.h"
#include "api/metrics.h"
#include "api/page.h"
#include "api/vmjson.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

// --- query parameters -----------------------------------------------------------------
// clang-format off
#define Q_UINT(name_, max_, doc_)                                                                  \
	{ .name = (name_), .type = JS_UINT, .max = (max_), .size = 8, .doc = (doc_) }
#define Q_BOOL(name_, doc_) { .name = (name_), .type = JS_BOOL, .doc = (doc_) }
#define Q_WORD(name_, words_, doc_) { .name = (name_), .type = JS_WORD, .words = (words_), .doc = (doc_) }
#define Q_TABLE(var, array)                                                                        \
	static const struct js_table var = { .fields = (array), .n_fields = MV_ARRAY_LEN(array) };  \
	_Static_assert(MV_ARRAY_LEN(array) <= ROUTE_MAX_QUERY, "room in run_route()")

static const char *const wait_words[] = { "ready", NULL };
static const char *const metrics_words[] = { "json", "prometheus", NULL };
static const struct js_field show_fields[] = {
	Q_WORD("wait", wait_words, "answer when the guest is ready"),
	Q_UINT("timeout_ms", API_READY_MAX_MS, "ms to wait; default 30000"),
};
static const struct js_field console_fields[] = {
	Q_UINT("offset", UINT64_MAX >> 1, "of the first byte wanted, since the VM began; default 0"),
	Q_UINT("wait_ms", API_CONSOLE_MAX_WAIT_MS, "ms to wait for output; default 0"),
};
static const struct js_field page_fields[] = {
	{ .name = "limit", .type = JS_UINT, .min = 1, .max = PAGE_MAX, .size = 8, .doc = "at most so many" },
	{ .name = "after", .type = JS_NAME, .size = ROUTE_NAME_LEN, .doc = "those behind this name" },
};
static const struct js_field force_fields[] = { Q_BOOL("force", "also when others need it; default false") };
static const struct js_field events_fields[] = {
	Q_UINT("since", INT64_MAX, "number of the last event seen; default: those from now on"),
	{ .name = "types", .type = JS_STR, .doc = "vm, vm.exited, ..., with commas; default: all" },
	Q_BOOL("follow", "false: end behind what is kept; default true"),
};
static const struct js_field metrics_fields[] = {
	Q_BOOL("per_vm", "also what each VM process uses; default false"),
};
static const struct js_field usage_fields[] = { Q_WORD("format", metrics_words, "default json") };
Q_TABLE(show_query, show_fields);
Q_TABLE(console_query, console_fields);
Q_TABLE(list_query, page_fields);
Q_TABLE(force_query, force_fields);
Q_TABLE(events_query, events_fields);
Q_TABLE(metrics_query, metrics_fields);
Q_TABLE(usage_query, usage_fields);

// --- the routes --------------------------------------------------------------------------
#define BYTES "application/octet-stream"
#define ANSWER(status_, table_) .status = (status_), .answer = &(table_)
#define BODY(table_) .body = &(table_)
const struct route api_routes[] = {
	{ "GET", "/v1/info", op_info, "version and counts", ANSWER(200, info_answer) },
	{ "GET", "/v1/openapi.json", op_openapi, "this interface as an OpenAPI document",
	  ANSWER(200, any_answer) },
	{ "POST", "/v1/vms", op_vm_create, "create a VM", ANSWER(201, vm_answer), BODY(create_table) },
	{ "GET", "/v1/vms", op_vm_list, "list VMs", ANSWER(200, vm_list_answer), .query = &list_query },
	{ "GET", "/v1/vms/{name}", op_vm_show, "show a VM, now or when it is ready", ANSWER(200, vm_answer),
	  .query = &show_query },
	{ "DELETE", "/v1/vms/{name}", op_vm_delete, "end and forget a VM", .status = 204 },
	{ "POST", "/v1/vms/{name}/start", op_vm_start, "first start", ANSWER(200, vm_answer),
	  BODY(empty_table) },
	{ "POST", "/v1/vms/{name}/pause", op_vm_pause, "stop the vCPUs", ANSWER(200, vm_answer),
	  BODY(empty_table) },
	{ "POST", "/v1/vms/{name}/resume", op_vm_resume, "let the vCPUs go on", ANSWER(200, vm_answer),
	  BODY(empty_table) },
	{ "POST", "/v1/vms/{name}/clone", op_vm_clone, "fork a running VM", ANSWER(201, fork_answer),
	  .other_status = 207, BODY(clone_table) },
	{ "POST", "/v1/vms/{name}/stop", op_vm_stop, "ask the guest to end, or kill it",
	  ANSWER(200, vm_answer),
	  BODY(stop_table) },
	{ "GET", "/v1/vms/{name}/console", op_console_read, "read serial output", .status = 200,
	  .produces = BYTES,
	  .query = &console_query },
	{ "PUT", "/v1/vms/{name}/console", op_console_write, "write serial input", .status = 204,
	  .consumes = BYTES },
	{ "GET", "/v1/vms/{name}/metadata", op_metadata_get, "the guest's document",
	  ANSWER(200, any_answer) },
	{ "PUT", "/v1/vms/{name}/metadata", op_metadata_put, "replace it", .status = 204, BODY(any_answer) },
	{ "PATCH", "/v1/vms/{name}/nets/{net}", op_net_patch, "its link and rate limits",
	  ANSWER(200, vm_answer),
	  BODY(net_body_table) },
	{ "PATCH", "/v1/vms/{name}/drives/{drive}", op_drive_patch, "its size and rate limit",
	  ANSWER(200, vm_answer), BODY(drive_body_table) },
	{ "PATCH", "/v1/vms/{name}/pmems/{pmem}", op_pmem_patch, "its rate limit", ANSWER(200, vm_answer),
	  BODY(pmem_body_table) },
	{ "GET", "/v1/vms/{name}/balloon", op_balloon_get, "its size, and the guest's statistics",
	  ANSWER(200, balloon_answer) },
	{ "PATCH", "/v1/vms/{name}/balloon", op_balloon_patch, "another size or interval",
	  ANSWER(200, balloon_answer), BODY(balloon_set_table) },
	{ "POST", "/v1/vms/{name}/balloon/hint", op_balloon_hint, "have all that the guest has free",
	  ANSWER(200, balloon_answer), BODY(balloon_hint_table) },
	{ "POST", "/v1/snapshots", op_snap_create, "take a snapshot", ANSWER(201, snapshot_created_answer),
	  BODY(snapshot_table) },
	{ "GET", "/v1/snapshots", op_snap_list, "list snapshots",
	  ANSWER(200, snapshot_list_answer), .query = &list_query },
	{ "GET", "/v1/snapshots/{name}", op_snap_show, "show a snapshot", ANSWER(200, snapshot_answer) },
	{ "DELETE", "/v1/snapshots/{name}", op_snap_delete, "delete a snapshot", .status = 204,
	  BODY(empty_table), .query = &force_query },
	{ "GET", "/v1/snapshots/{name}/export", op_snap_export, "a snapshot as one stream", .status = 200,
	  .produces = BYTES },
	{ "PUT", "/v1/snapshots/{name}/import", op_snap_import, "a snapshot from such a stream",
	  ANSWER(201, imported_answer), .consumes = BYTES },
	{ "POST", "/v1/snapshots/{name}/verify", op_snap_verify, "hash all its files",
	  ANSWER(200, verify_answer),
	  BODY(empty_table) },
	{ "POST", "/v1/snapshots/{name}/flatten", op_snap_flatten, "give it all of its memory",
	  ANSWER(200, flatten_answer), .other_status = 201, BODY(flatten_table) },
	{ "POST", "/v1/snapshots/{name}/prepare", op_snap_prepare, "make its template",
	  ANSWER(200, prepare_answer),
	  BODY(prepare_table) },
	{ "DELETE", "/v1/snapshots/{name}/prepare", op_snap_unprepare, "free its template", .status = 204 },
	{ "POST", "/v1/snapshots/{name}/clone", op_clone, "start VMs from a snapshot",
	  ANSWER(201, clone_answer),
	  .other_status = 207, BODY(clone_table) },
	{ "DELETE", "/v1/snapshots/{name}/working-set", op_snap_drop_set, "forget its working set",
	  .status = 204 },
	{ "POST", "/v1/gc", op_gc, "remove leftovers of crashes", ANSWER(200, gc_answer), BODY(empty_table) },
	{ "GET", "/v1/operations", op_operations, "long work on snapshots, and how far it is",
	  ANSWER(200, operation_list_answer) },
	{ "GET", "/v1/events", op_events, "what happened and happens", ANSWER(200, event_answer),
	  .produces = "application/x-ndjson", .query = &events_query },
	{ "GET", "/v1/metrics", op_metrics, "counters, for Prometheus", 200,
	  .produces = "text/plain; version=0.0.4", .query = &metrics_query },
	{ "GET", "/v1/vms/{name}/metrics", op_vm_metrics, "what a VM uses of the host",
	  ANSWER(200, usage_answer),
	  .query = &usage_query },
	{ "GET", "/v1/vms/{name}/devices", op_vm_devices, "its virtio devices and what they did",
	  ANSWER(200, devices_answer) },
};
// clang-format on
const unsigned api_n_routes = MV_ARRAY_LEN(api_routes);

// --- header fields ---------------------------------------------------------------------
static bool of_all(const struct route *t) { return t != NULL; }

#define TEXT(name_, size_, doc_)                                                                             \
	{                                                                                                    \
		.name = (name_), .type = JS_STR, .size = (size_), .doc = (doc_)                              \
	}
const struct route_header api_headers[] = {
	{ TEXT(HTTP_REQUEST_ID, sizeof(struct mv_log_tag), "names the request in answer and log"), of_all,
	  true },
	{ TEXT(HTTP_REQUEST_ID, sizeof(struct mv_log_tag), "the request's, or one made for it"), of_all,
	  false },
	{ TEXT(IDEM_HEADER, IDEM_KEY_MAX + 1, "do it once: what repeats it gets its answer"), idem_of, true },
	{ TEXT(IDEM_REPLAYED, 0, "true: the answer of an earlier request with this key"), idem_of, false },
	{ TEXT("ETag", 0, "the version of the VM or snapshot"), etag_shown, false },
	{ TEXT("If-None-Match", 0, "304 if it has this version"), etag_unchanged_of, true },
	{ TEXT("If-Match", 0, "412 if it has another version"), etag_match_of, true },
};
const unsigned api_n_headers = MV_ARRAY_LEN(api_headers);

bool route_match(const char *pattern, const char *path, char ret_name[ROUTE_NAME_LEN])
{
	while (*pattern) {
		if (*pattern != '{') {
			if (*pattern++ != *path++)
				return false;
			continue;
		}
		size_t n = strcspn(path, "/");
		if (n == 0 || n >= ROUTE_NAME_LEN)
			return false;
		if (!strncmp(pattern, "{name}", 6)) {
			memcpy(ret_name, path, n);
			ret_name[n] = 0;
		}
		path += n;
		pattern += strcspn(pattern, "}") + 1;
	}
	return !*path;
}

js *err_json(const struct api_err *err)
{
	js *o = js_object();
	js_put_str(o, "code", api_code_info(err->code)->name);
	js_put_str(o, "message", err->msg);
	return o;
}

static void reply_allow(struct http_req *r, unsigned status, js *body, const char *allow)
{
	struct http_header h = { .name = "Allow" };
	char *text = js_text(body, false);
	if (allow)
		snprintf(h.value, sizeof h.value, "%s", allow);
	http_reply(r, text ? status : 500, "application/json", text, text ? strlen(text) : 0, &h,
		   allow ? 1 : 0);
}

void reply_json(struct http_req *r, unsigned status, js *body) { reply_allow(r, status, body, NULL); }

void reply_text(struct http_req *r, unsigned status, struct mv_buf *json)
{
	struct mv_buf b = *json;
	*json = (struct mv_buf){ 0 };
	if (b.failed)
		mv_buf_fini(&b);
	http_reply(r, b.p ? status : 500, "application/json", b.p, b.len, NULL, 0);
}

static void reply_error(struct http_req *r, const struct api_err *err, const char *allow)
{
	static struct mv_ratelimit refusals; // one takes a client nothing but a connection
	unsigned status = api_code_info(err->code)->status;
	js *o = js_object();
	js_put(o, "error", err_json(err));
	if (status >= 500 && (!r->refusal || mv_ratelimit_ok(&refusals, 5))) {
		struct mv_log_tag before = mv_log_set_tag(r->id); // also from timers and the like
		mv_log(MV_WARN, "%s %s: %u %s: %s", r->method, r->path, status,
		       api_code_info(err->code)->name, err->msg);
		mv_log_set_tag(before);
	}
	reply_allow(r, status, o, allow);
}

void reply_err(struct http_req *r, const struct api_err *err) { reply_error(r, err, NULL); }

void reply_empty(struct http_req *r) { http_reply(r, 204, NULL, NULL, 0, NULL, 0); }

int query_uint(struct http_req *r, const char *name, uint64_t max, uint64_t otherwise, uint64_t *ret_v,
	       struct api_err *err)
{
	const char *s = http_query(r, name);
	char *end;
	if (!s) {
		*ret_v = otherwise;
		return 0;
	}
	errno = 0;
	uint64_t v = strtoull(s, &end, 10);
	if (*s < '0' || *s > '9' || *end || errno || v > max)
		return api_fail(err, API_INVALID_VALUE, "%s: \"%.32s\" is not a number within 0..%" PRIu64,
				name, s, max);
	*ret_v = v;
	return 0;
}

int query_bool(struct http_req *r, const char *name, bool *ret_v, struct api_err *err)
{
	const char *s = http_query(r, name);
	if (s && strcmp(s, "true") && strcmp(s, "false"))
		return api_fail(err, API_INVALID_VALUE, "%s: \"%.32s\" is neither true nor false", name, s);
	*ret_v = s && !strcmp(s, "true");
	return 0;
}

// Not found, or found with another method: then Allow lists the right ones.
static void no_route(struct http_req *r, const char *allow)
{
	struct api_err err;
	if (!allow[0])
		api_fail(&err, API_NOT_FOUND, "%s: no such route; the API begins with /v1", r->path);
	else
		api_fail(&err, API_METHOD_NOT_ALLOWED, "%s does not know %s; it knows %s", r->path, r->method,
			 allow);
	reply_error(r, &err, allow[0] ? allow : NULL);
}

static void run_route(struct server *s, const struct route *t, struct http_req *r, const char *name)
{
	struct api_err err;
	const char *known[ROUTE_MAX_QUERY + 1] = { NULL };
	for (uint32_t i = 0; t->query && i < t->query->n_fields; i++)
		known[i] = t->query->fields[i].name;
	const char *unknown = http_unknown_query(r, known);
	if (r->id_invalid)
		api_fail(&err, API_INVALID_VALUE,
			 HTTP_REQUEST_ID ": 1 to 64 letters, digits and . _ : = + / - are allowed");
	else if (r->body_too_large)
		api_fail(&err, API_BODY_TOO_LARGE, "the body is larger than %u bytes", HTTP_MAX_BODY);
	else if (unknown)
		api_fail(&err, API_UNKNOWN_FIELD, "query parameter %.64s: there is none of this name",
			 unknown);
	else {
		entry_begin(s, t, r, name);
		return;
	}
	reply_err(r, &err);
}

static bool refused(struct http_req *r)
{
	struct api_err err;
	switch (r->refusal) {
	case HTTP_FULL:
		api_fail(&err, API_LIMIT_REACHED, "%d connections are open; close some, or try again later",
			 HTTP_MAX_CONNECTIONS);
		break;
	case HTTP_URI_TOO_LONG:
		api_fail(&err, API_URI_TOO_LONG, "the path and its query are longer than %d bytes",
			 HTTP_MAX_URI);
		break;
	case HTTP_FIELDS_TOO_LARGE:
		api_fail(&err, API_FIELDS_TOO_LARGE, "the header fields are larger than %d bytes",
			 HTTP_MAX_FIELDS);
		break;
	case HTTP_FINE: return false;
	}
	reply_err(r, &err);
	return true;
}

void api_dispatch(void *arg, struct http_req *r)
{
	char name[ROUTE_NAME_LEN] = "", allow[64] = "";
	r->tag = api_n_routes; // of none
	if (refused(r))
		return;
	for (unsigned i = 0; i < api_n_routes; i++) {
		const struct route *t = &api_routes[i];
		if (!route_match(t->pattern, r->path, name))
			continue;
		if (!strcmp(t->method, r->method)) {
			mv_log(MV_DEBUG, "%s %s", r->method, r->path);
			r->tag = i;
			run_route(arg, t, r, name);
			return;
		}
		size_t used = strlen(allow);
		snprintf(allow + used, sizeof allow - used, "%s%s", used ? ", " : "", t->method);
	}
	no_route(r, allow);
}

void api_answered(void *arg, const struct http_req *r, unsigned status, const void *body, size_t body_len)
{
	if (r->keyed)
		idem_answered(arg, r, status, body, body_len);
	metrics_http(r->tag, status, mv_now_ns() - r->received_ns);
}

bool api_is_upload(const char *method, const char *path)
{
	char name[ROUTE_NAME_LEN];
	for (unsigned i = 0; i < api_n_routes; i++)
		if (api_routes[i].fn == op_snap_import)
			return !strcmp(api_routes[i].method, method) &&
			       route_match(api_routes[i].pattern, path, name);
	return false;
}
