// SPDX-License-Identifier: Apache-2.0
// Fills the memory of VMs that each have a userfaultfd of their own, from one memory file: the
// work of thaw-page-handler (api/page_handler.c has its socket and the protocol). Each VM gets
// private copies, 64 KiB around a fault; pages of zeros, and those that the VM gave back, are
// the kernel's page of zeros. One thread.
//
// Trust: regions, addresses and the userfaultfd come from VM processes and are hostile; what is
// done to a VM's userfaultfd hurts none but itself. The memory file is checked as it is read.
#pragma once
#include "snapshot/chunk.h"

#define PH_MAX_REGIONS 16

struct ph_source {
	int fd;
	uint64_t memory_bytes;
	struct chunk_index index; // entry NULL: a raw file
	uint64_t loaded;          // 1 + the chunk that is in `chunk`; 0: none
	bool loaded_zero;
	uint8_t *chunk, *scratch; // CHUNK_BYTES each
};

// A raw or compressed memory file, told by its first bytes. -EINVAL: neither, or damaged.
int ph_source_open(const char *path, struct ph_source *ret_source, struct mv_err *err);
void ph_source_fini(struct ph_source *s); // idempotent

struct ph_region {
	uint64_t hva, size_bytes; // in the VM process
	uint64_t file_offset;     // in the memory file
};

struct ph_vm {
	struct ph_region region[PH_MAX_REGIONS];
	unsigned n_regions;
	int uffd;
	uint8_t *removed; // a bit per page of the host, by regions: given back, so zeros from then on
	uint64_t faults, pages_copied, pages_removed;
};

// Checks the regions (whole pages of the host, apart from each other, inside the memory file) and the
// descriptor, which is taken when 0 is returned. -EINVAL with a sentence.
int ph_vm_init(struct ph_vm *v, const struct ph_source *s, const struct ph_region *region, unsigned n_regions,
	       int uffd, struct mv_err *err);
void ph_vm_fini(struct ph_vm *v);

// Answers some of what there is to read. 0; -ESRCH: the VM process is gone; other errors of
// read(2): nothing can be done for this VM any more.
int ph_vm_serve(struct ph_vm *v, struct ph_source *s);
