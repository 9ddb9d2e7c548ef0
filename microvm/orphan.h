// SPDX-License-Identifier: Apache-2.0
// A VM whose daemon is gone. It goes on and waits on a socket, which it got from the daemon when it was
// started, until the next daemon connects; when none adopts it in time, it is to end. The daemon lets the
// socket listen when the VM is on record; before that, no other daemon would know of it.
//
//                orphan_begin              a connection            orphan_end
//   (has owner) -------------> listening -----------------> told ------------> (has owner)
//                    ^  ^                                     |
//                    |  '------- orphan_begin: it ended ------'
//
// Runs on the VM's loop, lock held. Who connects must have our own user id; what it then sends is
// checked like all messages of a daemon.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/loop.h"

struct orphan {
	int listen_fd;      // -1: it ends with its daemon
	uint32_t timeout_s; // 0: likewise
	bool waits;         // no daemon has adopted it yet
	bool ever;          // it has lost one: what was only for that one is dropped
	struct mv_watch watch;
	struct mv_timer timer;
	void (*connected)(void *arg, int fd); // a socket to take; nobody else is listened to
	void (*late)(void *arg);
	void *arg;
};

void orphan_init(struct orphan *o, void (*connected)(void *arg, int fd), void (*late)(void *arg), void *arg);
void orphan_fini(struct orphan *o); // idempotent

// The connection to the daemon has ended. -errno: there will be no other one. The time
// counts from the first of these since the last orphan_end().
int orphan_begin(struct orphan *o, struct mv_loop *l);
void orphan_end(struct orphan *o); // it is adopted
