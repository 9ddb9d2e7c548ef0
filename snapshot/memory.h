// SPDX-License-Identifier: Apache-2.0
// Guest memory into a file: raw, at the regions' file offsets, pages of zeros as holes.
// Called by the VM process while its vCPUs and I/O stand still; touches only the memory
// it is given, and does not fault in pages that the guest never touched.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/gmem.h"
#include "snapshot/manifest.h"
#include "snapshot/pages.h"

// Fills `fd`, an empty file open for writing, up to m->total_bytes (no sync).
// ret_data_bytes: what was written; the rest is holes. -EINVAL: the file is not empty;
// -ENOSPC and the like with a sentence.
int snap_memory_write(int fd, const struct gmem *m, uint64_t *ret_bytes, uint64_t *ret_data_bytes,
		      struct mv_err *err);

// The same with the finder forced, for tests and measurements; -ENOTSUP when this
// kernel lacks it.
int snap_memory_write_by(enum snap_memory_finder finder, int fd, const struct gmem *m, uint64_t *ret_bytes,
			 uint64_t *ret_data_bytes, struct mv_err *err);

// The pages that `changed` names, a bit each by their place in the file, zeros like others. An empty file
// becomes as long as all memory, and only these pages are data in it (lseek(2), SEEK_DATA): laid over an
// older complete file it makes the new one. -ENOTSUP: the file system's holes are coarser than a page, so
// that would be wrong. A complete file (any of m->total_bytes) is brought up to date in place. The caller has
// pages that are in `changed` and not loaded yet loaded first.
int snap_memory_write_changed(int fd, const struct gmem *m, const uint64_t *changed, uint64_t *ret_bytes,
			      uint64_t *ret_data_bytes, struct mv_err *err);

// As snap_memory_write(), or a compressed memory file (snapshot/chunk.h), of which all bytes are data.
int snap_memory_write_as(enum snap_memory_kind kind, int fd, const struct gmem *m, uint64_t *ret_bytes,
			 uint64_t *ret_data_bytes, struct mv_err *err);
