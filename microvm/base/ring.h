// SPDX-License-Identifier: Apache-2.0
// Asynchronous file I/O on io_uring (ring.c is the only includer of liburing). Belongs
// to one loop and is used with its lock held. Where the kernel refuses io_uring the
// ring says so (mv_ring_is_async) and completes each request inside mv_ring_submit by
// plain preadv, pwritev and so on, with the same callbacks.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "microvm/base/err.h"
#include "microvm/base/loop.h"

enum mv_io_op {
	MV_IO_READV,
	MV_IO_WRITEV,
	MV_IO_FDATASYNC,
	MV_IO_PUNCH, // a hole of `bytes`, which read as zeros and take no space
	MV_IO_ZERO,  // zeros, space stays; both -EOPNOTSUPP where file system or device can't
};

// Embedded in the caller's request; must live until done() was called.
struct mv_io {
	void (*done)(struct mv_io *io, int result); // bytes, 0 or -errno; loop lock held
	// what to do; unchanged until done(), which may reuse it
	enum mv_io_op op;
	int fd;
	const struct iovec *iov; // the memory, too, until done()
	unsigned n_iov;
	uint64_t offset, bytes;
	struct mv_io *next; // the ring's
};

struct mv_ring; // opaque

// entries: most requests handed to the kernel at once. force_sync: the fallback, for tests.
int mv_ring_new(struct mv_loop *l, unsigned entries, bool force_sync, struct mv_ring **ret_ring,
		struct mv_err *err);
void mv_ring_free(struct mv_ring *r); // NULL allowed; drains first
bool mv_ring_is_async(const struct mv_ring *r);

// Queues one request; cannot fail: what the kernel has no room for waits in the ring.
// Nothing happens before mv_ring_submit().
void mv_ring_queue(struct mv_ring *r, struct mv_io *io);

// Hands everything queued to the kernel with one system call and calls done() for what
// is complete already (data in the page cache usually is). From inside a done() it does
// nothing: the call that is under way takes care of what was queued, or the next one does.
void mv_ring_submit(struct mv_ring *r);

unsigned mv_ring_inflight(const struct mv_ring *r); // queued, or with the kernel

// Waits for at least one completion, if anything is in flight. Not from inside a done().
void mv_ring_wait(struct mv_ring *r);

// Waits until nothing is in flight.
void mv_ring_drain(struct mv_ring *r);
