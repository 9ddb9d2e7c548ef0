// SPDX-License-Identifier: Apache-2.0
// A thread that runs a loop of a device's own, for queues that were moved there (vio_move_queue()). The
// loop's init and fini are the device's; what its lock guards is told in virtio.h.
//
// A fork finds such a thread waiting in epoll_wait(2) with no lock held, since before it the device was
// quiesced; the child leaves it and its loop as they are, and makes new devices (zygote.c).
#pragma once
#include <pthread.h>
#include <stdbool.h>

#include "devices/virtio.h"
#include "microvm/base/err.h"

struct vio_thread { // zero-initialised, then mv_loop_init() of its loop
	struct mv_loop loop;
	bool running;
	pthread_t thread;
	const struct vio_dev *dev;
};

// Runs the loop in a thread of this name (at most 15 bytes), if it is not yet running. The error says
// what to do.
int vio_thread_start(struct vio_thread *t, const struct vio_dev *d, const char *name, struct mv_err *err);
// Waits until what the loop is doing is done; not from there, and not with the loop's lock held. Idempotent.
void vio_thread_stop(struct vio_thread *t);
