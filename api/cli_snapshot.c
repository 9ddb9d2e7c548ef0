// SPDX-License-Identifier: Apache-2.0
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli.h"
#include "api/vmjson.h"

static void print_list(const char *label, js *list)
{
	int column = printf("%-9s", label);
	for (size_t i = 0; i < js_len(list); i++) {
		const char *s = js_str(js_at(list, i), "", "?");
		if (column + (int)strlen(s) > 98)
			column = printf("\n%9s", "") - 1;
		column += printf(" %s%s", s, i + 1 < js_len(list) ? "," : "");
	}
	putchar('\n');
}

static void print_cpu(js *cpu)
{
	printf("cpu:      %s, %s, family %" PRId64 ", model %" PRId64 ", stepping %" PRId64 "\n",
	       js_str(cpu, "vendor", ""), js_str(cpu, "model_name", "no name"), js_int(cpu, "family", 0),
	       js_int(cpu, "model", 0), js_int(cpu, "stepping", 0));
	print_list("features:", js_get(cpu, "features"));
	js *missing = js_get(cpu, "missing");
	if (!missing)
		printf("missing:  not known, the daemon can't ask KVM\n");
	else if (!js_len(missing))
		printf("missing:  nothing; this host can run it\n");
	else
		print_list("missing:", missing);
}

void cli_print_snapshot(js *v)
{
	printf("name:     %s\nid:       %s\nvm:       %s\ncreated:  %s\nversion:  %s, %s\n",
	       js_str(v, "name", ""), js_str(v, "id", ""), js_str(v, "vm", ""), js_str(v, "created", ""),
	       js_str(v, "thaw_version", ""), js_str(v, "arch", ""));
	printf("vcpus:    %" PRId64 "\nstate:    %" PRId64 " bytes\n", js_int(v, "config.vcpus", 0),
	       js_int(v, "files.state.size_bytes", 0));
	printf("memory:   %" PRId64 " MiB, %" PRId64 " KiB on disk, %s\n", js_int(v, "config.memory_mib", 0),
	       js_int(v, "files.memory.data_bytes", 0) / 1024, js_str(v, "files.memory.format", "raw"));
	printf("storage:  %" PRId64 " KiB on disk of %" PRId64 " KiB\n",
	       js_int(v, "storage.disk_bytes", 0) / 1024, js_int(v, "storage.apparent_bytes", 0) / 1024);
	if (js_get(v, "parent_snapshot"))
		printf("parent:   %s%s\n", js_str(v, "parent_snapshot", ""),
		       js_true(v, "needs_parent") ? ", needed" : "");
	if (js_true(v, "needs_parent"))
		printf("chain:    of %" PRId64 " snapshots\n", js_int(v, "chain_length", 0));
	if (js_get(v, "cpu"))
		print_cpu(js_get(v, "cpu"));
	js *t = js_get(v, "template");
	if (t)
		printf("template: %" PRId64 " of %" PRId64 " chunks loaded, %" PRId64 " faults, %" PRId64
		       " clones\n",
		       js_int(t, "filled", 0), js_int(t, "chunks", 0), js_int(t, "faults", 0),
		       js_int(t, "clones", 0));
	js *pool = js_get(v, "pool");
	if (pool)
		printf("pool:     %" PRId64 " of %" PRId64 " ready, %" PRId64 " hits, %" PRId64
		       " misses%s%s\n",
		       js_int(pool, "ready", 0), js_int(pool, "target", 0), js_int(pool, "hits", 0),
		       js_int(pool, "misses", 0), js_get(pool, "error") ? "; " : "",
		       js_str(pool, "error", ""));
	if (js_get(v, "pause_us"))
		printf("pause:    %" PRId64 " us\n", js_int(v, "pause_us", 0));
	if (js_get(v, "verified"))
		printf("verified: yes\n");
}

static int finish(struct cli *c, int status, js *v)
{
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	cli_print_snapshot(v);
	js_free(v);
	return EXIT_OK;
}

int cli_snapshot(struct cli *c)
{
	js *o = js_object(), *v = NULL;
	js_put_str(o, "vm", c->pos[0]);
	js_put_str(o, "name", c->pos[1]);
	if (c->format)
		js_put_str(o, "format", c->format);
	if (c->incremental)
		js_put_bool(o, "incremental", true);
	struct cli_progress p = { .kind = "snapshot" };
	int status = cli_progress_begin(c, &p, "taking snapshot", c->pos[1]);
	if (status)
		js_free(o);
	else
		status = cli_request(c, "POST", o, &v, "/v1/snapshots");
	cli_progress_end(c, &p);
	return finish(c, status, v);
}

int cli_snapshots(struct cli *c)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/snapshots");
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	js *list = js_get(v, "snapshots");
	if (c->tree || c->quiet) {
		(c->tree ? cli_print_tree : cli_print_names)(list);
		js_free(v);
		return EXIT_OK;
	}
	printf("%-24s %-16s %5s %8s %12s %5s  %s\n", "NAME", "VM", "VCPUS", "MIB", "KIB ON DISK", "CHAIN",
	       "CREATED");
	for (size_t i = 0; i < js_len(list); i++) {
		js *s = js_at(list, i);
		if (js_get(s, "damaged")) {
			printf("%-24s DAMAGED: %s\n", js_str(s, "name", ""), js_str(s, "damaged", ""));
			continue;
		}
		printf("%-24s %-16s %5" PRId64 " %8" PRId64 " %12" PRId64 " %5" PRId64 "  %s\n",
		       js_str(s, "name", ""), js_str(s, "vm", ""), js_int(s, "config.vcpus", 0),
		       js_int(s, "config.memory_mib", 0), js_int(s, "storage.disk_bytes", 0) / 1024,
		       js_int(s, "chain_length", 0), js_str(s, "created", ""));
	}
	printf("%zu snapshots, %" PRId64 " KiB on disk of %" PRId64 " KiB\n", js_len(list),
	       js_int(v, "storage.disk_bytes", 0) / 1024, js_int(v, "storage.apparent_bytes", 0) / 1024);
	js_free(v);
	return EXIT_OK;
}

// A POST of it that takes long; body is taken over.
static int work_on(struct cli *c, struct cli_progress *p, const char *doing, const char *verb, js *body)
{
	js *v = NULL;
	int status = cli_name_ok(c->pos[0]) ? cli_progress_begin(c, p, doing, c->pos[0]) : EXIT_USAGE;
	if (status)
		js_free(body);
	else
		status = cli_request(c, "POST", body, &v, "/v1/snapshots/%s/%s", c->pos[0], verb);
	cli_progress_end(c, p);
	return finish(c, status, v);
}

static int by_name(struct cli *c, const char *method, const char *tail, js **ret_v)
{
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	return cli_request(c, method, NULL, ret_v, "/v1/snapshots/%s%s", c->pos[0], tail);
}

int cli_snapshot_show(struct cli *c)
{
	js *v = NULL;
	int status = by_name(c, "GET", "", &v);
	return finish(c, status, v);
}

int cli_snapshot_verify(struct cli *c)
{
	return work_on(c, &(struct cli_progress){ .kind = "verify" }, "verifying", "verify", NULL);
}

int cli_snapshot_flatten(struct cli *c)
{
	js *o = js_object();
	if (c->format)
		js_put_str(o, "format", c->format);
	if (c->name)
		js_put_str(o, "name", c->name);
	return work_on(c, &(struct cli_progress){ .kind = "flatten" }, "flattening", "flatten", o);
}

int cli_snapshot_prepare(struct cli *c)
{
	js *o = js_object();
	js_put_bool(o, "fill", !c->no_fill);
	js_put_bool(o, "wait", c->wait);
	js *pool = c->pool ? cli_parse_pairs("pool", c->pool, CLI_POOL_KEYS, CLI_POOL_KEYS, 0) : NULL;
	if (pool)
		js_put(o, "pool", pool);
	if (c->pool && !pool) {
		js_free(o);
		return EXIT_USAGE;
	}
	return work_on(c, &(struct cli_progress){ .prepares = true }, "preparing", "prepare", o);
}

int cli_snapshot_delete(struct cli *c)
{
	js *v = NULL;
	int status = by_name(c, "DELETE", c->force ? "?force=true" : "", &v);
	if (!status && !c->json)
		printf("%s deleted\n", c->pos[0]);
	js_free(v);
	return status;
}

#define MAX_CLONE_LINES 16 // of `thaw clone`; more are summed up

// --- clone --------------------------------------------------------------------------------
static int add_pairs(js *o, const char *key, const char *option, const char *const *texts, unsigned n_texts,
		     const char *keys, unsigned n)
{
	js *list = js_list();
	js_put(o, key, list);
	for (unsigned i = 0; i < n_texts; i++) {
		js *v = cli_parse_pairs(option, texts[i], keys, "", n);
		if (!v)
			return EXIT_USAGE;
		js_add(list, v);
	}
	return EXIT_OK;
}

// The overrides of clone n.
static int put_clone(struct cli *c, js *list, unsigned n)
{
	js *o = js_object(), *v;
	js_add(list, o);
	if (c->name && !c->has_count)
		js_put_str(o, "name", c->name);
	int status = add_pairs(o, "drives", "drive", c->drive, c->n_drives,
			       "id path ro layer layer_path bandwidth iops", n);
	if (!status)
		status = add_pairs(o, "nets", "net", c->net, c->n_nets,
				   "id tap socket user loopback forward mac" CLI_NET_RATES, n);
	if (!status && c->n_pmems)
		status = add_pairs(o, "pmems", "pmem", c->pmem, c->n_pmems, "id path", n);
	if (!status && c->n_ports)
		status = add_pairs(o, "consoles", "port", c->port, c->n_ports, "id path", n);
	if (c->record && n == 1)
		js_put(o, "record", js_object());
	if (c->no_populate)
		js_put_bool(o, "populate", false);
	if (!status && c->metadata) {
		if (!(v = cli_json_file(c->metadata)))
			return EXIT_USAGE;
		js_put(o, "metadata", v);
	}
	if (status || !c->vsock)
		return status;
	if (!(v = cli_parse_pairs("vsock", c->vsock, "path cid", "cid", n)))
		return EXIT_USAGE;
	js_put(o, "vsock", v);
	return EXIT_OK;
}

static const char *const stages[] = { "ordered", "kvm_ready", "state_loaded", "running" };

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

// Many clones: percentiles (nearest rank) of each stage instead of a line each.
static void print_stages(js *list)
{
	int64_t *us = calloc(js_len(list), sizeof *us);
	for (size_t k = 0; us && k < sizeof stages / sizeof stages[0]; k++) {
		size_t n = 0;
		for (size_t i = 0; i < js_len(list); i++) {
			int64_t v = js_int(js_get(js_at(list, i), "timing_us"), stages[k], -1);
			if (v >= 0)
				us[n++] = v;
		}
		if (!n)
			continue;
		if (k == 0)
			printf("%-16s %10s %10s %10s %10s\n", "us from request", "p50", "p90", "p99", "max");
		qsort(us, n, sizeof *us, by_value);
		printf("%-16s %10" PRId64 " %10" PRId64 " %10" PRId64 " %10" PRId64 "\n", stages[k],
		       us[(n * 50 + 99) / 100 - 1], us[(n * 90 + 99) / 100 - 1], us[(n * 99 + 99) / 100 - 1],
		       us[n - 1]);
	}
	free(us);
}

static void print_clone(js *v)
{
	printf("%-24s %-8s", js_str(v, "name", ""), js_str(v, "state", ""));
	for (size_t k = 0; k < sizeof stages / sizeof stages[0]; k++) {
		int64_t us = js_int(js_get(v, "timing_us"), stages[k], -1);
		if (us < 0) // a paused clone never ran
			printf(" %12s", "-");
		else
			printf(" %12" PRId64, us);
	}
	printf("  %s\n", js_str(v, "vsock_path", "-"));
}

static void print_clones(js *list)
{
	size_t n = js_len(list);
	bool each = n <= MAX_CLONE_LINES;
	if (each)
		printf("%-24s %-8s %12s %12s %12s %12s  %s\n", "NAME", "STATE", "PROCESS us", "KVM us",
		       "LOADED us", "RUNNING us", "VSOCK");
	else
		printf("%zu clones, %s to %s\n", n, js_str(js_at(list, 0), "name", "?"),
		       js_str(js_at(list, n - 1), "name", "?"));
	for (size_t i = 0; i < n; i++) {
		js *v = js_at(list, i);
		if (js_get(v, "error"))
			printf("%-24s failed: %s\n", js_str(v, "name", "-"), js_str(v, "error.message", ""));
		else if (each)
			print_clone(v);
	}
	if (!each)
		print_stages(list);
}

static unsigned count_failed(js *list)
{
	unsigned failed = 0;
	for (size_t i = 0; i < js_len(list); i++)
		failed += js_get(js_at(list, i), "error") != NULL;
	return failed;
}

static int clone_of(struct cli *c, const char *kind)
{
	js *o, *v = NULL;
	char path[PATH_MAX];
	unsigned n = c->has_count ? (unsigned)c->count : 1, failed;
	int status = EXIT_OK;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (c->has_count && (c->count < 1 || c->count > API_MAX_CLONES))
		return cli_fail(EXIT_USAGE, "--count: %lu is not within 1..%d", c->count, API_MAX_CLONES);
	o = js_object();
	// One clone, no --count: it has just that name.
	bool named = c->name && !c->has_count;
	if (c->name && !named)
		js_put_str(o, "name_prefix", c->name);
	js_put_bool(o, "run", !c->paused);
	if (c->page_handler && !cli_absolute(c->page_handler, path)) {
		js_free(o);
		return cli_fail(EXIT_USAGE, "--page-handler: the path is too long");
	}
	if (c->page_handler)
		js_put_str(o, "page_handler", path);
	if (c->huge_pages)
		js_put_str(o, "huge_pages", c->huge_pages);
	status = cli_put_policy(c, o);
	if (!status && (named || c->n_drives || c->n_nets || c->n_ports || c->n_pmems || c->vsock ||
			c->record || c->no_populate)) {
		js *list = js_list();
		js_put(o, "clones", list);
		for (unsigned i = 1; !status && i <= n; i++)
			status = put_clone(c, list, i);
	} else {
		js_put_uint(o, "count", n);
	}
	if (status) {
		js_free(o);
		return status;
	}
	struct cli_progress p = { 0 };
	status = cli_progress_begin(c, &p, "cloning", c->pos[0]);
	if (status)
		js_free(o);
	else
		status = cli_request(c, "POST", o, &v, "/v1/%s/%s/clone", kind, c->pos[0]);
	cli_progress_end(c, &p);
	if (status)
		return status;
	failed = count_failed(js_get(v, "clones"));
	if (c->json) {
		status = cli_print_json(v);
	} else {
		print_clones(js_get(v, "clones"));
		js_free(v);
	}
	return failed ? EXIT_DAEMON_ERROR : status;
}

int cli_clone(struct cli *c) { return clone_of(c, "snapshots"); }
int cli_fork(struct cli *c) { return clone_of(c, "vms"); }
