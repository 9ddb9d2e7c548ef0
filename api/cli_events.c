// SPDX-License-Identifier: Apache-2.0
// thaw events: one line per event, as they come.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli.h"

struct printer {
	bool json, lost;
	int status;
};

static void print_word(const char *before, const char *text)
{
	if (text[0])
		printf("%s%s", before, text);
}

static void print_event(js *e)
{
	const char *type = js_str(e, "type", "?"), *vm = js_str(e, "vm", "");
	printf("%s %-19s", js_str(e, "time", ""), type);
	print_word(" ", vm);
	print_word(!strncmp(type, "snapshot.", 9) && vm[0] ? " -> "
		   : vm[0]                                 ? " from "
							   : " ",
		   js_str(e, "snapshot", ""));
	print_word(" ", js_str(e, "reason", ""));
	print_word(js_get(e, "reason") ? ": " : " ", js_str(e, "detail", ""));
	if (js_get(e, "count"))
		printf(" %" PRId64, js_int(e, "count", 0));
	if (js_get(e, "after"))
		printf(" events after %" PRId64, js_int(e, "after", 0));
	putchar('\n');
}

static int on_event(void *arg, const char *line)
{
	struct printer *p = arg;
	struct api_err err;
	js *e = js_parse(line, strlen(line), &err);
	if (!e) {
		p->status = cli_fail(EXIT_DAEMON_ERROR, "the daemon's answer is no JSON: %s", err.msg);
		return 1;
	}
	const char *type = js_str(e, "type", "");
	p->lost |= !strcmp(type, "lost") && js_get(e, "reason");
	if (p->json)
		puts(line);
	else if (strcmp(type, "heartbeat"))
		print_event(e);
	js_free(e);
	if (fflush(stdout))
		p->status = EXIT_DAEMON_ERROR; // nobody reads it any more
	return p->status;
}

int cli_events(struct cli *c)
{
	struct printer p = { .json = c->json };
	char *end = NULL;
	errno = 0;
	int64_t since = c->since ? strtoll(c->since, &end, 10) : c->follow ? -1 : 0;
	if (c->since && (*c->since < '0' || *c->since > '9' || *end || errno))
		return cli_fail(EXIT_USAGE, "--since: \"%s\" is not a number", c->since);
	int status = cli_open(c);
	if (!status)
		status = cli_result(c, thaw_events(c->client, since, c->types, c->follow, on_event, &p));
	status = status ? status : p.status;
	if (!status && p.lost)
		return cli_fail(EXIT_DAEMON_ERROR, "this client was too slow, the daemon has cut it off");
	return status;
}
