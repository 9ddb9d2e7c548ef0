// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <time.h>

#include "tests/devices/t_net.h"

#include "microvm/base/util.h"

enum { RX, TX, HEADER = 12, LENGTH = 4, BUFFER = 2048, N_BUFFERS = 256, BIG = 65536 + 18 };
enum { STATUS_AT = 0x100 + 6 };

struct fixture {
	T_NET_FIELDS;
	struct t_queue drv[2];
	uint64_t rx_gpa, tx_gpa;
	uint8_t scratch[2 * (BIG + LENGTH)];
};

static int set_up(void **state)
{
	struct fixture *f = t_net_set_up(sizeof *f);
	*state = f;
	t_queue_init(&f->drv[RX], &f->vm, N_BUFFERS);
	t_queue_init(&f->drv[TX], &f->vm, N_BUFFERS);
	f->rx_gpa = t_alloc(&f->vm, N_BUFFERS * BUFFER, 4096);
	f->tx_gpa = t_alloc(&f->vm, HEADER + BIG + 64, 4096);
	return 0;
}

static void start(struct fixture *f) { t_start(f->d, VIO_FEATURES | NET_F_STATUS, f->drv, 2); }

static void add_rx(struct fixture *f)
{
	static unsigned i;
	t_add(&f->drv[RX], (struct t_buf[]){ { f->rx_gpa + i++ % N_BUFFERS * BUFFER, BUFFER, true } }, 1);
}

static uint8_t byte_of(uint32_t len, uint32_t tag, uint32_t i)
{
	return (uint8_t)(i < 14 ? 0x40 + i : len + tag + i);
}

// A frame as it is on the stream.
static size_t make(uint8_t *p, uint32_t len, uint32_t tag)
{
	uint32_t n = htonl(len);
	memcpy(p, &n, LENGTH);
	for (uint32_t i = 0; i < len; i++)
		p[LENGTH + i] = byte_of(len, tag, i);
	return LENGTH + len;
}

static void peer_sends(struct fixture *f, const void *p, size_t len)
{
	assert_int_equal(send(f->peer, p, len, MSG_NOSIGNAL), len);
}

static void expect_rx(struct fixture *f, struct t_queue *q, uint32_t len, uint32_t tag)
{
	uint16_t head;
	uint32_t got;
	t_run_until(&f->vm, t_has_used, q);
	assert_true(t_used(q, &head, &got));
	assert_int_equal(got, HEADER + len);
	const uint8_t *p = t_ptr(&f->vm, le64_get(q->desc[head].addr), HEADER + len);
	static const uint8_t header[HEADER] = { [10] = 1 };
	assert_memory_equal(p, header, HEADER);
	for (uint32_t i = 0; i < len; i++)
		if (p[HEADER + i] != byte_of(len, tag, i))
			fail_msg("frame of %u, byte %u", len, i);
}

static uint64_t cpu_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// Nothing to do must mean no work.
static void expect_idle(struct fixture *f)
{
	t_run_ms(&f->vm, 5); // what is under way
	uint64_t before = cpu_ns();
	t_run_ms(&f->vm, 60);
	assert_true(cpu_ns() - before < 20000000u);
}

static bool link_up(struct fixture *f)
{
	uint16_t status = 0xffff;
	vio_mmio_read(f->d, STATUS_AT, &status, 2);
	return status == 1;
}

static bool link_is_down(void *f) { return !link_up(f); }

static void test_new(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = NULL;
	struct mv_err err = { 0 };
	int before = t_count_fds(), kinds[] = { SOCK_DGRAM, SOCK_SEQPACKET };
	assert_int_equal(f->d->features_offered & (NET_HOST_OFFLOADS | NET_GUEST_OFFLOADS), 0);
	assert_true(link_up(f));
	for (unsigned i = 0; i < 2; i++) {
		int s = socket(AF_UNIX, kinds[i] | SOCK_CLOEXEC, 0);
		assert_int_equal(
			vio_net_new(&f->vm.mem, &f->vm.loop, "n", t_mac, VIO_NET_STREAM, s, &d, &err),
			-EINVAL);
		assert_message(err, "network n: the descriptor is not a Unix stream socket");
	}
	int inet = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "n", t_mac, VIO_NET_STREAM, inet, &d, &err),
			 -EINVAL);
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "n", t_mac, VIO_NET_STREAM, t_file(), &d, &err),
			 -EINVAL);
	assert_null(d);
	assert_int_equal(t_count_fds(), before);
}

static void test_every_split(void **state)
{
	struct fixture *f = *state;
	static const uint32_t len[] = { 14, 60, 100 };
	size_t whole = 0;
	start(f);
	for (unsigned i = 0; i < 3; i++)
		whole += make(f->scratch + whole, len[i], 0);
	for (size_t at = 0; at <= whole; at++) {
		for (unsigned i = 0; i < 3; i++)
			add_rx(f);
		t_kick(f->d, RX);
		if (at)
			peer_sends(f, f->scratch, at);
		t_run_ms(&f->vm, 0);
		if (at < whole)
			peer_sends(f, f->scratch + at, whole - at);
		for (unsigned i = 0; i < 3; i++)
			expect_rx(f, &f->drv[RX], len[i], 0);
	}
	// Byte by byte.
	add_rx(f);
	t_kick(f->d, RX);
	for (unsigned i = 0; i < LENGTH + 14; i++) {
		assert_false(t_has_used(&f->drv[RX]));
		peer_sends(f, f->scratch + i, 1);
		t_run_ms(&f->vm, 0);
	}
	expect_rx(f, &f->drv[RX], 14, 0);
}

static void test_large(void **state)
{
	struct fixture *f = *state;
	uint64_t big = t_alloc(&f->vm, HEADER + BIG, 4096);
	struct t_buf parts[] = { { big, HEADER + 5, true }, { big + HEADER + 5, BIG - 5, true } };
	size_t n = make(f->scratch, BIG, 1);
	int room = 4 * BIG;
	start(f);
	setsockopt(f->peer, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	t_add(&f->drv[RX], parts, 2);
	t_kick(f->d, RX);
	peer_sends(f, f->scratch, n);
	expect_rx(f, &f->drv[RX], BIG, 1);
	// One that does not fit the guest's buffer is dropped; the next one gets it.
	add_rx(f);
	t_kick(f->d, RX);
	n = make(f->scratch, BUFFER - HEADER + 1, 2);
	n += make(f->scratch + n, BUFFER - HEADER, 3);
	peer_sends(f, f->scratch, n);
	expect_rx(f, &f->drv[RX], BUFFER - HEADER, 3);
	assert_true(link_up(f));
}

static void test_hostile_lengths(void **state)
{
	struct fixture *f = *state;
	static const uint32_t bad[] = { 0, 1, 13, BIG + 1, 0x7fffffff, UINT32_MAX };
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		if (i) {
			t_net_tear_down(state);
			set_up(state);
			f = *state;
		}
		start(f);
		for (unsigned k = 0; k < 4; k++)
			add_rx(f);
		t_kick(f->d, RX);
		size_t n = make(f->scratch, 60, 4);
		uint32_t length = htonl(bad[i]);
		memcpy(f->scratch + n, &length, LENGTH);
		memset(f->scratch + n + LENGTH, 0xaa, 100);
		peer_sends(f, f->scratch, n + LENGTH + 100);
		expect_rx(f, &f->drv[RX], 60, 4); // what came before is good
		t_run_until(&f->vm, link_is_down, f);
		assert_true(t_get(f->d, 0x60) & VIO_ISR_CONFIG);
		assert_false(t_has_used(&f->drv[RX]));
		assert_int_equal(f->d->s.status & VIO_NEEDS_RESET, 0); // not the guest's fault
		uint8_t byte;
		assert_int_equal(recv(f->peer, &byte, 1, 0), 0); // closed
		expect_idle(f);
	}
}

static void guest_sends(struct fixture *f, uint32_t len, uint32_t tag)
{
	uint8_t *p = t_ptr(&f->vm, f->tx_gpa, HEADER + len);
	memset(p, 0, HEADER);
	for (uint32_t i = 0; i < len; i++)
		p[HEADER + i] = byte_of(len, tag, i);
	t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + len, false } }, 1);
	vio_again(f->d, TX);
}

static void expect_tx_done(struct fixture *f)
{
	t_run_until(&f->vm, t_has_used, &f->drv[TX]);
	assert_true(t_used(&f->drv[TX], NULL, NULL));
}

// The peer reads exactly this.
static void expect_stream(struct fixture *f, int fd, uint32_t len, uint32_t tag)
{
	uint8_t want[LENGTH + BIG];
	size_t n = make(want, len, tag), have = 0;
	for (unsigned i = 0; have < n && i < 1000; i++) {
		ssize_t got = recv(fd, f->scratch + have, n - have, 0);
		if (got > 0)
			have += (size_t)got;
		else
			t_run_ms(&f->vm, 1);
	}
	assert_int_equal(have, n);
	assert_memory_equal(f->scratch, want, n);
}

static void test_transmit(void **state)
{
	struct fixture *f = *state;
	start(f);
	static const uint32_t len[] = { 14, 15, 33, 53, 54, 55, 60, 1514, BIG };
	for (unsigned i = 0; i < MV_ARRAY_LEN(len); i++) {
		guest_sends(f, len[i], i);
		expect_tx_done(f);
		expect_stream(f, f->peer, len[i], i);
	}
	// In pieces.
	struct t_buf parts[] = { { f->tx_gpa, 5, false },
				 { f->tx_gpa + 5, 20, false },
				 { f->tx_gpa + 25, HEADER + 100 - 25, false } };
	for (uint32_t i = 0; i < 100; i++)
		*(uint8_t *)t_ptr(&f->vm, f->tx_gpa + HEADER + i, 1) = byte_of(100, 9, i);
	t_add(&f->drv[TX], parts, 3);
	vio_again(f->d, TX);
	expect_tx_done(f);
	expect_stream(f, f->peer, 100, 9);
	// Dropped: too short, too large, with offloads nobody agreed on.
	static const struct {
		uint32_t len;
		uint8_t flags, gso;
	} bad[] = { { 0, 0, 0 },   { 13, 0, 0 },  { BIG + 1, 0, 0 },
		    { 100, 1, 0 }, { 100, 0, 1 }, { 100, 3, 0x81 } };
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		uint8_t *p = t_ptr(&f->vm, f->tx_gpa, HEADER);
		p[0] = bad[i].flags;
		p[1] = bad[i].gso;
		t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + bad[i].len, false } }, 1);
		vio_again(f->d, TX);
		expect_tx_done(f);
	}
	guest_sends(f, 64, 7);
	expect_stream(f, f->peer, 64, 7);
}

// To addresses that exist on every host only for itself.
static void test_loopback(void **state)
{
	struct fixture *f = *state;
	static const struct {
		uint16_t type;
		uint8_t at, bytes[16];
		bool taken;
	} to[] = {
		{ 0x0800, 30, { 127, 0, 0, 1 }, false },
		{ 0x0800, 30, { 127, 255, 255, 255 }, false },
		{ 0x0800, 30, { 0, 0, 0, 0 }, false },
		{ 0x0800, 30, { 126, 0, 0, 1 }, true },
		{ 0x0800, 30, { 128, 0, 0, 1 }, true },
		{ 0x86dd, 38, { [15] = 1 }, false },
		{ 0x86dd, 38, { 0 }, false },
		{ 0x86dd, 38, { [10] = 0xff, 0xff, 127, 0, 0, 1 }, false },
		{ 0x86dd, 38, { 0xfe, 0x80, [15] = 1 }, true },
		{ 0x0806, 30, { 127, 0, 0, 1 }, true },
	};
	start(f);
	for (unsigned i = 0; i < MV_ARRAY_LEN(to); i++) {
		uint8_t *p = t_ptr(&f->vm, f->tx_gpa, HEADER + 60), *frame = p + HEADER;
		memset(p, 0, HEADER + 60);
		frame[12] = (uint8_t)(to[i].type >> 8);
		frame[13] = (uint8_t)to[i].type;
		memcpy(frame + to[i].at, to[i].bytes, to[i].type == 0x86dd ? 16 : 4);
		t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + 60, false } }, 1);
		vio_again(f->d, TX);
		expect_tx_done(f);
		ssize_t got = recv(f->peer, f->scratch, sizeof f->scratch, 0);
		assert_int_equal(got, to[i].taken ? LENGTH + 60 : -1);
		if (to[i].taken)
			assert_memory_equal(f->scratch + LENGTH, frame, 60);
	}
}

static void test_peer_does_not_read(void **state)
{
	struct fixture *f = *state;
	enum { N = 200, LEN = 9000 };
	start(f);
	uint64_t area = t_alloc(&f->vm, N * (HEADER + LEN), 4096);
	for (uint32_t n = 0; n < N; n++) {
		uint64_t at = area + n * (HEADER + LEN);
		uint8_t *p = t_ptr(&f->vm, at, HEADER + LEN);
		for (uint32_t i = 0; i < LEN; i++)
			p[HEADER + i] = byte_of(LEN, n, i);
		t_add(&f->drv[TX], (struct t_buf[]){ { at, HEADER + LEN, false } }, 1);
	}
	vio_again(f->d, TX);
	expect_idle(f);
	unsigned done = 0;
	while (t_used(&f->drv[TX], NULL, NULL))
		done++;
	assert_true(done > 0 && done < N); // the guest has to wait
	for (uint32_t n = 0; n < N; n++)
		expect_stream(f, f->peer, LEN, n);
	while (done < N) {
		expect_tx_done(f);
		done++;
	}
	assert_int_equal(recv(f->peer, f->scratch, 1, 0), -1);
}

static void test_guest_does_not_read(void **state)
{
	struct fixture *f = *state;
	uint32_t sent = 0;
	start(f);
	size_t n;
	for (;; sent++) {
		n = make(f->scratch, 1000, sent);
		if (send(f->peer, f->scratch, n, MSG_NOSIGNAL) != (ssize_t)n)
			break;
		if (sent % 16 == 0)
			t_run_ms(&f->vm, 0);
		assert_true(sent < 100000);
	}
	expect_idle(f);
	assert_true(sent > 10);
	for (uint32_t i = 0; i < sent; i++) {
		add_rx(f);
		t_kick(f->d, RX);
		expect_rx(f, &f->drv[RX], 1000, i);
	}
}

static void test_peer_ends(void **state)
{
	struct fixture *f = *state;
	start(f);
	guest_sends(f, 100, 1);
	expect_tx_done(f);
	t_get(f->d, 0x60);
	close(MV_TAKE_FD(f->peer)); // no receive buffer: noticed all the same
	t_run_until(&f->vm, link_is_down, f);
	assert_true(t_get(f->d, 0x60) & VIO_ISR_CONFIG);
	for (unsigned i = 0; i < 300; i++) { // more than the queue holds: nothing gets stuck
		guest_sends(f, 100, 1);
		expect_tx_done(f);
	}
	add_rx(f);
	t_kick(f->d, RX);
	expect_idle(f);
	assert_int_equal(f->d->s.status & VIO_NEEDS_RESET, 0);
}

// With a full socket when it ends: what waits is given back.
static void test_peer_ends_unread(void **state)
{
	struct fixture *f = *state;
	start(f);
	for (unsigned i = 0; i < 30; i++)
		guest_sends(f, 60000, 1);
	t_run_ms(&f->vm, 10);
	close(MV_TAKE_FD(f->peer));
	for (unsigned i = 0; i < 30; i++)
		expect_tx_done(f);
	assert_false(link_up(f));
}

static void test_pause_and_link(void **state)
{
	struct fixture *f = *state;
	start(f);
	vio_quiesce(f->d);
	close(MV_TAKE_FD(f->peer));
	t_run_ms(&f->vm, 10);
	assert_true(link_up(f)); // a guest that stands still is told nothing
	t_irqs(f->d);
	vio_unquiesce(f->d);
	assert_false(link_up(f));
	assert_true(t_irqs(f->d) >= 1);
	// A clone of it has a link, and is told.
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	vio_free(f->d);
	f->d = t_net_new(&f->vm, 0, &f->peer);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	uint32_t generation = f->d->s.config_generation;
	vio_unquiesce(f->d);
	assert_true(link_up(f));
	assert_true(f->d->s.config_generation != generation);
	assert_true(t_irqs(f->d) >= 1);
}

static void test_snapshot_in_mid_frame(void **state)
{
	struct fixture *f = *state;
	start(f);
	for (unsigned i = 0; i < 8; i++)
		add_rx(f);
	t_kick(f->d, RX);
	// Half a frame has come; half of one has gone, and more wait.
	size_t n = make(f->scratch, 500, 1);
	uint8_t in[LENGTH + 500];
	memcpy(in, f->scratch, n);
	peer_sends(f, in, 300);
	t_run_ms(&f->vm, 5);
	for (unsigned i = 0; i < 8; i++) // the same buffer, so the same frame
		guest_sends(f, 60000, 2);
	t_run_ms(&f->vm, 5);
	unsigned done = 0;
	while (t_used(&f->drv[TX], NULL, NULL))
		done++;
	assert_true(done < 8);

	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	uint16_t rx_used = f->drv[RX].used->idx.raw, tx_used = f->drv[TX].used->idx.raw;
	peer_sends(f, in + 300, n - 300);
	expect_stream(f, f->peer, 60000, 2); // the socket has room again: the rest goes, no new one
	t_run_ms(&f->vm, 10);
	assert_int_equal(f->drv[RX].used->idx.raw, rx_used);
	assert_int_equal(f->drv[TX].used->idx.raw, tx_used);

	// The clone, on the memory as it is now: its first frame is its announcement, then come whole ones.
	int peer = -1;
	struct vio_dev *clone = t_net_new(&f->vm, 0, &peer);
	assert_int_equal(vio_load(clone, saved.p, saved.len, NULL), 0);
	vio_unquiesce(clone);
	uint8_t rarp[LENGTH + 60];
	t_run_ms(&f->vm, 5);
	assert_int_equal(recv(peer, rarp, sizeof rarp, 0), sizeof rarp);
	static const uint8_t source[6] = { 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b }; // by byte_of()
	assert_int_equal(rarp[3], 60);
	assert_memory_equal(rarp + LENGTH + 6, source, 6);
	assert_int_equal(rarp[LENGTH + 12] << 8 | rarp[LENGTH + 13], 0x8035);
	for (unsigned i = done; i < 8; i++)
		expect_stream(f, peer, 60000, 2);
	t_run_ms(&f->vm, 5);
	assert_int_equal(recv(peer, rarp, 1, 0), -1);
	n = make(f->scratch, 200, 5);
	assert_int_equal(send(peer, f->scratch, n, 0), n);
	expect_rx(f, &f->drv[RX], 200, 5);
	vio_free(clone);
	close(peer);
}

// The VM that the snapshot was taken of loses nothing.
static void test_goes_on_in_mid_frame(void **state)
{
	struct fixture *f = *state;
	start(f);
	add_rx(f);
	t_kick(f->d, RX);
	size_t n = make(f->scratch, 500, 1);
	uint8_t in[LENGTH + 500];
	memcpy(in, f->scratch, n);
	peer_sends(f, in, 2);
	for (unsigned i = 0; i < 8; i++)
		guest_sends(f, 60000, 2);
	t_run_ms(&f->vm, 5);
	vio_quiesce(f->d);
	t_run_ms(&f->vm, 5);
	vio_unquiesce(f->d);
	peer_sends(f, in + 2, n - 2);
	expect_rx(f, &f->drv[RX], 500, 1);
	for (unsigned i = 0; i < 8; i++)
		expect_stream(f, f->peer, 60000, 2);
	for (unsigned i = 0; i < 8; i++)
		expect_tx_done(f);
}

static void test_state_of_a_tap(void **state)
{
	struct fixture *f = *state;
	start(f);
	vio_quiesce(f->d);
	f->d->s.features_acked |= NET_F_CSUM | NET_F_HOST_TSO4;
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	struct mv_err err = { 0 };
	int peer = -1;
	struct vio_dev *d = t_net_new(&f->vm, 0, &peer);
	assert_int_equal(vio_load(d, saved.p, saved.len, &err), -EINVAL);
	assert_message(err, "network eth0: the guest uses features 0x801 ");
	assert_message(err, "give the clone a tap");
	vio_free(d);
	close(peer);
}

// Without device state, as saved before there was any.
static void test_old_state(void **state)
{
	struct fixture *f = *state;
	start(f);
	vio_quiesce(f->d);
	struct vio_ops old = *f->d->ops;
	const struct vio_ops *ops = f->d->ops;
	old.state = NULL;
	f->d->ops = &old;
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	f->d->ops = ops;
	int peer = -1;
	struct vio_dev *d = t_net_new(&f->vm, 0, &peer);
	assert_int_equal(vio_load(d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(d);
	t_run_ms(&f->vm, 5);
	uint8_t byte;
	assert_int_equal(recv(peer, &byte, 1, 0), -1); // no MAC known: nothing to announce
	vio_free(d);
	close(peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_new, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_every_split, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_large, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_hostile_lengths, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_transmit, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_loopback, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_peer_does_not_read, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_guest_does_not_read, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_peer_ends, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_peer_ends_unread, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_pause_and_link, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_snapshot_in_mid_frame, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_goes_on_in_mid_frame, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_state_of_a_tap, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_old_state, set_up, t_net_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
