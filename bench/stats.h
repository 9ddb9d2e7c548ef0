// SPDX-License-Identifier: Apache-2.0
// Samples, percentiles, and the results file: a list of {name, unit, n, p50, p90, p99,
// min, max}. Percentiles are nearest-rank, so every printed figure is one that was measured.
#pragma once
#include <stddef.h>
#include <stdio.h>

#define BENCH_MAX_SERIES 240

struct bench_series {
	const char *name, *unit, *what;
	const char *labels; // a JSON object, or NULL
	double *value;
	size_t n, cap;
};

struct bench_results {
	struct bench_series series[BENCH_MAX_SERIES];
	size_t n;
};

// The series of that name, made at its first use.
struct bench_series *bench_series(struct bench_results *r, const char *name, const char *unit,
				  const char *what);
// The same for a name that is there several times: labels is a JSON object.
struct bench_series *bench_labelled(struct bench_results *r, const char *name, const char *unit,
				    const char *labels, const char *what);
void bench_add(struct bench_series *s, double value);
double bench_percentile(struct bench_series *s, double p);       // sorts; NaN when empty
void bench_print(struct bench_results *r, FILE *to);             // a table for people
int bench_write_json(struct bench_results *r, const char *path); // 0 or -errno
void bench_results_fini(struct bench_results *r);
