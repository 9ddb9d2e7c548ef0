// SPDX-License-Identifier: Apache-2.0
// Two pairs of queues, the second with a thread, both busy while the device is paused, reset, limited and
// so on. In place of a tap each pair has a backend of this test: a socket of whole frames, with a peer that
// sends and receives as fast as it can. Frames are numbered, so that none comes twice or too late.
#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "tests/devices/t_net.h"

#include "microvm/base/util.h"

enum { PAIRS = 2, CTRL = 2 * PAIRS, QUEUES, N = 64, BUFFER = 2048, TAG = 'x' };
enum { FRAME_AT = NET_HEADER_BYTES, NUMBER_AT = FRAME_AT + NET_ETH_BYTES };
#define FEATURES (VIO_FEATURES | NET_F_CTRL_VQ | NET_F_MQ | NET_F_MRG_RXBUF | NET_F_STATUS)

struct backend {
	struct net_backend b;
	struct mv_watch watch;
	int fd;
	pthread_t served_by; // atomic
};

struct peer {
	int fd;
	pthread_t thread[2];
	uint32_t received, bad; // atomic
	bool stop;              // atomic
};

struct fixture {
	struct t_vm vm;
	struct vio_dev *d;
	struct t_queue q[QUEUES];
	struct peer peer[PAIRS];
	struct backend *backend[PAIRS];
	uint64_t gpa, ctrl_gpa;
	uint32_t sent[PAIRS], last[PAIRS], got[PAIRS]; // the driver's: numbers of frames; how many came
	uint32_t tx_bytes[PAIRS];
	bool stop; // no new frames
};

static ssize_t receive(struct net_backend *b, const struct iovec *to, unsigned n)
{
	struct backend *e = MV_CONTAINER(b, struct backend, b);
	__atomic_store_n(&e->served_by, pthread_self(), __ATOMIC_RELAXED);
	ssize_t got = readv(e->fd, to, (int)n);
	return got > 0 ? got : -EAGAIN;
}

static int transmit(struct net_backend *b, struct vq_span *frame, uint8_t src_mac[NET_MAC_BYTES])
{
	struct backend *e = MV_CONTAINER(b, struct backend, b);
	(void)src_mac;
	__atomic_store_n(&e->served_by, pthread_self(), __ATOMIC_RELAXED);
	if (writev(e->fd, frame->iov, (int)frame->n) >= 0)
		return 0;
	return errno == EAGAIN ? -EAGAIN : -errno;
}

static void release(struct net_backend *b)
{
	struct backend *e = MV_CONTAINER(b, struct backend, b);
	mv_watch_del(&e->watch);
	close(e->fd);
	free(e);
}

static int enable(struct net_backend *b, bool on)
{
	(void)b;
	(void)on;
	return 0;
}

static void on_event(void *arg, uint32_t events)
{
	struct backend *e = arg;
	if (events & EPOLLOUT)
		e->b.events.writable(e->b.events.arg);
	if (events & EPOLLIN)
		e->b.events.readable(e->b.events.arg);
}

static const struct net_backend_ops ops = {
	.receive = receive, .send = transmit, .enable = enable, .free = release
};

static struct vio_net *net(struct fixture *f) { return MV_CONTAINER(f->d, struct vio_net, dev); }

static void *peer_sends(void *arg)
{
	struct peer *p = arg;
	uint8_t frame[NUMBER_AT + 50] = { 0 };
	for (uint32_t i = 1; !__atomic_load_n(&p->stop, __ATOMIC_RELAXED); i++) {
		memcpy(frame + NUMBER_AT, &i, sizeof i);
		if (send(p->fd, frame, sizeof frame, MSG_NOSIGNAL) < 0)
			break;
	}
	return NULL;
}

static void *peer_receives(void *arg)
{
	struct peer *p = arg;
	uint8_t frame[BUFFER];
	uint32_t last = 0, i;
	while (recv(p->fd, frame, sizeof frame, 0) > 0) {
		memcpy(&i, frame + NUMBER_AT, sizeof i);
		__atomic_fetch_add(&p->bad, i <= last, __ATOMIC_RELAXED);
		__atomic_fetch_add(&p->received, 1, __ATOMIC_RELAXED);
		last = i;
	}
	return NULL;
}

static void new_device(struct fixture *f)
{
	int none[PAIRS] = { -1, -1 };
	const struct vio_net_options o = {
		.name = "eth0", .mac = t_mac, .kind = VIO_NET_TAP, .n_pairs = PAIRS
	};
	assert_int_equal(vio_net_new_with(&f->vm.mem, &f->vm.loop, &o, none, &f->d, NULL), 0);
	for (unsigned i = 0; i < PAIRS; i++) {
		struct net_pair *p = &net(f)->pair[i];
		struct backend *e = calloc(1, sizeof *e);
		int ends[2];
		assert_non_null(e);
		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
		assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
		*e = (struct backend){ .b = { &ops, p->b->events, p->b->features }, .fd = ends[0] };
		p->b->ops->free(p->b);
		p->b = &e->b;
		f->backend[i] = e;
		f->peer[i] = (struct peer){ .fd = ends[1] };
		f->sent[i] = f->last[i] = f->got[i] = 0;
		assert_int_equal(
			mv_watch_add(p->loop, &e->watch, e->fd, EPOLLIN | EPOLLOUT | EPOLLET, on_event, e),
			0);
	}
}

static void start_peers(struct fixture *f)
{
	for (unsigned i = 0; i < PAIRS; i++) {
		struct peer *p = &f->peer[i];
		assert_int_equal(pthread_create(&p->thread[0], NULL, peer_sends, p), 0);
		assert_int_equal(pthread_create(&p->thread[1], NULL, peer_receives, p), 0);
	}
}

static void free_device(struct fixture *f)
{
	vio_free(MV_TAKE(f->d));
	for (unsigned i = 0; i < PAIRS; i++) {
		struct peer *p = &f->peer[i];
		__atomic_store_n(&p->stop, true, __ATOMIC_RELAXED);
		for (unsigned k = 0; k < 2 && p->thread[k]; k++)
			pthread_join(p->thread[k], NULL);
		assert_int_equal(p->bad, 0);
		close(p->fd);
	}
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	assert_non_null(f);
	*state = f;
	t_vm_init(&f->vm);
	f->gpa = t_alloc(&f->vm, 2 * PAIRS * N * BUFFER, 4096);
	f->ctrl_gpa = t_alloc(&f->vm, 64, 8);
	for (unsigned i = 0; i < QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, N);
	f->tx_bytes[0] = f->tx_bytes[1] = NUMBER_AT + 50;
	new_device(f);
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	free_device(f);
	t_vm_fini(&f->vm);
	free(f);
	return 0;
}

// ---- the driver. Descriptor i of a queue always has the same buffer.

static uint8_t *buffer(struct fixture *f, unsigned q, unsigned i, uint64_t *ret_gpa)
{
	*ret_gpa = f->gpa + (q * N + i) * BUFFER;
	return t_ptr(&f->vm, *ret_gpa, BUFFER);
}

static void add_tx(struct fixture *f, unsigned pair)
{
	struct t_queue *q = &f->q[2 * pair + 1];
	uint64_t at;
	uint8_t *p = buffer(f, 2 * pair + 1, q->next_desc % N, &at);
	f->sent[pair]++;
	memset(p, 0, NUMBER_AT);
	memcpy(p + NUMBER_AT, &f->sent[pair], sizeof f->sent[pair]);
	t_add(q, (struct t_buf[]){ { at, f->tx_bytes[pair], false } }, 1);
}

static void ask_pairs(struct fixture *f, struct t_queue *q, unsigned index, uint8_t pairs, unsigned answer)
{
	uint8_t *p = t_ptr(&f->vm, f->ctrl_gpa, 64);
	memcpy(p, (uint8_t[]){ 4, 0, pairs, 0 }, 4);
	p[32] = 0xee;
	t_add(q, (struct t_buf[]){ { f->ctrl_gpa, 4, false }, { f->ctrl_gpa + 32, 1, true } }, 2);
	t_kick(f->d, index);
	assert_true(t_used(q, NULL, NULL));
	assert_int_equal(p[32], answer);
}

static void use_pairs(struct fixture *f, uint8_t pairs) { ask_pairs(f, &f->q[CTRL], CTRL, pairs, 0); }

// All buffers to the device.
static void start_with(struct fixture *f, uint8_t pairs)
{
	for (unsigned i = 0; i < QUEUES; i++) { // the rings stay where they are
		struct t_queue *q = &f->q[i];
		memset(q->used, 0, sizeof *q->used);
		memset(q->avail, 0, sizeof *q->avail);
		q->next_desc = q->avail_idx = q->seen = 0;
	}
	t_start(f->d, FEATURES, f->q, QUEUES);
	for (unsigned pair = 0; pair < PAIRS; pair++)
		for (unsigned i = 0; i < N; i++) {
			uint64_t at;
			buffer(f, 2 * pair, i, &at);
			t_add(&f->q[2 * pair], (struct t_buf[]){ { at, BUFFER, true } }, 1);
			add_tx(f, pair);
		}
	use_pairs(f, pairs);
	for (unsigned i = 0; i < 2 * PAIRS; i++)
		t_kick(f->d, i);
}

static void start(struct fixture *f) { start_with(f, PAIRS); }

// What the device has returned is looked at and given back.
static void turn(struct fixture *f)
{
	uint16_t head;
	uint32_t len, number;
	for (unsigned pair = 0; pair < PAIRS; pair++) {
		struct t_queue *rx = &f->q[2 * pair], *tx = rx + 1;
		bool any[2] = { false, false };
		for (; t_used(rx, &head, &len); any[0] = true) {
			uint64_t at;
			const uint8_t *p = buffer(f, 2 * pair, head, &at);
			assert_int_equal(len, NUMBER_AT + 50);
			memcpy(&number, p + NUMBER_AT, sizeof number);
			assert_true(number > f->last[pair]);
			f->last[pair] = number;
			f->got[pair]++;
			t_publish(rx, head);
		}
		for (; t_used(tx, NULL, NULL) && !f->stop; any[1] = true)
			add_tx(f, pair);
		for (unsigned i = 0; i < 2; i++)
			if (any[i])
				t_event(f->d, 2 * pair + i);
	}
}

struct goal {
	struct fixture *f;
	uint32_t received[PAIRS], got[PAIRS];
};

static bool reached(void *arg)
{
	struct goal *g = arg;
	turn(g->f);
	bool all = true;
	for (unsigned i = 0; i < PAIRS; i++)
		all = all && g->f->got[i] >= g->got[i] &&
		      __atomic_load_n(&g->f->peer[i].received, __ATOMIC_RELAXED) >= g->received[i];
	return all;
}

// Until so many more frames have passed, each way and by each pair.
static void pass(struct fixture *f, const uint32_t frames[PAIRS])
{
	struct goal g = { .f = f };
	for (unsigned i = 0; i < PAIRS; i++) {
		g.got[i] = f->got[i] + frames[i];
		g.received[i] = __atomic_load_n(&f->peer[i].received, __ATOMIC_RELAXED) + frames[i];
	}
	t_run_until(&f->vm, reached, &g);
}
static const uint32_t both[PAIRS] = { 500, 500 }, one[PAIRS] = { 500, 0 };

static unsigned threads(void)
{
	unsigned n = 0;
	char comm[64], path[300];
	DIR *tasks = opendir("/proc/self/task");
	assert_non_null(tasks);
	for (const struct dirent *e; (e = readdir(tasks));) {
		snprintf(path, sizeof path, "/proc/self/task/%s/comm", e->d_name);
		FILE *file = fopen(path, "re");
		n += file && fgets(comm, sizeof comm, file) && !strcmp(comm, "net-queue\n");
		if (file)
			fclose(file);
	}
	closedir(tasks);
	return n;
}

static bool stands_still(struct fixture *f, unsigned first, unsigned last)
{
	uint16_t before[QUEUES];
	bool still = true;
	for (unsigned i = first; i <= last; i++)
		before[i] = __atomic_load_n(&f->q[i].used->idx.raw, __ATOMIC_ACQUIRE);
	t_run_ms(&f->vm, 10);
	for (unsigned i = first; i <= last; i++)
		still = still && before[i] == __atomic_load_n(&f->q[i].used->idx.raw, __ATOMIC_ACQUIRE);
	return still;
}

static pthread_t served_by(struct fixture *f, unsigned pair)
{
	return __atomic_load_n(&f->backend[pair]->served_by, __ATOMIC_RELAXED);
}

static void test_busy(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(threads(), 0);
	start_peers(f);
	start(f);
	assert_int_equal(threads(), 1);
	pass(f, both);
	assert_true(pthread_equal(served_by(f, 0), pthread_self()));
	assert_false(pthread_equal(served_by(f, 1), pthread_self()));
	for (unsigned round = 0; round < 20; round++) {
		vio_quiesce(f->d);
		assert_true(stands_still(f, 0, 3));
		vio_unquiesce(f->d);
		pass(f, both);
		use_pairs(f, 1);
		assert_true(stands_still(f, 2, 3));
		pass(f, one);
		use_pairs(f, 2);
		pass(f, both);
		vio_net_set_link(f->d, false);
		turn(f);
		assert_int_equal(f->q[2].seen, le16_get(f->q[2].used->idx)); // nothing more comes in
		vio_net_set_link(f->d, true);
		pass(f, both);
	}
	assert_int_equal(threads(), 1);
}

// A pause waits for a turn of the thread, however busy that is, and not for its end.
static void test_pause_is_short(void **state)
{
	struct fixture *f = *state;
	uint64_t longest_ns = 0;
	start_peers(f);
	start(f);
	for (unsigned round = 0; round < 50; round++) {
		pass(f, both);
		uint64_t start_ns = mv_now_ns();
		vio_quiesce(f->d);
		uint64_t ns = mv_now_ns() - start_ns;
		longest_ns = ns > longest_ns ? ns : longest_ns;
		vio_unquiesce(f->d);
	}
	print_message("longest: %u us\n", (unsigned)(longest_ns / 1000));
	assert_true(longest_ns < 1000000000u);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;
	uint8_t *memory = t_ptr(&f->vm, f->gpa, 2 * PAIRS * N * BUFFER);
	start_peers(f);
	for (unsigned round = 0; round < 50; round++) {
		start(f);
		pass(f, round % 2 ? both : one);
		t_set(f->d, 0x70, 0);
		memset(memory, TAG, 2 * PAIRS * N * BUFFER);
		t_run_ms(&f->vm, 2);
		for (unsigned i = 0; i < 2 * PAIRS * N * BUFFER; i++)
			if (memory[i] != TAG)
				fail_msg("byte %u was written after the reset", i);
	}
	// A driver that knows one pair only: the place of the second is the control queue's, and this loop's.
	for (unsigned i = 0; i < 3; i++)
		t_queue_init(&f->q[i], &f->vm, N);
	t_start(f->d, FEATURES & ~NET_F_MQ, f->q, 3);
	ask_pairs(f, &f->q[2], 2, 2, 1);
}

static void test_saved(void **state)
{
	struct fixture *f = *state;
	start_peers(f);
	start(f);
	for (unsigned round = 0; round < 10; round++) {
		pass(f, both);
		vio_quiesce(f->d);
		turn(f);
		MV_BUF saved = { 0 };
		vio_save(f->d, &saved);
		free_device(f);
		assert_int_equal(threads(), 0);
		new_device(f);
		for (unsigned i = 0; i < PAIRS; i++) // what is in the queues has its number
			f->sent[i] = f->peer[i].received = N + (round + 1) * 1000000;
		assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
		assert_int_equal(threads(), 0);
		start_peers(f);
		vio_unquiesce(f->d);
		assert_int_equal(threads(), 1);
	}
	pass(f, both);
	// A state that no driver makes: two pairs, though it knows one only.
	vio_quiesce(f->d);
	f->d->s.features_acked &= ~NET_F_MQ;
	MV_BUF odd = { 0 };
	vio_save(f->d, &odd);
	free_device(f);
	new_device(f);
	assert_int_equal(vio_load(f->d, odd.p, odd.len, NULL), 0);
	vio_unquiesce(f->d);
	assert_int_equal(net(f)->state.pairs, 1);
	assert_int_equal(threads(), 0);
}

static bool is_broken(void *arg) { return t_get(arg, 0x70) & VIO_NEEDS_RESET; }

static void test_rules_broken(void **state)
{
	struct fixture *f = *state;
	start_peers(f);
	for (unsigned round = 0; round < 10; round++) {
		const bool send = round % 2;
		const struct t_buf outside = { T_HIGH_GPA + T_HIGH_BYTES, 100, false },
				   small = { f->gpa, NET_HEADER_BYTES - 1, true };
		start(f);
		pass(f, both);
		f->stop = true; // so there is room for one more
		while (!t_has_used(&f->q[send ? 3 : 2]))
			t_run_ms(&f->vm, 1);
		t_add(&f->q[send ? 3 : 2], send ? &outside : &small, 1);
		t_kick(f->d, send ? 3 : 2);
		t_run_until(&f->vm, is_broken, f->d);
		f->stop = false;
		assert_true(stands_still(f, 0, 3));
		t_set(f->d, 0x70, 0);
	}
	start(f);
	pass(f, both);
}

// The stacks of new threads: none can be had, or as usual.
static void set_stacks(bool can)
{
	static size_t usual;
	pthread_attr_t a;
	assert_int_equal(pthread_getattr_default_np(&a), 0);
	if (!usual)
		assert_int_equal(pthread_attr_getstacksize(&a, &usual), 0);
	assert_int_equal(pthread_attr_setstacksize(&a, can ? usual : (size_t)1 << 50), 0);
	assert_int_equal(pthread_setattr_default_np(&a), 0);
	pthread_attr_destroy(&a);
}

static void test_no_thread(void **state)
{
	struct fixture *f = *state;
	start_peers(f);
	start(f);
	pass(f, both);
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	free_device(f);
	new_device(f);
	start_peers(f);
	set_stacks(false);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(f->d);
	assert_true(is_broken(f->d)); // it uses what can't be had
	t_set(f->d, 0x70, 0);
	start_with(f, 1);
	ask_pairs(f, &f->q[CTRL], CTRL, 2, 1);
	pass(f, one);
	assert_int_equal(threads(), 0);
	set_stacks(true);
	use_pairs(f, 2);
	pass(f, both);
}

// Frames that each pair has moved, but for `before`.
static void count(struct fixture *f, bool tx, const uint32_t before[PAIRS], uint32_t ret_n[PAIRS])
{
	vio_exclude(f->d, true);
	for (unsigned i = 0; i < PAIRS; i++) {
		const struct net_counts *c = &net(f)->pair[i].counts;
		ret_n[i] = (uint32_t)(tx ? c->sent : c->received) - before[i];
	}
	vio_exclude(f->d, false);
}

// Both pairs pay from one bucket, and the one with small frames is not ahead of the other.
static void test_limit(void **state)
{
	struct fixture *f = *state;
	const struct vmcfg_rate none = { 0 }, rate = { .bandwidth = { .size = 100000, .refill_ms = 100 } },
				slow = { .ops = { .size = 1, .refill_ms = 3600000 } };
	enum { LARGE = 1500, SMALL = 64 };
	f->tx_bytes[0] = NET_HEADER_BYTES + SMALL;
	f->tx_bytes[1] = NET_HEADER_BYTES + LARGE;
	for (unsigned direction = NET_RX; direction <= NET_TX; direction++) {
		const bool tx = direction == NET_TX;
		if (!tx)
			start_peers(f);
		assert_int_equal(vio_net_set_limits(f->d, tx ? &none : &rate, tx ? &rate : &none, NULL), 0);
		if (!tx)
			start(f);
		uint32_t n[PAIRS];
		uint64_t start_ns = mv_now_ns();
		count(f, tx, (uint32_t[PAIRS]){ 0 }, n);
		while (mv_now_ns() - start_ns < 400000000u) {
			turn(f);
			t_run_ms(&f->vm, 1);
		}
		count(f, tx, n, n);
		double ms = (double)(mv_now_ns() - start_ns) / 1e6;
		double bytes = n[0] * (tx ? SMALL : 64.0) + n[1] * (tx ? LARGE : 64.0);
		print_message("%s: %u and %u frames, %.0f bytes in %.0f ms\n", tx ? "tx" : "rx", n[0], n[1],
			      bytes, ms);
		// A bucket, what flows in, and some frames that are still owed.
		assert_true(bytes <= 1.02 * (100000 + ms * 1000));
		assert_true(bytes >= 100000);
		assert_true(n[0] <= 20 * n[1] && n[1] <= 20 * n[0]); // each has its turn, if not its CPU
	}
	// An hour's wait, until another limit is set.
	assert_int_equal(vio_net_set_limits(f->d, &slow, &slow, NULL), 0);
	for (unsigned i = 0; i < 20; i++) {
		turn(f);
		t_run_ms(&f->vm, 1);
	}
	turn(f);
	assert_true(stands_still(f, 0, 3));
	vio_quiesce(f->d);
	vio_unquiesce(f->d);
	assert_true(stands_still(f, 0, 3));
	assert_int_equal(vio_net_set_limits(f->d, &none, &none, NULL), 0);
	pass(f, both);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_busy, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_pause_is_short, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_reset, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_saved, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_rules_broken, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_thread, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limit, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
