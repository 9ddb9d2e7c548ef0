// SPDX-License-Identifier: Apache-2.0
// The metadata service on a network device: what goes where, few buffers, pauses, restores, several pairs.
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "devices/mmds.h"
#include "tests/devices/t_net.h"
#include "tests/devices/t_tcp.h"

#include "microvm/base/util.h"

enum { RX, TX, CTRL = 4, QUEUES, N = 64, BUFFER = 2048, HEADER = NET_HEADER_BYTES };
static const char document[] = "{\"who\":\"clone 1\",\"large\":\"%0*d\"}";
enum { LARGE = 20000 };

struct fixture {
	T_NET_FIELDS;
	struct mmds *m;
	struct t_queue q[QUEUES];
	uint64_t rx_gpa, tx_gpa, ctrl_gpa;
	uint32_t rx_bytes; // of a buffer
	unsigned added;
	char text[LARGE + 100];
	struct t_tcp c;
};

static void give_service(struct fixture *f)
{
	const struct mmds_config config = { { 169, 254, 169, 254 }, false, false };
	f->m = mmds_new(&config);
	assert_non_null(f->m);
	snprintf(f->text, sizeof f->text, document, LARGE, 7);
	mmds_set_document(f->m, f->text, strlen(f->text));
	assert_int_equal(vio_net_set_mmds(f->d, f->m, NULL), 0);
}

static void make_queues(struct fixture *f)
{
	for (unsigned i = 0; i < QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, N);
	f->rx_gpa = t_alloc(&f->vm, N * BUFFER, 4096);
	f->tx_gpa = t_alloc(&f->vm, HEADER + 4 * BUFFER, 4096);
	f->ctrl_gpa = t_alloc(&f->vm, 16, 16);
	f->rx_bytes = BUFFER;
	f->c = (struct t_tcp){ .port = 1000, .to = 80, .window = 65000, .seq = 1, .mss = 1460 };
}

static int set_up(void **state)
{
	struct fixture *f = t_net_set_up(sizeof *f);
	*state = f;
	make_queues(f);
	give_service(f);
	t_start(f->d, VIO_FEATURES | NET_F_STATUS | NET_F_MRG_RXBUF, f->q, 2);
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	struct mmds *m = f->m;
	t_net_tear_down(state);
	mmds_free(m);
	return 0;
}

static void add_rx(struct fixture *f, unsigned n)
{
	while (n--)
		t_add(&f->q[RX],
		      (struct t_buf[]){ { f->rx_gpa + f->added++ % N * BUFFER, f->rx_bytes, true } }, 1);
}

// By so many pieces of these sizes; what is left over is the last one.
static void transmit(struct fixture *f, unsigned pair, const uint8_t *frame, size_t len,
		     const uint32_t *piece, unsigned n)
{
	struct t_queue *q = &f->q[2 * pair + TX];
	struct t_buf bufs[8];
	uint64_t at = f->tx_gpa;
	uint16_t head;
	uint32_t left = (uint32_t)(HEADER + len), used;
	memset(t_ptr(&f->vm, at, HEADER), 0, HEADER);
	memcpy(t_ptr(&f->vm, at + HEADER, len), frame, len);
	for (unsigned i = 0; i <= n; i++) {
		bufs[i] = (struct t_buf){ at, i < n ? piece[i] : left, false };
		at += bufs[i].len;
		left -= bufs[i].len;
	}
	t_add(q, bufs, n + 1);
	t_event(f->d, 2 * pair + TX);
	t_run_until(&f->vm, t_has_used, q);
	assert_true(t_used(q, &head, &used));
}

static void send_by(struct fixture *f, unsigned pair, unsigned flags, const char *data)
{
	uint8_t frame[BUFFER];
	size_t n = data ? strlen(data) : 0;
	transmit(f, pair, frame, t_tcp_frame(&f->c, flags, data, n, frame), NULL, 0);
	f->c.seq += (uint32_t)n + !!(flags & (T_SYN | T_FIN));
}

static void send_one(struct fixture *f, unsigned flags, const char *data) { send_by(f, 0, flags, data); }

static bool is_answered(void *arg)
{
	struct fixture *f = arg;
	return t_has_used(&f->q[RX]) || t_has_used(&f->q[2 + RX]);
}

// The next frame that the guest got, in the buffers of the first pair; a buffer each.
static void receive(struct fixture *f, struct t_reply *r)
{
	uint8_t frame[BUFFER * 2] = { 0 };
	size_t n = 0;
	uint32_t got;
	uint16_t head, pieces = 1;
	t_run_until(&f->vm, is_answered, f);
	for (uint16_t i = 0; i < pieces; i++) {
		assert_true(t_used(&f->q[RX], &head, &got));
		memcpy(frame + n, t_ptr(&f->vm, le64_get(f->q[RX].desc[head].addr), got), got);
		n += got;
		assert_true(n >= HEADER && n < sizeof frame - BUFFER);
		pieces = (uint16_t)(frame[NET_NUM_BUFFERS_AT] + 256 * frame[NET_NUM_BUFFERS_AT + 1]);
	}
	for (unsigned i = 0; i < NET_NUM_BUFFERS_AT; i++)
		assert_int_equal(frame[i], 0);
	t_tcp_reply(frame + HEADER, n - HEADER, r);
	f->c.ack = r->seq + (uint32_t)r->n + !!(r->flags & (T_SYN | T_FIN));
}

static void nothing_comes(struct fixture *f)
{
	t_run_ms(&f->vm, 20);
	assert_false(is_answered(f));
}

static void handshake(struct fixture *f)
{
	struct t_reply r;
	add_rx(f, 4);
	send_one(f, T_SYN, NULL);
	receive(f, &r);
	assert_int_equal(r.flags, T_SYN | T_ACK);
	send_one(f, T_ACK, NULL);
}

// An answer that ends with this text, one segment after the other, with so many new buffers for each.
static void read_answer(struct fixture *f, const char *end, unsigned buffers)
{
	struct t_reply r;
	size_t n = strlen(end);
	for (unsigned i = 0; i < 2000; i++) {
		receive(f, &r);
		send_one(f, T_ACK, NULL);
		add_rx(f, buffers);
		t_event(f->d, RX);
		if (r.n >= n && !memcmp(r.data + r.n - n, end, n))
			return;
	}
	fail_msg("no end of the answer");
}

static void test_requests(void **state)
{
	struct fixture *f = *state;
	struct t_reply r;
	uint8_t frame[BUFFER];
	add_rx(f, 4);
	transmit(f, 0, frame, t_tcp_arp(frame), NULL, 0);
	receive(f, &r);
	assert_true(r.arp);
	handshake(f);
	send_one(f, T_ACK, "GET /who HTTP/1.1\r\n\r\n");
	read_answer(f, "\r\n\r\nclone 1", 2);
	add_rx(f, 20);
	send_one(f, T_ACK, "GET /large HTTP/1.0\r\n\r\n");
	read_answer(f, "00007", 1);
	// The driver is gone: so are the connections.
	t_set(f->d, 0x70, 0);
	for (unsigned i = 0; i < QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, N);
	t_start(f->d, VIO_FEATURES, f->q, 2);
	add_rx(f, 2);
	send_one(f, T_ACK, "GET");
	receive(f, &r);
	assert_int_equal(r.flags, T_RST);
	assert_int_equal(recv(f->peer, frame, sizeof frame, 0), -1); // the backend saw none of this
	assert_int_equal(errno, EAGAIN);
}

static void expect_on_peer(struct fixture *f, const uint8_t *frame, size_t len)
{
	uint8_t got[BUFFER];
	assert_int_equal(recv(f->peer, got, sizeof got, 0), 4 + len);
	assert_memory_equal(got + 4, frame, len);
}

static void test_what_is_taken(void **state)
{
	static const uint32_t pieces[][3] = {
		{ HEADER }, { 5, 20 }, { HEADER + 14, 16 }, { HEADER + 31, 1, 1 }
	};
	static const unsigned n[] = { 1, 2, 2, 3 };
	struct fixture *f = *state;
	struct t_reply r;
	uint8_t frame[BUFFER];
	size_t len;
	add_rx(f, 20);
	for (unsigned i = 0; i < MV_ARRAY_LEN(n); i++) { // however it lies in memory
		len = t_tcp_frame(&f->c, T_ACK, "x", 1, frame);
		transmit(f, 0, frame, len, pieces[i], n[i]);
		receive(f, &r);
		assert_int_equal(r.flags, T_RST);
		frame[33]++;
		transmit(f, 0, frame, len, pieces[i], n[i]);
		expect_on_peer(f, frame, len);
	}
	// Of others, or for others; VLANs.
	const uint8_t other[] = { 12, 13, 30, 31, 32 };
	for (unsigned i = 0; i < sizeof other; i++) {
		len = t_tcp_frame(&f->c, T_SYN, NULL, 0, frame);
		frame[other[i]] ^= 2;
		transmit(f, 0, frame, len, NULL, 0);
		expect_on_peer(f, frame, len);
	}
	len = t_tcp_arp(frame);
	frame[41]++;
	transmit(f, 0, frame, len, NULL, 0);
	expect_on_peer(f, frame, len);
	nothing_comes(f);
	// For us, and no good.
	len = t_tcp_frame(&f->c, T_SYN, NULL, 0, frame);
	transmit(f, 0, frame, len - 5, NULL, 0);
	nothing_comes(f);
	assert_int_equal(recv(f->peer, frame, sizeof frame, 0), -1);
	// Both sources of frames together.
	static const uint8_t from_peer[4 + 14] = { 0, 0, 0, 14, 1, 2, 3 };
	uint16_t head;
	uint32_t got;
	assert_int_equal(send(f->peer, from_peer, sizeof from_peer, 0), sizeof from_peer);
	send_one(f, T_ACK, NULL);
	receive(f, &r);
	assert_int_equal(r.flags, T_RST);
	t_run_until(&f->vm, is_answered, f);
	assert_true(t_used(&f->q[RX], &head, &got));
	assert_int_equal(got, HEADER + 14);
}

static void test_few_buffers(void **state)
{
	struct fixture *f = *state;
	struct t_reply r;
	send_one(f, T_SYN, NULL);
	nothing_comes(f);
	add_rx(f, 1);
	t_event(f->d, RX);
	receive(f, &r);
	assert_int_equal(r.flags, T_SYN | T_ACK);
	send_one(f, T_ACK, NULL);
	send_one(f, T_ACK, "GET /large HTTP/1.0\r\n\r\n");
	nothing_comes(f);
	f->rx_bytes = 200; // a frame needs eight
	add_rx(f, 7);
	t_event(f->d, RX);
	nothing_comes(f);
	add_rx(f, 1);
	t_event(f->d, RX);
	read_answer(f, "00007", 8);
}

static bool is_repeated(void *arg)
{
	struct fixture *f = arg;
	return t_has_used(&f->q[RX]);
}

static void test_repeats(void **state)
{
	struct fixture *f = *state;
	struct t_reply r, again;
	add_rx(f, 4);
	send_one(f, T_SYN, NULL);
	receive(f, &r);
	t_run_until(&f->vm, is_repeated, f); // by its timer, after a quarter of a second
	receive(f, &again);
	assert_int_equal(again.flags, T_SYN | T_ACK);
	assert_int_equal(again.seq, r.seq);
}

static void test_pause(void **state)
{
	struct fixture *f = *state;
	struct t_reply r;
	handshake(f);
	f->c.window = 2000;
	send_one(f, T_ACK, "GET /large HTTP/1.0\r\n\r\n");
	receive(f, &r);
	receive(f, &r); // all of the window
	vio_quiesce(f->d);
	nothing_comes(f);
	vio_unquiesce(f->d);
	f->c.window = 65000;
	add_rx(f, 20);
	send_one(f, T_ACK, NULL);
	read_answer(f, "00007", 1);
	// The link is down.
	vio_net_set_link(f->d, false);
	send_one(f, T_ACK, "GET /who HTTP/1.1\r\n\r\n");
	nothing_comes(f);
	vio_net_set_link(f->d, true);
	f->c.seq -= (uint32_t)strlen("GET /who HTTP/1.1\r\n\r\n");
	send_one(f, T_ACK | T_FIN, NULL); // ours was behind the answer
	receive(f, &r);
	assert_int_equal(r.flags, T_ACK);
	assert_int_equal(r.ack, f->c.seq);
}

// Neither connections nor the document are in the state.
static void test_restore(void **state)
{
	struct fixture *f = *state;
	struct t_reply r;
	MV_BUF saved = { 0 };
	handshake(f);
	vio_quiesce(f->d);
	vio_save(f->d, &saved);
	for (size_t i = 0; i + 7 < saved.len; i++)
		assert_memory_not_equal(saved.p + i, "clone 1", 7);
	vio_free(f->d);
	mv_close(&f->peer);
	mmds_free(f->m);
	f->d = t_net_new(&f->vm, 0, &f->peer);
	give_service(f);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(f->d);
	add_rx(f, 4);
	send_one(f, T_ACK, "GET /who HTTP/1.1\r\n\r\n");
	receive(f, &r);
	assert_int_equal(r.flags, T_RST);
	f->c.port++;
	handshake(f);
	send_one(f, T_ACK, "GET /who HTTP/1.1\r\n\r\n");
	read_answer(f, "\r\n\r\nclone 1", 2);
}

static int set_up_alone(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	const struct vio_net_options o = { .name = "eth0", .mac = t_mac, .kind = VIO_NET_NONE, .n_pairs = 2 };
	int none[2] = { -1, -1 };
	*state = f;
	f->peer = -1;
	t_vm_init(&f->vm);
	assert_int_equal(vio_net_new_with(&f->vm.mem, &f->vm.loop, &o, none, &f->d, NULL), 0);
	make_queues(f);
	give_service(f);
	return 0;
}

static void test_alone(void **state)
{
	struct fixture *f = *state;
	uint8_t frame[BUFFER];
	assert_int_equal(f->d->features_offered & (NET_HOST_OFFLOADS | NET_GUEST_OFFLOADS), 0);
	t_start(f->d, VIO_FEATURES | NET_F_MRG_RXBUF, f->q, 2);
	handshake(f);
	size_t len = t_tcp_frame(&f->c, T_SYN, NULL, 0, frame);
	frame[33]++;
	transmit(f, 0, frame, len, NULL, 0); // into the void
	nothing_comes(f);
	send_one(f, T_ACK, "GET /who HTTP/1.0\r\n\r\n");
	read_answer(f, "\r\n\r\nclone 1", 2);
}

// Whatever pair a frame came by, also that of a thread, the answer comes by the first.
static void test_pairs(void **state)
{
	struct fixture *f = *state;
	const uint8_t order[] = { 4, 0, 2, 0, 0xff };
	uint16_t head;
	uint32_t used;
	struct t_reply r;
	t_start(f->d, VIO_FEATURES | NET_F_MRG_RXBUF | NET_F_CTRL_VQ | NET_F_MQ, f->q, QUEUES);
	memcpy(t_ptr(&f->vm, f->ctrl_gpa, sizeof order), order, sizeof order);
	t_add(&f->q[CTRL],
	      (struct t_buf[]){ { f->ctrl_gpa, 2, false },
				{ f->ctrl_gpa + 2, 2, false },
				{ f->ctrl_gpa + 4, 1, true } },
	      3);
	t_kick(f->d, CTRL);
	assert_true(t_used(&f->q[CTRL], &head, &used));
	assert_int_equal(*(uint8_t *)t_ptr(&f->vm, f->ctrl_gpa + 4, 1), 0);
	add_rx(f, 40);
	for (unsigned i = 0; i < 50; i++) {
		f->c.port = (uint16_t)(1000 + i);
		send_by(f, i & 1, T_SYN, NULL);
		receive(f, &r);
		assert_int_equal(r.flags, T_SYN | T_ACK);
		send_by(f, ~i & 1, T_ACK, "GET /who HTTP/1.0\r\n\r\n");
		receive(f, &r);
		assert_int_equal(r.flags, T_ACK | T_PSH | T_FIN);
		send_by(f, i & 1, T_ACK | T_FIN, NULL);
		receive(f, &r);
		assert_int_equal(r.flags, T_ACK);
		add_rx(f, 3);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_requests, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_what_is_taken, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_few_buffers, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_repeats, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_pause, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_restore, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_alone, set_up_alone, tear_down),
		cmocka_unit_test_setup_teardown(test_pairs, set_up_alone, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
