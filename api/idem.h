// SPDX-License-Identifier: Apache-2.0
// Idempotency keys: a POST with the header field Idempotency-Key is done once. One with the same key, route,
// path and body gets the answer of the first, at once or when that is there; with others it is refused. So
// a client that lost its connection asks again without doing anything twice.
//
// Kept are answers that tell of something done, or of a request that will never do: not those of class 5xx,
// 408, 409 and 412, whose reasons pass; whoever waited for these gets them, too. In memory only, for
// server.idem.keep_s; the oldest go when there are more than IDEM_MAX_KEYS, or IDEM_MAX_BYTES of them.
// Loop's thread only.
#pragma once
#include "api/routes.h"

#define IDEM_KEY_MAX 128 // characters; visible ASCII
#define IDEM_MAX_KEYS 1024
#define IDEM_MAX_BYTES (16u * 1024 * 1024) // requests and answers
#define IDEM_KEEP_S 3600
#define IDEM_MAX_KEEP_S 86400
#define IDEM_HEADER "Idempotency-Key"
#define IDEM_REPLAYED "Idempotent-Replayed"

// Before a handler. 0: it is to run. 1: the request was answered, or will be. -EINVAL: see err.
int idem_begin(struct server *s, const struct route *t, struct http_req *r, struct api_err *err);

// The answer of a request whose `keyed` is set, just before it is sent.
void idem_answered(struct server *s, const struct http_req *r, unsigned status, const void *body, size_t len);

bool idem_of(const struct route *t); // which routes have keys

void idem_free(struct server *s); // after the last request
