// SPDX-License-Identifier: Apache-2.0
// The files of a snapshot are written beside the old ones and take their places when they are whole: a
// clone that has the old memory file mapped keeps what it has (a MAP_PRIVATE page that was not touched yet
// shows every later write to the file), and a snapshot that fails leaves the old one as it was. Firecracker
// writes in place; the difference shows to who holds the old file by a hard link or a descriptor, and needs a
// folder that can be written and room for both. A process that is killed half-way leaves ".<name>." with
// eight hexadecimal digits, and perhaps ".old", in that folder.
//
//   open --> fd is written --> publish (all at once)
//     `-------------------------> drop (idempotent, also after publish)
//
// Blocks on the disk. Any one thread.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"

struct fc_outfile {
	int fd;              // open for reading and writing
	char path[PATH_MAX]; // links followed
	char tmp[PATH_MAX];  // empty: none
	// while it is published: where the old one is kept, if it is; lost: there is one that could not be
	char old[PATH_MAX];
	bool kept, lost;
};

#define FC_OUTFILE_NONE                                                                                      \
	{                                                                                                    \
		.fd = -1                                                                                     \
	}
void fc_outfile_drop(struct fc_outfile *f);
#define FC_OUTFILE __attribute__((cleanup(fc_outfile_drop))) struct fc_outfile

// An empty file that is to become `path`, with the mode of the old one. base_bytes: an old file of just this
// size is copied first, for a Diff that is merged into it (0: never); holes stay holes, and file systems that
// share blocks (XFS, Btrfs) copy nothing. -EINVAL: something at `path` that is no regular file; -ENOENT,
// -EACCES, -ENOSPC and the like with a sentence.
int fc_outfile_open(const char *path, uint64_t base_bytes, struct fc_outfile *ret_file, struct mv_err *err);

// Syncs the state's file and the n others and renames them. On failure the old ones are there again. Should
// the host fail in between, there is no state file, or all are old, or all are new: never some of each.
// -EINVAL: two are the same file.
int fc_outfile_publish(struct fc_outfile *state, struct fc_outfile *other, unsigned n, struct mv_err *err);

// Lays the data of a Diff over a complete memory file, which it replaces like a snapshot does. -EINVAL: there
// is no memory file of the same size.
int fc_memory_rebase(const char *memory_path, const char *diff_path, struct mv_err *err);

// Opens a memory file to be restored from. -EINVAL: not of mem_mib; others as open(2).
int fc_memory_open(const char *path, uint32_t mem_mib, int *ret_fd, struct mv_err *err);
