// SPDX-License-Identifier: Apache-2.0
// With a real tap, in a network namespace of our own; skipped where we may not make one.
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tests/devices/t_driver.h"

#include "microvm/base/util.h"

enum { RX, TX, HEADER = 12, FRAME = 64, ETHERTYPE = 0x88b5 /* for experiments */ };

static const uint8_t mac[6] = { 2, 1, 2, 3, 4, 5 };
static const char *no_tap; // why the tests are skipped

struct fixture {
	struct t_vm vm;
	struct t_queue drv[2];
	struct vio_dev *d;
	int packet_fd; // the host's side of the tap
	uint64_t rx_gpa, tx_gpa;
};

static int open_tap(short flags)
{
	struct ifreq ifr = { .ifr_flags = flags };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "t-net%%d");
	if (fd >= 0 && ioctl(fd, TUNSETIFF, &ifr))
		mv_close(&fd);
	return fd;
}

static int enter_namespace(void **state)
{
	(void)state;
	if (unshare(CLONE_NEWNET) && unshare(CLONE_NEWUSER | CLONE_NEWNET))
		no_tap = "no rights to make a network namespace";
	int fd = no_tap ? -1 : open_tap(IFF_TAP | IFF_NO_PI);
	if (!no_tap && fd < 0)
		no_tap = "cannot make a tap";
	mv_close(&fd);
	return 0;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	*state = f;
	if (no_tap)
		return 0;
	t_vm_init(&f->vm);
	t_queue_init(&f->drv[RX], &f->vm, 256);
	t_queue_init(&f->drv[TX], &f->vm, 256);
	int tap = open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	struct ifreq ifr = { 0 };
	assert_int_equal(ioctl(tap, TUNGETIFF, &ifr), 0);
	f->packet_fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(ETHERTYPE));
	assert_int_equal(ioctl(f->packet_fd, SIOCGIFINDEX, &ifr), 0);
	struct sockaddr_ll a = { .sll_family = AF_PACKET,
				 .sll_protocol = htons(ETHERTYPE),
				 .sll_ifindex = ifr.ifr_ifindex };
	ifr.ifr_flags = IFF_UP;
	assert_int_equal(ioctl(f->packet_fd, SIOCSIFFLAGS, &ifr), 0);
	assert_int_equal(bind(f->packet_fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "eth0", mac, VIO_NET_TAP, tap, &f->d, NULL), 0);
	f->rx_gpa = t_alloc(&f->vm, 256 * 2048, 4096);
	f->tx_gpa = t_alloc(&f->vm, 2048, 4096);
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	if (!no_tap) {
		vio_free(f->d);
		close(f->packet_fd);
		t_vm_fini(&f->vm);
	}
	free(f);
	return 0;
}

#define NEED_TAP()                                                                                           \
	do {                                                                                                 \
		if (no_tap) {                                                                                \
			print_message("# SKIP %s\n", no_tap);                                                \
			skip();                                                                              \
		}                                                                                            \
	} while (0)

static void make_frame(uint8_t frame[FRAME], uint8_t tag)
{
	memset(frame, tag, FRAME);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, mac, 6);
	frame[12] = ETHERTYPE >> 8;
	frame[13] = ETHERTYPE & 0xff;
}

static void host_sends(struct fixture *f, uint8_t tag)
{
	uint8_t frame[FRAME];
	make_frame(frame, tag);
	assert_int_equal(send(f->packet_fd, frame, FRAME, 0), FRAME);
}

// Waits for our frame with this tag (the host's own IPv6 chatter is skipped).
static void expect_rx(struct fixture *f, uint8_t tag)
{
	for (;;) {
		uint16_t head;
		uint32_t len;
		t_run_until(&f->vm, t_has_used, &f->drv[RX]);
		assert_true(t_used(&f->drv[RX], &head, &len));
		uint8_t *p = t_ptr(&f->vm, le64_get(f->drv[RX].desc[head].addr), 2048), want[FRAME];
		if (p[HEADER + 12] != ETHERTYPE >> 8 || p[HEADER + 13] != (ETHERTYPE & 0xff))
			continue;
		make_frame(want, tag);
		assert_int_equal(len, HEADER + FRAME);
		assert_memory_equal(p + HEADER, want, FRAME);
		assert_int_equal(p[10] | p[11] << 8, 1); // num_buffers
		return;
	}
}

static void add_rx(struct fixture *f, unsigned i)
{
	t_add(&f->drv[RX], (struct t_buf[]){ { f->rx_gpa + i * 2048, 2048, true } }, 1);
}

static void test_config(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	uint8_t got[6];
	struct vio_dev *d = NULL;
	struct mv_err err = { 0 };
	for (unsigned i = 0; i < 6; i++)
		vio_mmio_read(f->d, 0x100 + i, &got[i], 1);
	assert_memory_equal(got, mac, 6);
	int before = t_count_fds();
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "eth1", mac, VIO_NET_TAP, t_file(), &d, &err),
			 -EINVAL);
	assert_message(err, "network eth1: not a tap");
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "eth1", mac, VIO_NET_TAP,
				     open_tap(IFF_TAP | IFF_NO_PI), &d, &err),
			 -EINVAL);
	assert_null(d);
	assert_int_equal(t_count_fds(), before);
}

static void test_receive(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	host_sends(f, 1); // before the driver is there: waits in the tap
	t_run_ms(&f->vm, 10);
	t_start(f->d, VIO_FEATURES | 3, f->drv, 2);
	t_run_ms(&f->vm, 10); // no buffers: must not spin, must not lose the frame
	for (unsigned i = 0; i < 100; i++)
		add_rx(f, i);
	t_kick(f->d, RX);
	expect_rx(f, 1);
	assert_true(t_irqs(f->d) >= 1);
	for (unsigned i = 0; i < 50; i++)
		host_sends(f, (uint8_t)(10 + i));
	for (unsigned i = 0; i < 50; i++)
		expect_rx(f, (uint8_t)(10 + i));
}

static void test_receive_paused_and_cloned(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	t_start(f->d, VIO_FEATURES | 3, f->drv, 2);
	for (unsigned i = 0; i < 200; i++)
		add_rx(f, i);
	t_kick(f->d, RX);
	vio_quiesce(f->d);
	uint16_t used = f->drv[RX].used->idx.raw;
	host_sends(f, 5);
	t_run_ms(&f->vm, 20);
	assert_int_equal(f->drv[RX].used->idx.raw, used);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	vio_unquiesce(f->d);
	expect_rx(f, 5);
	vio_quiesce(f->d);
	// A second device on a second tap takes the state; its memory is as it was when saved.
	struct vio_dev *d2;
	int tap = open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "eth0", mac, VIO_NET_TAP, tap, &d2, NULL), 0);
	assert_int_equal(vio_load(d2, saved.p, saved.len, NULL), 0);
	vio_unquiesce(d2);
	assert_int_equal(d2->s.status & VIO_NEEDS_RESET, 0);
	vio_free(d2);
}

static void test_transmit(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	uint8_t *p = t_ptr(&f->vm, f->tx_gpa, 2048), want[FRAME], got[256];
	t_start(f->d, VIO_FEATURES | 3, f->drv, 2);
	make_frame(p + HEADER, 0x42);
	make_frame(want, 0x42);
	for (unsigned i = 0; i < 10; i++) {
		struct t_buf whole = { f->tx_gpa, HEADER + FRAME, false },
			     parts[] = { { f->tx_gpa, 5, false },
					 { f->tx_gpa + 5, 20, false },
					 { f->tx_gpa + 25, HEADER + FRAME - 25, false } };
		t_add(&f->drv[TX], i % 2 ? parts : &whole, i % 2 ? 3 : 1);
	}
	t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + 13, false } }, 1); // no frame: dropped
	vio_again(f->d, TX);
	for (unsigned i = 0; i < 11; i++) {
		t_run_until(&f->vm, t_has_used, &f->drv[TX]);
		assert_true(t_used(&f->drv[TX], NULL, NULL));
	}
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(recv(f->packet_fd, got, sizeof got, 0), FRAME);
		assert_memory_equal(got, want, FRAME);
	}
	assert_int_equal(recv(f->packet_fd, got, sizeof got, 0), -1);
	// More than one turn of the loop takes.
	for (unsigned i = 0; i < 200; i++)
		t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + FRAME, false } }, 1);
	vio_again(f->d, TX);
	for (unsigned i = 0; i < 200; i++) {
		t_run_until(&f->vm, t_has_used, &f->drv[TX]);
		assert_true(t_used(&f->drv[TX], NULL, NULL));
	}
}

static void test_small_buffer(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	t_start(f->d, VIO_FEATURES, f->drv, 2);
	t_add(&f->drv[RX], (struct t_buf[]){ { f->rx_gpa, 20, true } }, 1);
	host_sends(f, 1);
	t_kick(f->d, RX);
	t_run_ms(&f->vm, 10);
	assert_true(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_config, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_receive, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_receive_paused_and_cloned, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_transmit, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_small_buffer, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, enter_namespace, NULL);
}
