// SPDX-License-Identifier: Apache-2.0
// For the store's own parts: a published snapshot by its folder. What is read through one
// descriptor of the folder fits together, also when the snapshot is flattened meanwhile.
// Any thread; all files are hostile.
#pragma once
#include "snapshot/store.h"

// -ENOENT: there is none; -EINVAL: no name, or not a folder.
int store_dir_open(struct store *s, const char *name, int *ret_dir_fd, struct mv_err *err);
int store_dir_manifest(int dir_fd, const char *name, struct manifest *ret_m, struct mv_err *err);

// One of the manifest's files, read-only, its size checked; with verify it is hashed, and a
// compressed one decoded. "manifest": itself.
int store_dir_file(int dir_fd, const struct manifest *m, const char *name, bool verify, int *ret_fd,
		   struct mv_err *err);

// A draft that takes the place of the snapshot of that name, or a new one: only the folder.
int store_begin_copy(struct store *s, const char *name, bool replace, struct store_draft *ret_draft,
		     struct mv_err *err);

// Publishes it. m has the list of the files, which are published ones linked; new_memory: but
// for the memory file, which was written. The draft is finished either way. A snapshot that was
// replaced is removed; open descriptors of it stay good.
int store_commit_copy(struct store *s, struct store_draft *d, struct manifest *m, bool new_memory,
		      bool replace, struct mv_err *err);
