// SPDX-License-Identifier: Apache-2.0
// KVM's interrupt controller: made, and its registers read and written
// (Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic.rst). A walk over one list of registers saves
// and loads; what is saved are the values in its order. There is no ITS, so nothing of it lies in guest
// memory.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "a64.h"
#include "microvm/kvm.h"

#define N_IRQS (32 + A64_N_SPIS)
#define NO_VALUE 0xffffffffu // to write where every bit takes something away

enum { // of the distributor, and of a GICv3 redistributor's second frame
	CTLR = 0x000,
	IIDR = 0x008,
	IGROUPR = 0x080,
	ISENABLER = 0x100,
	ICENABLER = 0x180,
	ISPENDR = 0x200,
	ISACTIVER = 0x300,
	IPRIORITYR = 0x400,
	ITARGETSR = 0x800, // GICv2
	ICFGR = 0xc00,
	SPENDSGIR = 0xf20, // GICv2
	IROUTER = 0x6000,  // GICv3
	GICR_WAKER = 0x14,
	GICR_SGI = 0x10000,
};
enum { GICC_CTLR = 0x00, GICC_PMR = 0x04, GICC_BPR = 0x08, GICC_ABPR = 0x1c, GICC_APR = 0xd0 };

// Arm IHI 0069, ICC_*_EL1, as KVM numbers system registers.
#define ICC(crn, crm, op2) (ARM64_SYS_REG(3, 0, crn, crm, op2) & KVM_DEV_ARM_VGIC_SYSREG_INSTR_MASK)
static const uint16_t icc[] = {
	ICC(12, 12, 5), // SRE
	ICC(12, 12, 4), // CTLR
	ICC(4, 6, 0),   // PMR
	ICC(12, 8, 3),  // BPR0
	ICC(12, 12, 3), // BPR1
	ICC(12, 12, 6), // IGRPEN0
	ICC(12, 12, 7), // IGRPEN1
};
#define ICC_AP0R(n) ICC(12, 8, 4 + (n))
#define ICC_AP1R(n) ICC(12, 9, n)
#define ICC_CTLR_PRI_BITS(v) (((v) >> 8 & 7) + 1)

// One walk: values are read into or written from `value`, `n` of `room`.
struct walk {
	struct vm *vm;
	struct mv_err *err;
	bool load;
	uint64_t *value;
	uint32_t n, room;
	uint64_t cpu; // bits of an attribute that name a vCPU
	bool zeros;   // so they are in a new one
	int result;
};

static int device_attr(struct vm *vm, unsigned long request, uint32_t group, uint64_t attr, void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)value };
	return ioctl(vm->arch.gic_fd, request, &a) < 0 ? -errno : 0;
}

static void step(struct walk *w, uint32_t group, uint64_t attr, bool wide)
{
	uint64_t v64 = 0;
	uint32_t v32 = 0;
	void *v = wide ? (void *)&v64 : &v32;
	if (w->result)
		return;
	if (w->n == w->room) {
		w->result = mv_fail(w->err, EINVAL, "the saved interrupt controller is not like this host's");
		return;
	}
	if (w->load) {
		v64 = w->value[w->n];
		v32 = (uint32_t)v64;
		if (w->zeros && !v64) {
			w->n++;
			return;
		}
	}
	int r = device_attr(w->vm, w->load ? KVM_SET_DEVICE_ATTR : KVM_GET_DEVICE_ATTR, group, attr, v);
	if (r) {
		w->result = mv_fail(w->err, -r, "interrupt controller: KVM %s register %u:0x%llx: %s",
				    w->load ? "refuses" : "does not give", group, (unsigned long long)attr,
				    strerror(-r));
		return;
	}
	w->value[w->n++] = wide ? v64 : v32;
}

static void words(struct walk *w, uint32_t group, uint32_t offset, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		step(w, group, w->cpu | (offset + 4 * i), false);
}

// What writing ones only adds to has to be empty first: KVM begins with SGIs enabled.
static void enables(struct walk *w, uint32_t group, uint32_t offset, unsigned n)
{
	for (unsigned i = 0; w->load && !w->result && i < n; i++) {
		uint32_t all = NO_VALUE;
		int r = device_attr(w->vm, KVM_SET_DEVICE_ATTR, group, w->cpu | (offset + ICENABLER + 4 * i),
				    &all);
		if (r)
			w->result =
				mv_fail(w->err, -r, "interrupt controller: GICD_ICENABLER: %s", strerror(-r));
	}
	words(w, group, offset + ISENABLER, n);
}

// Of the interrupts from `first` on, in words of 32: of a vCPU's own, or of the shared ones.
static void interrupts(struct walk *w, uint32_t group, uint32_t offset, unsigned first, unsigned n_words)
{
	words(w, group, offset + IGROUPR + first / 8, n_words);
	words(w, group, offset + ICFGR + first / 4, 2 * n_words);
	words(w, group, offset + IPRIORITYR + first, 8 * n_words);
	enables(w, group, offset + first / 8, n_words);
	words(w, group, offset + ISPENDR + first / 8, n_words);
	words(w, group, offset + ISACTIVER + first / 8, n_words);
}

static void level_info(struct walk *w, unsigned first)
{
	step(w, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, w->cpu | first, false); // VGIC_LEVEL_INFO_LINE_LEVEL is 0
}

static void walk_v3_vcpu(struct walk *w)
{
	const uint32_t redist = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, sysregs = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
	words(w, redist, CTLR, 1);
	words(w, redist, GICR_WAKER, 1);
	interrupts(w, redist, GICR_SGI, 0, 1);
	level_info(w, 0);
	for (size_t i = 0; i < MV_ARRAY_LEN(icc); i++)
		step(w, sysregs, w->cpu | icc[i], true);
	if (w->result)
		return;
	unsigned bits = ICC_CTLR_PRI_BITS(w->value[w->n - MV_ARRAY_LEN(icc) + 1]);
	for (unsigned i = 0; i < (bits > 6 ? 4u : bits > 5 ? 2u : 1u); i++) {
		step(w, sysregs, w->cpu | ICC_AP0R(i), true);
		step(w, sysregs, w->cpu | ICC_AP1R(i), true);
	}
}

static void walk_v2_vcpu(struct walk *w)
{
	static const uint16_t gicc[] = { GICC_PMR, GICC_BPR, GICC_ABPR, GICC_APR, GICC_CTLR };
	interrupts(w, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, 0, 1);
	words(w, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, SPENDSGIR, 4);
	for (size_t i = 0; i < MV_ARRAY_LEN(gicc); i++)
		words(w, KVM_DEV_ARM_VGIC_GRP_CPU_REGS, gicc[i], 1);
}

// What names a vCPU in an attribute. GICv3: affinity 3 to 0, a byte each.
static int cpu_bits(struct vcpu *c, uint64_t *ret_bits, struct mv_err *err)
{
	uint64_t mpidr = 0;
	bool v3 = c->vm->arch.gic_version == 3;
	int r = v3 ? a64_mpidr(c, &mpidr, err) : 0;
	if (!r)
		*ret_bits = v3 ? ((mpidr >> 8 & 0xff000000u) | (mpidr & 0xffffffu))
					    << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT
			       : (uint64_t)c->index << KVM_DEV_ARM_VGIC_CPUID_SHIFT;
	return r;
}

static int walk(struct walk *w)
{
	const uint32_t dist = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
	bool v3 = w->vm->arch.gic_version == 3;
	// Its revision decides what the rest means.
	words(w, dist, IIDR, 1);
	words(w, dist, CTLR, 1);
	for (unsigned i = 0; !w->result && i < w->vm->n_vcpus; i++) {
		if ((w->result = cpu_bits(&w->vm->vcpu[i], &w->cpu, w->err)))
			break;
		if (v3)
			walk_v3_vcpu(w);
		else
			walk_v2_vcpu(w);
	}
	w->cpu = 0;
	w->zeros = true; // to the first vCPU: most are, and each is two calls
	if (v3)
		for (unsigned i = 32; i < N_IRQS; i++)
			words(w, dist, IROUTER + 8 * i, 2);
	w->zeros = false;
	if (!v3)
		words(w, dist, ITARGETSR + 32, A64_N_SPIS / 4);
	interrupts(w, dist, 0, 32, A64_N_SPIS / 32);
	if (v3)
		for (unsigned i = 32; i < N_IRQS; i += 32)
			level_info(w, i);
	return w->result;
}

int a64_gic_save(struct vm *vm, uint64_t *values, uint32_t *n, struct mv_err *err)
{
	struct walk w = { .vm = vm, .err = err, .value = values, .room = *n };
	int r = walk(&w);
	if (!r)
		*n = w.n;
	return r;
}

int a64_gic_load(struct vm *vm, const uint64_t *values, uint32_t n, struct mv_err *err)
{
	uint64_t copy[A64_GIC_MAX_VALUES];
	if (n > A64_GIC_MAX_VALUES)
		return mv_fail(err, EINVAL, "damaged interrupt controller state");
	memcpy(copy, values, n * sizeof copy[0]);
	struct walk w = { .vm = vm, .err = err, .load = true, .value = copy, .room = n };
	int r = walk(&w);
	return r || w.n == n ? r
			     : mv_fail(err, EINVAL, "the saved interrupt controller is not like this host's");
}

static int create(struct vm *vm, uint32_t type, unsigned version)
{
	struct kvm_create_device d = { .type = type };
	if (ioctl(vm->vm_fd, KVM_CREATE_DEVICE, &d) < 0)
		return -errno;
	vm->arch.gic_fd = (int)d.fd;
	vm->arch.gic_version = version;
	return 0;
}

static int set_address(struct vm *vm, uint64_t type, uint64_t address, struct mv_err *err)
{
	int r = device_attr(vm, KVM_SET_DEVICE_ATTR, KVM_DEV_ARM_VGIC_GRP_ADDR, type, &address);
	return r ? mv_fail(err, -r, "interrupt controller at 0x%llx: %s", (unsigned long long)address,
			   strerror(-r))
		 : 0;
}

int a64_gic_create(struct vm *vm, struct mv_err *err)
{
	uint32_t n_irqs = N_IRQS;
	int r = create(vm, KVM_DEV_TYPE_ARM_VGIC_V3, 3);
	if (r == -ENODEV)
		r = create(vm, KVM_DEV_TYPE_ARM_VGIC_V2, 2);
	if (r)
		return mv_fail(err, -r, "this host's KVM has neither a GICv3 nor a GICv2: %s", strerror(-r));
	if (vm->arch.gic_version == 3) {
		r = set_address(vm, KVM_VGIC_V3_ADDR_TYPE_DIST, A64_GICD, err);
		r = r ? r : set_address(vm, KVM_VGIC_V3_ADDR_TYPE_REDIST, A64_GICR, err);
	} else {
		r = set_address(vm, KVM_VGIC_V2_ADDR_TYPE_DIST, A64_GICD, err);
		r = r ? r : set_address(vm, KVM_VGIC_V2_ADDR_TYPE_CPU, A64_GICC, err);
	}
	if (r)
		return r;
	r = device_attr(vm, KVM_SET_DEVICE_ATTR, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &n_irqs);
	return r ? mv_fail(err, -r, "interrupt controller: %s", strerror(-r)) : 0;
}

int arch_vcpus_made(struct vm *vm, struct mv_err *err)
{
	int r = device_attr(vm, KVM_SET_DEVICE_ATTR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT,
			    NULL);
	return r ? mv_fail(err, -r, "interrupt controller: KVM_DEV_ARM_VGIC_CTRL_INIT: %s", strerror(-r)) : 0;
}
