// SPDX-License-Identifier: Apache-2.0
// The table of VMs, by name and by id. Names are unique. Loop's thread only.
#pragma once
#include "api/json.h"
#include "api/vm.h"

// Takes the VM's name and id; the table holds a reference. vm_exists when the name is taken.
int vms_add(struct server *s, struct vm *vm, struct api_err *err);
void vms_remove(struct vm *vm); // idempotent; drops the table's reference
bool vms_name_taken(struct server *s, const char *name);

// A VM that is completely loaded, by name or id. No reference is taken. vm_not_found.
int vms_find(struct server *s, const char *name_or_id, struct vm **ret_vm, struct api_err *err);

void vms_each(struct server *s, void (*fn)(void *arg, struct vm *vm), void *arg); // by name order
struct vm *vms_next(struct server *s, const char *name); // the first whose name is behind it; NULL: none

// As the API shows it.
js *vm_json(const struct vm *vm);
// Appends the same as text. It is kept until it changes: a list of a thousand costs a copy, not 70 ms of the
// loop.
void vm_text(struct vm *vm, struct mv_buf *out);
// Microseconds from t0; nothing is put when the time is not there or before t0.
void put_us(js *o, const char *key, uint64_t t_ns, uint64_t t0_ns);
void put_time(js *o, const char *key, uint64_t unix_ns); // RFC 3339, UTC
