// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "microvm/base/util.h"

static const char *log_program = "thaw";
static enum mv_level log_level = MV_INFO;

void mv_log_init(const char *program, enum mv_level level)
{
	log_program = program;
	log_level = level;
}

void mv_log(enum mv_level level, const char *fmt, ...)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };
	char line[700];
	va_list ap;

	if (level > log_level)
		return;
	int head = snprintf(line, sizeof line, "%s %s[%d]: ", names[level], log_program, (int)getpid());
	va_start(ap, fmt);
	int body = vsnprintf(line + head, sizeof line - (size_t)head - 1, fmt, ap);
	va_end(ap);
	size_t len = (size_t)head + (size_t)(body < 0 ? 0 : body);
	if (len > sizeof line - 2)
		len = sizeof line - 2;
	// One line stays one line, whatever a guest or client put into it.
	for (size_t i = (size_t)head; i < len; i++)
		if ((unsigned char)line[i] < 0x20)
			line[i] = '?';
	line[len++] = '\n';
	ssize_t ignored = write(STDERR_FILENO, line, len);
	(void)ignored;
}

bool mv_ratelimit_ok(struct mv_ratelimit *rl, unsigned burst)
{
	const uint64_t window_ns = 10ULL * 1000 * 1000 * 1000;
	uint64_t now = mv_now_ns();

	if (now - rl->window_start_ns > window_ns) {
		rl->window_start_ns = now;
		rl->used = 0;
	}
	return rl->used++ < burst;
}
