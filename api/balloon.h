// SPDX-License-Identifier: Apache-2.0
// The balloon of a VM (devices/balloon.c) as the daemon sees it. Loop's thread only.
#pragma once
#include "api/json.h"
#include "api/metrics.h"
#include "api/vm.h"

// MSG_BALLOON_STATS came; or an answer with a balloon: kept for those who ask. 0 or -EPROTO.
int balloon_told(struct vm *vm, const struct msg *m);
void balloon_note(struct vm *vm, const struct msg_balloon *b);

// As it was last told; NULL: it has none, or nothing was told yet.
js *balloon_json(const struct vm *vm);

// For Prometheus. balloon_value() is false when the VM has no such value.
struct balloon_metric {
	const char *name, *help;
	enum metric_type type;
	enum metric_unit unit;
	int stat; // of struct msg_balloon; -1: another member
};
extern const struct balloon_metric balloon_metrics[];
extern const unsigned balloon_n_metrics;
bool balloon_value(const struct vm *vm, unsigned i, uint64_t *ret_v);
