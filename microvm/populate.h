// SPDX-License-Identifier: Apache-2.0
// Makes the pages of a working set present before the guest runs: those that were read mapped,
// those that were written copied, so that the guest finds no fault there. Called on the loop's
// thread while no vCPU runs.
#pragma once
#include "microvm/base/gmem.h"

// fd: a working set of this snapshot (borrowed). lazy: a page that is not there yet waits for
// whoever has the userfaultfd, so only pages of the set are touched. A set that can't be used is
// logged and ignored: the guest is only slower.
void populate(const struct gmem *m, int fd, const char *snapshot_id, bool lazy);
