// SPDX-License-Identifier: Apache-2.0
// Private to the pager: a second thread that decodes and writes chunks while the first one
// answers faults. It gets one chunk at a time and knows nothing else: marks, counters and
// messages are the first thread's. Functions are for that one.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "snapshot/chain.h"

struct helper_job { // read-only while it is out
	const struct chain *chain;
	int memfd;
	uint64_t chunk;
	uint32_t pages; // bit per page that is to be written
	void *owner;    // the first thread's
	int result;     // 0; -EBADMSG: damaged; -EAGAIN: can't be written now
	int error;      // errno behind that
};

// 0 or -errno: there will be none (one CPU: -ENOTSUP). event_fd becomes readable when a job is back. Returns
// when the thread runs, so that the calls that it starts with are behind it (sandbox.h).
int helper_start(int event_fd);
bool helper_free(void); // takes a job now; false, too, when there is no thread
void helper_give(const struct helper_job *job);
bool helper_take(struct helper_job *ret_job); // one that is done; false: none
// One that is out, waited for; false: none is.
bool helper_wait(struct helper_job *ret_job);

// What both threads do: decodes into to[CHUNK_BYTES] with scratch[CHAIN_SCRATCH_BYTES], writes the
// pages.
void helper_run(struct helper_job *job, uint8_t *scratch, uint8_t *to);
