// SPDX-License-Identifier: Apache-2.0
// virtio-net and virtio-vsock without a guest: a driver in this process fills the queues of the real
// device and notifies it, so exits and interrupt injection are left out. The floor is the same without a
// device: writev(2) and readv(2) on the same tap, one per frame, and a bare pair of sockets. Both take
// turns, so that noise of the machine hits both; the ratio is per pair of turns, rates are per second of CPU
// time.
//
// The tap is in a network namespace of this part's thread. Frames to it are for somebody else, so the
// host drops them at once; frames from it wait in its queue before the turn begins.
//
// Several pairs (net_mq_*): two queues of one tap, from two threads, against the two pairs of a device, of
// which this thread serves the first. Each thread's rate is by its own CPU time, and they are added: what
// there would be with a CPU for each.
#include "bench/bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "devices/devices.h"
#include "devices/net.h"
#include "devices/vsock.h"
#include "microvm/base/util.h"

enum { RX, TX, EVENT, N_QUEUES, RX2 = 2, TX2, CTRL2, MAX_QUEUES, QUEUE_SIZE = 256, MEM_MIB = 64, VNET = 10 };
enum { MSS = 1448, TCP_HEADERS = 54, LARGE = TCP_HEADERS + 44 * MSS, PAYLOAD = 65536 };
enum { RING_BYTES = 8192, HEADER_SLOT = 256 };
enum { CID = 3, PORT = 1000, GUEST_PORT = 77, CREDIT = 1 << 20, BUFFER = 4096 };
#define TURN_NS (10u * 1000 * 1000)
#define NET_FEATURES                                                                                         \
	(VIO_FEATURES | NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_HOST_TSO4 | NET_F_GUEST_TSO4 | NET_F_MRG_RXBUF)

static const struct frame_size {
	uint32_t bytes, batch; // frames that wait in the tap for a turn of receiving
	uint32_t buffer;       // as Linux' driver makes them, by the sizes that it sees
	const char *labels;
} sizes[] = {
	{ 64, 200, 1536, "{\"frame_bytes\": 64}" },
	{ 1500, 200, 1536, "{\"frame_bytes\": 1500}" },
	{ LARGE, 40, 4096, "{\"frame_bytes\": 63766, \"tso\": true}" },
};

struct queue {
	uint64_t gpa;
	struct vq_desc *desc;
	struct vq_avail *avail;
	struct vq_used *used;
	uint16_t added, seen;
};

struct bench_net {
	const struct bench_env *env;
	struct bench_results *res;
	struct gmem mem;
	struct mv_loop loop;
	struct vio_dev *d;
	struct queue q[MAX_QUEUES];
	uint64_t data_gpa; // of frames to send; receive buffers follow
	uint8_t *data;
	int tap, tap2, packet_fd, host_fd;
	uint32_t fwd_cnt; // vsock: bytes that the driver has taken
	int result;
};

// --- the driver ---------------------------------------------------------------------------
static void set(struct vio_dev *d, uint64_t reg, uint64_t value)
{
	le32_t low = le32_make((uint32_t)value);
	vio_mmio_write(d, reg, &low, sizeof low);
}

static void start_driver(struct bench_net *b, uint64_t features, unsigned n_queues)
{
	set(b->d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER);
	for (uint32_t half = 0; half < 2; half++) {
		set(b->d, 0x24, half);
		set(b->d, 0x20, features >> 32 * half);
	}
	set(b->d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK);
	for (uint32_t i = 0; i < n_queues; i++) {
		struct queue *q = &b->q[i];
		uint8_t *p = gmem_ptr(&b->mem, gpa(q->gpa = i * 3 * RING_BYTES), 3 * RING_BYTES);
		memset(p, 0, 3 * RING_BYTES);
		*q = (struct queue){
			q->gpa, (void *)p, (void *)(p + RING_BYTES), (void *)(p + 2 * RING_BYTES), 0, 0
		};
		set(b->d, 0x30, i);
		set(b->d, 0x38, QUEUE_SIZE);
		set(b->d, 0x80, q->gpa);
		set(b->d, 0x90, q->gpa + RING_BYTES);
		set(b->d, 0xa0, q->gpa + 2 * RING_BYTES);
		set(b->d, 0x44, 1);
	}
	set(b->d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK | VIO_DRIVER_OK);
	b->data_gpa = 1 << 20;
	b->data = gmem_ptr(&b->mem, gpa(b->data_gpa), 4 << 20);
}

static void add(struct queue *q, uint64_t at, uint32_t len, uint16_t flags)
{
	uint16_t i = q->added % QUEUE_SIZE;
	q->desc[i] = (struct vq_desc){ le64_make(at), le32_make(len), le16_make(flags), le16_make(0) };
	q->avail->ring[i] = le16_make(i);
	__atomic_store_n(&q->avail->idx.raw, le16_make(++q->added).raw, __ATOMIC_RELEASE);
}

static uint16_t done(const struct queue *q) { return (uint16_t)(le16_get(q->used->idx) - q->seen); }

static void give_buffers(struct bench_net *b, uint32_t bytes)
{
	struct queue *q = &b->q[RX];
	while ((uint16_t)(q->added - q->seen) < QUEUE_SIZE)
		add(q, b->data_gpa + (1 << 20) + q->added % QUEUE_SIZE * BUFFER, bytes, VQ_DESC_WRITE);
}

static int set_up(struct bench_net *b)
{
	int r = mv_loop_init(&b->loop);
	r = r ? r : gmem_add(&b->mem, 0, (uint64_t)MEM_MIB << 20);
	return r ? r : gmem_map(&b->mem, -1, NULL);
}

static void tear_down(struct bench_net *b)
{
	vio_free(b->d);
	mv_loop_fini(&b->loop);
	gmem_fini(&b->mem);
	mv_close(&b->packet_fd);
	mv_close(&b->host_fd);
}

// --- net ------------------------------------------------------------------------------------
// To nobody here; `header` bytes of a virtio header in front, for segmentation when it is large.
static void make_frame(uint8_t *p, uint32_t header, uint32_t len)
{
	static const uint8_t tso[VNET] = { 1, 1, TCP_HEADERS, 0, MSS & 0xff, MSS >> 8, 34, 0, 16, 0 };
	static const uint8_t ip[] = { 0x45,
				      0,
				      (LARGE - 14) >> 8,
				      (LARGE - 14) & 0xff,
				      0,
				      1,
				      0x40,
				      0,
				      64,
				      6,
				      0,
				      0,
				      10,
				      0,
				      0,
				      1,
				      10,
				      0,
				      0,
				      2 };
	memset(p, 0, header + len);
	memset(p + header, 2, 12);
	p[header + 12] = 0x88;
	p[header + 13] = 0xb5; // for experiments
	if (len != LARGE)
		return;
	memcpy(p, tso, sizeof tso);
	p[header + 12] = 8;
	p[header + 13] = 0;
	memcpy(p + header + 14, ip, sizeof ip);
	p[header + 14 + 20 + 12] = 0x50; // TCP: five words
}

static int open_tap(struct bench_net *b)
{
	struct ifreq ifr = { .ifr_name = "bench%d", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int one = 1, off = 0, room = 64 << 20;
	const uint8_t mac[6] = { 2, 0, 0, 0, 0, 1 };
	struct mv_err err = { 0 };
	MV_FD fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
		return -errno;
	b->packet_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (b->packet_fd < 0 || ioctl(b->packet_fd, SIOCGIFINDEX, &ifr))
		return -errno;
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_ifindex = ifr.ifr_ifindex };
	ifr.ifr_flags = IFF_UP;
	setsockopt(b->packet_fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
	if (ioctl(b->packet_fd, SIOCSIFFLAGS, &ifr) || bind(b->packet_fd, (struct sockaddr *)&a, sizeof a) ||
	    setsockopt(b->packet_fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) ||
	    setsockopt(b->packet_fd, SOL_PACKET, PACKET_QDISC_BYPASS, &off, sizeof off))
		return -errno;
	b->tap = fd; // the device's, until its end
	return vio_net_new(&b->mem, &b->loop, "bench", mac, VIO_NET_TAP, MV_TAKE_FD(fd), &b->d, &err);
}

// By the thread's CPU time: all of it is this thread's work, and the machine has others.
static uint64_t cpu_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double rate(uint64_t n, uint64_t start_ns) { return (double)n * 1e9 / (double)(cpu_ns() - start_ns); }

static double send_floor(struct bench_net *b, uint32_t len)
{
	const struct iovec iov = { b->data, NET_HEADER_BYTES + len };
	uint64_t start = cpu_ns(), n = 0;
	for (; cpu_ns() - start < TURN_NS; n += QUEUE_SIZE)
		for (unsigned i = 0; i < QUEUE_SIZE; i++)
			if (writev(b->tap, &iov, 1) < 0)
				b->result = -errno;
	return rate(n, start);
}

static double send_device(struct bench_net *b, uint32_t len)
{
	struct queue *q = &b->q[TX];
	uint64_t start = cpu_ns(), n = 0;
	for (; cpu_ns() - start < TURN_NS; n += QUEUE_SIZE) {
		for (unsigned i = 0; i < QUEUE_SIZE; i++)
			add(q, b->data_gpa, NET_HEADER_BYTES + len, 0);
		while (done(q) < QUEUE_SIZE)
			vio_notify(b->d, TX);
		q->seen = q->added;
	}
	return rate(n, start);
}

// Frames into the tap's queue. The host's own (IPv6) may be between them, on both sides alike.
static void fill_tap(struct bench_net *b, const struct frame_size *s)
{
	static uint8_t frame[VNET + LARGE];
	make_frame(frame, VNET, s->bytes);
	for (unsigned i = 0; i < s->batch; i++)
		if (send(b->packet_fd, frame, VNET + s->bytes, 0) < 0)
			b->result = -errno;
}

static double receive_floor(struct bench_net *b, const struct frame_size *s)
{
	struct iovec iov[PAYLOAD / 4096 + 1];
	const unsigned pieces = (NET_HEADER_BYTES + s->bytes + s->buffer - 1) / s->buffer;
	unsigned at = 0;
	fill_tap(b, s);
	uint64_t start = cpu_ns(), n = 0;
	for (;; n++) { // into the same buffers as a guest gives, one after the other
		for (unsigned i = 0; i < pieces; i++, at++)
			iov[i] = (struct iovec){ b->data + (1 << 20) + at % QUEUE_SIZE * BUFFER, s->buffer };
		if (readv(b->tap, iov, (int)pieces) <= 0)
			return rate(n, start);
	}
}

static double receive_device(struct bench_net *b, const struct frame_size *s)
{
	struct net_pair *p = MV_CONTAINER(b->d, struct vio_net, dev)->pair;
	fill_tap(b, s);
	uint64_t start = cpu_ns(), before = p->counts.received;
	p->readable = true; // as the loop would say
	while (p->readable && !b->result) {
		b->q[RX].seen = le16_get(b->q[RX].used->idx);
		give_buffers(b, s->buffer);
		vio_notify(b->d, RX);
	}
	return rate(p->counts.received - before, start);
}

static void compare(struct bench_net *b, const char *const name[3], const char *const what[3],
		    const char *unit, const char *labels, double floor, double dev)
{
	bench_add(bench_labelled(b->res, name[0], unit, labels, what[0]), floor);
	bench_add(bench_labelled(b->res, name[1], unit, labels, what[1]), dev);
	bench_add(bench_labelled(b->res, name[2], "", labels, what[2]),
		  strcmp(unit, "us") ? dev / floor : floor / dev);
}

static int run_net(struct bench_net *b)
{
	static const char *const tx[] = { "net_tx_floor", "net_tx_dev", "net_tx_ratio" },
				 *const rx[] = { "net_rx_floor", "net_rx_dev", "net_rx_ratio" },
				 *const tx_what[] = { "writev to the tap alone", "through the device",
						      "device / floor" },
				 *const rx_what[] = { "readv from the tap alone", "through the device",
						      "device / floor" };
	for (size_t k = 0; k < MV_ARRAY_LEN(sizes); k++) {
		const struct frame_size *s = &sizes[k];
		for (int i = -2; !b->result && i < b->env->samples / 4;
		     i++) { // the first two: for warming up
			make_frame(b->data, NET_HEADER_BYTES, s->bytes);
			double sent[2], received[2];
			for (int turn = 0; turn < 2; turn++) { // who comes first, changes
				bool dev = (i + turn) & 1;
				sent[dev] = dev ? send_device(b, s->bytes) : send_floor(b, s->bytes);
				received[dev] = dev ? receive_device(b, s) : receive_floor(b, s);
			}
			if (i < 0)
				continue;
			compare(b, tx, tx_what, "/s", s->labels, sent[0], sent[1]);
			compare(b, rx, rx_what, "/s", s->labels, received[0], received[1]);
		}
	}
	return b->result;
}

static void *net_thread(void *arg)
{
	struct bench_net *b = arg;
	if (unshare(CLONE_NEWNET)) {
		fprintf(stderr, "bench: net: no network namespace (%s): left out\n", strerror(errno));
		return NULL;
	}
	b->result = set_up(b);
	b->result = b->result ? b->result : open_tap(b);
	if (!b->result) {
		start_driver(b, NET_FEATURES, N_QUEUES);
		b->result = run_net(b);
	}
	tear_down(b);
	return NULL;
}

// --- several pairs --------------------------------------------------------------------------
enum { MQ_FRAME = 1500 };

static int open_two(struct bench_net *b)
{
	struct ifreq ifr = { .ifr_name = "bench%d",
			     .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE };
	const struct vio_net_options o = { .name = "bench",
					   .mac = (const uint8_t[]){ 2, 0, 0, 0, 0, 1 },
					   .kind = VIO_NET_TAP,
					   .n_pairs = 2 };
	MV_FD first = open("/dev/net/tun", O_RDWR | O_CLOEXEC),
	      second = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	MV_FD s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (ioctl(first, TUNSETIFF, &ifr) || ioctl(second, TUNSETIFF, &ifr)) // of the name that the first got
		return -errno;
	b->tap = first; // the device's
	b->tap2 = second;
	int fds[] = { MV_TAKE_FD(first), MV_TAKE_FD(second) };
	int r = vio_net_new_with(&b->mem, &b->loop, &o, fds, &b->d, NULL);
	ifr.ifr_flags = IFF_UP;
	return r ? r : s < 0 || ioctl(s, SIOCSIFFLAGS, &ifr) ? -errno : 0;
}

static void use_two(struct bench_net *b)
{
	enum { CLASS_MQ = 4, ANSWER_AT = 64 };
	memcpy(b->data, (uint8_t[]){ CLASS_MQ, 0, 2, 0 }, 4);
	struct queue *q = &b->q[CTRL2];
	q->desc[1] = (struct vq_desc){ le64_make(b->data_gpa + ANSWER_AT), le32_make(1),
				       le16_make(VQ_DESC_WRITE), le16_make(0) };
	b->data[ANSWER_AT] = 1;
	add(q, b->data_gpa, 4, VQ_DESC_NEXT);
	q->desc[0].next = le16_make(1);
	vio_notify(b->d, CTRL2);
	b->result = b->data[ANSWER_AT] ? -EPROTO : 0;
}

struct writer {
	struct iovec iov;
	int fd, result;
	double rate;
};

static void *write_frames(void *arg)
{
	struct writer *w = arg;
	uint64_t start = cpu_ns(), n = 0;
	for (; cpu_ns() - start < TURN_NS; n += QUEUE_SIZE)
		for (unsigned i = 0; i < QUEUE_SIZE; i++)
			if (writev(w->fd, &w->iov, 1) < 0)
				w->result = -errno;
	w->rate = rate(n, start);
	return NULL;
}

static double pairs_floor(struct bench_net *b, unsigned pairs)
{
	const struct iovec iov = { b->data, NET_HEADER_BYTES + MQ_FRAME };
	struct writer w[2] = { { iov, b->tap, 0, 0 }, { iov, b->tap2, 0, 0 } };
	pthread_t thread;
	int r = pairs == 2 ? pthread_create(&thread, NULL, write_frames, &w[1]) : 0;
	write_frames(&w[0]);
	if (pairs == 2 && !r)
		pthread_join(thread, NULL);
	b->result = r ? -r : w[0].result ? w[0].result : w[1].result;
	return w[0].rate + w[1].rate;
}

// The descriptors are always the same, so a guest's work is not measured with it. How many were sent.
static unsigned refill(struct bench_net *b, unsigned index)
{
	struct queue *q = &b->q[index];
	uint16_t n = (uint16_t)(__atomic_load_n(&q->used->idx.raw, __ATOMIC_ACQUIRE) - q->seen);
	q->seen = (uint16_t)(q->seen + n);
	q->added = (uint16_t)(q->seen + QUEUE_SIZE);
	__atomic_store_n(&q->avail->idx.raw, le16_make(q->added).raw, __ATOMIC_RELEASE);
	vio_notify(b->d, index);
	return n;
}

static uint64_t second_ns(const struct bench_net *b)
{
	struct timespec t;
	clockid_t clock;
	pthread_getcpuclockid(MV_CONTAINER(b->d, struct vio_net, dev)->pair[1].own.thread, &clock);
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double pairs_device(struct bench_net *b, unsigned pairs)
{
	const uint64_t start = cpu_ns(), start2 = second_ns(b), clock = mv_now_ns();
	uint64_t n = 0, n2 = 0;
	while (cpu_ns() - start < TURN_NS || (pairs == 2 && second_ns(b) - start2 < TURN_NS)) {
		n2 += pairs == 2 ? refill(b, TX2) : 0;
		n += refill(b, TX);
		if (mv_now_ns() - clock > 2000000000u) { // it stands still
			b->result = -ETIME;
			return 0;
		}
	}
	return rate(n, start) + (pairs == 2 ? (double)n2 * 1e9 / (double)(second_ns(b) - start2) : 0);
}

static int run_pairs(struct bench_net *b)
{
	static const char *const names[] = { "net_mq_floor", "net_mq_dev", "net_mq_ratio" },
				 *const what[] = { "writev to queues of one tap alone, a thread for each",
						   "through the device, a pair of queues for each",
						   "device / floor" },
				 *const labels[] = { "{\"pairs\": 1}", "{\"pairs\": 2}" };
	for (unsigned q = TX; q <= TX2; q += TX2 - TX)
		for (unsigned i = 0; i < QUEUE_SIZE; i++) {
			b->q[q].desc[i] = (struct vq_desc){ le64_make(b->data_gpa),
							    le32_make(NET_HEADER_BYTES + MQ_FRAME),
							    le16_make(0), le16_make(0) };
			b->q[q].avail->ring[i] = le16_make((uint16_t)i);
		}
	use_two(b);
	make_frame(b->data, NET_HEADER_BYTES, MQ_FRAME);
	for (int i = -2; !b->result && i < b->env->samples / 4; i++) {
		double floor[2], dev[2];
		for (unsigned k = 0; k < 2 && !b->result; k++) {
			floor[k] = pairs_floor(b, k + 1);
			dev[k] = pairs_device(b, k + 1);
		}
		for (unsigned k = 0; i >= 0 && k < 2 && !b->result; k++)
			compare(b, names, what, "/s", labels[k], floor[k], dev[k]);
		if (i < 0 || b->result)
			continue;
		bench_add(bench_labelled(b->res, "net_mq_gain_floor", "", NULL, "bare: two threads / one"),
			  floor[1] / floor[0]);
		bench_add(bench_labelled(b->res, "net_mq_gain_dev", "", NULL, "two pairs / one"),
			  dev[1] / dev[0]);
	}
	return b->result;
}

static void *pairs_thread(void *arg)
{
	struct bench_net *b = arg;
	if (unshare(CLONE_NEWNET)) // net_thread() has said so
		return NULL;
	b->result = set_up(b);
	b->result = b->result ? b->result : open_two(b);
	if (!b->result) {
		start_driver(b, NET_FEATURES | NET_F_CTRL_VQ | NET_F_MQ, MAX_QUEUES);
		b->result = run_pairs(b);
	}
	tear_down(b);
	return NULL;
}

// --- vsock ------------------------------------------------------------------------------------
static void packet(struct bench_net *b, enum vsock_op op, uint32_t len)
{
	const struct vsock_header h = { .src_cid = le64_make(CID),
					.dst_cid = le64_make(VSOCK_HOST_CID),
					.src_port = le32_make(GUEST_PORT),
					.dst_port = le32_make(PORT),
					.len = le32_make(len),
					.type = le16_make(VSOCK_STREAM),
					.op = le16_make((uint16_t)op),
					.buf_alloc = le32_make(CREDIT),
					.fwd_cnt = le32_make(b->fwd_cnt) };
	memcpy(b->data, &h, sizeof h);
	add(&b->q[TX], b->data_gpa, VSOCK_HEADER_BYTES + len, 0);
	vio_notify(b->d, TX);
	b->q[TX].seen = b->q[TX].added;
}

// What came for the driver; its buffers go back.
static uint32_t take_packets(struct bench_net *b)
{
	struct queue *q = &b->q[RX];
	uint32_t bytes = 0;
	for (; done(q); q->seen++)
		bytes += le32_get(q->used->ring[q->seen % QUEUE_SIZE].len) - VSOCK_HEADER_BYTES;
	give_buffers(b, BUFFER);
	b->fwd_cnt += bytes;
	return bytes;
}

static void stop_loop(void *arg) { ((struct mv_loop *)arg)->stop = true; } // this thread is in it

static void one_turn(struct bench_net *b)
{
	b->loop.before_wait = stop_loop;
	b->loop.before_wait_arg = &b->loop;
	mv_loop_again(&b->loop);
	b->result = mv_loop_run(&b->loop);
}

static int connect_stream(struct bench_net *b)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	char path[90];
	snprintf(path, sizeof path, "/tmp/thaw-bench-%d", (int)getpid());
	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	MV_FD lfd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int r = bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4) ? -errno : 0;
	unlink(path);
	r = r ? r : vio_vsock_new(&b->mem, &b->loop, CID, fd, path, &b->d, NULL);
	snprintf(a.sun_path, sizeof a.sun_path, "%s_%d", path, PORT);
	if (!r && (bind(lfd, (struct sockaddr *)&a, sizeof a) || listen(lfd, 4)))
		r = -errno;
	if (r)
		return r;
	start_driver(b, VIO_FEATURES | 1, N_QUEUES);
	give_buffers(b, BUFFER);
	packet(b, OP_REQUEST, 0);
	unlink(a.sun_path);
	b->host_fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	take_packets(b);
	return b->host_fd < 0 ? -errno : 0;
}

static uint64_t drain(int fd)
{
	static uint8_t sink[PAYLOAD];
	uint64_t all = 0;
	for (ssize_t n; (n = recv(fd, sink, sizeof sink, 0)) > 0;)
		all += (uint64_t)n;
	return all;
}

static double stream_floor(const int pair[2])
{
	static const uint8_t block[PAYLOAD];
	uint64_t start = cpu_ns(), bytes = 0;
	while (cpu_ns() - start < TURN_NS)
		if (send(pair[0], block, sizeof block, MSG_NOSIGNAL) > 0)
			bytes += drain(pair[1]);
	return rate(bytes, start) / (1 << 20);
}

static double stream_device(struct bench_net *b)
{
	uint64_t start = cpu_ns(), bytes = 0;
	while (cpu_ns() - start < TURN_NS) {
		packet(b, OP_RW, PAYLOAD - HEADER_SLOT);
		bytes += drain(b->host_fd);
		take_packets(b); // credit
	}
	return rate(bytes, start) / (1 << 20);
}

// Into the same buffers as a guest gives, one after the other.
static double to_guest_floor(struct bench_net *b, const int pair[2])
{
	static const uint8_t block[PAYLOAD];
	enum { ROOM = BUFFER - VSOCK_HEADER_BYTES, PIECES = (PAYLOAD + ROOM - 1) / ROOM };
	struct iovec iov[PIECES];
	uint64_t start = cpu_ns(), bytes = 0;
	for (unsigned at = 0; cpu_ns() - start < TURN_NS && !b->result; bytes += PAYLOAD) {
		for (unsigned i = 0; i < PIECES; i++, at++)
			iov[i] = (struct iovec){ b->data + (1 << 20) + at % QUEUE_SIZE * BUFFER, ROOM };
		if (send(pair[0], block, sizeof block, MSG_NOSIGNAL) != PAYLOAD ||
		    recvmsg(pair[1], &(struct msghdr){ .msg_iov = iov, .msg_iovlen = PIECES }, 0) != PAYLOAD)
			b->result = -EPIPE;
	}
	return rate(bytes, start) / (1 << 20);
}

static double to_guest_device(struct bench_net *b)
{
	static const uint8_t block[PAYLOAD];
	uint64_t start = cpu_ns(), bytes = 0;
	while (cpu_ns() - start < TURN_NS && !b->result) {
		ssize_t n = send(b->host_fd, block, sizeof block, MSG_NOSIGNAL);
		if (n <= 0)
			b->result = -EPIPE;
		for (ssize_t got = 0; got < n && !b->result;) {
			one_turn(b);
			got += take_packets(b);
		}
		packet(b, OP_CREDIT_UPDATE, 0);
		bytes += PAYLOAD;
	}
	return rate(bytes, start) / (1 << 20);
}

enum { ROUNDS = 1000, SMALL = 64 };

static double round_trip_floor(struct bench_net *b, const int pair[2])
{
	uint8_t m[SMALL] = { 0 };
	uint64_t start = cpu_ns();
	for (unsigned i = 0; i < ROUNDS; i++)
		for (unsigned k = 0; k < 2; k++)
			if (send(pair[k], m, SMALL, MSG_NOSIGNAL) != SMALL ||
			    recv(pair[!k], m, SMALL, 0) != SMALL)
				b->result = -EPIPE;
	return (double)(cpu_ns() - start) / 1000 / ROUNDS;
}

static double round_trip_device(struct bench_net *b)
{
	uint8_t m[SMALL];
	uint64_t start = cpu_ns();
	for (unsigned i = 0; i < ROUNDS && !b->result; i++) {
		packet(b, OP_RW, SMALL);
		if (recv(b->host_fd, m, SMALL, 0) != SMALL ||
		    send(b->host_fd, m, SMALL, MSG_NOSIGNAL) != SMALL)
			b->result = -EPIPE;
		for (uint32_t got = 0; got < SMALL && !b->result;) {
			one_turn(b); // the socket's event
			got += take_packets(b);
		}
	}
	return (double)(cpu_ns() - start) / 1000 / ROUNDS;
}

static int run_vsock(struct bench_net *b)
{
	static const char *const tx[] = { "vsock_stream_floor", "vsock_stream_dev", "vsock_stream_ratio" },
				 *const rx[] = { "vsock_to_guest_floor", "vsock_to_guest_dev",
						 "vsock_to_guest_ratio" },
				 *const rtt[] = { "vsock_rtt_floor", "vsock_rtt_dev", "vsock_rtt_ratio" },
				 *const tx_what[] = { "a socket pair alone, 64 KiB at a time",
						      "from a guest through the device", "device / floor" },
				 *const rx_what[] = { "a socket pair alone, 64 KiB into buffers of 4 KiB",
						      "through the device and the event loop to a guest",
						      "device / floor" },
				 *const rtt_what[] = { "64 bytes and back, a socket pair alone",
						       "through the device and the event loop",
						       "floor / device" };
	int pair[2], r = set_up(b);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
		return -errno;
	b->result = r ? r : connect_stream(b);
	for (int i = -2; !b->result && i < b->env->samples / 4; i++) {
		double f = stream_floor(pair), d = stream_device(b);
		double gf = to_guest_floor(b, pair), gd = to_guest_device(b);
		double rf = round_trip_floor(b, pair), rd = round_trip_device(b);
		if (i < 0)
			continue;
		compare(b, tx, tx_what, "MiB/s", NULL, f, d);
		compare(b, rx, rx_what, "MiB/s", NULL, gf, gd);
		compare(b, rtt, rtt_what, "us", NULL, rf, rd);
	}
	close(pair[0]);
	close(pair[1]);
	tear_down(b);
	return b->result;
}

int bench_net(const struct bench_env *env, struct bench_results *res)
{
	struct bench_net net = { .env = env, .res = res, .tap = -1, .packet_fd = -1, .host_fd = -1 },
			 pairs = net, vsock = net;
	pthread_t thread;
	int r = pthread_create(&thread, NULL, net_thread, &net);
	if (r)
		return -r;
	pthread_join(thread, NULL);
	if ((r = pthread_create(&thread, NULL, pairs_thread, &pairs)))
		return -r;
	pthread_join(thread, NULL);
	r = run_vsock(&vsock);
	r = pairs.result ? pairs.result : r;
	return net.result ? net.result : r;
}
