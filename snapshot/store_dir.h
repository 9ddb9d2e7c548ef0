// SPDX-License-Identifier: Apache-2.0
// What the store's own parts share: a published snapshot by its folder, files in folders, and drafts of
// copies. What is read through one descriptor of the folder fits together, also when the snapshot is
// flattened meanwhile. Any thread; all files are hostile.
#pragma once
#include <dirent.h>

#include "snapshot/store.h"

#define STORE_OPEN_DIR (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define STORE_LAYER_PREFIX "layer-" // see manifest_layer_name()

#define STORE_AUTO_DIR __attribute__((cleanup(store_cleanup_dir))) DIR
void store_cleanup_dir(DIR **d);

// A stream of its own over a folder, whatever other threads read from the same fd. NULL: errno.
DIR *store_dir_stream(int parent_fd, const char *name);
bool store_is_dot(const char *name);
void store_make_printable(char *name); // what no snapshot's name has becomes '?'
int store_check_name(const char *name, struct mv_err *err);

// Removes a flat folder (or a stray file); what is deeper stays and is left alone.
// Adds what it took on disk to *ret_bytes.
int store_remove_entry(int parent_fd, const char *name, uint64_t *ret_bytes);

// -ENOTEMPTY: the folder of a snapshot has something else than what thaw puts there.
int store_check_only_ours(int dir_fd, const char *name, struct mv_err *err);

// A regular file, read-only. -EINVAL: missing, or something else.
int store_file_open(int dir_fd, const char *name, int *ret_fd, uint64_t *ret_bytes, struct mv_err *err);
int store_file_hash(int fd, struct manifest_file *f, struct mv_err *err); // by name and size: the rest

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
