// SPDX-License-Identifier: Apache-2.0
// What the files of this folder share.
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "layout.h"
#include "microvm/base/err.h"
#include "microvm/vm.h"

extern const struct mv_table a64_machine_table; // of the section SECTION_ARCH

// Interrupt controller (gic.c): GICv3, or GICv2 where KVM has no other. Made before the vCPUs;
// arch_vcpus_made() readies it, since KVM takes no irqfd before.
int a64_gic_create(struct vm *vm, struct mv_err *err);
// Its registers in the order in which they are to be loaded. All vCPUs stand. *n: room, then number.
#define A64_GIC_MAX_VALUES 2048
int a64_gic_save(struct vm *vm, uint64_t *values, uint32_t *n, struct mv_err *err);
int a64_gic_load(struct vm *vm, const uint64_t *values, uint32_t n, struct mv_err *err);

// One register of a vCPU (KVM API 4.68), 64 bits wide.
int a64_get_reg(struct vcpu *c, uint64_t id, uint64_t *ret_value, struct mv_err *err);
int a64_set_reg(struct vcpu *c, uint64_t id, uint64_t value, struct mv_err *err);
// Where the vCPU is in the device tree and for the GIC: the affinity fields of MPIDR_EL1.
int a64_mpidr(struct vcpu *c, uint64_t *ret_mpidr, struct mv_err *err);
int a64_set_boot_registers(struct vcpu *c, uint64_t entry_gpa, uint64_t fdt_gpa, struct mv_err *err);

// Gives the guest what the configuration's mask leaves of the CPU. Before a vCPU has run.
int a64_mask_features(struct vm *vm, struct mv_err *err);

// Loads an Image, gzip'd or not, and the initrd; makes the device tree. The file's bytes are hostile.
int a64_load_kernel(struct vm *vm, int kernel_fd, int initrd_fd, uint64_t *ret_entry_gpa,
		    uint64_t *ret_fdt_gpa, struct mv_err *err);

// The caches of the host's first CPU, by /sys (caches.c): data or instructions only at level 1, then one
// unified a level. `shared`: with other CPUs. Returns how many; 0, too, when the host tells no sizes, or
// nothing can be read.
#define A64_MAX_CACHES 8
#define A64_HOST_CACHES "/sys/devices/system/cpu/cpu0/cache"
enum a64_cache_type { A64_CACHE_DATA, A64_CACHE_INSTRUCTION, A64_CACHE_UNIFIED };
struct a64_cache {
	uint32_t level, size_bytes, line_bytes, sets; // the last two 0: not known
	uint8_t type;                                 // enum a64_cache_type
	bool shared;
};
unsigned a64_read_caches(const char *folder, struct a64_cache ret_list[A64_MAX_CACHES]);
// CLIDR_EL1 of all vCPUs tells of these caches: KVM's own since Linux 6.3 lists fewer, and a kernel that
// finds the device tree and it apart believes neither. false: KVM has another one and keeps it (before 6.3,
// the host CPU's).
bool a64_show_caches(struct vm *vm, const struct a64_cache *list, unsigned n);

// What the device tree tells (fdt.c). It calls no KVM.
struct a64_machine {
	unsigned n_vcpus, gic_version, n_devs;
	uint64_t mpidr[VMCFG_MAX_VCPUS];
	uint64_t ram_bytes;                     // from A64_RAM on
	uint64_t initrd_gpa, initrd_end_gpa;    // equal: none
	struct a64_cache cache[A64_MAX_CACHES]; // lowest level first
	unsigned n_caches;
	const char *cmdline;
	const uint8_t *seed; // for the guest's random numbers; NULL: none
	size_t seed_bytes;
};
// Writes the flattened tree into buf. -ENOSPC: it does not fit.
int a64_build_fdt(const struct a64_machine *m, void *buf, size_t bytes, struct mv_err *err);
size_t a64_fdt_bytes(const void *fdt); // of a finished one
