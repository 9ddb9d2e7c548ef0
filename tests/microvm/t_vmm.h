// SPDX-License-Identifier: Apache-2.0
// A VM process for tests and bench, driven over its control socket as the daemon does it.
// Single-threaded. Every wait is bounded; t_ functions print why and return nonzero when
// something fails.
#pragma once
#include <sys/types.h>

#include "microvm/base/msg.h"

struct t_vmm {
	pid_t pid;
	int fd; // control socket, -1 when closed
	uint64_t next_id, spawned_ns;
	struct msg_event event; // the last one that came
	bool got_event;
	uint64_t console_at;    // how far t_vmm_expect() has read
	struct msg_reply reply; // of the last call
	struct msg_reply late;  // the last answer that nobody waited for, and its id
	uint64_t late_id;
	// MSG_LAZY came: the callee owns uffd. NULL: it is an error.
	void (*on_lazy)(struct t_vmm *v, const struct msg_lazy *lazy, int uffd);
	bool lazy; // t_vmm_setup() asks for lazily loaded memory
	uint8_t buf[MSG_MAX_BYTES];
};

// Starts `program` (thaw-vmm).
int t_vmm_start(struct t_vmm *v, const char *program);
// Kills if need be, reaps; returns the wait status. Idempotent.
int t_vmm_end(struct t_vmm *v);

// One call and its answer (in v->reply): the answer's code, or a negative errno.
int t_vmm_call(struct t_vmm *v, uint16_t type, const struct mv_table *table, const void *body, const int *fds,
	       unsigned n_fds, int timeout_ms);

// The two halves of a call: the answer may come while other calls are made.
uint64_t t_vmm_send(struct t_vmm *v, uint16_t type, const int *fds, unsigned n_fds);
int t_vmm_wait(struct t_vmm *v, uint64_t id, int timeout_ms); // answer in v->late

// MSG_BOOT or MSG_RESTORE; fds are closed.
int t_vmm_setup(struct t_vmm *v, uint16_t type, const struct vmcfg *cfg, struct vm_fds *fds, bool run);

// Reads the console from where the last call ended until `text` was seen.
int t_vmm_expect(struct t_vmm *v, const char *text, int timeout_ms);
// Reads the line that follows what was expected last (without its newline).
int t_vmm_line(struct t_vmm *v, char *ret_line, size_t size, int timeout_ms);
int t_vmm_type(struct t_vmm *v, const char *text);
// Types a command for the tiny guest, gives its answer line.
int t_vmm_ask(struct t_vmm *v, const char *command, char *ret_line, size_t size);

// Waits for an event of this state.
int t_vmm_wait_state(struct t_vmm *v, enum vm_state state, int timeout_ms);

// The usual configuration of a tiny guest: 1 vCPU, 128 MiB. It looks for its devices.
void t_tiny_config(struct vmcfg *ret_cfg);
