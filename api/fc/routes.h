// SPDX-License-Identifier: Apache-2.0
// The calls of Firecracker's API: one table of method, path, phase, body and handler, from which requests are
// dispatched, bodies decoded, the configuration file is read and docs/firecracker.md is made. Loop's thread.
#pragma once
#include "api/fc/fc.h"
#include "api/http.h"

enum fc_phase { FC_ALWAYS, FC_BEFORE, FC_AFTER };

// body: decoded, of the route's table; NULL without one. *ret_answer: for 200; else it is 204.
typedef int fc_handler(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err);

struct fc_route {
	const char *method, *path; // "{id}" stands for one part of the path
	enum fc_phase phase;
	const struct js_table *table; // of the body; NULL: none, or `any`
	size_t body_bytes;
	const void *defaults;
	const char *id_field; // of the body, that must be the path's id
	const char *metric;   // name in the metrics; NULL: is not counted
	fc_handler *fn;
	bool configures;  // brings what a snapshot would bring
	bool asks;        // a GET that the VM process is asked for
	bool any;         // the body is any JSON: handed over as its bytes, struct fc_bytes
	const char *note; // for docs/firecracker.md: what is not the same; NULL: all is
};
struct fc_bytes {
	const char *p;
	size_t len;
};

const struct fc_route *fc_route_at(unsigned i); // NULL: no more

// Does what one request asks for. 0, or -EINVAL with err.
int fc_do(struct fc *fc, const char *method, const char *path, const char *body, size_t body_len,
	  js **ret_answer, struct api_err *err);

void fc_dispatch(void *fc, struct http_req *r);    // http_handler: answers what only reads, keeps the rest
void fc_answer(struct fc *fc, struct http_req *q); // does it; not from a callback
void fc_print_table(void);

// Handlers: config.c
fc_handler fc_get_machine, fc_put_machine, fc_patch_machine, fc_put_boot, fc_put_drive, fc_put_net,
	fc_put_pmem, fc_put_vsock, fc_put_entropy, fc_put_serial, fc_put_logger, fc_put_metrics, fc_put_cpu,
	fc_get_config, fc_put_mmds_config;
// run.c
fc_handler fc_get_instance, fc_get_version, fc_patch_vm, fc_put_action, fc_patch_drive, fc_patch_net,
	fc_patch_pmem, fc_refuse_hotplug;
// mmds.c
fc_handler fc_get_mmds, fc_put_mmds, fc_patch_mmds;
// balloon.c
fc_handler fc_get_balloon, fc_put_balloon, fc_patch_balloon, fc_get_balloon_stats, fc_patch_balloon_stats,
	fc_start_hinting, fc_stop_hinting, fc_hinting_status;
// snapshot.c
fc_handler fc_create_snapshot, fc_load_snapshot;
