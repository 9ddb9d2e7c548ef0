// SPDX-License-Identifier: Apache-2.0
// The CPU that a snapshot's guest has, and what of it this host's KVM can't give. Needs no VM:
// the daemon asks once per snapshot, so that restores need not. Any thread. KVM is asked at the
// first call and its answer kept: 0.1 ms for its list, and as much again several times where the list does
// not have all that the guest has, since then a vCPU is asked as well; its VM ends in a thread, which takes
// milliseconds.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

struct cpu_report {
	char vendor[13], model[49]; // as the guest sees them
	uint32_t family, model_number, stepping;
	bool compared; // `missing` counts: the host's KVM could be asked
	unsigned n_missing;
	struct mv_buf features, missing; // texts with ", " between the items
};

// Reads and checks a state file, and asks the KVM at this path (NULL: does not). A KVM that
// can't be asked is no failure. cpu: of the VM's configuration, whose bits that were set by number are not
// compared; NULL: it had none. -EINVAL: a damaged state; -ENOMEM.
int cpu_report(int state_fd, const char *kvm_path, const struct vmcfg_cpu *cpu, struct cpu_report *ret_report,
	       struct mv_err *err);

// This host's CPU as KVM has it: its vendor and what leaf 1 of CPUID has in eax. -ENOTSUP: a CPU without
// CPUID; -ENODEV: KVM can't be asked.
int cpu_host(const char *kvm_path, char ret_vendor[13], uint32_t *ret_version);

void cpu_report_fini(struct cpu_report *r); // idempotent

// The architecture's part (arch/<name>/cpu_report.c), with the saved state of the first vCPU, since all have
// the same features: fills what is above. Whoever calls it frees what it made, also when it fails.
int cpu_report_arch(const void *vcpu, size_t len, const char *kvm_path, const struct vmcfg_cpu *cpu,
		    struct cpu_report *r, struct mv_err *err);
// Adds an item to one of the texts.
__attribute__((format(printf, 2, 3))) void cpu_report_add(struct mv_buf *list, const char *fmt, ...);
