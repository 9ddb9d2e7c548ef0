// SPDX-License-Identifier: Apache-2.0
// What cmocka tests share: its includes in their order, random numbers that are the
// same on every run, files and folders that go away.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/mman.h>
#include <unistd.h>

// xorshift64: the same sequence for the same seed (not 0).
static inline uint64_t t_rand(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

// Writes guest memory as guests do: whenever it likes, also while a device reads it. Devices copy once and
// check the copy, so that is no race for SAN=tsan to report.
#define T_AS_GUEST __attribute__((no_sanitize("thread")))

// One to four random bytes of buf (of len > 0) become something else, mostly extremes.
T_AS_GUEST static inline void t_mutate(uint8_t *buf, size_t len, uint64_t *seed)
{
	static const uint8_t nasty[] = { 0, 1, 0x7f, 0x80, 0xff };
	for (uint64_t n = 1 + t_rand(seed) % 4; n; n--) {
		uint64_t r = t_rand(seed);
		buf[(r >> 8) % len] = r & 0x80 ? nasty[(r & 0x7f) % sizeof nasty] : (uint8_t)(r >> 32);
	}
}

// An empty file without a name.
static inline int t_file(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static inline int t_remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static inline void t_remove_tree(const char *path) { nftw(path, t_remove_one, 16, FTW_DEPTH | FTW_PHYS); }

// A new folder; the caller gives it to t_remove_tree.
static inline void t_tmpdir(char ret_path[64])
{
	const char *base = getenv("TMPDIR");
	snprintf(ret_path, 64, "%.40s/thaw-test-XXXXXX", base ? base : "/tmp");
	assert_non_null(mkdtemp(ret_path));
}

// How many descriptors this process has: before and after must agree.
static inline int t_count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

#define assert_message(err, text)                                                                            \
	do {                                                                                                 \
		if (!strstr((err).msg, (text)))                                                              \
			fail_msg("message is \"%s\", without \"%s\"", (err).msg, (text));                    \
	} while (0)
