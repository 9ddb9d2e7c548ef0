// SPDX-License-Identifier: Apache-2.0
// What the handlers share. Loop's thread only.
#pragma once
#include "api/vm.h"

// Gives the vsock device a path of the daemon's choice when it has none.
void ops_default_vsock(struct server *s, struct vmcfg *cfg);

// Marks `what` (static) as the operation in progress, or fails with busy. vm->op = NULL ends it.
int ops_begin(struct vm *vm, const char *what, struct api_err *err);
