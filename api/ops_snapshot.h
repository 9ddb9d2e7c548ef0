// SPDX-License-Identifier: Apache-2.0
// What the handlers of snapshots share: ops_snapshot.c, ops_store.c, ops_clone.c, ops_vm.c.
#pragma once
#include "api/error.h"
#include "api/json.h"
#include "api/server.h"
#include "api/vm.h"
#include "microvm/base/util.h"
#include "microvm/cpu_report.h"
#include "snapshot/store_chain.h"

// The store's errors in words of the API: ENOENT and EEXIST have codes of their own, the rest is
// as in api_from(). Returns -EINVAL.
int snap_error(struct api_err *err, const struct mv_err *e, enum api_code otherwise);

// A name of a route that no snapshot can have: not found. 0 or -EINVAL.
int snap_name_check(const char *name, struct api_err *err);

// The error for a CPU that lacks something; {"error": {..., "missing": [...]}}.
js *cpu_error_json(const char *snapshot, const struct cpu_report *r);

js *manifest_json(struct server *s, const struct manifest *m);
js *snapshot_json(struct server *s, const struct manifest *m); // and the length of its chain
void put_usage(js *o, const char *key, const struct store_usage *u);

// ops_chain.c
// Fills in what an incremental snapshot of vm refers to: the last one of a VM that tracks
// what it writes, else what it was cloned from. The error says why there is nothing.
int snap_choose_base(const struct vm *vm, struct manifest *m, struct api_err *err);
// Is that there, and its chain short enough? Reads all manifests of it: any thread.
int snap_check_base(struct server *s, const char *vm, const struct manifest *m, struct api_err *err);

// The VM process took snapshot m, and it was published or not.
void snap_set_base(struct vm *vm, const struct manifest *m, bool published);

// "chain_length": of how many snapshots its memory is; nothing when one is missing.
void put_chain(js *o, struct server *s, const struct manifest *m);

// The same for all of a store: chain_list_put() when all were added.
struct chain_list {
	struct mv_buf rows;
};
void chain_list_add(struct chain_list *l, js *o, const struct manifest *m); // o: NULL: not shown itself
void chain_list_put(struct chain_list *l);                                  // frees it
