// SPDX-License-Identifier: Apache-2.0
// With a real tap, in a network namespace of our own; skipped where we may not make one.
#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tests/devices/t_driver.h"

#include "devices/net.h"
#include "microvm/base/util.h"

enum { RX, TX, HEADER = NET_HEADER_BYTES, FRAME = 64, ETHERTYPE = 0x88b5 /* for experiments */ };

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

// A device on a new tap, and the host's side of it.
static void open_packet(struct fixture *f)
{
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
	open_packet(f);
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

// ---- segmentation: TCP over IPv4, the header's checksum fields as for offloading

enum { ETH_IP_TCP = 14 + 20 + 20, MSS = 1448, PAYLOAD = 20000, WHOLE = ETH_IP_TCP + PAYLOAD };
enum { VNET = 10 }; // the header of a packet socket has no num_buffers
enum { CSUM_FEATURES = NET_F_CSUM | NET_F_GUEST_CSUM };
#define TSO_FEATURES (CSUM_FEATURES | NET_F_HOST_TSO4 | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_MRG_RXBUF)

static uint32_t sum16(const uint8_t *p, uint32_t n, uint32_t sum)
{
	for (uint32_t i = 0; i < n; i++)
		sum += i % 2 ? p[i] : p[i] * 256u;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint32_t pseudo(const uint8_t *ip, uint32_t tcp_bytes) { return sum16(ip + 12, 8, 6 + tcp_bytes); }

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

// A frame that is to be cut into segments of MSS, behind its header of `header` bytes.
static void make_large(uint8_t *p, unsigned header)
{
	static const uint8_t h[VNET] = { 1, 1, ETH_IP_TCP, 0, MSS & 0xff, MSS >> 8, 34, 0, 16, 0 };
	static const uint8_t ip_tcp[] = { 0x45, 0, 0, 0, 0,  1, 0x40, 0, 64,   6,    0,    0,
					  10,   0, 0, 1, 10, 0, 0,    2, 0x1f, 0x90, 0x23, 0x28,
					  0,    0, 0, 1, 0,  0, 0,    1, 0x50, 0x10, 0xff, 0xff };
	memset(p, 0, header);
	memcpy(p, h, VNET);
	uint8_t *eth = p + header, *ip = eth + 14;
	memcpy(eth, mac, 6);
	memcpy(eth + 6, mac, 6);
	put16(eth + 12, ETH_P_IP);
	memset(ip, 0, 40);
	memcpy(ip, ip_tcp, sizeof ip_tcp);
	put16(ip + 2, 40 + PAYLOAD);
	put16(ip + 10, ~sum16(ip, 20, 0) & 0xffff);
	put16(ip + 20 + 16, pseudo(ip, 20 + PAYLOAD));
	for (uint32_t i = 0; i < PAYLOAD; i++)
		ip[40 + i] = (uint8_t)(i + i / 251);
}

static int vnet_socket(int tap)
{
	struct ifreq ifr = { 0 };
	int one = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(ETH_P_IP));
	assert_int_equal(ioctl(tap, TUNGETIFF, &ifr), 0);
	assert_int_equal(ioctl(fd, SIOCGIFINDEX, &ifr), 0);
	struct sockaddr_ll a = { .sll_family = AF_PACKET,
				 .sll_protocol = htons(ETH_P_IP),
				 .sll_ifindex = ifr.ifr_ifindex };
	ifr.ifr_flags = IFF_UP;
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &ifr), 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one), 0);
	return fd;
}

// The next TCP frame, of however many buffers; its bytes, header included.
static uint32_t receive_tcp(struct fixture *f, uint8_t *in, size_t size)
{
	for (;;) {
		uint32_t at = 0, len;
		uint16_t head;
		unsigned n = 0;
		t_run_until(&f->vm, t_has_used, &f->drv[RX]);
		do {
			assert_true(t_used(&f->drv[RX], &head, &len));
			assert_true(at + len <= size);
			memcpy(in + at, t_ptr(&f->vm, le64_get(f->drv[RX].desc[head].addr), len), len);
			at += len;
		} while (++n < (unsigned)(in[10] | in[11] << 8));
		if (at > HEADER + ETH_IP_TCP && in[HEADER + 12] == 8 && in[HEADER + 14 + 9] == 6)
			return at;
	}
}

// As one frame when `whole`, else as segments with their checksums done.
static void expect_large(struct fixture *f, int from, bool whole)
{
	static uint8_t out[VNET + WHOLE], in[HEADER + WHOLE + 64];
	uint32_t got = 0, len;
	make_large(out, VNET);
	assert_int_equal(send(from, out, sizeof out, 0), sizeof out);
	while (got < PAYLOAD) {
		len = receive_tcp(f, in, sizeof in) - HEADER;
		const uint8_t *ip = in + HEADER + 14;
		if (whole) {
			assert_int_equal(len, WHOLE);
			assert_int_equal(in[0] & 1, 1);    // checksum is left to do
			assert_int_equal(in[1] & 0x7f, 1); // TCPv4
			assert_int_equal(in[4] | in[5] << 8, MSS);
		} else {
			assert_true(len <= ETH_IP_TCP + MSS);
			assert_int_equal(in[0] & 1, 0);
			assert_int_equal(in[1], 0);
			assert_int_equal(sum16(ip + 20, len - 34, pseudo(ip, len - 34)), 0xffff);
		}
		assert_memory_equal(ip + 40, out + VNET + ETH_IP_TCP + got, len - ETH_IP_TCP);
		got += len - ETH_IP_TCP;
	}
}

static void give_small_buffers(struct fixture *f, struct vio_dev *d, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		add_rx(f, i);
	t_kick(d, RX);
}

static int tap_of(struct fixture *f, struct vio_dev **ret_d)
{
	int tap = open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR), fd = vnet_socket(tap);
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "eth0", mac, VIO_NET_TAP, tap, ret_d, NULL), 0);
	return fd;
}

static void test_segments(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	struct vio_dev *d;
	int fd = tap_of(f, &d);
	assert_true(d->features_offered & NET_F_GUEST_TSO4);
	t_start(d, VIO_FEATURES | NET_F_MRG_RXBUF, f->drv, 2);
	give_small_buffers(f, d, 64);
	expect_large(f, fd, false); // a driver that can't
	t_set(d, 0x70, 0);
	for (unsigned i = 0; i < 2; i++)
		t_queue_init(&f->drv[i], &f->vm, 256);
	t_start(d, VIO_FEATURES | TSO_FEATURES, f->drv, 2);
	give_small_buffers(f, d, 64);
	expect_large(f, fd, true);
	// As large as can be, from the guest.
	static uint8_t got[VNET + WHOLE + 64];
	uint64_t gpa = t_alloc(&f->vm, HEADER + WHOLE, 4096);
	uint8_t *p = t_ptr(&f->vm, gpa, HEADER + WHOLE);
	make_large(p, HEADER);
	t_add(&f->drv[TX],
	      (struct t_buf[]){ { gpa, HEADER + ETH_IP_TCP, false },
				{ gpa + HEADER + ETH_IP_TCP, PAYLOAD, false } },
	      2);
	t_kick(d, TX);
	assert_true(t_used(&f->drv[TX], NULL, NULL));
	assert_int_equal(recv(fd, got, sizeof got, 0), VNET + WHOLE);
	assert_int_equal(got[1] & 0x7f, 1);
	assert_memory_equal(got + VNET + ETH_IP_TCP, p + HEADER + ETH_IP_TCP, PAYLOAD);

	// A restored one asks for the same, also of a tap that comes only with the claim.
	MV_BUF saved = { 0 };
	vio_quiesce(d);
	vio_save(d, &saved);
	vio_free(d);
	close(fd);
	fd = tap_of(f, &d);
	assert_int_equal(vio_load(d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(d);
	expect_large(f, fd, true);
	vio_quiesce(d);
	vio_free(d);
	close(fd);
	int tap = open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	fd = vnet_socket(tap);
	assert_int_equal(vio_net_new(&f->vm.mem, &f->vm.loop, "eth0", mac, VIO_NET_TAP, -1, &d, NULL), 0);
	assert_int_equal(vio_load(d, saved.p, saved.len, NULL), 0);
	assert_int_equal(vio_net_claim(d, mac, &tap, NULL), 0);
	d->s.queue[RX].next_avail = d->s.queue[RX].next_used = f->drv[RX].seen;
	vio_unquiesce(d);
	give_small_buffers(f, d, 64);
	expect_large(f, fd, true);
	vio_free(d);
	close(fd);
}

// ---- the control queue's effect on the tap

static unsigned ask(struct fixture *f, struct vio_dev *d, struct t_queue *ctrl, unsigned q,
		    const void *request, uint32_t len)
{
	const uint64_t gpa = t_alloc(&f->vm, 256, 8);
	memcpy(t_ptr(&f->vm, gpa, 256), request, len);
	t_add(ctrl, (struct t_buf[]){ { gpa, len, false }, { gpa + 200, 1, true } }, 2);
	t_kick(d, q);
	assert_true(t_used(ctrl, NULL, NULL));
	return *(uint8_t *)t_ptr(&f->vm, gpa + 200, 1);
}

static void host_sends_to(struct fixture *f, const uint8_t to[6], uint8_t tag)
{
	uint8_t frame[FRAME];
	make_frame(frame, tag);
	memcpy(frame, to, 6);
	assert_int_equal(send(f->packet_fd, frame, FRAME, 0), FRAME);
}

// The tag of the next frame of ours.
static uint8_t next_tag(struct fixture *f)
{
	for (;;) {
		uint16_t head;
		t_run_until(&f->vm, t_has_used, &f->drv[RX]);
		assert_true(t_used(&f->drv[RX], &head, NULL));
		const uint8_t *p = t_ptr(&f->vm, le64_get(f->drv[RX].desc[head].addr), 2048);
		if (p[HEADER + 12] == ETHERTYPE >> 8 && p[HEADER + 13] == (ETHERTYPE & 0xff))
			return p[HEADER + FRAME - 1];
	}
}

static void test_filter(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	static const uint8_t other[6] = { 2, 9, 9, 9, 9, 9 }, group[6] = { 3, 9, 9, 9, 9, 9 },
			     group2[6] = { 3, 8, 8, 8, 8, 8 }, all[6] = { 255, 255, 255, 255, 255, 255 };
	const uint8_t table[] = { 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 9, 9, 9, 9, 9 };
	struct t_queue q[3] = { f->drv[RX], f->drv[TX] };
	t_queue_init(&q[2], &f->vm, 16);
	t_start(f->d, VIO_FEATURES | NET_F_CTRL_VQ | NET_F_CTRL_RX, q, 3);
	for (unsigned i = 0; i < 200; i++)
		add_rx(f, i);
	t_kick(f->d, RX);
	host_sends_to(f, other, 1); // nothing was said: everything comes
	assert_int_equal(next_tag(f), 1);
	assert_int_equal(ask(f, f->d, &q[2], 2, "\0\0\0", 3), 0); // not promiscuous
	assert_int_equal(ask(f, f->d, &q[2], 2, table, sizeof table), 0);
	host_sends_to(f, other, 2);
	host_sends_to(f, group2, 3);
	host_sends_to(f, mac, 4);
	host_sends_to(f, group, 5);
	host_sends_to(f, all, 6);
	for (uint8_t tag = 4; tag <= 6; tag++)
		assert_int_equal(next_tag(f), tag);
	assert_int_equal(ask(f, f->d, &q[2], 2, "\0\1\1", 3), 0); // all multicast
	host_sends_to(f, other, 7);
	host_sends_to(f, group2, 8);
	assert_int_equal(next_tag(f), 8);
	// A clone with another MAC gets frames for both: the guest does not know it yet.
	MV_BUF saved = { 0 };
	vio_quiesce(f->d);
	vio_save(f->d, &saved);
	vio_free(f->d);
	close(f->packet_fd);
	open_packet(f);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	int none = -1;
	assert_int_equal(vio_net_claim(f->d, (const uint8_t[]){ 2, 5, 5, 5, 5, 5 }, &none, NULL), 0);
	vio_unquiesce(f->d);
	host_sends_to(f, other, 9);
	host_sends_to(f, mac, 10);
	host_sends_to(f, (const uint8_t[]){ 2, 5, 5, 5, 5, 5 }, 11);
	host_sends_to(f, group2, 12);
	for (uint8_t tag = 10; tag <= 12; tag++)
		assert_int_equal(next_tag(f), tag);
	assert_int_equal(ask(f, f->d, &q[2], 2, "\0\0\1", 3), 0); // promiscuous
	host_sends_to(f, other, 13);
	assert_int_equal(next_tag(f), 13);
}

static bool carrier(struct fixture *f)
{
	struct ifreq ifr = { 0 };
	struct sockaddr_ll a;
	socklen_t len = sizeof a;
	assert_int_equal(getsockname(f->packet_fd, (struct sockaddr *)&a, &len), 0);
	assert_non_null(if_indextoname((unsigned)a.sll_ifindex, ifr.ifr_name));
	struct ethtool_value v = { .cmd = ETHTOOL_GLINK };
	ifr.ifr_data = (void *)&v;
	assert_int_equal(ioctl(f->packet_fd, SIOCETHTOOL, &ifr), 0);
	return v.data;
}

static void test_link(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	t_start(f->d, VIO_FEATURES | NET_F_STATUS, f->drv, 2);
	for (unsigned i = 0; i < 100; i++)
		add_rx(f, i);
	t_kick(f->d, RX);
	assert_true(carrier(f));
	vio_net_set_link(f->d, false);
	assert_false(carrier(f)); // the host sees it, too
	vio_net_set_link(f->d, true);
	assert_true(carrier(f));
	host_sends(f, 3);
	expect_rx(f, 3);
}

static void test_guest_offloads(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	struct vio_dev *d;
	struct t_queue q[3] = { f->drv[RX], f->drv[TX] };
	int fd = tap_of(f, &d);
	t_queue_init(&q[2], &f->vm, 16);
	t_start(d, VIO_FEATURES | TSO_FEATURES | NET_F_CTRL_VQ | NET_F_CTRL_GUEST_OFFLOADS, q, 3);
	give_small_buffers(f, d, 128);
	expect_large(f, fd, true);
	assert_int_equal(ask(f, d, &q[2], 2, "\5\0\0\0\0\0\0\0\0\0", 10), 0); // none, for XDP
	expect_large(f, fd, false);
	assert_int_equal(ask(f, d, &q[2], 2, "\5\0\2\4\0\0\0\0\0\0", 10), 1); // UFO: not acknowledged
	assert_int_equal(ask(f, d, &q[2], 2, "\5\0\x82\1\0\0\0\0\0\0", 10), 0);
	expect_large(f, fd, true);
	vio_free(d);
	close(fd);
}

// ---- several pairs of queues

enum { PAIRS = 2, QUEUES = 2 * PAIRS + 1, MQ_CTRL = 2 * PAIRS, FLOWS = 64 };
#define MQ_FEATURES (VIO_FEATURES | NET_F_CTRL_VQ | NET_F_MQ)

static struct vio_dev *new_mq(struct fixture *f, int *ret_packet_fd)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE };
	int fds[PAIRS];
	struct vio_dev *d;
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "t-mq%%d");
	for (unsigned i = 0; i < PAIRS; i++) { // the first gives the name to the others
		fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
		assert_int_equal(ioctl(fds[i], TUNSETIFF, &ifr), 0);
	}
	*ret_packet_fd = vnet_socket(fds[0]);
	const struct vio_net_options o = {
		.name = "eth0", .mac = mac, .kind = VIO_NET_TAP, .n_pairs = PAIRS
	};
	assert_int_equal(vio_net_new_with(&f->vm.mem, &f->vm.loop, &o, fds, &d, NULL), 0);
	return d;
}

static void make_udp(uint8_t *p, unsigned flow)
{
	static const uint8_t ip_udp[] = { 0x45, 0, 0,  48, 0, 1, 0x40, 0, 64,   17, 0, 0,  10, 0,
					  0,    1, 10, 0,  0, 2, 0x20, 0, 0x20, 0,  0, 28, 0,  0 };
	memset(p, 0, VNET + 14 + 48);
	memcpy(p + VNET, mac, 6);
	memcpy(p + VNET + 6, mac, 6);
	put16(p + VNET + 12, ETH_P_IP);
	memcpy(p + VNET + 14, ip_udp, sizeof ip_udp);
	put16(p + VNET + 14 + 20, 0x2000 + flow);
	put16(p + VNET + 14 + 10, ~sum16(p + VNET + 14, 20, 0) & 0xffff);
}

struct mq {
	struct t_queue q[QUEUES];
	unsigned got[PAIRS];
};

static bool have_all(void *arg)
{
	struct mq *m = arg;
	uint16_t head;
	for (unsigned i = 0; i < PAIRS; i++)
		while (t_used(&m->q[2 * i], &head, NULL)) {
			const struct t_vm *vm = m->q[0].vm;
			const uint8_t *p =
				gmem_ptr(&vm->mem, gpa(le64_get(m->q[2 * i].desc[head].addr)), 100);
			m->got[i] += p[HEADER + 12] == 8 && p[HEADER + 14 + 9] == 17 &&
				     p[HEADER + 14 + 20] == 0x20;
		}
	return m->got[0] + m->got[1] == FLOWS;
}

static void host_sends_flows(struct fixture *f, struct mq *m, int fd)
{
	uint8_t frame[VNET + 14 + 48];
	memset(m->got, 0, sizeof m->got);
	for (unsigned i = 0; i < FLOWS; i++) {
		make_udp(frame, i);
		assert_int_equal(send(fd, frame, sizeof frame, 0), sizeof frame);
	}
	t_run_until(&f->vm, have_all, m);
}

static void test_pairs(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	struct mq m = { 0 };
	int fd, one = -1;
	uint8_t max[2], got[256];
	struct vio_dev *d = new_mq(f, &fd), *single;
	assert_true(d->features_offered & NET_F_MQ);
	vio_mmio_read(d, 0x100 + 8, max, 2);
	assert_int_equal(max[0], PAIRS);
	for (unsigned i = 0; i < QUEUES; i++)
		t_queue_init(&m.q[i], &f->vm, 256);
	t_start(d, MQ_FEATURES, m.q, QUEUES);
	for (unsigned i = 0; i < PAIRS; i++) {
		for (unsigned k = 0; k < 255; k++)
			t_add(&m.q[2 * i], (struct t_buf[]){ { f->rx_gpa + k % 256 * 2048, 2048, true } }, 1);
		t_kick(d, 2 * i);
	}
	host_sends_flows(f, &m, fd); // one pair, until the driver wants more: section 5.1.6.5.6
	assert_int_equal(m.got[1], 0);
	assert_int_equal(ask(f, d, &m.q[MQ_CTRL], MQ_CTRL, "\4\0\3\0", 4), 1);
	assert_int_equal(ask(f, d, &m.q[MQ_CTRL], MQ_CTRL, "\4\0\0\0", 4), 1);
	assert_int_equal(ask(f, d, &m.q[MQ_CTRL], MQ_CTRL, "\4\0\2\0", 4), 0);
	host_sends_flows(f, &m, fd);
	assert_true(m.got[0] && m.got[1]);
	// Each can send.
	for (unsigned i = 0; i < PAIRS; i++) {
		uint8_t *p = t_ptr(&f->vm, f->tx_gpa, HEADER + 62);
		make_udp(p + HEADER - VNET, 100 + i);
		memset(p, 0, HEADER);
		t_add(&m.q[2 * i + 1], (struct t_buf[]){ { f->tx_gpa, HEADER + 62, false } }, 1);
		t_kick(d, 2 * i + 1);
		t_run_until(&f->vm, t_has_used, &m.q[2 * i + 1]); // the second by its own thread
		assert_true(t_used(&m.q[2 * i + 1], NULL, NULL));
		assert_int_equal(recv(fd, got, sizeof got, 0), VNET + 62);
		assert_int_equal(got[VNET + 14 + 21], 100 + i);
	}
	vio_quiesce(d);
	MV_BUF saved = { 0 };
	vio_save(d, &saved);
	vio_unquiesce(d);
	assert_int_equal(ask(f, d, &m.q[MQ_CTRL], MQ_CTRL, "\4\0\1\0", 4), 0); // and back
	host_sends_flows(f, &m, fd);
	assert_int_equal(m.got[1], 0);
	vio_free(d);
	close(fd);
	// Restored with as many; refused with fewer.
	struct mv_err err = { 0 };
	const struct vio_net_options o = { .name = "eth0", .mac = mac, .kind = VIO_NET_TAP };
	assert_int_equal(vio_net_new_with(&f->vm.mem, &f->vm.loop, &o, &one, &single, NULL), 0);
	assert_int_equal(vio_load(single, saved.p, saved.len, &err), -EINVAL);
	vio_free(single);
	d = new_mq(f, &fd);
	assert_int_equal(vio_load(d, saved.p, saved.len, NULL), 0);
	for (unsigned i = 0; i < QUEUES; i += 2) // the driver's memory is not of then
		d->s.queue[i].next_avail = d->s.queue[i].next_used = m.q[i].seen;
	vio_unquiesce(d);
	host_sends_flows(f, &m, fd);
	assert_true(m.got[0] && m.got[1]);
	// A driver that knows of one pair: its control queue is the third.
	t_set(d, 0x70, 0);
	struct t_queue q[3];
	for (unsigned i = 0; i < 3; i++)
		t_queue_init(&q[i], &f->vm, 16);
	t_start(d, VIO_FEATURES | NET_F_CTRL_VQ | NET_F_CTRL_RX, q, 3);
	assert_int_equal(ask(f, d, &q[2], 2, "\0\0\1", 3), 0);
	vio_free(d);
	close(fd);
}

// ---- rate limits

static unsigned drain(struct t_queue *q)
{
	unsigned n = 0;
	while (t_used(q, NULL, NULL))
		n++;
	return n;
}

static void test_limits(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	const struct vmcfg_rate none = { 0 }, hundred = { .ops = { .size = 10, .refill_ms = 100 } },
				slow = { .bandwidth = { .size = 100, .refill_ms = 600000 } };
	t_start(f->d, VIO_FEATURES, f->drv, 2);
	make_frame((uint8_t *)t_ptr(&f->vm, f->tx_gpa, 2048) + HEADER, 0x42);
	assert_int_equal(vio_net_set_limits(f->d, &none, &hundred, NULL), 0);
	for (unsigned i = 0; i < 40; i++)
		t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + FRAME, false } }, 1);
	uint64_t start = mv_now_ns();
	t_kick(f->d, TX);
	unsigned done = drain(&f->drv[TX]);
	assert_int_equal(done, 11); // ten, and one that is paid for by the next
	vio_quiesce(f->d);          // a pause does not lose what waits, nor the time
	t_run_ms(&f->vm, 20);
	assert_int_equal(drain(&f->drv[TX]), 0);
	vio_unquiesce(f->d);
	while ((done += drain(&f->drv[TX])) < 40)
		t_run_until(&f->vm, t_has_used, &f->drv[TX]);
	uint64_t ms = (mv_now_ns() - start) / 1000000; // 29 more at 100 per second
	assert_true(ms >= 280 && ms < 2000);
	// The other direction: what waits, waits in the tap; another limit wakes it.
	for (unsigned i = 0; i < 100; i++)
		add_rx(f, i);
	t_kick(f->d, RX);
	t_run_ms(&f->vm, 20);
	drain(&f->drv[RX]); // the host's own chatter
	assert_int_equal(vio_net_set_limits(f->d, &slow, &none, NULL), 0);
	for (uint8_t i = 0; i < 8; i++)
		host_sends(f, i);
	t_run_ms(&f->vm, 50);
	assert_true(drain(&f->drv[RX]) <= 3); // 64 bytes each, of 100
	assert_int_equal(vio_net_set_limits(f->d, &none, &none, NULL), 0);
	for (unsigned got = 0; got < 5;) {
		t_run_until(&f->vm, t_has_used, &f->drv[RX]);
		got += drain(&f->drv[RX]);
	}
	// A reset is no way around: what was sent before it is still owed.
	assert_int_equal(vio_net_set_limits(f->d, &none, &slow, NULL), 0);
	unsigned sent = 0;
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 2; i++)
			t_queue_init(&f->drv[i], &f->vm, 256);
		t_start(f->d, VIO_FEATURES, f->drv, 2);
		t_add(&f->drv[TX], (struct t_buf[]){ { f->tx_gpa, HEADER + FRAME, false } }, 1);
		t_kick(f->d, TX);
		sent += drain(&f->drv[TX]);
	}
	assert_true(sent <= 3);
}

// Offloads without what they need: section 5.1.3.1.
static void test_impossible_offloads(void **state)
{
	NEED_TAP();
	struct fixture *f = *state;
	t_start(f->d, VIO_FEATURES | NET_F_GUEST_TSO4, f->drv, 2);
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
		cmocka_unit_test_setup_teardown(test_segments, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_filter, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_link, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_guest_offloads, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_pairs, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limits, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_impossible_offloads, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, enter_namespace, NULL);
}
