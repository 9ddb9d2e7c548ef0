// SPDX-License-Identifier: Apache-2.0
// What is saved of one vCPU: all registers that KVM lists (KVM API 4.84), by KVM's numbers, which are stable
// ABI. Pure data: also read without a VM (cpu_report.c).
#pragma once
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/state.h"

#define VCPU_MAX_REGS 2048
#define VCPU_REG_MAX_BYTES 16 // a vector register; guests have no SVE
#define VCPU_REGS_MAX_BYTES (VCPU_MAX_REGS * (sizeof(uint64_t) + VCPU_REG_MAX_BYTES))

struct vcpu_state {
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	uint8_t regs[VCPU_REGS_MAX_BYTES]; // of each: its number, little-endian, and its value
	uint32_t n_regs;                   // bytes
};

extern const struct mv_table a64_vcpu_table;

struct a64_reg {
	uint64_t id;
	uint32_t bytes;
	_Alignas(16) uint8_t value[VCPU_REG_MAX_BYTES];
};
// The register at *pos, which moves on. 1: there is one, 0: the end, -EINVAL: damaged.
int a64_reg_next(const struct vcpu_state *s, size_t *pos, struct a64_reg *ret_reg);
// -ENOSPC: too many.
int a64_reg_add(struct vcpu_state *s, const struct a64_reg *reg);
uint32_t a64_reg_bytes(uint64_t id);             // its width by its number
uint64_t a64_reg_u64(const struct a64_reg *reg); // value of one of up to 64 bits
