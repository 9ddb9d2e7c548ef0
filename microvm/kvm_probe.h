// SPDX-License-Identifier: Apache-2.0
// Looks at the host's KVM without the rest of thaw: which version and capabilities it
// has, and whether guest kernel code runs at the speed of hardware. For `thaw doctor`.
// Any thread; everything it makes is gone when it returns.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

// What an architecture supplies: the capabilities it needs, and a guest in GUEST_BYTES of memory at
// kvm_probe_gpa that runs a loop of two instructions KVM_PROBE_LOOPS times and then leaves by
// kvm_probe_last_exit.
#define KVM_PROBE_LOOPS 20000u
struct kvm_probe_need {
	int capability;
	const char *name;
};
extern const struct kvm_probe_need kvm_probe_needed[];
struct kvm_probe_flag { // words in the flags of /proc/cpuinfo that tell of virtualisation; ended by NULL
	const char *flag, *name;
};
extern const struct kvm_probe_flag kvm_probe_flags[];
extern const size_t kvm_probe_n_needed;
extern const uint64_t kvm_probe_gpa;
extern const uint32_t kvm_probe_last_exit;
int kvm_probe_prepare(int vm_fd, int vcpu_fd, uint8_t *memory, struct kvm_probe *p);

// result < 0: notes `what` and errno as the reason, and returns -1.
int kvm_probe_step(struct kvm_probe *p, const char *what, long result);
