// SPDX-License-Identifier: Apache-2.0
// thaw bench: one clone after the other over one connection, each ended and forgotten before the next, and
// the percentiles of what each answer tells of its stages and of the request as this client saw it.
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli.h"
#include "microvm/base/util.h"

#define DEFAULT_ROUNDS 20
#define MAX_ROUNDS 100000
#define REFILL_POLL_MS 2
#define REFILL_MAX_NS 60000000000ull

static const char *const stages[] = { "process_ready", "ordered", "kvm_ready",
				      "state_loaded",  "running", "request" };
enum { N_STAGES = MV_ARRAY_LEN(stages), REQUEST = N_STAGES - 1 };

struct series {
	int64_t *us;
	size_t n;
};

struct bench {
	struct cli *c;
	const char *snapshot;
	struct series stage[N_STAGES];
	uint64_t prepared, rounds;
};

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

static int64_t percentile(const struct series *s, unsigned p) { return s->us[(s->n * p + 99) / 100 - 1]; }

// Before a round, until the pool is full again; a pool that can't be filled says why.
static int await_pool(struct bench *b)
{
	uint64_t deadline_ns = mv_now_ns() + REFILL_MAX_NS;
	for (;;) {
		struct thaw_reply *r = NULL;
		int status = cli_result(b->c, thaw_snapshot_show(b->c->client, b->snapshot, &r));
		if (status)
			return status;
		const char *error = thaw_reply_str(r, "pool.error", NULL);
		bool full = thaw_reply_int(r, "pool.ready", 0) >= thaw_reply_int(r, "pool.target", 0);
		if (error)
			status = cli_fail(EXIT_DAEMON_ERROR, "the pool can't be filled: %s", error);
		else if (!full && mv_now_ns() > deadline_ns)
			status = cli_fail(EXIT_TIMED_OUT, "the pool was not full in time");
		thaw_reply_free(r);
		if (full || status)
			return status;
		poll(NULL, 0, REFILL_POLL_MS);
	}
}

static int one_round(struct bench *b)
{
	struct thaw_client *t = b->c->client;
	struct thaw_reply *r = NULL;
	int status = b->c->pool ? await_pool(b) : EXIT_OK;
	if (status)
		return status;
	uint64_t start_ns = mv_now_ns();
	status = cli_result(b->c, thaw_clone(t, b->snapshot, NULL, &r));
	if (status)
		return status;
	for (int k = 0; k < N_STAGES; k++) {
		char path[64];
		snprintf(path, sizeof path, "clones.0.timing_us.%s", stages[k]);
		int64_t us = k == REQUEST ? (int64_t)((mv_now_ns() - start_ns) / 1000)
					  : thaw_reply_int(r, path, -1);
		if (us >= 0)
			b->stage[k].us[b->stage[k].n++] = us;
	}
	b->prepared += thaw_reply_bool(r, "clones.0.prepared", false);
	b->rounds++;
	status = cli_result(b->c, thaw_vm_delete(t, thaw_reply_str(r, "clones.0.id", "")));
	thaw_reply_free(r);
	return status;
}

static void print_table(const struct bench *b)
{
	printf("%-16s %10s %10s %10s %10s %8s\n", "STAGE", "P50 us", "P90 us", "P99 us", "MAX us", "CLONES");
	for (int k = 0; k < N_STAGES; k++) {
		const struct series *s = &b->stage[k];
		if (s->n)
			printf("%-16s %10" PRId64 " %10" PRId64 " %10" PRId64 " %10" PRId64 " %8zu\n",
			       stages[k], percentile(s, 50), percentile(s, 90), percentile(s, 99),
			       percentile(s, 100), s->n);
	}
	printf("%" PRIu64 " of %" PRIu64 " clones were claimed from a pool\n", b->prepared, b->rounds);
}

static js *to_json(const struct bench *b)
{
	static const struct {
		const char *name;
		unsigned p;
	} columns[] = { { "p50_us", 50 }, { "p90_us", 90 }, { "p99_us", 99 }, { "max_us", 100 } };
	js *o = js_object(), *all = js_object();
	js_put_str(o, "snapshot", b->snapshot);
	js_put_uint(o, "clones", b->rounds);
	js_put_uint(o, "prepared", b->prepared);
	js_put(o, "stages", all);
	for (int k = 0; k < N_STAGES; k++) {
		const struct series *s = &b->stage[k];
		js *one = s->n ? js_object() : NULL;
		for (size_t i = 0; one && i < MV_ARRAY_LEN(columns); i++)
			js_put_uint(one, columns[i].name, (uint64_t)percentile(s, columns[i].p));
		if (one) {
			js_put_uint(one, "count", s->n);
			js_put(all, stages[k], one);
		}
	}
	return o;
}

// A pool for the time of the bench. *ret_before: the body that makes it as it was, to be freed.
static int make_pool(struct bench *b, js **ret_before)
{
	static const char *const keys[] = { "size", "min", "max", "idle_s" };
	struct cli *c = b->c;
	struct cli_progress p = { .prepares = true };
	js *o = js_object(), *v = NULL,
	   *pool = cli_parse_pairs("pool", c->pool, CLI_POOL_KEYS, CLI_POOL_KEYS, 0);
	js *before = js_object(), *as = js_object();
	js_put(before, "pool", as);
	if (pool)
		js_put(o, "pool", pool);
	js_put_bool(o, "wait", true);
	int status = pool ? cli_request(c, "GET", NULL, &v, "/v1/snapshots/%s", b->snapshot) : EXIT_USAGE;
	js *had = js_get(v, "pool");
	for (size_t i = 0; i < MV_ARRAY_LEN(keys); i++)
		if (js_get(had, keys[i]))
			js_put_uint(as, keys[i], (uint64_t)js_int(had, keys[i], 0));
	if (!had)
		js_put_uint(as, "size", 0);
	js_free(MV_TAKE(v));
	if (!status)
		status = cli_progress_begin(c, &p, "preparing", b->snapshot);
	if (!status)
		status = cli_request(c, "POST", MV_TAKE(o), &v, "/v1/snapshots/%s/prepare", b->snapshot);
	cli_progress_end(c, &p);
	js_free(o);
	js_free(v);
	if (status)
		js_free(MV_TAKE(before));
	*ret_before = before;
	return status;
}

int cli_bench(struct cli *c)
{
	struct bench b = { .c = c, .snapshot = c->pos[0] };
	size_t n = c->has_count ? c->count : DEFAULT_ROUNDS;
	js *before = NULL, *v = NULL;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (n < 1 || n > MAX_ROUNDS)
		return cli_fail(EXIT_USAGE, "--count: %zu is not within 1..%d", n, MAX_ROUNDS);
	MV_FREE int64_t *us = calloc(n * N_STAGES, sizeof *us);
	int status = us ? cli_open(c) : cli_fail(EXIT_DAEMON_ERROR, "out of memory");
	for (int k = 0; !status && k < N_STAGES; k++)
		b.stage[k].us = us + n * (size_t)k;
	if (!status && c->pool)
		status = make_pool(&b, &before);
	for (size_t i = 0; !status && i < n; i++)
		status = one_round(&b);
	if (before) {
		int restored = cli_request(c, "POST", before, &v, "/v1/snapshots/%s/prepare", b.snapshot);
		status = status ? status : restored;
		js_free(v);
	}
	if (status)
		return status;
	for (int k = 0; k < N_STAGES; k++)
		qsort(b.stage[k].us, b.stage[k].n, sizeof *us, by_value);
	if (c->json)
		return cli_print_json(to_json(&b));
	print_table(&b);
	return EXIT_OK;
}
