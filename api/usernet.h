// SPDX-License-Identifier: Apache-2.0
// The user networks of a VM: a passt process each, started with the VM's files and
// ended with the VM. A VM's start is answered when they are up; if one ends later, that is a
// line in the log and a link that goes down (devices/net_stream.c sees the socket's end), no more.
// Loop's thread only.
#pragma once
#include "api/vm.h"

// Starts them and puts their sockets where taps are in f. On failure none is left.
int usernet_open(struct vm *vm, struct vm_fds *f, struct api_err *err);

// 0: all are up; -EAGAIN: not yet, vm_setup_check() follows; else why one is not.
int usernet_state(const struct vm *vm, struct api_err *err);

// Is it one of these, of any VM? They are reaped here and nowhere else.
bool usernet_is(pid_t pid);

// Ends them all; reaped later. Idempotent.
void usernet_end(struct vm *vm);
