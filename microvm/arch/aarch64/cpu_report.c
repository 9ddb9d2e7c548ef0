// SPDX-License-Identifier: Apache-2.0
// What a saved arm64 CPU is, by its identification registers (Arm ARM, D19.2), and which of them this host's
// KVM does not let a vCPU have: it alone knows which it lets be written, so it is asked with a vCPU.
#include "microvm/cpu_report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "kvm_vcpu.h"
#include "microvm/base/scratch.h"
#include "microvm/sections.h"
#include "snapshot/format.h"
#include "vcpu_state.h"

#define REG_MIDR ARM64_SYS_REG(3, 0, 0, 0, 0)
#define ISAR0 ARM64_SYS_REG(3, 0, 0, 6, 0)
#define ISAR1 ARM64_SYS_REG(3, 0, 0, 6, 1)
#define PFR0 ARM64_SYS_REG(3, 0, 0, 4, 0)

// Names of /proc/cpuinfo, by a field of four bits and its least value. Of PFR0's first two 15 means "none".
static const struct feature {
	const char *name;
	uint64_t reg;
	uint8_t shift, min, none;
} features[] = {
	{ "fp", PFR0, 16, 0, 15 },       { "asimd", PFR0, 20, 0, 15 },   { "aes", ISAR0, 4, 1, 0 },
	{ "pmull", ISAR0, 4, 2, 0 },     { "sha1", ISAR0, 8, 1, 0 },     { "sha2", ISAR0, 12, 1, 0 },
	{ "sha512", ISAR0, 12, 2, 0 },   { "crc32", ISAR0, 16, 1, 0 },   { "atomics", ISAR0, 20, 2, 0 },
	{ "asimdrdm", ISAR0, 28, 1, 0 }, { "sha3", ISAR0, 32, 1, 0 },    { "sm3", ISAR0, 36, 1, 0 },
	{ "sm4", ISAR0, 40, 1, 0 },      { "asimddp", ISAR0, 44, 1, 0 }, { "flagm", ISAR0, 52, 1, 0 },
	{ "rng", ISAR0, 60, 1, 0 },      { "dcpop", ISAR1, 0, 1, 0 },    { "jscvt", ISAR1, 12, 1, 0 },
	{ "fcma", ISAR1, 16, 1, 0 },     { "lrcpc", ISAR1, 20, 1, 0 },   { "bf16", ISAR1, 44, 1, 0 },
	{ "i8mm", ISAR1, 52, 1, 0 },     { "dit", PFR0, 48, 1, 0 },
};

static const struct {
	uint8_t code;
	const char *name;
} vendors[] = { { 0x41, "Arm" },       { 0x43, "Cavium" },    { 0x46, "Fujitsu" },
		{ 0x48, "HiSilicon" }, { 0x4e, "NVIDIA" },    { 0x51, "Qualcomm" },
		{ 0x61, "Apple" },     { 0x6d, "Microsoft" }, { 0xc0, "Ampere" } };

struct id_regs {
	uint64_t midr, isar0, isar1, pfr0;
};

static int read_ids(const struct vcpu_state *s, struct id_regs *ret_ids)
{
	struct a64_reg reg;
	size_t pos = 0;
	int r;
	while ((r = a64_reg_next(s, &pos, &reg)) > 0)
		switch (reg.id) {
		case REG_MIDR: ret_ids->midr = a64_reg_u64(&reg); break;
		case ISAR0: ret_ids->isar0 = a64_reg_u64(&reg); break;
		case ISAR1: ret_ids->isar1 = a64_reg_u64(&reg); break;
		case PFR0: ret_ids->pfr0 = a64_reg_u64(&reg); break;
		default: break;
		}
	return r;
}

// The first vCPU's state: all are the same.
static int read_guest(int state_fd, struct vcpu_state *ret_state, struct mv_err *err)
{
	MV_SCRATCH uint8_t *payload = NULL;
	struct snap_section sec;
	size_t len, pos = 0;
	int r = snap_container_read(state_fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len,
				    err);
	if (r)
		return r;
	while ((r = snap_section_next(payload, len, &pos, &sec, err)) > 0)
		if (sec.kind == SECTION_VCPU && !sec.index)
			return mv_state_load(&a64_vcpu_table, sec.bytes, sec.len, ret_state, err);
	return r ? r : mv_fail(err, EINVAL, "state: has no vCPU");
}

static void append(struct mv_buf *list, const char *text)
{
	if (list->len)
		mv_buf_append(list, ", ", 2);
	mv_buf_append(list, text, strlen(text));
}

// System registers with CRn 0: what the CPU is.
static bool is_id_reg(uint64_t id)
{
	const uint64_t fixed = ~(uint64_t)(KVM_REG_ARM64_SYSREG_OP1_MASK | KVM_REG_ARM64_SYSREG_CRM_MASK |
					   KVM_REG_ARM64_SYSREG_OP2_MASK);
	return (id & fixed) == (REG_MIDR & fixed);
}

static void add_refused(const struct a64_reg *reg, int vcpu_fd, struct cpu_report *r)
{
	char text[96];
	uint64_t here = 0;
	struct kvm_one_reg one = { .id = reg->id, .addr = (uintptr_t)&here };
	unsigned op1 = (reg->id & KVM_REG_ARM64_SYSREG_OP1_MASK) >> KVM_REG_ARM64_SYSREG_OP1_SHIFT;
	unsigned crm = (reg->id & KVM_REG_ARM64_SYSREG_CRM_MASK) >> KVM_REG_ARM64_SYSREG_CRM_SHIFT;
	bool known = !ioctl(vcpu_fd, KVM_GET_ONE_REG, &one);
	if (known && here == a64_reg_u64(reg))
		return; // may not be written, and need not
	int n = snprintf(text, sizeof text, "S3_%u_C0_C%u_%u = 0x%llx", op1, crm,
			 (unsigned)(reg->id & KVM_REG_ARM64_SYSREG_OP2_MASK),
			 (unsigned long long)a64_reg_u64(reg));
	snprintf(text + n, sizeof text - (size_t)n, known ? " (here 0x%llx)" : " (not here)",
		 (unsigned long long)here);
	append(&r->missing, text);
	r->n_missing++;
}

// Fills compared, n_missing and missing.
static void compare(const struct vcpu_state *s, const char *kvm_path, struct cpu_report *r)
{
	MV_FD kvm_fd = open(kvm_path, O_RDWR | O_CLOEXEC);
	MV_FD vm_fd = kvm_fd < 0 ? -1 : ioctl(kvm_fd, KVM_CREATE_VM, 0L);
	MV_FD vcpu_fd = vm_fd < 0 ? -1 : ioctl(vm_fd, KVM_CREATE_VCPU, 0L);
	struct a64_reg reg;
	size_t pos = 0;
	r->compared = vcpu_fd >= 0 && !a64_vcpu_init(vm_fd, vcpu_fd, false);
	while (r->compared && a64_reg_next(s, &pos, &reg) > 0) {
		struct kvm_one_reg one = { .id = reg.id, .addr = (uintptr_t)reg.value };
		if (is_id_reg(reg.id) && ioctl(vcpu_fd, KVM_SET_ONE_REG, &one))
			add_refused(&reg, vcpu_fd, r);
	}
}

int cpu_report(int state_fd, const char *kvm_path, const struct vmcfg_cpu *cpu, struct cpu_report *ret_report,
	       struct mv_err *err)
{
	(void)cpu; // nothing of it is x86's alone
	struct cpu_report report = { 0 };
	struct id_regs ids = { 0 };
	MV_FREE struct vcpu_state *s = malloc(sizeof *s);
	int r = s ? read_guest(state_fd, s, err) : mv_fail(err, ENOMEM, "out of memory");
	if (!r && read_ids(s, &ids))
		r = mv_fail(err, EINVAL, "state: the vCPU's registers are damaged");
	if (r)
		return r;
	uint8_t vendor = (uint8_t)(ids.midr >> 24);
	snprintf(report.vendor, sizeof report.vendor, "0x%02x", vendor);
	for (size_t i = 0; i < MV_ARRAY_LEN(vendors); i++)
		if (vendors[i].code == vendor)
			snprintf(report.vendor, sizeof report.vendor, "%s", vendors[i].name);
	report.family = 8;
	report.model_number = ids.midr >> 4 & 0xfff;
	report.stepping = ids.midr & 15;
	snprintf(report.model, sizeof report.model, "part 0x%03x variant %u", report.model_number,
		 (unsigned)(ids.midr >> 20 & 15));
	for (size_t i = 0; i < MV_ARRAY_LEN(features); i++) {
		const struct feature *f = &features[i];
		uint64_t reg = f->reg == ISAR0 ? ids.isar0 : f->reg == ISAR1 ? ids.isar1 : ids.pfr0;
		unsigned v = reg >> f->shift & 15;
		if (v < f->min || (f->none && v == f->none))
			continue;
		append(&report.features, f->name);
	}
	if (kvm_path)
		compare(s, kvm_path, &report);
	mv_buf_append(&report.features, "", 1);
	mv_buf_append(&report.missing, "", 1);
	if (report.features.failed || report.missing.failed) {
		cpu_report_fini(&report);
		return mv_fail(err, ENOMEM, "out of memory");
	}
	*ret_report = report;
	return 0;
}

int cpu_host(const char *kvm_path, char ret_vendor[13], uint32_t *ret_version)
{
	(void)kvm_path, (void)ret_vendor, (void)ret_version;
	return -ENOTSUP; // CPUID is x86's
}

void cpu_report_fini(struct cpu_report *r)
{
	mv_buf_fini(&r->features);
	mv_buf_fini(&r->missing);
}
