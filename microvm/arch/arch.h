// SPDX-License-Identifier: Apache-2.0
// The contract of an architecture: microvm/arch/<name>/ supplies arch_types.h and
// these functions; nothing outside that folder switches on the architecture.
// All are called with the loop's lock held (or before threads exist), vCPUs stopped,
// except arch_vcpu_exit.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "arch_types.h" // struct arch_vm
#include "microvm/base/err.h"
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

struct vm;
struct vcpu;

#define ARCH_MANIFEST_ID ARCH_ID // enum manifest_arch

// Where the slots of virtio-mmio devices are, and their interrupts.
uint64_t arch_device_gpa(unsigned slot);
uint32_t arch_device_gsi(unsigned slot);
uint32_t arch_serial_gsi(void);

// Guest memory's regions for a size.
int arch_mem_layout(struct gmem *m, uint32_t mem_mib);

// Where the next file that the guest is to have as memory goes: above all memory and files there are.
uint64_t arch_file_gpa(const struct gmem *m);

// After memory slots exist, before vCPUs: interrupt controllers and the like.
int arch_vm_init(struct vm *vm, struct mv_err *err);
void arch_vm_fini(struct vm *vm); // idempotent; before the VM's descriptor is closed

// A vCPU was just made: maybe long before the configuration is known.
int arch_vcpu_init(struct vcpu *c, struct mv_err *err);
// In advance, with the first vCPU made and nothing else to do: what makes loading a state faster. May fail.
void arch_vm_warm(struct vm *vm);
// All vCPUs were made; from now on interrupts can be wired.
int arch_vcpus_made(struct vm *vm, struct mv_err *err);

// Loads kernel, initrd, tables and the vCPUs' first registers.
int arch_boot(struct vm *vm, int kernel_fd, int initrd_fd, struct mv_err *err);

// Saved state of one vCPU and of the machine. Loading checks everything first.
int arch_vcpu_save(struct vcpu *c, struct mv_buf *out, struct mv_err *err);
int arch_vcpu_load(struct vcpu *c, const void *bytes, size_t len, struct mv_err *err);
int arch_vm_save(struct vm *vm, struct mv_buf *out, struct mv_err *err);
int arch_vm_load(struct vm *vm, const void *bytes, size_t len, struct mv_err *err);
// After vCPUs and machine are loaded: the clocks move on by the time that passed since they were saved, and
// go on.
int arch_vm_catch_up(struct vm *vm, struct mv_err *err);
// Just before the vCPUs run, after a restore or a pause: the guest is told that it stood still.
void arch_vm_resume(struct vm *vm);

// Parking (microvm/park.h). -ENOTSUP: a guest's clocks could not go on afterwards.
int arch_park_check(struct vm *vm, struct mv_err *err);
// Does this stopped vCPU wait, with nothing pending, for what comes from outside or for its own timer? The
// latter is due in *ret_left_ns; UINT64_MAX: never. Notes of the timer what arch_unpark() needs to know.
int arch_vcpu_waits(struct vcpu *c, bool *ret_waits, uint64_t *ret_left_ns, struct mv_err *err);
// Just before the state is saved, and after it was loaded into another VM of KVM's: its clocks and timers go
// on as if it had never been away.
int arch_park(struct vm *vm, struct mv_err *err);
int arch_unpark(struct vm *vm, struct mv_err *err);

// A fresh VM generation ID in guest memory, and what else says that this is another VM; with notify, after a
// restore, the guest is told.
int arch_new_generation(struct vm *vm, bool notify, struct mv_err *err);

// -ENOTSUP: this machine has none, or the guest does not listen.
int arch_power_button(struct vm *vm, struct mv_err *err);
int arch_ctrl_alt_del(struct vm *vm, struct mv_err *err);

// A guest access to memory-mapped I/O that is no virtio-mmio slot's, lock held: false when nobody has it.
bool arch_mmio(struct vm *vm, uint64_t gpa, void *data, uint32_t len, bool is_write);

// An exit that vcpu.c does not know: true when handled. Called from the vCPU's thread
// without the lock.
bool arch_vcpu_exit(struct vcpu *c);

// What the guest is told of a machine with these numbers, as text or bytes on this descriptor: the device
// tree. For whoever wants to read it; needs no KVM and no VM. -ENOTSUP: there is none.
struct arch_description {
	unsigned vcpus, mem_mib, n_devs, gic_version;
};
int arch_describe(int fd, const struct arch_description *d, struct mv_err *err);
