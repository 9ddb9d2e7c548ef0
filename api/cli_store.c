// SPDX-License-Identifier: Apache-2.0
// Commands about the store: export, import, the tree, garbage collection.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

enum { MAX_DEPTH = 64 };

// --- export and import ----------------------------------------------------------------
static int fetch(struct cli *c, int fd)
{
	struct cli_progress p = { .moves_bytes = true };
	int status = cli_progress_begin(c, &p, "exporting", c->pos[0]);
	if (!status)
		status = cli_result(c, thaw_snapshot_export(c->client, c->pos[0], fd));
	cli_progress_end(c, &p);
	return status;
}

int cli_snapshot_export(struct cli *c)
{
	const char *file = c->pos[1];
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (!strcmp(file, "-")) {
		if (isatty(STDOUT_FILENO))
			return cli_fail(EXIT_USAGE,
					"a snapshot is not for a terminal; give a file or a pipe");
		return fetch(c, STDOUT_FILENO);
	}
	MV_FD fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return cli_fail(EXIT_DAEMON_ERROR, "%s: %s", file, strerror(errno));
	int status = fetch(c, fd);
	if (!status && fsync(fd))
		status = cli_fail(EXIT_DAEMON_ERROR, "%s: %s", file, strerror(errno));
	if (status)
		unlink(file);
	return status;
}

int cli_snapshot_import(struct cli *c)
{
	const char *file = c->pos[1];
	struct cli_progress p = { .moves_bytes = true };
	struct thaw_reply *r = NULL;
	struct stat st;
	js *v = NULL;
	bool from_stdin = !strcmp(file, "-");
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	MV_FD opened = from_stdin ? -1 : open(file, O_RDONLY | O_CLOEXEC);
	if (!from_stdin && opened < 0)
		return cli_fail(EXIT_DAEMON_ERROR, "%s: %s", file, strerror(errno));
	int fd = from_stdin ? STDIN_FILENO : opened;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode))
		p.total_bytes = (uint64_t)st.st_size;
	int status = cli_progress_begin(c, &p, "importing", c->pos[0]);
	if (!status)
		status = cli_result(c, thaw_snapshot_import(c->client, c->pos[0], fd, &r));
	cli_progress_end(c, &p);
	if (status || (status = cli_take(r, &v)))
		return status;
	if (c->json)
		return cli_print_json(v);
	cli_print_snapshot(v);
	js_free(v);
	return EXIT_OK;
}

// --- the tree ---------------------------------------------------------------------------
struct node {
	js *v;
	const char *id, *parent_id;
	bool printed;
};

// An index of the nodes by parent would be quicker; a thousand snapshots take a millisecond.
static void print_children(struct node *nodes, size_t n, const char *id, unsigned depth)
{
	for (size_t i = 0; i < n; i++) {
		struct node *k = &nodes[i];
		if (k->printed || strcmp(k->parent_id, id))
			continue;
		k->printed = true; // also ends a circle, which only forged manifests make
		printf("%*s%s%s\n", (int)depth * 2, "", js_str(k->v, "name", ""),
		       js_get(k->v, "damaged") ? "  DAMAGED" : "");
		if (k->id[0] && depth < MAX_DEPTH)
			print_children(nodes, n, k->id, depth + 1);
	}
}

void cli_print_tree(js *list)
{
	size_t n = js_len(list);
	struct node *nodes = calloc(n ? n : 1, sizeof *nodes);
	for (size_t i = 0; nodes && i < n; i++) {
		js *v = js_at(list, i);
		nodes[i] =
			(struct node){ v, js_str(v, "id", ""), js_str(v, "parent_snapshot_id", ""), false };
	}
	for (size_t i = 0; nodes && i < n; i++) { // a parent that is gone makes a root
		bool there = false;
		for (size_t k = 0; !there && k < n; k++)
			there = nodes[i].parent_id[0] && !strcmp(nodes[k].id, nodes[i].parent_id);
		if (!there)
			nodes[i].parent_id = "";
	}
	if (nodes)
		print_children(nodes, n, "", 0);
	for (size_t i = 0; nodes && i < n; i++) // too deep, or in a circle
		if (!nodes[i].printed)
			printf("%s  (parent: %s)\n", js_str(nodes[i].v, "name", ""),
			       js_str(nodes[i].v, "parent_snapshot", ""));
	free(nodes);
}

// --- leftovers --------------------------------------------------------------------------
int cli_gc(struct cli *c)
{
	js *v = NULL;
	int status = cli_request(c, "POST", NULL, &v, "/v1/gc");
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	js *list = js_get(v, "removed");
	for (size_t i = 0; i < js_len(list); i++) {
		js *e = js_at(list, i);
		printf("%s (%s): %" PRId64 " KiB\n", js_str(e, "entry", ""), js_str(e, "was", ""),
		       js_int(e, "disk_bytes", 0) / 1024);
	}
	printf("%zu removed, %" PRId64 " KiB freed", js_len(list), js_int(v, "freed_bytes", 0) / 1024);
	if (js_int(v, "kept", 0))
		printf(", %" PRId64 " can't be removed", js_int(v, "kept", 0));
	putchar('\n');
	js_free(v);
	return EXIT_OK;
}
