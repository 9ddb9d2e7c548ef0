// SPDX-License-Identifier: Apache-2.0
// Firecracker's static CPU templates, as they are in its 1.17: bits of CPUID and of MSRs with their values,
// and on which CPUs it applies them (its docs/cpu_templates/cpu-templates.md).
#include <stdio.h>
#include <string.h>

#include "api/fc/cpu.h"
#include "microvm/base/util.h"

// In the order of enum fc_template.
enum { C3 = 1 << FC_TEMPLATE_C3, T2 = 1 << FC_TEMPLATE_T2, T2S = 1 << FC_TEMPLATE_T2S };
enum { T2CL = 1 << FC_TEMPLATE_T2CL, T2A = 1 << FC_TEMPLATE_T2A };
enum { ALL_T2 = T2 | T2S | T2CL | T2A, ALL = ALL_T2 | C3 };

// Of the bits in mask: value.
static const struct {
	uint32_t of, leaf, subleaf, reg, mask, value;
} cpuid[] = {
	{ ALL_T2, 0x1, 0, VMCFG_EAX, 0x0fff3fff, 0x000306f2 }, // family, model, stepping: Haswell
	{ C3, 0x1, 0, VMCFG_EAX, 0x0fff3fff, 0x000306e4 },     // Ivy Bridge
	{ ALL_T2, 0x1, 0, VMCFG_ECX, 0x0004cdfc, 0 },
	{ C3, 0x1, 0, VMCFG_ECX, 0x0040dd3c, 0 },
	{ ALL_T2, 0x1, 0, VMCFG_EDX, 0xe8641080, 0x00001080 }, // MCE and MTRR are there
	{ C3, 0x1, 0, VMCFG_EDX, 0xa8641080, 0x00001080 },
	{ ALL_T2, 0x7, 0, VMCFG_EBX, 0xffefda14, 0x00000200 }, // and ERMS
	{ C3, 0x7, 0, VMCFG_EBX, 0xffafdd3c, 0 },
	{ ALL_T2, 0x7, 0, VMCFG_ECX, 0x40415f5e, 0 },
	{ C3, 0x7, 0, VMCFG_ECX, 0x4041481e, 0 },
	{ ALL_T2, 0x7, 0, VMCFG_EDX, 0x0000011c, 0 },
	{ C3, 0x7, 0, VMCFG_EDX, 0x0000000c, 0 },
	{ ALL, 0xd, 0, VMCFG_EAX, 0x000002f8, 0 }, // XSAVE: no MPX, AVX-512, PKRU
	{ ALL, 0xd, 1, VMCFG_EAX, 0x0000000e, 0 }, // only XSAVEOPT
	{ T2 | T2S, 0x80000001, 0, VMCFG_ECX, 0x20000100, 0 },
	{ T2CL, 0x80000001, 0, VMCFG_ECX, 0x200001c0, 0 },
	{ T2A, 0x80000001, 0, VMCFG_ECX, 0x200001c4, 0 },
	{ C3, 0x80000001, 0, VMCFG_ECX, 0x00000120, 0 },
	{ T2 | T2S | C3, 0x80000001, 0, VMCFG_EDX, 0x04000000, 0 }, // no pages of 1 GiB
	{ T2CL, 0x80000001, 0, VMCFG_EDX, 0x07c00000, 0 },
	{ T2A, 0x80000001, 0, VMCFG_EDX, 0x06400000, 0 },
	{ T2 | T2S | T2CL, 0x80000008, 0, VMCFG_EBX, 0x00000200, 0 }, // no WBNOINVD
	{ T2A, 0x80000008, 0, VMCFG_EBX, 0x001c0205, 0x001c0004 },
};

#define ARCH_CAPABILITIES 0x10a
static const struct {
	uint32_t of, index;
	uint64_t mask, value;
} msr[] = {
	{ T2S, ARCH_CAPABILITIES, ~0ull, 0x0c0a0c4c },
	{ T2CL, ARCH_CAPABILITIES, 0xffffffffe2f51e00, 0 },
};

// By eax of leaf 1 without the processor's type.
#define VERSION_MASK 0x0fff0fffu
static const struct {
	uint32_t of, version;
	const char *vendor, *name;
} cpus[] = {
	{ C3 | T2 | T2S, 0x00050654, "GenuineIntel", "Skylake" },
	{ C3 | T2 | T2S | T2CL, 0x00050657, "GenuineIntel", "Cascade Lake" },
	{ C3 | T2 | T2CL, 0x000606a6, "GenuineIntel", "Ice Lake" },
	{ T2A, 0x00a00f11, "AuthenticAMD", "Milan" },
};

int fc_cpu_template_check(enum fc_template t, const char *vendor, uint32_t version, struct api_err *err)
{
	char names[80] = "";
	const char *wanted = "";
	for (size_t i = 0; i < MV_ARRAY_LEN(cpus); i++) {
		if (!(cpus[i].of >> t & 1))
			continue;
		if (cpus[i].version == (version & VERSION_MASK) && !strcmp(cpus[i].vendor, vendor))
			return 0;
		size_t at = strlen(names);
		snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", cpus[i].name);
		wanted = cpus[i].vendor;
	}
	return api_fail(
		err, API_INVALID_VALUE,
		"cpu_template: %s is for %s (%s); this host's CPU is %s, family/model/stepping 0x%x. PUT "
		"/cpu-config sets any bits, and x86-64-v2 and x86-64-v3 are for all",
		fc_template_words[t], wanted, names, vendor, version & VERSION_MASK);
}

void fc_cpu_template_fill(enum fc_template t, struct vmcfg_cpu *c)
{
	_Static_assert(MV_ARRAY_LEN(cpuid) <= VMCFG_MAX_CPUID && MV_ARRAY_LEN(msr) <= VMCFG_MAX_MSRS,
		       "they fit");
	for (size_t i = 0; i < MV_ARRAY_LEN(cpuid); i++)
		if (cpuid[i].of >> t & 1)
			c->cpuid[c->n_cpuid++] =
				(struct vmcfg_cpuid){ .leaf = cpuid[i].leaf,
						      .subleaf = cpuid[i].subleaf,
						      .reg = cpuid[i].reg,
						      .clear = cpuid[i].mask & ~cpuid[i].value,
						      .set = cpuid[i].value };
	for (size_t i = 0; i < MV_ARRAY_LEN(msr); i++)
		if (msr[i].of >> t & 1)
			c->msr[c->n_msrs++] = (struct vmcfg_msr){ .index = msr[i].index,
								  .clear = msr[i].mask & ~msr[i].value,
								  .set = msr[i].value };
	c->present = true;
}
