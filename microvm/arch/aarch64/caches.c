// SPDX-License-Identifier: Apache-2.0
// The host's caches, for the device tree, by Linux' /sys
// (Documentation/ABI/testing/sysfs-devices-system-cpu): since 6.3 KVM's CCSIDR_EL1 tells a guest of caches
// with one set, as a virtual CPU moves between real ones.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "a64.h"

// The first word of a file, or "".
static void read_word(int dir_fd, unsigned index, const char *name, char ret_text[32])
{
	char path[64];
	ssize_t n = -1;
	snprintf(path, sizeof path, "index%u/%s", index, name);
	MV_FD fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		n = read(fd, ret_text, 31);
	ret_text[n > 0 ? n : 0] = 0;
	ret_text[strcspn(ret_text, " \n")] = 0;
}

// "32K"; 0: not there, or not a number.
static uint32_t read_number(int dir_fd, unsigned index, const char *name)
{
	char text[32], *end;
	read_word(dir_fd, index, name, text);
	unsigned long v = strtoul(text, &end, 10);
	unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 0;
	return v <= UINT32_MAX >> shift && !end[shift ? 1 : 0] ? (uint32_t)v << shift : 0;
}

static bool read_type(int dir_fd, unsigned index, uint8_t *ret_type)
{
	static const char *const words[] = { "Data", "Instruction", "Unified" }; // enum a64_cache_type
	char text[32];
	read_word(dir_fd, index, "type", text);
	for (uint8_t i = 0; i < MV_ARRAY_LEN(words); i++)
		if (!strcmp(text, words[i])) {
			*ret_type = i;
			return true;
		}
	return false;
}

unsigned a64_read_caches(const char *folder, struct a64_cache ret_list[A64_MAX_CACHES])
{
	MV_FD dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	unsigned n = 0, below = 0;
	for (unsigned i = 0; dir_fd >= 0 && i < A64_MAX_CACHES; i++) {
		char shared[32];
		struct a64_cache c = { .level = read_number(dir_fd, i, "level"),
				       .size_bytes = read_number(dir_fd, i, "size"),
				       .line_bytes = read_number(dir_fd, i, "coherency_line_size"),
				       .sets = read_number(dir_fd, i, "number_of_sets") };
		read_word(dir_fd, i, "shared_cpu_list", shared);
		c.shared = strpbrk(shared, ",-");
		// Level after level, each with a size: what is behind a gap can't be told.
		if (!read_type(dir_fd, i, &c.type) || !c.size_bytes || c.level < 1 || c.level < below ||
		    c.level > below + 1 || (c.level > 1 && c.type != A64_CACHE_UNIFIED))
			break;
		below = c.level;
		ret_list[n++] = c;
	}
	return n;
}
