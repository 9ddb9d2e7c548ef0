// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/ring.h"

#include "tests/t.h"

#include <errno.h>

#include "microvm/base/util.h"

enum { N = 64, BLOCK = 4096 };

struct request {
	struct mv_io io;
	struct iovec iov[2];
	struct fixture *f;
	int result;
	unsigned more; // how often to queue it again
	bool done;
};

struct fixture {
	struct mv_loop loop;
	struct mv_ring *ring;
	int fd;
	unsigned n_done;
	struct request req[N];
	uint8_t data[N][BLOCK];
};

static void on_done(struct mv_io *io, int result)
{
	struct request *r = MV_CONTAINER(io, struct request, io);
	r->result = result;
	if (r->more) {
		r->more--;
		mv_ring_queue(r->f->ring, io);
		mv_ring_submit(r->f->ring);
		return;
	}
	r->done = true;
	r->f->n_done++;
}

static void queue(struct fixture *f, unsigned i, enum mv_io_op op, uint64_t offset)
{
	struct request *r = &f->req[i];
	*r = (struct request){
		.io = { .done = on_done, .op = op, .fd = f->fd, .iov = r->iov, .n_iov = 2, .offset = offset },
		.iov = { { f->data[i], 100 }, { f->data[i] + 100, BLOCK - 100 } },
		.f = f
	};
	mv_ring_queue(f->ring, &r->io);
}

static void set_up(struct fixture *f, unsigned entries, bool force_sync)
{
	memset(f, 0, sizeof *f);
	f->fd = t_file();
	assert_int_equal(mv_loop_init(&f->loop), 0);
	assert_int_equal(mv_ring_new(&f->loop, entries, force_sync, &f->ring, NULL), 0);
	if (force_sync)
		assert_false(mv_ring_is_async(f->ring));
}

static void tear_down(struct fixture *f)
{
	mv_ring_free(f->ring);
	mv_loop_fini(&f->loop);
	close(f->fd);
}

static void both_ways(bool force_sync)
{
	static struct fixture f;
	set_up(&f, 8, force_sync); // far more requests than entries
	for (unsigned i = 0; i < N; i++) {
		memset(f.data[i], (int)i + 1, BLOCK);
		queue(&f, i, MV_IO_WRITEV, i * BLOCK);
	}
	assert_int_equal(f.n_done, 0); // nothing before submit
	assert_int_equal(mv_ring_inflight(f.ring), N);
	mv_ring_drain(f.ring);
	assert_int_equal(f.n_done, N);
	queue(&f, 0, MV_IO_FDATASYNC, 0);
	f.req[0].more = 20; // chained from inside done()
	mv_ring_drain(f.ring);
	assert_int_equal(f.req[0].result, 0);
	assert_int_equal(f.n_done, N + 1);
	memset(f.data, 0, sizeof f.data);
	for (unsigned i = 0; i < N; i++)
		queue(&f, i, MV_IO_READV, i * BLOCK + BLOCK / 2); // the last one is short
	mv_ring_drain(f.ring);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(f.req[i].result, i == N - 1 ? BLOCK / 2 : BLOCK);
		assert_int_equal(f.data[i][0], i + 1);
		assert_int_equal(f.data[i][BLOCK - 1], i == N - 1 ? 0 : i + 2);
	}
	queue(&f, 0, MV_IO_READV, N * BLOCK);
	queue(&f, 1, MV_IO_READV, 0);
	f.req[1].io.fd = -1;
	mv_ring_drain(f.ring);
	assert_int_equal(f.req[0].result, 0); // end of file
	assert_int_equal(f.req[1].result, -EBADF);
	mv_ring_wait(f.ring); // nothing to wait for
	tear_down(&f);
}

static void test_async(void **state)
{
	(void)state;
	struct fixture f;
	set_up(&f, 8, false);
	bool async = mv_ring_is_async(f.ring);
	tear_down(&f);
	if (!async) {
		print_message("# SKIP no io_uring\n");
		skip();
	}
	both_ways(false);
}

static void test_fallback(void **state)
{
	(void)state;
	both_ways(true);
}

static void stop_when_done(void *arg)
{
	struct fixture *f = arg;
	if (f->n_done)
		mv_loop_stop(&f->loop);
}

// A pipe is empty until later: the completion must come through the loop.
static void test_through_loop(void **state)
{
	(void)state;
	static struct fixture f;
	int p[2];
	set_up(&f, 8, false);
	if (!mv_ring_is_async(f.ring)) {
		tear_down(&f);
		print_message("# SKIP no io_uring\n");
		skip();
	}
	assert_int_equal(pipe(p), 0);
	queue(&f, 0, MV_IO_READV, 0);
	f.req[0].io.fd = p[0];
	mv_ring_submit(f.ring);
	assert_int_equal(f.n_done, 0);
	assert_int_equal(mv_ring_inflight(f.ring), 1);
	assert_int_equal(write(p[1], "later", 5), 5);
	f.loop.before_wait = stop_when_done;
	f.loop.before_wait_arg = &f;
	mv_loop_run(&f.loop);
	assert_int_equal(f.req[0].result, 5);
	close(p[0]);
	close(p[1]);
	tear_down(&f);
}

// Requests that queue themselves again and again must leave the loop its turns.
static void test_fairness(void **state)
{
	(void)state;
	for (int sync = 0; sync < 2; sync++) {
		static struct fixture f;
		set_up(&f, 8, sync);
		queue(&f, 0, MV_IO_FDATASYNC, 0);
		f.req[0].more = 1000;
		mv_ring_submit(f.ring);
		assert_int_equal(f.n_done, 0); // it came back to us before all were done
		f.loop.before_wait = stop_when_done;
		f.loop.before_wait_arg = &f;
		mv_loop_run(&f.loop);
		assert_int_equal(f.n_done, 1);
		tear_down(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_async),
		cmocka_unit_test(test_fallback),
		cmocka_unit_test(test_through_loop),
		cmocka_unit_test(test_fairness),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
