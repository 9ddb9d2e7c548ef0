// SPDX-License-Identifier: Apache-2.0
// Pools of shells: VMs of one snapshot that were restored in advance and wait, with process, KVM,
// devices and state, for who they are to be. A clone that finds one is claimed instead of
// started: it gets its identity and runs. A used VM never comes back.
//
// A pool has a fixed size, or as many shells as were claimed in a second lately. It is refilled after
// claims, off their path; it holds back when memory is short, and drains when nobody comes.
// Loop's thread only. A pool lives until it is dropped and the last reference is given back.
#pragma once
#include <sys/queue.h>

#include "api/json.h"
#include "api/prepare.h"

struct pool;
struct vm;

struct pool_settings {
	uint32_t size; // fixed; 0: between min and max
	uint32_t min, max;
	uint32_t idle_s; // no claim for so long: down to min, or to none when the size is fixed; 0: never
};

int pools_init(struct server *s); // -errno
// As long as the descriptor is open CPUs keep out of idle states that take longer than `us` to leave: the
// kernel's PM QoS interface, Documentation/power/pm_qos_interface.rst. It takes root, and power.
int cpu_latency_hold(int32_t us, int *ret_fd, struct mv_err *err);
void pools_stop(struct server *s); // ends all shells and starts no more

// Makes the snapshot's pool, or gives it new settings. p: done; its files are shared from here on.
int pool_set(struct prepare *p, const struct pool_settings *set, struct api_err *err);
bool pool_drop(struct server *s, const char *name); // false: there was none

// The pool of the snapshot of this name as it is in the store now; NULL: none. Borrowed.
struct pool *pool_find(struct server *s, const char *name);
struct pool *pool_ref(struct pool *p);
void pool_unref(struct pool *p); // NULL is fine
const struct prepare *pool_source(const struct pool *p);

// Takes a shell out: the caller's reference, with a process, paused, not in the table. NULL, and a
// miss is counted: there is none.
struct vm *pool_claim(struct pool *p);
void pool_miss(struct pool *p); // a clone that no shell could become

// fn is called once: when the pool is full, or can't become so. Now when that is so already.
struct pool_waiter {
	LIST_ENTRY(pool_waiter) link;
	void (*fn)(void *arg);
	void *arg;
};
void pool_wait(struct pool *p, struct pool_waiter *w, void (*fn)(void *arg), void *arg);

unsigned pools_ready(const struct server *s); // shells that wait, of all pools
js *pool_json(const struct pool *p);
