// SPDX-License-Identifier: Apache-2.0
// Sources: Intel SDM volume 2 (CPUID) and volume 1 chapter 13 (XSAVE); AMD APM volume 3
// appendix E; Linux arch/x86/include/asm/cpufeatures.h and Documentation/virt/kvm/x86/cpuid.rst;
// the levels are those of the x86-64 psABI.
#include "cpu_features.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "microvm/cpu_report.h"

enum reg { EAX, EBX, ECX, EDX };
static const char *const reg_names[] = { "eax", "ebx", "ecx", "edx" };

// The words of feature bits. `dynamic` bits follow the guest's registers or its shape, or
// repeat another word: they are not compared.
enum word {
	W1C,
	W1D,
	W6A,
	W7B,
	W7C,
	W7D,
	W71A,
	W71D,
	W72D,
	WD1A,
	WKVM,
	WX1C,
	WX1D,
	WX7D,
	WX8B,
	WX21A,
	WX21C,
};
#define AMD_REPEATED 0x0183f3ffu // bits of 0x80000001 edx that are those of leaf 1
static const struct {
	uint32_t leaf, index, dynamic;
	uint8_t reg;
} words[] = {
	[W1C] = { 0x1, 0, 1u << 27 | 1u << 31, ECX }, // OSXSAVE, hypervisor
	[W1D] = { 0x1, 0, 1u << 28, EDX },            // HTT
	[W6A] = { 0x6, 0, 0, EAX },
	[W7B] = { 0x7, 0, 0, EBX },
	[W7C] = { 0x7, 0, 1u << 4, ECX }, // OSPKE
	[W7D] = { 0x7, 0, 0, EDX },
	[W71A] = { 0x7, 1, 0, EAX },
	[W71D] = { 0x7, 1, 0, EDX },
	[W72D] = { 0x7, 2, 0, EDX },
	[WD1A] = { 0xd, 1, 0, EAX },
	[WKVM] = { 0x40000001, 0, 0, EAX },
	[WX1C] = { 0x80000001, 0, 0, ECX },
	[WX1D] = { 0x80000001, 0, AMD_REPEATED, EDX },
	[WX7D] = { 0x80000007, 0, 0, EDX },
	[WX8B] = { 0x80000008, 0, 0, EBX },
	[WX21A] = { 0x80000021, 0, 0, EAX },
	[WX21C] = { 0x80000021, 0, 0, ECX },
};

// What a template does with a feature.
enum level {
	DROP, // not there: hosts differ in it
	KEEP, // there when the host has it: emulated by KVM, or on every host of today
	BASE, // must be there, as in BASE, V2 and V3 of the psABI
	V2,
	V3,
};

// `needs`: goes when that one goes.
static const struct feature {
	uint8_t word, bit, level;
	char name[22], needs[12]; // no pointers: each VM process would have a copy of the page, relocated
} features[] = {
	{ W1C, 0, V2, "pni", "sse2" },
	{ W1C, 1, DROP, "pclmulqdq", "sse2" },
	{ W1C, 3, DROP, "monitor", "" },
	{ W1C, 5, DROP, "vmx", "" },
	{ W1C, 9, V2, "ssse3", "pni" },
	{ W1C, 12, V3, "fma", "avx" },
	{ W1C, 13, V2, "cx16", "" },
	{ W1C, 15, DROP, "pdcm", "" },
	{ W1C, 17, DROP, "pcid", "" },
	{ W1C, 19, V2, "sse4_1", "ssse3" },
	{ W1C, 20, V2, "sse4_2", "sse4_1" },
	{ W1C, 21, KEEP, "x2apic", "" },
	{ W1C, 22, V3, "movbe", "" },
	{ W1C, 23, V2, "popcnt", "" },
	{ W1C, 24, KEEP, "tsc_deadline_timer", "" },
	{ W1C, 25, DROP, "aes", "sse2" },
	{ W1C, 26, V3, "xsave", "" },
	{ W1C, 27, KEEP, "osxsave", "xsave" },
	{ W1C, 28, V3, "avx", "xsave" },
	{ W1C, 29, V3, "f16c", "avx" },
	{ W1C, 30, DROP, "rdrand", "" },
	{ W1C, 31, KEEP, "hypervisor", "" },

	{ W1D, 0, BASE, "fpu", "" },
	{ W1D, 1, KEEP, "vme", "" },
	{ W1D, 2, KEEP, "de", "" },
	{ W1D, 3, BASE, "pse", "" },
	{ W1D, 4, BASE, "tsc", "" },
	{ W1D, 5, BASE, "msr", "" },
	{ W1D, 6, BASE, "pae", "" },
	{ W1D, 7, KEEP, "mce", "" },
	{ W1D, 8, BASE, "cx8", "" },
	{ W1D, 9, BASE, "apic", "" },
	{ W1D, 11, KEEP, "sep", "" },
	{ W1D, 12, KEEP, "mtrr", "" },
	{ W1D, 13, BASE, "pge", "" },
	{ W1D, 14, KEEP, "mca", "" },
	{ W1D, 15, BASE, "cmov", "" },
	{ W1D, 16, KEEP, "pat", "" },
	{ W1D, 17, KEEP, "pse36", "" },
	{ W1D, 19, KEEP, "clflush", "" },
	{ W1D, 23, BASE, "mmx", "" },
	{ W1D, 24, BASE, "fxsr", "" },
	{ W1D, 25, BASE, "sse", "" },
	{ W1D, 26, BASE, "sse2", "" },
	{ W1D, 27, DROP, "ss", "" },
	{ W1D, 28, KEEP, "ht", "" },

	{ W6A, 2, KEEP, "arat", "" },

	{ W7B, 0, DROP, "fsgsbase", "" },
	{ W7B, 1, KEEP, "tsc_adjust", "" },
	{ W7B, 2, DROP, "sgx", "" },
	{ W7B, 3, V3, "bmi1", "" },
	{ W7B, 4, DROP, "hle", "" },
	{ W7B, 5, V3, "avx2", "avx" },
	{ W7B, 6, DROP, "fdp_excptn_only", "" },
	{ W7B, 7, DROP, "smep", "" },
	{ W7B, 8, V3, "bmi2", "" },
	{ W7B, 9, DROP, "erms", "" },
	{ W7B, 10, DROP, "invpcid", "" },
	{ W7B, 11, DROP, "rtm", "" },
	{ W7B, 14, DROP, "mpx", "xsave" },
	{ W7B, 16, DROP, "avx512f", "avx2" },
	{ W7B, 17, DROP, "avx512dq", "avx512f" },
	{ W7B, 18, DROP, "rdseed", "" },
	{ W7B, 19, DROP, "adx", "" },
	{ W7B, 20, DROP, "smap", "" },
	{ W7B, 21, DROP, "avx512ifma", "avx512f" },
	{ W7B, 23, DROP, "clflushopt", "" },
	{ W7B, 24, DROP, "clwb", "" },
	{ W7B, 25, DROP, "intel_pt", "" },
	{ W7B, 26, DROP, "avx512pf", "avx512f" },
	{ W7B, 27, DROP, "avx512er", "avx512f" },
	{ W7B, 28, DROP, "avx512cd", "avx512f" },
	{ W7B, 29, DROP, "sha_ni", "sse2" },
	{ W7B, 30, DROP, "avx512bw", "avx512f" },
	{ W7B, 31, DROP, "avx512vl", "avx512f" },

	{ W7C, 1, DROP, "avx512vbmi", "avx512bw" },
	{ W7C, 2, DROP, "umip", "" },
	{ W7C, 3, DROP, "pku", "xsave" },
	{ W7C, 4, KEEP, "ospke", "pku" },
	{ W7C, 5, DROP, "waitpkg", "" },
	{ W7C, 6, DROP, "avx512_vbmi2", "avx512bw" },
	{ W7C, 7, DROP, "shstk", "xsaves" },
	{ W7C, 8, DROP, "gfni", "sse2" },
	{ W7C, 9, DROP, "vaes", "avx" },
	{ W7C, 10, DROP, "vpclmulqdq", "avx" },
	{ W7C, 11, DROP, "avx512_vnni", "avx512f" },
	{ W7C, 12, DROP, "avx512_bitalg", "avx512f" },
	{ W7C, 14, DROP, "avx512_vpopcntdq", "avx512f" },
	{ W7C, 16, DROP, "la57", "" },
	{ W7C, 22, DROP, "rdpid", "" },
	{ W7C, 24, DROP, "bus_lock_detect", "" },
	{ W7C, 25, DROP, "cldemote", "" },
	{ W7C, 27, DROP, "movdiri", "" },
	{ W7C, 28, DROP, "movdir64b", "" },
	{ W7C, 29, DROP, "enqcmd", "" },
	{ W7C, 30, DROP, "sgx_lc", "" },
	{ W7C, 31, DROP, "pks", "" },

	{ W7D, 2, DROP, "avx512_4vnniw", "avx512f" },
	{ W7D, 3, DROP, "avx512_4fmaps", "avx512f" },
	{ W7D, 4, DROP, "fsrm", "" },
	{ W7D, 8, DROP, "avx512_vp2intersect", "avx512f" },
	{ W7D, 10, DROP, "md_clear", "" },
	{ W7D, 14, DROP, "serialize", "" },
	{ W7D, 16, DROP, "tsxldtrk", "" },
	{ W7D, 19, DROP, "arch_lbr", "" },
	{ W7D, 20, DROP, "ibt", "" },
	{ W7D, 22, DROP, "amx_bf16", "amx_tile" },
	{ W7D, 23, DROP, "avx512_fp16", "avx512bw" },
	{ W7D, 24, DROP, "amx_tile", "xsave" },
	{ W7D, 25, DROP, "amx_int8", "amx_tile" },
	{ W7D, 26, DROP, "spec_ctrl", "" },
	{ W7D, 27, DROP, "intel_stibp", "" },
	{ W7D, 28, DROP, "flush_l1d", "" },
	{ W7D, 29, DROP, "arch_capabilities", "" },
	{ W7D, 30, DROP, "core_capabilities", "" },
	{ W7D, 31, DROP, "spec_ctrl_ssbd", "" },

	{ W71A, 0, DROP, "sha512", "avx2" },
	{ W71A, 1, DROP, "sm3", "avx" },
	{ W71A, 2, DROP, "sm4", "avx2" },
	{ W71A, 4, DROP, "avx_vnni", "avx2" },
	{ W71A, 5, DROP, "avx512_bf16", "avx512bw" },
	{ W71A, 6, DROP, "lass", "" },
	{ W71A, 7, DROP, "cmpccxadd", "" },
	{ W71A, 10, DROP, "fzrm", "" },
	{ W71A, 11, DROP, "fsrs", "" },
	{ W71A, 12, DROP, "fsrc", "" },
	{ W71A, 17, DROP, "fred", "" },
	{ W71A, 18, DROP, "lkgs", "" },
	{ W71A, 19, DROP, "wrmsrns", "" },
	{ W71A, 21, DROP, "amx_fp16", "amx_tile" },
	{ W71A, 23, DROP, "avx_ifma", "avx2" },
	{ W71A, 26, DROP, "lam", "" },

	{ W71D, 4, DROP, "avx_vnni_int8", "avx2" },
	{ W71D, 5, DROP, "avx_ne_convert", "avx2" },
	{ W71D, 8, DROP, "amx_complex", "amx_tile" },
	{ W71D, 10, DROP, "avx_vnni_int16", "avx2" },
	{ W71D, 14, DROP, "prefetchi", "" },
	{ W71D, 19, DROP, "avx10", "avx512f" },
	{ W71D, 21, DROP, "apx_f", "xsave" },

	{ W72D, 0, DROP, "intel_psfd", "" },
	{ W72D, 1, DROP, "ipred_ctrl", "" },
	{ W72D, 2, DROP, "rrsba_ctrl", "" },
	{ W72D, 3, DROP, "ddpd_u", "" },
	{ W72D, 4, DROP, "bhi_ctrl", "" },
	{ W72D, 5, DROP, "mcdt_no", "" },

	{ WD1A, 0, DROP, "xsaveopt", "xsave" },
	{ WD1A, 1, DROP, "xsavec", "xsave" },
	{ WD1A, 2, DROP, "xgetbv1", "xsave" },
	{ WD1A, 3, DROP, "xsaves", "xsavec" },
	{ WD1A, 4, DROP, "xfd", "xsave" },

	{ WKVM, 0, KEEP, "kvmclock_old", "" },
	{ WKVM, 1, KEEP, "kvm_nopiodelay", "" },
	{ WKVM, 3, KEEP, "kvmclock", "" },
	{ WKVM, 4, KEEP, "kvm_asyncpf", "" },
	{ WKVM, 5, KEEP, "kvm_steal_time", "" },
	{ WKVM, 6, KEEP, "kvm_pv_eoi", "" },
	{ WKVM, 7, KEEP, "kvm_pv_unhalt", "" },
	{ WKVM, 9, KEEP, "kvm_pv_tlb_flush", "" },
	{ WKVM, 10, KEEP, "kvm_asyncpf_vmexit", "" },
	{ WKVM, 11, KEEP, "kvm_pv_ipi", "" },
	{ WKVM, 12, KEEP, "kvm_poll_control", "" },
	{ WKVM, 13, KEEP, "kvm_pv_sched_yield", "" },
	{ WKVM, 14, KEEP, "kvm_asyncpf_int", "" },
	{ WKVM, 15, KEEP, "kvm_msi_ext_dest_id", "" },
	{ WKVM, 16, DROP, "kvm_hc_map_gpa_range", "" },
	{ WKVM, 17, DROP, "kvm_migration_control", "" },
	{ WKVM, 24, KEEP, "kvmclock_stable", "" },

	{ WX1C, 0, V2, "lahf_lm", "" },
	{ WX1C, 1, KEEP, "cmp_legacy", "" },
	{ WX1C, 2, DROP, "svm", "" },
	{ WX1C, 3, DROP, "extapic", "" },
	{ WX1C, 4, DROP, "cr8_legacy", "" },
	{ WX1C, 5, V3, "abm", "" },
	{ WX1C, 6, DROP, "sse4a", "sse2" },
	{ WX1C, 7, DROP, "misalignsse", "sse2" },
	{ WX1C, 8, DROP, "3dnowprefetch", "" },
	{ WX1C, 9, DROP, "osvw", "" },
	{ WX1C, 11, DROP, "xop", "avx" },
	{ WX1C, 16, DROP, "fma4", "avx" },
	{ WX1C, 17, DROP, "tce", "" },
	{ WX1C, 21, DROP, "tbm", "" },
	{ WX1C, 22, KEEP, "topoext", "" },
	{ WX1C, 23, DROP, "perfctr_core", "" },
	{ WX1C, 29, DROP, "mwaitx", "" },

	{ WX1D, 11, BASE, "syscall", "" },
	{ WX1D, 20, BASE, "nx", "" },
	{ WX1D, 22, DROP, "mmxext", "" },
	{ WX1D, 25, DROP, "fxsr_opt", "" },
	{ WX1D, 26, DROP, "pdpe1gb", "" },
	{ WX1D, 27, KEEP, "rdtscp", "" },
	{ WX1D, 29, BASE, "lm", "" },

	{ WX7D, 8, KEEP, "invtsc", "" },

	{ WX8B, 0, DROP, "clzero", "" },
	{ WX8B, 2, DROP, "xsaveerptr", "xsave" },
	{ WX8B, 4, DROP, "rdpru", "" },
	{ WX8B, 9, DROP, "wbnoinvd", "" },
	{ WX8B, 12, DROP, "amd_ibpb", "" },
	{ WX8B, 14, DROP, "amd_ibrs", "" },
	{ WX8B, 15, DROP, "amd_stibp", "" },
	{ WX8B, 17, DROP, "stibp_always_on", "" },
	{ WX8B, 19, DROP, "ibrs_same_mode", "" },
	{ WX8B, 24, DROP, "amd_ssbd", "" },
	{ WX8B, 25, DROP, "virt_ssbd", "" },
	{ WX8B, 26, DROP, "amd_ssb_no", "" },
	{ WX8B, 28, DROP, "amd_psfd", "" },
	{ WX8B, 29, DROP, "btc_no", "" },
	{ WX8B, 30, DROP, "amd_ibpb_ret", "" },

	{ WX21A, 0, DROP, "no_nested_data_bp", "" },
	{ WX21A, 1, DROP, "fs_gs_base_ns", "" },
	{ WX21A, 2, DROP, "lfence_rdtsc", "" },
	{ WX21A, 5, DROP, "verw_clear", "" },
	{ WX21A, 6, DROP, "null_sel_clr_base", "" },
	{ WX21A, 8, DROP, "autoibrs", "" },
	{ WX21A, 9, DROP, "no_smm_ctl_msr", "" },
	{ WX21A, 20, DROP, "amd_prefetchi", "" },
	{ WX21A, 27, DROP, "sbpb", "" },
	{ WX21A, 28, DROP, "ibpb_brtype", "" },
	{ WX21A, 29, DROP, "srso_no", "" },
	{ WX21A, 30, DROP, "srso_user_kernel_no", "" },
	{ WX21C, 1, DROP, "tsa_sq_no", "" },
	{ WX21C, 2, DROP, "tsa_l1_no", "" },
};
enum { N_FEATURES = MV_ARRAY_LEN(features), N_WORDS = MV_ARRAY_LEN(words), NONE = -1 };

// XSAVE components and the features that use them. A component that no listed feature
// uses is not in a template.
static const struct {
	uint8_t component;
	const char *name, *feature, *or_feature;
} xstates[] = {
	{ 2, "ymm", "avx", NULL },
	{ 3, "bndregs", "mpx", NULL },
	{ 4, "bndcsr", "mpx", NULL },
	{ 5, "opmask", "avx512f", NULL },
	{ 6, "zmm-high256", "avx512f", NULL },
	{ 7, "zmm16-31", "avx512f", NULL },
	{ 8, "pt", "intel_pt", NULL },
	{ 9, "pkru", "pku", NULL },
	{ 10, "pasid", "enqcmd", NULL },
	{ 11, "cet-user", "shstk", "ibt" },
	{ 12, "cet-kernel", "shstk", "ibt" },
	{ 15, "lbr", "arch_lbr", NULL },
	{ 17, "tile-config", "amx_tile", NULL },
	{ 18, "tile-data", "amx_tile", NULL },
	{ 19, "apx", "apx_f", NULL },
};
#define X87_SSE 3u
#define XSAVE_LEGACY_BYTES 576u // legacy region and header
#define MAX_XSTATE 63

struct kvm_cpuid_entry2 *x86_cpuid_find(struct x86_cpuid *list, uint32_t leaf, uint32_t index)
{
	for (uint32_t i = 0; i < list->head.nent; i++) {
		struct kvm_cpuid_entry2 *e = &list->entry[i];
		if (e->function == leaf &&
		    (e->index == index || !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return e;
	}
	return NULL;
}

static struct kvm_cpuid_entry2 lookup(const struct x86_cpuid *list, uint32_t leaf, uint32_t index)
{
	const struct kvm_cpuid_entry2 *e = x86_cpuid_find((struct x86_cpuid *)(uintptr_t)list, leaf, index);
	return e ? *e : (struct kvm_cpuid_entry2){ 0 };
}

uint32_t *x86_cpuid_reg(struct kvm_cpuid_entry2 *e, unsigned reg)
{
	uint32_t *const regs[] = { &e->eax, &e->ebx, &e->ecx, &e->edx };
	return regs[reg];
}

static void read_words(const struct x86_cpuid *list, uint32_t ret_bits[N_WORDS])
{
	for (unsigned w = 0; w < N_WORDS; w++) {
		struct kvm_cpuid_entry2 e = lookup(list, words[w].leaf, words[w].index);
		ret_bits[w] = *x86_cpuid_reg(&e, words[w].reg);
	}
}

static int feature_index(const char *name)
{
	for (int i = 0; i < N_FEATURES; i++)
		if (!strcmp(features[i].name, name))
			return i;
	return NONE;
}

static const char *feature_name(unsigned word, unsigned bit)
{
	for (int i = 0; i < N_FEATURES; i++)
		if (features[i].word == word && features[i].bit == bit)
			return features[i].name;
	return NULL;
}

void x86_features(const struct x86_cpuid *guest, struct mv_buf *out)
{
	uint32_t bits[N_WORDS];
	read_words(guest, bits);
	for (int i = 0; i < N_FEATURES; i++)
		if (bits[features[i].word] >> features[i].bit & 1)
			cpu_report_add(out, "%s", features[i].name);
}

// --- comparing --------------------------------------------------------------------------
static uint64_t xcr0_of(const struct x86_cpuid *list)
{
	struct kvm_cpuid_entry2 e = lookup(list, 0xd, 0);
	return e.eax | (uint64_t)e.edx << 32;
}

static uint64_t xss_of(const struct x86_cpuid *list)
{
	struct kvm_cpuid_entry2 e = lookup(list, 0xd, 1);
	return e.ecx | (uint64_t)e.edx << 32;
}

static const char *xstate_name(unsigned component, char text[24])
{
	for (size_t i = 0; i < MV_ARRAY_LEN(xstates); i++)
		if (xstates[i].component == component)
			return xstates[i].name;
	snprintf(text, 24, "%u", component);
	return text;
}

static unsigned compare_xstate(const struct x86_cpuid *guest, const struct x86_cpuid *host,
			       struct mv_buf *out)
{
	uint64_t want = xcr0_of(guest) | xss_of(guest), have = xcr0_of(host) | xss_of(host);
	unsigned n = 0;
	char text[24];
	for (unsigned c = 2; c <= MAX_XSTATE; c++) {
		if (!(want >> c & 1))
			continue;
		struct kvm_cpuid_entry2 g = lookup(guest, 0xd, c), h = lookup(host, 0xd, c);
		if (!(have >> c & 1)) {
			cpu_report_add(out, "XSAVE component %s", xstate_name(c, text));
			n++;
		} else if (g.eax != h.eax || g.ebx != h.ebx) {
			cpu_report_add(out, "XSAVE component %s of %u bytes at %u (here: %u at %u)",
				       xstate_name(c, text), g.eax, g.ebx, h.eax, h.ebx);
			n++;
		}
	}
	return n;
}

void x86_cpuid_vendor(const struct x86_cpuid *list, char ret_vendor[13])
{
	struct kvm_cpuid_entry2 e = lookup(list, 0, 0);
	memcpy(ret_vendor, &e.ebx, 4);
	memcpy(ret_vendor + 4, &e.edx, 4);
	memcpy(ret_vendor + 8, &e.ecx, 4);
	ret_vendor[12] = 0;
	for (int i = 0; i < 12; i++) // from a file
		if (ret_vendor[i] < 0x20 || ret_vendor[i] > 0x7e)
			ret_vendor[i] = '?';
}

unsigned x86_features_missing(const struct x86_cpuid *guest, const struct x86_cpuid *host, struct mv_buf *out)
{
	uint32_t want[N_WORDS], have[N_WORDS];
	unsigned n = 0;
	char vendor[13], ours[13];

	x86_cpuid_vendor(guest, vendor);
	x86_cpuid_vendor(host, ours);
	if (strcmp(vendor, ours)) {
		cpu_report_add(out, "vendor %s (here: %s)", vendor, ours);
		n++;
	}
	read_words(guest, want);
	read_words(host, have);
	for (unsigned w = 0; w < N_WORDS; w++)
		for (uint32_t lack = want[w] & ~have[w] & ~words[w].dynamic; lack; lack &= lack - 1, n++) {
			unsigned bit = (unsigned)__builtin_ctz(lack);
			const char *name = feature_name(w, bit);
			if (name)
				cpu_report_add(out, "%s", name);
			else if (words[w].index)
				cpu_report_add(out, "leaf 0x%x.%u %s bit %u", words[w].leaf, words[w].index,
					       reg_names[words[w].reg], bit);
			else
				cpu_report_add(out, "leaf 0x%x %s bit %u", words[w].leaf,
					       reg_names[words[w].reg], bit);
		}
	n += compare_xstate(guest, host, out);
	uint32_t bits = lookup(guest, 0x80000008, 0).eax & 0xff, our = lookup(host, 0x80000008, 0).eax & 0xff;
	if (bits > our) {
		cpu_report_add(out, "%u physical address bits (here: %u)", bits, our);
		n++;
	}
	return n;
}

void x86_features_add(struct x86_cpuid *list, const struct x86_cpuid *more)
{
	uint32_t bits[N_WORDS];
	read_words(more, bits);
	for (unsigned w = 0; w < N_WORDS; w++) {
		struct kvm_cpuid_entry2 *e = x86_cpuid_find(list, words[w].leaf, words[w].index);
		if (e)
			*x86_cpuid_reg(e, words[w].reg) |= bits[w];
	}
}

// --- bits by number -----------------------------------------------------------------------
int x86_cpuid_modify(struct x86_cpuid *list, const struct vmcfg_cpu *cpu, struct mv_err *err)
{
	for (uint32_t i = 0; i < cpu->n_cpuid; i++) {
		const struct vmcfg_cpuid *m = &cpu->cpuid[i];
		struct kvm_cpuid_entry2 *e = x86_cpuid_find(list, m->leaf, m->subleaf);
		if (!e)
			return mv_fail(err, ENOTSUP,
				       "cpu: this host's KVM does not have CPUID leaf 0x%x, subleaf 0x%x",
				       m->leaf, m->subleaf);
		uint32_t *reg = x86_cpuid_reg(e, m->reg);
		if (m->leaf != 0 || m->reg == VMCFG_EAX)
			*reg = (*reg & ~m->clear) | m->set;
	}
	return 0;
}

void x86_cpuid_unset(struct x86_cpuid *guest, const struct vmcfg_cpu *cpu)
{
	for (uint32_t i = 0; i < cpu->n_cpuid; i++) {
		const struct vmcfg_cpuid *m = &cpu->cpuid[i];
		struct kvm_cpuid_entry2 *e = x86_cpuid_find(guest, m->leaf, m->subleaf);
		if (e && m->leaf != 0)
			*x86_cpuid_reg(e, m->reg) &= ~m->set;
	}
}

// --- masking ----------------------------------------------------------------------------
static bool in_template(uint8_t level, uint32_t template)
{
	return template == VMCFG_CPU_HOST || level == KEEP || level == BASE || level == V2 ||
	       (level == V3 && template == VMCFG_CPU_V3);
}

static bool required(uint8_t level, uint32_t template)
{
	return template != VMCFG_CPU_HOST && level != KEEP && in_template(level, template) && level != DROP;
}

static bool present(const uint32_t bits[N_WORDS], const bool gone[N_FEATURES], const char *name)
{
	int i = feature_index(name);
	return i != NONE && !gone[i] && bits[features[i].word] >> features[i].bit & 1;
}

static int check_template(const uint32_t bits[N_WORDS], uint32_t template, struct mv_err *err)
{
	MV_BUF lack = { 0 };
	for (int i = 0; i < N_FEATURES; i++)
		if (required(features[i].level, template) && !(bits[features[i].word] >> features[i].bit & 1))
			cpu_report_add(&lack, "%s", features[i].name);
	return lack.len ? mv_fail(err, ENOTSUP,
				  "cpu.template %s needs what this host's KVM does not give: %.*s",
				  vmcfg_cpu_templates[template], (int)lack.len, (const char *)lack.p)
			: 0;
}

// Which features go: by the mask, for want of their XSAVE component, and what needs them.
static int choose(uint64_t xcr0, const struct vmcfg_cpu *mask, bool ret_gone[N_FEATURES], struct mv_err *err)
{
	for (int i = 0; i < N_FEATURES; i++)
		ret_gone[i] = !in_template(features[i].level, mask->template);
	for (uint32_t k = 0; k < mask->n_disable; k++) {
		int i = feature_index(mask->disable[k]);
		if (i == NONE)
			return mv_fail(err, EINVAL, "cpu.disable: there is no feature \"%s\"",
				       mask->disable[k]);
		if (features[i].level == BASE)
			return mv_fail(err, EINVAL, "cpu.disable: no x86-64 kernel runs without %s",
				       mask->disable[k]);
		ret_gone[i] = true;
	}
	for (size_t k = 0; k < MV_ARRAY_LEN(xstates); k++)
		if (!strcmp(xstates[k].feature, "amx_tile") && !(xcr0 >> xstates[k].component & 1))
			ret_gone[feature_index("amx_tile")] = true; // KVM tells of it without permission
	for (bool again = true; again;) {
		again = false;
		for (int i = 0; i < N_FEATURES; i++) {
			int needs = features[i].needs[0] ? feature_index(features[i].needs) : NONE;
			if (ret_gone[i] || needs == NONE || !ret_gone[needs])
				continue;
			ret_gone[i] = again = true;
		}
	}
	return 0;
}

// The components whose features are still there.
static uint64_t xstate_kept(const uint32_t bits[N_WORDS], const bool gone[N_FEATURES], bool keep_unknown)
{
	uint64_t kept = keep_unknown ? ~0ull : X87_SSE;
	for (size_t k = 0; k < MV_ARRAY_LEN(xstates); k++) {
		uint64_t bit = 1ull << xstates[k].component;
		bool used = present(bits, gone, xstates[k].feature) ||
			    (xstates[k].or_feature && present(bits, gone, xstates[k].or_feature));
		kept = used ? kept | bit : kept & ~bit;
	}
	return present(bits, gone, "xsave") ? kept : 0;
}

static void put64(uint32_t *low, uint32_t *high, uint64_t v)
{
	*low = (uint32_t)v;
	*high = (uint32_t)(v >> 32);
}

// Leaf 0xd: components, their sizes and places (SDM volume 1 section 13.2).
static void mask_xsave(struct x86_cpuid *list, uint64_t kept, bool has_xsave, bool has_xsaves)
{
	uint64_t xcr0 = xcr0_of(list) & kept, xss = has_xsaves ? xss_of(list) & kept : 0;
	uint32_t size = XSAVE_LEGACY_BYTES;
	for (uint32_t i = 0; i < list->head.nent; i++) {
		struct kvm_cpuid_entry2 *e = &list->entry[i];
		if (e->function != 0xd || (e->index < 2 && has_xsave))
			continue;
		if (e->index < 2 || e->index > MAX_XSTATE || !((xcr0 | xss) >> e->index & 1))
			e->eax = e->ebx = e->ecx = e->edx = 0;
		else if (xcr0 >> e->index & 1 && e->eax + e->ebx > size)
			size = e->eax + e->ebx;
	}
	struct kvm_cpuid_entry2 *main = x86_cpuid_find(list, 0xd, 0), *more = x86_cpuid_find(list, 0xd, 1);
	if (main && has_xsave) {
		put64(&main->eax, &main->edx, xcr0);
		main->ecx = size;
		main->ebx = XSAVE_LEGACY_BYTES; // KVM keeps it with XCR0
	}
	if (more && has_xsave)
		put64(&more->ecx, &more->edx, xss);
}

int x86_features_mask(struct x86_cpuid *list, const struct vmcfg_cpu *mask, struct mv_err *err)
{
	uint32_t bits[N_WORDS], clear[N_WORDS] = { 0 }, named[N_WORDS] = { 0 };
	bool gone[N_FEATURES], templated = mask->template != VMCFG_CPU_HOST;

	if (mask->template > VMCFG_CPU_V3)
		return mv_fail(err, EINVAL, "cpu.template: %s is for arm64; on x86-64 there are %s and %s",
			       vmcfg_cpu_templates[mask->template], vmcfg_cpu_templates[VMCFG_CPU_V2],
			       vmcfg_cpu_templates[VMCFG_CPU_V3]);
	read_words(list, bits);
	int r = check_template(bits, mask->template, err);
	if (!r)
		r = choose(xcr0_of(list), mask, gone, err);
	if (r)
		return r;
	for (int i = 0; i < N_FEATURES; i++) {
		named[features[i].word] |= 1u << features[i].bit;
		if (gone[i])
			clear[features[i].word] |= 1u << features[i].bit;
	}
	uint64_t kept = xstate_kept(bits, gone, !templated);
	for (unsigned w = 0; w < N_WORDS; w++) {
		struct kvm_cpuid_entry2 *e = x86_cpuid_find(list, words[w].leaf, words[w].index);
		if (templated)
			clear[w] |= ~named[w] & ~words[w].dynamic;
		if (w == WX1D)
			clear[w] |= clear[W1D] & AMD_REPEATED;
		if (e)
			*x86_cpuid_reg(e, words[w].reg) &= ~clear[w];
	}
	if (templated || mask->n_disable)
		mask_xsave(list, kept, present(bits, gone, "xsave"), present(bits, gone, "xsaves"));
	return 0;
}
