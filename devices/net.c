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

enum { QUEUES_OF_PAIR = 2, STATUS_LINK_UP = 1, STATUS_ANNOUNCE = 2, DUPLEX_FULL = 1 };
enum { NOMINAL_MBIT = 10000, MTU_DEFAULT = 1500 };

#define FEATURES                                                                                             \
	(VIO_FEATURES | NET_F_MTU | NET_F_MAC | NET_F_STATUS | NET_F_MRG_RXBUF | NET_F_CTRL_VQ |             \
	 NET_F_CTRL_RX | NET_F_GUEST_ANNOUNCE | NET_F_CTRL_MAC_ADDR | NET_F_SPEED_DUPLEX)

// clang-format off
#define OPTIONAL_BYTES(member, tag_)                                                                         \
	{ .name = #member, .tag = (tag_), .type = MV_BYTES, .flags = MV_OPTIONAL,                            \
	  .offset = MV_OFF(struct net_state, member), .size = NET_MAC_BYTES }
static const struct mv_field state_fields[] = {
	MV_OPT_FLAG(struct net_state, link_down, 1),
	OPTIONAL_BYTES(source_mac, 2),
	OPTIONAL_BYTES(mac, 3),
	MV_OPT_INT(struct net_state, mode, 4, MV_U32, 0, 31),
	{ .name = "macs", .tag = 5, .type = MV_BLOB, .flags = MV_OPTIONAL,
	  .offset = MV_OFF(struct net_state, macs), .size = MV_SIZEOF(struct net_state, macs),
	  .count_offset = MV_OFF(struct net_state, macs_bytes) },
	MV_OPT_INT(struct net_state, pairs, 6, MV_U32, 0, VIO_NET_MAX_PAIRS),
	MV_OPT_INT(struct net_state, guest_offloads, 7, MV_U64, 0, UINT64_MAX),
};
// clang-format on
static MV_DEFINE_TABLE(state_table, struct net_state, state_fields);

static bool link_up(const struct vio_net *n) { return !n->down && !n->off; }

void net_update_status(struct vio_net *n)
{
	n->config.status = le16_make((link_up(n) ? STATUS_LINK_UP : 0) | (n->announce ? STATUS_ANNOUNCE : 0));
}

// Tells the guest what it does not know yet; not while it stands still.
static void update_link(struct vio_net *n)
{
	struct vio_dev *d = &n->dev;
	if (d->quiesced)
		return;
	net_update_status(n);
	if (n->state.link_down == !link_up(n))
		return;
	n->state.link_down = !link_up(n);
	if ((d->s.status & VIO_DRIVER_OK) && (d->s.features_acked & NET_F_STATUS))
		vio_signal_config(d);
}

// The driver goes by the MAC that it knows; a clone's own (vio_net_claim()) is accepted as well.
void net_apply_filter(struct vio_net *n)
{
	enum { OWN = 3 };
	const struct net_state *s = &n->state;
	const struct net_backend *b = n->pair[0].b;
	uint8_t macs[(OWN + NET_MAX_MACS) * NET_MAC_BYTES];
	bool all = !(s->mode & NET_MODE_FILTER) || (s->mode & (NET_MODE_PROMISC | NET_MODE_ALL));
	memset(macs, 0xff, NET_MAC_BYTES); // broadcast
	memcpy(macs + NET_MAC_BYTES, s->mac, NET_MAC_BYTES);
	memcpy(macs + 2 * NET_MAC_BYTES, n->mac, NET_MAC_BYTES);
	memcpy(macs + OWN * NET_MAC_BYTES, s->macs, s->macs_bytes);
	if (b->ops->filter)
		b->ops->filter(n->pair[0].b, all, s->mode & NET_MODE_ALLMULTI, macs,
			       OWN + s->macs_bytes / NET_MAC_BYTES);
}

int net_apply_offloads(struct vio_net *n)
{
	struct net_backend *b = n->pair[0].b;
	uint64_t guest = n->state.mode & NET_MODE_OFFLOADS ? n->state.guest_offloads
							   : n->dev.s.features_acked & NET_GUEST_OFFLOADS;
	return b->ops->offload ? b->ops->offload(b, guest) : 0;
}

// Also for a state that says otherwise: without NET_F_MQ the second pair's place is the control queue's.
static unsigned pairs_in_use(const struct vio_net *n)
{
	return n->dev.s.features_acked & NET_F_MQ && n->state.pairs ? n->state.pairs : 1;
}

static void net_exclude(struct vio_dev *d, bool on)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	for (unsigned i = 1; i < n->n_pairs; i++)
		(on ? mv_loop_lock : mv_loop_unlock)(n->pair[i].loop);
}

// By which loop its queues are served. Excluded.
static int place(struct net_pair *p, struct mv_loop *loop)
{
	int r = vio_move_queue(&p->n->dev, p->rx, loop);
	return r ? r : vio_move_queue(&p->n->dev, p->tx, loop);
}

// Excluded.
static int use_pair(struct net_pair *p, bool on)
{
	struct vio_net *n = p->n;
	int r = p->b->ops->enable ? p->b->ops->enable(p->b, on) : 0;
	r = r ? r : place(p, on ? p->loop : n->dev.loop);
	if (!r && !on)
		net_pair_put_back(p);
	else if (!r && p->index >= pairs_in_use(n)) // a new one: its frames are not lost until then
		vio_again(&n->dev, p->rx);
	return r;
}

int net_use_pairs(struct vio_net *n, unsigned pairs)
{
	struct mv_err err = { 0 };
	int r = 0;
	for (unsigned i = 1; !r && i < pairs; i++)
		if ((r = vio_thread_start(&n->pair[i].own, &n->dev, "net-queue", &err)))
			mv_log_limited(MV_ERROR, "%s", err.msg);
	net_exclude(&n->dev, true);
	for (unsigned i = 0; !r && i < n->n_pairs; i++)
		r = use_pair(&n->pair[i], i < pairs);
	if (!r)
		n->state.pairs = pairs;
	net_exclude(&n->dev, false);
	return r;
}

bool net_queue_live(const struct net_pair *p, unsigned q)
{
	return p->index < pairs_in_use(p->n) && vio_live(&p->n->dev, q);
}

static void on_readable(void *arg)
{
	struct net_pair *p = arg;
	p->readable = true;
	if (net_queue_live(p, p->rx))
		net_pair_receive(p);
}

static void on_writable(void *arg)
{
	struct net_pair *p = arg;
	p->writable = true;
	if (net_queue_live(p, p->tx))
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

// Section 5.1.2: behind all pairs, or behind the first for a driver that knows no others.
static unsigned ctrl_queue(const struct vio_net *n)
{
	return QUEUES_OF_PAIR * (n->dev.s.features_acked & NET_F_MQ ? n->n_pairs : 1);
}

static void net_kick(struct vio_dev *d, unsigned q)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	if (q < QUEUES_OF_PAIR)
		update_link(n);
	if (q == ctrl_queue(n)) {
		if (d->s.features_acked & NET_F_CTRL_VQ)
			net_ctrl_run(n, q);
	} else if (q / QUEUES_OF_PAIR < pairs_in_use(n)) {
		struct net_pair *p = &n->pair[q / QUEUES_OF_PAIR];
		(q == p->rx ? net_pair_receive : net_pair_transmit)(p);
	}
}

static void net_activate(struct vio_dev *d)
{
	static const uint8_t none[NET_MAC_BYTES];
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	if (!memcmp(n->state.mac, none, NET_MAC_BYTES))
		memcpy(n->state.mac, n->config.mac, NET_MAC_BYTES);
	net_apply_filter(n);
	if (net_apply_offloads(n))
		vio_needs_reset(d, "the tap refuses these offloads");
	else if (net_use_pairs(n, pairs_in_use(n)))
		vio_needs_reset(d, "its pairs of queues can't be used");
}

static void net_reset(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	net_exclude(d, true);
	d->s.status &= ~(uint32_t)VIO_DRIVER_OK; // no pair goes on with what is forgotten here
	for (unsigned i = 0; i < n->n_pairs; i++) {
		net_pair_forget(&n->pair[i]);
		place(&n->pair[i], d->loop); // failed: tried again by net_activate()
	}
	n->state = (struct net_state){ .link_down = n->state.link_down };
	net_exclude(d, false);
	if (n->mmds)
		net_mmds_reset(n->mmds);
	n->announce = false;
	memcpy(n->config.mac, n->mac, NET_MAC_BYTES);
	net_update_status(n);
	net_apply_filter(n);
}

static void net_quiesce(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	net_exclude(d, true);
	for (unsigned i = 0; i < n->n_pairs; i++)
		net_pair_put_back(&n->pair[i]);
	net_exclude(d, false);
}

static int net_check_state(const struct vio_dev *d, const void *loaded, struct mv_err *err)
{
	const struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	const struct net_state *s = loaded;
	if (s->pairs > n->n_pairs)
		return mv_fail(err, EINVAL, "the guest uses %u pairs of queues, the configuration has %u",
			       s->pairs, n->n_pairs);
	if (s->macs_bytes % NET_MAC_BYTES)
		return mv_fail(err, EINVAL, "a MAC address is cut off");
	return 0;
}

// Whoever knew where the guest was has to learn where it is now: the guest says so, if it can.
static void net_restored(struct vio_dev *d)
{
	static const uint8_t never[NET_MAC_BYTES];
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	struct net_backend *b = n->pair[0].b;
	n->announce = (d->s.status & VIO_DRIVER_OK) && (d->s.features_acked & NET_F_GUEST_ANNOUNCE);
	update_link(n);
	if (n->announce)
		vio_signal_config(d);
	if (b->ops->announce && memcmp(n->state.source_mac, never, NET_MAC_BYTES))
		b->ops->announce(b, n->state.source_mac);
}

static void free_pairs(struct vio_net *n)
{
	for (unsigned i = 0; n->pair && i < n->n_pairs; i++) {
		struct net_pair *p = &n->pair[i];
		if (p->b)
			p->b->ops->free(p->b);
		if (p->loop == &p->own.loop)
			mv_loop_fini(p->loop);
	}
	free(MV_TAKE(n->pair));
}

static void net_free(struct vio_dev *d)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	for (unsigned i = 0; i < n->n_pairs; i++)
		vio_thread_stop(&n->pair[i].own);
	mv_timer_fini(&n->limit[NET_RX].timer);
	mv_timer_fini(&n->limit[NET_TX].timer);
	net_mmds_free(MV_TAKE(n->mmds));
	vio_dev_fini(d);
	free_pairs(n);
	free(n);
}

static const struct vio_ops net_ops = {
	.device_id = 1,
	.config_bytes = sizeof(struct net_config),
	.n_queues = QUEUES_OF_PAIR + 1,
	.queue_size_max = NET_QUEUE_SIZE,
	.state = &state_table,
	.state_offset = offsetof(struct vio_net, state),
	.activate = net_activate,
	.reset = net_reset,
	.quiesce = net_quiesce,
	.exclude = net_exclude,
	.kick = net_kick,
	.check_state = net_check_state,
	.restored = net_restored,
	.free = net_free,
};

static int new_pair(struct vio_net *n, struct mv_loop *vm_loop, const char *label, unsigned i,
		    enum vio_net_backend kind, int net_fd, struct mv_err *err)
{
	MV_FD fd = net_fd;
	struct net_pair *p = &n->pair[i];
	int r = i ? mv_loop_init(&p->own.loop) : 0;
	if (r)
		return mv_fail(err, -r, "event loop: %s", strerror(-r));
	p->loop = i ? &p->own.loop : vm_loop;
	const struct net_events events = { on_readable, on_writable, on_down, p };
	p->n = n;
	p->index = i;
	p->rx = i * QUEUES_OF_PAIR;
	p->tx = p->rx + 1;
	p->readable = p->writable = true;
	static int (*const make[])(struct mv_loop * loop, const char *name, int fd,
				   const struct net_events *events, struct net_backend **ret_b,
				   struct mv_err *err) = {
		[VIO_NET_TAP] = net_tap_new, [VIO_NET_STREAM] = net_stream_new, [VIO_NET_NONE] = net_none_new
	};
	return make[kind](p->loop, label, MV_TAKE_FD(fd), &events, &p->b, err);
}

static int make(struct vio_net *n, struct gmem *mem, struct mv_loop *loop, const struct vio_net_options *o,
		int *fds, struct mv_err *err)
{
	char label[VIO_NAME_BYTES];
	snprintf(label, sizeof label, "network %s", o->name);
	n->n_pairs = o->n_pairs ? o->n_pairs : 1;
	for (unsigned direction = NET_RX; direction <= NET_TX; direction++) {
		n->limit[direction].n = n;
		pthread_mutex_init(&n->limit[direction].lock, NULL);
	}
	n->pair = calloc(n->n_pairs, sizeof *n->pair);
	if (!n->pair)
		return mv_fail(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < n->n_pairs; i++) {
		int r = new_pair(n, loop, label, i, o->kind, MV_TAKE_FD(fds[i]), err);
		if (r)
			return r;
	}
	n->config = (struct net_config){ .status = le16_make(STATUS_LINK_UP),
					 .max_pairs = le16_make((uint16_t)n->n_pairs),
					 .mtu = le16_make(o->mtu ? o->mtu : MTU_DEFAULT),
					 .speed = le32_make(NOMINAL_MBIT),
					 .duplex = DUPLEX_FULL };
	memcpy(n->config.mac, o->mac, NET_MAC_BYTES);
	memcpy(n->mac, o->mac, NET_MAC_BYTES);
	n->dev.config = &n->config;
	n->dev.n_queues = QUEUES_OF_PAIR * n->n_pairs + 1;
	const struct net_backend *b = n->pair[0].b;
	n->dev.features_hint = b->ops->features_hint;
	uint64_t offloads = b->features & NET_GUEST_OFFLOADS ? NET_F_CTRL_GUEST_OFFLOADS : 0;
	return vio_dev_init(&n->dev, &net_ops, label, mem, loop,
			    FEATURES | b->features | offloads | (n->n_pairs > 1 ? NET_F_MQ : 0), err);
}

int vio_net_new_with(struct gmem *mem, struct mv_loop *loop, const struct vio_net_options *o, int *fds,
		     struct vio_dev **ret_dev, struct mv_err *err)
{
	struct vio_net *n = calloc(1, sizeof *n);
	int r = n ? make(n, mem, loop, o, fds, err) : mv_fail(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < (o->n_pairs ? o->n_pairs : 1); i++)
		mv_close(&fds[i]);
	if (!r) {
		*ret_dev = &n->dev;
		return 0;
	}
	if (n)
		free_pairs(n);
	free(n);
	return r;
}

int vio_net_new(struct gmem *mem, struct mv_loop *loop, const char *name, const uint8_t mac[6],
		enum vio_net_backend kind, int fd, struct vio_dev **ret_dev, struct mv_err *err)
{
	const struct vio_net_options o = { .name = name, .mac = mac, .kind = kind };
	return vio_net_new_with(mem, loop, &o, &fd, ret_dev, err);
}

static int attach(struct vio_net *n, struct net_backend *b, int fd, struct mv_err *err)
{
	uint64_t used = n->dev.s.features_acked & (NET_GUEST_OFFLOADS | NET_HOST_OFFLOADS);
	if (!b->ops->attach) {
		mv_close(&fd);
		return mv_fail(err, EINVAL, "%s: it has its backend already", n->dev.name);
	}
	int r = b->ops->attach(b, n->dev.name, fd, err);
	if (!r && (used & ~b->features))
		return mv_fail(err, EINVAL,
			       "%s: the guest uses features 0x%llx that are not available here%s",
			       n->dev.name, (unsigned long long)(used & ~b->features), b->ops->features_hint);
	return r;
}

int vio_net_claim(struct vio_dev *d, const uint8_t mac[NET_MAC_BYTES], int *fds, struct mv_err *err)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	int r = 0;
	memcpy(n->config.mac, mac, NET_MAC_BYTES);
	memcpy(n->mac, mac, NET_MAC_BYTES);
	net_exclude(d, true);
	for (unsigned i = 0; !r && i < n->n_pairs; i++)
		if (fds[i] >= 0)
			r = attach(n, n->pair[i].b, MV_TAKE_FD(fds[i]), err);
	net_exclude(d, false);
	return r;
}

bool vio_net_link_up(const struct vio_dev *d) { return !MV_CONTAINER(d, struct vio_net, dev)->off; }

void vio_net_set_link(struct vio_dev *d, bool up)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	struct net_backend *b = n->pair[0].b;
	net_exclude(d, true);
	n->off = !up;
	for (unsigned i = 0; !d->quiesced && i < pairs_in_use(n); i++) {
		net_pair_put_back(&n->pair[i]);
		vio_again(d, n->pair[i].rx);
	}
	net_exclude(d, false);
	if (b->ops->carrier)
		b->ops->carrier(b, up);
	update_link(n);
}
