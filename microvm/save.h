// SPDX-License-Identifier: Apache-2.0
// What of a VM is in a snapshot's state file, section by section (snapshot/format.h):
// the machine's shape, each vCPU, the architecture's chips, the serial port, each device.
// Read and checked as a whole before a machine is made for it.
#pragma once
#include "microvm/vm.h"

struct saved_section {
	const uint8_t *bytes;
	uint32_t len;
};

struct saved_vm {
	uint8_t *payload; // what the sections point into
	struct saved_section vcpu[VMCFG_MAX_VCPUS], dev[VM_MAX_DEVICES], arch, serial;
	struct saved_section memory; // bytes NULL: of an older thaw
};

// Reads and checks a state file against the configuration: same memory size, vCPUs,
// architecture and device list. Says which differs.
int saved_vm_read(int state_fd, const struct vmcfg *cfg, struct saved_vm *ret_saved, struct mv_err *err);
// The same from the payload of one.
int saved_vm_parse(const uint8_t *payload, size_t len, const struct vmcfg *cfg, struct saved_vm *ret_saved,
		   struct mv_err *err);
void saved_vm_fini(struct saved_vm *s); // idempotent

// Into a machine freshly made for cfg; gives it a new generation ID.
int saved_vm_load(struct vm *vm, const struct saved_vm *s, struct mv_err *err);

// The part of it that KVM has, vCPUs, interrupt controllers and clock, of a VM whose vCPUs are stopped; and
// back into a fresh VM of KVM's, whose identity stays.
int saved_vm_kvm_state(struct vm *vm, struct mv_buf *out, struct mv_err *err);
int saved_vm_kvm_load(struct vm *vm, const uint8_t *bytes, size_t len, struct mv_err *err);

// A paused VM's state, as the payload of a state file.
int saved_vm_state(struct vm *vm, struct mv_buf *out, struct mv_err *err);
