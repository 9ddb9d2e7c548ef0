// SPDX-License-Identifier: Apache-2.0
// One read of a host program's socket fills several of the guest's buffers.
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/devices/t_vsock.h"

#include "microvm/base/util.h"

enum { ROOM = T_VSOCK_RX_BYTES - VSOCK_HEADER_BYTES, BURST = 60000, HOST_PORT = 52 };

static unsigned n_reads; // of sockets, by the device

ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	n_reads++;
	return syscall(SYS_recvmsg, fd, m, flags);
}

struct batch {
	struct t_vsock *f;
	int fd;
	struct vsock_conn *c;
	uint32_t sent, at; // bytes by the host program, and taken by the guest
};

static uint8_t byte_at(uint32_t i) { return (uint8_t)(i * 31 >> 3); }

static void host_sends(struct batch *b, uint32_t n)
{
	static uint8_t data[BURST];
	for (uint32_t i = 0; i < n; i++)
		data[i] = byte_at(b->sent + i);
	assert_int_equal(send(b->fd, data, n, MSG_NOSIGNAL), n);
	b->sent += n;
}

static void run(struct batch *b) { t_run_ms(&b->f->vm, 0); }

// No buffer was taken that was not used.
static void assert_none_kept(const struct batch *b)
{
	const struct vq *q = &b->f->d->s.queue[VSOCK_RX];
	assert_int_equal(q->next_avail, q->next_used);
}

// The first `len` bytes of a chain, maybe indirect.
static void read_chain(struct t_queue *q, uint16_t head, uint8_t *to, uint32_t len)
{
	const struct vq_desc *table = q->desc;
	uint16_t i = head;
	if (le16_get(table[i].flags) & VQ_DESC_INDIRECT) {
		table = t_ptr(q->vm, le64_get(table[i].addr), le32_get(table[i].len));
		i = 0;
	}
	while (len) {
		uint32_t n = le32_get(table[i].len) < len ? le32_get(table[i].len) : len;
		memcpy(to, t_ptr(q->vm, le64_get(table[i].addr), n), n);
		to += n;
		len -= n;
		assert_true(!len || (le16_get(table[i].flags) & VQ_DESC_NEXT));
		i = le16_get(table[i].next);
	}
}

static struct vsock_header next_packet(struct batch *b, uint8_t *payload)
{
	static uint8_t whole[VSOCK_HEADER_BYTES + BURST];
	struct vsock_header h;
	uint16_t head;
	uint32_t len;
	assert_true(t_used(&b->f->q[VSOCK_RX], &head, &len));
	assert_in_range(len, VSOCK_HEADER_BYTES, sizeof whole);
	read_chain(&b->f->q[VSOCK_RX], head, whole, len);
	memcpy(&h, whole, sizeof h);
	assert_int_equal(len, VSOCK_HEADER_BYTES + le32_get(h.len));
	memcpy(payload, whole + sizeof h, le32_get(h.len));
	return h;
}

// One packet of bytes that are those that follow: how many.
static uint32_t take_data(struct batch *b)
{
	static uint8_t data[BURST];
	struct vsock_header h = next_packet(b, data);
	uint32_t len = le32_get(h.len);
	assert_int_equal(le16_get(h.op), OP_RW);
	for (uint32_t i = 0; i < len; i++)
		assert_int_equal(data[i], byte_at(b->at + i));
	b->at += len;
	return len;
}

static void expect_data(struct batch *b, uint32_t len) { assert_int_equal(take_data(b), len); }

static void expect_end(struct batch *b)
{
	assert_false(t_has_used(&b->f->q[VSOCK_RX]));
	assert_none_kept(b);
	assert_int_equal(b->c->sent_cnt, b->at);
}

static void tell_credit(struct batch *b, uint32_t buf_alloc)
{
	struct vsock_header h = t_vsock_packet(1, HOST_PORT, OP_CREDIT_UPDATE, 0);
	h.buf_alloc = le32_make(buf_alloc);
	h.fwd_cnt = le32_make(b->at);
	t_vsock_transmit(b->f, &h, 0);
}

static struct batch open_stream(struct t_vsock *f, uint32_t guest_port)
{
	struct batch b = { .f = f, .fd = t_open_from_guest(f, guest_port) };
	b.c = vsock_conn_find(t_vsock_of(f), HOST_PORT, guest_port);
	return b;
}

// A stream whose last burst had BURST bytes, as the device has found out.
static struct batch open_busy(struct t_vsock *f)
{
	struct batch b = open_stream(f, 1);
	n_reads = 0;
	host_sends(&b, BURST);
	run(&b);
	while (b.at < BURST) {
		uint32_t len = BURST - b.at < ROOM ? BURST - b.at : ROOM;
		expect_data(&b, len);
		t_give_rx(f, 1);
	}
	assert_in_range(n_reads, 3, 6); // one buffer, two, four...
	assert_int_equal(b.c->room, BURST + 1);
	tell_credit(&b, 2 * BURST);
	expect_end(&b);
	n_reads = 0;
	return b;
}

// The driver starts anew and gives one buffer, so that tests choose the others. The device asks for as much
// as if it had seen a burst.
static struct batch open_with_one(struct t_vsock *f)
{
	for (unsigned i = 0; i < VSOCK_QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, T_VSOCK_N_RX);
	t_start(f->d, VIO_FEATURES | 1, f->q, VSOCK_QUEUES);
	t_give_rx(f, 1);
	struct batch b = open_stream(f, 1);
	b.c->room = BURST + 1;
	n_reads = 0;
	return b;
}

static void test_one_read(void **state)
{
	struct batch b = open_busy(*state);
	struct t_queue *q = &b.f->q[VSOCK_RX];
	t_irqs(b.f->d);
	*q->used_event = q->used->idx; // the next one, please
	host_sends(&b, BURST);
	run(&b);
	assert_int_equal(n_reads, 1); // none to find out that there is no more
	assert_int_equal(t_irqs(b.f->d), 1);
	for (unsigned i = 0; i < BURST / ROOM; i++)
		expect_data(&b, ROOM);
	expect_data(&b, BURST % ROOM);
	expect_end(&b);
	close(b.fd);
}

// Buffers that a read was given for nothing are used by the next one, in their order.
static void test_partly_filled(void **state)
{
	struct batch b = open_busy(*state);
	struct t_queue *q = &b.f->q[VSOCK_RX];
	for (unsigned i = 0; i < 3; i++) {
		uint16_t first = q->seen;
		host_sends(&b, 5000);
		run(&b);
		expect_data(&b, ROOM);
		expect_data(&b, 5000 - ROOM);
		expect_end(&b);
		for (uint16_t k = first; k != q->seen; k++)
			assert_int_equal(le32_get(q->used->ring[k % q->size].id), k % q->size);
	}
	assert_int_equal(n_reads, 3);
	close(b.fd);
}

static void test_ends_in_a_batch(void **state)
{
	struct batch b = open_busy(*state);
	uint8_t none[1];
	host_sends(&b, 9000);
	close(b.fd);
	run(&b);
	expect_data(&b, ROOM);
	expect_data(&b, ROOM);
	expect_data(&b, 9000 - 2 * ROOM);
	struct vsock_header h = next_packet(&b, none);
	assert_int_equal(le16_get(h.op), OP_SHUTDOWN);
	assert_int_equal(le32_get(h.flags), SHUT_ALL);
	assert_int_equal(le32_get(h.len), 0);
	expect_end(&b);
	t_send_op(b.f, 1, HOST_PORT, OP_RST, 0, 0);
	assert_int_equal(t_vsock_of(b.f)->n_conns, 0);
	assert_int_equal(t_vsock_of(b.f)->n_sending, 0);
}

// A message with descriptors ends a read before the data does. Nobody takes them.
static void test_divided_by_descriptors(void **state)
{
	struct batch b = open_busy(*state);
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	char byte = (char)byte_at(b.sent + 5000);
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.bytes,
			    .msg_controllen = sizeof control.bytes };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	*h = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(h), &b.fd, sizeof b.fd);
	host_sends(&b, 5000);
	assert_int_equal(sendmsg(b.fd, &m, 0), 1);
	b.sent++;
	host_sends(&b, 3000);
	run(&b);
	while (b.at < b.sent)
		take_data(&b);
	expect_end(&b);
	close(b.fd);
}

static void test_less_credit(void **state)
{
	enum { CREDIT = 10000 };
	struct batch b = open_busy(*state);
	uint8_t none[1];
	tell_credit(&b, CREDIT);
	host_sends(&b, BURST);
	run(&b);
	for (unsigned i = 0; i < 3; i++) {
		expect_data(&b, ROOM);
		expect_data(&b, ROOM);
		expect_data(&b, CREDIT - 2 * ROOM);
		assert_int_equal(le16_get(next_packet(&b, none).op), OP_CREDIT_REQUEST);
		expect_end(&b);
		tell_credit(&b, CREDIT); // for as much again
	}
	close(b.fd);
}

static void test_mixed_sizes(void **state)
{
	enum { LARGE = 16384, N_SMALL = 46 };
	struct batch b = open_with_one(*state);
	struct t_queue *q = &b.f->q[VSOCK_RX];
	uint64_t at = t_alloc(&b.f->vm, 65536, 4096);
	struct t_buf small[N_SMALL];
	for (unsigned i = 0; i < N_SMALL; i++)
		small[i] = (struct t_buf){ at + 2 * i, 1, true };
	t_add(q, (struct t_buf[]){ { at + 1000, VSOCK_HEADER_BYTES + 1, true } }, 1);
	t_add(q, (struct t_buf[]){ { at + 4096, T_VSOCK_RX_BYTES, true } }, 1);
	t_add(q,
	      (struct t_buf[]){ { at + 1100, 20, true }, { at + 8192, 24, true }, { at + 8999, 1000, true } },
	      3);
	t_add(q, small, N_SMALL);
	t_add(q, (struct t_buf[]){ { at + 16384, LARGE, true } }, 1);
	t_add(q, (struct t_buf[]){ { at + 40000, 100, true }, { at + 41000, 100, true } }, 2);
	host_sends(&b, 25000);
	run(&b);
	assert_int_equal(n_reads, 1);
	expect_data(&b, ROOM);
	expect_data(&b, 1);
	expect_data(&b, ROOM);
	expect_data(&b, 1000);
	expect_data(&b, N_SMALL - VSOCK_HEADER_BYTES);
	expect_data(&b, 25000 - b.at);
	expect_end(&b);
	host_sends(&b, 1000);
	run(&b);
	expect_data(&b, 200 - VSOCK_HEADER_BYTES);
	expect_end(&b); // the rest waits
	t_give_rx(b.f, 1);
	t_kick(b.f->d, VSOCK_RX);
	expect_data(&b, 1000 - (200 - VSOCK_HEADER_BYTES));
	expect_end(&b);
	close(b.fd);
}

// More pieces of payload than one read is given: it has the buffer of one piece and one such chain.
static void test_many_pieces(void **state)
{
	enum { CHAINS = 4, PIECE = 10, EACH = VQ_MAX_IOV * PIECE - VSOCK_HEADER_BYTES };
	struct batch b = open_with_one(*state);
	for (unsigned i = 0; i < CHAINS; i++) {
		uint64_t at = t_alloc(&b.f->vm, VQ_MAX_IOV * 2 * PIECE, 16);
		struct t_buf buf[VQ_MAX_IOV];
		for (unsigned k = 0; k < VQ_MAX_IOV; k++)
			buf[k] = (struct t_buf){ at + k * 2 * PIECE, PIECE, true };
		t_add_indirect(&b.f->q[VSOCK_RX], buf, VQ_MAX_IOV);
	}
	host_sends(&b, ROOM + CHAINS * EACH);
	run(&b);
	assert_int_equal(n_reads, CHAINS); // and no buffer left for one more
	expect_data(&b, ROOM);
	for (unsigned i = 0; i < CHAINS; i++)
		expect_data(&b, EACH);
	expect_end(&b);
	close(b.fd);
}

// More pieces of headers than one read is given room for.
static void test_headers_in_pieces(void **state)
{
	enum { CHAINS = 4, ALL = ROOM + CHAINS * 100 };
	struct batch b = open_with_one(*state);
	for (unsigned i = 0; i < CHAINS; i++) {
		uint64_t at = t_alloc(&b.f->vm, 256, 16);
		struct t_buf buf[VSOCK_HEADER_BYTES + 1];
		for (unsigned k = 0; k < VSOCK_HEADER_BYTES; k++)
			buf[k] = (struct t_buf){ at + 2 * k, 1, true };
		buf[VSOCK_HEADER_BYTES] = (struct t_buf){ at + 128, 100, true };
		t_add_indirect(&b.f->q[VSOCK_RX], buf, VSOCK_HEADER_BYTES + 1);
	}
	host_sends(&b, ALL);
	run(&b);
	assert_int_equal(n_reads, 2); // 1 + 2 * 44 pieces, 2 * 44
	expect_data(&b, ROOM);
	for (unsigned i = 0; i < CHAINS; i++)
		expect_data(&b, 100);
	expect_end(&b);
	close(b.fd);
}

// A bad buffer stops the device, and nothing is read for the good ones before it.
static void test_a_bad_buffer(void **state)
{
	struct t_vsock *f = *state;
	const struct t_buf bad[] = { { f->rx_gpa, VSOCK_HEADER_BYTES, true },
				     { f->rx_gpa, T_VSOCK_RX_BYTES, false },
				     { f->rx_gpa, 0, true },
				     { T_LOW_BYTES - 1, T_VSOCK_RX_BYTES, true } };
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		struct batch b = open_with_one(f);
		t_give_rx(f, 1);
		t_add(&f->q[VSOCK_RX], &bad[i], 1);
		t_give_rx(f, 1);
		host_sends(&b, BURST);
		run(&b);
		assert_true(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
		assert_int_equal(n_reads, 0);
		assert_false(t_has_used(&f->q[VSOCK_RX]));
		t_set(f->d, 0x70, 0);
		t_host_reads_eof(f, b.fd);
		close(b.fd);
	}
	struct batch b = open_with_one(f);
	host_sends(&b, 100);
	run(&b);
	expect_data(&b, 100);
	expect_end(&b);
	close(b.fd);
}

static void test_snapshot_between(void **state)
{
	struct t_vsock *f = *state;
	struct batch b = open_with_one(f);
	struct vio_dev *clone;
	char path[sizeof f->path];
	MV_BUF saved = { 0 };
	t_give_rx(f, 2);
	host_sends(&b, 20000);
	run(&b);
	vio_quiesce(f->d);
	vio_save(f->d, &saved);
	for (unsigned i = 0; i < 3; i++)
		expect_data(&b, ROOM);
	expect_end(&b);
	t_give_rx(f, 2);
	snprintf(path, sizeof path, "%.80s2", f->path);
	assert_int_equal(
		vio_vsock_new(&f->vm.mem, &f->vm.loop, T_VSOCK_CID, t_listen_at(path), path, &clone, NULL),
		0);
	assert_int_equal(vio_load(clone, saved.p, saved.len, NULL), 0);
	assert_int_equal(clone->s.queue[VSOCK_RX].next_avail, f->d->s.queue[VSOCK_RX].next_used);
	vio_free(clone);
	run(&b);
	expect_end(&b); // not while it stands still
	vio_unquiesce(f->d);
	expect_data(&b, ROOM);
	expect_data(&b, 20000 - 4 * ROOM);
	expect_end(&b);
	close(b.fd);
}

// When buffers are few each stream gets as many as the others, and a short message is not behind long ones.
static void test_shares(void **state)
{
	enum { STREAMS = 5, SHORT = STREAMS - 1, BUFFERS = 40 };
	struct t_vsock *f = *state;
	struct batch b[STREAMS] = { open_with_one(f) };
	unsigned n[STREAMS] = { 0 };
	uint8_t data[T_VSOCK_RX_BYTES];
	for (uint32_t i = 1; i < STREAMS; i++)
		b[i] = open_stream(f, 1 + i);
	for (unsigned i = 0; i < STREAMS; i++) {
		b[i].c->room = BURST;
		host_sends(&b[i], i == SHORT ? 10 : BURST);
	}
	run(&b[0]); // has the only buffer
	t_give_rx(f, BUFFERS - 1);
	t_kick(f->d, VSOCK_RX);
	for (unsigned i = 0; i < BUFFERS; i++) {
		uint32_t port = le32_get(next_packet(&b[0], data).dst_port);
		assert_in_range(port, 1, STREAMS);
		n[port - 1]++;
	}
	assert_int_equal(n[SHORT], 1);
	for (unsigned i = 0; i < SHORT; i++)
		assert_in_range(n[i], BUFFERS / STREAMS / 2, 2 * BUFFERS / STREAMS);
	assert_none_kept(&b[0]);
	for (unsigned i = 0; i < STREAMS; i++)
		close(b[i].fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_read, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_partly_filled, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_ends_in_a_batch, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_divided_by_descriptors, t_vsock_set_up,
						t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_less_credit, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_mixed_sizes, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_many_pieces, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_headers_in_pieces, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_a_bad_buffer, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_snapshot_between, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_shares, t_vsock_set_up, t_vsock_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
