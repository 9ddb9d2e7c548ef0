// SPDX-License-Identifier: Apache-2.0
// What a VM process tells of its virtio devices and vCPUs (MSG_DEVICES), asked for one device at a
// time: hostile, checked, and shown by GET /v1/vms/{name}/devices and by the metrics of a VM. Loop's
// thread only.
#pragma once
#include "api/vm.h"

typedef void devices_each_fn(void *arg, uint32_t slot, const struct msg_device *d);
typedef void devices_done_fn(void *arg, struct vm *vm, const struct api_err *err);

// Calls `each` per device in order of slots (of a VM without one: once, for its vCPUs), then `done` once.
// 0: that will happen, later. Otherwise neither is called.
int devices_walk(struct vm *vm, devices_each_fn *each, devices_done_fn *done, void *arg, struct api_err *err);
