// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "microvm/base/util.h"

static const char *log_program = "thaw";
static enum mv_level log_level = MV_INFO;
static _Thread_local struct mv_log_tag log_tag;

void mv_log_init(const char *program, enum mv_level level)
{
	log_program = program;
	log_level = level;
}

struct mv_log_tag mv_log_tag(void) { return log_tag; }

struct mv_log_tag mv_log_set_tag(struct mv_log_tag tag)
{
	struct mv_log_tag before = log_tag;
	log_tag = tag;
	return before;
}

void mv_log(enum mv_level level, const char *fmt, ...)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };
	char line[700];
	va_list ap;

	if (level > log_level)
		return;
	const char *tag = log_tag.text;
	int head = snprintf(line, sizeof line, "%s %s[%d]: %s%s%s", names[level], log_program, (int)getpid(),
			    tag[0] ? "[" : "", tag, tag[0] ? "] " : "");
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
