// SPDX-License-Identifier: Apache-2.0
// A tap. Every frame starts with the 12-byte header of virtio 1.2 section 5.1.6 on both
// sides, so the tap (IFF_VNET_HDR) takes and gives the guest's buffers as they are. What the tap does not
// take now is dropped, as a real link would.
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "devices/net.h"
#include "microvm/base/util.h"

#define TAP_F_USO4 0x20u // TUN_F_USO4, TUN_F_USO6: of newer headers
#define TAP_F_USO6 0x40u

struct tap {
	struct net_backend b;
	struct mv_loop *loop;
	int fd;
	bool disabled;         // of several queues
	struct mv_watch watch; // edge-triggered
};

static ssize_t tap_receive(struct net_backend *b, const struct iovec *to, unsigned n)
{
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	ssize_t got = readv(t->fd, to, (int)n);
	if (got < NET_HEADER_BYTES) // none, or the interface is down or gone
		return got < 0 && errno == EINTR ? -EINTR : -EAGAIN;
	return got;
}

static int tap_send(struct net_backend *b, struct vq_span *frame, uint8_t src_mac[NET_MAC_BYTES])
{
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	ssize_t n;
	(void)src_mac;
	while ((n = writev(t->fd, frame->iov, (int)frame->n)) < 0 && errno == EINTR)
		;
	return n < 0 ? -EIO : 0;
}

// What the tap may leave for the guest to do. In the other direction each frame's header
// says what is left for the tap.
static int tap_offload(struct net_backend *b, uint64_t guest)
{
	static const struct {
		uint64_t guest;
		unsigned tap;
	} all[] = {
		{ NET_F_GUEST_CSUM, TUN_F_CSUM }, { NET_F_GUEST_TSO4, TUN_F_TSO4 },
		{ NET_F_GUEST_TSO6, TUN_F_TSO6 }, { NET_F_GUEST_ECN, TUN_F_TSO_ECN },
		{ NET_F_GUEST_USO4, TAP_F_USO4 }, { NET_F_GUEST_USO6, TAP_F_USO6 },
	};
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	unsigned long offload = 0;
	for (unsigned i = 0; i < MV_ARRAY_LEN(all); i++)
		offload |= guest & all[i].guest ? all[i].tap : 0;
	return ioctl(t->fd, TUNSETOFFLOAD, offload) && offload ? -errno : 0;
}

// The kernel compares a few addresses, and has a hash for the rest of the multicast ones.
static void tap_filter(struct net_backend *b, bool all, bool allmulti, const uint8_t *macs, unsigned n)
{
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	struct { // struct tun_filter
		uint16_t flags, count;
		uint8_t macs[UINT8_MAX][NET_MAC_BYTES];
	} arg = { .flags = allmulti ? TUN_FLT_ALLMULTI : 0, .count = (uint16_t)(all ? 0 : n) };
	memcpy(arg.macs, macs, arg.count * (size_t)NET_MAC_BYTES);
	// It spares the guest frames; one that could not be set changes nothing else.
	ioctl(t->fd, TUNSETTXFILTER, &arg);
}

// The host's side has no link either, so it knows, and sends nothing into the void. (Linux 5.0.)
static void tap_carrier(struct net_backend *b, bool up)
{
	int on = up;
	ioctl(MV_CONTAINER(b, struct tap, b)->fd, TUNSETCARRIER, &on);
}

static int tap_enable(struct net_backend *b, bool on)
{
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	struct ifreq ifr = { .ifr_flags = on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE };
	if (on == !t->disabled)
		return 0;
	if (ioctl(t->fd, TUNSETQUEUE, &ifr))
		return -errno;
	t->disabled = !on;
	return 0;
}

// Both directions came with Linux 6.2.
static void ask_for_uso(struct tap *t)
{
	if (tap_offload(&t->b, NET_F_GUEST_CSUM | NET_F_GUEST_USO4 | NET_F_GUEST_USO6))
		t->b.features &= ~(NET_F_GUEST_USO4 | NET_F_GUEST_USO6 | NET_F_HOST_USO);
	tap_offload(&t->b, 0); // a tap keeps what its last user asked for
}

static void tap_free(struct net_backend *b)
{
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	mv_watch_del(&t->watch);
	mv_close(&t->fd);
	free(t);
}

static void on_tap(void *arg, uint32_t events)
{
	struct tap *t = arg;
	(void)events;
	t->b.events.readable(t->b.events.arg);
}

static int set_up_tap(int fd, const char *name, struct mv_err *err)
{
	struct ifreq ifr = { 0 };
	int header = NET_HEADER_BYTES, flags = fcntl(fd, F_GETFL);
	if (ioctl(fd, TUNGETIFF, &ifr) ||
	    (ifr.ifr_flags & (IFF_TAP | IFF_VNET_HDR | IFF_NO_PI)) != (IFF_TAP | IFF_VNET_HDR | IFF_NO_PI))
		return mv_fail(err, EINVAL, "%s: not a tap opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
			       name);
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
		return mv_fail(err, errno, "%s: cannot set up the tap: %s", name, strerror(errno));
	return 0;
}

static int tap_attach(struct net_backend *b, const char *name, int tap_fd, struct mv_err *err)
{
	struct tap *t = MV_CONTAINER(b, struct tap, b);
	MV_FD fd = tap_fd;
	int r = set_up_tap(fd, name, err);
	if (r)
		return r;
	r = mv_watch_add(t->loop, &t->watch, fd, EPOLLIN | EPOLLET, on_tap, t);
	if (r)
		return mv_fail(err, -r, "%s: cannot watch the tap: %s", name, strerror(-r));
	t->fd = MV_TAKE_FD(fd);
	ask_for_uso(t);
	return 0;
}

static const struct net_backend_ops tap_ops = {
	.features_hint = "; the snapshot was taken where taps can do more: use a newer kernel",
	.receive = tap_receive,
	.send = tap_send,
	.offload = tap_offload,
	.filter = tap_filter,
	.carrier = tap_carrier,
	.enable = tap_enable,
	.attach = tap_attach,
	.free = tap_free,
};

int net_tap_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		struct net_backend **ret_b, struct mv_err *err)
{
	struct tap *t = calloc(1, sizeof *t);
	if (!t) {
		mv_close(&fd);
		return mv_fail(err, ENOMEM, "out of memory");
	}
	*t = (struct tap){ .b = { &tap_ops, *events, NET_HOST_OFFLOADS | NET_GUEST_OFFLOADS },
			   .loop = loop,
			   .fd = -1 };
	int r = fd < 0 ? 0 : tap_attach(&t->b, name, fd, err);
	if (r)
		tap_free(&t->b);
	else
		*ret_b = &t->b;
	return r;
}
