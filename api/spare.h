// SPDX-License-Identifier: Apache-2.0
// Spare VM processes: started, with an empty KVM VM, waiting for what they are to be. They are of no
// snapshot; whoever starts a VM takes one when there is one, and saves the start of a process. One that is
// not warm yet (vm_warm()) is not taken: what it still waits for takes longer than a start. Made off the path
// of requests. Loop's thread only.
#pragma once
#include "api/server.h"

struct vm_process;

int spares_init(struct server *s, unsigned n);               // n: how many are kept; -errno
bool spare_take(struct server *s, struct vm_process *ret_p); // false: there is none
void spares_stop(struct server *s);                          // ends them and makes no more; idempotent
