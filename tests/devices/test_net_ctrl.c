// SPDX-License-Identifier: Apache-2.0
// The control queue and the configuration space; what a tap does about it is in test_net.c.
#include <arpa/inet.h>
#include <sys/socket.h>

#include "tests/devices/t_net.h"

#include "microvm/base/util.h"

enum { RX, TX, CTRL, N_QUEUES, N = 64, OK = 0, ERR = 1, CONFIG = 0x100, STATUS_AT = CONFIG + 6 };
enum { DATA_MAX = 4096, UP = 1, ANNOUNCE = 2 };
#define FEATURES                                                                                             \
	(VIO_FEATURES | NET_F_STATUS | NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_CTRL_MAC_ADDR |                 \
	 NET_F_GUEST_ANNOUNCE | NET_F_MTU | NET_F_SPEED_DUPLEX)

struct fixture {
	T_NET_FIELDS;
	struct t_queue drv[N_QUEUES];
	uint64_t gpa;
};

static void start(struct fixture *f, uint64_t features)
{
	for (unsigned i = 0; i < N_QUEUES; i++)
		t_queue_init(&f->drv[i], &f->vm, N);
	t_start(f->d, features, f->drv, N_QUEUES);
}

static int set_up(void **state)
{
	struct fixture *f = t_net_set_up(sizeof *f);
	*state = f;
	f->gpa = t_alloc(&f->vm, DATA_MAX + 16, 4096);
	start(f, FEATURES);
	return 0;
}

static struct vio_net *net(struct fixture *f) { return MV_CONTAINER(f->d, struct vio_net, dev); }

static unsigned status(struct vio_dev *d)
{
	uint8_t v[2];
	vio_mmio_read(d, STATUS_AT, v, 2);
	return v[0];
}

static unsigned ask(struct fixture *f, unsigned class, unsigned command, const void *data, uint32_t len)
{
	uint8_t *p = t_ptr(&f->vm, f->gpa, DATA_MAX + 16);
	const uint64_t answer = f->gpa + DATA_MAX + 8;
	p[0] = (uint8_t) class;
	p[1] = (uint8_t)command;
	if (len)
		memcpy(p + 2, data, len);
	p[DATA_MAX + 8] = 0xee;
	uint32_t written;
	t_add(&f->drv[CTRL],
	      (struct t_buf[]){ { f->gpa, 2, false }, { f->gpa + 2, len, false }, { answer, 1, true } }, 3);
	t_kick(f->d, CTRL);
	assert_true(t_used(&f->drv[CTRL], NULL, &written));
	assert_int_equal(written, 1);
	return p[DATA_MAX + 8];
}

static void test_config(void **state)
{
	struct fixture *f = *state;
	uint8_t c[17];
	static const uint8_t want[] = { 2, 1, 2, 3, 4, 5, UP, 0, 1, 0, 0xdc, 5, 0x10, 0x27, 0, 0, 1 };
	for (unsigned i = 0; i < sizeof c; i++)
		vio_mmio_read(f->d, CONFIG + i, &c[i], 1);
	assert_memory_equal(c, want, sizeof want);
	assert_false(f->d->features_offered & (NET_F_MQ | NET_F_CTRL_GUEST_OFFLOADS));
	int peer;
	struct vio_dev *d = t_net_new(&f->vm, 9000, &peer);
	vio_mmio_read(d, CONFIG + 10, c, 2);
	assert_int_equal(c[0] | c[1] << 8, 9000);
	vio_free(d);
	close(peer);
}

static void test_modes(void **state)
{
	struct fixture *f = *state;
	const uint8_t bytes[] = { 0, 1, 2 };
	struct net_state *s = &net(f)->state;
	assert_int_equal(s->mode, 0);
	assert_int_equal(ask(f, 0, 0, &bytes[1], 1), OK);
	assert_int_equal(s->mode, NET_MODE_PROMISC | NET_MODE_FILTER);
	assert_int_equal(ask(f, 0, 1, &bytes[1], 1), OK);
	assert_int_equal(ask(f, 0, 0, &bytes[0], 1), OK);
	assert_int_equal(s->mode, NET_MODE_ALLMULTI | NET_MODE_FILTER);
	assert_int_equal(ask(f, 0, 0, &bytes[2], 1), ERR); // neither on nor off
	assert_int_equal(ask(f, 0, 0, bytes, 0), ERR);
	assert_int_equal(ask(f, 0, 0, bytes, 2), ERR);
	assert_int_equal(ask(f, 0, 2, bytes, 1), ERR); // CTRL_RX_EXTRA is not offered
	assert_int_equal(ask(f, 2, 0, bytes, 2), ERR); // nor VLAN filters
	assert_int_equal(ask(f, 4, 0, "\1", 2), ERR);  // nor several queues
	assert_int_equal(ask(f, 5, 0, "\0\0\0\0\0\0\0", 8), ERR);
	assert_int_equal(ask(f, 77, 0, bytes, 1), ERR);
	assert_int_equal(s->mode, NET_MODE_ALLMULTI | NET_MODE_FILTER);
	start(f, VIO_FEATURES | NET_F_CTRL_VQ); // a driver that knows none of it
	assert_int_equal(s->mode, 0);
	assert_int_equal(ask(f, 0, 0, &bytes[1], 1), ERR);
	assert_int_equal(ask(f, 1, 0, "\0\0\0\0\0\0\0", 8), ERR);
	assert_int_equal(ask(f, 1, 1, t_mac, 6), ERR);
	assert_int_equal(ask(f, 3, 0, NULL, 0), ERR);
	assert_int_equal(s->mode, 0);
}

static uint32_t table(uint8_t *p, uint32_t n_uni, uint32_t n_multi)
{
	uint32_t at = 0;
	for (int list = 0; list < 2; list++) {
		uint32_t n = list ? n_multi : n_uni;
		memcpy(p + at, &n, 4); // little-endian, as this test's host
		at += 4;
		for (uint32_t i = 0; i < n; i++, at += 6)
			memcpy(p + at, (uint8_t[]){ list ? 3 : 2, 9, 9, 9, (uint8_t)(i >> 8), (uint8_t)i },
			       6);
	}
	return at;
}

static void test_mac_table(void **state)
{
	struct fixture *f = *state;
	struct net_state *s = &net(f)->state;
	uint8_t t[DATA_MAX];
	assert_int_equal(ask(f, 1, 0, t, table(t, 2, 3)), OK);
	assert_int_equal(s->macs_bytes, 30);
	assert_memory_equal(s->macs, t + 4, 12);
	assert_memory_equal(s->macs + 12, t + 20, 18);
	assert_int_equal(ask(f, 1, 0, t, table(t, 500, 1)), OK); // too many: everything is received
	assert_true(s->mode & NET_MODE_ALL);
	assert_int_equal(ask(f, 1, 0, t, table(t, 10, 10)), OK);
	assert_false(s->mode & NET_MODE_ALL);
	assert_int_equal(s->macs_bytes, 120);
	// Lists that are not there.
	for (uint32_t cut = 0; cut < 32; cut++)
		assert_int_equal(ask(f, 1, 0, t, table(t, 2, 2) - 1 - cut), ERR);
	assert_int_equal(ask(f, 1, 0, t, table(t, 1, 1) + 1), ERR);
	memset(t, 0xff, 8);
	assert_int_equal(ask(f, 1, 0, t, 200), ERR);
	assert_int_equal(s->macs_bytes, 120);
	assert_int_equal(ask(f, 1, 0, t, table(t, 0, 0)), OK);
	assert_int_equal(s->macs_bytes, 0);
}

static void test_mac(void **state)
{
	struct fixture *f = *state;
	static const uint8_t other[6] = { 2, 7, 7, 7, 7, 7 }, multicast[6] = { 1, 0, 0, 0, 0, 1 };
	uint8_t got[6];
	assert_memory_equal(net(f)->state.mac, t_mac, 6);
	assert_int_equal(ask(f, 1, 1, multicast, 6), ERR);
	assert_int_equal(ask(f, 1, 1, other, 5), ERR);
	assert_int_equal(ask(f, 1, 1, other, 6), OK);
	for (unsigned i = 0; i < 6; i++)
		vio_mmio_read(f->d, CONFIG + i, &got[i], 1);
	assert_memory_equal(got, other, 6);
	assert_memory_equal(net(f)->state.mac, other, 6);
	t_set(f->d, 0x70, 0);
	vio_mmio_read(f->d, CONFIG + 1, got, 1);
	assert_int_equal(got[0], t_mac[1]);
}

static void test_announce(void **state)
{
	struct fixture *f = *state;
	uint8_t t[64];
	assert_int_equal(ask(f, 1, 0, t, table(t, 1, 1)), OK);
	assert_int_equal(ask(f, 0, 1, "\1", 1), OK);
	assert_int_equal(status(f->d), UP);
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	vio_unquiesce(f->d);
	assert_int_equal(status(f->d), UP); // only who was restored is somewhere else
	vio_free(f->d);
	close(f->peer);
	f->d = t_net_new(&f->vm, 0, &f->peer);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	t_irqs(f->d);
	uint32_t generation = f->d->s.config_generation;
	vio_unquiesce(f->d);
	assert_int_equal(status(f->d), UP | ANNOUNCE);
	assert_true(f->d->s.config_generation != generation);
	assert_true(t_irqs(f->d) >= 1 && (t_get(f->d, 0x60) & VIO_ISR_CONFIG));
	assert_int_equal(net(f)->state.mode, NET_MODE_ALLMULTI | NET_MODE_FILTER);
	assert_int_equal(net(f)->state.macs_bytes, 12);
	vio_quiesce(f->d); // a pause is no answer
	vio_unquiesce(f->d);
	assert_int_equal(status(f->d), UP | ANNOUNCE);
	assert_int_equal(ask(f, 3, 0, NULL, 0), OK);
	assert_int_equal(status(f->d), UP);
	assert_int_equal(ask(f, 3, 1, NULL, 0), ERR);
	// A guest that does not know how is not asked.
	start(f, VIO_FEATURES | NET_F_STATUS | NET_F_CTRL_VQ);
	vio_quiesce(f->d);
	MV_BUF plain = { 0 };
	vio_save(f->d, &plain);
	assert_int_equal(vio_load(f->d, plain.p, plain.len, NULL), 0);
	vio_unquiesce(f->d);
	assert_int_equal(status(f->d), UP);
}

static void test_link(void **state)
{
	struct fixture *f = *state;
	const uint64_t rx = t_alloc(&f->vm, 2048, 8);
	static const uint8_t frame[4 + 60] = { 0, 0, 0, 60 };
	uint8_t got[4 + 60];
	t_add(&f->drv[RX], (struct t_buf[]){ { rx, 2048, true } }, 1);
	t_kick(f->d, RX);
	t_irqs(f->d);
	vio_net_set_link(f->d, false);
	assert_int_equal(status(f->d), 0);
	assert_int_equal(t_irqs(f->d), 1);
	assert_true(t_get(f->d, 0x60) & VIO_ISR_CONFIG);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(send(f->peer, frame, sizeof frame, 0), sizeof frame);
	t_run_ms(&f->vm, 5);
	assert_false(t_has_used(&f->drv[RX]));
	t_add(&f->drv[TX], (struct t_buf[]){ { rx + 512, 12 + 60, false } }, 1);
	t_kick(f->d, TX);
	assert_true(t_used(&f->drv[TX], NULL, NULL)); // dropped, not kept
	assert_int_equal(recv(f->peer, got, sizeof got, 0), -1);
	assert_int_equal(net(f)->pair[0].counts.dropped, 6);
	t_irqs(f->d);
	vio_net_set_link(f->d, true);
	assert_int_equal(status(f->d), UP);
	assert_int_equal(t_irqs(f->d), 1);
	assert_int_equal(send(f->peer, frame, sizeof frame, 0), sizeof frame);
	t_run_until(&f->vm, t_has_used, &f->drv[RX]);
	t_add(&f->drv[TX], (struct t_buf[]){ { rx + 512, 12 + 60, false } }, 1);
	t_kick(f->d, TX);
	assert_int_equal(recv(f->peer, got, sizeof got, 0), sizeof got);
	// In a pause the guest is told nothing; afterwards it is.
	vio_quiesce(f->d);
	vio_net_set_link(f->d, false);
	assert_int_equal(status(f->d), UP);
	vio_unquiesce(f->d);
	assert_int_equal(status(f->d), 0);
}

static void test_malformed(void **state)
{
	struct fixture *f = *state;
	const struct t_buf no_answer[] = { { f->gpa, 3, false } }, empty[] = { { f->gpa, 1, true } },
			   one_byte[] = { { f->gpa, 1, false }, { f->gpa + 64, 1, true } };
	uint8_t *p = t_ptr(&f->vm, f->gpa, 64 + 1);
	t_add(&f->drv[CTRL], empty, 1);
	t_add(&f->drv[CTRL], one_byte, 2);
	t_kick(f->d, CTRL);
	assert_true(t_used(&f->drv[CTRL], NULL, NULL) && p[0] == ERR);
	assert_true(t_used(&f->drv[CTRL], NULL, NULL) && p[64] == ERR);
	t_add(&f->drv[CTRL], no_answer, 1);
	t_kick(f->d, CTRL);
	assert_true(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
	assert_false(t_has_used(&f->drv[CTRL]));
	// Any bytes.
	start(f, FEATURES);
	uint64_t seed = 9;
	uint8_t data[64];
	unsigned good = 0;
	for (unsigned i = 0; i < 20000; i++) {
		for (unsigned k = 0; k < sizeof data; k++)
			data[k] = (uint8_t)(t_rand(&seed) % (k % 3 ? 256 : 3));
		uint64_t r = t_rand(&seed);
		good += ask(f, (unsigned)(r % 7), (unsigned)(r / 7 % 3), data,
			    (uint32_t)(r / 21 % sizeof data)) == OK;
	}
	assert_true(good > 50);
	assert_false(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
	// More than a turn's worth goes on by itself.
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < N / 2; i++)
			t_add(&f->drv[CTRL], one_byte, 2);
		vio_again(f->d, CTRL);
		for (unsigned i = 0; i < N / 2; i++) {
			t_run_until(&f->vm, t_has_used, &f->drv[CTRL]);
			assert_true(t_used(&f->drv[CTRL], NULL, NULL));
		}
	}
	// A driver without the queue's feature is not answered.
	start(f, VIO_FEATURES);
	t_add(&f->drv[CTRL], one_byte, 2);
	t_kick(f->d, CTRL);
	assert_false(t_has_used(&f->drv[CTRL]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_config, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_modes, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_mac_table, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_mac, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_announce, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_link, set_up, t_net_tear_down),
		cmocka_unit_test_setup_teardown(test_malformed, set_up, t_net_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
