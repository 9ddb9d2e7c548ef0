// SPDX-License-Identifier: Apache-2.0
// The metadata service on a network device: frames for its address are taken out of what the guest sends, and
// answers go in with what it receives, before what the backend has. Whatever the backend is, it sees none of
// this.
//
// Frames come from any pair, with its loop's lock, and go out by the first one, with the VM's; so all but
// `address` and `pending` has a lock of its own. It is the innermost one but for that of struct mmds.
#include <errno.h>
#include <string.h>

#include "devices/mmds.h"
#include "devices/mmds_tcp.h"
#include "devices/net.h"
#include "microvm/base/util.h"

enum { NEEDS_CSUM = 1 }; // of a header's flags, virtio 1.2 section 5.1.6

struct net_mmds {
	struct vio_net *n;
	bool pending; // there may be a frame for the guest; atomic, set with the lock
	pthread_mutex_t lock;
	struct mmds_tcp tcp;
	struct mv_timer timer; // the VM's loop's
	uint64_t armed_ns;     // for when; 0: not
	uint8_t in[NET_HEADER_BYTES + NET_FRAME_MAX];
};

// There is something to send, or a time to wait for. Locked.
static void settle(struct net_mmds *s, uint64_t now_ns)
{
	uint64_t next_ns = mmds_tcp_next_tick(&s->tcp);
	if (!next_ns || (s->armed_ns && s->armed_ns <= next_ns))
		return; // when it fires too early, it is armed again
	s->armed_ns = next_ns;
	mv_timer_arm(&s->timer, next_ns > now_ns ? next_ns - now_ns : 0);
}

// Locked.
static void set_pending(struct net_mmds *s)
{
	if (!__atomic_exchange_n(&s->pending, true, __ATOMIC_RELAXED))
		vio_wake(&s->n->dev, s->n->pair[0].rx);
}

bool net_mmds_pending(const struct net_mmds *s) { return __atomic_load_n(&s->pending, __ATOMIC_RELAXED); }

bool net_mmds_takes(const struct net_mmds *s, const struct vq_span *frame)
{
	uint8_t front[NET_HEADER_BYTES + MMDS_TCP_HEADERS];
	size_t n = 0;
	for (unsigned i = 0; i < frame->n && n < sizeof front; i++) {
		size_t k =
			frame->iov[i].iov_len < sizeof front - n ? frame->iov[i].iov_len : sizeof front - n;
		memcpy(front + n, frame->iov[i].iov_base, k);
		n += k;
	}
	return n > NET_HEADER_BYTES &&
	       mmds_tcp_is_ours(s->tcp.address, front + NET_HEADER_BYTES, n - NET_HEADER_BYTES);
}

void net_mmds_input(struct net_mmds *s, struct vq_span *frame)
{
	pthread_mutex_lock(&s->lock);
	uint64_t now_ns = mv_now_ns();
	size_t n = vq_span_read(frame, s->in, sizeof s->in);
	mmds_tcp_input(&s->tcp, s->in + NET_HEADER_BYTES, n - NET_HEADER_BYTES, s->in[0] & NEEDS_CSUM,
		       now_ns);
	settle(s, now_ns);
	set_pending(s);
	pthread_mutex_unlock(&s->lock);
}

ssize_t net_mmds_receive(struct net_mmds *s, const struct iovec *to, unsigned n_iov)
{
	uint8_t frame[NET_HEADER_BYTES + MMDS_TCP_FRAME_MAX] = { 0 }; // nothing is left to do
	pthread_mutex_lock(&s->lock);
	uint64_t now_ns = mv_now_ns();
	size_t n = mmds_tcp_output(&s->tcp, frame + NET_HEADER_BYTES, now_ns);
	if (n)
		settle(s, now_ns);
	else
		__atomic_store_n(&s->pending, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&s->lock);
	if (!n)
		return -EAGAIN;
	net_scatter(to, n_iov, 0, frame, NET_HEADER_BYTES + n);
	return (ssize_t)(NET_HEADER_BYTES + n);
}

static void on_timer(void *arg)
{
	struct net_mmds *s = arg;
	pthread_mutex_lock(&s->lock);
	uint64_t now_ns = mv_now_ns();
	s->armed_ns = 0;
	mmds_tcp_tick(&s->tcp, now_ns);
	settle(s, now_ns);
	set_pending(s);
	pthread_mutex_unlock(&s->lock);
}

void net_mmds_reset(struct net_mmds *s)
{
	pthread_mutex_lock(&s->lock);
	mmds_tcp_reset(&s->tcp);
	__atomic_store_n(&s->pending, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&s->lock);
}

void net_mmds_free(struct net_mmds *s)
{
	if (!s)
		return;
	mv_timer_fini(&s->timer);
	mmds_tcp_reset(&s->tcp);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int vio_net_set_mmds(struct vio_dev *d, struct mmds *m, struct mv_err *err)
{
	struct vio_net *n = MV_CONTAINER(d, struct vio_net, dev);
	struct net_mmds *s = calloc(1, sizeof *s);
	int r = s ? mv_timer_init(d->loop, &s->timer, on_timer, s) : -ENOMEM;
	if (r) {
		free(s);
		return mv_fail(err, -r, "%s: metadata service: %s", d->name, strerror(-r));
	}
	const struct mmds_tcp_app app = { mmds_http_request, m };
	mmds_tcp_init(&s->tcp, m->config.address, MMDS_HTTP_PORT, le16_get(n->config.mtu), &app);
	pthread_mutex_init(&s->lock, NULL);
	s->n = n;
	n->mmds = s;
	return 0;
}
