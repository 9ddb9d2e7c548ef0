// SPDX-License-Identifier: Apache-2.0
// What the handlers share. Loop's thread only.
#pragma once
#include "api/layers.h"
#include "api/prepare.h"
#include "api/vm.h"
#include "snapshot/manifest.h"

// Gives the vsock device and consoles without one a path of the daemon's choice.
void ops_default_sockets(struct server *s, struct vmcfg *cfg);

// Opens all files of a VM that is to be booted (from nothing) or cloned, but the snapshot's state
// and memory. On failure nothing is left behind; ops_close_files() undoes it.
int ops_open_files(struct vm *vm, const struct layer_source *from, struct vm_fds *ret_fds,
		   struct api_err *err);
void ops_close_files(struct vm *vm, struct vm_fds *fds);

// Starts the process of a clone, run or paused; its configuration and shell are set. As vm_launch().
int ops_restore(struct vm *vm, const struct prepare *from, bool run, vm_done_fn *done, void *arg,
		struct api_err *err);

// Marks `what` (static) as the operation in progress, or fails with busy. vm->op = NULL ends it.
int ops_begin(struct vm *vm, const char *what, struct api_err *err);
