// SPDX-License-Identifier: Apache-2.0
// What a snapshot says of itself: enough to restore by name alone. A container file
// (snapshot/format.h) with the fields of manifest_table. Any thread; no state.
//
// manifest_file.xxh3 is snap_xxh3_file() of format.h: the XXH3-64 of the list of XXH3-64s
// of the file's 64 KiB chunks. It is a property of the content alone, so it survives
// copying by tools that fill holes or make new ones, and holes are hashed for free.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/state.h"
#include "microvm/base/vmcfg.h"

enum manifest_arch { MANIFEST_X86_64 = 1, MANIFEST_AARCH64 = 2 };
extern const char *const manifest_archs[];     // their names as uname(2) has them, from the first on; NULL
const char *manifest_arch_name(uint32_t arch); // "unknown" for what is none
uint32_t manifest_arch_here(void);             // of this host; 0: none of them

#define MANIFEST_MAX_FILES (4 + VMCFG_MAX_DRIVES * VMCFG_MAX_LAYERS)

// How a memory file is to be written; the last two are of format MANIFEST_LZ4 (snapshot/codec.h).
enum snap_memory_kind { SNAP_MEMORY_RAW, SNAP_MEMORY_LZ4, SNAP_MEMORY_LZ4_HIGH };
enum manifest_format { MANIFEST_RAW, MANIFEST_LZ4 }; // of a memory file: snapshot/memory.h, chunk.h

struct manifest_file {
	char name[32];                   // "state", "memory", manifest_layer_name()
	uint64_t size_bytes, data_bytes; // data: without holes, as it was when published
	uint64_t xxh3;                   // of the content; holes count as zeros
	uint32_t format;                 // enum manifest_format
};

struct manifest {
	char name[VMCFG_NAME_LEN];
	char id[MV_UUID_LEN];
	char parent[VMCFG_NAME_LEN]; // the VM it was taken from
	char thaw_version[32];
	uint64_t created_unix_ns;
	uint32_t arch;    // enum manifest_arch
	struct vmcfg cfg; // of the VM, as it ran
	struct manifest_file file[MANIFEST_MAX_FILES];
	uint32_t n_files;
	// The snapshot that the VM was cloned from; empty: none. A plain snapshot only remembers
	// it; one that needs_parent can't be restored without it.
	char parent_snapshot[VMCFG_NAME_LEN], parent_snapshot_id[MV_UUID_LEN];
	bool needs_parent;
};

extern const struct mv_table manifest_table;

// Writes and reads the file; both do all checks, so that what was written can be read.
// Errors as for the container; the message begins with "manifest".
int manifest_save(int fd, const struct manifest *m, struct mv_err *err);
int manifest_load(int fd, struct manifest *ret_m, struct mv_err *err);

// What ranges can't say: names, the VM's configuration, exactly one state and one
// memory file, memory as large as the VM's, layers for the drives that have some. 0 or -EINVAL.
int manifest_check(const struct manifest *m, struct mv_err *err);

// The copy-on-write layers of drive i are files "layer-<i>.<n>", n from 0, the oldest. Each
// snapshot has all that its drives need but the base (hard links, so shared): none depends
// on another one.
void manifest_layer_name(char ret_name[32], uint32_t drive, uint32_t n);
uint32_t manifest_layers(const struct manifest *m, uint32_t drive); // how many

// NULL when there is no such file.
const struct manifest_file *manifest_file_find(const struct manifest *m, const char *name);
