// SPDX-License-Identifier: Apache-2.0
#include "microvm/save.h"

#include <errno.h>
#include <string.h>

#include "microvm/base/scratch.h"
#include "microvm/sections.h"
#include "snapshot/format.h"
#include "snapshot/manifest.h"
#include "snapshot/memory_map.h"

// What must be the same in the configuration for the rest to fit.
struct shape {
	uint32_t arch, vcpus, mem_mib, discovery, n_devs;
	uint32_t n_drives, n_nets;
	bool vsock, rng, balloon;
	uint32_t n_consoles, n_pmems;
};

static const struct mv_field shape_fields[] = {
	MV_INT(struct shape, arch, 1, MV_U32, 1, 255),
	MV_INT(struct shape, vcpus, 2, MV_U32, 1, VMCFG_MAX_VCPUS),
	MV_INT(struct shape, mem_mib, 3, MV_U32, VMCFG_MIN_MEM_MIB, VMCFG_MAX_MEM_MIB),
	MV_INT(struct shape, discovery, 4, MV_U32, VMCFG_ACPI, VMCFG_ACPI_AND_CMDLINE),
	MV_INT(struct shape, n_devs, 5, MV_U32, 0, VM_MAX_DEVICES),
	MV_INT(struct shape, n_drives, 6, MV_U32, 0, VMCFG_MAX_DRIVES),
	MV_INT(struct shape, n_nets, 7, MV_U32, 0, VMCFG_MAX_NETS),
	MV_FLAG(struct shape, vsock, 8),
	MV_FLAG(struct shape, rng, 9),
	MV_OPT_FLAG(struct shape, balloon, MV_TAG_SKIP + 10),
	MV_OPT_INT(struct shape, n_consoles, MV_TAG_SKIP + 11, MV_U32, 0, VMCFG_MAX_CONSOLES),
	MV_OPT_INT(struct shape, n_pmems, MV_TAG_SKIP + 12, MV_U32, 0, VMCFG_MAX_PMEMS),
};
static MV_DEFINE_TABLE(shape_table, struct shape, shape_fields);

static struct shape shape_of(const struct vmcfg *c)
{
	return (struct shape){ .arch = ARCH_ID,
			       .vcpus = c->vcpus,
			       .mem_mib = c->mem_mib,
			       .discovery = c->discovery,
			       .n_devs = c->n_drives + c->n_nets + c->vsock.present + c->rng +
					 c->balloon.present + !!c->n_consoles + c->n_pmems,
			       .n_drives = c->n_drives,
			       .n_nets = c->n_nets,
			       .vsock = c->vsock.present,
			       .rng = c->rng,
			       .balloon = c->balloon.present,
			       .n_consoles = c->n_consoles,
			       .n_pmems = c->n_pmems };
}

static int check_shape(const struct shape *file, const struct vmcfg *cfg, struct mv_err *err)
{
	struct shape want = shape_of(cfg);
	if (file->arch != want.arch)
		return mv_fail(err, ENOTSUP,
			       "the snapshot is of another CPU architecture, %s; this host is %s",
			       manifest_arch_name(file->arch), manifest_arch_name(want.arch));
	if (file->vcpus != want.vcpus || file->mem_mib != want.mem_mib)
		return mv_fail(err, EINVAL,
			       "the state is of a VM with %u vCPUs and %u MiB, the configuration "
			       "says %u and %u",
			       file->vcpus, file->mem_mib, want.vcpus, want.mem_mib);
	if (file->n_drives != want.n_drives || file->n_nets != want.n_nets || file->vsock != want.vsock ||
	    file->rng != want.rng || file->balloon != want.balloon || file->n_consoles != want.n_consoles ||
	    file->n_pmems != want.n_pmems || file->n_devs != want.n_devs || file->discovery != want.discovery)
		return mv_fail(err, EINVAL, "the state has other devices than the configuration");
	return 0;
}

// The place a section goes to, NULL for a kind or index that does not belong there.
static struct saved_section *place(struct saved_vm *s, uint32_t kind, uint32_t index,
				   const struct shape *shape)
{
	switch (kind) {
	case SECTION_VCPU: return index < shape->vcpus ? &s->vcpu[index] : NULL;
	case SECTION_ARCH: return index == 0 ? &s->arch : NULL;
	case SECTION_SERIAL: return index == 0 ? &s->serial : NULL;
	case SECTION_VIRTIO: return index < shape->n_devs ? &s->dev[index] : NULL;
	case SECTION_MEMORY: return index == 0 ? &s->memory : NULL;
	default: return NULL;
	}
}

static int sort_sections(struct saved_vm *s, size_t len, const struct vmcfg *cfg, struct mv_err *err)
{
	struct snap_section sec;
	struct shape shape = { 0 };
	size_t pos = 0;
	uint32_t missing;
	int r;

	while ((r = snap_section_next(s->payload, len, &pos, &sec, err)) > 0) {
		if (sec.kind == SECTION_SHAPE) {
			r = mv_state_load(&shape_table, sec.bytes, sec.len, &shape, err);
			r = r ? r : check_shape(&shape, cfg, err);
			if (r)
				return r;
			continue;
		}
		if (sec.kind >= SECTION_SKIP && sec.kind != SECTION_MEMORY)
			continue;
		struct saved_section *p = place(s, sec.kind, sec.index, &shape);
		if (!p || p->bytes)
			return mv_fail(err, EINVAL, "state: section %u.%u does not belong there", sec.kind,
				       sec.index);
		*p = (struct saved_section){ sec.bytes, (uint32_t)sec.len };
	}
	if (r < 0)
		return r;
	missing = !shape.arch || !s->arch.bytes || !s->serial.bytes;
	for (uint32_t i = 0; i < shape.vcpus; i++)
		missing += !s->vcpu[i].bytes;
	for (uint32_t i = 0; i < shape.n_devs; i++)
		missing += !s->dev[i].bytes;
	return missing ? mv_fail(err, EINVAL, "state: %u sections are missing", missing) : 0;
}

// Takes the payload.
static int sort_payload(uint8_t *payload, size_t len, const struct vmcfg *cfg, struct saved_vm *ret_saved,
			struct mv_err *err)
{
	struct saved_vm s = { .payload = payload };
	int r = sort_sections(&s, len, cfg, err);
	if (r)
		saved_vm_fini(&s);
	else
		*ret_saved = s;
	return r;
}

int saved_vm_parse(const uint8_t *payload, size_t len, const struct vmcfg *cfg, struct saved_vm *ret_saved,
		   struct mv_err *err)
{
	uint8_t *copy = malloc(len ? len : 1);
	if (!copy)
		return mv_fail(err, ENOMEM, "out of memory");
	memcpy(copy, payload, len);
	return sort_payload(copy, len, cfg, ret_saved, err);
}

int saved_vm_read(int state_fd, const struct vmcfg *cfg, struct saved_vm *ret_saved, struct mv_err *err)
{
	uint8_t *payload = NULL;
	size_t len;
	int r = snap_container_read(state_fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len,
				    err);
	return r ? r : sort_payload(payload, len, cfg, ret_saved, err);
}

void saved_vm_fini(struct saved_vm *s)
{
	mv_scratch_free(s->payload);
	*s = (struct saved_vm){ 0 };
}

static int check_memory(const struct vm *vm, const struct saved_section *s, struct mv_err *err)
{
	struct memory_map map;
	int r = memory_map_parse(s->bytes, s->len, &map, err);
	return r ? mv_wrap(err, "state") : memory_map_check(&map, &vm->mem, err);
}

int saved_vm_load(struct vm *vm, const struct saved_vm *s, struct mv_err *err)
{
	int r = s->memory.bytes ? check_memory(vm, &s->memory, err) : 0;
	for (unsigned i = 0; !r && i < vm->n_vcpus; i++)
		r = arch_vcpu_load(&vm->vcpu[i], s->vcpu[i].bytes, s->vcpu[i].len, err);
	r = r ? r : arch_vm_load(vm, s->arch.bytes, s->arch.len, err);
	r = r ? r : arch_vm_catch_up(vm, err);
	r = r ? r : serial_load(&vm->serial, s->serial.bytes, s->serial.len, err);
	for (unsigned i = 0; !r && i < vm->n_devs; i++)
		r = vio_load(vm->dev[i], s->dev[i].bytes, s->dev[i].len, err);
	// Before the first instruction the guest has another identity than its siblings.
	return r ? r : arch_new_generation(vm, true, err);
}

int saved_vm_kvm_load(struct vm *vm, const uint8_t *bytes, size_t len, struct mv_err *err)
{
	struct snap_section sec;
	size_t pos = 0;
	int r;
	// Ours, from saved_vm_kvm_state(): the sections are there, and in order.
	while ((r = snap_section_next(bytes, len, &pos, &sec, err)) > 0) {
		r = sec.kind == SECTION_VCPU ? arch_vcpu_load(&vm->vcpu[sec.index], sec.bytes, sec.len, err)
					     : arch_vm_load(vm, sec.bytes, sec.len, err);
		if (r)
			return r;
	}
	return r;
}

int saved_vm_kvm_state(struct vm *vm, struct mv_buf *out, struct mv_err *err)
{
	size_t mark;
	int r = 0;
	for (unsigned i = 0; !r && i < vm->n_vcpus; i++) {
		mark = snap_section_begin(out, SECTION_VCPU, i);
		r = arch_vcpu_save(&vm->vcpu[i], out, err);
		snap_section_end(out, mark);
	}
	if (r)
		return r;
	mark = snap_section_begin(out, SECTION_ARCH, 0);
	r = arch_vm_save(vm, out, err);
	snap_section_end(out, mark);
	return r || !out->failed ? r : mv_fail(err, ENOMEM, "out of memory");
}

int saved_vm_state(struct vm *vm, struct mv_buf *out, struct mv_err *err)
{
	struct shape shape = shape_of(&vm->cfg);
	size_t mark = snap_section_begin(out, SECTION_SHAPE, 0);
	mv_state_save(&shape_table, &shape, out);
	snap_section_end(out, mark);
	int r = vm->park.parked ? park_state(&vm->park, out, err) : saved_vm_kvm_state(vm, out, err);
	if (r)
		return r;
	mark = snap_section_begin(out, SECTION_MEMORY, 0);
	memory_map_save(&vm->mem, out);
	snap_section_end(out, mark);
	mark = snap_section_begin(out, SECTION_SERIAL, 0);
	serial_save(&vm->serial, out);
	snap_section_end(out, mark);
	for (unsigned i = 0; i < vm->n_devs; i++) {
		mark = snap_section_begin(out, SECTION_VIRTIO, i);
		vio_save(vm->dev[i], out);
		snap_section_end(out, mark);
	}
	return out->failed ? mv_fail(err, ENOMEM, "out of memory") : 0;
}
