// SPDX-License-Identifier: Apache-2.0
// How many snapshots there are and what they take (snapshot/index.h). Looking may read every manifest, so the
// reader's thread does it, and it alone has the index; the loop has the numbers of the last look. Whether
// these still hold is one fstat(2).
#pragma once
#include "api/server.h"

struct counts_job {
	struct worker_job job; // first
	struct server *s;
	bool anew; // what every snapshot takes is looked at again
	struct store_counts found;
	void (*fn)(void *arg);
	void *arg;
};

// Loop's thread. fn is called once s->counts is as of now: at once, or when the reader has looked. j lives
// until then.
void counts_get(struct server *s, struct counts_job *j, void (*fn)(void *arg), void *arg);
// Files of a snapshot changed without a change of the store's folder.
void counts_stale(struct server *s);
