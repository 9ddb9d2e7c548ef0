// SPDX-License-Identifier: Apache-2.0
// PATCH of a device of a VM that runs: .../drives/{drive} (size and rate limit), .../nets/{net} (link and
// rate limits). The balloon, of which there is one, is in balloon.c.
#pragma once
#include "api/vm.h"

// What a VM found again says of its drives and network devices; the record of it is older.
void devices_adopt(struct vm *vm, const struct msg_reply *reply);
