// SPDX-License-Identifier: Apache-2.0
// One daemon per store: an exclusive flock() on the file "lock" in the store's folder. It goes when the
// process does, however it ends, and with nothing else: no process that it starts, or that it was just
// starting when it was killed, has the lock (the .c file says how). Any thread takes and drops it.
#pragma once
#include "microvm/base/err.h"

struct store_lock;

// -EBUSY: another process has it, or this one by another call; at once. The thread that this starts has the
// caller's signal mask.
int store_lock_take(int root_fd, struct store_lock **ret_lock, struct mv_err *err);
void store_lock_drop(struct store_lock **lock); // sets it to NULL; idempotent
