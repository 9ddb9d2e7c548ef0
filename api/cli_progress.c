// SPDX-License-Identifier: Apache-2.0
// One line on standard error, while a request takes long and a person looks: what is done, how far it is, for
// how long. It is gone when the request has ended.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define SHOWN_AFTER_NS 400000000ull
#define NEXT_AFTER_NS 200000000ull

static double mib(uint64_t bytes) { return (double)bytes / (1 << 20); }

// How much of a template and a pool is there, asked for beside the request that waits for it.
static void print_prepared(struct cli_progress *p)
{
	struct thaw_reply *r = NULL;
	if ((!p->beside && thaw_open(p->socket, &p->beside)) || thaw_snapshot_show(p->beside, p->what, &r))
		return; // then it is not told
	int64_t chunks = thaw_reply_int(r, "template.chunks", 0),
		target = thaw_reply_int(r, "pool.target", 0);
	if (chunks > 0)
		fprintf(stderr, ", %" PRId64 " %% loaded",
			thaw_reply_int(r, "template.filled", 0) * 100 / chunks);
	if (target > 0)
		fprintf(stderr, ", %" PRId64 " of %" PRId64 " in the pool",
			thaw_reply_int(r, "pool.ready", 0), target);
	thaw_reply_free(r);
}

// What the daemon counts of the request that is waited for.
static void print_operation(struct cli_progress *p)
{
	struct thaw_reply *r = NULL;
	struct api_err ignored;
	size_t len = 0;
	if ((!p->beside && thaw_open(p->socket, &p->beside)) || thaw_operations(p->beside, &r))
		return; // then it is not told
	const char *text = thaw_reply_body(r, &len);
	js *v = js_parse(text, len, &ignored), *list = js_get(v, "operations");
	for (size_t i = 0; i < js_len(list); i++) {
		js *o = js_at(list, i);
		int64_t done = js_int(o, "done_bytes", 0), total = js_int(o, "total_bytes", 0);
		if (strcmp(js_str(o, "kind", ""), p->kind) || strcmp(js_str(o, "snapshot", ""), p->what))
			continue;
		fprintf(stderr, ", %s", js_str(o, "step", ""));
		if (total > 0)
			fprintf(stderr, " %.0f of %.0f MiB (%" PRId64 " %%)", mib((uint64_t)done),
				mib((uint64_t)total), done * 100 / total);
		break;
	}
	js_free(v);
	thaw_reply_free(r);
}

static int on_progress(void *arg, uint64_t sent, uint64_t received)
{
	struct cli_progress *p = arg;
	uint64_t now = mv_now_ns(), bytes = sent + received;
	if (now < p->next_ns)
		return 0;
	p->next_ns = now + NEXT_AFTER_NS;
	double s = (double)(now - p->start_ns) / 1e9;
	fprintf(stderr, "\r\033[K%s %s: ", p->doing, p->what);
	if (p->total_bytes && bytes <= p->total_bytes)
		fprintf(stderr, "%" PRIu64 " %%, ", bytes * 100 / p->total_bytes);
	if (p->moves_bytes)
		fprintf(stderr, "%.0f MiB, %.0f MiB/s, ", mib(bytes), mib(bytes) / s);
	fprintf(stderr, "%.0f s", s);
	if (p->prepares)
		print_prepared(p);
	if (p->kind)
		print_operation(p);
	fflush(stderr);
	p->shown = true;
	return 0;
}

int cli_progress_begin(struct cli *c, struct cli_progress *p, const char *doing, const char *what)
{
	int status = cli_open(c);
	if (status || c->json || c->no_progress || !isatty(STDERR_FILENO))
		return status;
	p->doing = doing;
	p->what = what;
	p->socket = thaw_socket_path(c->client);
	p->start_ns = mv_now_ns();
	p->next_ns = p->start_ns + SHOWN_AFTER_NS;
	thaw_set_progress(c->client, on_progress, p);
	return EXIT_OK;
}

void cli_progress_end(struct cli *c, struct cli_progress *p)
{
	if (c->client)
		thaw_set_progress(c->client, NULL, NULL);
	if (p->shown)
		fputs("\r\033[K", stderr);
	thaw_close(p->beside);
	p->beside = NULL;
}
