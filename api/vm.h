// SPDX-License-Identifier: Apache-2.0
// One VM as the daemon sees it: its configuration, its process, its control socket, and
// why it ended. The process is hostile: a message that breaks the protocol ends it.
// Loop's thread only. Reference-counted: the table holds one, each operation another.
//
//                 vm_launch                MSG_RUN               MSG_PAUSE
//   (loading) ---------------> created ---------------> running <-----------> paused
//       |    restore: running or paused                    |        MSG_RUN      |
//       +-----------------+----------------------+---------+---------------------+
//                         v  the process ended: finish() in vm.c
//                       exited
#pragma once
#include <sys/queue.h>
#include <sys/types.h>

#include "api/error.h"
#include "api/policy.h"
#include "api/server.h"
#include "api/spawner.h"
#include "microvm/base/log.h"
#include "microvm/base/msg.h"
#include "microvm/base/vmcfg.h"

struct vm;

// The end of a call: err is NULL and reply the answer, or err says what went wrong
// (the VM's refusal, its death, a time-out) and reply is NULL.
typedef void vm_done_fn(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply);
typedef void vm_end_fn(void *arg, struct vm *vm); // the process is gone

struct vm_waiter { // embedded in its owner
	LIST_ENTRY(vm_waiter) link;
	vm_end_fn *fn;
	void *arg;
	bool waiting;
};

struct usernet;

struct vm_record { // of the snapshot's working set (record.c)
	enum record_state { RECORD_NONE, RECORD_RUNNING, RECORD_DONE, RECORD_FAILED } state;
	int fd;            // the file, until its process has written it
	uint32_t limit_ms; // 0: not to be recorded
	char error[200];
};

struct vm {
	struct server *srv;
	unsigned refs;
	// fixed
	struct vmcfg cfg;
	char from_snapshot[VMCFG_NAME_LEN], from_snapshot_id[MV_UUID_LEN]; // of a clone
	char forked_from[VMCFG_NAME_LEN], forked_from_id[MV_UUID_LEN];     // the VM
	char page_handler[VMCFG_PATH_LEN];                                 // of a clone; empty: none
	uint64_t created_unix_ns, requested_ns;
	// incremental snapshots (ops_chain.c)
	char base_snapshot[VMCFG_NAME_LEN], base_snapshot_id[MV_UUID_LEN]; // last published, if it tracks
	bool confirmed;  // the last one that its process took was published
	bool publishing; // that is being done, and the next one needs to know the result
	// what it is now
	uint64_t version; // of all that vm_json() shows but ttl_left_ms
	char *text;       // that, as of text_version; NULL: not yet (vm_text())
	uint64_t text_version;
	bool listed;          // in the table, so its name and id are taken
	bool shown;           // completely loaded: the API shows it
	bool shell;           // restored in advance, nobody's yet (pool.c)
	const char *op;       // operation in progress; NULL: none
	unsigned state;       // enum vm_state; 0: loading
	unsigned exit_reason; // enum vm_exit
	int exit_signal;      // that ended the process; 0: none
	char exit_detail[128];
	struct msg_times times;
	uint8_t *console_tail; // of an exited VM
	uint32_t n_console_tail;
	uint64_t console_end;
	// the process
	pid_t pid; // 0: none, or not yet
	int pidfd, socket;
	struct mv_watch pid_watch, socket_watch;
	struct spawn_job starting; // theirs >= 0: it is being started
	bool kill_sent, timed_out, exit_told, owns_sockets;
	bool leaving; // it is gone, its files are not yet (the end, vm.c)
	// how long, and how much (lifetime.c, cgroup.c)
	struct vm_policy policy;
	unsigned end_reason; // enum vm_exit: why the daemon ended it; 0: it was asked to
	struct {
		uint64_t first_ran_ns, active_ns, due_ns, activity;
		uint32_t at; // place in the heap; 0: not in it
		bool asking;
	} life;
	struct {              // park.c
		bool ordered; // its process knows of the policy
		struct msg_parking told;
		struct mv_ratelimit limit;
		char error[200]; // why it is not parked
	} park;
	struct cgroup cgroup;
	// What it takes to be found by the next daemon (vmrec.c)
	int orphan_fd;  // its socket, until its record is written
	bool vmrec_due; // is in the server's list
	bool outlives;  // its record is there
	LIST_ENTRY(vm) vmrec_link;
	// layers of drives (layers.c)
	bool owns_layers, freezing;
	uint32_t n_layers[VMCFG_MAX_DRIVES];
	uint64_t next_id;
	unsigned n_calls;
	struct mv_ratelimit events;
	struct lazy_clone *lazy;        // of a clone of a compressed snapshot (lazy.c)
	bool corrupt;                   // was ended because its snapshot's memory is damaged
	LIST_HEAD(, usernet) user_nets; // usernet.c
	uint32_t links_down;            // bit per net: by the host's wish
	char *metadata;                 // for the guest (metadata.c); NULL: an empty object
	struct vm_record record;
	bool populate;              // by the working set, before it runs
	struct msg_balloon balloon; // as it was last told (balloon.c)
	struct mv_ratelimit balloon_told;
	struct vm_calls calls;
	LIST_HEAD(, vm_waiter) waiters, ready_waiters;
};

// Once per server, before any VM: the time-outs of calls. 0 or -errno.
int vm_calls_init(struct server *s);

// A VM without a process, not in the table; takes a copy of cfg. NULL: no memory.
struct vm *vm_new(struct server *s, const struct vmcfg *cfg);
struct vm *vm_ref(struct vm *vm);
void vm_unref(struct vm *vm);

// Starts the process and sends MSG_BOOT or MSG_RESTORE with the descriptors (closed here in
// every case). 0: `done` will be called once. Otherwise nothing is left behind.
int vm_launch(struct vm *vm, enum msg_type type, bool run, struct vm_fds *fds, vm_done_fn *done, void *arg,
	      struct api_err *err);

// The same with a process that is there already, forked from a running VM: MSG_RESTORE without
// state and memory. Takes all of p, also on failure.
int vm_adopt(struct vm *vm, struct vm_process *p, bool run, struct vm_fds *fds, vm_done_fn *done, void *arg,
	     struct api_err *err);

// It is loaded: from here on the API shows it, and its events are told.
void vm_show(struct vm *vm);

// What vm_json() shows of it, but for ttl_left_ms, is another thing now. Versions grow over all VMs, and
// over restarts of the daemon: they begin with the time in microseconds.
void vm_changed(struct vm *vm);

// The same with the process of a VM that an earlier daemon started: MSG_ADOPT. Takes all of p. On failure
// the process is left alone.
int vm_attach(struct vm *vm, struct vm_process *p, vm_done_fn *done, void *arg, struct api_err *err);

// Forgets the process, which goes on for the next daemon; what waits for it fails. One that can't go
// on is killed instead.
void vm_leave(struct vm *vm);

// Sends one message; 0: `done` will be called once, always later, never from in here.
// `what` (static) names the operation in errors.
int vm_call(struct vm *vm, enum msg_type type, const struct mv_table *table, const void *obj, const int *fds,
	    unsigned n_fds, uint64_t timeout_ms, const char *what, vm_done_fn *done, void *arg,
	    struct api_err *err);

// Ends the process by SIGKILL; the end arrives by the waiters. No process: nothing happens.
void vm_kill(struct vm *vm);
bool vm_has_process(const struct vm *vm);

// SIGCHLD: reaps processes that are no VM's: copies of a VM that was killed, which its end
// left to this process.
void vm_reap_strays(struct server *s);

// Kills a process that is nobody's (any more), and reaps it when it has ended, however long that takes. Takes
// the descriptor.
void vm_end_process(struct server *s, int pidfd);
// The last of the daemon: gives those that have not ended another second in all. Idempotent.
void vm_forget_processes(struct server *s);

// fn is called once when the process is gone (later, also when it is gone already: don't).
void vm_wait_end(struct vm *vm, struct vm_waiter *w, vm_end_fn *fn, void *arg);
void vm_wait_ready(struct vm *vm, struct vm_waiter *w, vm_end_fn *fn, void *arg); // likewise
void vm_wait_cancel(struct vm_waiter *w);                                         // idempotent

// A user network came up or failed to: answers the boot or restore that waits for it.
void vm_setup_check(struct vm *vm);

// The errno of a refusal in words of the API.
enum api_code vm_refusal_code(enum msg_type type, uint32_t code);
