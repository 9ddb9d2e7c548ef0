// SPDX-License-Identifier: Apache-2.0
// Looks at the host's KVM without the rest of thaw: which version and capabilities it
// has, and whether guest kernel code runs at the speed of hardware. For `thaw doctor`.
// Any thread; everything it makes is gone when it returns.
#pragma once
#include <stdbool.h>

#include "microvm/base/err.h"

struct kvm_probe {
	int api_version; // 12 is the only one there is
	int max_vcpus;
	char missing[256];         // capabilities that thaw needs and KVM lacks, space-separated
	bool guest_ran;            // the probe guest ran to its end
	double ns_per_instruction; // of guest kernel mode; on hardware about 1
	bool hardware_speed;
	char guest_error[128]; // why it did not run
};

// -ENOENT: no device; -EACCES: no rights; other: it is no KVM. A guest that does not run
// is no failure; ret_p says it.
int kvm_probe(const char *device, struct kvm_probe *ret_p, struct mv_err *err);
