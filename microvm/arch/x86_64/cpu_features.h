// SPDX-License-Identifier: Apache-2.0
// CPUID feature bits by name: what a guest has, what it would miss on another host, and how
// a VM is given fewer (masks). Pure: works on lists of CPUID entries, calls no KVM. Any thread.
#pragma once
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

#define X86_MAX_CPUID 256

struct x86_cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entry[X86_MAX_CPUID];
};

// Appends the names of all known features of a guest, separated by ", ": as Linux shows them
// in /proc/cpuinfo, or as QEMU where Linux has none.
void x86_features(const struct x86_cpuid *guest, struct mv_buf *out);

// Appends what `guest` was promised and `host` can't give, separated by ", ": vendor,
// features (an unknown one as "leaf 0x7 ebx bit 13"), XSAVE components and their places,
// physical address bits. Returns how many.
unsigned x86_features_missing(const struct x86_cpuid *guest, const struct x86_cpuid *host,
			      struct mv_buf *out);

// Adds the features of `more` to the list.
void x86_features_add(struct x86_cpuid *list, const struct x86_cpuid *more);

// Takes from the list what the mask takes away, and what needs what is taken away, leaf
// 0xd included. -ENOTSUP: the host has not all of the template; -EINVAL: unknown name, or one
// that no x86-64 kernel can do without.
int x86_features_mask(struct x86_cpuid *list, const struct vmcfg_cpu *mask, struct mv_err *err);

// Gives bits the values that cpu->cpuid has for them. The vendor stays KVM's, as a guest that takes its CPU
// for another vendor's does not run. -ENOTSUP: a leaf that KVM does not list.
int x86_cpuid_modify(struct x86_cpuid *list, const struct vmcfg_cpu *cpu, struct mv_err *err);
// Takes away what cpu->cpuid sets to 1, which no host was asked for.
void x86_cpuid_unset(struct x86_cpuid *guest, const struct vmcfg_cpu *cpu);

struct kvm_cpuid_entry2 *x86_cpuid_find(struct x86_cpuid *list, uint32_t leaf, uint32_t index);
uint32_t *x86_cpuid_reg(struct kvm_cpuid_entry2 *e, unsigned reg); // enum vmcfg_cpu_register
void x86_cpuid_vendor(const struct x86_cpuid *list, char ret_vendor[13]);
