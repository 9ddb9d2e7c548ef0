// SPDX-License-Identifier: Apache-2.0
// thaw run: a VM as long as this process shows its console. However that ends - the guest's end, Ctrl-], a
// signal, an error - the VM is deleted; signals are blocked before it is made, so that none comes between.
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define DEFAULT_CMDLINE "console=ttyS0 panic=-1" // a panic ends the VM by a reset

// EXIT_OK when the guest ended as guests do.
static int judge(struct cli *c, const char *name)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s", name);
	const char *reason = js_str(v, "exit.reason", "");
	if (!status && strcmp(reason, "shutdown") && strcmp(reason, "reset")) {
		const char *detail = js_str(v, "exit.detail", "");
		status = cli_fail(EXIT_GUEST, "%s ended: %s%s%s", name, reason, *detail ? ": " : "", detail);
	}
	js_free(v);
	return status;
}

static int end(struct cli *c, const char *name)
{
	js *o = js_object(), *v = NULL;
	js_put_str(o, "mode", "kill");
	js_put_uint(o, "wait_ms", 10000);
	int status = cli_request(c, "POST", o, &v, "/v1/vms/%s/stop", name);
	js_free(v);
	return status;
}

static int attend(struct cli *c, const char *name)
{
	struct cli_attached a = { .end = THAW_ATTACH_ESCAPED }; // an error leaves it so
	int ended = EXIT_OK;
	js *v = NULL;
	int status = cli_attach(c, name, false, &a);
	if (a.end != THAW_ATTACH_EXITED) {
		ended = end(c, name);
		if (!status && !ended)
			status = cli_show_output(c, name, a.offset, false);
	} else if (!status) {
		status = judge(c, name);
	}
	ended = cli_request(c, "DELETE", NULL, &v, "/v1/vms/%s", name);
	js_free(v);
	if (a.end == THAW_ATTACH_STOPPED)
		return EXIT_SIGNAL + a.signal_number;
	return status ? status : ended;
}

int cli_run(struct cli *c)
{
	char made_up[32];
	uint32_t random;
	js *v = NULL;
	if (c->json)
		return cli_fail(EXIT_USAGE,
				"run shows the guest's console and has no --json; use create --start");
	if (getrandom(&random, sizeof random, 0) != sizeof random)
		return cli_fail(EXIT_DAEMON_ERROR, "no random number for a name; give --name");
	snprintf(made_up, sizeof made_up, "run-%08x", random);
	const char *name = c->name ? c->name : made_up;
	if (!cli_name_ok(name))
		return EXIT_USAGE;
	if (!c->cmdline && !c->rootfs)
		c->cmdline = DEFAULT_CMDLINE;
	js *o = cli_create_body(c, name, true);
	if (!o)
		return EXIT_USAGE;
	cli_block_signals();
	int status = cli_request(c, "POST", o, &v, "/v1/vms");
	js_free(v);
	return status ? status : attend(c, name);
}
