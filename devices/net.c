// SPDX-License-Identifier: Apache-2.0
// virtio-net (virtio 1.2 section 5.1): two queues, a MAC address and the link's status. Where
// frames come from and go to is the backend's business (net.h), as are the offloads
// that the guest is offered.
//
// Receiving goes on while there are frames (`readable`) and buffers; whichever runs out first
// brings us back by its event or its notification. Sending likewise (`writable`). When
// the other side is gone the guest sees its link go down (section 5.1.4.2), what it sends is
// dropped, and the VM goes on.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "devices/net.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { RX, TX, N_QUEUES };
enum { QUEUE_SIZE = 256, FRAMES_PER_KICK = 128, STATUS_LINK_UP = 1 };

struct net_config { // section 5.1.4
	uint8_t mac[NET_MAC_BYTES];
	le16_t status;
};
_Static_assert(sizeof(struct net_config) == 8, "section 5.1.4");

struct net_state {
	bool link_down;                    // as the guest was told
	uint8_t source_mac[NET_MAC_BYTES]; // of the last frame that a stream took; zero: none yet
};

static const struct mv_field state_fields[] = {
	{ .name = "link_down",
	  .tag = 1,
	  .type = MV_BOOL,
	  .flags = MV_OPTIONAL,
	  .offset = MV_OFF(struct net_state, link_down),
	  .size = 1,
	  .max = 1 },
	{ .name = "source_mac",
	  .tag = 2,
	  .type = MV_BYTES,
	  .flags = MV_OPTIONAL,
	  .offset = MV_OFF(struct net_state, source_mac),
	  .size = NET_MAC_BYTES },
};
static MV_DEFINE_TABLE(state_table, struct net_state, state_fields);

struct vio_net {
	struct vio_dev dev;
	struct net_config config;
	struct net_state state;
	struct net_backend *b;
	bool readable, writable, down;
	struct net_counts counts;
	struct vq_chain chain;
};

// Tells the guest what it does not know yet; not while it stands still.
static void update_link(struct vio_net *n)
{
	struct vio_dev *d = &n->dev;
	if (d->quiesced)
		return;
	n->config.status = le16_make(n->down ? 0 : STATUS_LINK_UP);
	if (n->state.link_down == n->down)
		return;
	n->state.link_down = n->down;
	if ((d->s.status & VIO_DRIVER_OK) && (d->s.features_acked & NET_F_STATUS))
		vio_signal_config(d);
}

static void receive(struct vio_net *n)
{
	struct vio_dev *d = &n->dev;
	struct vq_chain *c = &n->chain;
	unsigned left = FRAMES_PER_KICK;

	while (n->readable && left) {
		if (!vio_pop(d, RX, c)) {
			if (!vio_rearm(d, RX))
				break;
			continue;
		}
		vq_disable_notify(&d->s.queue[RX]);
		if (c->writable.bytes < NET_HEADER_BYTES + NET_ETH_BYTES) {
			vio_needs_reset(d, "a receive buffer too small for any frame");
			break;
		}
		ssize_t got = n->b->ops->receive(n->b, &c->writable);
		if (got < 0) {
			n->readable = got != -EAGAIN;
			n->counts.dropped += got == -EMSGSIZE;
			left -= got == -EMSGSIZE;
			vq_unpop(&d->s.queue[RX]);
			continue;
		}
		vq_push(&d->s.queue[RX], c->head, (uint32_t)got);
		n->counts.received++;
		left--;
	}
	if (!left)
		vio_again(d, RX);
	vio_signal_queue(d, RX);
}

// One frame; false: it has to wait.
static bool transmit_one(struct vio_net *n, struct vq_span *frame)
{
	int r = -EINVAL;
	if (frame->bytes >= NET_HEADER_BYTES + NET_ETH_BYTES)
		r = n->b->ops->send(n->b, frame, n->state.source_mac);
	n->counts.sent += r == 0;
	n->counts.dropped += r && r != -EAGAIN;
	return r != -EAGAIN;
}

static void transmit(struct vio_net *n)
{
	struct vio_dev *d = &n->dev;
	struct vq_chain *c = &n->chain;
	unsigned left = FRAMES_PER_KICK;
	do {
		if (vio_live(d, TX))
			vq_disable_notify(&d->s.queue[TX]);
		for (; left && n->writable && vio_pop(d, TX, c); left--) {
			n->writable = transmit_one(n, &c->readable);
			if (n->writable)
				vq_push(&d->s.queue[TX], c->head, 0);
			else
				vq_unpop(&d->s.queue[TX]);
		}
	} while (left && n->writable && vio_rearm(d, TX));
	if (!left)
		vio_again(d, TX);
	vio_signal_queue(d, TX);
}

static void on_readable(void *arg)
{
	struct vio_net *n = arg;
	n->readable = true;
	if (vio_live(&n->dev, RX))
		receive(n);
}

static void on_writable(void *arg)
{
	struct vio_net *n = arg;
	n->writable = true;
	if (vio_live(&n->dev, TX))
		transmit(n);
}

static void on_down(void *arg, const char *why)
{
	struct vio_net *n = arg;
	const struct net_counts *c = &n->counts;
	mv_log(MV_WARN,
	       "%s: link down: %s (frames: %" PRIu64 " sent, %" PRIu64 " received, %" PRIu64 " dropped)",
	       n->dev.name, why, c->sent, c->received, c->dropped);
	n->down = true;
	update_link(n);
	if (!n->writable) // what waited is dropped, but not from within a send()
		vio_again(&n->dev, TX);
	n->writable = true;
}

static void net_kick(struct vio_dev *d, unsigned q)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	update_link(n);
	if (q == RX)
		receive(n);
	else
		transmit(n);
}

static void net_activate(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	if (n->b->ops->activate(n->b, d->s.features_acked))
		vio_needs_reset(d, "the tap refuses checksum offload");
}

static void net_restored(struct vio_dev *d)
{
	static const uint8_t never[NET_MAC_BYTES];
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	update_link(n);
	if (n->b->ops->announce && memcmp(n->state.source_mac, never, NET_MAC_BYTES))
		n->b->ops->announce(n->b, n->state.source_mac);
}

static void net_free(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	if (n->b)
		n->b->ops->free(n->b);
	vio_dev_fini(d);
	free(n);
}

static const struct vio_ops net_ops = {
	.device_id = 1,
	.config_bytes = sizeof(struct net_config),
	.n_queues = N_QUEUES,
	.queue_size_max = QUEUE_SIZE,
	.state = &state_table,
	.state_offset = offsetof(struct vio_net, state),
	.activate = net_activate,
	.kick = net_kick,
	.restored = net_restored,
	.free = net_free,
};

int vio_net_new(struct gmem *mem, struct mv_loop *loop, const char *name, const uint8_t mac[6],
		enum vio_net_backend kind, int backend_fd, struct vio_dev **ret_dev, struct mv_err *err)
{
	MV_FD fd = backend_fd;
	MV_FREE struct vio_net *n = calloc(1, sizeof *n);
	if (!n)
		return mv_fail(err, ENOMEM, "out of memory");
	char label[VIO_NAME_BYTES];
	snprintf(label, sizeof label, "network %s", name);
	const struct net_events events = { on_readable, on_writable, on_down, n };
	int r = (kind == VIO_NET_TAP ? net_tap_new : net_stream_new)(loop, label, MV_TAKE_FD(fd), &events,
								     &n->b, err);
	if (r)
		return r;
	r = vio_dev_init(&n->dev, &net_ops, label, mem, loop,
			 VIO_FEATURES | NET_F_MAC | NET_F_STATUS | n->b->ops->features, err);
	if (r) {
		n->b->ops->free(n->b);
		return r;
	}
	memcpy(n->config.mac, mac, NET_MAC_BYTES);
	n->config.status = le16_make(STATUS_LINK_UP);
	n->writable = true;
	n->dev.config = &n->config;
	n->dev.features_hint = n->b->ops->features_hint;
	*ret_dev = &MV_TAKE(n)->dev;
	return 0;
}

int vio_net_claim(struct vio_dev *d, const uint8_t mac[NET_MAC_BYTES], int backend_fd, struct mv_err *err)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	MV_FD fd = backend_fd;
	memcpy(n->config.mac, mac, NET_MAC_BYTES);
	if (fd < 0)
		return 0;
	if (!n->b->ops->attach)
		return mv_fail(err, EINVAL, "%s: it has its backend already", n->dev.name);
	return n->b->ops->attach(n->b, n->dev.name, MV_TAKE_FD(fd), err);
}
