// SPDX-License-Identifier: Apache-2.0
// Requests go: waiting list -> kernel (at most `entries`) -> done(). Completions are
// reaped right after submitting, and else when the eventfd says so. The eventfd is muted
// while we submit, since we look ourselves afterwards.
#include "microvm/base/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "microvm/base/util.h"

// Rounds of submit and reap in one call before other events of the loop get their turn.
enum { MAX_ROUNDS = 4 };

struct mv_ring {
	struct io_uring uring;
	struct mv_watch watch;
	int event_fd;
	bool async, busy;
	unsigned entries;
	unsigned n_kernel;  // with the kernel, or in its submission queue
	unsigned n_waiting; // in the list below
	struct mv_io *first, **last;
};

static void poke(struct mv_ring *r) { eventfd_write(r->event_fd, 1); }

static struct mv_io *take_waiting(struct mv_ring *r)
{
	struct mv_io *io = r->first;
	r->first = io->next;
	if (!r->first)
		r->last = &r->first;
	r->n_waiting--;
	return io;
}

static void complete(struct mv_ring *r)
{
	struct io_uring_cqe *cqe;
	while (!io_uring_peek_cqe(&r->uring, &cqe)) {
		struct mv_io *io = io_uring_cqe_get_data(cqe);
		int result = cqe->res;
		io_uring_cqe_seen(&r->uring, cqe);
		r->n_kernel--;
		io->done(io, result);
	}
}

// Regular files and block devices alike; the file keeps its size.
static int zero_mode(enum mv_io_op op)
{
	return FALLOC_FL_KEEP_SIZE | (op == MV_IO_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

// One piece is the common case, and cheaper without a vector.
static void prepare(struct io_uring_sqe *sqe, struct mv_io *io)
{
	const struct iovec *v = io->n_iov == 1 ? io->iov : NULL;
	switch (io->op) {
	case MV_IO_READV:
		if (v)
			io_uring_prep_read(sqe, io->fd, v->iov_base, (unsigned)v->iov_len, io->offset);
		else
			io_uring_prep_readv(sqe, io->fd, io->iov, io->n_iov, io->offset);
		break;
	case MV_IO_WRITEV:
		if (v)
			io_uring_prep_write(sqe, io->fd, v->iov_base, (unsigned)v->iov_len, io->offset);
		else
			io_uring_prep_writev(sqe, io->fd, io->iov, io->n_iov, io->offset);
		break;
	case MV_IO_FDATASYNC: io_uring_prep_fsync(sqe, io->fd, IORING_FSYNC_DATASYNC); break;
	case MV_IO_PUNCH:
	case MV_IO_ZERO:
		io_uring_prep_fallocate(sqe, io->fd, zero_mode(io->op), io->offset, io->bytes);
		break;
	}
	io_uring_sqe_set_data(sqe, io);
}

static void run_async(struct mv_ring *r)
{
	while (r->first && r->n_kernel < r->entries) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);
		if (!sqe)
			break;
		prepare(sqe, take_waiting(r));
		r->n_kernel++;
	}
	if (io_uring_sq_ready(&r->uring)) {
		io_uring_cq_eventfd_toggle(&r->uring, false);
		if (io_uring_submit(&r->uring) < 0) // short of memory: again in the next turn
			poke(r);
		complete(r);
		io_uring_cq_eventfd_toggle(&r->uring, true);
		if (!r->n_kernel)
			return;
		// Pairs with the kernel: it posts, then looks at the flag; we set the flag, then look.
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
	}
	complete(r);
}

static int run_one(const struct mv_io *io)
{
	ssize_t n = 0;
	do {
		switch (io->op) {
		case MV_IO_READV: n = preadv(io->fd, io->iov, (int)io->n_iov, (off_t)io->offset); break;
		case MV_IO_WRITEV: n = pwritev(io->fd, io->iov, (int)io->n_iov, (off_t)io->offset); break;
		case MV_IO_FDATASYNC: n = fdatasync(io->fd); break;
		case MV_IO_PUNCH:
		case MV_IO_ZERO:
			n = fallocate(io->fd, zero_mode(io->op), (off_t)io->offset, (off_t)io->bytes);
			break;
		}
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (int)n;
}

static void run_sync(struct mv_ring *r)
{
	for (unsigned n = r->n_waiting; n; n--) { // what done() adds is for the next round
		struct mv_io *io = take_waiting(r);
		io->done(io, run_one(io));
	}
}

void mv_ring_submit(struct mv_ring *r)
{
	if (r->busy)
		return;
	r->busy = true;
	unsigned round = 0;
	do {
		if (r->async)
			run_async(r);
		else
			run_sync(r);
	} while (r->first && r->n_kernel < r->entries && ++round < MAX_ROUNDS);
	r->busy = false;
	if (r->first && r->n_kernel < r->entries)
		poke(r);
}

static void on_event(void *arg, uint32_t events)
{
	(void)events; // edge-triggered: each write of the eventfd is an event, and reading it is a system
		      // call less
	mv_ring_submit(arg);
}

int mv_ring_new(struct mv_loop *l, unsigned entries, bool force_sync, struct mv_ring **ret_ring,
		struct mv_err *err)
{
	struct mv_ring *r = calloc(1, sizeof *r);
	if (!r)
		return mv_fail(err, ENOMEM, "out of memory");
	r->entries = entries;
	r->last = &r->first;
	r->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int e = r->event_fd < 0 ? -errno
				: mv_watch_add(l, &r->watch, r->event_fd, EPOLLIN | EPOLLET, on_event, r);
	if (e) {
		mv_ring_free(r);
		return mv_fail(err, -e, "cannot make the ring's eventfd: %s", strerror(-e));
	}
	// A kernel or sandbox without io_uring is no error; the caller may ask mv_ring_is_async().
	if (!force_sync && !io_uring_queue_init(entries, &r->uring, 0)) {
		r->async = !io_uring_register_eventfd(&r->uring, r->event_fd);
		if (r->async)
			io_uring_ring_dontfork(&r->uring); // a forked process has nothing to do with it
		else
			io_uring_queue_exit(&r->uring);
	}
	*ret_ring = r;
	return 0;
}

void mv_ring_free(struct mv_ring *r)
{
	if (!r)
		return;
	mv_ring_drain(r);
	if (r->async)
		io_uring_queue_exit(&r->uring);
	mv_watch_del(&r->watch);
	mv_close(&r->event_fd);
	free(r);
}

bool mv_ring_is_async(const struct mv_ring *r) { return r->async; }

void mv_ring_queue(struct mv_ring *r, struct mv_io *io)
{
	io->next = NULL;
	*r->last = io;
	r->last = &io->next;
	r->n_waiting++;
}

unsigned mv_ring_inflight(const struct mv_ring *r) { return r->n_waiting + r->n_kernel; }

void mv_ring_wait(struct mv_ring *r)
{
	unsigned before = r->n_kernel;
	mv_ring_submit(r);
	if (!r->n_kernel || r->n_kernel < before)
		return;
	r->busy = true;
	io_uring_submit_and_wait(&r->uring, 1); // may be interrupted; callers loop
	complete(r);
	r->busy = false;
}

void mv_ring_drain(struct mv_ring *r)
{
	while (mv_ring_inflight(r))
		mv_ring_wait(r);
}
