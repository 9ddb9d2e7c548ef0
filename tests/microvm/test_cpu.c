// SPDX-License-Identifier: Apache-2.0
// microvm/arch/x86_64/cpu_features.c and cpu_report.c: what a guest lacks on another host,
// and masks. No KVM needed.
#include "tests/t.h"

#include <errno.h>
#include <string.h>

#include "microvm/arch/x86_64/cpu_features.h"
#include "microvm/arch/x86_64/vcpu_state.h"
#include "microvm/cpu_report.h"
#include "microvm/sections.h"
#include "snapshot/format.h"

static void put(struct x86_cpuid *l, uint32_t leaf, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx,
		uint32_t edx)
{
	l->entry[l->head.nent++] = (struct kvm_cpuid_entry2){
		.function = leaf,
		.index = index,
		.flags = leaf == 7 || leaf == 0xd ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = eax,
		.ebx = ebx,
		.ecx = ecx,
		.edx = edx,
	};
}

// An Intel server with AVX-512 and PKU, as KVM would tell of it.
static void skylake(struct x86_cpuid *l)
{
	*l = (struct x86_cpuid){ 0 };
	put(l, 0, 0, 0x16, 0x756e6547, 0x6c65746e, 0x49656e69); // GenuineIntel
	put(l, 1, 0, 0x50654, 0, 0xfffa3223, 0x1f8bfbff);
	put(l, 6, 0, 4, 0, 0, 0);
	put(l, 7, 0, 1, 0xd19f47ab, 0x0000000c, 0xac000400);
	put(l, 7, 1, 0, 0, 0, 0);
	put(l, 0xd, 0, 0x2e7, 0xa88, 0xa88, 0);
	put(l, 0xd, 1, 0xf, 0xa08, 0, 0);
	put(l, 0xd, 2, 0x100, 0x240, 0, 0);
	put(l, 0xd, 5, 0x40, 0x440, 0, 0);
	put(l, 0xd, 6, 0x200, 0x480, 0, 0);
	put(l, 0xd, 7, 0x400, 0x680, 0, 0);
	put(l, 0xd, 9, 8, 0xa80, 0, 0);
	put(l, 0x40000001, 0, 0x01007efb, 0, 0, 0);
	put(l, 0x80000001, 0, 0, 0, 0x121, 0x2c100800);
	put(l, 0x80000008, 0, 0x302e, 0, 0, 0);
}

static struct x86_cpuid guest, host;

static const char *missing(unsigned count)
{
	static char text[4000];
	MV_BUF out = { 0 };
	assert_int_equal(x86_features_missing(&guest, &host, &out), count);
	assert_true(out.len < sizeof text);
	if (out.len)
		memcpy(text, out.p, out.len);
	text[out.len] = 0;
	return text;
}

static struct kvm_cpuid_entry2 *leaf(struct x86_cpuid *l, uint32_t function, uint32_t index)
{
	struct kvm_cpuid_entry2 *e = x86_cpuid_find(l, function, index);
	assert_non_null(e);
	return e;
}

static void differences_are_named(void **state)
{
	(void)state;
	skylake(&guest);
	skylake(&host);
	assert_string_equal(missing(0), "");

	leaf(&host, 7, 0)->ebx &= ~(1u << 16 | 1u << 13); // a known and an unknown one
	leaf(&guest, 7, 0)->ebx |= 1u << 13;
	leaf(&guest, 7, 1)->eax |= 1u << 31;
	leaf(&host, 0x40000001, 0)->eax &= ~(1u << 14);
	assert_string_equal(missing(4), "leaf 0x7 ebx bit 13, avx512f, leaf 0x7.1 eax bit 31, "
					"kvm_asyncpf_int");

	// A host that has more is fine, and so are bits that follow the guest's registers.
	skylake(&guest);
	skylake(&host);
	leaf(&guest, 7, 0)->ebx &= ~(1u << 16);
	leaf(&host, 1, 0)->ecx &= ~(1u << 27 | 1u << 31);
	leaf(&host, 1, 0)->edx &= ~(1u << 28);
	assert_string_equal(missing(0), "");
}

static void vendor_and_sizes(void **state)
{
	(void)state;
	skylake(&guest);
	skylake(&host);
	*leaf(&host, 0, 0) = (struct kvm_cpuid_entry2){
		.eax = 0x10, .ebx = 0x68747541, .edx = 0x69746e65, .ecx = 0x444d4163
	};
	leaf(&host, 0xd, 9)->ebx = 0x980; // where AMD has it
	leaf(&host, 0xd, 0)->eax &= ~(1u << 6);
	leaf(&host, 0x80000008, 0)->eax = 0x3027;
	assert_string_equal(missing(4), "vendor GenuineIntel (here: AuthenticAMD), XSAVE component "
					"zmm-high256, XSAVE component pkru of 8 bytes at 2688 (here: 8 at "
					"2432), 46 physical address bits (here: 39)");
	host.head.nent = 0; // nothing at all: no crash, and everything is missing
	MV_BUF out = { 0 };
	assert_true(x86_features_missing(&guest, &host, &out) > 50);
}

static bool has(struct x86_cpuid *l, const char *name)
{
	MV_BUF out = { 0 };
	char wanted[40];
	mv_buf_append(&out, ", ", 2);
	x86_features(l, &out);
	mv_buf_append(&out, ", ", 3);
	snprintf(wanted, sizeof wanted, ", %s, ", name);
	return strstr((char *)out.p, wanted) != NULL;
}

static int mask(uint32_t template, const char *disable, struct mv_err *err)
{
	struct vmcfg_cpu m = { .present = true, .template = template };
	if (disable) {
		m.n_disable = 1;
		strcpy(m.disable[0], disable);
	}
	skylake(&guest);
	return x86_features_mask(&guest, &m, err);
}

static void no_mask_changes_nothing(void **state)
{
	struct mv_err err;
	(void)state;
	skylake(&host);
	assert_int_equal(mask(VMCFG_CPU_HOST, NULL, &err), 0);
	assert_memory_equal(&guest, &host, sizeof host);
}

static void templates_are_the_same_everywhere(void **state)
{
	struct mv_err err;
	struct x86_cpuid first;
	(void)state;
	assert_int_equal(mask(VMCFG_CPU_V3, NULL, &err), 0);
	assert_true(has(&guest, "avx2") && has(&guest, "bmi2") && has(&guest, "kvmclock"));
	assert_false(has(&guest, "avx512f") || has(&guest, "pku") || has(&guest, "aes"));
	assert_int_equal(leaf(&guest, 0xd, 0)->eax, 7);
	assert_int_equal(leaf(&guest, 0xd, 0)->ecx, 0x340);
	assert_int_equal(leaf(&guest, 0xd, 2)->eax, 0x100);
	assert_int_equal(leaf(&guest, 0xd, 5)->eax | leaf(&guest, 0xd, 9)->ebx, 0);

	assert_int_equal(mask(VMCFG_CPU_V2, NULL, &err), 0);
	assert_true(has(&guest, "sse4_2") && has(&guest, "lm"));
	assert_false(has(&guest, "xsave") || has(&guest, "avx") || has(&guest, "bmi1"));
	for (uint32_t i = 0; i < guest.head.nent; i++)
		if (guest.entry[i].function == 0xd)
			assert_int_equal(guest.entry[i].eax | guest.entry[i].ebx | guest.entry[i].ecx, 0);
	// A poorer host gives the same, and one without SSE 4.2 says so.
	first = guest;
	struct vmcfg_cpu v2 = { .present = true, .template = VMCFG_CPU_V2 };
	skylake(&guest);
	leaf(&guest, 7, 0)->ebx = 1u << 1;
	leaf(&guest, 1, 0)->ecx &= ~(1u << 28 | 1u << 30);
	assert_int_equal(x86_features_mask(&guest, &v2, &err), 0);
	host = first;
	assert_string_equal(missing(0), "");
	leaf(&guest, 1, 0)->ecx &= ~(1u << 20);
	assert_int_equal(x86_features_mask(&guest, &v2, &err), -ENOTSUP);
	assert_message(err, "x86-64-v2");
	assert_message(err, "sse4_2");
}

static void what_needs_it_goes_too(void **state)
{
	struct mv_err err;
	(void)state;
	assert_int_equal(mask(VMCFG_CPU_HOST, "avx512f", &err), 0);
	assert_true(has(&guest, "avx2") && has(&guest, "pku"));
	assert_false(has(&guest, "avx512f") || has(&guest, "avx512bw") || has(&guest, "avx512vl"));
	assert_int_equal(leaf(&guest, 0xd, 0)->eax, 0x207); // opmask and zmm are gone
	assert_int_equal(leaf(&guest, 0xd, 0)->ecx, 0xa88); // pkru stays where it is
	assert_int_equal(leaf(&guest, 0xd, 6)->eax, 0);

	assert_int_equal(mask(VMCFG_CPU_HOST, "avx", &err), 0);
	assert_false(has(&guest, "avx2") || has(&guest, "fma") || has(&guest, "avx512dq"));
	assert_int_equal(leaf(&guest, 0xd, 0)->eax, 0x203);

	assert_int_equal(mask(VMCFG_CPU_HOST, "pku", &err), 0);
	assert_int_equal(leaf(&guest, 0xd, 0)->eax, 0xe7);
	assert_int_equal(leaf(&guest, 0xd, 0)->ecx, 0xa80);

	assert_int_equal(mask(VMCFG_CPU_HOST, "xsave", &err), 0);
	assert_false(has(&guest, "avx") || has(&guest, "xsaveopt"));
	assert_int_equal(leaf(&guest, 0xd, 0)->eax | leaf(&guest, 0xd, 1)->eax, 0);

	// Told of, but without its XSAVE component (KVM does that without permission for AMX).
	struct vmcfg_cpu none = { 0 };
	skylake(&guest);
	leaf(&guest, 7, 0)->edx |= 1u << 24 | 1u << 25;
	assert_int_equal(x86_features_mask(&guest, &none, &err), 0);
	assert_false(has(&guest, "amx_tile") || has(&guest, "amx_int8"));
}

static void bad_masks(void **state)
{
	struct mv_err err;
	(void)state;
	assert_int_equal(mask(VMCFG_CPU_HOST, "avx1024", &err), -EINVAL);
	assert_message(err, "no feature \"avx1024\"");
	assert_int_equal(mask(VMCFG_CPU_HOST, "lm", &err), -EINVAL);
	assert_message(err, "runs without lm");
}

// A state file with one vCPU that has this CPUID.
static int state_file(const struct x86_cpuid *l)
{
	struct mv_err err;
	MV_BUF out = { 0 };
	MV_FREE struct vcpu_state *s = calloc(1, sizeof *s);
	int fd = t_file();
	s->n_cpuid = l->head.nent * (uint32_t)sizeof l->entry[0];
	memcpy(s->cpuid, l->entry, s->n_cpuid);
	size_t mark = snap_section_begin(&out, SECTION_VCPU, 0);
	mv_state_save(&x86_vcpu_table, s, &out);
	snap_section_end(&out, mark);
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, out.p, out.len, &err), 0);
	return fd;
}

static void bits_by_number(void **state)
{
	struct vmcfg_cpu cpu = {
		.n_cpuid = 4,
		.cpuid = { { .leaf = 7, .reg = VMCFG_EBX, .clear = 1u << 16, .set = 1u << 14 },
			   { .leaf = 1, .reg = VMCFG_EAX, .clear = 0x0fff3fff & ~0x306f2u, .set = 0x306f2 },
			   { .leaf = 0, .reg = VMCFG_EBX, .clear = ~0u }, // the vendor, which stays
			   { .leaf = 0xd, .subleaf = 1, .reg = VMCFG_EAX, .clear = 0xe } },
	};
	struct mv_err err;
	(void)state;
	skylake(&guest);
	skylake(&host);
	assert_int_equal(x86_cpuid_modify(&guest, &cpu, &err), 0);
	assert_int_equal(leaf(&guest, 7, 0)->ebx, 0xd19e47ab | 1u << 14);
	assert_int_equal(leaf(&guest, 1, 0)->eax, 0x306f2);
	assert_int_equal(leaf(&guest, 0, 0)->ebx, leaf(&host, 0, 0)->ebx);
	assert_int_equal(leaf(&guest, 0xd, 1)->eax, 1);
	assert_int_equal(leaf(&guest, 0xd, 0)->eax, 0x2e7);
	// MPX, that this host lacks, was not asked of any; what else it lacks is missed.
	leaf(&host, 7, 0)->ebx &= ~(1u << 14 | 1u << 18);
	x86_cpuid_unset(&guest, &cpu);
	assert_string_equal(missing(1), "rdseed");
	cpu.cpuid[0].subleaf = 2;
	assert_int_equal(x86_cpuid_modify(&guest, &cpu, &err), -ENOTSUP);
	assert_message(err, "leaf 0x7, subleaf 0x2");
}

static void reports(void **state)
{
	struct cpu_report r;
	struct mv_err err;
	(void)state;
	skylake(&guest);
	int fd = state_file(&guest);
	assert_int_equal(cpu_report(fd, NULL, NULL, &r, &err), 0);
	assert_string_equal(r.vendor, "GenuineIntel");
	assert_int_equal(r.family, 6);
	assert_int_equal(r.model_number, 0x55);
	assert_int_equal(r.stepping, 4);
	assert_false(r.compared);
	assert_non_null(strstr((char *)r.features.p, ", avx512f, "));
	cpu_report_fini(&r);
	assert_int_equal(cpu_report(fd, "/nonexistent", NULL, &r, &err), 0);
	assert_false(r.compared);
	cpu_report_fini(&r);
	close(fd);

	guest.head.nent = 0; // no CPUID at all
	fd = state_file(&guest);
	assert_int_equal(cpu_report(fd, NULL, NULL, &r, &err), 0);
	assert_string_equal((char *)r.features.p, "");
	cpu_report_fini(&r);
	close(fd);
	fd = t_file();
	assert_int_equal(cpu_report(fd, NULL, NULL, &r, &err), -EINVAL);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(differences_are_named),
		cmocka_unit_test(vendor_and_sizes),
		cmocka_unit_test(no_mask_changes_nothing),
		cmocka_unit_test(templates_are_the_same_everywhere),
		cmocka_unit_test(what_needs_it_goes_too),
		cmocka_unit_test(bad_masks),
		cmocka_unit_test(bits_by_number),
		cmocka_unit_test(reports),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
