// SPDX-License-Identifier: Apache-2.0
// What the files of this folder share.
#pragma once
#include "layout.h"
#include "microvm/base/err.h"
#include "microvm/vm.h"

// The first vCPU's TSC is what it was saved as plus the time that passed since; the others go where they were
// beside it. Pending TSC deadlines keep their value.
int x86_set_tscs(struct vm *vm, uint64_t saved, uint64_t passed_ns, struct mv_err *err);

// Can KVM tell and set how far a guest's TSC is from the host's? Linux 5.16.
bool x86_has_tsc_offset(const struct vm *vm);
// KVM_GET_DEVICE_ATTR or KVM_SET_DEVICE_ATTR of that distance.
int x86_tsc_offset(struct vcpu *c, unsigned long request, uint64_t *offset, struct mv_err *err);

extern const struct mv_table x86_machine_table; // what is saved of the machine around the CPUs

struct e820_range {
	uint64_t start, size_bytes;
	bool ram; // else reserved
};
#define X86_E820_MAX 8

// The memory map the guest is told; returns the number of ranges.
unsigned x86_memory_map(const struct gmem *m, struct e820_range ret_map[X86_E820_MAX]);

// How a loaded kernel is to be entered.
struct x86_entry {
	bool pvh; // 32-bit protected mode with start info; else 64-bit with the zero page
	uint64_t rip;
};

// Loads an ELF or bzImage kernel, the initrd and the command line, and writes start info or
// zero page. All of the file's bytes are hostile. (Linux x86 boot protocol; Xen "HVM
// direct boot ABI".)
int x86_load_kernel(struct vm *vm, int kernel_fd, int initrd_fd, uint64_t rsdp_gpa,
		    struct x86_entry *ret_entry, struct mv_err *err);

// Writes the ACPI tables (ACPI 6.5 section 5.2); returns the RSDP's address or -errno.
int64_t x86_write_acpi(struct vm *vm);

// CPUID of a new vCPU: what KVM supports, with topology and hypervisor bits set, without
// what a snapshot could not carry (nested virtualisation, a TSC that never stops) or a guest
// should not see (PMU), and as the configuration wants it.
int x86_set_cpuid(struct vcpu *c, struct mv_err *err);

// The first registers of the boot CPU; the MSRs that the configuration changes and those that firmware would
// set, on every CPU, which has its CPUID.
int x86_set_boot_registers(struct vcpu *c, const struct x86_entry *entry, struct mv_err *err);
int x86_set_boot_msrs(struct vcpu *c, struct mv_err *err);
