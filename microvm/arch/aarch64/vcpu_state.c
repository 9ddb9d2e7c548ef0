// SPDX-License-Identifier: Apache-2.0
#include "vcpu_state.h"

#include <errno.h>
#include <string.h>

#include "microvm/base/bytes.h"

static const struct mv_field fields[] = {
	MV_RAW(struct vcpu_state, mp_state, 1),
	MV_RAW(struct vcpu_state, events, 2),
	MV_VAR(struct vcpu_state, regs, n_regs, 3),
};
MV_DEFINE_TABLE(a64_vcpu_table, struct vcpu_state, fields);

uint32_t a64_reg_bytes(uint64_t id) { return 1u << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT); }

uint64_t a64_reg_u64(const struct a64_reg *reg)
{
	le64_t v = { 0 };
	memcpy(&v, reg->value, reg->bytes < sizeof v ? reg->bytes : sizeof v);
	return le64_get(v);
}

int a64_reg_next(const struct vcpu_state *s, size_t *pos, struct a64_reg *ret_reg)
{
	le64_t id;
	if (*pos == s->n_regs)
		return 0;
	if (s->n_regs - *pos < sizeof id)
		return -EINVAL;
	memcpy(&id, s->regs + *pos, sizeof id);
	struct a64_reg r = { .id = le64_get(id), .bytes = a64_reg_bytes(le64_get(id)) };
	if (r.bytes > sizeof r.value || s->n_regs - *pos - sizeof id < r.bytes)
		return -EINVAL;
	memcpy(r.value, s->regs + *pos + sizeof id, r.bytes);
	*pos += sizeof id + r.bytes;
	*ret_reg = r;
	return 1;
}

int a64_reg_add(struct vcpu_state *s, const struct a64_reg *reg)
{
	le64_t id = le64_make(reg->id);
	if (reg->bytes > sizeof reg->value || sizeof s->regs - s->n_regs < sizeof id + reg->bytes)
		return -ENOSPC;
	memcpy(s->regs + s->n_regs, &id, sizeof id);
	memcpy(s->regs + s->n_regs + sizeof id, reg->value, reg->bytes);
	s->n_regs += (uint32_t)(sizeof id + reg->bytes);
	return 0;
}
