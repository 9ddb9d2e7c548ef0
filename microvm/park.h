// SPDX-License-Identifier: Apache-2.0
// Parking: an idle VM gives its KVM VM back, and is woken by what would wake it. What KVM has of the machine
// is kept as in a snapshot; memory, devices and descriptors stay as they are, and so does the VM's identity.
//
//                      nothing ran for idle_ms, all vCPUs wait (or the VM is paused)
//   (KVM has it) ---------------------------------------------------------------------> parked
//        ^                                                                                 |
//        '---- the guest's timer is due; a device raises an interrupt; park_wake() <-------'
//
// A parked VM is RUNNING or PAUSED as before. Its devices go on; an interrupt of theirs is an eventfd that
// becomes readable, which the loop watches in KVM's place. Nothing else of KVM may be used: vm->vm_fd and the
// vCPUs' descriptors are -1, and there are no vCPU threads.
//
// Loop's thread and lock for all calls. Errors: what can't be parked goes on running; a VM that
// can't be woken ends (VM_EXIT_KVM_ERROR).
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/loop.h"
#include "microvm/base/msg.h"
#include "microvm/base/util.h"

#define PARK_IRQS 17 // the serial port's and one per device

struct vm;

struct park {
	uint32_t idle_ms; // 0: never
	bool parked;
	bool waits; // parked with all vCPUs waiting; else they go on as soon as a pause ends
	struct mv_timer timer;
	uint64_t cpu_ns; // vcpus_cpu_ns() when it was last looked at
	uint64_t due_ns; // of the guest's own timer, CLOCK_MONOTONIC; UINT64_MAX: it has none
	struct mv_watch irq[PARK_IRQS];
	struct mv_buf state; // saved_vm_kvm_state(), compressed
	uint32_t state_bytes;
	struct msg_parking stats;
	uint64_t since_ns, told_ns;
	bool untold; // the daemon knows less than stats
};

// From now on the VM is parked after this time without work; 0: never. A parked one stays so until something
// wakes it. -ENOTSUP: this KVM can't go on with a guest's TSC where it would be (Linux 5.16).
int park_set(struct vm *vm, uint32_t idle_ms, struct mv_err *err);

// Gives the VM back to KVM before something that needs it; not parked: nothing.
int park_wake(struct vm *vm, enum park_cause why, struct mv_err *err);

// Another daemon has come: tells it all.
void park_tell_again(struct vm *vm);

// Around a pause: while it lasts nothing wakes the VM. It is woken at the end only if its vCPUs
// were not waiting.
void park_pause(struct vm *vm);
int park_resume(struct vm *vm, struct mv_err *err);

// What KVM would tell of a parked VM: appends the sections of saved_vm_kvm_state().
int park_state(const struct park *p, struct mv_buf *out, struct mv_err *err);

void park_fini(struct vm *vm); // idempotent
