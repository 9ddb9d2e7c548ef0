// SPDX-License-Identifier: Apache-2.0
// VMCLOCK: pages that tell the guest, and by mmap its programs, that it is not where it was (Linux'
// include/uapi/linux/vmclock-abi.h). Where they lie, and by what interrupt the guest is told, is the
// architecture's. The vCPUs stand.
#pragma once
#include <stdint.h>

#include "microvm/base/gmem.h"

// A new machine's, of this size: a page of the guest's, so that its programs can map it. -EFAULT: no guest
// memory there.
int vmclock_boot(struct gmem *m, gpa_t at, uint32_t bytes);
// Counts on; nothing in a machine that was made without it.
int vmclock_restored(struct gmem *m, gpa_t at);
