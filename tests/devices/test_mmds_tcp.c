// SPDX-License-Identifier: Apache-2.0
// The TCP responder alone: the application answers each line "N\n" with N bytes, and "bye N\n" for the last
// time.
#include "tests/devices/t_tcp.h"

#include <stdio.h>

#include "microvm/base/util.h"

#define SECOND 1000000000ull

struct fixture {
	struct mmds_tcp t;
	uint64_t now;
	unsigned requests;
	uint8_t frame[T_FRAME];
};

static uint8_t byte_of(size_t i) { return (uint8_t)(i * 31 + i / 251); }

static size_t request(void *arg, const uint8_t *bytes, size_t len, struct mv_buf *answer, bool *ret_last)
{
	struct fixture *f = arg;
	const uint8_t *end = memchr(bytes, '\n', len);
	char line[64] = "";
	if (!end && len < MMDS_TCP_ROOM)
		return 0;
	f->requests++;
	if (end)
		snprintf(line, sizeof line, "%.*s", (int)(end - bytes), bytes);
	*ret_last = !end || line[0] == 'b';
	size_t n = strtoul(line[0] == 'b' ? line + 4 : line, NULL, 10);
	for (size_t i = 0; i < n; i++) {
		uint8_t b = byte_of(i);
		mv_buf_append(answer, &b, 1);
	}
	return end ? (size_t)(end - bytes) + 1 : len;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	const struct mmds_tcp_app app = { request, f };
	mmds_tcp_init(&f->t, t_tcp_address, 80, 1500, &app);
	f->now = SECOND;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	mmds_tcp_reset(&f->t);
	free(f);
	return 0;
}

static void input(struct fixture *f, size_t len, bool unsummed)
{
	MV_FREE uint8_t *exact = malloc(len); // a sanitizer sees who reads behind it
	memcpy(exact, f->frame, len);
	mmds_tcp_input(&f->t, exact, len, unsummed, f->now);
}

static void send(struct fixture *f, struct t_tcp *c, unsigned flags, const char *data)
{
	size_t n = data ? strlen(data) : 0;
	input(f, t_tcp_frame(c, flags, data, n, f->frame), false);
	c->seq += (uint32_t)n + !!(flags & T_FIN) + !!(flags & T_SYN);
}

static bool next(struct fixture *f, struct t_reply *r)
{
	uint8_t frame[MMDS_TCP_FRAME_MAX];
	size_t n = mmds_tcp_output(&f->t, frame, f->now);
	assert_true(n <= sizeof frame);
	if (n)
		t_tcp_reply(frame, n, r);
	return n;
}

static void expect(struct fixture *f, struct t_reply *r, const struct t_tcp *c, unsigned flags)
{
	if (!next(f, r))
		fail_msg("no frame");
	assert_int_equal(r->flags & (unsigned)~T_PSH, flags);
	assert_int_equal(r->from, c->to);
	assert_int_equal(r->port, c->port);
}

static void expect_none(struct fixture *f)
{
	struct t_reply r;
	if (next(f, &r))
		fail_msg("a frame with flags %x, %zu bytes", r.flags, r.n);
}

static void pass(struct fixture *f, uint64_t ns)
{
	f->now += ns;
	mmds_tcp_tick(&f->t, f->now);
}

static unsigned n_conns(const struct fixture *f)
{
	unsigned n = 0;
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++)
		n += f->t.conn[i] != NULL;
	return n;
}

static struct t_tcp client(uint16_t port)
{
	return (struct t_tcp){
		.port = port, .to = 80, .window = 65000, .seq = 0xfffffff0u + port, .mss = 1460
	};
}

static void handshake(struct fixture *f, struct t_tcp *c)
{
	struct t_reply r;
	send(f, c, T_SYN, NULL);
	expect(f, &r, c, T_SYN | T_ACK);
	assert_int_equal(r.ack, c->seq);
	assert_int_equal(r.mss, 1460);
	c->ack = r.seq + 1;
	send(f, c, T_ACK, NULL);
	expect_none(f);
}

// Takes n bytes from `at` of an answer, acknowledging each segment.
static void take_from(struct fixture *f, struct t_tcp *c, size_t at, size_t n)
{
	struct t_reply r;
	unsigned frames = 0;
	while (n) {
		expect(f, &r, c, T_ACK);
		assert_true(r.n && r.n <= n && frames++ < 5000);
		assert_int_equal(r.seq, c->ack);
		assert_int_equal(r.ack, c->seq);
		for (size_t i = 0; i < r.n; i++)
			assert_int_equal(r.data[i], byte_of(at + i));
		c->ack += (uint32_t)r.n;
		at += r.n;
		n -= r.n;
		send(f, c, T_ACK, NULL);
	}
}

static void take(struct fixture *f, struct t_tcp *c, size_t n) { take_from(f, c, 0, n); }

static void test_arp(void **state)
{
	struct fixture *f = *state;
	struct t_reply r;
	size_t n = t_tcp_arp(f->frame);
	assert_true(mmds_tcp_is_ours(t_tcp_address, f->frame, n));
	input(f, n, false);
	assert_true(next(f, &r) && r.arp);
	expect_none(f);
	for (size_t cut = 12; cut < n; cut++) {
		t_tcp_arp(f->frame);
		assert_false(mmds_tcp_is_ours(t_tcp_address, f->frame, cut));
		input(f, cut, false);
	}
	expect_none(f);
	const uint8_t at[] = {
		15, 16, 19, 21, 22, 38, 41
	}; // not Ethernet and IPv4, no request, by a group, others
	for (unsigned i = 0; i < sizeof at; i++) {
		t_tcp_arp(f->frame);
		f->frame[at[i]] ^= 1;
		input(f, n, false);
	}
	expect_none(f);
	for (unsigned i = 0; i < 100; i++) { // as many as there is room for
		t_tcp_arp(f->frame);
		input(f, n, false);
	}
	for (unsigned i = 0; i < MMDS_TCP_CONTROLS; i++)
		assert_true(next(f, &r) && r.arp);
	expect_none(f);
}

static void test_requests(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	handshake(f, &c);
	for (size_t n = 1; n < 70000; n = n * 7 + 3) {
		char line[32];
		snprintf(line, sizeof line, "%zu\n", n);
		send(f, &c, T_ACK | T_PSH, line);
		take(f, &c, n);
		expect_none(f);
	}
	// In pieces, and several at once.
	send(f, &c, T_ACK, "1");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.n, 0);
	send(f, &c, T_ACK, "0\n5\n7\n9");
	take(f, &c, 10);
	take(f, &c, 5);
	take(f, &c, 7);
	send(f, &c, T_ACK, "\n");
	take(f, &c, 9);
	// The guest closes first; what it had asked for comes.
	send(f, &c, T_ACK | T_FIN, "3\n");
	take(f, &c, 3);
	expect(f, &r, &c, T_FIN | T_ACK);
	assert_int_equal(r.seq, c.ack);
	c.ack++;
	send(f, &c, T_ACK, NULL);
	expect_none(f);
	assert_int_equal(n_conns(f), 0);
	assert_int_equal(mmds_tcp_next_tick(&f->t), 0);
}

static void test_last(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	handshake(f, &c);
	send(f, &c, T_ACK, "bye 2000\n");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.n, 1460);
	expect(f, &r, &c, T_ACK | T_FIN);
	assert_int_equal(r.n, 540);
	expect_none(f);
	c.ack += 2001;
	send(f, &c, T_ACK, NULL); // half closed; what comes now is acknowledged and not answered
	send(f, &c, T_ACK, "1\n");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	assert_int_equal(f->requests, 1);
	send(f, &c, T_ACK | T_FIN, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	assert_int_equal(n_conns(f), 0);
	send(f, &c, T_ACK, NULL); // nobody knows it now
	expect(f, &r, &c, T_RST);
	assert_int_equal(r.seq, c.ack);
}

static void test_resets(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000), other = client(1001);
	struct t_reply r;
	send(f, &c, T_ACK, "GET"); // a connection of before a restore
	expect(f, &r, &c, T_RST);
	assert_int_equal(r.seq, c.ack);
	send(f, &c, T_RST, NULL);
	send(f, &c, T_RST | T_ACK, NULL);
	expect_none(f);
	other.to = 81;
	uint32_t seq = other.seq;
	send(f, &other, T_SYN, NULL);
	expect(f, &r, &other, T_RST | T_ACK);
	assert_int_equal(r.ack, seq + 1);
	send(f, &other, T_FIN, "abc");
	expect(f, &r, &other, T_RST | T_ACK);
	assert_int_equal(r.ack, seq + 5);
	assert_int_equal(n_conns(f), 0);

	handshake(f, &c);
	c.seq += 5; // blind
	send(f, &c, T_RST, NULL);
	assert_int_equal(n_conns(f), 1);
	c.seq -= 5;
	send(f, &c, T_RST, NULL);
	assert_int_equal(n_conns(f), 0);
	expect_none(f);

	// The guest forgot the connection and opens it anew: it is told, and says so.
	handshake(f, &c);
	struct t_tcp again = c;
	again.seq += 100000;
	send(f, &again, T_SYN, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	c.seq = r.ack;
	send(f, &c, T_RST, NULL);
	handshake(f, &again);

	// An acknowledgement of a SYN that was not sent.
	struct t_tcp wrong = client(1002);
	send(f, &wrong, T_SYN, NULL);
	expect(f, &r, &wrong, T_SYN | T_ACK);
	wrong.ack = r.seq + 2;
	send(f, &wrong, T_ACK, NULL);
	expect(f, &r, &wrong, T_RST);
	assert_int_equal(r.seq, wrong.ack);
}

static void test_guest_loses_and_repeats(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000), early, first;
	struct t_reply r;
	send(f, &c, T_SYN, NULL);
	expect(f, &r, &c, T_SYN | T_ACK); // lost
	c.seq--;
	send(f, &c, T_SYN, NULL);
	struct t_reply again;
	expect(f, &again, &c, T_SYN | T_ACK);
	assert_int_equal(again.seq, r.seq);
	c.ack = r.seq + 1;
	send(f, &c, T_ACK, NULL);
	// The second half of a request comes first.
	early = c;
	early.seq += 2;
	send(f, &early, T_ACK, "0\n");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	first = c;
	send(f, &c, T_ACK, "20");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	send(f, &first, T_ACK, "20"); // twice
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	c.seq -= 2;
	send(f, &c, T_ACK, "200\n"); // and overlapping
	take(f, &c, 200);
	assert_int_equal(f->requests, 1);
	// A keep-alive probe is answered.
	c.seq--;
	send(f, &c, T_ACK, NULL);
	c.seq++;
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	// A closing that comes twice, or before what it closes.
	early = c;
	early.seq += 2;
	send(f, &early, T_FIN | T_ACK, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	send(f, &c, T_ACK | T_FIN, "4\n");
	take(f, &c, 4);
	expect(f, &r, &c, T_FIN | T_ACK);
	c.seq--;
	send(f, &c, T_ACK | T_FIN, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.ack, c.seq);
	c.ack++;
	send(f, &c, T_ACK, NULL);
	expect_none(f);
	assert_int_equal(n_conns(f), 0);
}

static void test_we_repeat(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	send(f, &c, T_SYN, NULL);
	expect(f, &r, &c, T_SYN | T_ACK);
	uint32_t seq = r.seq;
	assert_int_equal(mmds_tcp_next_tick(&f->t), f->now + MMDS_TCP_RETRY_NS);
	pass(f, MMDS_TCP_RETRY_NS - 1);
	expect_none(f);
	pass(f, 1);
	expect(f, &r, &c, T_SYN | T_ACK);
	assert_int_equal(r.seq, seq);
	assert_int_equal(mmds_tcp_next_tick(&f->t), f->now + 2 * MMDS_TCP_RETRY_NS);
	c.ack = r.seq + 1;
	send(f, &c, T_ACK, NULL);
	send(f, &c, T_ACK, "bye 5000\n");
	for (unsigned i = 0; i < 3; i++)
		expect(f, &r, &c, T_ACK);
	expect(f, &r, &c, T_ACK | T_FIN); // all lost but the first
	expect_none(f);
	c.ack += 1460;
	send(f, &c, T_ACK, NULL);
	expect_none(f);
	pass(f, MMDS_TCP_RETRY_NS);
	take_from(f, &c, 1460, 5000 - 1460 - 620);
	expect(f, &r, &c, T_ACK | T_FIN);
	assert_int_equal(r.n, 620);
	c.ack += 620; // the FIN is lost
	send(f, &c, T_ACK, NULL);
	expect_none(f);
	pass(f, MMDS_TCP_RETRY_NS);
	expect(f, &r, &c, T_ACK | T_FIN);
	assert_int_equal(r.n, 0);
	c.ack++;
	send(f, &c, T_ACK | T_FIN, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(n_conns(f), 0);
}

// A guest that is gone: so many repetitions, a reset, and it is forgotten.
static void test_nobody_there(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	unsigned frames = 0;
	handshake(f, &c);
	send(f, &c, T_ACK, "10\n");
	uint64_t start = f->now;
	for (unsigned turns = 0; n_conns(f) && turns < 1000; turns++) {
		while (next(f, &r))
			frames++;
		uint64_t at = mmds_tcp_next_tick(&f->t);
		if (n_conns(f)) {
			assert_true(at > f->now);
			f->now = at;
			mmds_tcp_tick(&f->t, f->now);
		}
	}
	assert_int_equal(n_conns(f), 0);
	assert_true(r.flags & T_RST);
	assert_true(frames > 8 && frames < 20);
	assert_int_equal(f->now - start, MMDS_TCP_IDLE_NS);
	// The same when it takes no frames at all.
	struct t_tcp d = client(1001);
	send(f, &d, T_SYN, NULL);
	for (unsigned turns = 0; n_conns(f) && turns < 1000; turns++) {
		f->now = mmds_tcp_next_tick(&f->t);
		mmds_tcp_tick(&f->t, f->now);
	}
	assert_int_equal(n_conns(f), 0);
}

static void test_idle(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	handshake(f, &c);
	for (unsigned i = 0; i < 59; i++) { // keep-alive probes are no progress
		pass(f, SECOND);
		c.seq--;
		send(f, &c, T_ACK, NULL);
		c.seq++;
		expect(f, &r, &c, T_ACK);
	}
	pass(f, SECOND);
	expect(f, &r, &c, T_FIN | T_ACK);
	c.ack++;
	send(f, &c, T_ACK | T_FIN, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(n_conns(f), 0);
	handshake(f, &c); // half a request is no request
	send(f, &c, T_ACK, "12");
	expect(f, &r, &c, T_ACK);
	pass(f, MMDS_TCP_IDLE_NS);
	expect(f, &r, &c, T_FIN | T_ACK);
	pass(f, MMDS_TCP_IDLE_NS);
	expect(f, &r, &c, T_RST | T_ACK);
	assert_int_equal(n_conns(f), 0);
}

static void test_tiny_windows(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	c.window = 3;
	handshake(f, &c);
	send(f, &c, T_ACK, "100\n");
	take(f, &c, 100); // by three
	expect_none(f);
	c.window = 0;
	send(f, &c, T_ACK, "6\n");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.n, 0);
	for (unsigned i = 0; i < 4; i++) { // the guest is asked, and says no
		pass(f, MMDS_TCP_RETRY_NS << i);
		expect(f, &r, &c, T_ACK);
		assert_int_equal(r.n, 1);
		assert_int_equal(r.seq, c.ack);
		send(f, &c, T_ACK, NULL);
		expect_none(f);
	}
	c.window = 100;
	send(f, &c, T_ACK, NULL);
	take(f, &c, 6);
	// A window smaller than what is out already.
	send(f, &c, T_ACK, "5000\n");
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.n, 100);
	c.window = 50;
	send(f, &c, T_ACK, NULL);
	expect_none(f);
	c.window = 65000;
	send(f, &c, T_ACK, NULL);
	expect(f, &r, &c, T_ACK);
	assert_int_equal(r.seq, c.ack + 100);
	send(f, &c, T_RST, NULL);
	// The one that we have: full of what is no request, which ends it.
	struct t_tcp d = client(1001);
	char junk[1000];
	memset(junk, 'x', sizeof junk - 1);
	junk[sizeof junk - 1] = 0;
	handshake(f, &d);
	uint32_t window = MMDS_TCP_ROOM;
	for (unsigned i = 0; i < 4; i++) {
		send(f, &d, T_ACK, junk);
		expect(f, &r, &d, T_ACK);
		window -= (uint32_t)sizeof junk - 1;
		assert_int_equal(r.window, window);
	}
	send(f, &d, T_ACK, junk); // 100 bytes of these fit
	expect(f, &r, &d, T_ACK | T_FIN);
	assert_int_equal(r.ack, d.seq - (sizeof junk - 1) + window);
}

static void test_mss(void **state)
{
	static const struct {
		uint16_t said, used;
	} cases[] = { { 0, 536 }, { 1, 64 }, { 500, 500 }, { 1460, 1460 }, { 65535, 1460 } };
	struct fixture *f = *state;
	struct t_reply r;
	for (unsigned i = 0; i < MV_ARRAY_LEN(cases); i++) {
		struct t_tcp c = client((uint16_t)(1000 + i));
		c.mss = cases[i].said;
		handshake(f, &c);
		send(f, &c, T_ACK, "3000\n");
		expect(f, &r, &c, T_ACK);
		assert_int_equal(r.n, cases[i].used);
		send(f, &c, T_RST, NULL);
		expect_none(f);
	}
}

static void test_many(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c[MMDS_TCP_CONNS], more = client(2000);
	struct t_reply r;
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++) {
		c[i] = client((uint16_t)(1000 + i));
		handshake(f, &c[i]);
	}
	send(f, &more, T_SYN, NULL); // it has to try again
	expect_none(f);
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++)
		send(f, &c[i], T_ACK, "bye 40000\n");
	unsigned got[MMDS_TCP_CONNS] = { 0 }, last = 0;
	for (unsigned frames = 0; frames < 45u * MMDS_TCP_CONNS && next(f, &r); frames++) {
		unsigned i = r.port - 1000u;
		assert_true(i < MMDS_TCP_CONNS);
		for (size_t k = 0; k < r.n; k++)
			assert_int_equal(r.data[k], byte_of(got[i] + k));
		got[i] += (unsigned)r.n;
		last += !!(r.flags & T_FIN);
		c[i].ack = r.seq + (uint32_t)r.n + !!(r.flags & T_FIN);
		send(f, &c[i], T_ACK, NULL);
		for (unsigned k = 0; k < MMDS_TCP_CONNS; k++) // all in turn
			assert_true(got[k] + 3 * 1460 > got[i] || r.n < 1460);
	}
	assert_int_equal(last, MMDS_TCP_CONNS);
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++) {
		assert_int_equal(got[i], 40000);
		send(f, &c[i], T_ACK | T_FIN, NULL);
		expect(f, &r, &c[i], T_ACK);
	}
	assert_int_equal(n_conns(f), 0);
	more.seq--;
	handshake(f, &more);
}

static void test_offloads(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	handshake(f, &c);
	// The guest leaves the checksum: only the pseudo header's sum is there.
	size_t n = t_tcp_frame(&c, T_ACK, "5\n", 2, f->frame);
	f->frame[14 + 20 + 16] ^= 0x55;
	input(f, n, false);
	expect_none(f);
	input(f, n, true);
	c.seq += 2;
	take(f, &c, 5);
	// A segment much larger than a frame, of which our window has room for a part.
	static char big[60001];
	memset(big, '\n', sizeof big - 1);
	memcpy(big, "1\n2\n", 4);
	n = t_tcp_frame(&c, T_ACK, big, sizeof big - 1, f->frame);
	input(f, n, true);
	c.seq += MMDS_TCP_ROOM;
	take(f, &c, 1);
	take(f, &c, 2);
	while (next(f, &r))
		assert_int_equal(r.ack, c.seq);
	assert_int_equal(f->requests, 1 + 2 + MMDS_TCP_ROOM - 4);
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	struct t_tcp c = client(1000);
	struct t_reply r;
	size_t n = t_tcp_frame(&c, T_SYN, NULL, 0, f->frame);
	assert_true(mmds_tcp_is_ours(t_tcp_address, f->frame, n));
	for (size_t cut = 14; cut < n; cut++) { // less than its headers say
		t_tcp_frame(&c, T_SYN, NULL, 0, f->frame);
		input(f, cut, false);
	}
	static const struct {
		uint8_t at, to;
	} changes[] = {
		{ 13, 1 },         { 12, 0x81 },                    // another protocol; VLAN
		{ 14, 0x65 },      { 14, 0x44 },      { 14, 0x4f }, // IPv6, a header too short, one too long
		{ 16, 0xff },      { 17, 39 },  // longer than the frame, shorter than the headers
		{ 20, 0x20 },      { 21, 1 },   // fragments
		{ 23, 17 },        { 33, 253 }, // UDP, another address
		{ 26, 0 },         { 26, 127 },       { 26, 224 },  { 26, 255 }, // nobody's addresses
		{ 14 + 32, 0x40 }, { 14 + 32, 0xf0 }, // TCP header too short, too long
	};
	for (unsigned i = 0; i < MV_ARRAY_LEN(changes); i++) {
		n = t_tcp_frame(&c, T_SYN, NULL, 0, f->frame);
		f->frame[changes[i].at] = changes[i].to;
		uint8_t total[2] = { f->frame[16], f->frame[17] };
		if (!memcmp(total, (uint8_t[]){ 0, 44 }, 2))
			t_tcp_sum(f->frame);
		input(f, n, changes[i].at == 16 || changes[i].at == 17);
	}
	for (unsigned at = 14; at < n; at++) { // any wrong byte spoils a checksum
		n = t_tcp_frame(&c, T_SYN, NULL, 0, f->frame);
		f->frame[at] ^= 0x10;
		input(f, n, false);
	}
	for (unsigned i = 0; i < 4; i++) { // options without an end
		static const uint8_t options[][4] = { { 2, 0 }, { 2, 1 }, { 3, 255 }, { 1, 1, 1, 2 } };
		c.port = (uint16_t)(1100 + i);
		n = t_tcp_frame(&c, T_SYN, NULL, 0, f->frame);
		memcpy(f->frame + 54, options[i], 4);
		t_tcp_sum(f->frame);
		input(f, n, false);
		expect(f, &r, &c, T_SYN | T_ACK);
	}
	expect_none(f);
	assert_int_equal(n_conns(f), 4);
	// An acknowledgement of what was never sent.
	struct t_tcp d = client(1000);
	handshake(f, &d);
	d.ack += 1;
	send(f, &d, T_ACK, "9\n");
	expect(f, &r, &d, T_ACK);
	assert_int_equal(r.seq, d.ack - 1);
	assert_int_equal(f->requests, 0);
	// All flags at once, and none.
	struct t_tcp e = client(1200);
	for (unsigned flags = 0; flags < 256; flags++) {
		input(f, t_tcp_frame(&e, flags, "x\n", 2, f->frame), false);
		for (unsigned k = 0; k < 4 && next(f, &r); k++)
			;
	}
	assert_true(n_conns(f) <= 6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_arp, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_requests, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_last, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_resets, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_guest_loses_and_repeats, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_we_repeat, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_nobody_there, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_idle, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_tiny_windows, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_mss, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_many, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_offloads, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_hostile, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
