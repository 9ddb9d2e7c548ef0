// SPDX-License-Identifier: Apache-2.0
// What a saved arm64 CPU is, by its identification registers, and which of them this host's KVM does not let
// a vCPU have: it alone knows which it lets be written, so it is asked with a vCPU.
#include "microvm/cpu_report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "cpu_features.h"
#include "kvm_vcpu.h"
#include "vcpu_state.h"

static const struct {
	uint8_t code;
	const char *name;
} vendors[] = { { 0x41, "Arm" },       { 0x43, "Cavium" },    { 0x46, "Fujitsu" },
		{ 0x48, "HiSilicon" }, { 0x4e, "NVIDIA" },    { 0x51, "Qualcomm" },
		{ 0x61, "Apple" },     { 0x6d, "Microsoft" }, { 0xc0, "Ampere" } };

static int read_ids(const struct vcpu_state *s, struct a64_id_regs *ret_ids)
{
	struct a64_reg reg;
	unsigned index;
	size_t pos = 0;
	int r;
	while ((r = a64_reg_next(s, &pos, &reg)) > 0)
		if (a64_is_id_reg(reg.id, &index))
			ret_ids->value[index] = a64_reg_u64(&reg);
	return r;
}

static int one_reg(int vcpu_fd, unsigned long request, uint64_t id, uint64_t *value)
{
	struct kvm_one_reg one = { .id = id, .addr = (uintptr_t)value };
	return ioctl(vcpu_fd, request, &one);
}

// A register that was refused: which of its fields are, each by itself.
static void add_refused(unsigned index, uint64_t guest, int vcpu_fd, struct cpu_report *r)
{
	char text[32];
	uint64_t id = a64_id_reg(index), here = 0;
	unsigned n = 0;
	bool known = !one_reg(vcpu_fd, KVM_GET_ONE_REG, id, &here);
	if (known && here == guest)
		return; // may not be written, and need not
	for (unsigned shift = 0; known && index != A64_MIDR && shift < 64; shift += 4) {
		uint64_t field = 15ull << shift, tried = (here & ~field) | (guest & field);
		if (tried != here && one_reg(vcpu_fd, KVM_SET_ONE_REG, id, &tried))
			n += a64_field_missing(index, shift, guest, here, &r->missing);
	}
	if (!n) { // it is no sum of fields, or only all together are refused
		cpu_report_add(&r->missing, "%s = 0x%llx (here: 0x%llx)", a64_id_name(index, text),
			       (unsigned long long)guest, (unsigned long long)here);
		n = 1;
	}
	r->n_missing += n;
}

// Caches and the like: registers that are not made of features (CLIDR_EL1, CTR_EL0).
static void add_other(const struct a64_reg *reg, int vcpu_fd, struct cpu_report *r)
{
	uint64_t here = 0, guest = a64_reg_u64(reg);
	unsigned op1 = (reg->id & KVM_REG_ARM64_SYSREG_OP1_MASK) >> KVM_REG_ARM64_SYSREG_OP1_SHIFT;
	unsigned crm = (reg->id & KVM_REG_ARM64_SYSREG_CRM_MASK) >> KVM_REG_ARM64_SYSREG_CRM_SHIFT;
	unsigned op2 = (unsigned)(reg->id & KVM_REG_ARM64_SYSREG_OP2_MASK);
	if (!one_reg(vcpu_fd, KVM_GET_ONE_REG, reg->id, &here) && here == guest)
		return;
	cpu_report_add(&r->missing, "S3_%u_C0_C%u_%u = 0x%llx (here: 0x%llx)", op1, crm, op2,
		       (unsigned long long)guest, (unsigned long long)here);
	r->n_missing++;
}

// System registers with CRn 0: what the CPU is.
static bool tells_of_cpu(uint64_t id)
{
	const uint64_t fixed = ~(uint64_t)(KVM_REG_ARM64_SYSREG_OP1_MASK | KVM_REG_ARM64_SYSREG_CRM_MASK |
					   KVM_REG_ARM64_SYSREG_OP2_MASK);
	return (id & fixed) == (a64_id_reg(A64_MIDR) & fixed);
}

// Fills compared, n_missing and missing.
static void compare(const struct vcpu_state *s, const char *kvm_path, struct cpu_report *r)
{
	MV_FD kvm_fd = open(kvm_path, O_RDWR | O_CLOEXEC);
	MV_FD vm_fd = kvm_fd < 0 ? -1 : ioctl(kvm_fd, KVM_CREATE_VM, 0L);
	MV_FD vcpu_fd = vm_fd < 0 ? -1 : ioctl(vm_fd, KVM_CREATE_VCPU, 0L);
	struct a64_reg reg;
	unsigned index;
	size_t pos = 0;
	r->compared = vcpu_fd >= 0 && !a64_vcpu_init(vm_fd, vcpu_fd, false);
	while (r->compared && a64_reg_next(s, &pos, &reg) > 0) {
		uint64_t value = a64_reg_u64(&reg);
		if (!tells_of_cpu(reg.id) || !one_reg(vcpu_fd, KVM_SET_ONE_REG, reg.id, &value))
			continue;
		if (a64_is_id_reg(reg.id, &index))
			add_refused(index, value, vcpu_fd, r);
		else
			add_other(&reg, vcpu_fd, r);
	}
}

static void describe(const struct a64_id_regs *ids, struct cpu_report *r)
{
	uint64_t midr = ids->value[A64_MIDR];
	uint8_t vendor = (uint8_t)(midr >> 24);
	snprintf(r->vendor, sizeof r->vendor, "0x%02x", vendor);
	for (size_t i = 0; i < MV_ARRAY_LEN(vendors); i++)
		if (vendors[i].code == vendor)
			snprintf(r->vendor, sizeof r->vendor, "%s", vendors[i].name);
	r->family = 8;
	r->model_number = midr >> 4 & 0xfff;
	r->stepping = midr & 15;
	snprintf(r->model, sizeof r->model, "part 0x%03x variant %u", r->model_number,
		 (unsigned)(midr >> 20 & 15));
	a64_features(ids, &r->features);
}

int cpu_report_arch(const void *vcpu, size_t len, const char *kvm_path, const struct vmcfg_cpu *cpu,
		    struct cpu_report *r, struct mv_err *err)
{
	(void)cpu; // nothing of it is x86's alone
	struct a64_id_regs ids = { 0 };
	MV_FREE struct vcpu_state *s = malloc(sizeof *s);
	int e = s ? mv_state_load(&a64_vcpu_table, vcpu, len, s, err) : mv_fail(err, ENOMEM, "out of memory");
	if (!e && read_ids(s, &ids))
		e = mv_fail(err, EINVAL, "state: the vCPU's registers are damaged");
	if (e)
		return e;
	describe(&ids, r);
	if (kvm_path)
		compare(s, kvm_path, r);
	return 0;
}

int cpu_host(const char *kvm_path, char ret_vendor[13], uint32_t *ret_version)
{
	(void)kvm_path, (void)ret_vendor, (void)ret_version;
	return -ENOTSUP; // CPUID is x86's
}
