// SPDX-License-Identifier: Apache-2.0
// Recording of working sets (snapshot/working_set.h): a clone's process writes what its guest
// touched to a file that nobody else sees; the daemon checks it and stores it beside the
// snapshot, in the worker. A clone that ends before has recorded nothing. Loop's thread only.
#pragma once
#include "api/error.h"
#include "api/json.h"
#include "api/vm.h"
#include "snapshot/manifest.h"

#define RECORD_DEFAULT_MS 10000

// For a clone that is about to start, with record.limit_ms: makes the file, and a descriptor for its process.
int record_begin(struct vm *vm, int *ret_fd, struct api_err *err);

// MSG_RECORDED of its process. -EPROTO: it was not asked, or malformed.
int record_told(struct vm *vm, const struct msg *m);
void record_drop(struct vm *vm); // the process is gone; idempotent

// Handlers' part: "recording", and "record_error" when it failed.
void record_json(js *o, const struct vm *vm);
// {"read_pages", "written_pages", "recorded"} of a snapshot, NULL: it has none that is good.
js *working_set_json(struct server *s, const struct manifest *m);
