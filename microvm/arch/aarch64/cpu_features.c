// SPDX-License-Identifier: Apache-2.0
// Sources: Arm ARM D19.2 (the registers); Linux Documentation/arch/arm64/elf_hwcaps.rst (the names); the
// templates are what -march= of the same name lets a compiler use.
#include "cpu_features.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>

#include "microvm/cpu_report.h"

#define INDEX(crm, op2) ((crm)*8 + (op2))
enum {
	PFR0 = INDEX(4, 0),
	PFR1 = INDEX(4, 1),
	ZFR0 = INDEX(4, 4),
	SMFR0 = INDEX(4, 5),
	FPFR0 = INDEX(4, 7),
	ISAR0 = INDEX(6, 0),
	ISAR1 = INDEX(6, 1),
	ISAR2 = INDEX(6, 2),
	ISAR3 = INDEX(6, 3),
	MMFR0 = INDEX(7, 0),
	MMFR1 = INDEX(7, 1),
	MMFR2 = INDEX(7, 2),
};
// Of these a template knows all fields: one without a name is not in it. What the others tell is of the
// kernel's and stays as it is.
static const uint8_t of_templates[] = { ZFR0, SMFR0, FPFR0, ISAR0, ISAR1, ISAR2, ISAR3 };

static const struct {
	uint8_t index;
	const char *name;
} reg_names[] = { { A64_MIDR, "MIDR_EL1" },
		  { INDEX(0, 5), "MPIDR_EL1" },
		  { INDEX(0, 6), "REVIDR_EL1" },
		  { PFR0, "ID_AA64PFR0_EL1" },
		  { PFR1, "ID_AA64PFR1_EL1" },
		  { INDEX(4, 2), "ID_AA64PFR2_EL1" },
		  { ZFR0, "ID_AA64ZFR0_EL1" },
		  { SMFR0, "ID_AA64SMFR0_EL1" },
		  { FPFR0, "ID_AA64FPFR0_EL1" },
		  { INDEX(5, 0), "ID_AA64DFR0_EL1" },
		  { INDEX(5, 1), "ID_AA64DFR1_EL1" },
		  { ISAR0, "ID_AA64ISAR0_EL1" },
		  { ISAR1, "ID_AA64ISAR1_EL1" },
		  { ISAR2, "ID_AA64ISAR2_EL1" },
		  { ISAR3, "ID_AA64ISAR3_EL1" },
		  { MMFR0, "ID_AA64MMFR0_EL1" },
		  { MMFR1, "ID_AA64MMFR1_EL1" },
		  { MMFR2, "ID_AA64MMFR2_EL1" },
		  { INDEX(7, 3), "ID_AA64MMFR3_EL1" },
		  { INDEX(7, 4), "ID_AA64MMFR4_EL1" } };

// What a template does with a feature.
enum level {
	DROP, // not there: hosts differ in it
	KEEP, // there when the host has it: against speculation, or what no KVM can hide
	BASE, // must be there
	V8_2, // must be there in armv8.2-a
};

// By a field of four bits and its least value. `needs`: goes when that one goes, as it does with one of a
// lesser value of its own field.
static const struct feature {
	uint8_t reg, shift, min, level;
	char name[10], needs[8];
} features[] = {
	{ PFR0, 16, 0, BASE, "fp", "" },          { PFR0, 16, 1, KEEP, "fphp", "asimdhp" },
	{ PFR0, 20, 0, BASE, "asimd", "" },       { PFR0, 20, 1, KEEP, "asimdhp", "fphp" },
	{ PFR0, 32, 1, DROP, "sve", "" },         { PFR0, 48, 1, KEEP, "dit", "" },
	{ PFR1, 0, 1, KEEP, "bti", "" },          { PFR1, 4, 2, KEEP, "ssbs", "" },
	{ PFR1, 8, 2, DROP, "mte", "" },

	{ ISAR0, 4, 1, DROP, "aes", "" },         { ISAR0, 4, 2, DROP, "pmull", "" },
	{ ISAR0, 8, 1, DROP, "sha1", "sha2" },    { ISAR0, 12, 1, DROP, "sha2", "sha1" },
	{ ISAR0, 12, 2, DROP, "sha512", "sha3" }, { ISAR0, 16, 1, V8_2, "crc32", "" },
	{ ISAR0, 20, 2, V8_2, "atomics", "" },    { ISAR0, 20, 3, DROP, "lse128", "" },
	{ ISAR0, 28, 1, V8_2, "asimdrdm", "" },   { ISAR0, 32, 1, DROP, "sha3", "sha512" },
	{ ISAR0, 36, 1, DROP, "sm3", "sm4" },     { ISAR0, 40, 1, DROP, "sm4", "sm3" },
	{ ISAR0, 44, 1, DROP, "asimddp", "" },    { ISAR0, 48, 1, DROP, "asimdfhm", "asimdhp" },
	{ ISAR0, 52, 1, DROP, "flagm", "" },      { ISAR0, 52, 2, DROP, "flagm2", "" },
	{ ISAR0, 60, 1, DROP, "rng", "" },

	{ ISAR1, 0, 1, V8_2, "dcpop", "" },       { ISAR1, 0, 2, DROP, "dcpodp", "" },
	{ ISAR1, 12, 1, DROP, "jscvt", "" },      { ISAR1, 16, 1, DROP, "fcma", "" },
	{ ISAR1, 20, 1, DROP, "lrcpc", "" },      { ISAR1, 20, 2, DROP, "ilrcpc", "" },
	{ ISAR1, 20, 3, DROP, "lrcpc3", "" },     { ISAR1, 32, 1, DROP, "frint", "" },
	{ ISAR1, 36, 1, KEEP, "sb", "" },         { ISAR1, 40, 1, KEEP, "specres", "" },
	{ ISAR1, 44, 1, DROP, "bf16", "" },       { ISAR1, 44, 2, DROP, "ebf16", "" },
	{ ISAR1, 48, 1, DROP, "dgh", "" },        { ISAR1, 52, 1, DROP, "i8mm", "" },

	{ ISAR2, 0, 2, DROP, "wfxt", "" },        { ISAR2, 4, 1, DROP, "rpres", "afp" },
	{ ISAR2, 16, 1, DROP, "mops", "" },       { ISAR2, 20, 1, DROP, "hbc", "" },
	{ ISAR2, 28, 1, KEEP, "clrbhb", "" },     { ISAR2, 48, 1, DROP, "rprfm", "" },
	{ ISAR2, 52, 1, DROP, "cssc", "" },

	{ MMFR0, 60, 1, DROP, "ecv", "" },        { MMFR1, 44, 1, DROP, "afp", "" },
	{ MMFR2, 32, 1, DROP, "uscat", "" },
};
enum { N_FEATURES = MV_ARRAY_LEN(features), NONE = -1 };

#define FIELD 15ull

static unsigned field(uint64_t reg, unsigned shift) { return reg >> shift & FIELD; }

// Of floating point and vectors 15 means "none"; otherwise what is higher has what is lower has.
static bool has(uint64_t reg, const struct feature *f)
{
	unsigned v = field(reg, f->shift);
	return v >= f->min && !(f->reg == PFR0 && f->shift < 24 && v == FIELD);
}

uint64_t a64_id_reg(unsigned index) { return ARM64_SYS_REG(3, 0, 0, index / 8, index % 8); }

bool a64_is_id_reg(uint64_t kvm_id, unsigned *ret_index)
{
	unsigned crm = (kvm_id & KVM_REG_ARM64_SYSREG_CRM_MASK) >> KVM_REG_ARM64_SYSREG_CRM_SHIFT;
	unsigned index = INDEX(crm, (unsigned)(kvm_id & KVM_REG_ARM64_SYSREG_OP2_MASK));
	if (index >= A64_N_ID_REGS || a64_id_reg(index) != kvm_id)
		return false;
	*ret_index = index;
	return true;
}

const char *a64_id_name(unsigned index, char text[32])
{
	for (size_t i = 0; i < MV_ARRAY_LEN(reg_names); i++)
		if (reg_names[i].index == index)
			return reg_names[i].name;
	snprintf(text, 32, "S3_0_C0_C%u_%u", index / 8, index % 8);
	return text;
}

void a64_features(const struct a64_id_regs *guest, struct mv_buf *out)
{
	for (int i = 0; i < N_FEATURES; i++)
		if (has(guest->value[features[i].reg], &features[i]))
			cpu_report_add(out, "%s", features[i].name);
}

unsigned a64_field_missing(unsigned index, unsigned shift, uint64_t guest, uint64_t here, struct mv_buf *out)
{
	char text[32];
	unsigned n = 0;
	for (int i = 0; i < N_FEATURES; i++) {
		const struct feature *f = &features[i];
		if (f->reg != index || f->shift != shift || !has(guest, f) || has(here, f))
			continue;
		cpu_report_add(out, "%s", f->name);
		n++;
	}
	if (n)
		return n;
	cpu_report_add(out, "%s[%u:%u] = %u (here: %u)", a64_id_name(index, text), shift + 3, shift,
		       field(guest, shift), field(here, shift));
	return 1;
}

// --- masking ----------------------------------------------------------------------------
static int feature_index(const char *name)
{
	for (int i = 0; i < N_FEATURES; i++)
		if (!strcmp(features[i].name, name))
			return i;
	return NONE;
}

static bool required(uint8_t level, uint32_t template)
{
	return level == BASE || (level == V8_2 && template == VMCFG_CPU_ARM8_2);
}

static int check_template(const struct a64_id_regs *regs, uint32_t template, struct mv_err *err)
{
	MV_BUF lack = { 0 };
	if (template != VMCFG_CPU_ARM8 && template != VMCFG_CPU_ARM8_2)
		return mv_fail(err, EINVAL, "cpu.template: %s is for x86-64; on arm64 there are %s and %s",
			       vmcfg_cpu_templates[template], vmcfg_cpu_templates[VMCFG_CPU_ARM8],
			       vmcfg_cpu_templates[VMCFG_CPU_ARM8_2]);
	for (int i = 0; i < N_FEATURES; i++)
		if (required(features[i].level, template) && !has(regs->value[features[i].reg], &features[i]))
			cpu_report_add(&lack, "%s", features[i].name);
	return lack.len ? mv_fail(err, ENOTSUP,
				  "cpu.template %s needs what this host's KVM does not give: %.*s",
				  vmcfg_cpu_templates[template], (int)lack.len, (const char *)lack.p)
			: 0;
}

static bool depends(const struct feature *f, const struct feature *on)
{
	bool above = f->reg == on->reg && f->shift == on->shift && f->min > on->min;
	return above || !strcmp(f->needs, on->name);
}

// Which features go: by the mask, and what needs them.
static int choose(const struct vmcfg_cpu *mask, bool ret_gone[N_FEATURES], struct mv_err *err)
{
	for (int i = 0; i < N_FEATURES; i++)
		ret_gone[i] = mask->template != VMCFG_CPU_HOST && features[i].level != KEEP &&
			      !required(features[i].level, mask->template);
	for (uint32_t k = 0; k < mask->n_disable; k++) {
		int i = feature_index(mask->disable[k]);
		if (i == NONE)
			return mv_fail(err, EINVAL, "cpu.disable: there is no feature \"%s\"",
				       mask->disable[k]);
		if (features[i].level == BASE)
			return mv_fail(err, EINVAL, "cpu.disable: no arm64 kernel of today runs without %s",
				       mask->disable[k]);
		ret_gone[i] = true;
	}
	for (bool again = true; again;) {
		again = false;
		for (int i = 0; i < N_FEATURES; i++)
			for (int k = 0; k < N_FEATURES; k++)
				if (!ret_gone[i] && ret_gone[k] && depends(&features[i], &features[k]))
					ret_gone[i] = again = true;
	}
	return 0;
}

static void lower(uint64_t *reg, unsigned shift, uint64_t to)
{
	*reg = (*reg & ~(FIELD << shift)) | to << shift;
}

static bool has_name(unsigned index, unsigned shift)
{
	for (int i = 0; i < N_FEATURES; i++)
		if (features[i].reg == index && features[i].shift == shift)
			return true;
	return false;
}

// The field's value without the feature: of the next lesser one, or none. What lies between is nobody's.
static uint64_t without(const struct feature *f)
{
	uint64_t v = 0;
	for (int i = 0; i < N_FEATURES; i++)
		if (features[i].reg == f->reg && features[i].shift == f->shift && features[i].min < f->min &&
		    features[i].min > v)
			v = features[i].min;
	return v;
}

int a64_features_mask(struct a64_id_regs *regs, const struct vmcfg_cpu *mask, struct mv_err *err)
{
	bool gone[N_FEATURES], templated = mask->template != VMCFG_CPU_HOST;
	int r = templated ? check_template(regs, mask->template, err) : 0;
	r = r ? r : choose(mask, gone, err);
	if (r)
		return r;
	for (int i = 0; i < N_FEATURES; i++)
		if (gone[i] && has(regs->value[features[i].reg], &features[i]))
			lower(&regs->value[features[i].reg], features[i].shift, without(&features[i]));
	for (size_t k = 0; templated && k < sizeof of_templates; k++)
		for (unsigned shift = 0; shift < 64; shift += 4)
			if (!has_name(of_templates[k], shift))
				lower(&regs->value[of_templates[k]], shift, 0);
	return 0;
}
