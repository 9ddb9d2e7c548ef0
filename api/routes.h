// SPDX-License-Identifier: Apache-2.0
// The one table of routes, and the dispatcher. A handler answers its request exactly once,
// now or later. `name` is what stands at {name}; it lives as long as the request.
#pragma once
#include "api/error.h"
#include "api/http.h"
#include "api/json.h"
#include "api/server.h"

typedef void route_fn(struct server *s, struct http_req *r, const char *name);

#define ROUTE_MAX_QUERY 3
struct route {
	const char *method, *pattern; // "/v1/vms/{name}/start"
	route_fn *fn;
	const char *doc;
	unsigned status, other_status; // of success; other: 0, or another one with the same answer
	const struct js_table *answer; // NULL: `produces` says what comes; neither: nothing
	const struct js_table *body;   // NULL: `consumes` says what is taken; neither: nothing is read
	const char *produces, *consumes;
	const struct js_table *query; // NULL: none; at most ROUTE_MAX_QUERY, only described
};
extern const struct route api_routes[];
extern const unsigned api_n_routes;

// What requests and answers have of header fields; only described.
struct route_header {
	struct js_field field;
	bool (*of)(const struct route *t); // which routes
	bool in_request;                   // else in answers
};
extern const struct route_header api_headers[];
extern const unsigned api_n_headers;

// The http_handler; arg is the struct server.
void api_dispatch(void *arg, struct http_req *r);

// The http_answered_fn: counts answers, and keeps those of requests with a key.
void api_answered(void *arg, const struct http_req *r, unsigned status, const void *body, size_t body_len);

// The http_is_upload_fn.
bool api_is_upload(const char *method, const char *path);

// Does path fit pattern? Copies what stands at {name} (at most 64 bytes) when there is one; what stands at
// other names has at most 64 bytes, too.
#define ROUTE_NAME_LEN 65
bool route_match(const char *pattern, const char *path, char ret_name[ROUTE_NAME_LEN]);

// Its body, for js_decode_body(): a large one was parsed before.
static inline struct js_body body_of(const struct http_req *r)
{
	return (struct js_body){ r->body, r->body_len, r->parsed };
}

// Answers.
void reply_json(struct http_req *r, unsigned status, js *body);
void reply_text(struct http_req *r, unsigned status,
		struct mv_buf *json); // made in pieces; takes what is in it
void reply_err(struct http_req *r, const struct api_err *err);
void reply_empty(struct http_req *r);
js *err_json(const struct api_err *err); // {"code":..., "message":...}

// An unsigned query parameter; `otherwise` when it is not there.
int query_uint(struct http_req *r, const char *name, uint64_t max, uint64_t otherwise, uint64_t *ret_v,
	       struct api_err *err);

// A query parameter that is true or false; false when it is not there.
int query_bool(struct http_req *r, const char *name, bool *ret_v, struct api_err *err);

// Handlers, by file.
route_fn op_openapi;    // openapi.c
route_fn op_operations; // operation.c
route_fn op_info, op_vm_create, op_vm_list, op_vm_show, op_vm_start, op_vm_pause, op_vm_resume, op_vm_stop,
	op_vm_delete;                                                      // ops_vm.c
route_fn op_balloon_get, op_balloon_patch, op_balloon_hint;                // balloon.c
route_fn op_metadata_get, op_metadata_put;                                 // metadata.c
route_fn op_drive_patch, op_net_patch, op_pmem_patch;                      // ops_device.c
route_fn op_console_read, op_console_write;                                // ops_console.c
route_fn op_snap_create, op_snap_verify, op_snap_delete, op_snap_drop_set; // ops_snapshot.c
route_fn op_snap_list, op_snap_show;                                       // ops_snapread.c
route_fn op_snap_prepare, op_snap_unprepare;                               // ops_prepare.c
route_fn op_snap_flatten;                                                  // ops_chain.c
route_fn op_gc, op_snap_export, op_snap_import;                            // ops_store.c
route_fn op_clone, op_vm_clone;                                            // ops_clone.c
route_fn op_events;                                                        // events.c
route_fn op_metrics, op_vm_metrics;                                        // ops_metrics.c
route_fn op_vm_devices;                                                    // devices.c
