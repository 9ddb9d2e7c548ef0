// SPDX-License-Identifier: Apache-2.0
// What happened to VMs, snapshots and templates, as a numbered sequence: the last EVENTS_KEPT
// are kept in a ring, and clients of GET /v1/events follow it.
//
// Theory of operation. An event is a few copied words: emitting one costs no allocation and no
// system call as long as nobody listens. A stream has a place in the ring and a non-blocking
// pipe that http.c empties into its connection; lines are at most PIPE_BUF bytes, so a pipe takes
// one whole or not at all. One whose pipe is full waits for room. When the ring has moved on over
// its place it is told `lost` and ended. So a slow client costs a pipe, never memory or the loop.
// Numbers grow also over restarts of the daemon: they begin with the time in microseconds.
// Loop's thread only.
#pragma once
#include <stdint.h>

#include "api/server.h"

#define EVENTS_KEPT 1024
#define EVENTS_MAX_STREAMS 64
#define EVENTS_HEARTBEAT_MS 15000

// X(symbol, type as shown, what it means)
#define EVENT_TYPES(X)                                                                                       \
	X(DAEMON_STARTED, "daemon.started", "the first event of each run of the daemon")                     \
	X(DAEMON_STOPPING, "daemon.stopping", "the last one")                                                \
	X(VM_CREATED, "vm.created",                                                                          \
	  "a VM is there; `snapshot`: a clone of that one; `detail`: a fork of which")                       \
	X(VM_RUNNING, "vm.running", "it was started or resumed")                                             \
	X(VM_PAUSED, "vm.paused", "its vCPUs stand still")                                                   \
	X(VM_EXITED, "vm.exited", "its process is gone; `reason`, `detail`")                                 \
	X(VM_DELETED, "vm.deleted", "it is not listed any more; `reason`: why it had exited")                \
	X(SNAPSHOT_CREATED, "snapshot.created", "published; `vm`: of that one, else imported")               \
	X(SNAPSHOT_DELETED, "snapshot.deleted", "it is gone")                                                \
	X(SNAPSHOT_FLATTENED, "snapshot.flattened", "it needs no parent any more")                           \
	X(TEMPLATE_COMPLETE, "template.complete", "all memory of a compressed snapshot is loaded")           \
	X(TEMPLATE_DAMAGED, "template.damaged", "a chunk of it can't be read")                               \
	X(TEMPLATE_DROPPED, "template.dropped", "no new clones use it")                                      \
	X(PAGER_RESTARTED, "pager.restarted",                                                                \
	  "thaw-pager ended and another one goes on; `reason`, `detail`")                                    \
	X(POOL_CHANGED, "pool.changed", "it was made, resized or dropped (`reason`); `count`: its size")

enum event_type {
#define X(sym, name, doc) EVENT_##sym,
	EVENT_TYPES(X)
#undef X
		EVENT_N_TYPES
};

// Details; what is NULL or zero is not shown. Too long ones are cut.
struct event_info {
	const struct vm *vm; // name and id
	const char *vm_name; // instead of vm, when there is only a name
	const char *snapshot, *snapshot_id;
	const char *reason, *detail;
	uint64_t count;
};

struct events;

int events_new(struct server *s, struct mv_err *err); // s->events
void event_emit(struct server *s, enum event_type type, const struct event_info *info);
unsigned events_streams(const struct server *s);

// The daemon ends: everything is delivered as far as pipes take it, and the streams end well.
void events_end(struct server *s);
void events_free(struct server *s); // after the streams' connections; NULL is fine

const char *event_type_name(enum event_type type);
