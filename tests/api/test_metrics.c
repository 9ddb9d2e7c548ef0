// SPDX-License-Identifier: Apache-2.0
// api/metrics.c and the table of events: counting, the text, and what docs/api.md says of them.
#include "tests/t.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/routes.h"

static char *text(void)
{
	struct mv_buf b = { 0 };
	metrics_text(&b);
	mv_buf_append(&b, "", 1);
	assert_false(b.failed);
	return (char *)b.p;
}

static void has(const char *line)
{
	char with[200], *t = text();
	snprintf(with, sizeof with, "\n%s\n", line);
	if (!strstr(t, with))
		fail_msg("there is no line: %s", line);
	free(t);
}

static void test_counters(void **state)
{
	(void)state;
	metrics_add(M_BOOTS, 0, 2);
	metrics_add(M_CLONE_FAILURES, API_IN_USE, 3);
	metrics_set(M_VMS, VM_PAUSED, 7);
	metrics_add(M_CLONE_FAILURES, 1u << 20, 1); // a label that there is not
	has("thaw_boots_total 2");
	has("thaw_clone_failures_total{code=\"in_use\"} 3");
	has("thaw_clone_failures_total{code=\"no_space\"} 0");
	has("thaw_vms{state=\"paused\"} 7");
}

static void test_histogram(void **state)
{
	(void)state;
	metrics_observe(M_PAUSE_SECONDS, 0);
	metrics_observe(M_PAUSE_SECONDS, 100000); // a bound is part of its bucket
	metrics_observe(M_PAUSE_SECONDS, 100001);
	metrics_observe(M_PAUSE_SECONDS, 200000000000); // above all
	has("thaw_snapshot_pause_seconds_bucket{le=\"0.0001\"} 2");
	has("thaw_snapshot_pause_seconds_bucket{le=\"0.00025\"} 3");
	has("thaw_snapshot_pause_seconds_bucket{le=\"100\"} 3");
	has("thaw_snapshot_pause_seconds_bucket{le=\"+Inf\"} 4");
	has("thaw_snapshot_pause_seconds_sum 200.000200001");
	has("thaw_snapshot_pause_seconds_count 4");
	assert_int_equal(metrics_value(M_PAUSE_SECONDS, 0), 4);
}

static void test_clones(void **state)
{
	(void)state;
	struct msg_times t = { .process_start = 900, .kvm_ready = 2000, .loaded = 3000, .running = 5000 };
	metrics_clone(&t, 1000, false);
	metrics_clone(&t, 1000, true); // its process was there before the request
	assert_int_equal(metrics_value(M_CLONES, 0), 2);
	assert_int_equal(metrics_value(M_CLONE_STAGE, STAGE_PROCESS_READY), 0);
	assert_int_equal(metrics_value(M_CLONE_STAGE, STAGE_RUNNING), 8000);
	assert_int_equal(metrics_value(M_CLONE_COLD, 0), 1);
	assert_int_equal(metrics_value(M_CLONE_CLAIM, 0), 1);
	t.running = 0; // stays paused
	metrics_clone(&t, 1000, false);
	assert_int_equal(metrics_value(M_CLONE_COLD, 0), 1);
}

static void test_http(void **state)
{
	(void)state;
	metrics_http(0, 200, 1000);
	metrics_http(0, 200, 1000);
	metrics_http(api_n_routes, 404, 1000);
	metrics_http(100000, 404, 1000);
	has("thaw_http_requests_total{method=\"GET\",route=\"/v1/info\",status=\"200\"} 2");
	has("thaw_http_requests_total{method=\"\",route=\"none\",status=\"404\"} 2");
	assert_true(api_n_routes <= 64); // MAX_ROUTES of metrics.c
	assert_int_equal(metrics_value(M_HTTP_SECONDS, 0), 4);
}

static char *docs;

static void in_docs(const char *fmt, const char *a, const char *b)
{
	char line[300];
	snprintf(line, sizeof line, fmt, a, b);
	if (!strstr(docs, line))
		fail_msg("docs/api.md has no line beginning with:%s", line);
}

// The line of a metric in docs/api.md has its name, type and meaning; that of an event its type and meaning.
static void test_documented(void **state)
{
	static const char *const types[] = { "counter", "gauge", "histogram" };
	static const char *const events[] = {
#define X(sym, name, doc) "\n| `" name "` | " doc " |\n",
		EVENT_TYPES(X)
#undef X
	};
	(void)state;
	FILE *f = fopen("docs/api.md", "re");
	if (!f)
		skip(); // not run from the source folder
	docs = calloc(1, 1 << 20);
	assert_true(docs && fread(docs, 1, (1 << 20) - 1, f) > 0);
	fclose(f);
	for (unsigned m = 0; m < N_METRICS; m++) {
		const struct metric_info *i = metric_info((enum metric)m);
		in_docs("\n| `%s` | %s | ", i->name, types[i->type]);
		in_docs(" | %s |\n%s", i->help, "");
		for (unsigned k = 0; k < m; k++)
			assert_string_not_equal(i->name, metric_info((enum metric)k)->name);
		// https://prometheus.io/docs/practices/naming: the unit is in the name, and _total of a
		// counter
		size_t n = strlen(i->name);
		assert_int_equal(i->type == METRIC_COUNTER, n > 6 && !strcmp(i->name + n - 6, "_total"));
		assert_int_equal(i->unit == METRIC_NS, strstr(i->name, "_seconds") != NULL);
		assert_int_equal(i->unit == METRIC_BYTES, strstr(i->name, "_bytes") != NULL);
	}
	for (unsigned e = 0; e < EVENT_N_TYPES; e++)
		in_docs("%s%s", events[e], "");
	free(docs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_counters),   cmocka_unit_test(test_histogram),
		cmocka_unit_test(test_clones),     cmocka_unit_test(test_http),
		cmocka_unit_test(test_documented),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
