// SPDX-License-Identifier: Apache-2.0
// The KVM calls that are the same on every architecture (KVM API, sections by
// number). Each returns 0 or a descriptor, or -errno with a sentence in err.
#pragma once
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/gmem.h"

// Checks the API version and makes a VM (4.2).
int kvm_create_vm(int kvm_fd, struct mv_err *err);

// Registers guest memory as slots 0.. (4.35), behind them its files. Before the irqchip exists: afterwards
// each slot costs an SRCU grace period (6 ms measured instead of 0.1 ms), unless kvm_settle() waited for it.
// log_dirty: KVM notes what the guest writes (KVM_MEM_LOG_DIRTY_PAGES), and maps 4 KiB pages only.
int kvm_set_memory(int vm_fd, const struct gmem *m, bool log_dirty, struct mv_err *err);

// Waits until memory slots can be registered at their usual cost, after interrupt controllers and eventfds
// were made.
int kvm_settle(int vm_fd, struct mv_err *err);

// Sets in `bits` the pages of a slot that were written since the last call, by the guest or for
// it by KVM, and forgets them (4.8). `bits` has room for the slot's pages, rounded up to 64.
int kvm_get_dirty_log(int vm_fd, unsigned slot, uint64_t *bits, struct mv_err *err);

int kvm_create_vcpu(int vm_fd, unsigned index, struct mv_err *err);
int kvm_run_bytes(int kvm_fd); // size of the shared run area of a vCPU (4.5)

// eventfd -> interrupt on GSI (4.75); eventfd <- 32-bit write of `value` at gpa (4.59).
int kvm_irqfd(int vm_fd, int event_fd, uint32_t gsi, struct mv_err *err);
int kvm_ioeventfd(int vm_fd, int event_fd, uint64_t gpa, uint32_t value, struct mv_err *err);

// Takes kvm_irqfd() back. What was signalled before is delivered when this returns, what comes later stays
// in the eventfd.
int kvm_irqfd_off(int vm_fd, int event_fd, uint32_t gsi, struct mv_err *err);

// An edge on a GSI, delivered before this returns (4.25).
int kvm_pulse_gsi(int vm_fd, uint32_t gsi);

int kvm_capability(int fd, int capability); // 0: not there (4.4)

// An ioctl that must succeed: -errno with "NAME: reason".
int kvm_call(int fd, unsigned long request, void *arg, const char *name, struct mv_err *err);
