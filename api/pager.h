// SPDX-License-Identifier: Apache-2.0
// The daemon's thaw-pager process (snapshot/pager.h): started at the first need, replaced
// when it ends. What it serves is in the lists of lazy.h; a new one is given all of it.
// Loop's thread only.
#pragma once
#include "api/server.h"

// 0, or why there can be no pager.
int pager_need(struct server *s, struct mv_err *err);

// One message, after the lists of lazy.h were changed. Without a pager one is started,
// which gets everything; one that takes no message is replaced.
void pager_tell(struct server *s, uint16_t type, uint64_t id, const struct mv_table *table, const void *body,
		const int *fds, unsigned n_fds);

void pager_stop(struct server *s); // idempotent
