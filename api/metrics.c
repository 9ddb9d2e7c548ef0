// SPDX-License-Identifier: Apache-2.0
#include "api/metrics.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api/routes.h"

#define MAX_LABELS API_N_CODES // the label with most values
#define MAX_ROUTES 64
#define MAX_STATUSES 24 // different ones of one route

static const struct metric_info infos[N_METRICS] = {
#define X(sym, type, unit, label, name, help)                                                                \
	[M_##sym] = { METRIC_##type, METRIC_##unit, METRIC_##label, name, help },
	METRICS(X)
#undef X
};

// Upper bounds, ns: of all histograms, which begin at a clone and end at a snapshot of much memory.
static const uint64_t bounds_ns[] = { 100000,      250000,      500000,      1000000,    2500000,
				      5000000,     10000000,    25000000,    50000000,   100000000,
				      250000000,   500000000,   1000000000,  2500000000, 5000000000,
				      10000000000, 30000000000, 100000000000 };
#define N_BOUNDS MV_ARRAY_LEN(bounds_ns)

static struct {
	uint64_t value[MAX_LABELS];    // histogram: [0] sum
	uint64_t bucket[N_BOUNDS + 1]; // not cumulative
} values[N_METRICS];

static struct {
	unsigned status;
	uint64_t n;
} http[MAX_ROUTES + 1][MAX_STATUSES];

const struct metric_info *metric_info(enum metric m) { return &infos[m]; }

static const char *label_key(enum metric_label label)
{
	static const char *const keys[] = { NULL, "code", "reason", "state", "stage", "state" };
	return keys[label];
}

const char *metrics_label(enum metric_label label, unsigned v)
{
	static const char *const stages[] = { "process_ready", "kvm_ready", "state_loaded", "running" };
	static const char *const templates[] = { "filling", "complete", "dropped" };
	switch (label) {
	case METRIC_CODE: return v < API_N_CODES ? api_code_info((enum api_code)v)->name : NULL;
	case METRIC_REASON: return v < VM_N_EXITS ? vm_exit_name(v) : NULL;
	case METRIC_STATE: return v <= VM_EXITED ? vm_state_name(v) : NULL;
	case METRIC_STAGE: return v < N_STAGES ? stages[v] : NULL;
	case METRIC_TEMPLATE: return v < N_TEMPLATE_STATES ? templates[v] : NULL;
	default: return v ? NULL : "";
	}
}

// Values that can't occur: no code is "ok", no VM is shown while it loads.
static unsigned first_value(enum metric_label label)
{
	return label == METRIC_CODE || label == METRIC_REASON || label == METRIC_STATE;
}

void metrics_add(enum metric m, unsigned label, uint64_t n)
{
	if (label < MAX_LABELS)
		values[m].value[label] += n;
}

void metrics_set(enum metric m, unsigned label, uint64_t v)
{
	if (label < MAX_LABELS)
		values[m].value[label] = v;
}

void metrics_observe(enum metric m, uint64_t v)
{
	size_t i = 0;
	while (i < N_BOUNDS && v > bounds_ns[i])
		i++;
	values[m].bucket[i]++;
	values[m].value[0] += v;
}

uint64_t metrics_value(enum metric m, unsigned label)
{
	uint64_t n = 0;
	if (infos[m].type != METRIC_HISTOGRAM)
		return label < MAX_LABELS ? values[m].value[label] : 0;
	for (size_t i = 0; i <= N_BOUNDS; i++)
		n += values[m].bucket[i];
	return n;
}

void metrics_clone(const struct msg_times *t, uint64_t requested_ns, bool from_pool)
{
	const uint64_t at[N_STAGES] = { t->process_start, t->kvm_ready, t->loaded, t->running };
	metrics_add(M_CLONES, 0, 1);
	for (unsigned i = 0; i < N_STAGES; i++)
		if (at[i] > requested_ns) // of a pool: was there before
			metrics_add(M_CLONE_STAGE, i, at[i] - requested_ns);
	if (t->running > requested_ns) // not: it stays paused
		metrics_observe(from_pool ? M_CLONE_CLAIM : M_CLONE_COLD, t->running - requested_ns);
}

void metrics_http(unsigned route, unsigned status, uint64_t ns)
{
	unsigned r = route < api_n_routes && route < MAX_ROUTES ? route : MAX_ROUTES;
	metrics_observe(M_HTTP_SECONDS, ns);
	for (unsigned i = 0; i < MAX_STATUSES; i++) {
		if (http[r][i].n && http[r][i].status != status)
			continue;
		http[r][i].status = status;
		http[r][i].n++;
		return;
	}
}

// --- text ---------------------------------------------------------------------------------
__attribute__((format(printf, 2, 3))) static void put(struct mv_buf *out, const char *fmt, ...)
{
	char line[400];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	if (n > 0)
		mv_buf_append(out, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

void metrics_head(struct mv_buf *out, const char *name, enum metric_type type, const char *help)
{
	static const char *const types[] = { "counter", "gauge", "histogram" };
	put(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, types[type]);
}

void metrics_sample(struct mv_buf *out, const char *name, const char *suffix, const char *labels, uint64_t v,
		    enum metric_unit unit)
{
	put(out, "%s%s%s%s%s ", name, suffix, labels ? "{" : "", labels ? labels : "", labels ? "}" : "");
	if (unit == METRIC_NS)
		put(out, "%" PRIu64 ".%09" PRIu64 "\n", v / 1000000000u, v % 1000000000u);
	else
		put(out, "%" PRIu64 "\n", v);
}

static void put_histogram(struct mv_buf *out, enum metric m)
{
	uint64_t n = 0;
	char labels[40];
	for (size_t i = 0; i < N_BOUNDS; i++) {
		n += values[m].bucket[i];
		snprintf(labels, sizeof labels, "le=\"%g\"", (double)bounds_ns[i] / 1e9);
		metrics_sample(out, infos[m].name, "_bucket", labels, n, METRIC_ONE);
	}
	n += values[m].bucket[N_BOUNDS];
	metrics_sample(out, infos[m].name, "_bucket", "le=\"+Inf\"", n, METRIC_ONE);
	metrics_sample(out, infos[m].name, "_sum", NULL, values[m].value[0], infos[m].unit);
	metrics_sample(out, infos[m].name, "_count", NULL, n, METRIC_ONE);
}

// All values of a label from the start: a series that appears with its first event hides it
// from rate().
static void put_values(struct mv_buf *out, enum metric m)
{
	const struct metric_info *f = &infos[m];
	const char *word;
	char labels[100];
	for (unsigned v = first_value(f->label); (word = metrics_label(f->label, v)); v++) {
		snprintf(labels, sizeof labels, "%s=\"%s\"", label_key(f->label), word);
		metrics_sample(out, f->name, "", f->label ? labels : NULL, values[m].value[v], f->unit);
	}
}

static void put_http(struct mv_buf *out)
{
	char labels[160];
	metrics_head(out, "thaw_http_requests_total", METRIC_COUNTER,
		     "answers, by route and status; route none: it does not exist");
	for (unsigned r = 0; r <= MAX_ROUTES; r++)
		for (unsigned i = 0; i < MAX_STATUSES && http[r][i].n; i++) {
			bool known = r < api_n_routes;
			snprintf(labels, sizeof labels, "method=\"%s\",route=\"%s\",status=\"%u\"",
				 known ? api_routes[r].method : "", known ? api_routes[r].pattern : "none",
				 http[r][i].status);
			metrics_sample(out, "thaw_http_requests_total", "", labels, http[r][i].n, METRIC_ONE);
		}
}

void metrics_text(struct mv_buf *out)
{
	for (unsigned m = 0; m < N_METRICS; m++) {
		metrics_head(out, infos[m].name, infos[m].type, infos[m].help);
		if (infos[m].type == METRIC_HISTOGRAM)
			put_histogram(out, (enum metric)m);
		else
			put_values(out, (enum metric)m);
	}
	put_http(out);
}
