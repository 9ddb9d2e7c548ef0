// SPDX-License-Identifier: Apache-2.0
// CPUID leaves as the guest sees them. One socket, one core per vCPU, one thread per core.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpu_features.h"
#include "microvm/kvm.h"
#include "x86.h"

enum {
	F1_ECX_VMX = 1u << 5,
	F1_ECX_TSC_DEADLINE = 1u << 24,
	F1_ECX_HYPERVISOR = 1u << 31,
	F1_EDX_HTT = 1u << 28,
	F8_1_ECX_SVM = 1u << 2,
	F8_1_ECX_PERFCTR = 1u << 23 | 1u << 24 | 1u << 28, // core, northbridge, L3 counters
	F8_7_EDX_INVARIANT_TSC = 1u << 8,
	LEVEL_SMT = 1 << 8, // leaf 0xb ecx: level type
	LEVEL_CORE = 2 << 8,
};

// Bits needed to number n things.
static uint32_t width(uint32_t n) { return n > 1 ? 32u - (uint32_t)__builtin_clz(n - 1) : 0; }

static void patch(struct kvm_cpuid_entry2 *e, uint32_t cpu, uint32_t cpus, bool tsc_deadline)
{
	switch (e->function) {
	case 0x1:
		e->ebx = (e->ebx & 0xffff) | (cpus & 0xff) << 16 | cpu << 24;
		e->ecx = (e->ecx & ~(uint32_t)(F1_ECX_VMX | F1_ECX_TSC_DEADLINE)) | F1_ECX_HYPERVISOR |
			 (tsc_deadline ? F1_ECX_TSC_DEADLINE : 0);
		e->edx = cpus > 1 ? e->edx | F1_EDX_HTT : e->edx & ~(uint32_t)F1_EDX_HTT;
		break;
	case 0x4: // Intel: cores per package; threads that share this cache (one, or all for L3)
		if (e->eax & 0x1f) {
			uint32_t level = e->eax >> 5 & 7;
			uint32_t sharing = level >= 3 ? (1u << width(cpus)) - 1 : 0;
			e->eax = (e->eax & 0x3fff) | sharing << 14 | ((1u << width(cpus)) - 1) << 26;
		}
		break;
	case 0xa: // performance counters: none
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0xb:
	case 0x1f: // extended topology: level 0 = threads of a core, 1 = cores
		e->edx = cpu;
		e->eax = e->index == 1 ? width(cpus) : 0;
		e->ebx = e->index == 0 ? 1 : e->index == 1 ? cpus : 0;
		e->ecx = e->index == 0 ? LEVEL_SMT : e->index == 1 ? (LEVEL_CORE | 1) : e->index;
		break;
	case 0x80000001: e->ecx &= ~(uint32_t)(F8_1_ECX_SVM | F8_1_ECX_PERFCTR); break;
	// The TSC stands still between snapshot and restore. A guest that is told otherwise takes
	// it for its clock; one that is not takes kvmclock, which is set right on restore.
	case 0x80000007: e->edx &= ~(uint32_t)F8_7_EDX_INVARIANT_TSC; break;
	case 0x80000008: // AMD: number of cores - 1, bits of the APIC id
		e->ecx = (cpus - 1) | width(cpus) << 12;
		break;
	case 0x8000000a: // SVM features
	case 0x80000022: // AMD: performance counters, version 2
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0x8000001d: // AMD: caches
		if (e->eax & 0x1f) {
			uint32_t sharing = (e->eax >> 5 & 7) >= 3 ? cpus - 1 : 0;
			e->eax = (e->eax & 0x3fff) | sharing << 14;
		}
		break;
	case 0x8000001e: // AMD: APIC id, one thread per core, one node
		e->eax = cpu;
		e->ebx = cpu & 0xff;
		e->ecx = 0;
		break;
	}
}

// KVM since Linux 6.2 lists the topology leaves' first level alone, with which each CPU
// would be a package of its own.
static void add_core_level(struct x86_cpuid *l, uint32_t function)
{
	bool has_leaf = false;
	for (uint32_t i = 0; i < l->head.nent; i++)
		if (l->entry[i].function == function) {
			if (l->entry[i].index == 1)
				return;
			has_leaf = true;
		}
	if (has_leaf && l->head.nent < X86_MAX_CPUID)
		l->entry[l->head.nent++] = (struct kvm_cpuid_entry2){
			.function = function, .index = 1, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
		};
}

// Some KVMs (kvm-pvm) show a guest more than they were told to; then a mask is no use.
static int check_mask(struct vcpu *c, struct x86_cpuid *set, struct mv_err *err)
{
	static const char what[] = "cpu: this host's KVM does not hide features from guests";
	const struct vmcfg_cpu *cpu = &c->vm->cfg.cpu;
	struct x86_cpuid shown = { .head.nent = X86_MAX_CPUID };
	MV_BUF more = { 0 };
	int r = kvm_call(c->fd, KVM_GET_CPUID2, &shown, "KVM_GET_CPUID2", err);
	if (r < 0)
		return r;
	if ((cpu->template != VMCFG_CPU_HOST || cpu->n_disable) && x86_features_missing(&shown, set, &more))
		return mv_fail(err, ENOTSUP, "%s; it shows %.*s", what, (int)more.len, (const char *)more.p);
	for (uint32_t i = 0; i < cpu->n_cpuid; i++) {
		const struct vmcfg_cpuid *m = &cpu->cpuid[i];
		struct kvm_cpuid_entry2 *e = x86_cpuid_find(&shown, m->leaf, m->subleaf);
		struct kvm_cpuid_entry2 *wanted = x86_cpuid_find(set, m->leaf, m->subleaf);
		uint32_t left = e && wanted ? *x86_cpuid_reg(e, m->reg) & ~*x86_cpuid_reg(wanted, m->reg) : 0;
		if (left & m->clear)
			return mv_fail(err, ENOTSUP, "%s; of leaf 0x%x, %s, it shows 0x%x", what, m->leaf,
				       vmcfg_cpu_registers[m->reg], left & m->clear);
	}
	return 0;
}

int x86_set_cpuid(struct vcpu *c, struct mv_err *err)
{
	struct x86_cpuid list = { .head.nent = X86_MAX_CPUID };
	uint32_t cpus = c->vm->cfg.vcpus;
	bool deadline = kvm_capability(c->vm->vm_fd, KVM_CAP_TSC_DEADLINE_TIMER) > 0;

	int r = kvm_call(c->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, &list, "KVM_GET_SUPPORTED_CPUID", err);
	if (r < 0)
		return r;
	if ((r = x86_cpuid_modify(&list, &c->vm->cfg.cpu, err)))
		return r;
	add_core_level(&list, 0xb);
	add_core_level(&list, 0x1f);
	for (uint32_t i = 0; i < list.head.nent; i++)
		patch(&list.entry[i], c->index, cpus, deadline);
	if ((r = x86_features_mask(&list, &c->vm->cfg.cpu, err)))
		return r;
	r = kvm_call(c->fd, KVM_SET_CPUID2, &list, "KVM_SET_CPUID2", err);
	if (r < 0)
		return r;
	return c->vm->cfg.cpu.present ? check_mask(c, &list, err) : 0;
}
