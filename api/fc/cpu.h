// SPDX-License-Identifier: Apache-2.0
// The body of PUT /cpu-config: which CPU features it takes away. Any thread.
#pragma once
#include "api/error.h"
#include "api/json.h"
#include "microvm/base/vmcfg.h"

// ret_v: the document, the caller's; ret_cpu: what thaw-vmm is told. -EINVAL: anything that this can't
// express: bits set to 1, MSRs, KVM's capabilities, bits that are no feature with a name.
int fc_cpu_parse(const char *bytes, size_t len, js **ret_v, struct vmcfg_cpu *ret_cpu, struct api_err *err);
