// SPDX-License-Identifier: Apache-2.0
// Receive buffers: mergeable ones above all, over a stream, whose frames the test makes.
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>

#include "tests/devices/t_net.h"

#include "microvm/base/util.h"

enum { RX, TX, LENGTH = 4, N = 256, FRAME_MIN = 14, ROOM = 6 << 20 };

struct fixture {
	T_NET_FIELDS;
	struct t_queue drv[2];
	uint64_t room, next; // for receive buffers
	uint8_t out[LENGTH + NET_FRAME_MAX], in[NET_HEADER_BYTES + NET_FRAME_MAX];
};

static int set_up(void **state)
{
	struct fixture *f = t_net_set_up(sizeof *f);
	const int room = 1 << 20;
	*state = f;
	setsockopt(f->peer, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	t_queue_init(&f->drv[RX], &f->vm, N);
	t_queue_init(&f->drv[TX], &f->vm, N);
	f->room = t_alloc(&f->vm, ROOM, 4096);
	return 0;
}

static void start(struct fixture *f, uint64_t features) { t_start(f->d, VIO_FEATURES | features, f->drv, 2); }

// A receive buffer of `len` bytes in up to three pieces, far from its neighbours.
static void give(struct fixture *f, uint32_t len, uint32_t pieces)
{
	struct t_buf b[3];
	uint64_t at = f->room + f->next;
	f->next = (f->next + len + 64) % (ROOM - NET_FRAME_MAX - 128);
	for (uint32_t i = 0; i < pieces; i++) {
		uint32_t n = i + 1 < pieces ? len / pieces : len - (pieces - 1) * (len / pieces);
		b[i] = (struct t_buf){ at, n, true };
		at += n;
	}
	memset(t_ptr(&f->vm, b[0].gpa, len), 0xee, len);
	t_add(&f->drv[RX], b, pieces);
}

static uint8_t byte_of(uint32_t tag, uint32_t i) { return (uint8_t)(tag * 7 + i + i / 251); }

static void peer_sends(struct fixture *f, uint32_t len, uint32_t tag)
{
	uint32_t n = htonl(len);
	memcpy(f->out, &n, LENGTH);
	for (uint32_t i = 0; i < len; i++)
		f->out[LENGTH + i] = byte_of(tag, i);
	assert_int_equal(send(f->peer, f->out, LENGTH + len, MSG_NOSIGNAL), LENGTH + len);
}

// Bytes of the used buffer, read by its descriptors, appended to f->in.
static void read_buffer(struct fixture *f, uint16_t head, uint32_t len, uint32_t *at)
{
	const struct vq_desc *d = &f->drv[RX].desc[head];
	while (len) {
		uint32_t n = le32_get(d->len) < len ? le32_get(d->len) : len;
		memcpy(f->in + *at, t_ptr(&f->vm, le64_get(d->addr), n), n);
		*at += n;
		len -= n;
		if (len)
			assert_true(le16_get(d->flags) & VQ_DESC_NEXT);
		d = &f->drv[RX].desc[le16_get(d->next)];
	}
}

// The next frame; the number of its buffers.
static unsigned expect(struct fixture *f, uint32_t len, uint32_t tag)
{
	uint32_t at = 0, n;
	uint16_t head;
	unsigned buffers = 0, said;
	t_run_until(&f->vm, t_has_used, &f->drv[RX]);
	do {
		if (!t_used(&f->drv[RX], &head, &n)) // all are there as soon as one is
			fail_msg("frame of %u: %u bytes of it", len, at);
		read_buffer(f, head, n, &at);
		buffers++;
		said = f->in[NET_NUM_BUFFERS_AT] | f->in[NET_NUM_BUFFERS_AT + 1] << 8;
	} while (buffers < said);
	assert_int_equal(at, NET_HEADER_BYTES + len);
	assert_int_equal(buffers, said);
	for (uint32_t i = 0; i < NET_NUM_BUFFERS_AT; i++)
		assert_int_equal(f->in[i], 0);
	for (uint32_t i = 0; i < len; i++)
		if (f->in[NET_HEADER_BYTES + i] != byte_of(tag, i))
			fail_msg("frame of %u, byte %u", len, i);
	return buffers;
}

static void test_sizes(void **state)
{
	struct fixture *f = *state;
	static const uint32_t lens[] = { FRAME_MIN, 60, 1514, 1515, 4096, 9000, 40000, NET_FRAME_MAX };
	static const uint32_t rooms[] = { 12, 13, 26, 511, 1526, 4096, 65600 };
	uint64_t seed = 5;
	start(f, NET_F_MRG_RXBUF);
	for (unsigned k = 0; k < 400; k++) {
		uint32_t len = lens[t_rand(&seed) % MV_ARRAY_LEN(lens)], got = 0, give_first = k % 3;
		uint32_t room = rooms[len < 2000 ? t_rand(&seed) % 7 : 4 + t_rand(&seed) % 3];
		if (!give_first) // it waits for buffers
			peer_sends(f, len, k);
		unsigned n = 0;
		while (got < NET_HEADER_BYTES + len) {
			give(f, room, room > 100 ? 1 + (uint32_t)t_rand(&seed) % 3 : 1);
			got += room;
			n++;
			if (!give_first && k % 2) {
				t_kick(f->d, RX); // one at a time: the spill holds the rest
				t_run_ms(&f->vm, 0);
			}
		}
		t_kick(f->d, RX);
		if (give_first)
			peer_sends(f, len, k);
		assert_int_equal(expect(f, len, k), n);
		assert_false(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
	}
}

// Many frames, many buffers, one interrupt per turn.
static void test_batch(void **state)
{
	struct fixture *f = *state;
	start(f, NET_F_MRG_RXBUF);
	for (unsigned i = 0; i < N; i++)
		give(f, 1526, 1);
	t_kick(f->d, RX);
	t_irqs(f->d);
	for (unsigned i = 0; i < 100; i++)
		peer_sends(f, 300 + i, i);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(expect(f, 300 + i, i), 1);
	assert_true(t_irqs(f->d) <= 2);
}

static void test_never_fits(void **state)
{
	struct fixture *f = *state;
	start(f, NET_F_MRG_RXBUF);
	for (unsigned i = 0; i < N; i++)
		give(f, 100, 1);
	t_kick(f->d, RX);
	peer_sends(f, 40000, 1); // 256 buffers have 25,600
	peer_sends(f, 700, 2);
	assert_int_equal(expect(f, 700, 2), 8);
	// A single buffer, without merging: the same.
	start(f, 0);
	t_queue_init(&f->drv[RX], &f->vm, N);
	t_queue_init(&f->drv[TX], &f->vm, N);
	start(f, 0);
	give(f, 100, 2);
	t_kick(f->d, RX);
	peer_sends(f, 700, 3);
	peer_sends(f, 70, 4);
	assert_int_equal(expect(f, 70, 4), 1);
	assert_false(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
}

static void test_too_small(void **state)
{
	struct fixture *f = *state;
	start(f, NET_F_MRG_RXBUF);
	give(f, 12, 1);
	give(f, 11, 1); // section 5.1.6.3.1: at least the header's size
	t_kick(f->d, RX);
	peer_sends(f, 60, 1);
	t_run_ms(&f->vm, 5);
	assert_true(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
	assert_false(t_has_used(&f->drv[RX]));
}

static uint16_t taken(struct fixture *f) { return f->d->s.queue[RX].next_avail; }

// What was taken in advance is the queue's again in a pause, and in what is saved.
static void test_pause(void **state)
{
	struct fixture *f = *state;
	start(f, NET_F_MRG_RXBUF);
	for (unsigned i = 0; i < 10; i++)
		give(f, 200, 1);
	t_kick(f->d, RX);
	peer_sends(f, 1000, 1);
	assert_int_equal(expect(f, 1000, 1), 6);
	assert_int_equal(taken(f), 10);
	vio_quiesce(f->d);
	assert_int_equal(taken(f), 6);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	vio_unquiesce(f->d);
	peer_sends(f, 500, 2);
	assert_int_equal(expect(f, 500, 2), 3);
	// One that waits for buffers is lost with the pause; what comes afterwards is not.
	peer_sends(f, 5000, 3);
	t_run_ms(&f->vm, 5);
	vio_quiesce(f->d);
	vio_unquiesce(f->d);
	peer_sends(f, 100, 4);
	assert_int_equal(expect(f, 100, 4), 1);
	vio_quiesce(f->d);
	int peer;
	struct vio_dev *clone = t_net_new(&f->vm, 0, &peer);
	assert_int_equal(vio_load(clone, saved.p, saved.len, NULL), 0);
	vio_unquiesce(clone);
	assert_int_equal(clone->s.queue[RX].next_avail, 10);
	vio_free(clone);
	close(peer);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;
	start(f, NET_F_MRG_RXBUF);
	for (unsigned i = 0; i < 10; i++)
		give(f, 200, 1);
	t_kick(f->d, RX);
	peer_sends(f, 9000, 1); // waits
	t_run_ms(&f->vm, 5);
	t_set(f->d, 0x70, 0);
	t_run_ms(&f->vm, 5);
	assert_false(t_has_used(&f->drv[RX]));
	t_queue_init(&f->drv[RX], &f->vm, N);
	t_queue_init(&f->drv[TX], &f->vm, N);
	start(f, 0);
	give(f, 1526, 1);
	t_kick(f->d, RX);
	peer_sends(f, 1000, 2);
	assert_int_equal(expect(f, 1000, 2), 1);
}

// Each turn of the loop has an end, also when frames never do.
static void test_turns(void **state)
{
	struct fixture *f = *state;
	start(f, NET_F_MRG_RXBUF);
	for (unsigned i = 0; i < N; i++)
		give(f, 128, 1);
	for (unsigned i = 0; i < 200; i++)
		peer_sends(f, 64, i);
	t_kick(f->d, RX); // in here, without the loop
	assert_int_equal(le16_get(f->drv[RX].used->idx), 128);
	for (unsigned i = 0; i < 200; i++)
		expect(f, 64, i);
}

// A peer that never stops sending, and a driver that always has buffers; beside it on the loop, another
// device, whose frame comes in the middle of it.
struct flood {
	struct fixture *f;
	struct t_queue quiet;
	int quiet_peer;
	unsigned frames, turns, sent_at;
	bool stop;
};

static void *send_for_ever(void *arg)
{
	static const uint8_t frames[64][LENGTH + 60] = { [0 ... 63] = { 0, 0, 0, 60 } };
	struct flood *l = arg;
	while (!__atomic_load_n(&l->stop, __ATOMIC_RELAXED))
		send(l->f->peer, frames, sizeof frames, MSG_NOSIGNAL);
	return NULL;
}

static bool quiet_has_it(void *arg)
{
	struct flood *l = arg;
	struct t_queue *q = &l->f->drv[RX];
	uint16_t head;
	bool any = false;
	for (; t_used(q, &head, NULL); any = true, l->frames++)
		t_publish(q, head);
	if (any)
		vio_again(l->f->d, RX);
	l->turns++;
	if (l->frames > 20000 && !l->sent_at) {
		const uint8_t frame[LENGTH + 60] = { 0, 0, 0, 60 };
		assert_int_equal(send(l->quiet_peer, frame, sizeof frame, 0), sizeof frame);
		l->sent_at = l->turns;
	}
	return t_has_used(&l->quiet);
}

static void test_flood(void **state)
{
	struct fixture *f = *state;
	struct flood l = { .f = f };
	struct vio_dev *d = t_net_new(&f->vm, 0, &l.quiet_peer);
	struct t_queue tx;
	pthread_t thread;
	t_queue_init(&l.quiet, &f->vm, N);
	t_queue_init(&tx, &f->vm, N);
	struct t_queue queues[] = { l.quiet, tx };
	t_start(d, VIO_FEATURES, queues, 2);
	t_add(&l.quiet, (struct t_buf[]){ { f->room, 2048, true } }, 1);
	t_kick(d, RX);
	start(f, NET_F_MRG_RXBUF);
	for (unsigned i = 0; i < N; i++)
		give(f, 128, 1);
	t_kick(f->d, RX);
	fcntl(f->peer, F_SETFL, 0); // the thread waits for room, in the middle of a frame too
	assert_int_equal(pthread_create(&thread, NULL, send_for_ever, &l), 0);
	t_run_until(&f->vm, quiet_has_it, &l);
	__atomic_store_n(&l.stop, true, __ATOMIC_RELAXED);
	shutdown(f->peer, SHUT_RDWR);
	pthread_join(thread, NULL);
	assert_true(l.sent_at && l.turns - l.sent_at <= 2);
	vio_free(d);
	close(l.quiet_peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_sizes, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_batch, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_never_fits, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_too_small, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_pause, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_reset, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_turns, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_flood, set_up, t_net_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
