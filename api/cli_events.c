// SPDX-License-Identifier: Apache-2.0
// thaw events: one line per event, as they come.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/cli.h"
#include "microvm/base/util.h"

struct printer {
	bool json, lost;
	struct mv_buf rest; // of a line that has not ended
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

static int take_line(struct printer *p, const char *line, size_t len)
{
	struct api_err err;
	js *e = js_parse(line, len, &err);
	if (!e)
		return cli_fail(EXIT_DAEMON_ERROR, "the daemon's answer is no JSON: %s", err.msg);
	const char *type = js_str(e, "type", "");
	p->lost |= !strcmp(type, "lost") && js_get(e, "reason");
	if (p->json)
		fwrite(line, 1, len, stdout);
	else if (strcmp(type, "heartbeat"))
		print_event(e);
	js_free(e);
	return fflush(stdout) ? EXIT_DAEMON_ERROR : EXIT_OK;
}

static int on_data(void *arg, const char *data, size_t n)
{
	struct printer *p = arg;
	int status = EXIT_OK;
	while (n && !status) {
		const char *end = memchr(data, '\n', n);
		size_t part = end ? (size_t)(end - data) + 1 : n;
		mv_buf_append(&p->rest, data, part);
		if (p->rest.failed)
			return EXIT_DAEMON_ERROR;
		if (end) {
			status = take_line(p, (const char *)p->rest.p, p->rest.len);
			p->rest.len = 0;
		}
		data += part;
		n -= part;
	}
	return status;
}

int cli_events(struct cli *c)
{
	struct printer p = { .json = c->json };
	struct client_reply r = { 0 };
	char path[300], since[40] = "";
	if (c->since || !c->follow)
		snprintf(since, sizeof since, "&since=%s", c->since ? c->since : "0");
	if (c->types && strspn(c->types, "abcdefghijklmnopqrstuvwxyz.,") != strlen(c->types))
		return cli_fail(EXIT_USAGE, "--types: \"%s\" is no list of types", c->types);
	if (c->since && strspn(c->since, "0123456789") != strlen(c->since))
		return cli_fail(EXIT_USAGE, "--since: \"%s\" is not a number", c->since);
	if ((size_t)snprintf(path, sizeof path, "/v1/events?follow=%s%s%s%s", c->follow ? "true" : "false",
			     since, c->types ? "&types=" : "", c->types ? c->types : "") >= sizeof path)
		return cli_fail(EXIT_USAGE, "--types: too long");
	int status = cli_follow(c, path, on_data, &p, &r);
	client_reply_fini(&r);
	mv_buf_fini(&p.rest);
	if (!status && p.lost)
		return cli_fail(EXIT_DAEMON_ERROR, "this client was too slow, the daemon has cut it off");
	return status;
}
