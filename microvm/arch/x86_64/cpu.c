// SPDX-License-Identifier: Apache-2.0
// A vCPU's registers: how a kernel finds them, and how they are saved and loaded.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "microvm/arch/arch.h"
#include "microvm/base/scratch.h"
#include "microvm/kvm.h"
#include "vcpu_state.h"
#include "x86.h"

#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_MISC_ENABLE 0x1a0
#define MSR_MTRR_PHYS_BASE_0 0x200 // then its mask, then the next base
#define MSR_MTRR_DEF_TYPE 0x2ff
#define N_MTRRS 28
#define MISC_ENABLE_FAST_STRING 1
#define MTRR_ENABLED_WRITE_BACK (1 << 11 | 6)

struct msr_list {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[VCPU_MAX_MSRS];
};

// Flat 4 GiB (or long-mode) segments as the boot protocols want them.
static struct kvm_segment segment(uint16_t selector, uint8_t type, bool long_mode, bool system)
{
	return (struct kvm_segment){ .limit = 0xffffffff,
				     .selector = selector,
				     .type = type,
				     .present = 1,
				     .db = !long_mode && !system,
				     .s = !system,
				     .l = long_mode,
				     .g = 1 };
}

static uint64_t gdt_entry(const struct kvm_segment *s)
{
	uint64_t flags = (uint64_t)s->type | (uint64_t)s->s << 4 | (uint64_t)s->present << 7 |
			 (uint64_t)s->l << 13 | (uint64_t)s->db << 14 | (uint64_t)s->g << 15;
	return 0xffff | flags << 40 | 0xfull << 48;
}

// Identity mapping of the first 4 GiB with 2 MiB pages (Linux boot protocol, "64-bit").
static int write_page_tables(struct vm *vm)
{
	enum { PRESENT_WRITE = 3, LARGE = 0x80, PAGE = 0x1000 };
	uint64_t table[512] = { (X86_PAGE_TABLES + PAGE) | PRESENT_WRITE };
	int r = gmem_write(&vm->mem, gpa(X86_PAGE_TABLES), table, sizeof table);
	for (unsigned i = 0; i < 4; i++)
		table[i] = (X86_PAGE_TABLES + (2 + i) * PAGE) | PRESENT_WRITE;
	r = r ? r : gmem_write(&vm->mem, gpa(X86_PAGE_TABLES + PAGE), table, sizeof table);
	for (uint64_t i = 0; !r && i < 4; i++) {
		for (uint64_t k = 0; k < 512; k++)
			table[k] = (i << 30 | k << 21) | PRESENT_WRITE | LARGE;
		r = gmem_write(&vm->mem, gpa(X86_PAGE_TABLES + (2 + i) * PAGE), table, sizeof table);
	}
	return r;
}

// KVM stops at the first MSR it refuses and says how many it took. One that was zero
// when saved and that this host does not have is no loss.
static int set_msrs(struct vcpu *c, const struct kvm_msr_entry *msr, uint32_t n, struct mv_err *err)
{
	MV_FREE struct kvm_msrs *list = malloc(sizeof *list + n * sizeof *msr);
	if (!list)
		return mv_fail(err, ENOMEM, "out of memory");
	for (uint32_t at = 0; at < n; at++) {
		*list = (struct kvm_msrs){ .nmsrs = n - at };
		memcpy(list->entries, msr + at, (n - at) * sizeof *msr);
		int r = ioctl(c->fd, KVM_SET_MSRS, list);
		if (r < 0)
			return mv_fail(err, errno, "KVM_SET_MSRS: %s", strerror(errno));
		at += (uint32_t)r;
		if (at < n && msr[at].data)
			return mv_fail(err, ENOTSUP,
				       "vCPU %u: this host's KVM refuses MSR 0x%x = 0x%llx; restore on "
				       "a host with the CPU and kernel of the snapshot",
				       c->index, msr[at].index, (unsigned long long)msr[at].data);
	}
	return 0;
}

int x86_set_boot_registers(struct vcpu *c, const struct x86_entry *entry, struct mv_err *err)
{
	struct kvm_sregs s;
	struct kvm_regs regs = { .rflags = 2, .rip = entry->rip };
	struct kvm_segment code = segment(0x10, 0xb, !entry->pvh, false);
	struct kvm_segment data = segment(0x18, 0x3, false, false);
	struct kvm_segment tss = segment(0x20, 0xb, false, true);

	tss.limit = 0x67;
	tss.g = 0;
	uint64_t gdt[5] = { 0, 0, gdt_entry(&code), gdt_entry(&data), gdt_entry(&tss) };
	int r = kvm_call(c->fd, KVM_GET_SREGS, &s, "KVM_GET_SREGS", err);
	if (r < 0)
		return r;
	if (gmem_write(&c->vm->mem, gpa(X86_GDT), gdt, sizeof gdt))
		return mv_fail(err, ENOMEM, "no room for the GDT");
	s.gdt.base = X86_GDT;
	s.gdt.limit = sizeof gdt - 1;
	s.idt.base = s.idt.limit = 0;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = tss;
	s.cr0 = 0x11; // PE, ET
	s.cr4 = 0;
	if (entry->pvh)
		regs.rbx = X86_PVH_INFO;
	else {
		if (write_page_tables(c->vm))
			return mv_fail(err, ENOMEM, "no room for page tables");
		s.cr0 |= 0x80000000u; // PG
		s.cr4 = 0x20;         // PAE
		s.cr3 = X86_PAGE_TABLES;
		s.efer |= 0x500; // LME, LMA
		regs.rsi = X86_ZERO_PAGE;
	}
	if ((r = kvm_call(c->fd, KVM_SET_SREGS, &s, "KVM_SET_SREGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_REGS, &regs, "KVM_SET_REGS", err)) < 0)
		return r;
	return 0;
}

static int read_msr(struct vcpu *c, uint32_t index, uint64_t *ret_value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry.index = index };
	int r = ioctl(c->fd, KVM_GET_MSRS, &one);
	*ret_value = one.entry.data;
	return r == 1 ? 0 : -ENOENT;
}

// As the configuration wants them. One at a time, so that an error can say which.
static int modify_msrs(struct vcpu *c, struct mv_err *err)
{
	const struct vmcfg_cpu *cpu = &c->vm->cfg.cpu;
	for (uint32_t i = 0; i < cpu->n_msrs; i++) {
		struct kvm_msr_entry e = { .index = cpu->msr[i].index };
		uint64_t now;
		if (read_msr(c, e.index, &now))
			return mv_fail(err, ENOTSUP, "cpu: this host's KVM does not have MSR 0x%x", e.index);
		e.data = (now & ~cpu->msr[i].clear) | cpu->msr[i].set;
		struct {
			struct kvm_msrs head;
			struct kvm_msr_entry entry;
		} one = { .head.nmsrs = 1, .entry = e };
		if (ioctl(c->fd, KVM_SET_MSRS, &one) != 1)
			return mv_fail(err, ENOTSUP, "cpu: this host's KVM refuses MSR 0x%x = 0x%llx",
				       e.index, (unsigned long long)e.data);
	}
	return 0;
}

// INIT and SIPI leave these as they are, so the other CPUs start with them, too.
int x86_set_boot_msrs(struct vcpu *c, struct mv_err *err)
{
	const struct kvm_msr_entry msrs[] = {
		{ .index = MSR_MISC_ENABLE, .data = MISC_ENABLE_FAST_STRING },
		{ .index = MSR_MTRR_DEF_TYPE, .data = MTRR_ENABLED_WRITE_BACK },
	};
	int r = modify_msrs(c, err);
	return r ? r : set_msrs(c, msrs, MV_ARRAY_LEN(msrs), err);
}

// KVM has the MTRRs but does not list them: 8 variable ranges, 11 fixed ones, the default.
// The default is last, so that the ranges are whole when it switches them on.
static uint32_t add_mtrrs(uint32_t *index, uint32_t n)
{
	static const uint32_t fixed[] = { 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
					  0x26b, 0x26c, 0x26d, 0x26e, 0x26f };
	for (uint32_t i = 0; i < 16; i++)
		index[n++] = MSR_MTRR_PHYS_BASE_0 + i;
	for (size_t i = 0; i < MV_ARRAY_LEN(fixed); i++)
		index[n++] = fixed[i];
	index[n++] = MSR_MTRR_DEF_TYPE;
	return n;
}

// Those that the configuration changed, which KVM need not list.
static uint32_t add_modified(const struct vmcfg_cpu *cpu, uint32_t *index, uint32_t n)
{
	for (uint32_t i = 0; i < cpu->n_msrs; i++) {
		uint32_t k = 0;
		while (k < n && index[k] != cpu->msr[i].index)
			k++;
		if (k == n)
			index[n++] = cpu->msr[i].index;
	}
	return n;
}

// All MSRs that KVM lists and lets us read, and these and the MTRRs; TSC_DEADLINE last, since setting
// it before the TSC and the APIC base arms it wrongly.
static int get_msrs(struct vcpu *c, struct vcpu_state *s, struct mv_err *err)
{
	struct {
		struct kvm_msr_list head;
		uint32_t index[VCPU_MAX_MSRS];
	} names = { .head.nmsrs = VCPU_MAX_MSRS - N_MTRRS - c->vm->cfg.cpu.n_msrs };
	struct msr_list list;
	uint32_t n = 0, at = 0;

	int r = kvm_call(c->vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &names, "KVM_GET_MSR_INDEX_LIST", err);
	if (r < 0)
		return r;
	names.head.nmsrs = add_modified(&c->vm->cfg.cpu, names.index, names.head.nmsrs);
	names.head.nmsrs = add_mtrrs(names.index, names.head.nmsrs);
	struct kvm_msr_entry *out = (void *)s->msrs;
	while (at < names.head.nmsrs) {
		list.head = (struct kvm_msrs){ .nmsrs = names.head.nmsrs - at };
		for (uint32_t i = at; i < names.head.nmsrs; i++)
			list.entry[i - at] = (struct kvm_msr_entry){ .index = names.index[i] };
		r = ioctl(c->fd, KVM_GET_MSRS, &list);
		if (r < 0)
			return mv_fail(err, errno, "KVM_GET_MSRS: %s", strerror(errno));
		for (int i = 0; i < r; i++)
			if (list.entry[i].index != MSR_TSC_DEADLINE)
				out[n++] = list.entry[i];
		at += (uint32_t)r + 1; // the one it stopped at cannot be read here
	}
	list.head.nmsrs = 1;
	list.entry[0] = (struct kvm_msr_entry){ .index = MSR_TSC_DEADLINE };
	if (n < VCPU_MAX_MSRS && ioctl(c->fd, KVM_GET_MSRS, &list) == 1)
		out[n++] = list.entry[0];
	s->n_msrs = n * (uint32_t)sizeof out[0];
	return 0;
}

static int get_xsave(struct vcpu *c, struct vcpu_state *s, struct mv_err *err)
{
	int size = kvm_capability(c->vm->vm_fd, KVM_CAP_XSAVE2);
	if (size > VCPU_XSAVE_MAX_BYTES)
		return mv_fail(err, ENOTSUP, "vCPU state of %d bytes (KVM_CAP_XSAVE2) is larger than %d",
			       size, VCPU_XSAVE_MAX_BYTES);
	if (size <= (int)sizeof(struct kvm_xsave)) {
		s->n_xsave = sizeof(struct kvm_xsave);
		return kvm_call(c->fd, KVM_GET_XSAVE, s->xsave, "KVM_GET_XSAVE", err);
	}
	s->n_xsave = (uint32_t)size;
	return kvm_call(c->fd, KVM_GET_XSAVE2, s->xsave, "KVM_GET_XSAVE2", err);
}

int arch_vcpu_save(struct vcpu *c, struct mv_buf *out, struct mv_err *err)
{
	MV_FREE struct vcpu_state *s = calloc(1, sizeof *s);
	struct x86_cpuid cpuid = { .head.nent = X86_MAX_CPUID };
	int r;

	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	// MP state first: reading it lets a pending INIT or SIPI take effect. Then the events: reading
	// them puts a pending exception's payload into CR2 or DR6.
	if ((r = kvm_call(c->fd, KVM_GET_MP_STATE, &s->mp_state, "KVM_GET_MP_STATE", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_VCPU_EVENTS, &s->events, "KVM_GET_VCPU_EVENTS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_REGS, &s->regs, "KVM_GET_REGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_SREGS, &s->sregs, "KVM_GET_SREGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_XCRS, &s->xcrs, "KVM_GET_XCRS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_LAPIC, &s->lapic, "KVM_GET_LAPIC", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_DEBUGREGS, &s->debugregs, "KVM_GET_DEBUGREGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_CPUID2, &cpuid, "KVM_GET_CPUID2", err)) < 0 ||
	    (r = get_xsave(c, s, err)) < 0 || (r = get_msrs(c, s, err)) < 0)
		return r;
	r = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);
	s->tsc_khz = r > 0 ? (uint32_t)r : 0;
	s->n_cpuid = cpuid.head.nent * (uint32_t)sizeof cpuid.entry[0];
	memcpy(s->cpuid, cpuid.entry, s->n_cpuid);
	mv_state_save(&x86_vcpu_table, s, out);
	return 0;
}

// A guest that runs at another TSC frequency than the host's needs scaling; within 250 ppm
// (KVM's own tolerance) nothing is to be done.
static int check_tsc(struct vcpu *c, uint32_t saved_khz, struct mv_err *err)
{
	int khz = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);
	if (khz <= 0 || !saved_khz)
		return 0;
	uint64_t difference = (uint64_t)llabs((long long)saved_khz - khz);
	if (difference * 1000000 <= (uint64_t)saved_khz * 250)
		return 0;
	if (ioctl(c->fd, KVM_SET_TSC_KHZ, (long)saved_khz) < 0)
		return mv_fail(err, ENOTSUP,
			       "the snapshot's TSC runs at %u kHz, this host's at %d kHz, and "
			       "it cannot scale",
			       saved_khz, khz);
	return 0;
}

bool x86_has_tsc_offset(const struct vm *vm) // asking a vCPU would wait until it leaves KVM_RUN
{
	return kvm_capability(vm->kvm_fd, KVM_CAP_VCPU_ATTRIBUTES);
}

int x86_tsc_offset(struct vcpu *c, unsigned long request, uint64_t *offset, struct mv_err *err)
{
	struct kvm_device_attr a = { .group = KVM_VCPU_TSC_CTRL,
				     .attr = KVM_VCPU_TSC_OFFSET,
				     .addr = (uintptr_t)offset };
	return kvm_call(c->fd, request, &a, "KVM_VCPU_TSC_OFFSET", err);
}

static int add_to_msrs(struct vm *vm, uint32_t index, uint64_t delta, struct mv_err *err)
{
	int r = 0;
	for (unsigned i = 0; !r && i < vm->n_vcpus; i++) {
		struct kvm_msr_entry e = { .index = index };
		uint64_t now;
		if (read_msr(&vm->vcpu[i], index, &now) == 0 && (e.data = now + delta))
			r = set_msrs(&vm->vcpu[i], &e, 1, err);
	}
	return r;
}

static int add_to_offsets(struct vm *vm, uint64_t delta, struct mv_err *err)
{
	int r = 0;
	for (unsigned i = 0; r >= 0 && i < vm->n_vcpus; i++) {
		uint64_t offset;
		r = x86_tsc_offset(&vm->vcpu[i], KVM_GET_DEVICE_ATTR, &offset, err);
		offset += delta;
		r = r < 0 ? r : x86_tsc_offset(&vm->vcpu[i], KVM_SET_DEVICE_ATTR, &offset, err);
	}
	return r < 0 ? r : 0;
}

// What loading the vCPUs made of their TSCs is not to be relied on: KVM takes a TSC that is set to less than
// a second from the last one that was, or from a new VM's own, for a try to synchronise CPUs, and leaves it
// where it is. That they are synchronised is right.
int x86_set_tscs(struct vm *vm, uint64_t saved, uint64_t passed_ns, struct mv_err *err)
{
	int khz = ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0), r;
	uint64_t now;
	if (khz <= 0 || read_msr(&vm->vcpu[0], MSR_TSC, &now))
		return 0; // no TSC to be moved
	uint64_t delta = saved + (uint64_t)((unsigned __int128)passed_ns * (unsigned)khz / 1000000) - now;
	if (x86_has_tsc_offset(vm))
		r = add_to_offsets(vm, delta, err);
	else {
		uint64_t far = 10 * (uint64_t)khz * 1000; // more than a second, first
		r = add_to_msrs(vm, MSR_TSC, delta + far, err);
		r = r ? r : add_to_msrs(vm, MSR_TSC, -far, err);
	}
	// The deadlines again, behind the TSC: their timers were set by the old one. Zero is not armed.
	return r ? r : add_to_msrs(vm, MSR_TSC_DEADLINE, 0, err);
}

int arch_vcpu_load(struct vcpu *c, const void *bytes, size_t len, struct mv_err *err)
{
	MV_SCRATCH struct vcpu_state *s = mv_scratch(sizeof *s);
	MV_SCRATCH struct x86_cpuid *cpuid =
		mv_scratch(sizeof *cpuid); // a stack keeps what it was once used for
	int r;

	if (!s || !cpuid)
		return mv_fail(err, ENOMEM, "out of memory");
	if ((r = mv_state_load(&x86_vcpu_table, bytes, len, s, err)))
		return r;
	int need = kvm_capability(c->vm->vm_fd, KVM_CAP_XSAVE2);
	if (x86_vcpu_cpuid(s, cpuid) || s->n_msrs % sizeof(struct kvm_msr_entry) ||
	    s->n_xsave < sizeof(struct kvm_xsave))
		return mv_fail(err, EINVAL, "vCPU %u: damaged state", c->index);
	if (need > (int)s->n_xsave)
		s->n_xsave = (uint32_t)need; // zero beyond what was saved
	const struct kvm_msr_entry *msr = (void *)s->msrs;
	for (uint32_t i = 0; c->index == 0 && i < s->n_msrs / sizeof *msr; i++)
		if (msr[i].index == MSR_TSC)
			c->vm->arch.saved_tsc = msr[i].data;
	if ((r = kvm_call(c->fd, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2", err)) < 0 ||
	    (r = check_tsc(c, s->tsc_khz, err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_MP_STATE, &s->mp_state, "KVM_SET_MP_STATE", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_REGS, &s->regs, "KVM_SET_REGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_SREGS, &s->sregs, "KVM_SET_SREGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_XCRS, &s->xcrs, "KVM_SET_XCRS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_XSAVE, s->xsave, "KVM_SET_XSAVE", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_DEBUGREGS, &s->debugregs, "KVM_SET_DEBUGREGS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_LAPIC, &s->lapic, "KVM_SET_LAPIC", err)) < 0 ||
	    (r = set_msrs(c, msr, s->n_msrs / (uint32_t)sizeof *msr, err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_VCPU_EVENTS, &s->events, "KVM_SET_VCPU_EVENTS", err)) < 0)
		return r;
	return 0;
}
