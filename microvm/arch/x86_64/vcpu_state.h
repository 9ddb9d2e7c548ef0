// SPDX-License-Identifier: Apache-2.0
// What is saved of one vCPU. The KVM structures are stable ABI and are stored as such, each
// in a field of its own length. Pure data: also read without a VM (cpu_report.c).
#pragma once
#include <linux/kvm.h>
#include <stdint.h>

#include "cpu_features.h"
#include "microvm/base/state.h"

#define VCPU_MAX_MSRS 256
#define VCPU_XSAVE_MAX_BYTES 16384

struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_mp_state mp_state;
	uint32_t tsc_khz;
	_Alignas(struct kvm_xsave) uint8_t xsave[VCPU_XSAVE_MAX_BYTES];
	uint32_t n_xsave;
	_Alignas(8) uint8_t cpuid[sizeof(struct kvm_cpuid_entry2) * X86_MAX_CPUID];
	uint32_t n_cpuid; // bytes
	_Alignas(8) uint8_t msrs[sizeof(struct kvm_msr_entry) * VCPU_MAX_MSRS];
	uint32_t n_msrs; // bytes
};

extern const struct mv_table x86_vcpu_table;

// The saved CPUID as a list. -EINVAL: not a whole number of entries.
int x86_vcpu_cpuid(const struct vcpu_state *s, struct x86_cpuid *ret_list);
