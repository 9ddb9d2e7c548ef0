// SPDX-License-Identifier: Apache-2.0
// Asynchronous file I/O on io_uring (the only includer of liburing). Belongs to one
// loop and is used with its lock held. Where the kernel refuses io_uring the ring
// says so (mv_ring_is_async) and completes each request inside mv_ring_submit by
// plain preadv/pwritev/fdatasync, with the same callbacks.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "microvm/base/err.h"
#include "microvm/base/loop.h"

// Embedded in the caller's request; must live until done() was called.
struct mv_io {
	void (*done)(struct mv_io *io, int result); // bytes or -errno; loop lock held
	// filled by the queueing call; owned by the ring until done()
	uint8_t op;
	int fd;
	const struct iovec *iov;
	unsigned n_iov;
	uint64_t offset;
	struct mv_io *next;
};

struct mv_ring; // opaque

// entries: most requests in flight. force_sync: the fallback, for tests.
int mv_ring_new(struct mv_loop *l, unsigned entries, bool force_sync, struct mv_ring **ret_ring,
		struct mv_err *err);
void mv_ring_free(struct mv_ring *r); // NULL allowed; drains first
bool mv_ring_is_async(const struct mv_ring *r);

// Queue one request; -EBUSY when `entries` are in flight (try again after a completion).
// iov must stay valid until done().
int mv_ring_readv(struct mv_ring *r, struct mv_io *io, int fd, const struct iovec *iov,
		  unsigned n_iov, uint64_t offset);
int mv_ring_writev(struct mv_ring *r, struct mv_io *io, int fd, const struct iovec *iov,
		   unsigned n_iov, uint64_t offset);
int mv_ring_fdatasync(struct mv_ring *r, struct mv_io *io, int fd);

// Hands everything queued to the kernel with one system call.
void mv_ring_submit(struct mv_ring *r);

unsigned mv_ring_inflight(const struct mv_ring *r);

// Waits until nothing is queued or in flight, calling done() for each.
void mv_ring_drain(struct mv_ring *r);
