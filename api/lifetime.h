// SPDX-License-Identifier: Apache-2.0
// Ends VMs whose time is over: ttl_ms after they first ran (pauses count), or when there was
// nothing to do for idle_timeout_ms while they ran.
//
// Something to do is: a request of the API that asks the VM for something (console reads and
// writes, pause, resume, stop, snapshot), console output, and whatever goes over its net and vsock
// devices. For the latter two the VM process is asked for its count (MSG_ACTIVITY) four times
// per timeout, so a VM ends after 1 to 1.25 times of it. A VM process that lies about it lives on
// until its ttl; it can't shorten anybody else's life.
//
// One timer and one heap for all VMs. Loop's thread only.
#pragma once
#include "api/vm.h"

int lifetime_init(struct server *s); // 0 or -errno
void lifetime_free(struct server *s);

// Before it is launched: makes room, so that nothing can fail later. 0 or -ENOMEM.
int lifetime_reserve(struct server *s, const struct vm *vm);
// Its state has changed.
void lifetime_state(struct vm *vm);
// Something was asked of it.
void lifetime_touch(struct vm *vm);
// Time to live that is left; UINT64_MAX: for ever, or it has not run.
uint64_t lifetime_left_ns(const struct vm *vm);
