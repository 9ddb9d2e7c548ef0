// SPDX-License-Identifier: Apache-2.0
// Taps as backends of network devices. What an interface is, is asked by rtnetlink, in the daemon's network
// namespace whatever /sys shows. The loop's thread.
#pragma once
#include "api/error.h"
#include "microvm/base/vmcfg.h"

// All queues of a tap, each a descriptor; on failure, too, the caller closes what there is.
int tap_open(const struct vmcfg_net *n, int *fds, struct api_err *err);

// The MTU of nets that give none: their tap's.
void tap_default_mtu(struct vmcfg *cfg);
