// SPDX-License-Identifier: Apache-2.0
// api/fc/cpu.c and cpu_templates.c: documents, and Firecracker's static templates.
#include "tests/t.h"

#include <errno.h>

#include "api/fc/cpu.h"

static int parse(const char *text, struct vmcfg_cpu *ret_cpu)
{
	struct api_err err;
	js *v = NULL;
	int r = fc_cpu_parse(text, strlen(text), &v, ret_cpu, &err);
	assert_int_equal(!v, !!r);
	js_free(v);
	return r;
}

static void documents(void **state)
{
	static struct vmcfg_cpu c;
	(void)state;
	static const char good[] =
		"{\"msr_modifiers\": [{\"addr\": \"0b100\", \"bitmap\": \"0b1_0x\"}],"
		" \"cpuid_modifiers\": [{\"leaf\": \"0xd\", \"subleaf\": \"1\", \"flags\": 1, \"modifiers\": "
		"["
		"  {\"register\": \"edx\", \"bitmap\": \"0b01xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"},"
		"  {\"register\": \"eax\", \"bitmap\": \"0b1\"}]}]}";
	assert_int_equal(parse(good, &c), 0);
	assert_true(c.present && c.n_msrs == 1 && c.n_cpuid == 2);
	assert_true(c.msr[0].index == 4 && c.msr[0].clear == 2 && c.msr[0].set == 4);
	assert_true(c.cpuid[0].leaf == 13 && c.cpuid[0].subleaf == 1 && c.cpuid[0].reg == VMCFG_EDX);
	assert_true(c.cpuid[0].clear == 1u << 31 && c.cpuid[0].set == 1u << 30);
	assert_true(c.cpuid[1].reg == VMCFG_EAX && c.cpuid[1].set == 1 && !c.cpuid[1].clear);
	assert_int_equal(parse("{}", &c), 0);
	assert_false(c.present);
	assert_int_equal(parse("{\"msr_modifiers\": null}", &c), 0);
	static const char *const bad[] = {
		"7",
		"{\"x\": 1}",
		"{\"msr_modifiers\": [[]]}",
		"{\"msr_modifiers\": [{\"addr\": \"-1\", \"bitmap\": \"0b1\"}]}",
		"{\"msr_modifiers\": [{\"addr\": \"0x\", \"bitmap\": \"0b1\"}]}",
		"{\"msr_modifiers\": [{\"addr\": \"0x100000000\", \"bitmap\": \"0b1\"}]}",
		"{\"msr_modifiers\": [{\"addr\": \"1\"}]}",
		"{\"cpuid_modifiers\": [{\"leaf\": \"1\", \"subleaf\": \"0\", \"modifiers\": 7}]}",
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++)
		assert_int_equal(parse(bad[i], &c), -EINVAL);
}

static const struct vmcfg_cpuid *of(const struct vmcfg_cpu *c, uint32_t leaf, uint32_t subleaf, uint32_t reg)
{
	const struct vmcfg_cpuid *found = NULL;
	for (uint32_t i = 0; i < c->n_cpuid; i++)
		if (c->cpuid[i].leaf == leaf && c->cpuid[i].subleaf == subleaf && c->cpuid[i].reg == reg) {
			assert_null(found); // each register once
			found = &c->cpuid[i];
		}
	return found;
}

static void templates(void **state)
{
	static const struct {
		enum fc_template t;
		uint32_t n_cpuid, n_msrs, version;
	} all[] = { { FC_TEMPLATE_C3, 10, 0, 0x306e4 },
		    { FC_TEMPLATE_T2, 11, 0, 0x306f2 },
		    { FC_TEMPLATE_T2S, 11, 1, 0x306f2 },
		    { FC_TEMPLATE_T2CL, 11, 1, 0x306f2 },
		    { FC_TEMPLATE_T2A, 11, 0, 0x306f2 } };
	static struct vmcfg_cpu c, doc;
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(all); i++) {
		c = (struct vmcfg_cpu){ 0 };
		fc_cpu_template_fill(all[i].t, &c);
		assert_true(c.present && c.n_cpuid == all[i].n_cpuid && c.n_msrs == all[i].n_msrs);
		for (uint32_t k = 0; k < c.n_cpuid; k++)
			assert_ptr_equal(of(&c, c.cpuid[k].leaf, c.cpuid[k].subleaf, c.cpuid[k].reg),
					 &c.cpuid[k]);
		assert_int_equal(of(&c, 1, 0, VMCFG_EAX)->set, all[i].version);
		assert_int_equal(of(&c, 0xd, 0, VMCFG_EAX)->clear, 1 << 3 | 1 << 4 | 7 << 5 | 1 << 9);
		assert_int_equal(of(&c, 1, 0, VMCFG_EDX)->set, 1 << 7 | 1 << 12);
	}
	// Some in its own notation.
	static const char t2cl[] =
		"{\"cpuid_modifiers\": [{\"leaf\": \"0x7\", \"subleaf\": \"0x0\", \"flags\": 1, "
		"\"modifiers\": ["
		"{\"register\": \"ebx\", \"bitmap\": \"0b00000000000x000000x00x1xxxx0x0xx\"},"
		"{\"register\": \"ecx\", \"bitmap\": \"0bx0xxxxxxx0xxxxx0x0x00000x0x0000x\"},"
		"{\"register\": \"edx\", \"bitmap\": \"0bxxxxxxxxxxxxxxxxxxxxxxx0xxx000xx\"}]}],"
		" \"msr_modifiers\": [{\"addr\": \"0x10a\", \"bitmap\":"
		" \"0b00000000000000000000000000000000000xxx0x0000x0x0xxx0000xxxxxxxxx\"}]}";
	assert_int_equal(parse(t2cl, &doc), 0);
	c = (struct vmcfg_cpu){ 0 };
	fc_cpu_template_fill(FC_TEMPLATE_T2CL, &c);
	assert_memory_equal(&c.msr[0], &doc.msr[0], sizeof c.msr[0]);
	for (uint32_t k = 0; k < doc.n_cpuid; k++)
		assert_memory_equal(of(&c, 7, 0, doc.cpuid[k].reg), &doc.cpuid[k], sizeof doc.cpuid[k]);
	c = (struct vmcfg_cpu){ 0 };
	fc_cpu_template_fill(FC_TEMPLATE_T2S, &c);
	assert_true(c.msr[0].index == 0x10a && (c.msr[0].set | c.msr[0].clear) == UINT64_MAX);
	assert_true(c.msr[0].set == (1u << 2 | 1u << 3 | 1u << 6 | 1u << 10 | 1u << 11 | 1u << 17 | 1u << 19 |
				     1u << 26 | 1u << 27));
}

static void cpus(void **state)
{
	static const char intel[] = "GenuineIntel", amd[] = "AuthenticAMD";
	struct api_err err;
	(void)state;
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2, intel, 0x50654, &err), 0);
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2CL, intel, 0x50654, &err), -EINVAL); // Skylake
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2CL, intel, 0x606a6, &err), 0);
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2S, intel, 0x606a6, &err), -EINVAL); // Ice Lake
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_C3, intel, 0x806f8, &err),
			 -EINVAL); // Sapphire Rapids
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2A, amd, 0xa00f11, &err), 0);
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2A, amd, 0xa10f11, &err), -EINVAL); // Genoa
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2A, intel, 0xa00f11, &err), -EINVAL);
	assert_int_equal(fc_cpu_template_check(FC_TEMPLATE_T2, amd, 0x50654, &err), -EINVAL);
	assert_message(err, "T2 is for GenuineIntel (Skylake, Cascade Lake, Ice Lake)");
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(documents), cmocka_unit_test(templates),
					    cmocka_unit_test(cpus) };
	return cmocka_run_group_tests_name("api/fc_cpu", tests, NULL, NULL);
}
