// SPDX-License-Identifier: Apache-2.0
// What the daemon's parts share. One object, made by thawd.c, used on the loop's thread.
#pragma once
#include <sys/queue.h>

#include "api/cgroup.h"
#include "api/http.h"
#include "api/worker.h"
#include "microvm/base/log.h"
#include "microvm/base/loop.h"
#include "snapshot/index.h"
#include "snapshot/store.h"

#define MAX_SPARES 64
#define MAX_TRANSFERS 4 // exports and imports at a time

struct vm_call;
LIST_HEAD(vm_calls, vm_call);

struct events;

struct lazy;
LIST_HEAD(lazy_list, lazy);
struct lazy_clone;
LIST_HEAD(lazy_clone_list, lazy_clone);
struct lazy_counts {
	uint64_t faults, zero_faults, fills, background_fills;
};

struct vm;
struct lifetimes {      // lifetime.c
	struct vm **at; // a heap, from 1
	uint32_t n, room;
	struct mv_timer timer;
	uint64_t armed_ns; // 0: not
};

struct vm_process {
	int socket, pidfd; // our end; close-on-exec
	pid_t pid;
};

struct store_counts {
	size_t n;
	struct store_usage total;
	uint64_t folder_ns; // 0: not known
};

struct pool;
LIST_HEAD(pool_list, pool);

struct vm;
LIST_HEAD(vm_list, vm);

struct operation;
LIST_HEAD(operation_list, operation);

struct idem {         // idem.c
	void *by_key; // tsearch(3): with an answer, or in progress
	TAILQ_HEAD(, idem_entry) kept;
	unsigned n_kept, n_running;
	size_t bytes; // of those with an answer
	uint32_t keep_s;
};

struct pager_process {
	pid_t pid; // 0: none
	int pidfd, socket;
	struct mv_watch pid_watch, socket_watch;
	struct mv_ratelimit starts;
};

struct server {
	// configuration
	const char *vmm_path, *kvm_path;
	const char *pager_path; // empty: there is none
	char vsock_dir[54]; // default place of vsock sockets; leaves room for <id>.vsock_<port> in sun_path
	int layers_fd;      // folder of ephemeral layers (layers.c)
	char vms_dir[66];   // records and sockets of VMs (vmrec.c); leaves room for /<id>.sock in sun_path
	int vms_fd;
	uint32_t orphan_s; // how long VMs go on without a daemon; 0: not at all
	// parts
	struct mv_loop loop;
	struct http *http;
	struct worker worker;
	struct worker spawner;       // starts VM processes (spawner.c)
	struct worker reaper;        // releases those that ended (vm.c)
	struct worker remover;       // their files (vm.c)
	LIST_HEAD(, ending) endings; // processes that are nobody's (vm.c)
	struct store store;
	struct worker reader;     // looks at snapshots for answers: it may have to read every manifest
	struct store_index index; // the reader's own (counts.h)
	struct store_counts counts;
	bool counts_stale;
	struct worker transfers[MAX_TRANSFERS]; // ops_store.c: a thread per export or import
	// VMs (vms.c)
	void *by_name, *by_id;  // tsearch(3) trees
	void *by_pid;           // of those with a process
	uint64_t last_version;  // of any VM
	unsigned n_vms, n_live; // listed; with a process
	struct events *events;  // events.c
	struct idem idem;
	struct lifetimes lifetimes;
	struct cgroup_base cgroup;        // where VMs with limits are (cgroup.h)
	struct worker usage_worker;       // reads what VMs use (ops_metrics.c); made when first needed
	unsigned n_forks;                 // in progress (fork.c)
	struct operation_list operations; // operation.c
	bool stopping;                    // no new work; the loop ends with the last VM and fork
	// records that are to be written (vmrec.c)
	struct vm_list vmrecs_due;
	struct mv_timer vmrecs_timer;
	struct mv_work vmrecs_work;
	struct worker recorder;
	unsigned n_adopting; // VMs of an earlier daemon that have not answered yet (adopt.c)
	bool adopt_waits;
	// messages that wait for an answer (vm.c)
	struct vm_calls calls;
	struct mv_timer call_timer;
	uint64_t call_timer_due_ns; // 0: not armed
	// verified snapshots (templates.c)
	struct known_snapshot *templates;
	// pools of shells (pool.c)
	struct pool_list pools;
	struct mv_timer pool_tick, pool_refill;
	bool pool_refill_armed;
	uint64_t pool_max_bytes; // of all shells
	int32_t cpu_latency_us;  // while there are pools: see cpu_latency_hold(); -1: as the host has it
	int cpu_latency_fd;
	// processes that are to be anybody's VM (spare.c)
	struct vm_process spare[MAX_SPARES];
	unsigned n_spares, want_spares;
	struct vm_process warming; // the one that is being started, or is not warm yet; socket -1: none
	struct mv_watch warming_watch;
	unsigned spare_failures; // one after the other
	struct mv_timer spare_timer;
	// templates of compressed snapshots (lazy.c) and who fills them (pager.c)
	struct lazy_list lazy_templates;
	struct lazy_clone_list lazy_clones;
	struct lazy_counts lazy_gone; // of templates that are gone
	uint64_t lazy_last_id;
	struct pager_process pager;
	int uffd_device_fd; // /dev/userfaultfd; -1: by system call
	bool has_uffd;
};

static inline void server_try_end(struct server *s)
{
	if (s->stopping && !s->n_live && !s->n_forks && LIST_EMPTY(&s->endings))
		mv_loop_stop(&s->loop);
}
