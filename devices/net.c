// SPDX-License-Identifier: Apache-2.0
// virtio-net (virtio 1.2 section 5.1) on a tap. Every frame starts with the 12-byte
// header of section 5.1.6 on both sides, so the tap (IFF_VNET_HDR) takes and gives
// buffers as they are; only num_buffers is ours to fill in.
//
// The tap is watched edge-triggered: `tap_readable` says that a read may find a frame.
// Receiving goes on while there are frames and buffers; whichever runs out first brings
// us back by its event (tap) or its notification (buffers).
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "devices/devices.h"
#include "microvm/base/util.h"

enum { RX, TX, N_QUEUES };
enum { QUEUE_SIZE = 256, FRAMES_PER_KICK = 128, HEADER_BYTES = 12, NUM_BUFFERS_AT = 10 };
enum { ETH_HEADER_BYTES = 14 };

#define F_CSUM (1ULL << 0) // section 5.1.3
#define F_GUEST_CSUM (1ULL << 1)
#define F_MAC (1ULL << 5)
#define F_HOST_TSO4 (1ULL << 11)
#define F_HOST_TSO6 (1ULL << 12)

struct vio_net {
	struct vio_dev dev;
	uint8_t mac[6]; // = the configuration space
	int tap_fd;
	struct mv_watch tap_watch;
	bool tap_readable;
	struct vq_chain chain;
};

static void receive(struct vio_net *n)
{
	struct vio_dev *d = &n->dev;
	struct vq_chain *c = &n->chain;
	unsigned left = FRAMES_PER_KICK;

	while (n->tap_readable && left) {
		if (!vio_pop(d, RX, c)) {
			if (!vio_rearm(d, RX))
				break;
			continue;
		}
		vq_disable_notify(&d->s.queue[RX]);
		if (c->writable.bytes < HEADER_BYTES + ETH_HEADER_BYTES) {
			vio_needs_reset(d, "a receive buffer too small for any frame");
			break;
		}
		ssize_t got = readv(n->tap_fd, c->writable.iov, (int)c->writable.n);
		if (got < HEADER_BYTES) { // EAGAIN, or the interface is down or gone
			n->tap_readable = got < 0 && errno == EINTR;
			vq_unpop(&d->s.queue[RX]);
			continue;
		}
		vq_span_skip(&c->writable, NUM_BUFFERS_AT);
		le16_t one = le16_make(1);
		vq_span_write(&c->writable, &one, sizeof one);
		vq_push(&d->s.queue[RX], c->head, (uint32_t)got);
		left--;
	}
	if (!left)
		vio_again(d, RX);
	vio_signal_queue(d, RX);
}

// A frame the tap does not take now is dropped, as a real link would.
static void transmit(struct vio_net *n)
{
	struct vio_dev *d = &n->dev;
	struct vq_chain *c = &n->chain;
	unsigned left = FRAMES_PER_KICK;
	do {
		if (vio_live(d, TX))
			vq_disable_notify(&d->s.queue[TX]);
		for (; left && vio_pop(d, TX, c); left--) {
			if (c->readable.bytes >= HEADER_BYTES + ETH_HEADER_BYTES)
				while (writev(n->tap_fd, c->readable.iov, (int)c->readable.n) < 0 &&
				       errno == EINTR)
					;
			vq_push(&d->s.queue[TX], c->head, 0);
		}
	} while (left && vio_rearm(d, TX));
	if (!left)
		vio_again(d, TX);
	vio_signal_queue(d, TX);
}

static void on_tap(void *arg, uint32_t events)
{
	struct vio_net *n = arg;
	(void)events;
	n->tap_readable = true;
	if (vio_live(&n->dev, RX))
		receive(n);
}

static void net_kick(struct vio_dev *d, unsigned q)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	if (q == RX)
		receive(n);
	else
		transmit(n);
}

// What the tap may leave for the guest to do. In the other direction each frame's header
// says what is left for the tap.
static void net_activate(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	unsigned long offload = d->s.features_acked & F_GUEST_CSUM ? TUN_F_CSUM : 0;
	if (ioctl(n->tap_fd, TUNSETOFFLOAD, offload) && offload)
		vio_needs_reset(d, "the tap refuses checksum offload");
}

static void net_free(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	mv_watch_del(&n->tap_watch);
	mv_close(&n->tap_fd);
	vio_dev_fini(d);
	free(n);
}

static const struct vio_ops net_ops = {
	.device_id = 1,
	.config_bytes = sizeof(((struct vio_net *)0)->mac),
	.n_queues = N_QUEUES,
	.queue_size_max = QUEUE_SIZE,
	.activate = net_activate,
	.kick = net_kick,
	.free = net_free,
};

static int set_up_tap(int fd, const char *name, struct mv_err *err)
{
	struct ifreq ifr = { 0 };
	int header = HEADER_BYTES, flags = fcntl(fd, F_GETFL);
	if (ioctl(fd, TUNGETIFF, &ifr) ||
	    (ifr.ifr_flags & (IFF_TAP | IFF_VNET_HDR | IFF_NO_PI)) != (IFF_TAP | IFF_VNET_HDR | IFF_NO_PI))
		return mv_fail(err, EINVAL, "%s: not a tap opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
			       name);
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
		return mv_fail(err, errno, "%s: cannot set up the tap: %s", name, strerror(errno));
	return 0;
}

int vio_net_new(struct gmem *mem, struct mv_loop *loop, const char *name, const uint8_t mac[6], int tap_fd,
		struct vio_dev **ret_dev, struct mv_err *err)
{
	MV_FD fd = tap_fd;
	char label[VIO_NAME_BYTES];
	snprintf(label, sizeof label, "network %s", name);
	int r = set_up_tap(fd, label, err);
	if (r)
		return r;
	MV_FREE struct vio_net *n = calloc(1, sizeof *n);
	if (!n)
		return mv_fail(err, ENOMEM, "out of memory");
	uint64_t features = VIO_FEATURES | F_MAC | F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_HOST_TSO6;
	r = vio_dev_init(&n->dev, &net_ops, label, mem, loop, features, err);
	if (r)
		return r;
	r = mv_watch_add(loop, &n->tap_watch, fd, EPOLLIN | EPOLLET, on_tap, n);
	if (r) {
		vio_dev_fini(&n->dev);
		return mv_fail(err, -r, "%s: cannot watch the tap: %s", label, strerror(-r));
	}
	memcpy(n->mac, mac, sizeof n->mac);
	n->dev.config = n->mac;
	n->tap_fd = MV_TAKE_FD(fd);
	*ret_dev = &MV_TAKE(n)->dev;
	return 0;
}
