// SPDX-License-Identifier: Apache-2.0
#include "api/fc/cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/vmfds.h"
#include "microvm/base/util.h"
#include "microvm/cpu_report.h"
#include "microvm/kvm.h"

enum { REG_BITS = 32 };

static int number(const char *s, uint32_t *ret_n)
{
	char *end;
	errno = 0;
	unsigned long long n = strtoull(s, &end, 0);
	if (!s[0] || *end || errno || n > UINT32_MAX || s[0] == '-')
		return -EINVAL;
	*ret_n = (uint32_t)n;
	return 0;
}

static int disable(struct vmcfg_cpu *c, const char *name, struct api_err *err)
{
	for (uint32_t i = 0; i < c->n_disable; i++)
		if (!strcmp(c->disable[i], name))
			return 0;
	if (c->n_disable == VMCFG_MAX_DISABLE)
		return api_fail(err, API_LIMIT_REACHED, "cpuid_modifiers: more than %d features",
				VMCFG_MAX_DISABLE);
	mv_strcpy(c->disable[c->n_disable++], VMCFG_FEATURE_LEN, name);
	return 0;
}

// "0b" and 0, 1, x or _, the lowest bit last; x: as it is.
static int bitmap(uint32_t leaf, uint32_t subleaf, unsigned reg, const char *text, struct vmcfg_cpu *c,
		  struct api_err *err)
{
	unsigned bit = 0;
	size_t n = strlen(text);
	if (strncmp(text, "0b", 2) != 0)
		return api_fail(err, API_INVALID_VALUE,
				"cpuid_modifiers: bitmap \"%.60s\" does not begin with 0b", text);
	while (n > 2) {
		char ch = text[--n];
		if (ch == '_')
			continue;
		if (bit == REG_BITS || !strchr("01x", ch))
			return api_fail(err, API_INVALID_VALUE,
					"cpuid_modifiers: bitmap \"%.60s\": up to 32 of 0, 1 and x", text);
		if (ch == '1')
			return api_fail(
				err, API_INVALID_VALUE,
				"cpuid_modifiers: leaf 0x%x: features can be taken away (0), not added (1)",
				leaf);
		const char *name = ch == '0' ? cpu_feature_at(leaf, subleaf, reg, bit) : NULL;
		if (ch == '0' && !name)
			return api_fail(
				err, API_INVALID_VALUE,
				"cpuid_modifiers: leaf 0x%x, subleaf 0x%x, register %u, bit %u is no feature "
				"that can be taken away; write x",
				leaf, subleaf, reg, bit);
		if (name && disable(c, name, err))
			return -EINVAL;
		bit++;
	}
	return 0;
}

static int modifier(js *leaf, struct vmcfg_cpu *c, struct api_err *err)
{
	static const char *const known[] = { "leaf", "subleaf", "flags", "modifiers", NULL };
	static const char *const known_inner[] = { "register", "bitmap", NULL };
	static const char *const regs[] = { "eax", "ebx", "ecx", "edx" };
	js *list = js_member(leaf, "modifiers");
	uint32_t number_of, index;
	const char *wrong = js_unknown_key(leaf, known);
	if (wrong)
		return api_fail(err, API_UNKNOWN_FIELD, "cpuid_modifiers: unknown field `%.60s`", wrong);
	if (number(js_str(leaf, "leaf", ""), &number_of) || number(js_str(leaf, "subleaf", ""), &index))
		return api_fail(err, API_INVALID_VALUE,
				"cpuid_modifiers: leaf and subleaf are texts of numbers");
	for (size_t i = 0; i < js_len(list); i++) {
		js *m = js_at(list, i);
		const char *name = js_str(m, "register", "");
		unsigned reg = 0;
		wrong = js_unknown_key(m, known_inner);
		while (reg < MV_ARRAY_LEN(regs) && strcmp(regs[reg], name) != 0)
			reg++;
		if (wrong || reg == MV_ARRAY_LEN(regs))
			return api_fail(
				err, API_INVALID_VALUE,
				"cpuid_modifiers: a modifier has register (eax, ebx, ecx or edx) and bitmap");
		int r = bitmap(number_of, index, reg, js_str(m, "bitmap", ""), c, err);
		if (r)
			return r;
	}
	return 0;
}

// "171": KVM has to have it. "!171": it need not, which is true of whatever thaw does not use; what it uses
// and KVM lacks is told when the VM is made.
static int capabilities(js *list, struct api_err *err)
{
	MV_FD kvm = -1;
	for (size_t i = 0; i < js_len(list); i++) {
		const char *text = js_str(js_at(list, i), "", "");
		uint32_t n;
		int r = 0;
		if (number(text + (text[0] == '!'), &n) || n > INT32_MAX)
			return api_fail(
				err, API_INVALID_VALUE,
				"kvm_capabilities: \"%.40s\" is not the number of one, with or without !",
				text);
		if (text[0] != '!' && kvm < 0)
			r = vmfds_kvm("/dev/kvm", &kvm, err);
		if (r)
			return r;
		if (text[0] != '!' && !kvm_capability(kvm, (int)n))
			return api_fail(err, API_INVALID_VALUE,
					"kvm_capabilities: this host's KVM does not have %u", n);
	}
	return 0;
}

int fc_cpu_parse(const char *bytes, size_t len, js **ret_v, struct vmcfg_cpu *ret_cpu, struct api_err *err)
{
	static const char *const known[] = { "cpuid_modifiers", "kvm_capabilities", "msr_modifiers", NULL };
	struct vmcfg_cpu cpu = { 0 };
	js *v = js_parse(bytes, len, err);
	if (!v)
		return -EINVAL;
	const char *wrong = js_unknown_key(v, known);
	js *list = js_member(v, "cpuid_modifiers");
	int r = 0;
	if (wrong)
		r = api_fail(err, API_UNKNOWN_FIELD,
			     "unknown field `%.60s`; known are cpuid_modifiers, "
			     "kvm_capabilities and msr_modifiers",
			     wrong);
	else if (js_len(js_member(v, "msr_modifiers")))
		r = api_fail(err, API_INVALID_VALUE,
			     "msr_modifiers: not supported: a guest's MSRs are as KVM and thaw set them, "
			     "and what they say of features goes with cpuid_modifiers");
	r = r ? r : capabilities(js_member(v, "kvm_capabilities"), err);
	for (size_t i = 0; !r && i < js_len(list); i++)
		r = modifier(js_at(list, i), &cpu, err);
	if (r) {
		js_free(v);
		return r;
	}
	cpu.present = cpu.n_disable > 0;
	*ret_v = v;
	*ret_cpu = cpu;
	return 0;
}
