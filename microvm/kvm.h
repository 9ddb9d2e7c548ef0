// SPDX-License-Identifier: Apache-2.0
// The KVM calls that are the same on every architecture (KVM API, sections by
// number). Each returns 0 or a descriptor, or -errno with a sentence in err.
#pragma once
#include <linux/kvm.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/gmem.h"

// Checks the API version and makes a VM (4.2).
int kvm_create_vm(int kvm_fd, struct mv_err *err);

// Registers guest memory as slots 0.. (4.35). Before the irqchip exists: afterwards each
// slot costs an SRCU grace period (6 ms measured instead of 0.1 ms).
int kvm_set_memory(int vm_fd, const struct gmem *m, struct mv_err *err);

int kvm_create_vcpu(int vm_fd, unsigned index, struct mv_err *err);
int kvm_run_bytes(int kvm_fd); // size of the shared run area of a vCPU (4.5)

// eventfd -> interrupt on GSI (4.75); eventfd <- 32-bit write of `value` at gpa (4.59).
int kvm_irqfd(int vm_fd, int event_fd, uint32_t gsi, struct mv_err *err);
int kvm_ioeventfd(int vm_fd, int event_fd, uint64_t gpa, uint32_t value, struct mv_err *err);

// An edge on a GSI, delivered before this returns (4.25).
int kvm_pulse_gsi(int vm_fd, uint32_t gsi);

int kvm_capability(int fd, int capability); // 0: not there (4.4)

// An ioctl that must succeed: -errno with "NAME: reason".
int kvm_call(int fd, unsigned long request, void *arg, const char *name, struct mv_err *err);
