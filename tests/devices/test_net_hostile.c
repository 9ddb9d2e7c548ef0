// SPDX-License-Identifier: Apache-2.0
// A hostile driver of virtio-net and virtio-vsock: whatever it does, its device stops until a reset or
// goes on, the process lives, and after a reset everything works. Meant for SAN=asan, too.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/devices/t_net.h"

#include "devices/vsock.h"
#include "microvm/base/util.h"

enum { RX, TX, CTRL, N_QUEUES, N = 64, FRAME = 60, CID = 3 };
#define NET_FEATURES (VIO_FEATURES | NET_F_MRG_RXBUF | NET_F_CTRL_VQ | NET_F_CTRL_RX)

struct fixture {
	T_NET_FIELDS;
	struct t_queue q[N_QUEUES];
	uint64_t features;
	uint64_t gpa;
};

static void start(struct fixture *f)
{
	for (unsigned i = 0; i < N_QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, N);
	t_start(f->d, f->features, f->q, N_QUEUES);
}

static int set_up(void **state)
{
	struct fixture *f = t_net_set_up(sizeof *f);
	*state = f;
	f->gpa = t_alloc(&f->vm, 1 << 20, 4096);
	f->features = NET_FEATURES;
	start(f);
	return 0;
}

static int set_up_vsock(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	*state = f;
	t_vm_init(&f->vm);
	f->gpa = t_alloc(&f->vm, 1 << 20, 4096);
	f->peer = -1;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a.sun_family), 0); // an abstract name
	assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(vio_vsock_new(&f->vm.mem, &f->vm.loop, CID, fd, "/nowhere", &f->d, NULL), 0);
	f->features = VIO_FEATURES | 1;
	start(f);
	return 0;
}

// A frame for the guest; not when too many wait already.
static void peer_sends(struct fixture *f)
{
	const uint8_t frame[4 + FRAME] = { 0, 0, 0, FRAME };
	if (f->peer >= 0)
		assert_int_equal(send(f->peer, frame, sizeof frame, MSG_NOSIGNAL), sizeof frame);
}

static bool stopped(struct fixture *f) { return t_get(f->d, 0x70) & VIO_NEEDS_RESET; }

static void empty(int peer)
{
	uint8_t sink[65536];
	while (recv(peer, sink, sizeof sink, 0) > 0)
		;
}

// After a reset the device does its work.
static void expect_sane(struct fixture *f)
{
	start(f);
	assert_false(stopped(f));
	if (f->peer < 0) { // vsock: a packet to nobody is answered with a reset
		struct vsock_header h = { .src_cid = le64_make(CID),
					  .dst_cid = le64_make(2),
					  .type = le16_make(1),
					  .op = le16_make(OP_RW) };
		memcpy(t_ptr(&f->vm, f->gpa, sizeof h), &h, sizeof h);
		t_add(&f->q[RX], (struct t_buf[]){ { f->gpa + 4096, 4096, true } }, 1);
		t_add(&f->q[TX], (struct t_buf[]){ { f->gpa, sizeof h, false } }, 1);
		t_kick(f->d, TX);
		assert_true(t_used(&f->q[TX], NULL, NULL) && t_used(&f->q[RX], NULL, NULL));
		return;
	}
	unsigned room = 0;
	do { // what came for the driver before
		for (; room < 32; room++)
			t_add(&f->q[RX], (struct t_buf[]){ { f->gpa + 4096, 4096, true } }, 1);
		t_kick(f->d, RX);
		t_run_ms(&f->vm, 0);
		while (t_used(&f->q[RX], NULL, NULL))
			room--;
	} while (!room);
	peer_sends(f);
	uint32_t len;
	t_run_until(&f->vm, t_has_used, &f->q[RX]);
	assert_true(t_used(&f->q[RX], NULL, &len) && len == NET_HEADER_BYTES + FRAME);
	t_add(&f->q[TX], (struct t_buf[]){ { f->gpa + 8192, NET_HEADER_BYTES + FRAME, false } }, 1);
	memset(t_ptr(&f->vm, f->gpa + 8192, 100), 0, 100);
	t_kick(f->d, TX);
	empty(f->peer); // there may have been no room
	t_run_until(&f->vm, t_has_used, &f->q[TX]);
	assert_true(t_used(&f->q[TX], NULL, NULL));
	empty(f->peer);
}

// ---- descriptors that no driver makes

struct bad {
	const char *what;
	struct {
		uint64_t gpa;
		uint32_t len;
		unsigned flags, next;
	} d[3];
	uint16_t head;
	bool must_stop; // on every queue; else it may be ignored
};

#define INSIDE 0x100000u
static const struct bad bads[] = {
	{ "a loop", { { INSIDE, 16, VQ_DESC_NEXT, 0 } }, 0, true },
	{ "a loop of two", { { INSIDE, 16, VQ_DESC_NEXT, 1 }, { INSIDE, 16, VQ_DESC_NEXT, 0 } }, 0, true },
	{ "a loop that can be written", { { INSIDE, 16, VQ_DESC_NEXT | VQ_DESC_WRITE, 0 } }, 0, true },
	{ "next out of range", { { INSIDE, 16, VQ_DESC_NEXT, N } }, 0, true },
	{ "head out of range", { { INSIDE, 16, 0, 0 } }, N, true },
	{ "far outside", { { 1ULL << 62, 64, 0, 0 } }, 0, true },
	{ "around the end", { { UINT64_MAX - 8, 64, 0, 0 } }, 0, true },
	{ "over the end of memory", { { T_LOW_BYTES - 8, 64, VQ_DESC_WRITE, 0 } }, 0, true },
	{ "in the hole", { { T_LOW_BYTES, 64, 0, 0 } }, 0, true },
	{ "huge", { { INSIDE, UINT32_MAX, VQ_DESC_WRITE, 0 } }, 0, true },
	{ "4 GiB in all", { { INSIDE, 1u << 20, VQ_DESC_NEXT, 1 }, { INSIDE, UINT32_MAX, 0, 0 } }, 0, true },
	{ "readable after writable",
	  { { INSIDE, 64, VQ_DESC_WRITE | VQ_DESC_NEXT, 1 }, { INSIDE, 64, 0, 0 } },
	  0,
	  true },
	{ "indirect without entries", { { INSIDE, 0, VQ_DESC_INDIRECT, 0 } }, 0, true },
	{ "indirect and a half", { { INSIDE, 24, VQ_DESC_INDIRECT, 0 } }, 0, true },
	{ "indirect with next", { { INSIDE, 16, VQ_DESC_INDIRECT | VQ_DESC_NEXT, 1 } }, 0, true },
	{ "indirect outside", { { T_LOW_BYTES - 8, 16, VQ_DESC_INDIRECT, 0 } }, 0, true },
	{ "indirect and huge", { { INSIDE, 0xfffffff0, VQ_DESC_INDIRECT, 0 } }, 0, true },
	{ "nothing at all", { { INSIDE, 0, 0, 0 } }, 0, false },
	{ "nothing at all, to be written", { { INSIDE, 0, VQ_DESC_WRITE, 0 } }, 0, false },
	{ "one byte", { { INSIDE, 1, 0, 0 } }, 0, false },
	{ "a byte to be written", { { INSIDE, 1, VQ_DESC_WRITE, 0 } }, 0, false },
	{ "less than a header", { { INSIDE, 11, 0, 0 } }, 0, false },
	{ "a header, no frame", { { INSIDE, 12, 0, 0 } }, 0, false },
	{ "to be written, where it is read", { { INSIDE, 2000, VQ_DESC_WRITE, 0 } }, 0, false },
	{ "to be read, where it is written", { { INSIDE, 2000, 0, 0 } }, 0, false },
	{ "larger than any frame", { { INSIDE, 4 << 20, 0, 0 } }, 0, false },
};

static void test_descriptors(void **state)
{
	struct fixture *f = *state;
	for (unsigned q = 0; q < N_QUEUES; q++)
		for (unsigned i = 0; i < MV_ARRAY_LEN(bads); i++) {
			const struct bad *b = &bads[i];
			start(f);
			for (unsigned k = 0; k < 3; k++)
				t_desc(&f->q[q].desc[k], b->d[k].gpa, b->d[k].len, b->d[k].flags,
				       (uint16_t)b->d[k].next);
			t_publish(&f->q[q], b->head);
			if (q == RX)
				peer_sends(f);
			t_kick(f->d, q);
			t_run_ms(&f->vm, 0);
			// vsock reads its receive and event queues only when it has something to say.
			if (b->must_stop && (f->peer >= 0 || q == TX) && !stopped(f))
				fail_msg("queue %u: %s", q, b->what);
			vio_quiesce(f->d); // as it is
			MV_BUF saved = { 0 };
			vio_save(f->d, &saved);
			assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
			vio_unquiesce(f->d);
			expect_sane(f);
		}
}

// An index that jumps: more buffers than the queue has.
static void test_index_jumps(void **state)
{
	struct fixture *f = *state;
	static const uint16_t jumps[] = { N + 1, 2 * N, 0x7fff, 0x8000, 0xffff };
	for (unsigned q = 0; q < N_QUEUES; q++)
		for (unsigned i = 0; i < MV_ARRAY_LEN(jumps); i++) {
			start(f);
			f->q[q].avail->idx = le16_make(jumps[i]);
			if (q == RX)
				peer_sends(f);
			t_kick(f->d, q);
			t_run_ms(&f->vm, 0);
			assert_true(stopped(f) || (f->peer < 0 && q != TX));
			expect_sane(f);
		}
}

// Buffers over the rings themselves, over each other, and the same one many times: the driver's
// own loss, as long as nothing else is touched.
static void test_overlaps(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 11;
	for (unsigned round = 0; round < 400; round++) {
		start(f);
		for (unsigned i = 0; i < N; i++) {
			const uint64_t rings[] = { f->q[RX].desc_gpa,
						   f->q[RX].driver_gpa,
						   f->q[RX].device_gpa,
						   f->q[TX].desc_gpa,
						   f->gpa,
						   f->gpa + 7 };
			uint64_t r = t_rand(&seed);
			t_add(&f->q[i % 2 ? RX : TX],
			      (struct t_buf[]){ { rings[r % 6], 12 + (uint32_t)(r >> 8) % 3000, i % 2 } }, 1);
		}
		for (unsigned i = 0; i < 8; i++)
			peer_sends(f);
		t_kick(f->d, RX);
		t_kick(f->d, TX);
		t_run_ms(&f->vm, 0);
		if (round % 20 == 0)
			expect_sane(f);
	}
	expect_sane(f);
}

// A frame's number of buffers is ours to say: what the driver writes there beforehand, or posts twice,
// changes nothing.
static void test_num_buffers(void **state)
{
	struct fixture *f = *state;
	for (unsigned i = 0; i < N; i++) // the same head, again and again
		t_publish(&f->q[RX], 0);
	t_desc(&f->q[RX].desc[0], f->gpa, 20, VQ_DESC_WRITE, 0);
	memset(t_ptr(&f->vm, f->gpa, 64), 0xff, 64);
	peer_sends(f);
	t_kick(f->d, RX);
	for (unsigned i = 0; i < 4; i++) { // 72 bytes, 20 each
		uint16_t head;
		uint32_t len;
		t_run_until(&f->vm, t_has_used, &f->q[RX]);
		assert_true(t_used(&f->q[RX], &head, &len) && head == 0);
		assert_int_equal(len, i < 3 ? 20 : 12);
	}
	assert_false(t_has_used(&f->q[RX]));
	expect_sane(f);
}

// A reset, a pause or a restore at any moment, with frames under way and buffers taken in advance.
static void test_reset_at_any_moment(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 23;
	for (unsigned round = 0; round < 3000; round++) {
		uint64_t r = t_rand(&seed);
		if (stopped(f) || !(t_get(f->d, 0x70) & VIO_DRIVER_OK) || r % 7 == 0)
			start(f);
		for (unsigned i = 0; i < r / 8 % 6; i++)
			t_add(&f->q[RX],
			      (struct t_buf[]){ { f->gpa + i * 4096, 12 + (uint32_t)(r >> 12) % 40, true } },
			      1);
		t_add(&f->q[TX], (struct t_buf[]){ { f->gpa + 65536, 72, false } }, 1);
		peer_sends(f);
		t_kick(f->d, RX);
		t_kick(f->d, TX);
		switch (r / 64 % 6) {
		case 0: t_set(f->d, 0x70, 0); break;
		case 1:
			vio_quiesce(f->d);
			vio_unquiesce(f->d);
			break;
		case 2: {
			MV_BUF saved = { 0 };
			vio_quiesce(f->d);
			vio_save(f->d, &saved);
			assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
			vio_unquiesce(f->d);
			break;
		}
		case 3: // the queues of a device in use are not the driver's to change (section 3.1.1)
			for (uint32_t q = 0; q < N_QUEUES; q++) {
				uint16_t size = f->d->s.queue[q].size;
				t_set(f->d, 0x30, q);
				t_set(f->d, 0x38, 2);
				t_set(f->d, 0x80, 0xdead0000);
				t_set(f->d, 0x44, 0);
				t_set(f->d, 0x44, 1);
				assert_int_equal(f->d->s.queue[q].size, size);
			}
			break;
		case 4: t_set(f->d, 0x70, VIO_ACKNOWLEDGE); break; // no bit is taken back
		default: t_run_ms(&f->vm, 0);
		}
		if (f->peer >= 0)
			empty(f->peer);
	}
	expect_sane(f);
}

// Features that were never offered don't stick, and nothing runs with them.
static void test_features(void **state)
{
	struct fixture *f = *state;
	for (unsigned bit = 0; bit < 64; bit++) {
		uint64_t features = f->features | 1ULL << bit;
		t_set(f->d, 0x70, 0);
		t_set(f->d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER);
		for (uint32_t half = 0; half < 2; half++) {
			t_set(f->d, 0x24, half);
			t_set(f->d, 0x20, (uint32_t)(features >> 32 * half));
		}
		t_set(f->d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK);
		bool offered = !(features & ~f->d->features_offered);
		assert_int_equal(!!(t_get(f->d, 0x70) & VIO_FEATURES_OK), offered);
		t_set(f->d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK | VIO_DRIVER_OK);
		assert_int_equal(!!(t_get(f->d, 0x70) & VIO_DRIVER_OK), offered);
		for (unsigned q = 0; q < 20; q++)
			t_kick(f->d, q); // also of queues that are not there
	}
	expect_sane(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_descriptors, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_index_jumps, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_overlaps, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_num_buffers, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_reset_at_any_moment, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_features, set_up, t_net_tear_down),
		{ "vsock: test_descriptors", test_descriptors, set_up_vsock, t_net_tear_down, NULL },
		{ "vsock: test_index_jumps", test_index_jumps, set_up_vsock, t_net_tear_down, NULL },
		{ "vsock: test_overlaps", test_overlaps, set_up_vsock, t_net_tear_down, NULL },
		{ "vsock: test_reset_at_any_moment", test_reset_at_any_moment, set_up_vsock, t_net_tear_down,
		  NULL },
		{ "vsock: test_features", test_features, set_up_vsock, t_net_tear_down, NULL },
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
