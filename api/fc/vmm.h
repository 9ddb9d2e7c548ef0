// SPDX-License-Identifier: Apache-2.0
// The VM process of a front: its start, calls that wait for their answer, its console and its end.
// It is hostile as the daemon's are: a message that breaks the protocol ends it. Loop's thread.
//
// A process is started ahead and told to make its KVM VM (MSG_MAKE_KVM), so that the boot or load finds it
// ready. One that failed to boot is replaced by a fresh one. One that takes too long for an answer is killed;
// when a signal ended the front it has END_MS for all.
#pragma once
#include <sys/types.h>

#include "api/error.h"
#include "microvm/base/loop.h"
#include "microvm/base/msg.h"

struct fc;

struct fc_vmm {
	char path[1024]; // of thaw-vmm
	pid_t pid;       // 0: none
	int pidfd, socket;
	struct mv_watch pid_watch, socket_watch;
	struct mv_timer late; // of the call that is being waited for
	uint64_t last_id;
	uint64_t waits_for; // call that is being waited for
	uint64_t console_call, console_offset;
	uint64_t input_call; // of what was typed; 0: none
	struct msg_times times;
	// the end
	bool exited;
	unsigned exit_reason; // enum vm_exit
	char exit_detail[160];
};

// In api/fc/vmm.c; fills fc->vmm. 0 or -errno with a sentence.
int fc_vmm_start(struct fc *fc, struct mv_err *err);
void fc_vmm_stop(struct fc *fc); // kills and reaps it; idempotent
int fc_vmm_restart(struct fc *fc, struct mv_err *err);
void fc_vmm_hurry(struct fc *fc); // from now on it has END_MS

// Sends one message and turns the loop until its answer is there, which stays valid until the next call. On
// failure err says what the VM process said, or that it has ended. Not from a callback.
int fc_vmm_call(struct fc *fc, enum msg_type type, const struct mv_table *table, const void *obj,
		const int *fds, unsigned n_fds, const struct msg_reply **ret_reply, struct api_err *err);

// Sends one; its answer comes to fc_on_answer() in balloon.c, that of input to fc_serial_input_done().
// ret_id: of the call.
int fc_vmm_send(struct fc *fc, enum msg_type type, const struct mv_table *table, const void *obj,
		uint64_t *ret_id, struct api_err *err);
void fc_on_answer(struct fc *fc, uint64_t id, const struct msg_reply *reply);

// Asks for the next of the console's output, unless that was done; the VM is loaded.
void fc_vmm_read_console(struct fc *fc);
