// SPDX-License-Identifier: Apache-2.0
#include "api/fc/routes.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/util.h"

static const struct fc_machine default_machine = { .vcpu_count = 1, .mem_size_mib = 128 };
static const struct fc_hinting default_hinting = { .acknowledge_on_stop = true };

// clang-format off
#define BODY(name) .table = &fc_##name##_table, .body_bytes = sizeof(struct fc_##name)
#define PATCH(name) .table = &fc_##name##_patch_table, .body_bytes = sizeof(struct fc_##name)
#define SETS .configures = true
static const struct fc_route routes[] = {
	{ "GET", "/", FC_ALWAYS, .metric = "instance_info", .fn = fc_get_instance },
	{ "GET", "/version", FC_ALWAYS, .metric = "vmm_version", .fn = fc_get_version },
	{ "PATCH", "/vm", FC_AFTER, BODY(vm_state), .fn = fc_patch_vm },
	{ "GET", "/vm/config", FC_ALWAYS, .fn = fc_get_config },
	{ "GET", "/machine-config", FC_ALWAYS, .metric = "machine_cfg", .fn = fc_get_machine },
	{ "PUT", "/machine-config", FC_BEFORE, BODY(machine), .defaults = &default_machine,
	  .metric = "machine_cfg", .fn = fc_put_machine, SETS },
	{ "PATCH", "/machine-config", FC_BEFORE, PATCH(machine), .metric = "machine_cfg",
		.fn = fc_patch_machine, SETS },
	{ "PUT", "/cpu-config", FC_BEFORE, .any = true, .metric = "cpu_cfg", .fn = fc_put_cpu, SETS,
	  .note = "at most 64 registers of cpuid_modifiers, whose flags have no effect; 16 msr_modifiers; "
		  "kvm_capabilities are looked for" },
	{ "PUT", "/boot-source", FC_BEFORE, BODY(boot), .metric = "boot_source", .fn = fc_put_boot, SETS },
	{ "PUT", "/drives/{id}", FC_BEFORE, BODY(drive), .id_field = "drive_id", .metric = "drive",
		.fn = fc_put_drive,
	  SETS, .note = "at most 8" },
	{ "PATCH", "/drives/{id}", FC_AFTER, PATCH(drive), .id_field = "drive_id", .metric = "drive",
	  .fn = fc_patch_drive },
	{ "PUT", "/network-interfaces/{id}", FC_BEFORE, BODY(net), .id_field = "iface_id",
		.metric = "network",
	  .fn = fc_put_net, SETS, .note = "at most 4; the tap has to exist" },
	{ "PATCH", "/network-interfaces/{id}", FC_AFTER, PATCH(net), .id_field = "iface_id",
		.metric = "network",
	  .fn = fc_patch_net },
	{ "PUT", "/pmem/{id}", FC_BEFORE, BODY(pmem), .id_field = "id", .metric = "pmem",
		.fn = fc_put_pmem, SETS,
	  .note = "at most 4" },
	{ "PATCH", "/pmem/{id}", FC_AFTER, PATCH(pmem), .id_field = "id", .metric = "pmem",
		.fn = fc_patch_pmem },
	{ "PUT", "/vsock", FC_BEFORE, BODY(vsock), .metric = "vsock", .fn = fc_put_vsock, SETS },
	{ "PUT", "/entropy", FC_BEFORE, BODY(entropy), .fn = fc_put_entropy, SETS },
	{ "PUT", "/serial", FC_BEFORE, BODY(serial), .metric = "serial", .fn = fc_put_serial },
	{ "GET", "/balloon", FC_ALWAYS, .fn = fc_get_balloon },
	{ "PUT", "/balloon", FC_BEFORE, BODY(balloon), .fn = fc_put_balloon, SETS },
	{ "PATCH", "/balloon", FC_AFTER, PATCH(balloon), .fn = fc_patch_balloon },
	{ "GET", "/balloon/statistics", FC_AFTER, .asks = true, .fn = fc_get_balloon_stats },
	{ "PATCH", "/balloon/statistics", FC_AFTER, .table = &fc_balloon_stats_table,
	  .body_bytes = sizeof(struct fc_balloon), .fn = fc_patch_balloon_stats },
	{ "PATCH", "/balloon/hinting/start", FC_AFTER, BODY(hinting), .defaults = &default_hinting,
	  .fn = fc_start_hinting },
	{ "PATCH", "/balloon/hinting/stop", FC_AFTER, .fn = fc_stop_hinting,
	  .note = "ends a round that goes on; by itself one ends after 60 s at the latest" },
	{ "GET", "/balloon/hinting/status", FC_AFTER, .fn = fc_hinting_status },
	{ "GET", "/mmds", FC_ALWAYS, .metric = "mmds", .fn = fc_get_mmds },
	{ "PUT", "/mmds", FC_ALWAYS, .any = true, .metric = "mmds", .fn = fc_put_mmds },
	{ "PATCH", "/mmds", FC_ALWAYS, .any = true, .metric = "mmds", .fn = fc_patch_mmds },
	{ "PUT", "/mmds/config", FC_BEFORE, BODY(mmds_config), .metric = "mmds",
		.fn = fc_put_mmds_config, SETS },
	{ "PUT", "/logger", FC_BEFORE, BODY(logger), .metric = "logger", .fn = fc_put_logger },
	{ "PUT", "/metrics", FC_BEFORE, BODY(metrics), .metric = "metrics", .fn = fc_put_metrics,
	  .note = "fields that thaw has no true value for are left out" },
	{ "PUT", "/actions", FC_ALWAYS, BODY(action), .metric = "actions", .fn = fc_put_action },
	{ "PUT", "/hotplug/memory", FC_BEFORE, .any = true, .fn = fc_refuse_hotplug,
		.note = "refused: no virtio-mem" },
	{ "GET", "/hotplug/memory", FC_ALWAYS, .fn = fc_refuse_hotplug, .note = "refused: no virtio-mem" },
	{ "PATCH", "/hotplug/memory", FC_AFTER, .any = true, .fn = fc_refuse_hotplug,
		.note = "refused: no virtio-mem" },
	{ "PUT", "/snapshot/create", FC_AFTER, BODY(create), .fn = fc_create_snapshot,
	  .note = "files of thaw's format, and <snapshot_path>.<drive_id>.layer" },
	{ "PUT", "/snapshot/load", FC_BEFORE, BODY(load), .fn = fc_load_snapshot,
		.note = "files of thaw's format, and <snapshot_path>.<drive_id>.layer" },
};
// clang-format on
_Static_assert(MV_ARRAY_LEN(routes) <= FC_MAX_ROUTES, "each has its counters");

const struct fc_route *fc_route_at(unsigned i) { return i < MV_ARRAY_LEN(routes) ? &routes[i] : NULL; }

bool fc_id_ok(const char *id)
{
	size_t n = 0;
	while (isalnum((unsigned char)id[n]) || id[n] == '_')
		n++;
	return n && !id[n] && n < VMCFG_NAME_LEN;
}

// ret_id: behind the path's last slash.
static bool matches(const char *pattern, const char *path, const char **ret_id)
{
	const char *brace = strchr(pattern, '{');
	size_t n = brace ? (size_t)(brace - pattern) : 0;
	if (!brace)
		return !strcmp(pattern, path);
	*ret_id = path + n;
	return !strncmp(pattern, path, n) && path[n] && !strchr(path + n, '/');
}

static const struct fc_route *find(const char *method, const char *path, const char **ret_id)
{
	for (size_t i = 0; i < MV_ARRAY_LEN(routes); i++)
		if (!strcmp(routes[i].method, method) && matches(routes[i].path, path, ret_id))
			return &routes[i];
	return NULL;
}

static int check_phase(const struct fc *fc, const struct fc_route *r, struct api_err *err)
{
	if (r->phase == FC_BEFORE && fc->state != FC_NOT_STARTED)
		return api_fail(err, API_WRONG_STATE,
				"The requested operation is not supported after starting the microVM.");
	if (r->phase == FC_AFTER && fc->state == FC_NOT_STARTED)
		return api_fail(err, API_WRONG_STATE,
				"The requested operation is not supported before starting the microVM.");
	return 0;
}

// The ids: both are there and equal, and made of the right characters.
static int check_id(const struct fc_route *r, const char *id, const void *body, struct api_err *err)
{
	const struct js_table *t = r->table;
	const char *of_body = "";
	if (!fc_id_ok(id))
		return api_fail(err, API_INVALID_VALUE,
				"The id \"%.80s\" is not made of 1 to 64 letters, digits and '_'", id);
	for (uint32_t i = 0; i < t->n_fields; i++)
		if (!strcmp(t->fields[i].name, r->id_field))
			of_body = (const char *)body + t->fields[i].offset;
	if (!strcmp(id, of_body))
		return 0;
	return api_fail(err, API_INVALID_VALUE,
			"The id from the path [%s] does not match the id from the body [%s]!", id, of_body);
}

static int decode(const struct fc_route *r, const char *id, const char *bytes, size_t len, void *body,
		  struct api_err *err)
{
	if (r->defaults)
		memcpy(body, r->defaults, r->body_bytes);
	int e = js_decode(r->table, bytes, len, body, err);
	if (!e)
		return r->id_field ? check_id(r, id, body, err) : 0;
	struct api_err why = *err;
	return api_fail(err, why.code,
			"An error occurred when deserializing the json body of a request: %.500s", why.msg);
}

static int call(struct fc *fc, const struct fc_route *r, const char *id, const char *bytes, size_t len,
		js **ret_answer, struct api_err *err)
{
	const struct fc_bytes any = { bytes, len };
	bool get = !strcmp(r->method, "GET"), optional = !strcmp(r->path, "/balloon/hinting/stop") ||
							 !strcmp(r->path, "/balloon/hinting/start");
	if (get && len)
		return api_fail(err, API_INVALID_VALUE, "GET request cannot have a body.");
	if (!get && !len && !optional)
		return api_fail(err, API_INVALID_VALUE, "Empty %s request.", r->method);
	MV_FREE void *body = calloc(1, r->body_bytes ? r->body_bytes : 1);
	if (!body)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	int e = r->table ? decode(r, id, bytes, len, body, err) : 0;
	e = e ? e : check_phase(fc, r, err);
	e = e ? e : r->fn(fc, id, r->any ? (const void *)&any : body, ret_answer, err);
	if (!e && r->configures)
		fc->configured = true;
	return e;
}

int fc_do(struct fc *fc, const char *method, const char *path, const char *body, size_t body_len,
	  js **ret_answer, struct api_err *err)
{
	const char *id = NULL;
	const struct fc_route *r = find(method, path, &id);
	if (!r)
		return api_fail(err, API_NOT_FOUND, "Invalid request method and/or path: %.10s %.200s.",
				method, path);
	int e = call(fc, r, id, body, body_len, ret_answer, err);
	fc->counts.called[r - routes]++;
	fc->counts.failed[r - routes] += e != 0;
	return e;
}

static void answer(struct http_req *q, unsigned status, js *body)
{
	char *text = body ? js_text(body, false) : NULL;
	http_reply(q, body && !text ? 500 : status, text ? "application/json" : NULL, text,
		   text ? strlen(text) - 1 : 0, NULL, 0); // without the newline
}

static void answer_text(struct http_req *q, unsigned status, const char *key, const char *text)
{
	js *o = js_object();
	js_put_str(o, key, text);
	answer(q, status, o);
}

// What the VM process is not needed for is answered while something else waits for it.
static bool only_reads(const struct http_req *q)
{
	const char *id;
	const struct fc_route *r = find(q->method, q->path, &id);
	return !r || (!strcmp(q->method, "GET") && !r->asks);
}

void fc_dispatch(void *arg, struct http_req *q)
{
	struct fc *fc = arg;
	if (q->refusal == HTTP_FULL) {
		answer_text(q, 503, "error", "Too many open connections");
		return;
	}
	if (q->body_too_large || q->refusal) {
		char text[160];
		snprintf(text, sizeof text, "Request %s is larger than the limit of %zu allowed by server.",
			 q->refusal == HTTP_URI_TOO_LONG       ? "path"
			 : q->refusal == HTTP_FIELDS_TOO_LARGE ? "header"
							       : "payload",
			 q->body_too_large                 ? fc->args->max_payload_bytes
			 : q->refusal == HTTP_URI_TOO_LONG ? (size_t)HTTP_MAX_URI
							   : (size_t)HTTP_MAX_FIELDS);
		answer_text(q, q->body_too_large ? 413 : 400, "error", text);
		return;
	}
	if (only_reads(q))
		fc_answer(fc, q);
	else
		fc_work_add(fc, q);
}

void fc_answer(struct fc *fc, struct http_req *q)
{
	struct api_err err = { 0 };
	js *a = NULL;
	fc_log(fc, FC_INFO, "The API server received a %s request on \"%s\".", q->method, q->path);
	if (fc->end)
		api_fail(&err, API_SHUTTING_DOWN, "The microVM has ended");
	else
		fc_do(fc, q->method, q->path, q->body, q->body_len, &a, &err);
	if (err.code) {
		fc_log(fc, FC_ERROR, "Received Error. Status code: 400 Bad Request. Message: %s", err.msg);
		answer_text(q, 400, "fault_message", err.msg);
		js_free(a);
		return;
	}
	fc_log(fc, FC_INFO, "The request was executed successfully. Status code: %s.",
	       a ? "200 OK" : "204 No Content");
	answer(q, a ? 200 : 204, a);
}

static const char *mark(const struct js_field *f)
{
	return f->flags & FC_EXTENDED  ? "extended"
	       : f->flags & FC_REFUSED ? "refused"
	       : f->flags & FC_IGNORED ? "no effect"
				       : "same";
}

static void print_fields(const struct js_table *t, const char *prefix)
{
	char inner[100];
	for (uint32_t i = 0; t && i < t->n_fields; i++) {
		const struct js_field *f = &t->fields[i];
		printf("| `%s%s`%s | %s | %s |\n", prefix, f->name, f->flags & JS_REQUIRED ? "" : " ?",
		       mark(f), f->doc);
		snprintf(inner, sizeof inner, "%s%s%s.", prefix, f->name, f->type == JS_LIST ? "[]" : "");
		if (f->sub && !strstr(f->name, "rate_limiter"))
			print_fields(f->sub, inner);
	}
}

void fc_print_table(void)
{
	static const char *const phases[] = { "always", "before the start", "after the start" };
	puts("| call or field | | |\n|---|---|---|");
	for (size_t i = 0; i < MV_ARRAY_LEN(routes); i++) {
		const struct fc_route *r = &routes[i];
		printf("| **%s %s** | %s | %s |\n", r->method, r->path, phases[r->phase],
		       r->note ? r->note : "");
		print_fields(r->table, "");
	}
}
