// SPDX-License-Identifier: Apache-2.0
// The PL031 real-time clock, from which a kernel takes its wall clock at boot (ARM DDI 0224). Its alarm is
// never raised: it has no interrupt, and the device tree says so. Loop lock held.
#pragma once
#include <stdint.h>

#include "microvm/base/state.h"

struct pl031 {            // saved (pl031_table)
	uint32_t lead_s;  // the guest's time minus the host's, modulo 2^32
	uint32_t match_s; // what was written to the alarm's registers is read back
	uint32_t mask;
};

extern const struct mv_table pl031_table;

uint32_t pl031_read(const struct pl031 *p, uint64_t offset);
void pl031_write(struct pl031 *p, uint64_t offset, uint32_t value);
