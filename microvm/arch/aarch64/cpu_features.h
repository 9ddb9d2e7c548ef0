// SPDX-License-Identifier: Apache-2.0
// CPU features by name in the identification registers (Arm ARM, D19.2): what a guest has, what it would miss
// on another host, and how a VM is given fewer (masks). Pure: works on values, calls no KVM. Any thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

// The registers S3_0_C0_C<crm>_<op2>, by crm * 8 + op2.
#define A64_N_ID_REGS 64
#define A64_MIDR 0
#define A64_FIRST_FEATURE_REG 32 // ID_AA64PFR0_EL1; below are those of 32-bit code
struct a64_id_regs {
	uint64_t value[A64_N_ID_REGS];
};
uint64_t a64_id_reg(unsigned index);                      // KVM's number of it
bool a64_is_id_reg(uint64_t kvm_id, unsigned *ret_index); // also those that tell no feature: MIDR, MPIDR

// Appends the names of all known features, as Linux shows them in /proc/cpuinfo, separated by ", ".
void a64_features(const struct a64_id_regs *guest, struct mv_buf *out);

// Appends what a field of four bits, from `shift` on, promised the guest and can't be given here: the
// features by name, else the field by its register's. Returns how many.
unsigned a64_field_missing(unsigned index, unsigned shift, uint64_t guest, uint64_t here, struct mv_buf *out);
// The name of a register, as Arm has it, or S3_0_...
const char *a64_id_name(unsigned index, char text[32]);

// Takes from the registers what the mask takes away, and what needs what is taken away. -ENOTSUP: the host
// has not all of the template; -EINVAL: unknown name, one that no arm64 kernel can do without, or another
// architecture's template.
int a64_features_mask(struct a64_id_regs *regs, const struct vmcfg_cpu *mask, struct mv_err *err);
