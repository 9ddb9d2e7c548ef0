// SPDX-License-Identifier: Apache-2.0
// thaw guest: hands over to the Python program of guests/, which is in ../libexec/thaw/guest/ as seen from
// this program, installed or in the build folder. It prints its errors itself.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/cli.h"

#define TOOL "libexec/thaw/guest/main.py"

// argv holds first the interpreter, which is kept from the environment's and the user's own modules and from
// writing anything beside the program; then the program, the verb, its arguments and options.
enum { MAX_ARGV = 20 };
struct call {
	const char *argv[MAX_ARGV + 1];
	int n;
};

static void add(struct call *call, const char *option, const char *value)
{
	if (value && call->n + 2 <= MAX_ARGV) {
		if (option)
			call->argv[call->n++] = option;
		call->argv[call->n++] = value;
	}
}

static int become(struct call *call)
{
	char tool[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", tool, sizeof tool - 1);
	for (int up = 0; up < 2 && n > 0; up++) // bin/thaw
		while (n > 0 && tool[--n] != '/')
			;
	if (n < 0 || (size_t)n + sizeof "/" TOOL > sizeof tool)
		return cli_fail(EXIT_DAEMON_ERROR, "can't tell where this program is");
	strcpy(tool + n, "/" TOOL);
	if (access(tool, R_OK))
		return cli_fail(EXIT_DAEMON_ERROR, "%s: %s; thaw guest needs it, make install puts it there",
				tool, strerror(errno));
	call->argv[3] = tool;
	call->argv[call->n] = NULL;
	fflush(stdout);
	execvp(call->argv[0], (char *const *)call->argv);
	return cli_fail(EXIT_DAEMON_ERROR, "python3: %s; thaw guest needs Python 3.8 or later",
			strerror(errno));
}

int cli_guest_fetch(struct cli *c)
{
	struct call call = { { "python3", "-I", "-B", NULL, "fetch" }, 5 };
	add(&call, "--suite", c->suite);
	add(&call, "--arch", c->arch);
	add(&call, "--dir", c->dir);
	add(&call, "--mirror", c->mirror);
	add(&call, "--keyring", c->keyring);
	add(&call, NULL, c->json ? "--json" : NULL);
	return become(&call);
}

int cli_guest_build(struct cli *c)
{
	struct call call = { { "python3", "-I", "-B", NULL, "build" }, 5 };
	add(&call, "--size", c->size);
	add(&call, "--init", c->init);
	add(&call, NULL, c->json ? "--json" : NULL);
	add(&call, "--", c->pos[0]);
	add(&call, NULL, c->pos[1]);
	return become(&call);
}
