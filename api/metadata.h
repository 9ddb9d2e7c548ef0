// SPDX-License-Identifier: Apache-2.0
// A document per VM that its guest reads over vsock: any JSON object. It is no part of a
// snapshot. Loop's thread only.
#pragma once
#include "api/vm.h"

// Sends what the VM has, if it has something, ahead of the message that makes or claims it:
// messages are carried out in order, so it is there before the guest's first instruction.
int metadata_send_first(struct vm *vm, struct api_err *err);
