// SPDX-License-Identifier: Apache-2.0
// thaw console: once, following, writing, or as a terminal.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define LEAVE 0x1d // Ctrl-]
#define WAIT_MS 20000

static bool has_exited(struct cli *c, const char *name, int *ret_status)
{
	struct thaw_reply *r = NULL;
	*ret_status = cli_result(c, thaw_vm_show(c->client, name, &r));
	bool exited = *ret_status || !strcmp(thaw_reply_str(r, "state", ""), "exited");
	thaw_reply_free(r);
	return exited;
}

// The last piece is asked for behind the end, so that nothing is lost between the two.
int cli_show_output(struct cli *c, const char *name, uint64_t offset, bool follow)
{
	int status = cli_open(c);
	for (bool last = !follow; !status;) {
		struct thaw_reply *r = NULL;
		size_t n = 0;
		status = cli_result(c, thaw_console_read(c->client, name, &offset, last ? 0 : WAIT_MS, &r));
		if (status)
			break;
		const char *bytes = thaw_reply_body(r, &n);
		if (n && mv_write_full(STDOUT_FILENO, bytes, n))
			status = cli_fail(EXIT_DAEMON_ERROR, "can't write the output");
		thaw_reply_free(r);
		if (!n && last)
			break;
		if (!n)
			last = has_exited(c, name, &status);
	}
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
	int status = cli_open(c);
	if (!status)
		status = cli_result(c, thaw_console_write(c->client, c->pos[0], line, n + 1));
	free(line);
	return status;
}

// --- attached -------------------------------------------------------------------------------
static struct termios before;
static bool is_raw;

static void restore_terminal(void)
{
	if (is_raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &before);
	is_raw = false;
}

static bool make_raw(void)
{
	if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &before))
		return false;
	struct termios raw = before;
	cfmakeraw(&raw);
	fprintf(stderr, "[Ctrl-] leaves]\n");
	is_raw = !tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	return is_raw;
}

static void signals_of(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
}

void cli_block_signals(void)
{
	sigset_t set;
	signals_of(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN); // who reads the output is gone: an error like others
}

int cli_attach(struct cli *c, const char *name, bool ends_with_input, struct cli_attached *ret_a)
{
	struct thaw_attach a = THAW_ATTACH_INIT;
	struct signalfd_siginfo si;
	sigset_t set;
	int status = cli_open(c);
	if (status)
		return status;
	signals_of(&set);
	MV_FD signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (signal_fd < 0)
		return cli_fail(EXIT_DAEMON_ERROR, "can't watch the console: %s", strerror(errno));
	a.stop_fd = signal_fd;
	a.escape = make_raw() ? LEAVE : -1;
	a.ends_with_input = ends_with_input;
	int r = thaw_console_attach(c->client, name, &a, &ret_a->end);
	restore_terminal();
	ret_a->offset = a.offset;
	if (!r && ret_a->end == THAW_ATTACH_STOPPED && read(signal_fd, &si, sizeof si) == sizeof si)
		ret_a->signal_number = (int)si.ssi_signo;
	return cli_result(c, r);
}

static int terminal(struct cli *c)
{
	struct cli_attached a = { .end = THAW_ATTACH_ESCAPED };
	cli_block_signals();
	int status = cli_attach(c, c->pos[0], true, &a);
	if (!status && a.end == THAW_ATTACH_EXITED)
		fprintf(stderr, "\n[%s has exited]\n", c->pos[0]);
	return a.end == THAW_ATTACH_STOPPED ? EXIT_SIGNAL + a.signal_number : status;
}

int cli_console(struct cli *c)
{
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (c->follow + c->read + (c->write != NULL) > 1)
		return cli_fail(EXIT_USAGE, "console: give one of --follow, --read and --write");
	if (c->write)
		return write_line(c);
	return c->read || c->follow ? cli_show_output(c, c->pos[0], 0, c->follow) : terminal(c);
}
