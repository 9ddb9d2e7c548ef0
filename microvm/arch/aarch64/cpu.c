// SPDX-License-Identifier: Apache-2.0
// A vCPU's registers: how a kernel finds them, and how they are saved and loaded (KVM API 4.68, 4.69, 4.82
// to 4.84). A guest has what every KVM gives: neither SVE nor pointer authentication nor performance
// counters, so that a snapshot fits more hosts.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "a64.h"
#include "cpu_features.h"
#include "kvm_vcpu.h"
#include "microvm/cpu_report.h"
#include "microvm/kvm.h"
#include "vcpu_state.h"

#define REG_MPIDR ARM64_SYS_REG(3, 0, 0, 0, 5)
#define REG_CLIDR ARM64_SYS_REG(3, 1, 0, 0, 1)
#define CLIDR_TYPES 0x1fffffull // three bits a level
#define MPIDR_AFFINITY 0xff00ffffffull
#define CORE_REG(name) (KVM_REG_ARM64 | KVM_REG_ARM_CORE | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE_REG(name))
#define GICV2_MAX_VCPUS 8
#define PSTATE_EL1H_MASKED 0x3c5 // D, A, I and F masked; EL1 with its own stack pointer

// Its own value goes into the state's clock (struct a64_clock), which arch_vm_catch_up() moves on.
static bool is_counter(uint64_t id) { return id == KVM_REG_ARM_TIMER_CNT || id == KVM_REG_ARM_PTIMER_CNT; }

static int one_reg(struct vcpu *c, unsigned long request, uint64_t id, void *value)
{
	struct kvm_one_reg r = { .id = id, .addr = (uintptr_t)value };
	return ioctl(c->fd, request, &r) < 0 ? -errno : 0;
}

int a64_get_reg(struct vcpu *c, uint64_t id, uint64_t *ret_value, struct mv_err *err)
{
	uint64_t v = 0;
	int r = one_reg(c, KVM_GET_ONE_REG, id, &v);
	if (r)
		return mv_fail(err, -r, "vCPU %u: KVM_GET_ONE_REG 0x%llx: %s", c->index,
			       (unsigned long long)id, strerror(-r));
	*ret_value = v;
	return 0;
}

int a64_set_reg(struct vcpu *c, uint64_t id, uint64_t value, struct mv_err *err)
{
	int r = one_reg(c, KVM_SET_ONE_REG, id, &value);
	return r ? mv_fail(err, -r, "vCPU %u: KVM_SET_ONE_REG 0x%llx: %s", c->index, (unsigned long long)id,
			   strerror(-r))
		 : 0;
}

int a64_mpidr(struct vcpu *c, uint64_t *ret_mpidr, struct mv_err *err)
{
	uint64_t v = 0;
	int r = a64_get_reg(c, REG_MPIDR, &v, err);
	if (!r)
		*ret_mpidr = v & MPIDR_AFFINITY;
	return r;
}

// Which bits of the identification registers KVM lets be written (KVM API 4.139, Linux 6.7).
static int writable_bits(struct vm *vm, struct a64_id_regs *ret_masks, struct mv_err *err)
{
	uint64_t all[A64_N_WRITABLE_MASKS] = { 0 };
	struct a64_reg_mask_range range = { .addr = (uintptr_t)all };
	if (kvm_capability(vm->vm_fd, A64_CAP_REG_MASK_RANGES) <= 0)
		return mv_fail(err, ENOTSUP,
			       "cpu: this host's KVM can't hide features from guests; that needs Linux 6.7 "
			       "or later");
	int r = kvm_call(vm->vm_fd, A64_GET_REG_WRITABLE_MASKS, &range, "KVM_ARM_GET_REG_WRITABLE_MASKS",
			 err);
	if (r < 0)
		return r;
	memcpy(ret_masks->value, all, sizeof ret_masks->value);
	return 0;
}

// KVM has one set of these registers for all vCPUs; they can be written until the first of them runs.
int a64_mask_features(struct vm *vm, struct mv_err *err)
{
	struct vcpu *c = &vm->vcpu[0];
	struct a64_id_regs host = { 0 }, guest, writable;
	MV_BUF fixed = { 0 };
	int r = writable_bits(vm, &writable, err);
	for (unsigned i = A64_FIRST_FEATURE_REG; !r && i < A64_N_ID_REGS; i++)
		r = a64_get_reg(c, a64_id_reg(i), &host.value[i], err);
	guest = host;
	r = r ? r : a64_features_mask(&guest, &vm->cfg.cpu, err);
	if (r)
		return r;
	for (unsigned i = 0; i < A64_N_ID_REGS; i++)
		for (unsigned shift = 0; shift < 64; shift += 4)
			if ((host.value[i] ^ guest.value[i]) & ~writable.value[i] & 15ull << shift)
				a64_field_missing(i, shift, host.value[i], guest.value[i], &fixed);
	if (fixed.len)
		return mv_fail(err, ENOTSUP, "cpu: this host's KVM can't hide %.*s from guests",
			       (int)fixed.len, (const char *)fixed.p);
	for (unsigned i = 0; !r && i < A64_N_ID_REGS; i++) {
		uint64_t shown = host.value[i];
		if (guest.value[i] == shown)
			continue;
		r = a64_set_reg(c, a64_id_reg(i), guest.value[i], err);
		r = r ? r : a64_get_reg(c, a64_id_reg(i), &shown, err);
		if (!r && shown != guest.value[i])
			r = mv_fail(err, ENOTSUP, "cpu: KVM took register 0x%llx = 0x%llx for 0x%llx",
				    (unsigned long long)a64_id_reg(i), (unsigned long long)guest.value[i],
				    (unsigned long long)shown);
	}
	return r;
}

static uint64_t cache_types(const struct a64_cache *list, unsigned n)
{
	static const uint64_t types[] = { 2, 1, 4 }; // enum a64_cache_type; data and instructions: 3
	uint64_t clidr = 0;
	for (unsigned i = 0; i < n && list[i].level <= 7; i++)
		clidr |= types[list[i].type] << 3 * (list[i].level - 1);
	return clidr;
}

bool a64_show_caches(struct vm *vm, const struct a64_cache *list, unsigned n)
{
	const uint64_t wanted = cache_types(list, n);
	struct mv_err none;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		uint64_t clidr;
		if (a64_get_reg(&vm->vcpu[i], REG_CLIDR, &clidr, &none))
			return false;
		if ((clidr & CLIDR_TYPES) != wanted &&
		    a64_set_reg(&vm->vcpu[i], REG_CLIDR, (clidr & ~CLIDR_TYPES) | wanted, &none))
			return false;
	}
	return true;
}

// The others wait for PSCI's CPU_ON. The first one of a warm VM does not know how many there will be.
int arch_vcpu_init(struct vcpu *c, struct mv_err *err)
{
	if (c->vm->arch.gic_version == 2 && c->vm->cfg.vcpus > GICV2_MAX_VCPUS)
		return mv_fail(err, ENOTSUP,
			       "this host's interrupt controller, a GICv2, allows %u vCPUs at most",
			       GICV2_MAX_VCPUS);
	int r = a64_vcpu_init(c->vm->vm_fd, c->fd, c->index);
	return r ? mv_fail(err, -r, "vCPU %u: KVM_ARM_VCPU_INIT: %s", c->index, strerror(-r)) : 0;
}

int a64_set_boot_registers(struct vcpu *c, uint64_t entry_gpa, uint64_t fdt_gpa, struct mv_err *err)
{
	int r = a64_set_reg(c, CORE_REG(regs.pc), entry_gpa, err);
	r = r ? r : a64_set_reg(c, CORE_REG(regs.regs[0]), fdt_gpa, err);
	return r ? r : a64_set_reg(c, CORE_REG(regs.pstate), PSTATE_EL1H_MASKED, err);
}

static int get_regs(struct vcpu *c, struct vcpu_state *s, struct mv_err *err)
{
	MV_FREE struct kvm_reg_list *list = malloc(sizeof *list + VCPU_MAX_REGS * sizeof list->reg[0]);
	if (!list)
		return mv_fail(err, ENOMEM, "out of memory");
	list->n = VCPU_MAX_REGS;
	int r = kvm_call(c->fd, KVM_GET_REG_LIST, list, "KVM_GET_REG_LIST", err);
	for (uint64_t i = 0; r >= 0 && i < list->n; i++) {
		struct a64_reg reg = { .id = list->reg[i], .bytes = a64_reg_bytes(list->reg[i]) };
		if (is_counter(reg.id))
			continue;
		r = reg.bytes > sizeof reg.value ? -ENOTSUP : one_reg(c, KVM_GET_ONE_REG, reg.id, reg.value);
		r = r ? r : a64_reg_add(s, &reg);
		if (r)
			return mv_fail(err, -r, "vCPU %u: cannot save register 0x%llx: %s", c->index,
				       (unsigned long long)reg.id, strerror(-r));
	}
	return r < 0 ? r : 0;
}

int arch_vcpu_save(struct vcpu *c, struct mv_buf *out, struct mv_err *err)
{
	MV_FREE struct vcpu_state *s = calloc(1, sizeof *s);
	int r;
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	if ((r = kvm_call(c->fd, KVM_GET_MP_STATE, &s->mp_state, "KVM_GET_MP_STATE", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_GET_VCPU_EVENTS, &s->events, "KVM_GET_VCPU_EVENTS", err)) < 0 ||
	    (r = get_regs(c, s, err)) < 0)
		return r;
	mv_state_save(&a64_vcpu_table, s, out);
	return 0;
}

// Half of what a restore does on arm64 was setting registers, most of which a new vCPU has like that already.
void arch_vm_warm(struct vm *vm)
{
	struct mv_err none;
	struct vcpu_state *s = calloc(1, sizeof *s);
	if (s && get_regs(&vm->vcpu[0], s, &none)) {
		free(s);
		s = NULL;
	}
	vm->arch.fresh = s;
}

// KVM lists registers in one order, so they are met in that order; *pos goes on behind what was found.
static bool is_fresh(const struct vcpu_state *fresh, size_t *pos, const struct a64_reg *reg)
{
	struct a64_reg f;
	for (size_t at = *pos; fresh && a64_reg_next(fresh, &at, &f) > 0;)
		if (f.id == reg->id) {
			*pos = at;
			return f.bytes == reg->bytes && !memcmp(f.value, reg->value, f.bytes);
		}
	return false;
}

// What this host does not know, or will not have otherwise, the guest has seen: identification registers,
// caches, the version of PSCI. A register that is refused is no loss when it has the value already.
static int set_reg(struct vcpu *c, const struct a64_reg *reg, struct mv_err *err)
{
	struct a64_reg value = *reg, now = { 0 };
	int r = one_reg(c, KVM_SET_ONE_REG, reg->id, value.value);
	if (!r ||
	    (!one_reg(c, KVM_GET_ONE_REG, reg->id, now.value) && !memcmp(now.value, reg->value, reg->bytes)))
		return 0;
	return mv_fail(err, ENOTSUP,
		       "vCPU %u: this host's KVM refuses register 0x%llx = 0x%llx: %s; restore on a host "
		       "with the CPU "
		       "and kernel of the snapshot",
		       c->index, (unsigned long long)reg->id, (unsigned long long)a64_reg_u64(reg),
		       strerror(-r));
}

int arch_vcpu_load(struct vcpu *c, const void *bytes, size_t len, struct mv_err *err)
{
	MV_FREE struct vcpu_state *s = malloc(sizeof *s);
	struct a64_reg reg;
	size_t pos = 0, fresh_pos = 0;
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&a64_vcpu_table, bytes, len, s, err), more;
	if (r)
		return r;
	while ((more = a64_reg_next(s, &pos, &reg)) > 0 && !r)
		if (!is_counter(reg.id) && !is_fresh(c->vm->arch.fresh, &fresh_pos, &reg))
			r = set_reg(c, &reg, err);
	if (more < 0)
		return mv_fail(err, EINVAL, "vCPU %u: damaged state", c->index);
	if (r || (r = kvm_call(c->fd, KVM_SET_MP_STATE, &s->mp_state, "KVM_SET_MP_STATE", err)) < 0 ||
	    (r = kvm_call(c->fd, KVM_SET_VCPU_EVENTS, &s->events, "KVM_SET_VCPU_EVENTS", err)) < 0)
		return r;
	return 0;
}
