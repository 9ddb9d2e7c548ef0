// SPDX-License-Identifier: Apache-2.0
// Firecracker's metrics: one JSON object per line, appended to a file or FIFO each 60 s, by FlushMetrics and
// at the end. Counters are what was counted since the line before. Fields that thaw has no true value for are
// left out. Loop's thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "api/error.h"
#include "microvm/base/loop.h"
#include "microvm/base/msg.h"

#define FC_MAX_ROUTES 64

struct fc;

enum fc_latency { FC_FULL_CREATE, FC_DIFF_CREATE, FC_LOAD, FC_PAUSE, FC_RESUME, FC_N_LATENCIES };

struct fc_counts {
	int fd; // -1: none
	struct mv_timer timer;
	bool has_timer;
	uint64_t called[FC_MAX_ROUTES], failed[FC_MAX_ROUTES]; // by route, since the last line
	uint64_t latency_us[FC_N_LATENCIES];                   // of the last one
	uint64_t missed;                                       // lines that were not taken
	uint64_t startup_us, startup_cpu_us;                   // from start to listening; 0: not asked for
	// What was told before
	uint64_t told_lost, told_dropped, told_log_missed;
	uint64_t told_kicks[16][4];
};

int fc_metrics_set(struct fc *fc, const char *path, struct api_err *err);
int fc_metrics_flush(struct fc *fc, struct api_err *err); // no file: nothing happens
void fc_metrics_fini(struct fc *fc);
