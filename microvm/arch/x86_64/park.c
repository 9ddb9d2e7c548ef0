// SPDX-License-Identifier: Apache-2.0
// What parking needs to know of a vCPU: does it wait, and until when; and how its clocks go on as if it
// had never been away. Intel SDM volume 3 chapter 11 (local APIC), KVM API 4.30, 4.57, and
// Documentation/virt/kvm/devices/vcpu.rst.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "microvm/arch/arch.h"
#include "microvm/kvm.h"
#include "microvm/vcpu.h"
#include "x86.h"

#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0
#define NS_PER_MS 1000000u
#define CLOCK_READINGS 5

enum {
	APIC_IRR = 0x200,
	APIC_LVT_TIMER = 0x320,
	APIC_COUNT = 0x380,
	APIC_COUNT_NOW = 0x390,
	APIC_DIVIDE = 0x3e0
};
enum { LVT_MASKED = 1 << 16, LVT_MODE_SHIFT = 17, MODE_ONE_SHOT = 0, MODE_TSC_DEADLINE = 2 };
enum { APIC_IRR_WORDS = 8, APIC_WORD_STRIDE = 16 };

struct tsc_msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[2];
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t apic_get(const struct kvm_lapic_state *a, unsigned reg)
{
	uint32_t v;
	memcpy(&v, a->regs + reg, sizeof v);
	return v;
}

static uint32_t timer_mode(const struct kvm_lapic_state *a)
{
	return apic_get(a, APIC_LVT_TIMER) >> LVT_MODE_SHIFT & 3;
}

// Of one count: KVM's bus clock has 1 GHz.
static uint64_t count_ns(const struct kvm_lapic_state *a)
{
	uint32_t d = apic_get(a, APIC_DIVIDE);
	return 1u << ((((d & 3) | (d & 8) >> 1) + 1) & 7);
}

static bool requested(const struct kvm_lapic_state *a)
{
	uint32_t any = 0;
	for (unsigned i = 0; i < APIC_IRR_WORDS; i++)
		any |= apic_get(a, APIC_IRR + i * APIC_WORD_STRIDE);
	return any;
}

// How long until the timer of a local APIC is due.
static uint64_t timer_left_ns(struct vcpu *c, const struct kvm_lapic_state *a)
{
	struct tsc_msrs m = { .head.nmsrs = 2,
			      .entry = { { .index = MSR_TSC }, { .index = MSR_TSC_DEADLINE } } };
	if (apic_get(a, APIC_LVT_TIMER) & LVT_MASKED)
		return UINT64_MAX;
	if (timer_mode(a) != MODE_TSC_DEADLINE)
		return apic_get(a, APIC_COUNT_NOW) ? apic_get(a, APIC_COUNT_NOW) * count_ns(a) : UINT64_MAX;
	int khz = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);
	if (ioctl(c->fd, KVM_GET_MSRS, &m) != 2 || khz <= 0)
		return 0; // unknown: not to be waited for
	uint64_t now = m.entry[0].data, due = m.entry[1].data;
	if (!due)
		return UINT64_MAX;
	return due > now ? (uint64_t)((unsigned __int128)(due - now) * NS_PER_MS / (unsigned)khz) : 0;
}

// A count of one shot that has run out: KVM does not say whether its interrupt is still to come.
static bool is_spent(const struct kvm_lapic_state *a)
{
	return !(apic_get(a, APIC_LVT_TIMER) & LVT_MASKED) && timer_mode(a) == MODE_ONE_SHOT &&
	       apic_get(a, APIC_COUNT) && !apic_get(a, APIC_COUNT_NOW);
}

int arch_vcpu_waits(struct vcpu *c, bool *ret_waits, uint64_t *ret_left_ns, struct mv_err *err)
{
	struct kvm_mp_state mp;
	struct kvm_vcpu_events e;
	struct kvm_lapic_state apic;
	int r = kvm_call(c->fd, KVM_GET_MP_STATE, &mp, "KVM_GET_MP_STATE", err);
	r = r < 0 ? r : kvm_call(c->fd, KVM_GET_LAPIC, &apic, "KVM_GET_LAPIC", err);
	if (r < 0)
		return r;
	bool settled = mp.mp_state == KVM_MP_STATE_HALTED && is_spent(&apic);
	if ((settled && (r = vcpu_settle(c, err)) < 0) ||
	    (r = kvm_call(c->fd, KVM_GET_MP_STATE, &mp, "KVM_GET_MP_STATE", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_VCPU_EVENTS, &e, "KVM_GET_VCPU_EVENTS", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_LAPIC, &apic, "KVM_GET_LAPIC", err)) < 0)
		return r;
	bool stands = mp.mp_state == KVM_MP_STATE_HALTED || mp.mp_state == KVM_MP_STATE_UNINITIALIZED ||
		      mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
	*ret_waits = stands && is_spent(&apic) == settled && !e.exception.injected && !e.exception.pending &&
		     !e.interrupt.injected && !e.nmi.injected && !e.nmi.pending && !e.smi.pending &&
		     !requested(&apic);
	*ret_left_ns = timer_left_ns(c, &apic);
	// Noted now: one that runs out from here on is not spent, but due.
	uint64_t left = apic_get(&apic, APIC_COUNT_NOW) * count_ns(&apic);
	bool counts = timer_mode(&apic) != MODE_TSC_DEADLINE && left;
	c->vm->arch.parked.spent[c->index] = settled && is_spent(&apic);
	c->vm->arch.parked.timer_boot_ns[c->index] = counts ? clock_ns(CLOCK_BOOTTIME) + left : 0;
	return 0;
}

int arch_park_check(struct vm *vm, struct mv_err *err)
{
	if (x86_has_tsc_offset(vm))
		return 0;
	return mv_fail(err, ENOTSUP,
		       "this host's KVM can't set a guest's TSC offset; parking needs Linux 5.16");
}

// The wall clock's lead, between the two readings of the other clock that lie closest together: what comes in
// between would be a jump of the guest's clock.
static uint64_t boot_to_real_ns(void)
{
	uint64_t lead = 0, best = UINT64_MAX;
	for (int i = 0; i < CLOCK_READINGS; i++) {
		uint64_t before = clock_ns(CLOCK_BOOTTIME), real = clock_ns(CLOCK_REALTIME);
		uint64_t apart = clock_ns(CLOCK_BOOTTIME) - before;
		if (apart < best)
			lead = real - before - apart / 2;
		best = apart < best ? apart : best;
	}
	return lead;
}

int arch_park(struct vm *vm, struct mv_err *err)
{
	int r = 0;
	for (unsigned i = 0; r >= 0 && i < vm->n_vcpus; i++)
		r = x86_tsc_offset(&vm->vcpu[i], KVM_GET_DEVICE_ATTR, &vm->arch.parked.tsc_offset[i], err);
	vm->arch.parked.boot_to_real_ns = boot_to_real_ns();
	return r < 0 ? r : 0;
}

// The guest's clock, by the time that passed on the clock that KVM counts by. KVM adds what passed on the
// wall clock since the clock was saved, so all that is to be told is how far the wall clock was set
// meanwhile.
static int move_clock(struct vm *vm, struct mv_err *err)
{
	struct kvm_clock_data c = vm->arch.clock;
	bool adjust = kvm_capability(vm->vm_fd, KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_REALTIME;
	c.flags = adjust ? KVM_CLOCK_REALTIME : 0;
	if (adjust)
		c.realtime += boot_to_real_ns() - vm->arch.parked.boot_to_real_ns;
	else
		c.clock += clock_ns(CLOCK_BOOTTIME) - (c.realtime - vm->arch.parked.boot_to_real_ns);
	return kvm_call(vm->vm_fd, KVM_SET_CLOCK, &c, "KVM_SET_CLOCK", err);
}

// The TSC where it would be, and the timer by what is left of it. A deadline goes behind the TSC, since its
// timer was set by the old one. A count that ran out is due at once; zero would mean anew.
static int move_vcpu(struct vcpu *c, struct mv_err *err)
{
	uint64_t offset = c->vm->arch.parked.tsc_offset[c->index];
	uint64_t due = c->vm->arch.parked.timer_boot_ns[c->index], now = clock_ns(CLOCK_BOOTTIME);
	struct tsc_msrs m = { .head.nmsrs = 1, .entry = { { .index = MSR_TSC_DEADLINE } } };
	struct kvm_lapic_state apic;
	int r = x86_tsc_offset(c, KVM_SET_DEVICE_ATTR, &offset, err);
	if (r < 0)
		return r;
	if (!due && !c->vm->arch.parked.spent[c->index]) {
		if (ioctl(c->fd, KVM_GET_MSRS, &m) == 1 && m.entry[0].data &&
		    ioctl(c->fd, KVM_SET_MSRS, &m) != 1)
			return mv_fail(err, EIO, "vCPU %u: KVM refuses its TSC deadline", c->index);
		return 0;
	}
	if ((r = kvm_call(c->fd, KVM_GET_LAPIC, &apic, "KVM_GET_LAPIC", err)) < 0)
		return r;
	if (!due) { // loading it began it anew, for an interrupt that the guest has had: this ends it
		memset(apic.regs + APIC_COUNT, 0, sizeof(uint32_t));
		return kvm_call(c->fd, KVM_SET_LAPIC, &apic, "KVM_SET_LAPIC", err);
	}
	uint32_t left = due > now ? (uint32_t)((due - now) / count_ns(&apic)) : 0;
	left = left ? left : 1;
	memcpy(apic.regs + APIC_COUNT_NOW, &left, sizeof left);
	return kvm_call(c->fd, KVM_SET_LAPIC, &apic, "KVM_SET_LAPIC", err);
}

int arch_unpark(struct vm *vm, struct mv_err *err)
{
	int r = move_clock(vm, err);
	for (unsigned i = 0; r >= 0 && i < vm->n_vcpus; i++)
		r = move_vcpu(&vm->vcpu[i], err);
	return r < 0 ? r : 0;
}
