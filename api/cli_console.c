// SPDX-License-Identifier: Apache-2.0
// thaw console: once, following, writing, or as a terminal: then one thread shows what the
// guest says while the main one sends what is typed, each with a connection of its own.
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define LEAVE 0x1d // Ctrl-]
#define WAIT_MS 20000

// One piece of output to standard output; *ret_n its size.
static int show_piece(struct cli *c, const char *name, uint64_t *offset, unsigned wait_ms, size_t *ret_n)
{
	struct client_reply r = { 0 };
	char path[200];
	snprintf(path, sizeof path, "/v1/vms/%s/console?offset=%" PRIu64 "&wait_ms=%u", name, *offset,
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

static bool has_exited(struct cli *c, const char *name)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s", name);
	bool exited = status || !strcmp(js_str(v, "state", ""), "exited");
	js_free(v);
	return exited;
}

// The last piece is asked for behind the end, so that nothing is lost between the two.
static int show_all(struct cli *c, const char *name, bool follow)
{
	uint64_t offset = 0;
	size_t n = 0;
	for (bool last = !follow;;) {
		int status = show_piece(c, name, &offset, last ? 0 : WAIT_MS, &n);
		if (status || (!n && last))
			return status;
		if (!n)
			last = has_exited(c, name);
	}
}

static int send_bytes(struct cli *c, const char *name, const char *bytes, size_t n)
{
	struct client_reply r = { 0 };
	char path[200];
	snprintf(path, sizeof path, "/v1/vms/%s/console", name);
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
	int status = send_bytes(c, c->pos[0], line, n + 1);
	free(line);
	return status;
}

// --- attached -------------------------------------------------------------------------------
struct cli_attach {
	struct cli mine; // with a connection of its own
	pthread_t thread;
	int done_fd, status;
};

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

static void *show_thread(void *arg)
{
	struct cli_attach *a = arg;
	a->status = show_all(&a->mine, a->mine.name, true);
	eventfd_write(a->done_fd, 1);
	return NULL;
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

// Typed bytes to the guest. True: there will be no more; *ret_left: because of Ctrl-].
static bool pass_input(struct cli *c, const char *name, bool raw, bool *ret_left, int *ret_status)
{
	char typed[256];
	ssize_t n = read(STDIN_FILENO, typed, sizeof typed);
	if (n <= 0)
		return !(n < 0 && errno == EINTR);
	char *leave = raw ? memchr(typed, LEAVE, (size_t)n) : NULL;
	size_t k = leave ? (size_t)(leave - typed) : (size_t)n;
	if (k)
		*ret_status = send_bytes(c, name, typed, k);
	*ret_left = leave != NULL;
	return leave || *ret_status;
}

static int attached(struct cli *c, struct cli_attach *a, int signal_fd, bool raw, bool wait_input,
		    enum cli_left *ret_left, int *ret_signal)
{
	struct pollfd p[] = { { .fd = a->done_fd, .events = POLLIN },
			      { .fd = signal_fd, .events = POLLIN },
			      { .fd = STDIN_FILENO, .events = POLLIN } };
	for (;;) {
		struct signalfd_siginfo si;
		bool left = false;
		int status = EXIT_OK;
		if (poll(p, MV_ARRAY_LEN(p), -1) < 0 && errno != EINTR)
			return cli_fail(EXIT_DAEMON_ERROR, "poll: %s", strerror(errno));
		if (p[0].revents) {
			*ret_left = LEFT_EXITED;
			return a->status;
		}
		if (p[1].revents && read(signal_fd, &si, sizeof si) == sizeof si) {
			*ret_left = LEFT_SIGNAL;
			*ret_signal = (int)si.ssi_signo;
			return EXIT_OK;
		}
		if (!p[2].revents || !pass_input(c, a->mine.name, raw, &left, &status))
			continue;
		if (status)
			return status;
		if (left || !wait_input) {
			*ret_left = LEFT_TYPED;
			return EXIT_OK;
		}
		p[2].fd = -1; // no more input; the guest goes on
	}
}

int cli_attach(struct cli *c, const char *name, bool wait_input, enum cli_left *ret_left, int *ret_signal,
	       struct cli_attach **ret_a)
{
	sigset_t set;
	int status = cli_open(c);
	if (status)
		return status;
	signals_of(&set);
	MV_FD signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	struct cli_attach *a = calloc(1, sizeof *a);
	if (!a || signal_fd < 0 || (a->done_fd = eventfd(0, EFD_CLOEXEC)) < 0) {
		free(a);
		return cli_fail(EXIT_DAEMON_ERROR, "can't watch the console: %s", strerror(errno));
	}
	a->mine = *c;
	a->mine.client = NULL;
	a->mine.name = name;
	if (pthread_create(&a->thread, NULL, show_thread, a)) {
		close(a->done_fd);
		free(a);
		return cli_fail(EXIT_DAEMON_ERROR, "can't start a thread");
	}
	*ret_a = a;
	bool raw = make_raw();
	status = attached(c, a, signal_fd, raw, wait_input, ret_left, ret_signal);
	restore_terminal();
	return status;
}

void cli_detach(struct cli_attach *a, bool wait)
{
	if (!a)
		return;
	if (!wait) {
		pthread_detach(a->thread); // and leaves it what it works with
		return;
	}
	pthread_join(a->thread, NULL);
	client_free(a->mine.client);
	close(a->done_fd);
	free(a);
}

static int terminal(struct cli *c)
{
	struct cli_attach *a = NULL;
	enum cli_left left = LEFT_TYPED;
	int signal_number = 0;
	cli_block_signals();
	int status = cli_attach(c, c->pos[0], false, &left, &signal_number, &a);
	cli_detach(a, left == LEFT_EXITED);
	if (!status && left == LEFT_EXITED)
		fprintf(stderr, "\n[%s has exited]\n", c->pos[0]);
	return left == LEFT_SIGNAL ? EXIT_SIGNAL + signal_number : status;
}

int cli_console(struct cli *c)
{
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (c->follow + c->read + (c->write != NULL) > 1)
		return cli_fail(EXIT_USAGE, "console: give one of --follow, --read and --write");
	if (c->write)
		return write_line(c);
	return c->read || c->follow ? show_all(c, c->pos[0], c->follow) : terminal(c);
}
