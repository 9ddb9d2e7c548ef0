// SPDX-License-Identifier: Apache-2.0
// The VM process's side of the daemon's messages (microvm/base/msg.h). Runs on the VM's
// loop, lock held. What comes in is checked as hostile; a malformed message or the end
// of the connection ends the process, unless the VM can wait for another daemon (orphan.h): it is
// completely loaded, somebody's, and has a listening socket.
#pragma once
#include "microvm/live.h"
#include "microvm/orphan.h"
#include "microvm/zygote.h"

#define CONTROL_ZYGOTES 4 // frozen copies that fork at the same time
#define CONTROL_READERS 8 // console reads that wait at the same time

struct control {
	struct vm *vm;
	int fd; // -1: no daemon
	struct mv_watch watch;
	struct mv_timer timer; // answers console reads
	bool gathering;        // output came for a reader; the timer runs for it
	struct console_reader {
		bool waiting;
		uint64_t id, offset, deadline_ns;
		uint32_t max_bytes;
	} reader[CONTROL_READERS];
	bool used;         // BOOT or RESTORE came
	uint64_t claim_id; // of a claim that is answered when the loop is back; 0: none
	struct orphan orphan;
	struct live_snapshot snapshot;
	struct zygote zygote[CONTROL_ZYGOTES];
	uint64_t snapshot_id; // of the message that is answered when it is written
	uint64_t hint_id;     // of the one that is answered when the round of hints has ended; 0: none
	uint8_t buf[MSG_MAX_BYTES];
};

int control_init(struct control *c, struct vm *vm, int fd, uint64_t process_start_ns, struct mv_err *err);
void control_fini(struct control *c);
