// SPDX-License-Identifier: Apache-2.0
// What a front does one thing after the other: requests that change something or ask the VM process, and the
// metrics' line. It is done between two turns of the loop, by the same thread, and never inside a callback;
// so whatever has to wait for the VM process (fc_vmm_call) or for files (fc_aside) turns the loop meanwhile,
// and requests that only read are answered by that. There is no lock, and no handler runs beside another one.
#pragma once
#include <stdbool.h>

#include "api/http.h"

#define FC_MAX_CONNECTIONS 10 // a connection has one request at a time

struct fc;

struct fc_work {
	struct http_req *waiting[FC_MAX_CONNECTIONS]; // oldest first
	unsigned n_waiting;
	bool flush_due; // the metrics' 60 s are over
};

// Keeps a request for its turn; it is answered by fc_answer() in routes.c.
void fc_work_add(struct fc *fc, struct http_req *q);

// Until the VM or the front ends. 0, or -errno when the loop itself fails. What waits then is answered.
int fc_work(struct fc *fc);

// Runs fn(arg) in a thread of its own and turns the loop until it is over; its result. fn touches nothing but
// what arg points to. Not from a callback. Where no thread can be had it runs right here.
int fc_aside(struct fc *fc, int (*fn)(void *arg), void *arg);
