// SPDX-License-Identifier: Apache-2.0
#include "bench/stats.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct bench_series *bench_labelled(struct bench_results *r, const char *name, const char *unit,
				    const char *labels, const char *what)
{
	for (size_t i = 0; i < r->n; i++)
		if (!strcmp(r->series[i].name, name) &&
		    !strcmp(r->series[i].labels ? r->series[i].labels : "", labels ? labels : ""))
			return &r->series[i];
	if (r->n == BENCH_MAX_SERIES)
		abort(); // a bench program's own table is too small
	r->series[r->n] = (struct bench_series){ .name = name, .unit = unit, .what = what, .labels = labels };
	return &r->series[r->n++];
}

struct bench_series *bench_series(struct bench_results *r, const char *name, const char *unit,
				  const char *what)
{
	return bench_labelled(r, name, unit, NULL, what);
}

void bench_add(struct bench_series *s, double value)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? s->cap * 2 : 64;
		s->value = realloc(s->value, s->cap * sizeof *s->value);
		if (!s->value)
			abort();
	}
	s->value[s->n++] = value;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

double bench_percentile(struct bench_series *s, double p)
{
	if (!s->n)
		return NAN;
	qsort(s->value, s->n, sizeof *s->value, by_value);
	size_t rank = (size_t)ceil(p / 100 * (double)s->n);
	return s->value[rank ? rank - 1 : 0];
}

void bench_print(struct bench_results *r, FILE *to)
{
	fprintf(to, "%-24s %6s %5s %10s %10s %10s %10s  %s\n", "name", "unit", "n", "p50", "p90", "p99",
		"max", "what");
	for (size_t i = 0; i < r->n; i++) {
		struct bench_series *s = &r->series[i];
		// Ratios, and what is small, with two digits.
		int digits = bench_percentile(s, 50) < 20 ? 2 : 0;
		fprintf(to, "%-24s %6s %5zu %10.*f %10.*f %10.*f %10.*f  %s%s%s\n", s->name, s->unit, s->n,
			digits, bench_percentile(s, 50), digits, bench_percentile(s, 90), digits,
			bench_percentile(s, 99), digits, bench_percentile(s, 100), s->what,
			s->labels ? " " : "", s->labels ? s->labels : "");
	}
}

int bench_write_json(struct bench_results *r, const char *path)
{
	FILE *f = fopen(path, "w");
	if (!f)
		return -errno;
	fputs("[\n", f);
	for (size_t i = 0; i < r->n; i++) {
		struct bench_series *s = &r->series[i];
		fprintf(f,
			"  {\"name\": \"%s\", \"unit\": \"%s\", \"n\": %zu, \"p50\": %.3f, \"p90\": %.3f, "
			"\"p99\": %.3f, \"min\": %.3f, \"max\": %.3f%s%s}%s\n",
			s->name, s->unit, s->n, bench_percentile(s, 50), bench_percentile(s, 90),
			bench_percentile(s, 99), bench_percentile(s, 0), bench_percentile(s, 100),
			s->labels ? ", \"labels\": " : "", s->labels ? s->labels : "",
			i + 1 < r->n ? "," : "");
	}
	fputs("]\n", f);
	int failed = ferror(f);
	return fclose(f) || failed ? -EIO : 0;
}

void bench_results_fini(struct bench_results *r)
{
	for (size_t i = 0; i < r->n; i++)
		free(r->series[i].value);
	r->n = 0;
}
