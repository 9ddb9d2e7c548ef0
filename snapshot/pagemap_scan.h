// SPDX-License-Identifier: Apache-2.0
// The ioctl PAGEMAP_SCAN on /proc/<pid>/pagemap, from linux/fs.h of Linux 6.7 (older headers lack
// it). Documentation/admin-guide/mm/pagemap.rst. Private to the finders of pages.
#pragma once
#include <stdint.h>
#include <sys/ioctl.h>

struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
		category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_IS_FILE (1u << 2)
#define SCAN_IS_PRESENT (1u << 3)
#define SCAN_IS_SWAPPED (1u << 4)
#define SCAN_IS_PFNZERO (1u << 5)
