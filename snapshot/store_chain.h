// SPDX-License-Identifier: Apache-2.0
// Snapshots that need their parents: the memory files of all of them, and making one complete.
// A parent is known by its id; its name is where it is looked for first (it may have been imported
// under another one). All files are hostile. Any thread, but what publishes has to be the
// one that does so (store.h).
#pragma once
#include "snapshot/store.h"

struct store_chain { // memory files, newest first (snapshot/chain.h)
	int *fd;
	unsigned n;
	bool raw_base;
	uint64_t memory_bytes;
};

// The name of the snapshot with this id. -ENOENT: none; else why the store can't be listed.
int store_find_id(struct store *s, const char *id, char ret_name[VMCFG_NAME_LEN]);

// Of how many snapshots the memory of m is, itself counted; m need not be published. -ENOENT:
// a parent is not here, or one of its name but with another id; -EINVAL: one is of another memory
// size; -E2BIG: more than CHAIN_MAX.
int store_chain_length(struct store *s, const struct manifest *m, unsigned *ret_n, struct mv_err *err);

// Opens the memory files of a snapshot; of length 1 if it needs no parent. A raw base is hashed;
// with verify all are, and all their chunks decoded. The id must be as given. -EINVAL: damaged,
// or a parent is missing.
int store_chain_open(struct store *s, const char *name, const char *id, bool verify,
		     struct store_chain *ret_chain, struct mv_err *err);
void store_chain_close(struct store_chain *c); // idempotent

// All indexes of it (chain_open()).
int store_chain_check(const struct store_chain *c, struct mv_err *err);

// Writes the whole memory of a snapshot to one file. new_name NULL: in its place, with the same id,
// so that children of it stay good; else as a new snapshot. kind: enum snap_memory_kind, or
// STORE_FORMAT_KEEP. Nothing to do (complete, of that format, in place): *ret_changed is false.
// All CPUs decode and compress; memory used does not depend on the VM's. Errors as of
// store_chain_open and store_commit; the snapshot is then as it was.
#define STORE_FORMAT_KEEP UINT32_MAX
int store_flatten(struct store *s, const char *name, const char *new_name, uint32_t kind,
		  struct manifest *ret_m, bool *ret_changed, struct mv_err *err);
