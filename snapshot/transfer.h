// SPDX-License-Identifier: Apache-2.0
// A snapshot as one stream of bytes, for another store on this or another host:
//
//   header    magic "THAWEXPO", le16 major, le16 minor, le32 zero, le64 XXH3-64 of the 16 before
//   record    le32 kind, le32 file, le64 offset, le64 length, le64 checksum; `length` bytes
//
//   manifest  (kind 1) the snapshot's manifest file as it is; the first record
//   data      (kind 2) bytes of the manifest's file number `file`, at most 256 KiB; by file,
//             then by offset, without overlap. What does not come is a hole
//   end       (kind 3) offset: the number of records before it. Nothing follows
//
// A record's checksum covers its own head and its bytes. All bytes read here are hostile: a
// record is believed only when its checksum is right, and the files only when store_commit_import()
// has compared them with the manifest. All of this blocks: not for a loop's thread.
#pragma once
#include "snapshot/store.h"

#define TRANSFER_MAGIC "THAWEXPO"

struct store_export {
	struct manifest m;
	int manifest_fd, fd[MV_ARRAY_LEN(((struct manifest *)0)->file)];
};

// Opens everything, so that the export goes on if the snapshot is deleted meanwhile. Quick.
// Errors as of store_show and store_files. *ret_x (never NULL) is freed by the caller.
int store_export_open(struct store *s, const char *name, struct store_export **ret_x, struct mv_err *err);
void store_export_free(struct store_export *x); // NULL allowed

// Writes the stream. -EPIPE: nobody reads any more. -EINVAL: a file was damaged meanwhile.
int store_export_write(const struct store_export *x, int out_fd, struct mv_err *err);

// Reads a stream to its end into a draft of store_begin_import(), and its manifest. The
// caller then commits or aborts. -EINVAL: not (or not all of) an export; -ENOSPC...
int store_import_read(struct store_draft *d, int in_fd, struct manifest *ret_m, struct mv_err *err);
