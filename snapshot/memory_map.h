// SPDX-License-Identifier: Apache-2.0
// Which guest addresses are memory, and where in a raw memory file they are: a section of state files, so
// that they say it themselves, and so that a thaw that lays memory out otherwise refuses to load them. State
// files before it have none. Any thread; no state. What is parsed is hostile.
#pragma once
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"

struct memory_map {
	struct memory_map_region {
		uint64_t gpa, size_bytes, file_offset;
	} region[GMEM_MAX_REGIONS];
	uint32_t n_regions;
};

// Appends its encoding.
void memory_map_save(const struct gmem *m, struct mv_buf *out);

// -EINVAL: not ascending, or file offsets that don't follow each other.
int memory_map_parse(const uint8_t *bytes, size_t len, struct memory_map *ret_map, struct mv_err *err);

// Is it this memory's? -EINVAL says how it differs.
int memory_map_check(const struct memory_map *map, const struct gmem *m, struct mv_err *err);
