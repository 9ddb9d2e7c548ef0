// SPDX-License-Identifier: Apache-2.0
// PATCH /v1/vms/{name}/drives/{drive}: size and rate limit of a drive that runs.
#pragma once
#include "api/vm.h"

// What a VM found again says of its drives; the record of it is older.
void drive_adopt(struct vm *vm, const struct msg_drive_set *drives, uint32_t n);
