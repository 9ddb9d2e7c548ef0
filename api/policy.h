// SPDX-License-Identifier: Apache-2.0
// How long a VM may live and what it may use of the host: the daemon's affair, so it is
// not in struct vmcfg, not in a snapshot, and no clone inherits it. Plain data.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define POLICY_MAX_MS (365ull * 24 * 3600 * 1000)
#define POLICY_MIN_IDLE_MS 100
#define POLICY_MIN_PARK_MS 20

struct vm_limits { // 0: none
	uint32_t memory_mib, cpu_percent, pids;
};

struct vm_policy {
	uint64_t ttl_ms, idle_timeout_ms; // 0: for ever
	uint64_t idle_park_ms;            // 0: never
	bool auto_delete;
	struct vm_limits limits;
	bool has_ttl, has_idle_timeout, has_idle_park, has_auto_delete, has_limits; // as given in a request
};
