// SPDX-License-Identifier: Apache-2.0
// virtio-net (virtio 1.2 section 5.1): a MAC address, the link's status, and pairs of queues
// (net_pair.c). Where frames come from and go to is the backends' business (net.h), as are the
// offloads that the guest is offered.
//
// When the other side is gone the guest sees its link go down (section 5.1.4.2), what it sends is
// dropped, and the VM goes on.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "devices/net.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { QUEUES_OF_PAIR = 2, STATUS_LINK_UP = 1 };

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

static void on_readable(void *arg)
{
	struct net_pair *p = arg;
	p->readable = true;
	if (vio_live(&p->n->dev, p->rx))
		net_pair_receive(p);
}

static void on_writable(void *arg)
{
	struct net_pair *p = arg;
	p->writable = true;
	if (vio_live(&p->n->dev, p->tx))
		net_pair_transmit(p);
}

static void on_down(void *arg, const char *why)
{
	struct net_pair *p = arg;
	const struct net_counts *c = &p->counts;
	mv_log(MV_WARN,
	       "%s: link down: %s (frames: %" PRIu64 " sent, %" PRIu64 " received, %" PRIu64 " dropped)",
	       p->n->dev.name, why, c->sent, c->received, c->dropped);
	p->n->down = true;
	update_link(p->n);
	if (!p->writable) // what waited is dropped, but not from within a send()
		vio_again(&p->n->dev, p->tx);
	p->writable = true;
}

static void net_kick(struct vio_dev *d, unsigned q)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	struct net_pair *p = &n->pair[q / QUEUES_OF_PAIR];
	update_link(n);
	if (q == p->rx)
		net_pair_receive(p);
	else
		net_pair_transmit(p);
}

static void net_activate(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	for (unsigned i = 0; i < n->n_pairs; i++) {
		struct net_backend *b = n->pair[i].b;
		if (b->ops->offload && b->ops->offload(b, d->s.features_acked & NET_GUEST_OFFLOADS))
			vio_needs_reset(d, "the tap refuses these offloads");
	}
}

static void net_reset(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	for (unsigned i = 0; i < n->n_pairs; i++)
		net_pair_forget(&n->pair[i]);
}

static void net_quiesce(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	for (unsigned i = 0; i < n->n_pairs; i++)
		net_pair_put_back(&n->pair[i]);
}

static void net_restored(struct vio_dev *d)
{
	static const uint8_t never[NET_MAC_BYTES];
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	struct net_backend *b = n->pair[0].b;
	update_link(n);
	if (b->ops->announce && memcmp(n->state.source_mac, never, NET_MAC_BYTES))
		b->ops->announce(b, n->state.source_mac);
}

static void free_pairs(struct vio_net *n)
{
	for (unsigned i = 0; n->pair && i < n->n_pairs; i++)
		if (n->pair[i].b)
			n->pair[i].b->ops->free(n->pair[i].b);
	free(MV_TAKE(n->pair));
}

static void net_free(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	free_pairs(n);
	vio_dev_fini(d);
	free(n);
}

static const struct vio_ops net_ops = {
	.device_id = 1,
	.config_bytes = sizeof(struct net_config),
	.n_queues = QUEUES_OF_PAIR,
	.queue_size_max = NET_QUEUE_SIZE,
	.state = &state_table,
	.state_offset = offsetof(struct vio_net, state),
	.activate = net_activate,
	.reset = net_reset,
	.quiesce = net_quiesce,
	.kick = net_kick,
	.restored = net_restored,
	.free = net_free,
};

static int new_pair(struct vio_net *n, struct mv_loop *loop, const char *label, unsigned i,
		    enum vio_net_backend kind, int fd, struct mv_err *err)
{
	struct net_pair *p = &n->pair[i];
	const struct net_events events = { on_readable, on_writable, on_down, p };
	p->n = n;
	p->rx = i * QUEUES_OF_PAIR;
	p->tx = p->rx + 1;
	p->writable = true;
	return (kind == VIO_NET_TAP ? net_tap_new : net_stream_new)(loop, label, fd, &events, &p->b, err);
}

int vio_net_new(struct gmem *mem, struct mv_loop *loop, const char *name, const uint8_t mac[6],
		enum vio_net_backend kind, int backend_fd, struct vio_dev **ret_dev, struct mv_err *err)
{
	MV_FD fd = backend_fd;
	MV_FREE struct vio_net *n = calloc(1, sizeof *n);
	if (!n || !(n->pair = calloc(1, sizeof *n->pair)))
		return mv_fail(err, ENOMEM, "out of memory");
	n->n_pairs = 1;
	char label[VIO_NAME_BYTES];
	snprintf(label, sizeof label, "network %s", name);
	int r = new_pair(n, loop, label, 0, kind, MV_TAKE_FD(fd), err);
	if (!r)
		r = vio_dev_init(&n->dev, &net_ops, label, mem, loop,
				 VIO_FEATURES | NET_F_MAC | NET_F_STATUS | NET_F_MRG_RXBUF |
					 n->pair[0].b->features,
				 err);
	if (r) {
		free_pairs(n);
		return r;
	}
	memcpy(n->config.mac, mac, NET_MAC_BYTES);
	n->config.status = le16_make(STATUS_LINK_UP);
	n->dev.config = &n->config;
	n->dev.features_hint = n->pair[0].b->ops->features_hint;
	*ret_dev = &MV_TAKE(n)->dev;
	return 0;
}

int vio_net_claim(struct vio_dev *d, const uint8_t mac[NET_MAC_BYTES], int backend_fd, struct mv_err *err)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	struct net_backend *b = n->pair[0].b;
	MV_FD fd = backend_fd;
	memcpy(n->config.mac, mac, NET_MAC_BYTES);
	if (fd < 0)
		return 0;
	if (!b->ops->attach)
		return mv_fail(err, EINVAL, "%s: it has its backend already", n->dev.name);
	int r = b->ops->attach(b, n->dev.name, MV_TAKE_FD(fd), err);
	if (!r && (d->s.features_acked & (NET_GUEST_OFFLOADS | NET_HOST_OFFLOADS) & ~b->features))
		r = mv_fail(err, EINVAL, "%s: the guest uses offloads that this tap does not have", d->name);
	return r;
}
