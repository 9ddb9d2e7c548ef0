// SPDX-License-Identifier: Apache-2.0
// CPU features by name, masks, templates, reports, and the host's caches. Run by qemu-user, where nothing is
// compared with a host; in the rig, where the real KVM is asked: rig-arm64.sh -k 6.12.
#include "tests/t.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "microvm/arch/aarch64/a64.h"
#include "microvm/arch/aarch64/cpu_features.h"
#include "microvm/arch/aarch64/vcpu_state.h"
#include "microvm/cpu_report.h"
#include "microvm/sections.h"
#include "snapshot/format.h"

enum { PFR0 = 4 * 8, PFR1 = 4 * 8 + 1, ISAR0 = 6 * 8, ISAR1 = 6 * 8 + 1, ISAR2 = 6 * 8 + 2, MMFR0 = 7 * 8 };

// As a vCPU of KVM has them on QEMU's "max" CPU.
static const struct a64_id_regs host = { .value = { [PFR0] = 0x1101001021110222,
						    [PFR1] = 0x21,
						    [ISAR0] = 0x1221111110212120,
						    [ISAR1] = 0x0011111100211002,
						    [MMFR0] = 0x0000022200101126 } };

static bool has(const struct a64_id_regs *regs, const char *name)
{
	MV_BUF list = { 0 };
	char word[32], text[1024];
	a64_features(regs, &list);
	assert_true(list.len < sizeof text - 4);
	snprintf(text, sizeof text, ", %.*s,", (int)list.len, (const char *)list.p);
	snprintf(word, sizeof word, " %s,", name);
	return strstr(text, word);
}

static void all(const struct a64_id_regs *regs, const char *const *names, bool wanted)
{
	for (; *names; names++)
		if (has(regs, *names) != wanted)
			fail_msg("%s is %sthere", *names, wanted ? "not " : "");
}
#define HAS(regs, ...) all(regs, (const char *const[]){ __VA_ARGS__, NULL }, true)
#define LACKS(regs, ...) all(regs, (const char *const[]){ __VA_ARGS__, NULL }, false)

static void names(void **state)
{
	(void)state;
	struct a64_id_regs none = { 0 };
	HAS(&host, "fp", "asimd", "fphp", "asimdhp", "aes", "pmull", "sha1", "sha2", "sha512", "crc32",
	    "atomics");
	HAS(&host, "asimdrdm", "sha3", "asimddp", "asimdfhm", "flagm", "flagm2", "rng", "dcpop", "dcpodp",
	    "jscvt");
	HAS(&host, "sm3", "sm4", "fcma", "lrcpc", "ilrcpc", "frint", "sb", "bf16", "i8mm", "bti", "ssbs",
	    "dit");
	LACKS(&host, "lse128", "sve", "mte", "lrcpc3", "mops", "ebf16", "ecv");
	HAS(&none, "fp", "asimd"); // 0 of these is "there"
	none.value[PFR0] = 0xffull << 16;
	LACKS(&none, "fp", "asimd", "fphp", "asimdhp");
}

static struct vmcfg_cpu mask_of(uint32_t template, const char *disable)
{
	struct vmcfg_cpu m = { .present = true, .template = template };
	char text[128], *save = NULL;
	snprintf(text, sizeof text, "%s", disable);
	for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
		snprintf(m.disable[m.n_disable++], VMCFG_FEATURE_LEN, "%s", word);
	return m;
}

static void masks(void **state)
{
	(void)state;
	struct mv_err err;
	struct a64_id_regs r = host;
	struct vmcfg_cpu m = mask_of(VMCFG_CPU_HOST, "");
	assert_int_equal(a64_features_mask(&r, &m, &err), 0);
	assert_memory_equal(&r, &host, sizeof r);
	m = mask_of(VMCFG_CPU_HOST, "pmull atomics flagm2");
	assert_int_equal(a64_features_mask(&r, &m, &err), 0);
	assert_int_equal(r.value[ISAR0], 0x1211111110012110); // each to the next lesser thing
	LACKS(&r, "pmull", "atomics", "flagm2");
	HAS(&r, "aes", "flagm");
	m = mask_of(VMCFG_CPU_HOST, "sha1 asimdhp"); // what needs them goes, too
	r = host;
	assert_int_equal(a64_features_mask(&r, &m, &err), 0);
	LACKS(&r, "sha1", "sha2", "sha512", "sha3", "asimdhp", "fphp", "asimdfhm");
	HAS(&r, "fp", "asimd", "aes", "pmull", "crc32");
	m = mask_of(VMCFG_CPU_HOST, "lse128 mops"); // not there anyway
	r = host;
	assert_int_equal(a64_features_mask(&r, &m, &err), 0);
	assert_memory_equal(&r, &host, sizeof r);
}

static void templates(void **state)
{
	(void)state;
	struct mv_err err;
	struct a64_id_regs r = host, more = host;
	struct vmcfg_cpu m = mask_of(VMCFG_CPU_ARM8_2, "");
	assert_int_equal(a64_features_mask(&r, &m, &err), 0);
	HAS(&r, "fp", "asimd", "crc32", "atomics", "asimdrdm", "dcpop", "sb", "ssbs");
	LACKS(&r, "aes", "sha1", "sha3", "asimddp", "rng", "dcpodp", "jscvt", "lrcpc", "bf16", "i8mm");
	assert_int_equal(r.value[ISAR0], 0x0000000010210000); // nor TLB ranges, which have no name
	assert_int_equal(r.value[MMFR0], host.value[MMFR0]);
	// A host with more gives the same.
	more.value[ISAR0] |= 0x0000011000000000;
	more.value[ISAR2] = 0x0020001000010002;
	more.value[ISAR1] |= 0x0000000000222000;
	assert_int_equal(a64_features_mask(&more, &m, &err), 0);
	assert_memory_equal(&more, &r, sizeof r);
	m = mask_of(VMCFG_CPU_ARM8, "");
	assert_int_equal(a64_features_mask(&r, &m, &err), 0);
	assert_int_equal(r.value[ISAR0], 0);
	m = mask_of(VMCFG_CPU_ARM8_2, ""); // which has it no longer
	assert_int_equal(a64_features_mask(&r, &m, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "crc32, atomics, asimdrdm"));
}

static void refused(void **state)
{
	(void)state;
	static const struct {
		uint32_t template;
		const char *disable, *why;
	} all_of[] = { { VMCFG_CPU_HOST, "avx2", "there is no feature \"avx2\"" },
		       { VMCFG_CPU_HOST, "asimd", "no arm64 kernel of today runs without asimd" },
		       { VMCFG_CPU_V2, "", "x86-64-v2 is for x86-64" },
		       { VMCFG_CPU_V3, "", "armv8-a and armv8.2-a" } };
	for (size_t i = 0; i < MV_ARRAY_LEN(all_of); i++) {
		struct mv_err err;
		struct a64_id_regs r = host;
		struct vmcfg_cpu m = mask_of(all_of[i].template, all_of[i].disable);
		assert_int_equal(a64_features_mask(&r, &m, &err), -EINVAL);
		assert_non_null(strstr(err.msg, all_of[i].why));
		assert_memory_equal(&r, &host, sizeof r);
	}
}

static void missing(void **state)
{
	(void)state;
	static const struct {
		unsigned index, shift;
		uint64_t guest, here;
		const char *text;
	} all_of[] = { { ISAR0, 4, 0x20, 0, "aes, pmull" },
		       { ISAR0, 4, 0x20, 0x10, "pmull" },
		       { PFR0, 16, 0x10000, 0, "fphp" },
		       { PFR0, 16, 0x10000, 0xf0000, "fp, fphp" },
		       { ISAR0, 56, 2ull << 56, 1ull << 56, "ID_AA64ISAR0_EL1[59:56] = 2 (here: 1)" },
		       { MMFR0, 0, 6, 5, "ID_AA64MMFR0_EL1[3:0] = 6 (here: 5)" },
		       { PFR1, 0, 0, 1, "ID_AA64PFR1_EL1[3:0] = 0 (here: 1)" },
		       { 38, 0, 1, 0, "S3_0_C0_C4_6[3:0] = 1 (here: 0)" } };
	for (size_t i = 0; i < MV_ARRAY_LEN(all_of); i++) {
		MV_BUF list = { 0 };
		assert_true(a64_field_missing(all_of[i].index, all_of[i].shift, all_of[i].guest,
					      all_of[i].here, &list) >= 1);
		mv_buf_append(&list, "", 1);
		assert_string_equal((char *)list.p, all_of[i].text);
	}
	unsigned index = 0;
	for (unsigned i = 0; i < A64_N_ID_REGS; i++)
		assert_true(a64_is_id_reg(a64_id_reg(i), &index) && index == i);
	assert_false(a64_is_id_reg(ARM64_SYS_REG(3, 1, 0, 0, 1), &index)); // CLIDR_EL1
	assert_false(a64_is_id_reg(ARM64_SYS_REG(3, 0, 0, 8, 0), &index));
	assert_false(a64_is_id_reg(ARM64_SYS_REG(3, 0, 1, 0, 0), &index));
}

// A state file with one vCPU that has these registers.
static int state_file(const struct a64_id_regs *regs)
{
	struct mv_err err;
	MV_BUF out = { 0 };
	MV_FREE struct vcpu_state *s = calloc(1, sizeof *s);
	int fd = t_file();
	for (unsigned i = 0; i < A64_N_ID_REGS; i++) {
		struct a64_reg reg = { .id = a64_id_reg(i), .bytes = 8 };
		memcpy(reg.value, &regs->value[i], sizeof regs->value[i]);
		if (regs->value[i])
			assert_int_equal(a64_reg_add(s, &reg), 0);
	}
	size_t mark = snap_section_begin(&out, SECTION_VCPU, 0);
	mv_state_save(&a64_vcpu_table, s, &out);
	snap_section_end(&out, mark);
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, out.p, out.len, &err), 0);
	return fd;
}

static void reports(void **state)
{
	(void)state;
	struct cpu_report r;
	struct mv_err err;
	struct a64_id_regs guest = host;
	guest.value[A64_MIDR] = 0x413fd0c1;
	guest.value[ISAR0] |= 15ull << 56;
	guest.value[ISAR2] = 1 << 16;
	int fd = state_file(&guest);
	assert_int_equal(cpu_report(fd, "/dev/kvm", NULL, &r, &err), 0);
	assert_string_equal(r.vendor, "Arm");
	assert_string_equal(r.model, "part 0xd0c variant 3");
	assert_int_equal(r.stepping, 1);
	assert_non_null(strstr((char *)r.features.p, ", atomics, "));
	printf("# %s: %u: %s\n", r.compared ? "missing" : "not compared", r.n_missing, (char *)r.missing.p);
	assert_true(r.compared == (r.n_missing > 0)); // no host has that
	if (r.compared) {
		assert_non_null(strstr((char *)r.missing.p, "MIDR_EL1 = 0x413fd0c1 (here: "));
		assert_non_null(strstr((char *)r.missing.p, "ID_AA64ISAR0_EL1[59:56] = 15 (here: "));
	}
	cpu_report_fini(&r);
	close(fd);
}

// --- caches -----------------------------------------------------------------------------
static char folder[] = "/tmp/test-caches-XXXXXX";
static const char *const files[] = { "level",          "type",           "size", "coherency_line_size",
				     "number_of_sets", "shared_cpu_list" };

static void put(unsigned index, unsigned file, const char *text)
{
	char path[128];
	snprintf(path, sizeof path, "%s/index%u", folder, index);
	mkdir(path, 0700);
	snprintf(path, sizeof path, "%s/index%u/%s", folder, index, files[file]);
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void put_all(void)
{
	static const char *const all_of[][MV_ARRAY_LEN(files)] = {
		{ "1\n", "Data\n", "64K\n", "64\n", "256\n", "0\n" },
		{ "1\n", "Instruction\n", "48K\n", "64\n", "", "0\n" },
		{ "2\n", "Unified\n", "1024K\n", "64\n", "2048\n", "0\n" },
		{ "3\n", "Unified\n", "32M\n", "128\n", "32768\n", "0-3,8\n" },
	};
	for (unsigned i = 0; i < MV_ARRAY_LEN(all_of); i++)
		for (unsigned k = 0; k < MV_ARRAY_LEN(files); k++)
			put(i, k, all_of[i][k]);
}

static void caches(void **state)
{
	(void)state;
	struct a64_cache c[A64_MAX_CACHES];
	assert_int_equal(a64_read_caches("/nonexistent", c), 0);
	assert_non_null(mkdtemp(folder));
	assert_int_equal(a64_read_caches(folder, c), 0);
	put_all();
	assert_int_equal(a64_read_caches(folder, c), 4);
	assert_true(c[0].type == A64_CACHE_DATA && c[0].size_bytes == 64 << 10 && c[0].sets == 256 &&
		    !c[0].shared);
	assert_true(c[1].type == A64_CACHE_INSTRUCTION && c[1].size_bytes == 48 << 10 && !c[1].sets);
	assert_true(c[2].level == 2 && c[2].type == A64_CACHE_UNIFIED && !c[2].shared);
	assert_true(c[3].level == 3 && c[3].size_bytes == 32 << 20 && c[3].line_bytes == 128 && c[3].shared);
	// What can't be told, and all behind it, is not: file of index 2, text, how many are left.
	static const struct {
		unsigned file;
		const char *text;
	} bad[] = { { 0, "4\n" },     { 0, "" },         { 1, "Data\n" },      { 1, "Trace\n" }, { 2, "" },
		    { 2, "1024G\n" }, { 2, "8388608K" }, { 2, "4294967295M" }, { 2, "-1K" } };
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++) {
		put(2, bad[i].file, bad[i].text);
		assert_int_equal(a64_read_caches(folder, c), 2);
		put_all();
	}
	char command[64];
	snprintf(command, sizeof command, "rm -r %s", folder);
	assert_int_equal(system(command), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names),   cmocka_unit_test(masks),   cmocka_unit_test(templates),
		cmocka_unit_test(refused), cmocka_unit_test(missing), cmocka_unit_test(caches),
		cmocka_unit_test(reports),
	};
	return cmocka_run_group_tests_name("aarch64/cpu", tests, NULL, NULL);
}
