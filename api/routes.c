// SPDX-License-Identifier: Apache-2.0
#include "api/routes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/metrics.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

const struct route api_routes[] = {
	{ "GET", "/v1/info", op_info, { 0 }, "version and counts" },
	{ "POST", "/v1/vms", op_vm_create, { 0 }, "create a VM" },
	{ "GET", "/v1/vms", op_vm_list, { 0 }, "list VMs" },
	{ "GET",
	  "/v1/vms/{name}",
	  op_vm_show,
	  { "wait", "timeout_ms" },
	  "show a VM, now or when it is ready" },
	{ "DELETE", "/v1/vms/{name}", op_vm_delete, { 0 }, "end and forget a VM" },
	{ "POST", "/v1/vms/{name}/start", op_vm_start, { 0 }, "first start" },
	{ "POST", "/v1/vms/{name}/pause", op_vm_pause, { 0 }, "stop the vCPUs" },
	{ "POST", "/v1/vms/{name}/resume", op_vm_resume, { 0 }, "let the vCPUs go on" },
	{ "POST", "/v1/vms/{name}/clone", op_vm_clone, { 0 }, "fork a running VM" },
	{ "POST", "/v1/vms/{name}/stop", op_vm_stop, { 0 }, "ask the guest to end, or kill it" },
	{ "GET", "/v1/vms/{name}/console", op_console_read, { "offset", "wait_ms" }, "read serial output" },
	{ "PUT", "/v1/vms/{name}/console", op_console_write, { 0 }, "write serial input" },
	{ "GET", "/v1/vms/{name}/metadata", op_metadata_get, { 0 }, "the guest's document" },
	{ "PUT", "/v1/vms/{name}/metadata", op_metadata_put, { 0 }, "replace it" },
	{ "PATCH", "/v1/vms/{name}/nets/{net}", op_net_patch, { 0 }, "its link and rate limits" },
	{ "PATCH", "/v1/vms/{name}/drives/{drive}", op_drive_patch, { 0 }, "its size and rate limit" },
	{ "GET", "/v1/vms/{name}/balloon", op_balloon_get, { 0 }, "its size, and the guest's statistics" },
	{ "PATCH", "/v1/vms/{name}/balloon", op_balloon_patch, { 0 }, "another size or interval" },
	{ "POST", "/v1/snapshots", op_snap_create, { 0 }, "take a snapshot" },
	{ "GET", "/v1/snapshots", op_snap_list, { 0 }, "list snapshots" },
	{ "GET", "/v1/snapshots/{name}", op_snap_show, { 0 }, "show a snapshot" },
	{ "DELETE", "/v1/snapshots/{name}", op_snap_delete, { "force" }, "delete a snapshot" },
	{ "GET", "/v1/snapshots/{name}/export", op_snap_export, { 0 }, "a snapshot as one stream" },
	{ "PUT", "/v1/snapshots/{name}/import", op_snap_import, { 0 }, "a snapshot from such a stream" },
	{ "POST", "/v1/snapshots/{name}/verify", op_snap_verify, { 0 }, "hash all its files" },
	{ "POST", "/v1/snapshots/{name}/flatten", op_snap_flatten, { 0 }, "give it all of its memory" },
	{ "POST", "/v1/snapshots/{name}/prepare", op_snap_prepare, { 0 }, "make its template" },
	{ "DELETE", "/v1/snapshots/{name}/prepare", op_snap_unprepare, { 0 }, "free its template" },
	{ "POST", "/v1/snapshots/{name}/clone", op_clone, { 0 }, "start VMs from a snapshot" },
	{ "DELETE", "/v1/snapshots/{name}/working-set", op_snap_drop_set, { 0 }, "forget its working set" },
	{ "POST", "/v1/gc", op_gc, { 0 }, "remove leftovers of crashes" },
	{ "GET", "/v1/events", op_events, { "since", "types", "follow" }, "what happened and happens" },
	{ "GET", "/v1/metrics", op_metrics, { "per_vm" }, "counters, for Prometheus" },
	{ "GET", "/v1/vms/{name}/metrics", op_vm_metrics, { "format" }, "what a VM uses of the host" },
	{ "GET", "/v1/vms/{name}/devices", op_vm_devices, { 0 }, "its virtio devices and what they did" },
};
const unsigned api_n_routes = MV_ARRAY_LEN(api_routes);

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

static void reply_text(struct http_req *r, unsigned status, js *body, const char *allow)
{
	struct http_header h = { .name = "Allow" };
	char *text = js_text(body, false);
	if (allow)
		snprintf(h.value, sizeof h.value, "%s", allow);
	http_reply(r, text ? status : 500, "application/json", text, text ? strlen(text) : 0, &h,
		   allow ? 1 : 0);
}

void reply_json(struct http_req *r, unsigned status, js *body) { reply_text(r, status, body, NULL); }

static void reply_error(struct http_req *r, const struct api_err *err, const char *allow)
{
	unsigned status = api_code_info(err->code)->status;
	js *o = js_object();
	js_put(o, "error", err_json(err));
	if (status >= 500)
		mv_log(MV_WARN, "%s %s: %u %s: %s", r->method, r->path, status,
		       api_code_info(err->code)->name, err->msg);
	reply_text(r, status, o, allow);
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
	const char *unknown = http_unknown_query(r, t->query);
	if (s->stopping)
		api_fail(&err, API_SHUTTING_DOWN, "the daemon is ending");
	else if (r->body_too_large)
		api_fail(&err, API_BODY_TOO_LARGE, "the body is larger than %u bytes", HTTP_MAX_BODY);
	else if (unknown)
		api_fail(&err, API_UNKNOWN_FIELD, "query parameter %.64s: there is none of this name",
			 unknown);
	else {
		t->fn(s, r, name);
		return;
	}
	reply_err(r, &err);
}

void api_dispatch(void *arg, struct http_req *r)
{
	char name[ROUTE_NAME_LEN] = "", allow[64] = "";
	r->tag = api_n_routes; // of none
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

void api_answered(void *arg, const struct http_req *r, unsigned status)
{
	(void)arg;
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
