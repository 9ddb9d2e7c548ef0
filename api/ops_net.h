// SPDX-License-Identifier: Apache-2.0
// PATCH /v1/vms/{name}/nets/{net}: link and rate limits of a network device that runs.
#pragma once
#include "api/vm.h"

// What a VM found again says of its network devices; the record of it is older.
void net_adopt(struct vm *vm, const struct msg_net_set *nets, uint32_t n);
