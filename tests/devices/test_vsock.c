// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "tests/devices/t_vsock.h"

#include "microvm/base/util.h"

static void test_from_host(void **state)
{
	struct t_vsock *f = *state;
	char got[16] = { 0 };
	int fd;
	uint64_t cid;
	vio_mmio_read(f->d, 0x100, &cid, 8);
	assert_int_equal(cid, T_VSOCK_CID);
	uint32_t port = t_open_from_host(f, 1234, &fd);
	t_send_data(f, 1234, port, "to the host", 11);
	t_host_reads(f, fd, got, 11);
	assert_string_equal(got, "to the host");
	assert_int_equal(send(fd, "to the guest", 12, 0), 12);
	struct t_vsock_packet p = t_vsock_expect(f, OP_RW);
	assert_int_equal(le32_get(p.h.len), 12);
	assert_memory_equal(p.data, "to the guest", 12);
	assert_int_equal(le32_get(p.h.fwd_cnt), 11);
	close(fd);
	p = t_vsock_expect(f, OP_SHUTDOWN);
	assert_int_equal(le32_get(p.h.flags), SHUT_ALL);
	t_send_op(f, 1234, port, OP_RST, 0, 0);
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
	// Data sent right behind the CONNECT line is not lost.
	fd = t_host_connect(f, "CONNECT 7\nearly");
	port = le32_get(t_vsock_expect(f, OP_REQUEST).h.src_port);
	t_vsock_expect_nothing(f);
	t_send_op(f, 7, port, OP_RESPONSE, 0, 0);
	p = t_vsock_expect(f, OP_RW);
	assert_memory_equal(p.data, "early", 5);
	close(fd);
}

static void test_bad_hellos(void **state)
{
	struct t_vsock *f = *state;
	static const char *const bad[] = { "CONNECT\n",
					   "CONNECT x\n",
					   "CONNECT -1\n",
					   "CONNECT 12 \n",
					   "CONNECT 4294967295\n",
					   "CONNECT 99999999999\n",
					   "GET / HTTP/1.0\r\n\r\n",
					   "CONNECT 1234567890123456789012345678901234567890" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		int fd = t_host_connect(f, bad[i]);
		t_host_reads_eof(f, fd);
		close(fd);
	}
	int fd = t_host_connect(f, "CONN"); // in pieces
	t_run_ms(&f->vm, 5);
	assert_int_equal(t_vsock_of(f)->n_conns, 1);
	assert_int_equal(send(fd, "ECT 9\n", 6, 0), 6);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_REQUEST).h.dst_port), 9);
	t_send_op(f, 9, t_vsock_of(f)->next_host_port, OP_RST, 0, 0); // nobody listens in the guest
	t_host_reads_eof(f, fd);
	close(fd);
	fd = t_host_connect(f, "CONNECT 9\n"); // goes away before the answer
	uint32_t port = le32_get(t_vsock_expect(f, OP_REQUEST).h.src_port);
	close(fd);
	t_vsock_expect(f, OP_RST);
	t_send_op(f, 9, port, OP_RESPONSE, 0, 0);
	t_vsock_expect(f, OP_RST);
	fd = t_host_connect(f, "CONN");
	t_run_ms(&f->vm, 5);
	close(fd);
	t_run_ms(&f->vm, 5);
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
}

static void test_from_guest(void **state)
{
	struct t_vsock *f = *state;
	char got[8] = { 0 };
	t_send_op(f, 1000, 52, OP_REQUEST, 0, 0); // nobody listens
	struct t_vsock_packet p = t_vsock_expect(f, OP_RST);
	assert_int_equal(le32_get(p.h.src_port), 52);
	assert_int_equal(le32_get(p.h.dst_port), 1000);
	int fd = t_open_from_guest(f, 1000);
	t_send_data(f, 1000, 52, "ping", 4);
	t_host_reads(f, fd, got, 4);
	assert_int_equal(send(fd, "pong", 4, 0), 4);
	assert_memory_equal(t_vsock_expect(f, OP_RW).data, "pong", 4);
	t_send_op(f, 1000, 52, OP_SHUTDOWN, SHUT_ALL, 4); // close(2) in the guest
	t_vsock_expect(f, OP_RST);
	t_host_reads_eof(f, fd);
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
	close(fd);
}

static void count_up(void *arg) { ++*(unsigned *)arg; }

// The guest's request is told before it is served or reset.
static void test_a_watched_port(void **state)
{
	struct t_vsock *f = *state;
	unsigned told = 0;
	vio_vsock_watch_port(f->d, 53, count_up, &told);
	t_send_op(f, 1000, 52, OP_REQUEST, 0, 0); // another port
	t_vsock_expect(f, OP_RST);
	assert_int_equal(told, 0);
	struct vsock_header h = t_vsock_packet(1001, 53, OP_REQUEST, 0);
	h.dst_cid = le64_make(7); // not the host
	t_vsock_transmit(f, &h, 0);
	t_send_op(f, 1001, 53, OP_RW, 0, 0); // no request
	t_vsock_expect(f, OP_RST);
	assert_int_equal(told, 0);
	t_send_op(f, 1001, 53, OP_REQUEST, 0, 0);
	t_vsock_expect(f, OP_RST);
	assert_int_equal(told, 1);
	vio_vsock_watch_port(f->d, 52, count_up, &told);
	int fd = t_open_from_guest(f, 1002); // served as always
	assert_int_equal(told, 2);
	close(fd);
}

static void test_half_close(void **state)
{
	struct t_vsock *f = *state;
	char got[8] = { 0 };
	int fd = t_open_from_guest(f, 1);
	t_send_data(f, 1, 52, "ask", 3);
	t_send_op(f, 1, 52, OP_SHUTDOWN, SHUT_SEND, 0);
	t_host_reads(f, fd, got, 3);
	t_host_reads_eof(f, fd);
	assert_int_equal(send(fd, "answer", 6, 0), 6); // the other direction is open
	assert_memory_equal(t_vsock_expect(f, OP_RW).data, "answer", 6);
	t_send_data(f, 1, 52, "x", 1); // after it said that it would not
	t_vsock_expect(f, OP_RST);
	close(fd);
	// The same from the host.
	fd = t_open_from_guest(f, 2);
	shutdown(fd, SHUT_WR);
	struct t_vsock_packet p = t_vsock_expect(f, OP_SHUTDOWN);
	assert_int_equal(le32_get(p.h.flags), SHUT_SEND);
	t_send_data(f, 2, 52, "more", 4);
	t_host_reads(f, fd, got, 4);
	close(fd);
	p = t_vsock_expect(f, OP_SHUTDOWN);
	assert_int_equal(le32_get(p.h.flags), SHUT_ALL);
	t_send_data(f, 2, 52, "late", 4); // on its way already: no harm
	t_send_op(f, 2, 52, OP_SHUTDOWN, SHUT_ALL, 0);
	t_vsock_expect(f, OP_RST);
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
}

// The host sends more than the guest has room for.
static void test_guest_credit(void **state)
{
	struct t_vsock *f = *state;
	int fd = t_open_from_guest(f, 1);
	MV_FREE uint8_t *data = malloc(T_VSOCK_GUEST_BUF + 5000);
	memset(data, 'c', T_VSOCK_GUEST_BUF + 5000);
	assert_int_equal(send(fd, data, T_VSOCK_GUEST_BUF + 5000, 0), T_VSOCK_GUEST_BUF + 5000);
	uint32_t total = 0;
	while (total < T_VSOCK_GUEST_BUF)
		total += le32_get(t_vsock_expect(f, OP_RW).h.len);
	assert_int_equal(total, T_VSOCK_GUEST_BUF);
	t_vsock_expect(f, OP_CREDIT_REQUEST);
	t_vsock_expect_nothing(f);
	t_send_op(f, 1, 52, OP_CREDIT_UPDATE, 0, 3000);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_RW).h.len), 3000);
	t_vsock_expect(f, OP_CREDIT_REQUEST);
	t_vsock_expect_nothing(f);
	shutdown(fd, SHUT_WR); // what is left comes first
	t_send_op(f, 1, 52, OP_CREDIT_UPDATE, 0, T_VSOCK_GUEST_BUF);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_RW).h.len), 2000);
	t_vsock_expect(f, OP_SHUTDOWN);
	close(fd);
}

// The host does not read: we buffer what our credit allows, lose nothing, block nothing.
static void test_host_stalls(void **state)
{
	struct t_vsock *f = *state;
	int fd = t_open_from_guest(f, 1), one = 4096, other;
	setsockopt(vsock_conn_find(t_vsock_of(f), 52, 1)->fd, SOL_SOCKET, SO_SNDBUF, &one, sizeof one);
	uint8_t block[4096];
	uint32_t sent = 0, told = 0;
	uint64_t seed = 7;
	while (sent - told + sizeof block <= VSOCK_BUF_BYTES) {
		for (unsigned i = 0; i < sizeof block; i++)
			block[i] = (uint8_t)((sent + i) * 31 >> 3);
		t_send_data(f, 1, 52, block, sizeof block);
		sent += sizeof block;
		while (t_has_used(&f->q[0]))
			told = le32_get(t_vsock_expect(f, OP_CREDIT_UPDATE).h.fwd_cnt);
	}
	assert_true(sent >= VSOCK_BUF_BYTES);
	t_send_op(f, 1, 52, OP_CREDIT_REQUEST, 0, 0);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_CREDIT_UPDATE).h.buf_alloc), VSOCK_BUF_BYTES);
	uint32_t port = t_open_from_host(f, 9, &other); // others go on
	t_send_data(f, 9, port, "hi", 2);
	t_host_reads(f, other, block, 2);
	close(other);
	t_vsock_expect(f, OP_SHUTDOWN);
	t_send_op(f, 1, 52, OP_SHUTDOWN, SHUT_ALL, 0); // the guest closes; the host still gets everything
	t_vsock_expect(f, OP_RST);
	for (uint32_t got = 0; got < sent;) {
		uint32_t n = 1 + (uint32_t)(t_rand(&seed) % sizeof block);
		n = n < sent - got ? n : sent - got;
		t_host_reads(f, fd, block, n);
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(block[i], (uint8_t)((got + i) * 31 >> 3));
		got += n;
	}
	t_host_reads_eof(f, fd);
	close(fd);
	assert_int_equal(t_vsock_of(f)->n_conns, 1); // `other`, until the guest confirms
	// Beyond its credit.
	fd = t_open_from_guest(f, 1);
	setsockopt(vsock_conn_find(t_vsock_of(f), 52, 1)->fd, SOL_SOCKET, SO_SNDBUF, &one, sizeof one);
	for (sent = 0; vsock_conn_find(t_vsock_of(f), 52, 1); sent += sizeof block) {
		assert_true(sent < 2 * VSOCK_BUF_BYTES);
		t_send_data(f, 1, 52, block, sizeof block);
	}
	while (le16_get(t_vsock_receive(f).h.op) != OP_RST)
		;
	close(fd);
	// The host closes without reading: the guest is told that nobody listens.
	fd = t_open_from_guest(f, 1);
	close(fd);
	struct t_vsock_packet p = t_vsock_expect(f, OP_SHUTDOWN);
	assert_int_equal(le32_get(p.h.flags), SHUT_ALL);
}

// Events that the loop would see now, but for its own wake-up: t_run_ms() leaves one.
static unsigned events_now(struct t_vsock *f)
{
	struct epoll_event ev[8];
	int n = epoll_wait(f->vm.loop.epoll_fd, ev, 8, 0);
	unsigned others = 0;
	for (int i = 0; i < n; i++)
		others += (uint32_t)ev[i].data.u64 != f->vm.loop.wake.slot;
	assert_true(n >= 0);
	return others;
}

// What the host reads is no event for us, unless something waits for the room that it makes.
static void test_reads_wake_nobody(void **state)
{
	struct t_vsock *f = *state;
	int fd = t_open_from_guest(f, 1), one = 4096;
	static uint8_t block[4096], got[VSOCK_BUF_BYTES];
	setsockopt(vsock_conn_find(t_vsock_of(f), 52, 1)->fd, SOL_SOCKET, SO_SNDBUF, &one, sizeof one);
	for (unsigned i = 0; i < 3; i++) {
		t_send_data(f, 1, 52, "ping", 4);
		t_run_ms(&f->vm, 10);
		assert_int_equal(recv(fd, got, sizeof got, 0), 4);
		assert_int_equal(events_now(f), 0);
	}
	uint32_t sent = 0;
	for (; !vsock_conn_find(t_vsock_of(f), 52, 1)->buf_len; sent += sizeof block)
		t_send_data(f, 1, 52, block, sizeof block);
	t_host_reads(f, fd, got, sent);
	t_send_data(f, 1, 52, "ping", 4);
	t_run_ms(&f->vm, 10); // room that nothing waits for any more: the last such event
	assert_int_equal(recv(fd, got, sizeof got, 0), 4);
	assert_int_equal(events_now(f), 0);
	close(fd);
	t_vsock_expect(f, OP_SHUTDOWN);
}

static void test_bad_packets(void **state)
{
	struct t_vsock *f = *state;
	int fd = t_open_from_guest(f, 1);
	struct vsock_header h = t_vsock_packet(1, 52, OP_RW, 100);
	t_vsock_transmit(f, &h, 99); // claims more than there is
	h = t_vsock_packet(1, 52, OP_RW, 0);
	h.src_cid = le64_make(4); // not its own
	t_vsock_transmit(f, &h, 0);
	h = t_vsock_packet(1, 52, OP_RW, 0);
	h.dst_cid = le64_make(1);
	t_vsock_transmit(f, &h, 0);
	t_add(&f->q[1], (struct t_buf[]){ { f->tx_gpa, 43, false } }, 1); // no whole header
	t_kick(f->d, 1);
	assert_true(t_used(&f->q[1], NULL, NULL));
	t_vsock_expect_nothing(f); // all dropped, the stream lives
	h = t_vsock_packet(5, 6, OP_RW, 0);
	h.type = le16_make(2); // SEQPACKET, which was not offered
	t_vsock_transmit(f, &h, 0);
	t_vsock_expect(f, OP_RST);
	t_send_op(f, 5, 6, OP_RW, 0, 0); // no such stream
	t_vsock_expect(f, OP_RST);
	t_send_op(f, 5, 6, OP_RST, 0, 0);
	t_vsock_expect_nothing(f);
	h = t_vsock_packet(1, 52, OP_RW, 4); // more than it claims
	t_vsock_transmit(f, &h, 10);
	char got[4];
	t_host_reads(f, fd, got, 4);
	t_send_op(f, 1, 52, 99, 0, 0); // no such operation
	t_vsock_expect(f, OP_RST);
	t_host_reads_eof(f, fd);
	close(fd);
	fd = t_open_from_guest(f, 1);
	t_send_op(f, 1, 52, OP_REQUEST, 0, 0); // the same ports again
	t_vsock_expect(f, OP_RST);
	t_host_reads_eof(f, fd);
	close(fd);
	for (unsigned i = 0; i < 2 * VSOCK_MAX_RST; i++) // a flood, not one buffer for answers
		t_send_op(f, i, 6, OP_RW, 0, 0);
	assert_true(t_vsock_of(f)->n_rst <= VSOCK_MAX_RST);
	assert_int_equal(t_get(f->d, 0x70) & VIO_NEEDS_RESET, 0);
}

// Two devices that never heard of each other, a snapshot's and its clone's, choose other ports.
static void test_host_ports(void **state)
{
	struct t_vsock *f = *state;
	int fd[2];
	uint32_t first = t_open_from_host(f, 9, &fd[0]);
	t_vsock_of(f)->next_host_port = 0; // a fresh device
	uint32_t other = t_open_from_host(f, 9, &fd[1]);
	assert_not_in_range(other, first, first + 1);
	close(fd[0]);
	close(fd[1]);
}

static void test_100_streams(void **state)
{
	struct t_vsock *f = *state;
	enum { N = 100, BYTES = 20000 };
	static uint8_t data[BYTES], got[BYTES];
	int fd[N];
	uint32_t port[N], n[N] = { 0 }, left = N;
	for (unsigned i = 0; i < N; i++)
		port[i] = t_open_from_host(f, 100 + i, &fd[i]);
	for (unsigned i = 0; i < N; i++) {
		memset(data, (int)i, BYTES);
		assert_int_equal(send(fd[i], data, BYTES, 0), BYTES);
	}
	while (left) { // each gets its own, whatever the order
		struct t_vsock_packet p = t_vsock_expect(f, OP_RW);
		uint32_t i = le32_get(p.h.dst_port) - 100, len = le32_get(p.h.len);
		assert_true(i < N);
		assert_int_equal(le32_get(p.h.src_port), port[i]);
		assert_int_equal(p.data[0], i);
		assert_int_equal(p.data[len - 1], i);
		n[i] += len;
		left -= n[i] == BYTES;
	}
	for (unsigned i = 0; i < N; i++) {
		memset(data, (int)i + 1, BYTES);
		t_send_data(f, 100 + i, port[i], data, BYTES);
	}
	for (unsigned i = 0; i < N; i++) {
		t_host_reads(f, fd[i], got, BYTES);
		assert_int_equal(got[0], i + 1);
		assert_int_equal(got[BYTES - 1], i + 1);
		close(fd[i]);
		t_vsock_expect(f, OP_SHUTDOWN);
		t_send_op(f, 100 + i, port[i], OP_RST, 0, 0);
	}
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
}

// ---- 320 streams from both sides, both ways at once, with checksums; one host program that does not
// read and one guest program that does not, until all others are done.

enum { MANY = 320, LAZY_HOST = 0, LAZY_GUEST = 1, LONG = 90000, SHORT = 9000, CHUNK = 1500, ROUNDS = 4000 };

struct flow {
	uint32_t left, sum_out, sum_in, got;
};
struct stream {
	int fd;
	uint32_t guest_port, host_port, total;
	struct flow to_host, to_guest;
	bool guest_eof, gone;
};
struct many {
	struct t_vsock *f;
	struct stream s[MANY];
	bool lazy;
	uint64_t seed;
};

static uint32_t add(uint32_t sum, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sum = (sum ^ p[i]) * 16777619u;
	return sum;
}

static uint32_t some_bytes(struct many *m, struct flow *w, uint8_t *p)
{
	uint32_t n = 1 + (uint32_t)(t_rand(&m->seed) % CHUNK);
	n = n < w->left ? n : w->left;
	for (uint32_t i = 0; i < n; i++)
		p[i] = (uint8_t)(t_rand(&m->seed) >> 16);
	return n;
}

static void from_guest(struct many *m, struct stream *s, uint16_t op, uint32_t flags, const uint8_t *p,
		       uint32_t n)
{
	struct vsock_header h = t_vsock_packet(s->guest_port, s->host_port, op, n);
	h.flags = le32_make(flags);
	h.fwd_cnt = le32_make(m->lazy && s == &m->s[LAZY_GUEST] ? 0 : s->to_guest.got);
	if (n)
		memcpy(t_ptr(&m->f->vm, m->f->tx_gpa + 64, n), p, n);
	t_vsock_transmit(m->f, &h, n);
}

// What came for the guest, and what the hosts can read.
static void take_all(struct many *m)
{
	uint8_t buf[8192];
	for (unsigned k = 0; t_has_used(&m->f->q[0]); k++) {
		if (k > 100 * MANY)
			fail_msg("the device never stops");
		struct t_vsock_packet p = t_vsock_receive(m->f);
		struct stream *s = m->s;
		while (s < m->s + MANY &&
		       (s->guest_port != le32_get(p.h.dst_port) || s->host_port != le32_get(p.h.src_port)))
			s++;
		if (s == m->s + MANY)
			fail_msg("packet %u for nobody", le16_get(p.h.op));
		uint32_t n = le32_get(p.h.len);
		switch (le16_get(p.h.op)) {
		case OP_RW:
			s->to_guest.sum_in = add(s->to_guest.sum_in, p.data, n);
			s->to_guest.got += n;
			break;
		case OP_CREDIT_REQUEST: from_guest(m, s, OP_CREDIT_UPDATE, 0, NULL, 0); break;
		case OP_CREDIT_UPDATE: break;
		case OP_SHUTDOWN: s->guest_eof = true; break;
		case OP_RST: s->gone = true; break;
		default: fail_msg("packet %u", le16_get(p.h.op));
		}
	}
	for (struct stream *s = m->s; s < m->s + MANY; s++) {
		ssize_t n = m->lazy && s == &m->s[LAZY_HOST] ? -1 : recv(s->fd, buf, sizeof buf, 0);
		if (n > 0) {
			s->to_host.sum_in = add(s->to_host.sum_in, buf, (size_t)n);
			s->to_host.got += (uint32_t)n;
		}
	}
}

// False: all is done, but for those that are lazy.
static bool exchange(struct many *m)
{
	uint8_t p[CHUNK];
	bool more = false;
	for (struct stream *s = m->s; s < m->s + MANY; s++) {
		uint32_t n = some_bytes(m, &s->to_host, p);
		if (n) {
			from_guest(m, s, OP_RW, 0, p, n);
			s->to_host.sum_out = add(s->to_host.sum_out, p, n);
			s->to_host.left -= n;
		}
		n = some_bytes(m, &s->to_guest, p);
		ssize_t sent = n ? send(s->fd, p, n, MSG_NOSIGNAL) : 0;
		if (sent > 0) {
			s->to_guest.sum_out = add(s->to_guest.sum_out, p, (size_t)sent);
			s->to_guest.left -= (uint32_t)sent;
		}
		bool host = s->to_host.got == s->total, guest = s->to_guest.got == s->total;
		more |= !(host || (m->lazy && s == &m->s[LAZY_HOST])) ||
			!(guest || (m->lazy && s == &m->s[LAZY_GUEST]));
	}
	t_run_ms(&m->f->vm, 0);
	take_all(m);
	return more;
}

static void finish(struct many *m)
{
	for (unsigned i = 0; exchange(m); i++)
		if (i == ROUNDS)
			fail_msg("not done");
}

static void test_many_streams(void **state)
{
	static struct many m;
	struct t_vsock *f = *state;
	int before = t_count_fds(), small = 4096;
	m = (struct many){ .f = f, .lazy = true, .seed = 77 };
	for (uint32_t i = 0; i < MANY; i++) {
		struct stream *s = &m.s[i];
		*s = (struct stream){ .guest_port = 5000 + i,
				      .host_port = 52,
				      .total = i % 8 > 1 ? SHORT : LONG };
		if (i % 2)
			s->host_port = t_open_from_host(f, s->guest_port, &s->fd);
		else
			s->fd = t_open_from_guest(f, s->guest_port);
		s->to_host.left = s->to_guest.left = s->total;
	}
	setsockopt(vsock_conn_find(t_vsock_of(f), 52, 5000)->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	finish(&m);
	assert_true(m.s[LAZY_HOST].to_host.got == 0 && m.s[LAZY_GUEST].to_guest.got == T_VSOCK_GUEST_BUF);
	m.lazy = false;
	from_guest(&m, &m.s[LAZY_GUEST], OP_CREDIT_UPDATE, 0, NULL, 0);
	finish(&m);
	for (struct stream *s = m.s; s < m.s + MANY; s++) {
		assert_int_equal(s->to_host.sum_in, s->to_host.sum_out);
		assert_int_equal(s->to_guest.sum_in, s->to_guest.sum_out);
	}
	// Half of each is closed first, by either side; the other half still works.
	uint8_t byte;
	for (uint32_t i = 0; i < MANY; i++) {
		struct stream *s = &m.s[i];
		if (i % 4 < 2)
			from_guest(&m, s, OP_SHUTDOWN, SHUT_SEND, NULL, 0);
		else
			shutdown(s->fd, SHUT_WR);
	}
	t_run_ms(&f->vm, 0);
	take_all(&m);
	for (uint32_t i = 0; i < MANY; i++) {
		struct stream *s = &m.s[i];
		assert_int_equal(s->guest_eof, i % 4 >= 2);
		assert_int_equal(recv(s->fd, &byte, 1, 0), i % 4 < 2 ? 0 : -1);
		if (i % 4 < 2)
			assert_int_equal(send(s->fd, "last", 4, MSG_NOSIGNAL), 4);
		else
			from_guest(&m, s, OP_RW, 0, (const uint8_t *)"last", 4);
	}
	for (unsigned k = 0; k < 5; k++) {
		t_run_ms(&f->vm, 0);
		take_all(&m);
	}
	for (uint32_t i = 0; i < MANY; i++) {
		struct stream *s = &m.s[i];
		assert_int_equal(i % 4 < 2 ? s->to_guest.got : s->to_host.got, s->total + 4);
		if (i % 2)
			from_guest(&m, s, OP_RST, 0, NULL, 0);
		else
			from_guest(&m, s, OP_SHUTDOWN, SHUT_ALL, NULL, 0);
	}
	t_run_ms(&f->vm, 0);
	take_all(&m);
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
	for (uint32_t i = 0; i < MANY; i++) {
		assert_int_equal(m.s[i].gone, i % 2 == 0);
		assert_int_equal(recv(m.s[i].fd, &byte, 1, 0), 0);
		close(m.s[i].fd);
	}
	assert_int_equal(t_count_fds(), before);
}

static void test_limit(void **state)
{
	struct t_vsock *f = *state;
	struct rlimit old, limit;
	getrlimit(RLIMIT_NOFILE, &old);
	limit = (struct rlimit){ .rlim_cur = old.rlim_max, .rlim_max = old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &limit);
	if (old.rlim_max < 2 * VSOCK_MAX_CONNS + 100) {
		print_message("# SKIP the limit of open files is too low\n");
		skip();
	}
	int before = t_count_fds();
	static int fd[VSOCK_MAX_CONNS];
	uint32_t first = 0;
	for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
		fd[i] = t_host_connect(f, "CONNECT 5\n");
		uint32_t port = le32_get(t_vsock_expect(f, OP_REQUEST).h.src_port);
		first = i ? first : port;
	}
	int one_more = t_host_connect(f, "CONNECT 5\n");
	t_host_reads_eof(f, one_more);
	close(one_more);
	t_send_op(f, 1, 52, OP_REQUEST, 0, 0);
	t_vsock_expect(f, OP_RST);
	// One that waits only for the guest's goodbye makes room.
	t_send_op(f, 5, first, OP_RESPONSE, 0, 0);
	close(fd[0]);
	t_vsock_expect(f, OP_SHUTDOWN);
	fd[0] = t_host_connect(f, "CONNECT 5\n");
	t_vsock_expect(f, OP_RST);
	t_vsock_expect(f, OP_REQUEST);
	assert_int_equal(t_vsock_of(f)->n_conns, VSOCK_MAX_CONNS);
	t_set(f->d, 0x70, 0); // the driver's reset ends them all
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
	for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
		t_host_reads_eof(f, fd[i]);
		close(fd[i]);
	}
	assert_int_equal(t_count_fds(), before);
	setrlimit(RLIMIT_NOFILE, &old);
}

// Streams live on in the source; the clone's guest is told that they are gone.
static void test_snapshot(void **state)
{
	struct t_vsock *f = *state;
	char got[8] = { 0 };
	int fd = t_open_from_guest(f, 1);
	vio_quiesce(f->d);
	assert_int_equal(send(fd, "paused", 6, 0), 6);
	t_vsock_expect_nothing(f);
	vio_unquiesce(f->d);
	assert_memory_equal(t_vsock_expect(f, OP_RW).data, "paused", 6);
	t_send_data(f, 1, 52, "still", 5);
	t_host_reads(f, fd, got, 5);
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);

	struct vio_dev *d = f->d, *clone;
	char path[sizeof f->path];
	snprintf(path, sizeof path, "%.80s2", f->path);
	assert_int_equal(
		vio_vsock_new(&f->vm.mem, &f->vm.loop, T_VSOCK_CID, t_listen_at(path), path, &clone, NULL),
		0);
	assert_int_equal(vio_load(clone, saved.p, saved.len, NULL), 0);
	vio_unquiesce(clone);
	assert_false(t_has_used(&f->q[2])); // no buffer for the event yet
	f->d = clone;
	snprintf(f->path, sizeof f->path, "%s", path);
	// A host program that connects now must wait: the guest would end its stream, too.
	int early = t_host_connect(f, "CONNECT 78\n");
	t_vsock_expect_nothing(f);
	uint64_t event_gpa = t_alloc(&f->vm, 8, 8);
	memset(t_ptr(&f->vm, event_gpa, 8), 0xff, 8);
	t_add(&f->q[2], (struct t_buf[]){ { event_gpa, 8, true } }, 1);
	t_kick(clone, 2);
	uint32_t len;
	assert_true(t_used(&f->q[2], NULL, &len));
	assert_int_equal(len, 4);
	assert_memory_equal(t_ptr(&f->vm, event_gpa, 8), "\0\0\0\0\xff\xff\xff\xff", 8);
	t_vsock_expect_nothing(f); // delivered, but not handled yet
	t_add(&f->q[2], (struct t_buf[]){ { event_gpa, 8, true } }, 1);
	t_kick(clone, 2);
	assert_false(t_has_used(&f->q[2])); // once
	struct t_vsock_packet p = t_vsock_expect(f, OP_REQUEST);
	assert_int_equal(le32_get(p.h.dst_port), 78);
	t_send_op(f, 78, le32_get(p.h.src_port), OP_RST, 0, 0);
	close(early);
	t_send_data(f, 1, 52, "old", 3); // what the source's stream was
	t_vsock_expect(f, OP_RST);
	int fd2;
	t_open_from_host(f, 77, &fd2); // new streams work
	close(fd2);
	vio_free(clone);
	f->d = d;
	close(fd);
}

// The guest reads the metadata to its end; its bytes.
static size_t read_metadata(struct t_vsock *f, uint32_t guest_port, uint8_t *to, size_t size)
{
	uint32_t n = 0;
	for (;;) {
		struct t_vsock_packet p = t_vsock_receive(f);
		assert_int_equal(le32_get(p.h.dst_port), guest_port);
		uint16_t op = le16_get(p.h.op);
		if (op == OP_SHUTDOWN)
			return n;
		if (op == OP_RW) {
			uint32_t len = le32_get(p.h.len);
			assert_true(n + len <= size);
			memcpy(to + n, p.data, len);
			n += len;
		} else if (op != OP_CREDIT_REQUEST) {
			fail_msg("packet %u", op);
		}
		t_send_op(f, guest_port, VSOCK_METADATA_PORT, OP_CREDIT_UPDATE, 0, n);
	}
}

static void ask_metadata(struct t_vsock *f, uint32_t guest_port)
{
	t_send_op(f, guest_port, VSOCK_METADATA_PORT, OP_REQUEST, 0, 0);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_RESPONSE).h.src_port), VSOCK_METADATA_PORT);
}

static void test_metadata(void **state)
{
	struct t_vsock *f = *state;
	static uint8_t doc[VSOCK_METADATA_MAX_BYTES], got[sizeof doc];
	int before = t_count_fds();
	for (unsigned i = 0; i < sizeof doc; i++)
		doc[i] = (uint8_t)(i * 7 + i / 256);
	ask_metadata(f, 100); // none yet: just an end
	assert_int_equal(read_metadata(f, 100, got, sizeof got), 0);
	t_send_op(f, 100, VSOCK_METADATA_PORT, OP_RST, 0, 0);
	vio_vsock_set_metadata(f->d, doc, sizeof doc);
	ask_metadata(f, 101);
	assert_int_equal(read_metadata(f, 101, got, sizeof got), sizeof doc);
	assert_memory_equal(got, doc, sizeof doc);
	t_send_op(f, 101, VSOCK_METADATA_PORT, OP_RST, 0, 0);
	// Asked before a change: the old one, whole.
	ask_metadata(f, 102);
	static uint8_t other[] = "{}";
	vio_vsock_set_metadata(f->d, other, 2);
	assert_int_equal(read_metadata(f, 102, got, sizeof got), sizeof doc);
	assert_memory_equal(got, doc, sizeof doc);
	t_send_op(f, 102, VSOCK_METADATA_PORT, OP_RST, 0, 0);
	// What the guest sends there goes nowhere.
	ask_metadata(f, 103);
	t_send_data(f, 103, VSOCK_METADATA_PORT, "GET", 3);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_SHUTDOWN).h.flags), SHUT_RECEIVE);
	assert_memory_equal(t_vsock_expect(f, OP_RW).data, "{}", 2);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_SHUTDOWN).h.flags), SHUT_ALL);
	t_send_op(f, 103, VSOCK_METADATA_PORT, OP_SHUTDOWN, SHUT_ALL, 2);
	t_vsock_expect(f, OP_RST);
	assert_int_equal(t_vsock_of(f)->n_conns, 0);
	assert_int_equal(t_vsock_of(f)->n_metadata_conns, 0);
	assert_int_equal(t_count_fds(), before);
}

// A guest that opens and never reads holds some copies and no more; one that ends makes room.
static void test_metadata_limit(void **state)
{
	struct t_vsock *f = *state;
	static uint8_t doc[VSOCK_METADATA_MAX_BYTES];
	vio_vsock_set_metadata(f->d, doc, sizeof doc);
	for (uint32_t i = 0; i < VSOCK_MAX_METADATA; i++) {
		struct vsock_header h = t_vsock_packet(200 + i, VSOCK_METADATA_PORT, OP_REQUEST, 0);
		h.buf_alloc = le32_make(0); // no credit
		t_vsock_transmit(f, &h, 0);
		assert_int_equal(le32_get(t_vsock_expect(f, OP_RESPONSE).h.dst_port), 200 + i);
		t_vsock_expect(f, OP_CREDIT_REQUEST);
	}
	t_vsock_expect_nothing(f);
	t_send_op(f, 300, VSOCK_METADATA_PORT, OP_REQUEST, 0, 0);
	assert_int_equal(le32_get(t_vsock_expect(f, OP_RST).h.dst_port), 300);
	t_send_op(f, 200, VSOCK_METADATA_PORT, OP_RST, 0, 0);
	ask_metadata(f, 301);
	static uint8_t got[sizeof doc];
	assert_int_equal(read_metadata(f, 301, got, sizeof got), sizeof doc);
}

static void test_bad_arguments(void **state)
{
	struct t_vsock *f = *state;
	char path[108];
	struct vio_dev *d = NULL;
	struct mv_err err = { 0 };
	memset(path, 'p', sizeof path);
	path[97] = 0;
	assert_int_equal(vio_vsock_new(&f->vm.mem, &f->vm.loop, T_VSOCK_CID, t_file(), path, &d, &err),
			 -EINVAL);
	assert_message(err, "longer than 96");
	assert_int_equal(vio_vsock_new(&f->vm.mem, &f->vm.loop, T_VSOCK_CID, t_file(), "p", &d, &err),
			 -EINVAL);
	assert_message(err, "not a listening socket");
	assert_null(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_from_host, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_bad_hellos, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_from_guest, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_a_watched_port, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_half_close, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_guest_credit, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_host_stalls, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_reads_wake_nobody, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_bad_packets, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_host_ports, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_100_streams, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_many_streams, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_limit, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_snapshot, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_metadata, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_metadata_limit, t_vsock_set_up, t_vsock_tear_down),
		cmocka_unit_test_setup_teardown(test_bad_arguments, t_vsock_set_up, t_vsock_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
