// SPDX-License-Identifier: Apache-2.0
// What the handlers of snapshots share: ops_snapshot.c, ops_store.c, ops_clone.c, ops_vm.c.
#pragma once
#include "api/error.h"
#include "api/json.h"
#include "api/server.h"
#include "microvm/cpu_report.h"

// The store's errors in words of the API: ENOENT and EEXIST have codes of their own, the rest is
// as in api_from(). Returns -EINVAL.
int snap_error(struct api_err *err, const struct mv_err *e, enum api_code otherwise);

// A name of a route that no snapshot can have: not found. 0 or -EINVAL.
int snap_name_check(const char *name, struct api_err *err);

// The error for a CPU that lacks something; {"error": {..., "missing": [...]}}.
js *cpu_error_json(const char *snapshot, const struct cpu_report *r);

js *manifest_json(struct server *s, const struct manifest *m);
void put_usage(js *o, const char *key, const struct store_usage *u);
