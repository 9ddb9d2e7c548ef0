// SPDX-License-Identifier: Apache-2.0
#include "vcpu_state.h"

#include <errno.h>
#include <string.h>

static const struct mv_field fields[] = {
	MV_RAW(struct vcpu_state, regs, 1),
	MV_RAW(struct vcpu_state, sregs, 2),
	MV_RAW(struct vcpu_state, xcrs, 3),
	MV_RAW(struct vcpu_state, lapic, 4),
	MV_RAW(struct vcpu_state, events, 5),
	MV_RAW(struct vcpu_state, debugregs, 6),
	MV_RAW(struct vcpu_state, mp_state, 7),
	MV_INT(struct vcpu_state, tsc_khz, 8, MV_U32, 0, 100u * 1000 * 1000),
	MV_VAR(struct vcpu_state, xsave, n_xsave, 9),
	MV_VAR(struct vcpu_state, cpuid, n_cpuid, 10),
	MV_VAR(struct vcpu_state, msrs, n_msrs, 11),
};
MV_DEFINE_TABLE(x86_vcpu_table, struct vcpu_state, fields);

int x86_vcpu_cpuid(const struct vcpu_state *s, struct x86_cpuid *ret_list)
{
	if (s->n_cpuid % sizeof ret_list->entry[0])
		return -EINVAL;
	ret_list->head = (struct kvm_cpuid2){ .nent = s->n_cpuid / (uint32_t)sizeof ret_list->entry[0] };
	memcpy(ret_list->entry, s->cpuid, s->n_cpuid);
	return 0;
}
