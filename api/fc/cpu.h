// SPDX-License-Identifier: Apache-2.0
// What a guest is to see of the host's CPU: the body of PUT /cpu-config, and Firecracker's static templates,
// which are such bodies by name. Any thread.
#pragma once
#include "api/error.h"
#include "api/fc/objects.h"
#include "api/json.h"
#include "microvm/base/vmcfg.h"

// ret_v: the document, the caller's; ret_cpu: what thaw-vmm is told. -EINVAL: it is no such document, or more
// than fits; or KVM lacks a capability that has to be there.
int fc_cpu_parse(const char *bytes, size_t len, js **ret_v, struct vmcfg_cpu *ret_cpu, struct api_err *err);

// Fills *cpu, which is zero, as the template has it: thaw's own, or one of Firecracker's. -EINVAL: not for
// this host's CPU, or that can't be told.
int fc_cpu_template(enum fc_template t, struct vmcfg_cpu *cpu, struct api_err *err);

// Of Firecracker's, in cpu_templates.c: is it for a CPU of this vendor and of this version (leaf 1, eax)? And
// what it has.
int fc_cpu_template_check(enum fc_template t, const char *vendor, uint32_t version, struct api_err *err);
void fc_cpu_template_fill(enum fc_template t, struct vmcfg_cpu *cpu);
