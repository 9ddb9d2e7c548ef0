// SPDX-License-Identifier: Apache-2.0
// What an architecture's folder says of its golden snapshots.
#pragma once
#include "microvm/base/state.h"

struct t_golden {
	const char *folder;                    // below the format's, with a slash behind it; ""
	const char *const *names;              // NULL behind the last one
	const struct mv_table *vcpu, *machine; // of their sections
};
extern const struct t_golden t_golden;
