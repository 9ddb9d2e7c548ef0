// SPDX-License-Identifier: Apache-2.0
// What a snapshot says of itself: enough to restore by name alone. A container file
// (snapshot/format.h) with the fields of manifest_table.
#pragma once
#include <stdint.h>

#include "microvm/base/state.h"
#include "microvm/base/vmcfg.h"

enum manifest_arch { MANIFEST_X86_64 = 1, MANIFEST_AARCH64 = 2 };

struct manifest_file {
	char name[32]; // "state", "memory"
	uint64_t size_bytes, data_bytes; // data: without holes
	uint64_t xxh3; // XXH3-64 of the content; holes count as zeros
};

struct manifest {
	char name[VMCFG_NAME_LEN];
	char id[MV_UUID_LEN];
	char parent[VMCFG_NAME_LEN]; // the VM it was taken from
	char thaw_version[32];
	uint64_t created_unix_ns;
	uint32_t arch; // enum manifest_arch
	struct vmcfg cfg; // of the VM, as it ran
	struct manifest_file file[4];
	uint32_t n_files;
};

extern const struct mv_table manifest_table;
