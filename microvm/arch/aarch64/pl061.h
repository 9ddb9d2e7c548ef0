// SPDX-License-Identifier: Apache-2.0
// The PL061 GPIO controller (ARM DDI 0190), of whose eight lines one is there: the power button, which a
// kernel's gpio-keys driver listens to. It is let go when the guest has seen it pressed, so it can't be
// missed however long a guest waits for it to stop bouncing. Loop lock held.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/state.h"

#define PL061_POWER_LINE 3

struct pl061 {            // saved (pl061_table); a bit per line
	uint32_t pressed; // 1: the line of the button is high
	uint32_t direction, level, both_edges, rising, enabled, raised, alternate;
};

extern const struct mv_table pl061_table;

// All three return, or set, whether the interrupt is to be raised: by an edge, for what is new.
bool pl061_press(struct pl061 *p);
uint32_t pl061_read(struct pl061 *p, uint64_t offset, bool *ret_irq);
bool pl061_write(struct pl061 *p, uint64_t offset, uint32_t value);
// Does the guest's driver listen to the button?
static inline bool pl061_is_heard(const struct pl061 *p) { return p->enabled >> PL061_POWER_LINE & 1; }
