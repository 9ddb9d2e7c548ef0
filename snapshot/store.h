// SPDX-License-Identifier: Apache-2.0
// The snapshot store: a folder of snapshots, each a folder that describes itself:
//   <root>/snapshots/<name>/{manifest,state,memory}
// A snapshot is published by one rename(2) of a finished, synced folder from
// <root>/incoming/, so it is there whole or not at all; leftovers of a crash are
// removed at open. Published files are immutable. All files are hostile until checked.
// After store_open a struct store is only read, and what has to be exclusive is done
// by one system call: every function may run in any thread (commit hashes and syncs
// the whole memory file, so it is best not run in an event loop).
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/vmcfg.h"
#include "snapshot/manifest.h"

struct store {
	int root_fd, snapshots_fd, incoming_fd;
	int lock_fd; // one daemon per root
};

// Makes the folders if missing (mode 0700); the parent of root must exist. -EBUSY when
// another daemon uses the root; -EPERM when others may write to it.
int store_open(struct store *s, const char *root, struct mv_err *err);
void store_close(struct store *s);

// A snapshot being made. The files are open for writing until commit.
struct store_draft {
	char name[VMCFG_NAME_LEN];
	char dir[64]; // below incoming/; empty: finished
	int dir_fd, state_fd, memory_fd;
};

// -EEXIST when the name is taken, -EINVAL for a bad name, -ENOSPC...
int store_begin(struct store *s, const char *name, struct store_draft *ret_draft, struct mv_err *err);

// Checks and hashes what was written, writes the manifest, syncs, publishes. Fills the
// manifest's name and file list; the caller filled the rest and file[1].format, the memory
// file's. A raw one must be cfg.mem_mib long, a compressed one have a good index. The draft is
// finished either way.
// Whoever wrote the files must have closed them: as long as any process can still
// write to them, commit waits up to a second and then fails with -EBUSY. (Told by a
// read lease, fcntl(2); file systems without leases skip this.)
int store_commit(struct store *s, struct store_draft *d, struct manifest *m, struct mv_err *err);
void store_abort(struct store *s, struct store_draft *d); // idempotent

// Reads and checks a manifest (magic, version, checksum, every field). -ENOENT: no
// such snapshot; -EINVAL: damaged or foreign, the message says which and where.
int store_show(struct store *s, const char *name, struct manifest *ret_m, struct mv_err *err);

// Opens state and memory (read-only) for a restore; sizes and the state's checksum are
// checked against the manifest. With verify_memory the memory file is hashed too (reads
// all of it, 8 GB/s from the page cache) and each chunk of a compressed one is decoded.
int store_files(struct store *s, const struct manifest *m, bool verify_memory, int *ret_state_fd,
		int *ret_memory_fd, struct mv_err *err);

// Of a compressed memory file: header and index. Of a raw one: nothing.
int store_check_index(const struct manifest *m, int memory_fd, struct mv_err *err);

// Calls fn for every published snapshot by name order; damaged ones come with m NULL and
// the reason in err. Stops when fn returns nonzero and returns that. In the name of a
// foreign entry each character outside [A-Za-z0-9_.-] is shown as '?'.
int store_list(struct store *s,
	       int (*fn)(void *arg, const char *name, const struct manifest *m, const struct mv_err *err),
	       void *arg);

// Removes a snapshot: renamed away first, so that it is there whole or not at all. Open
// descriptors of it stay good. -ENOTEMPTY: the folder holds something else as well.
int store_delete(struct store *s, const char *name, struct mv_err *err);
