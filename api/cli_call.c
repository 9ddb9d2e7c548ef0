// SPDX-License-Identifier: Apache-2.0
// Requests of the commands by libthaw, and what its errors are for a person: the sentence, then what to do
// next.
#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "api/cli.h"

int cli_open(struct cli *c)
{
	if (c->client)
		return EXIT_OK;
	int r = thaw_open(c->socket[0] ? c->socket : NULL, &c->client);
	if (r == -ENOENT)
		return cli_fail(EXIT_UNREACHABLE,
				"no place for the socket: XDG_RUNTIME_DIR is not set; give --socket PATH");
	if (r == -ENAMETOOLONG)
		return cli_fail(EXIT_DAEMON_ERROR,
				"the path of the socket (--socket, THAW_SOCKET) is longer than %zu bytes",
				sizeof((struct sockaddr_un *)0)->sun_path - 1);
	return r ? cli_fail(EXIT_DAEMON_ERROR, "%s", strerror(-r)) : EXIT_OK;
}

static void print_how_to_reach(const struct cli *c, int errnum)
{
	const char *path = thaw_socket_path(c->client);
	struct stat st;
	// cppcheck-suppress getgrgidCalled; one thread
	const struct group *g = errnum == EACCES && !stat(path, &st) ? getgrgid(st.st_gid) : NULL;
	if (g && g->gr_gid)
		fprintf(stderr, "  (it is for the group %s: usermod -aG %s YOU, and log in anew)\n",
			g->gr_name, g->gr_name);
	else if (errnum == EACCES)
		fprintf(stderr,
			"  (be the user who runs it, or give the socket's group to yours: docs/cli.md)\n");
	else
		fprintf(stderr,
			"  (start thawd: systemctl start thawd.socket, or thawd --socket %s; or give "
			"--socket or "
			"THAW_SOCKET)\n",
			path);
}

// As docs/api.md has it, unless the message says so itself: behind a semicolon.
static void print_remedy(const char *code, const char *message)
{
	if (!strcmp(code, "vm_not_found") || !strcmp(code, "snapshot_not_found")) {
		fprintf(stderr, "  (list them: thaw %s)\n", code[0] == 'v' ? "ls" : "snapshot ls");
		return;
	}
	for (unsigned i = 1; i < API_N_CODES && !strchr(message, ';'); i++) {
		const struct api_code_info *info = api_code_info((enum api_code)i);
		if (!strcmp(info->name, code) && strncmp(info->remedy, "see the message", 15) &&
		    strncmp(info->remedy, "the message says", 16))
			fprintf(stderr, "  (%.*s)\n", (int)strcspn(info->remedy, ";"), info->remedy);
	}
}

int cli_result(struct cli *c, int r)
{
	const struct thaw_error *e = thaw_last_error(c->client);
	if (!r)
		return EXIT_OK;
	if (r == -EREMOTEIO) {
		if (c->json && e->body[0] == '{')
			fputs(e->body, stdout);
		cli_fail(0, "%s", e->message);
		print_remedy(e->code, e->message);
		return e->status == 408 ? EXIT_TIMED_OUT : EXIT_DAEMON_ERROR;
	}
	cli_fail(0, "%s", e->message);
	if (r != -ECONNREFUSED && r != -ENOENT && r != -EACCES)
		return r == -EINVAL ? EXIT_USAGE : EXIT_DAEMON_ERROR;
	print_how_to_reach(c, e->errnum);
	return EXIT_UNREACHABLE;
}

int cli_take(struct thaw_reply *r, js **ret_v)
{
	struct api_err err;
	size_t len;
	const char *text = thaw_reply_body(r, &len);
	int status = EXIT_OK;
	if (len && !(*ret_v = js_parse(text, len, &err)))
		status = cli_fail(EXIT_DAEMON_ERROR, "the daemon's answer is no JSON: %s", err.msg);
	thaw_reply_free(r);
	return status;
}

int cli_request(struct cli *c, const char *method, js *body, js **ret_v, const char *path_fmt, ...)
{
	char path[400];
	va_list ap;
	struct thaw_request q = THAW_REQUEST_INIT;
	struct thaw_reply *r = NULL;
	va_start(ap, path_fmt);
	vsnprintf(path, sizeof path, path_fmt, ap);
	va_end(ap);
	char *text = body ? js_text(body, false) : NULL;
	int status = cli_open(c);
	if (!status) {
		q.method = method;
		q.path = path;
		q.body = text;
		q.body_len = text ? strlen(text) : 0;
		q.idempotency_key = strcmp(method, "POST") ? NULL : c->idempotency_key;
		status = cli_result(c, thaw_request(c->client, &q, &r));
	}
	free(text);
	return status ? status : cli_take(r, ret_v);
}
