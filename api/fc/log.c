// SPDX-License-Identifier: Apache-2.0
#include "api/fc/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "api/fc/objects.h"
#include "microvm/base/util.h"

#define LINE_BYTES 2048
#define FILE_MODE 0644

static const char *const names[] = { "OFF", "ERROR", "WARN", "INFO", "DEBUG", "TRACE" };

void fc_log_init(struct fc_log *g, const char *id)
{
	*g = (struct fc_log){ .id = id, .fd = -1, .level = FC_INFO, .pipe_fd = -1 };
}

void fc_log_fini(struct fc_log *g)
{
	mv_watch_del(&g->watch);
	mv_close(&g->pipe_fd);
	mv_close(&g->fd);
}

int fc_open_output(const char *what, const char *path, int *ret_fd, struct api_err *err)
{
	// O_RDWR: a FIFO opens, and takes some, before there is a reader.
	int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, FILE_MODE);
	if (fd < 0)
		return api_fail(err, API_FILE_INVALID, "%s: can't open %s: %s", what, path, strerror(errno));
	*ret_fd = fd;
	return 0;
}

static int parse_level(const char *text, enum fc_level *ret_level)
{
	for (unsigned i = 0; i < MV_ARRAY_LEN(names); i++)
		if (!strcasecmp(text, names[i])) {
			*ret_level = i;
			return 0;
		}
	if (strcasecmp(text, "warning"))
		return -EINVAL;
	*ret_level = FC_WARN;
	return 0;
}

int fc_log_set(struct fc_log *g, const struct fc_logger *to, struct api_err *err)
{
	enum fc_level level = g->level;
	int fd = -1, r = 0;
	if (to->has_level && parse_level(to->level, &level))
		return api_fail(err, API_INVALID_VALUE,
				"level: \"%s\" is none of Off, Trace, Debug, Info, Warn, Warning and Error",
				to->level);
	if (to->has_log_path)
		r = fc_open_output("log_path", to->log_path, &fd, err);
	if (r)
		return r;
	if (fd >= 0) {
		mv_close(&g->fd);
		g->fd = fd;
	}
	g->level = level;
	if (to->has_show_level)
		g->show_level = to->show_level;
	if (to->has_show_log_origin)
		g->show_origin = to->show_log_origin;
	return 0;
}

static void put_line(struct fc_log *g, enum fc_level level, const char *thread, const char *origin,
		     const char *text)
{
	char line[LINE_BYTES], date[32];
	struct timespec now;
	struct tm t;
	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &t);
	strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &t);
	int n = snprintf(line, sizeof line - 1, "%s.%09ld [%s:%s%s%s%s%s] %s", date, now.tv_nsec, g->id,
			 thread, g->show_level ? ":" : "", g->show_level ? names[level] : "",
			 g->show_origin ? ":" : "", g->show_origin ? origin : "", text);
	size_t len = n < (int)sizeof line - 1 ? (size_t)n : sizeof line - 2;
	line[len++] = '\n';
	if (write(g->fd < 0 ? STDOUT_FILENO : g->fd, line, len) != (ssize_t)len)
		g->missed++;
}

void fc_log_write(struct fc_log *g, enum fc_level level, const char *file, int line, const char *fmt, ...)
{
	char text[LINE_BYTES / 2 + LINE_BYTES / 4], origin[64];
	va_list ap;
	if (level > g->level)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	for (char *p = text; *p; p++) // of clients: one line each
		if ((unsigned char)*p < 0x20)
			*p = ' ';
	snprintf(origin, sizeof origin, "%s:%d", file, line);
	put_line(g, level, "main", origin, text);
}

// "LEVEL thaw-vmm[pid]: text"
static void vmm_line(struct fc_log *g, const char *s)
{
	size_t n = strcspn(s, " ");
	enum fc_level level = FC_INFO;
	const char *text = strstr(s, "]: ");
	for (unsigned i = FC_ERROR; i <= FC_DEBUG; i++)
		if (n == strlen(names[i]) && !strncasecmp(s, names[i], n))
			level = i;
	if (level <= g->level)
		put_line(g, level, "vmm", "thaw-vmm", text ? text + 3 : s);
}

void fc_log_drain(struct fc_log *g)
{
	char buf[4096];
	ssize_t n = g->pipe_fd < 0 ? 0 : read(g->pipe_fd, buf, sizeof buf);
	if (n <= 0 && (n == 0 || errno != EAGAIN))
		mv_watch_del(&g->watch);
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] != '\n' && g->n_line < sizeof g->line - 1) {
			g->line[g->n_line++] = (unsigned char)buf[i] < 0x20 ? ' ' : buf[i];
			continue;
		}
		g->line[g->n_line] = 0;
		g->n_line = 0;
		vmm_line(g, g->line);
	}
}

static void on_pipe(void *arg, uint32_t events)
{
	(void)events;
	fc_log_drain(arg);
}

int fc_log_pipe(struct fc_log *g, struct mv_loop *l, int *ret_write_fd)
{
	int p[2];
	if (pipe2(p, O_CLOEXEC))
		return -errno;
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	mv_watch_del(&g->watch);
	mv_close(&g->pipe_fd);
	g->pipe_fd = p[0];
	g->n_line = 0;
	int r = mv_watch_add(l, &g->watch, g->pipe_fd, EPOLLIN, on_pipe, g);
	if (r)
		close(p[1]);
	else
		*ret_write_fd = p[1];
	return r;
}
