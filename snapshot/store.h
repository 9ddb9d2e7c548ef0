// SPDX-License-Identifier: Apache-2.0
// The snapshot store: a folder of snapshots, each a folder that describes itself:
//   <root>/snapshots/<name>/{manifest,state,memory,layer-<drive>.<n>...}, and working-set
//   (working_set.h), which alone may come later, be replaced and go
// A snapshot is published by one rename(2) of a finished, synced folder from
// <root>/incoming/, so it is there whole or not at all; leftovers of a crash are
// removed at open. Published files are immutable. All files are hostile until checked.
// What has to be exclusive is done by one system call or under the lock: every function may run in any thread
// (commit hashes and syncs the whole memory file, so it is best not run in an event loop).
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/vmcfg.h"
#include "snapshot/manifest.h"

struct store {
	int root_fd, snapshots_fd, incoming_fd;
	struct store_lock *held;        // one daemon per root (store_lock.h)
	pthread_mutex_t lock;           // a draft is made, or leftovers are looked for
	struct store_gc {               // what store_gc() did; here: at open
		unsigned removed, kept; // kept: could not be removed
		uint64_t freed_bytes;
	} cleaned;
};

#define STORE_CLOSED                                                                                         \
	{                                                                                                    \
		.root_fd = -1, .snapshots_fd = -1, .incoming_fd = -1                                         \
	}

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

// While dir_fd is open the folder is locked (flock), so that store_gc() leaves it alone.
// -EEXIST when the name is taken, -EINVAL for a bad name, -ENOSPC...
int store_begin(struct store *s, const char *name, struct store_draft *ret_draft, struct mv_err *err);

// Adds a file that exists (of the store's file system) by a hard link: a drive's layer.
// Nobody may have it open for writing from here on.
int store_link(struct store_draft *d, int src_dir_fd, const char *src_name, const char *name,
	       struct mv_err *err);

// Checks and hashes what was written, writes the manifest, syncs, publishes. Fills the
// manifest's name and file list; the caller filled the rest and file[1].format, the memory
// file's. A raw one must be cfg.mem_mib long, a compressed one have a good index. -ENOENT: it needs
// a parent snapshot that is not here. The draft is finished either way.
// Whoever wrote the files must have closed them: as long as any process can still
// write to them, commit waits up to a second and then fails with -EBUSY. (Told by a
// read lease, fcntl(2); file systems without leases skip this.)
int store_commit(struct store *s, struct store_draft *d, struct manifest *m, struct mv_err *err);

// A draft of a snapshot that was made elsewhere: without files; they are made one by one
// (-EINVAL: no name for a file of a snapshot) and closed by the caller.
int store_begin_import(struct store *s, const char *name, struct store_draft *ret_draft, struct mv_err *err);
int store_draft_file(struct store_draft *d, const char *file, int *ret_fd, struct mv_err *err);

// As store_commit, but the manifest has the file list and each file must be as it says.
// The name becomes the draft's; the id a new one when the store has a snapshot of that id.
// -ENOENT: it needs a parent snapshot that is not here.
int store_commit_import(struct store *s, struct store_draft *d, struct manifest *m, struct mv_err *err);
void store_abort(struct store *s, struct store_draft *d); // idempotent

// Reads and checks a manifest (magic, version, checksum, every field). -ENOENT: no
// such snapshot; -EINVAL: damaged or foreign, the message says which and where.
int store_show(struct store *s, const char *name, struct manifest *ret_m, struct mv_err *err);

// Tells whether a snapshot is still the one that was looked at. -ENOENT and the like.
struct store_stamp {
	uint64_t device, inode, changed_ns;
};
int store_stamp(struct store *s, const char *name, struct store_stamp *ret_stamp);
bool store_stamp_same(const struct store_stamp *a, const struct store_stamp *b);

// Opens state and memory (read-only) for a restore; sizes and the state's checksum are
// checked against the manifest. With verify_memory the memory file and layers are hashed too
// (reads all of them, 8 GB/s from the page cache) and each chunk of a compressed one is decoded;
// and the memory of the parents if they are needed.
int store_files(struct store *s, const struct manifest *m, bool verify_memory, int *ret_state_fd,
		int *ret_memory_fd, struct mv_err *err);

// Manifest and files as of one moment, whatever is published meanwhile; not hashed but the state.
int store_show_files(struct store *s, const char *name, struct manifest *ret_m, int *ret_state_fd,
		     int *ret_memory_fd, struct mv_err *err);

// Opens one of the manifest's files, or the manifest itself (file "manifest"), read-only;
// with verify it is hashed. Errors as of store_files.
int store_open_file(struct store *s, const struct manifest *m, const char *file, bool verify, int *ret_fd,
		    struct mv_err *err);

// What its files are long, and what they take on disk, now.
struct store_usage {
	uint64_t apparent_bytes, disk_bytes;
};
struct store_usage store_usage(struct store *s, const struct manifest *m);

// Calls fn for every entry as it is in the file system, by name order, and reads none. Stops
// when fn returns nonzero and returns that.
int store_names(struct store *s, int (*fn)(void *arg, const char *name), void *arg);

// Links all layers of a drive into a folder, as "0", "1"...; what is there already is an
// error (-EEXIST). -EXDEV: not the store's file system.
int store_copy_layers(struct store *s, const struct manifest *m, uint32_t drive, int dst_dir_fd,
		      struct mv_err *err);

// Calls fn for every published snapshot by name order; damaged ones come with m NULL and
// the reason in err. Stops when fn returns nonzero and returns that. In the name of a
// foreign entry each character outside [A-Za-z0-9_.-] is shown as '?'.
int store_list(struct store *s,
	       int (*fn)(void *arg, const char *name, const struct manifest *m, const struct mv_err *err),
	       void *arg);

// Removes a snapshot: renamed away first, so that it is there whole or not at all. Open
// descriptors of it stay good. -ENOTEMPTY: the folder holds something else as well.
int store_delete(struct store *s, const char *name, struct mv_err *err);

// Removes it with the snapshots that can't be restored without it (force), those first; without
// force -EBUSY, naming one, when there are any. fn is called for each that is gone.
int store_delete_tree(struct store *s, const char *name, bool force, void (*fn)(void *arg, const char *name),
		      void *arg, struct mv_err *err);

// Removes what crashes left in incoming/: everything that no draft holds. fn (may be NULL) is
// called for each removed entry. An entry with folders inside is not ours and stays.
int store_gc(struct store *s, void (*fn)(void *arg, const char *entry, uint64_t bytes), void *arg,
	     struct store_gc *ret_gc, struct mv_err *err);
