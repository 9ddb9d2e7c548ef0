// SPDX-License-Identifier: Apache-2.0
// A request between its route and its handler: repeated requests, If-Match, and what of that must not hold
// the loop, which the reader does: parsing a large body (30 ms a megabyte), and the version of a snapshot,
// whose chain may have a hundred manifests. Loop's thread.
#pragma once
#include "api/routes.h"

// Calls the handler, now or later, or answers itself.
void entry_begin(struct server *s, const struct route *t, struct http_req *r, const char *name);

// One that takes less than half a millisecond to parse.
bool entry_body_is_small(const struct http_req *r);
