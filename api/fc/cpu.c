// SPDX-License-Identifier: Apache-2.0
#include "api/fc/cpu.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/vmfds.h"
#include "microvm/base/util.h"
#include "microvm/cpu_report.h"
#include "microvm/kvm.h"

#define KVM "/dev/kvm"

// "0x1f", "0b11" or "31".
static int number(const char *s, uint32_t *ret_n)
{
	char *end;
	bool prefix = s[0] == '0' && (s[1] == 'x' || s[1] == 'b');
	int base = !prefix ? 10 : s[1] == 'x' ? 16 : 2;
	s += prefix ? 2 : 0;
	errno = 0;
	unsigned long long n = strtoull(s, &end, base);
	if (!isxdigit((unsigned char)s[0]) || *end || errno || n > UINT32_MAX)
		return -EINVAL;
	*ret_n = (uint32_t)n;
	return 0;
}

// "0b" and 0, 1, x or _, the lowest bit last. x, and what is left out at the beginning: as it is.
static int bitmap(const char *what, const char *text, unsigned bits, uint64_t *ret_clear, uint64_t *ret_set,
		  struct api_err *err)
{
	uint64_t clear = 0, set = 0;
	unsigned bit = 0;
	size_t n = strlen(text);
	if (strncmp(text, "0b", 2) != 0 || n == 2)
		return api_fail(err, API_INVALID_VALUE, "%s: bitmap \"%.70s\" is not 0b and bits", what,
				text);
	while (n > 2) {
		char ch = text[--n];
		if (ch == '_')
			continue;
		if (bit == bits || !strchr("01x", ch))
			return api_fail(err, API_INVALID_VALUE,
					"%s: bitmap \"%.70s\": up to %u of 0, 1 and x", what, text, bits);
		clear |= (uint64_t)(ch == '0') << bit;
		set |= (uint64_t)(ch == '1') << bit;
		bit++;
	}
	*ret_clear = clear;
	*ret_set = set;
	return 0;
}

static int list_of(js *o, const char *key, js **ret_list, struct api_err *err)
{
	*ret_list = js_member(o, key);
	return js_is_null(*ret_list) || js_is_list(*ret_list)
		       ? 0
		       : api_fail(err, API_INVALID_VALUE, "%s: is not a list", key);
}

static int known_fields(const char *what, js *o, const char *const *known, struct api_err *err)
{
	const char *wrong = js_unknown_key(o, known);
	if (!js_is_object(o))
		return api_fail(err, API_INVALID_VALUE, "%s: is not an object", what);
	return wrong ? api_fail(err, API_UNKNOWN_FIELD, "%s: unknown field `%.60s`", what, wrong) : 0;
}

static int cpuid_modifier(js *m, uint32_t leaf, uint32_t subleaf, struct vmcfg_cpu *c, struct api_err *err)
{
	static const char *const known[] = { "register", "bitmap", NULL };
	const char *name = js_str(m, "register", "");
	uint64_t clear, set;
	uint32_t reg = VMCFG_EAX;
	while (vmcfg_cpu_registers[reg] && strcmp(vmcfg_cpu_registers[reg], name) != 0)
		reg++;
	int r = known_fields("cpuid_modifiers", m, known, err);
	if (!r && !vmcfg_cpu_registers[reg])
		r = api_fail(err, API_INVALID_VALUE, "cpuid_modifiers: register is eax, ebx, ecx or edx");
	r = r ? r : bitmap("cpuid_modifiers", js_str(m, "bitmap", ""), 32, &clear, &set, err);
	if (!r && c->n_cpuid == VMCFG_MAX_CPUID)
		r = api_fail(err, API_LIMIT_REACHED, "cpuid_modifiers: more than %d registers",
			     VMCFG_MAX_CPUID);
	if (!r)
		c->cpuid[c->n_cpuid++] = (struct vmcfg_cpuid){ .leaf = leaf,
							       .subleaf = subleaf,
							       .reg = reg,
							       .clear = (uint32_t)clear,
							       .set = (uint32_t)set };
	return r;
}

static int leaf_modifier(js *o, struct vmcfg_cpu *c, struct api_err *err)
{
	static const char *const known[] = { "leaf", "subleaf", "flags", "modifiers", NULL };
	js *list;
	uint32_t leaf, subleaf;
	int r = known_fields("cpuid_modifiers", o, known, err);
	if (!r && (number(js_str(o, "leaf", ""), &leaf) || number(js_str(o, "subleaf", ""), &subleaf)))
		r = api_fail(err, API_INVALID_VALUE,
			     "cpuid_modifiers: leaf and subleaf are texts of numbers");
	r = r ? r : list_of(o, "modifiers", &list, err);
	for (size_t i = 0; !r && i < js_len(list); i++)
		r = cpuid_modifier(js_at(list, i), leaf, subleaf, c, err);
	return r;
}

static int msr_modifier(js *o, struct vmcfg_cpu *c, struct api_err *err)
{
	static const char *const known[] = { "addr", "bitmap", NULL };
	struct vmcfg_msr m;
	int r = known_fields("msr_modifiers", o, known, err);
	if (!r && number(js_str(o, "addr", ""), &m.index))
		r = api_fail(err, API_INVALID_VALUE, "msr_modifiers: addr is the text of a number");
	r = r ? r : bitmap("msr_modifiers", js_str(o, "bitmap", ""), 64, &m.clear, &m.set, err);
	for (uint32_t i = 0; !r && i < c->n_msrs; i++)
		if (c->msr[i].index == m.index)
			r = api_fail(err, API_INVALID_VALUE, "msr_modifiers: 0x%x is there twice", m.index);
	if (!r && c->n_msrs == VMCFG_MAX_MSRS)
		r = api_fail(err, API_LIMIT_REACHED, "msr_modifiers: more than %d", VMCFG_MAX_MSRS);
	if (!r)
		c->msr[c->n_msrs++] = m;
	return r;
}

// "171": KVM has to have it. "!171": it need not, which is true of whatever thaw does not use; what it uses
// and KVM lacks is told when the VM is made.
static int capability(js *o, struct vmcfg_cpu *c, struct api_err *err)
{
	const char *text = js_str(o, "", "");
	MV_FD kvm = -1;
	uint32_t n;
	(void)c;
	if (number(text + (text[0] == '!'), &n) || n > INT32_MAX)
		return api_fail(err, API_INVALID_VALUE,
				"kvm_capabilities: \"%.40s\" is not the number of one, with or without !",
				text);
	if (text[0] == '!')
		return 0;
	int r = vmfds_kvm(KVM, &kvm, err);
	if (!r && !kvm_capability(kvm, (int)n))
		r = api_fail(err, API_INVALID_VALUE, "kvm_capabilities: this host's KVM does not have %u", n);
	return r;
}

int fc_cpu_parse(const char *bytes, size_t len, js **ret_v, struct vmcfg_cpu *ret_cpu, struct api_err *err)
{
	static const char *const known[] = { "cpuid_modifiers", "kvm_capabilities", "msr_modifiers", NULL };
	static int (*const each[])(js *, struct vmcfg_cpu *, struct api_err *) = { leaf_modifier, capability,
										   msr_modifier };
	struct vmcfg_cpu cpu = { 0 };
	js *v = js_parse(bytes, len, err), *list;
	if (!v)
		return -EINVAL;
	int r = known_fields("cpu-config", v, known, err);
	for (int k = 0; !r && known[k]; k++) {
		r = list_of(v, known[k], &list, err);
		for (size_t i = 0; !r && i < js_len(list); i++)
			r = each[k](js_at(list, i), &cpu, err);
	}
	if (r) {
		js_free(v);
		return r;
	}
	cpu.present = cpu.n_cpuid || cpu.n_msrs;
	*ret_v = v;
	*ret_cpu = cpu;
	return 0;
}

int fc_cpu_template(enum fc_template t, struct vmcfg_cpu *cpu, struct api_err *err)
{
	char vendor[13];
	uint32_t version;
	MV_FD kvm = -1;
	if (t >= FC_TEMPLATE_V2) {
		cpu->template = t - FC_TEMPLATE_V2 + VMCFG_CPU_V2;
		cpu->present = true;
		return 0;
	}
	int r = vmfds_kvm(KVM, &kvm, err);
	if (r)
		return r;
	r = cpu_host(KVM, vendor, &version);
	if (t == FC_TEMPLATE_V1N1 || r == -ENOTSUP)
		return api_fail(err, API_INVALID_VALUE, "cpu_template: %s: %s", fc_template_words[t],
				t == FC_TEMPLATE_V1N1 ? "there are none for arm64 CPUs"
						      : "is for x86-64 CPUs");
	if (r)
		return api_fail(err, API_NO_KVM, "cpu_template: KVM does not say which CPU this is");
	r = fc_cpu_template_check(t, vendor, version, err);
	if (!r)
		fc_cpu_template_fill(t, cpu);
	return r;
}
