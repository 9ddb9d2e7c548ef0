// SPDX-License-Identifier: Apache-2.0
// The vCPU threads. Loop lock held for all calls.
#pragma once
#include "microvm/vm.h"

// Once per process, before any vCPU thread: the signal that ends KVM_RUN.
void vcpu_setup_signal(void);

// What it counted before, and when it first ran, stays.
int vcpu_open(struct vm *vm, unsigned index, struct mv_err *err);
void vcpu_close(struct vcpu *c); // thread joined before

// A thread for each, stopped.
int vcpus_start(struct vm *vm, struct mv_err *err);

// Lets all vCPUs run; returns at once.
void vcpus_run(struct vm *vm);

// Returns when every vCPU is stopped with its last I/O access completed. Gives up the
// lock while it waits, so that a vCPU inside a device access can finish it.
void vcpus_stop(struct vm *vm);

// Brings vm->times up to date with what the first vCPU's thread noted.
void vcpu_times(struct vm *vm);

// Stopped and halted: what became due since it was in KVM_RUN, and was only noted there, becomes visible in
// its state; no instruction is run. -errno: KVM failed.
int vcpu_settle(struct vcpu *c, struct mv_err *err);

// CPU time of all their threads: the same as before when none of them ran.
uint64_t vcpus_cpu_ns(const struct vm *vm);

// How often it left KVM_RUN for user space; any thread.
struct msg_exits vcpu_exits(const struct vcpu *c);

// Ends and joins the threads; none of them waits for the loop's lock, or it is not held.
void vcpus_end(struct vm *vm);
// In the child of a fork, which has none of the threads: gives up their stacks.
void vcpus_forget(struct vm *vm);
