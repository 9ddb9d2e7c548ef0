// SPDX-License-Identifier: Apache-2.0
// thaw console: once, following, writing, or as a terminal: then one thread shows what the
// guest says while the main one sends what is typed, each with a connection of its own.
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define LEAVE 0x1d // Ctrl-]
#define WAIT_MS 20000

// One piece of output to standard output; *ret_n its size.
static int show_piece(struct cli *c, uint64_t *offset, unsigned wait_ms, size_t *ret_n)
{
	struct client_reply r = { 0 };
	char path[200];
	snprintf(path, sizeof path, "/v1/vms/%s/console?offset=%" PRIu64 "&wait_ms=%u", c->pos[0], *offset,
		 wait_ms);
	int status = cli_raw(c, "GET", path, NULL, 0, &r);
	if (!status)
		status = cli_check(c, &r);
	if (!status) {
		*offset = r.console_next;
		*ret_n = r.len;
		if (r.len && mv_write_full(STDOUT_FILENO, r.body, r.len))
			status = cli_fail(EXIT_DAEMON_ERROR, "can't write the output");
	}
	client_reply_fini(&r);
	return status;
}

static bool has_exited(struct cli *c)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s", c->pos[0]);
	bool exited = status || !strcmp(js_str(v, "state", ""), "exited");
	js_free(v);
	return exited;
}

static int show_all(struct cli *c, bool follow)
{
	uint64_t offset = 0;
	size_t n = 0;
	for (;;) {
		int status = show_piece(c, &offset, follow ? WAIT_MS : 0, &n);
		if (status || (!n && (!follow || has_exited(c))))
			return status;
	}
}

static int send_bytes(struct cli *c, const char *bytes, size_t n)
{
	struct client_reply r = { 0 };
	char path[200];
	snprintf(path, sizeof path, "/v1/vms/%s/console", c->pos[0]);
	int status = cli_raw(c, "PUT", path, bytes, n, &r);
	if (!status)
		status = cli_check(c, &r);
	client_reply_fini(&r);
	return status;
}

static int write_line(struct cli *c)
{
	size_t n = strlen(c->write);
	char *line = malloc(n + 2);
	if (!line)
		return cli_fail(EXIT_DAEMON_ERROR, "out of memory");
	memcpy(line, c->write, n);
	line[n] = '\n';
	int status = send_bytes(c, line, n + 1);
	free(line);
	return status;
}

// --- terminal -----------------------------------------------------------------------------
static struct termios before;
static bool is_raw;

static void restore_terminal(void)
{
	if (__atomic_exchange_n(&is_raw, false, __ATOMIC_RELAXED)) // both threads end with this
		tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void *show_thread(void *arg)
{
	struct cli mine = *(struct cli *)arg;
	mine.client = NULL;
	int status = show_all(&mine, true);
	restore_terminal();
	if (!status)
		fprintf(stderr, "\n[%s has exited]\n", mine.pos[0]);
	_exit(status); // ends the main thread's read, too
	return NULL;
}

static int terminal(struct cli *c)
{
	pthread_t thread;
	struct termios raw;
	char typed[256];
	ssize_t n;
	int status = cli_open(c); // before the other thread copies c
	if (status)
		return status;
	if (isatty(STDIN_FILENO) && !tcgetattr(STDIN_FILENO, &before)) {
		raw = before;
		cfmakeraw(&raw);
		fprintf(stderr, "[Ctrl-] leaves]\n");
		is_raw = !tcsetattr(STDIN_FILENO, TCSANOW, &raw);
		atexit(restore_terminal);
	}
	bool leaves = is_raw;
	if (pthread_create(&thread, NULL, show_thread, c))
		return cli_fail(EXIT_DAEMON_ERROR, "can't start a thread");
	while (!status && (n = read(STDIN_FILENO, typed, sizeof typed)) > 0) {
		char *leave = leaves ? memchr(typed, LEAVE, (size_t)n) : NULL;
		size_t k = leave ? (size_t)(leave - typed) : (size_t)n;
		if (k)
			status = send_bytes(c, typed, k);
		if (leave)
			break;
	}
	restore_terminal();
	_exit(status);
}

int cli_console(struct cli *c)
{
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (c->follow + c->read + (c->write != NULL) > 1)
		return cli_fail(EXIT_USAGE, "console: give one of --follow, --read and --write");
	if (c->write)
		return write_line(c);
	return c->read || c->follow ? show_all(c, c->follow) : terminal(c);
}
