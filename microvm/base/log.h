// SPDX-License-Identifier: Apache-2.0
// The log: lines on standard error, "LEVEL program[pid]: text". Only mains, loops
// and threads log; libraries return errors. Any thread; one write(2) a line.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum mv_level { MV_ERROR, MV_WARN, MV_INFO, MV_DEBUG };

// Sets the program name and the most verbose level shown (before threads start).
void mv_log_init(const char *program, enum mv_level level);

// What the calling thread is busy with, e.g. a request: "[tag] " before the text of its lines. Empty:
// nothing. Work that goes on later or elsewhere takes the tag along: worker.c, vm.c.
struct mv_log_tag {
	char text[65];
};
struct mv_log_tag mv_log_tag(void);
struct mv_log_tag mv_log_set_tag(struct mv_log_tag tag); // returns the one before, to be set again

void mv_log(enum mv_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// For messages that a guest or client can cause: true at most `burst` times per
// 10 s for one struct. Static storage, zero-initialised; races only miscount.
struct mv_ratelimit {
	uint64_t window_start_ns;
	unsigned used;
};
bool mv_ratelimit_ok(struct mv_ratelimit *rl, unsigned burst);

#define mv_log_limited(level, ...)                                                                           \
	do {                                                                                                 \
		static struct mv_ratelimit mv_rl_;                                                           \
		if (mv_ratelimit_ok(&mv_rl_, 5))                                                             \
			mv_log(level, __VA_ARGS__);                                                          \
	} while (0)
