// SPDX-License-Identifier: Apache-2.0
// thaw ps and thaw top: all VMs and what each uses of the host, by one request per VM. A VM that is gone
// between the list and its request is left out of what is measured, not an error.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

#define MAX_INTERVAL_S 3600

struct row {
	char id[MV_UUID_LEN];
	js *vm; // in the list
	int64_t age_s, cpu_us, resident, private, minor, major;
	bool measured;
	// since the reading before
	bool compared;
	uint64_t cpu_percent, faults; // faults: per second
};

struct reading {
	js *list;
	struct row *rows;
	size_t n;
	uint64_t at_ns;
};

static void reading_fini(struct reading *r)
{
	js_free(r->list);
	free(r->rows);
	*r = (struct reading){ 0 };
}

// Seconds since a time in UTC of the daemon, -1: that is none.
static int64_t age_of(const char *created)
{
	struct tm tm = { 0 };
	const char *end = strptime(created, "%Y-%m-%dT%H:%M:%S", &tm);
	time_t then = end ? timegm(&tm) : -1, now = time(NULL);
	return then < 0 ? -1 : now > then ? now - then : 0;
}

static int measure(struct cli *c, struct row *row)
{
	struct thaw_reply *r = NULL;
	int e = thaw_vm_metrics(c->client, row->id, &r);
	if (e == -EREMOTEIO && thaw_last_error(c->client)->status == 404)
		return EXIT_OK;
	if (e)
		return cli_result(c, e);
	row->measured = thaw_reply_bool(r, "measured", false);
	row->cpu_us = thaw_reply_int(r, "cpu_us", 0);
	row->resident = thaw_reply_int(r, "resident_bytes", 0);
	row->private = thaw_reply_int(r, "private_bytes", 0);
	row->minor = thaw_reply_int(r, "minor_faults", 0);
	row->major = thaw_reply_int(r, "major_faults", 0);
	thaw_reply_free(r);
	return EXIT_OK;
}

static int read_all(struct cli *c, struct reading *ret_r)
{
	struct reading r = { 0 };
	int status = cli_request(c, "GET", NULL, &r.list, "/v1/vms");
	if (status)
		return status;
	js *vms = js_get(r.list, "vms");
	r.n = js_len(vms);
	r.at_ns = mv_now_ns();
	r.rows = calloc(r.n + 1, sizeof *r.rows);
	if (!r.rows)
		status = cli_fail(EXIT_DAEMON_ERROR, "out of memory");
	for (size_t i = 0; !status && i < r.n; i++) {
		struct row *row = &r.rows[i];
		row->vm = js_at(vms, i);
		row->age_s = age_of(js_str(row->vm, "created", ""));
		const char *id = js_str(row->vm, "id", "");
		if (!vmcfg_name_ok(id) || mv_strcpy(row->id, sizeof row->id, id))
			status = cli_fail(EXIT_DAEMON_ERROR, "the daemon's answer makes no sense");
		else
			status = measure(c, row);
	}
	if (status)
		reading_fini(&r);
	else
		*ret_r = r;
	return status;
}

static void compare(struct reading *r, const struct reading *before)
{
	uint64_t us = (r->at_ns - before->at_ns) / 1000;
	for (size_t i = 0; i < r->n; i++) {
		struct row *row = &r->rows[i];
		for (size_t k = 0; k < before->n; k++) {
			const struct row *old = &before->rows[k];
			if (strcmp(row->id, old->id) || !row->measured || !old->measured || !us ||
			    row->cpu_us < old->cpu_us)
				continue;
			row->compared = true;
			row->cpu_percent = (uint64_t)(row->cpu_us - old->cpu_us) * 100 / us;
			row->faults =
				(uint64_t)(row->minor + row->major - old->minor - old->major) * 1000000 / us;
		}
	}
}

// --- shown ------------------------------------------------------------------------------------
static const char *age_text(int64_t s, char text[24])
{
	if (s < 0)
		snprintf(text, 24, "-");
	else if (s < 120)
		snprintf(text, 24, "%" PRId64 "s", s);
	else if (s < 7200)
		snprintf(text, 24, "%" PRId64 "m", s / 60);
	else if (s < 172800)
		snprintf(text, 24, "%" PRId64 "h", s / 3600);
	else
		snprintf(text, 24, "%" PRId64 "d", s / 86400);
	return text;
}

static js *row_json(const struct row *row)
{
	js *o = js_object();
	js_put_str(o, "name", js_str(row->vm, "name", ""));
	js_put_str(o, "id", row->id);
	js_put_str(o, "state", js_str(row->vm, "state", ""));
	js_put_uint(o, "vcpus", (uint64_t)js_int(row->vm, "config.vcpus", 0));
	js_put_uint(o, "memory_mib", (uint64_t)js_int(row->vm, "config.memory_mib", 0));
	if (row->age_s >= 0)
		js_put_uint(o, "age_s", (uint64_t)row->age_s);
	if (row->measured) {
		js_put_uint(o, "cpu_us", (uint64_t)row->cpu_us);
		js_put_uint(o, "resident_bytes", (uint64_t)row->resident);
		js_put_uint(o, "private_bytes", (uint64_t)row->private);
		js_put_uint(o, "minor_faults", (uint64_t)row->minor);
		js_put_uint(o, "major_faults", (uint64_t)row->major);
	}
	if (row->compared) {
		js_put_uint(o, "cpu_percent", row->cpu_percent);
		js_put_uint(o, "faults_per_s", row->faults);
	}
	return o;
}

static js *reading_json(const struct reading *r)
{
	js *o = js_object(), *list = js_list();
	js_put(o, "vms", list);
	for (size_t i = 0; i < r->n; i++)
		js_add(list, row_json(&r->rows[i]));
	return o;
}

int cli_ps(struct cli *c)
{
	struct reading r = { 0 };
	char age[24];
	int status = read_all(c, &r);
	if (status)
		return status;
	if (c->json) {
		status = cli_print_json(reading_json(&r));
		reading_fini(&r);
		return status;
	}
	printf("%-24s %-8s %5s %5s %8s %12s %11s %9s  %-16s %s\n", "NAME", "STATE", "AGE", "VCPUS", "MIB",
	       "RESIDENT KIB", "PRIVATE KIB", "CPU s", "SNAPSHOT", "EXIT");
	for (size_t i = 0; i < r.n; i++) {
		const struct row *row = &r.rows[i];
		printf("%-24s %-8s %5s %5" PRId64 " %8" PRId64, js_str(row->vm, "name", ""),
		       js_str(row->vm, "state", ""), age_text(row->age_s, age),
		       js_int(row->vm, "config.vcpus", 0), js_int(row->vm, "config.memory_mib", 0));
		if (row->measured)
			printf(" %12" PRId64 " %11" PRId64 " %6" PRId64 ".%02" PRId64, row->resident / 1024,
			       row->private / 1024, row->cpu_us / 1000000, row->cpu_us % 1000000 / 10000);
		else
			printf(" %12s %11s %9s", "-", "-", "-");
		printf("  %-16s %s\n", js_str(row->vm, "from_snapshot", "-"),
		       js_str(row->vm, "exit.reason", "-"));
	}
	reading_fini(&r);
	return EXIT_OK;
}

static int compare_numbers(uint64_t a, uint64_t b) { return (a < b) - (a > b); } // the largest first

static int by_cpu(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	return compare_numbers(x->cpu_percent, y->cpu_percent);
}

static int by_memory(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	return compare_numbers((uint64_t)x->private, (uint64_t)y->private);
}

static int by_faults(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	return compare_numbers(x->faults, y->faults);
}

static void print_top(const struct reading *r)
{
	char age[24];
	printf("%-24s %-8s %5s %6s %12s %11s %9s %9s\n", "NAME", "STATE", "AGE", "CPU %", "RESIDENT KIB",
	       "PRIVATE KIB", "FAULTS/s", "FROM DISK");
	for (size_t i = 0; i < r->n; i++) {
		const struct row *row = &r->rows[i];
		printf("%-24s %-8s %5s", js_str(row->vm, "name", ""), js_str(row->vm, "state", ""),
		       age_text(row->age_s, age));
		if (row->compared)
			printf(" %6" PRIu64, row->cpu_percent);
		else
			printf(" %6s", "-");
		if (row->measured)
			printf(" %12" PRId64 " %11" PRId64, row->resident / 1024, row->private / 1024);
		else
			printf(" %12s %11s", "-", "-");
		if (row->compared)
			printf(" %9" PRIu64 " %9" PRId64 "\n", row->faults, row->major);
		else
			printf(" %9s %9s\n", "-", "-");
	}
}

int cli_top(struct cli *c)
{
	struct reading before = { 0 }, r = { 0 };
	unsigned long interval_s = c->has_interval ? c->interval_s : 2;
	const char *sort = c->sort ? c->sort : "cpu";
	int (*order)(const void *, const void *) = !strcmp(sort, "cpu")      ? by_cpu
						   : !strcmp(sort, "memory") ? by_memory
						   : !strcmp(sort, "faults") ? by_faults
									     : NULL;
	if (!order)
		return cli_fail(EXIT_USAGE, "--sort: \"%s\" is none of cpu, memory and faults", sort);
	if (interval_s < 1 || interval_s > MAX_INTERVAL_S)
		return cli_fail(EXIT_USAGE, "--interval: %lu is not within 1..%d", interval_s,
				MAX_INTERVAL_S);
	bool clear = isatty(STDOUT_FILENO) && !c->once && !c->json;
	int status = read_all(c, &before);
	while (!status) {
		sleep((unsigned)interval_s);
		if ((status = read_all(c, &r)))
			break;
		compare(&r, &before);
		if (r.n)
			qsort(r.rows, r.n, sizeof *r.rows, order);
		if (clear)
			fputs("\033[H\033[J", stdout);
		if (c->json)
			status = cli_print_json(reading_json(&r));
		else
			print_top(&r);
		reading_fini(&before);
		before = r;
		r = (struct reading){ 0 };
		if (fflush(stdout))
			status = EXIT_DAEMON_ERROR; // nobody reads it any more
		if (c->once)
			break;
	}
	reading_fini(&before);
	return status;
}
