// SPDX-License-Identifier: Apache-2.0
// The working set of a snapshot: which pages its guest touches between its restore and the
// moment it is ready, recorded once by a clone and used by later ones, which have them loaded
// before they run. A hint: a wrong one costs time, never content.
//
// It is the file `working-set` of the snapshot's folder, a container (snapshot/format.h) with
//   head:    le64 memory bytes, le64 recorded (ns, Unix), char snapshot id[40], le32 extents,
//            le32 zero
//   extents: le32 first page, le32 pages; bit 31 of the latter: they were written. Ascending,
//            not overlapping.
// A page is 4 KiB of what a raw memory file would hold. Bytes read are hostile. Any thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/util.h"
#include "snapshot/store.h"

#define WS_FILE "working-set"
#define WS_NEW_FILE "working-set.new" // a crash may leave it
#define WS_MAGIC "THAWWSET"
#define WS_PAGE_BYTES 4096u
#define WS_MAX_EXTENTS (1u << 20)

struct ws_extent {
	uint32_t page, n_pages;
	bool written;
};

struct working_set {
	uint64_t memory_bytes, recorded_unix_ns;
	char snapshot_id[MV_UUID_LEN];
	struct ws_extent *extent;
	uint32_t n_extents, capacity;
	uint64_t read_pages, written_pages;
};

void ws_fini(struct working_set *w); // idempotent; of a zeroed one too

// Adds pages behind all others; extents that touch become one. -ENOMEM; -E2BIG: there are
// WS_MAX_EXTENTS; -EINVAL: not behind the others, or outside the memory.
int ws_add(struct working_set *w, uint64_t page, uint64_t n_pages, bool written);

// Writes at offset 0 of an empty file, no sync. Errors as of the container.
int ws_write(int fd, const struct working_set *w, struct mv_err *err);

// Reads and checks all of it; it must be of this snapshot ("" for one that is not yet of any) and
// this much memory. -EINVAL, -EFBIG: no such; -ENOMEM; read errors. The caller ends it with
// ws_fini().
int ws_read(int fd, const char *snapshot_id, uint64_t memory_bytes, struct working_set *ret_w,
	    struct mv_err *err);

// --- in the store. Only the thread that deletes and publishes may save and remove.

// Opens that of a published snapshot. -ENOENT: it has none; else it can't be opened. Its
// content is not looked at.
int ws_store_open(struct store *s, const char *snapshot, int *ret_fd, struct mv_err *err);

// Takes its place in one step, synced. w->snapshot_id says of which snapshot it is; -ENOENT when the
// one of that name is gone or is another one.
int ws_store_save(struct store *s, const char *snapshot, const struct working_set *w, struct mv_err *err);

// 0 also when there is none. -ENOENT: no such snapshot.
int ws_store_remove(struct store *s, const char *snapshot, struct mv_err *err);
