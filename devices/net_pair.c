// SPDX-License-Identifier: Apache-2.0
// The two data queues of virtio-net (virtio 1.2 section 5.1.6): frames between a backend and the
// guest's buffers, without a copy.
//
// Receiving: nobody knows the size of a frame before it is read, so buffers for the largest one are
// taken from the queue first (the pool), and one read fills as many as the frame needs. With
// mergeable buffers (section 5.1.6.3.1) the others stay in the pool for the next one. Behind
// them stands the spill, so that no frame is cut off: what lands there waits for buffers.
//
// Both directions work until frames, buffers or the turn's budget run out; whichever it is
// brings us back by its event, its notification or vio_again().
#include <errno.h>
#include <string.h>

#include "devices/net.h"
#include "microvm/base/util.h"

enum { FRAMES_PER_TURN = 128, BYTES_PER_TURN = 1 << 20 };
enum { VLAN_TAG_BYTES = 4, ROOM_DECAY = 64 };

struct budget {
	unsigned frames;
	size_t bytes;
};
#define A_TURN ((struct budget){ FRAMES_PER_TURN, BYTES_PER_TURN })

static bool left(const struct budget *b) { return b->frames && b->bytes; }

static void spend(struct budget *b, size_t bytes)
{
	b->frames--;
	b->bytes -= bytes < b->bytes ? bytes : b->bytes;
}

void net_scatter(const struct iovec *to, unsigned n, size_t at, const void *src, size_t len)
{
	const uint8_t *p = src;
	for (; n && len; n--, to++) {
		if (at >= to->iov_len) {
			at -= to->iov_len;
			continue;
		}
		size_t k = to->iov_len - at < len ? to->iov_len - at : len;
		memcpy((uint8_t *)to->iov_base + at, p, k);
		p += k;
		len -= k;
		at = 0;
	}
}

// ---- in

static bool mergeable(const struct net_pair *p) { return p->n->dev.s.features_acked & NET_F_MRG_RXBUF; }

// Moves the pool to the front when its end is near. False: it is full.
static bool make_room(struct net_pool *o)
{
	if (o->at + o->n < NET_POOL_BUFS && o->iov_at + o->n_iov + VQ_MAX_IOV <= NET_POOL_IOV)
		return true;
	memmove(o->buf, o->buf + o->at, o->n * sizeof *o->buf);
	memmove(o->iov, o->iov + o->iov_at, o->n_iov * sizeof *o->iov);
	o->at = o->iov_at = 0;
	return o->n < NET_POOL_BUFS && o->n_iov + VQ_MAX_IOV <= NET_POOL_IOV;
}

// Takes buffers until they hold `want` bytes; without mergeable ones a frame has one to go to. False: the
// pool can't grow.
static bool fill_pool(struct net_pair *p, size_t want)
{
	struct net_pool *o = &p->pool;
	struct vio_dev *d = &p->n->dev;
	unsigned least = NET_HEADER_BYTES + (mergeable(p) ? 0 : NET_ETH_BYTES);
	while (o->bytes < want) {
		const struct vq_span *s = &p->chain.writable;
		if ((o->n && !mergeable(p)) || !make_room(o))
			return false;
		if (!vio_pop(d, p->rx, &p->chain))
			return o->n < d->s.queue[p->rx].size;
		vq_disable_notify(&d->s.queue[p->rx]);
		if (s->bytes < least) {
			vio_queue_broken(d, p->rx, "a receive buffer too small for any frame");
			return false;
		}
		o->buf[o->at + o->n].head = p->chain.head;
		o->buf[o->at + o->n].n_iov = (uint16_t)s->n;
		o->buf[o->at + o->n++].bytes = (uint32_t)s->bytes;
		memcpy(o->iov + o->iov_at + o->n_iov, s->iov, s->n * sizeof *s->iov);
		o->n_iov += s->n;
		o->bytes += s->bytes;
	}
	return true;
}

// What one read is to have room for: a frame of the MTU, but for some hundred frames after a larger one
// (segmentation is left to the guest, or the host's MTU was raised) the largest. The more buffers a read
// is given, the longer it takes; when they were too few, the spill has the rest.
static size_t frame_room(struct net_pair *p)
{
	size_t least = NET_HEADER_BYTES + NET_ETH_BYTES + VLAN_TAG_BYTES + le16_get(p->n->config.mtu);
	p->room -= p->room / ROOM_DECAY;
	if (p->room < least)
		p->room = least;
	return p->room;
}

// The frame that lies in the pool's buffers, and in the spill, is the guest's.
static void deliver(struct net_pair *p)
{
	struct net_pool *o = &p->pool;
	struct vq_used_elem used[NET_POOL_BUFS];
	const struct iovec *iov = o->iov + o->iov_at;
	unsigned k = 0, n_iov = 0;
	size_t bytes = 0;

	net_scatter(iov, o->n_iov, p->frame - p->spilled, p->spill, p->spilled);
	for (; bytes < p->frame; k++) {
		uint32_t room = o->buf[o->at + k].bytes,
			 n = p->frame - bytes < room ? (uint32_t)(p->frame - bytes) : room;
		used[k] = (struct vq_used_elem){ le32_make(o->buf[o->at + k].head), le32_make(n) };
		n_iov += o->buf[o->at + k].n_iov;
		o->bytes -= room;
		bytes += n;
	}
	le16_t num_buffers = le16_make((uint16_t)k);
	net_scatter(iov, o->n_iov, NET_NUM_BUFFERS_AT, &num_buffers, sizeof num_buffers);
	vq_push_all(&p->n->dev.s.queue[p->rx], used, k);
	o->at += k;
	o->n -= k;
	o->iov_at += n_iov;
	o->n_iov -= n_iov;
	p->frame = p->spilled = 0;
	p->counts.received++;
}

// The metadata service may have a frame.
static bool has_answers(const struct net_pair *p)
{
	return p->n->mmds && !p->index && net_mmds_pending(p->n->mmds);
}

// True: a frame is there, in the pool's buffers and perhaps the spill.
static bool take_frame(struct net_pair *p)
{
	struct net_pool *o = &p->pool;
	struct iovec *iov = o->iov + o->iov_at;
	size_t bytes = 0;
	unsigned n = 0;
	while (n < o->n_iov && bytes < p->room)
		bytes += iov[n++].iov_len;
	struct iovec next = iov[n];
	iov[n] = (struct iovec){ p->spill, sizeof p->spill };
	ssize_t got = has_answers(p) ? net_mmds_receive(p->n->mmds, iov, n + 1) : -EAGAIN;
	if (got == -EAGAIN) {
		got = p->b->ops->receive(p->b, iov, n + 1);
		p->readable = got != -EAGAIN;
	}
	iov[n] = next;
	if (got <= 0)
		return false;
	p->frame = (size_t)got;
	p->spilled = p->frame > bytes ? p->frame - bytes : 0;
	if (p->frame > p->room)
		p->room = NET_HEADER_BYTES + NET_FRAME_MAX;
	return true;
}

// What comes while the link is down is lost, as it would be on a wire.
static void discard(struct net_pair *p)
{
	const struct iovec spill = { p->spill, sizeof p->spill };
	struct budget turn = A_TURN;
	while (p->readable && left(&turn)) {
		ssize_t got = p->b->ops->receive(p->b, &spill, 1);
		p->readable = got != -EAGAIN;
		p->counts.dropped += got > 0;
		spend(&turn, got > 0 ? (size_t)got : 0);
	}
	if (!left(&turn))
		vio_again(&p->n->dev, p->rx);
}

void net_pair_receive(struct net_pair *p)
{
	struct vio_dev *d = &p->n->dev;
	struct budget turn = A_TURN;

	if (p->n->off) {
		discard(p);
		return;
	}

	while ((p->readable || p->frame || has_answers(p)) && left(&turn) && net_may_go(p, NET_RX)) {
		bool can_grow = fill_pool(p, p->frame ? p->frame : frame_room(p));
		if (!vio_live(d, p->rx))
			break;
		if (!p->pool.n || (p->frame > p->pool.bytes && can_grow)) {
			if (!vio_rearm(d, p->rx))
				break;
		} else if (p->frame > p->pool.bytes) { // it never fits
			spend(&turn, p->frame);
			p->frame = p->spilled = 0;
			p->counts.dropped++;
		} else if (p->frame || take_frame(p)) {
			if (p->frame > p->pool.bytes)
				continue;
			spend(&turn, p->frame);
			p->owed[NET_RX] = p->frame - NET_HEADER_BYTES;
			deliver(p);
		}
	}
	if (!left(&turn))
		vio_again(d, p->rx);
	vio_signal_queue(d, p->rx);
}

// What is owed for the last frames stays: a reset is no way around a limit.
void net_pair_forget(struct net_pair *p)
{
	p->counts.dropped += p->frame != 0;
	p->frame = p->spilled = 0;
	p->pool.at = p->pool.n = p->pool.iov_at = p->pool.n_iov = 0;
	p->pool.bytes = 0;
	p->readable = p->writable = true;
}

void net_pair_put_back(struct net_pair *p)
{
	while (p->pool.n) {
		vq_unpop(&p->n->dev.s.queue[p->rx]);
		p->pool.n--;
	}
	net_pair_forget(p);
}

// ---- out

// False: it has to wait.
static bool transmit_one(struct net_pair *p, struct vq_span *frame)
{
	int r = -EINVAL;
	if (!p->n->off && frame->bytes >= NET_HEADER_BYTES + NET_ETH_BYTES &&
	    frame->bytes <= NET_HEADER_BYTES + NET_FRAME_MAX) {
		if (p->n->mmds && net_mmds_takes(p->n->mmds, frame)) {
			net_mmds_input(p->n->mmds, frame);
			r = 0;
		} else {
			r = p->b->ops->send(p->b, frame, p->n->state.source_mac);
		}
	}
	p->counts.sent += r == 0;
	p->counts.dropped += r && r != -EAGAIN;
	return r != -EAGAIN;
}

void net_pair_transmit(struct net_pair *p)
{
	struct vio_dev *d = &p->n->dev;
	struct vq_chain *c = &p->chain;
	struct budget turn = A_TURN;
	do {
		if (vio_live(d, p->tx))
			vq_disable_notify(&d->s.queue[p->tx]);
		while (left(&turn) && p->writable && net_may_go(p, NET_TX) && vio_pop(d, p->tx, c)) {
			spend(&turn, c->readable.bytes);
			const size_t whole = c->readable.bytes;
			p->writable = transmit_one(p, &c->readable);
			if (p->writable) {
				p->owed[NET_TX] = whole > NET_HEADER_BYTES ? whole - NET_HEADER_BYTES : 1;
				vq_push(&d->s.queue[p->tx], c->head, 0);
			} else {
				vq_unpop(&d->s.queue[p->tx]);
			}
		}
	} while (left(&turn) && p->writable && net_may_go(p, NET_TX) && vio_rearm(d, p->tx));
	if (!left(&turn))
		vio_again(d, p->tx);
	vio_signal_queue(d, p->tx);
}
