// SPDX-License-Identifier: Apache-2.0
// thaw wait: until a VM is ready, is in a state, or has said something.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define POLL_NS (20u * 1000 * 1000)

// The VM's state, or "" after an error that was printed.
static int get_state(struct cli *c, char *state, size_t size)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s", c->pos[0]);
	if (!status && mv_strcpy(state, size, js_str(v, "state", "")))
		status = cli_fail(EXIT_DAEMON_ERROR, "the daemon's answer makes no sense");
	js_free(v);
	return status;
}

static int wait_state(struct cli *c, uint64_t deadline_ns)
{
	char state[32];
	for (;;) {
		int status = get_state(c, state, sizeof state);
		if (status || !strcmp(state, c->state))
			return status;
		if (!strcmp(state, "exited"))
			return cli_fail(EXIT_DAEMON_ERROR, "%s has exited", c->pos[0]);
		if (mv_now_ns() >= deadline_ns)
			return cli_fail(EXIT_TIMED_OUT, "%s is still %s", c->pos[0], state);
		usleep(POLL_NS / 1000);
	}
}

static int wait_console(struct cli *c, uint64_t deadline_ns)
{
	MV_BUF seen = { 0 };
	uint64_t offset = 0;
	char state[32];
	int status = cli_open(c);
	while (!status) {
		struct thaw_reply *r = NULL;
		size_t got = 0;
		uint64_t now = mv_now_ns();
		uint64_t wait_ms = now < deadline_ns ? (deadline_ns - now) / 1000000 : 0;
		unsigned turn_ms = wait_ms < 5000 ? (unsigned)wait_ms : 5000;
		status = cli_result(c, thaw_console_read(c->client, c->pos[0], &offset, turn_ms, &r));
		if (status)
			break;
		const char *bytes = thaw_reply_body(r, &got);
		mv_buf_append(&seen, bytes, got);
		thaw_reply_free(r);
		if (memmem(seen.p, seen.len, c->console, strlen(c->console)))
			break;
		if (!got && !(status = get_state(c, state, sizeof state)) && !strcmp(state, "exited"))
			return cli_fail(EXIT_DAEMON_ERROR, "%s has exited without saying that", c->pos[0]);
		if (mv_now_ns() >= deadline_ns)
			return cli_fail(EXIT_TIMED_OUT, "%s has not said that in time", c->pos[0]);
	}
	return status;
}

static int wait_ready(struct cli *c)
{
	unsigned long s = c->has_timeout ? c->timeout_s : 30;
	if (s > 600)
		return cli_fail(EXIT_USAGE, "--timeout: %lu is not within 0..600", s);
	int status = cli_open(c);
	if (!status)
		status = cli_result(c, thaw_vm_wait_ready(c->client, c->pos[0], (unsigned)s * 1000, NULL));
	return status;
}

int cli_wait(struct cli *c)
{
	uint64_t deadline_ns = mv_now_ns() + (c->has_timeout ? c->timeout_s : 30) * 1000000000ull;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (!!c->state + !!c->console + c->ready != 1)
		return cli_fail(EXIT_USAGE, "wait: give one of --ready, --state STATE and --console TEXT");
	if (c->ready)
		return wait_ready(c);
	return c->state ? wait_state(c, deadline_ns) : wait_console(c, deadline_ns);
}
