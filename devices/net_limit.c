// SPDX-License-Identifier: Apache-2.0
// virtio-net's rate limits, see struct net_limit. Pairs are paid for in turn: were it whoever asks first,
// one with small frames would take each token as it comes, and one with large frames would wait for ever.
#include <string.h>

#include "devices/net.h"
#include "microvm/base/util.h"

bool net_may_go(struct net_pair *p, unsigned direction)
{
	struct net_limit *l = &p->n->limit[direction];
	const uint32_t bit = 1u << p->index;
	if (!mv_rate_limited(&l->rate) || !p->owed[direction])
		return true;
	pthread_mutex_lock(&l->lock);
	bool ok = l->paid & bit;
	l->paid &= ~bit;
	if (!ok && !l->waiting) {
		uint64_t wait_ns = mv_rate_take(&l->rate, p->owed[direction], mv_now_ns());
		ok = !wait_ns;
		if (wait_ns)
			mv_timer_arm(&l->timer, wait_ns);
	}
	l->waiting |= ok ? 0 : bit;
	pthread_mutex_unlock(&l->lock);
	if (ok)
		p->owed[direction] = 0;
	return ok;
}

static void kick(struct net_limit *l, uint32_t pairs)
{
	struct vio_net *n = l->n;
	for (unsigned i = 0; i < n->n_pairs; i++)
		if (pairs & 1u << i)
			vio_notify(&n->dev, l == &n->limit[NET_RX] ? n->pair[i].rx : n->pair[i].tx);
}

static void on_limit(void *arg)
{
	struct net_limit *l = arg;
	struct vio_net *n = l->n;
	const unsigned direction = l == &n->limit[NET_RX] ? NET_RX : NET_TX, first = l->first;
	uint64_t wait_ns = 0;
	uint32_t paid = 0;
	pthread_mutex_lock(&l->lock);
	for (unsigned k = 0; k < n->n_pairs && !wait_ns; k++) {
		unsigned i = (first + k) % n->n_pairs;
		if (!(l->waiting & 1u << i))
			continue;
		wait_ns = mv_rate_take(&l->rate, n->pair[i].owed[direction], mv_now_ns());
		paid |= wait_ns ? 0 : 1u << i;
		l->first = wait_ns ? i : i + 1;
	}
	l->waiting &= ~paid;
	l->paid |= paid;
	if (wait_ns)
		mv_timer_arm(&l->timer, wait_ns);
	pthread_mutex_unlock(&l->lock);
	kick(l, paid);
}

// Whoever waits asks again, for less or for longer.
static int set_limit(struct net_limit *l, const struct vmcfg_rate *rate)
{
	struct vio_dev *d = &l->n->dev;
	int r = 0;
	if ((rate->bandwidth.size || rate->ops.size) && !l->timer.watch.loop)
		r = mv_timer_init(d->loop, &l->timer, on_limit, l);
	if (r)
		return r;
	vio_exclude(d, true);
	mv_rate_set(&l->rate, rate, mv_now_ns());
	uint32_t waited = l->waiting | l->paid;
	l->waiting = l->paid = 0;
	vio_exclude(d, false);
	kick(l, waited);
	return 0;
}

int vio_net_set_limits(struct vio_dev *d, const struct vmcfg_rate *rx, const struct vmcfg_rate *tx,
		       struct mv_err *err)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	int r = set_limit(&n->limit[NET_RX], rx);
	r = r ? r : set_limit(&n->limit[NET_TX], tx);
	return r ? mv_fail(err, -r, "%s: no timer for its rate limit: %s", d->name, strerror(-r)) : 0;
}
