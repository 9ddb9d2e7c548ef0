// SPDX-License-Identifier: Apache-2.0
// Parking of VMs (microvm/park.h) as the daemon sees it: the process parks and wakes by itself, here it is
// told to, and what it says of that is kept for those who ask. Loop's thread only.
#pragma once
#include "api/json.h"
#include "api/vm.h"

// The VM's state changed: the first time that it runs under this daemon, its process hears of its policy.
void park_state(struct vm *vm);

// MSG_PARKING came. 0 or -EPROTO.
int park_told(struct vm *vm, const struct msg *m);

// NULL: it is not to be parked.
js *park_json(const struct vm *vm);
