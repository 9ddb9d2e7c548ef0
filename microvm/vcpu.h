// SPDX-License-Identifier: Apache-2.0
// The vCPU threads. Loop lock held for all calls.
#pragma once
#include "microvm/vm.h"

// Once per process, before any vCPU thread: the signal that ends KVM_RUN.
void vcpu_setup_signal(void);

int vcpu_open(struct vm *vm, unsigned index, struct mv_err *err);
int vcpu_start_thread(struct vcpu *c, struct mv_err *err); // starts parked
void vcpu_close(struct vcpu *c);                           // thread joined before

// Lets all vCPUs run; returns at once.
void vcpus_run(struct vm *vm);

// Returns when every vCPU is parked with its last I/O access completed. Gives up the
// lock while it waits, so that a vCPU inside a device access can finish it.
void vcpus_park(struct vm *vm);

// Brings vm->times up to date with what the first vCPU's thread noted.
void vcpu_times(struct vm *vm);

// How often it left KVM_RUN for user space; any thread.
struct msg_exits vcpu_exits(const struct vcpu *c);

// Ends and joins the threads; no lock held.
void vcpus_end(struct vm *vm);
