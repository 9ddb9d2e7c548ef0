// SPDX-License-Identifier: Apache-2.0
// virtio-rng (virtio 1.2 section 5.4), from getrandom(2). No state: two clones of one
// snapshot draw different bytes, since neither has anything to share.
#include <errno.h>
#include <string.h>

#include "devices/devices.h"
#include "microvm/base/token_bucket.h"
#include "microvm/base/util.h"

// A turn of the loop makes at most 32 x 4 KiB: what is left of a buffer stays unfilled,
// which the driver expects, and further buffers wait for the next turn.
enum { QUEUE_SIZE = 64, POPS_PER_KICK = 32, BYTES_PER_BUFFER = 4096 };

struct vio_rng {
	struct vio_dev dev;
	struct vq_chain chain;
	struct mv_rate rate;
	struct mv_timer timer; // of the rate; made with the first limit
	uint64_t owed;         // bytes of the last buffer, to be paid before the next one is looked at
	bool owes, waits;      // waits: the timer runs
};

// A buffer's size is known when it was taken; so it goes, and the one behind it waits.
static bool may_go(struct vio_rng *r)
{
	if (!r->owes || r->waits)
		return !r->waits;
	uint64_t wait_ns = mv_rate_take(&r->rate, r->owed, mv_now_ns());
	if (wait_ns)
		mv_timer_arm(&r->timer, wait_ns);
	r->waits = wait_ns;
	r->owes = wait_ns;
	return !wait_ns;
}

static void on_timer(void *arg)
{
	struct vio_rng *r = arg;
	r->waits = false;
	vio_notify(&r->dev, 0);
}

static void rng_kick(struct vio_dev *d, unsigned q)
{
	struct vio_rng *r = MV_CONTAINER(d, struct vio_rng, dev);
	uint8_t bytes[BYTES_PER_BUFFER];
	unsigned left = POPS_PER_KICK;
	do {
		for (; left && may_go(r) && vio_pop(d, q, &r->chain); left--) {
			struct vq_span *out = &r->chain.writable;
			size_t n = out->bytes < sizeof bytes ? out->bytes : sizeof bytes;
			mv_random(bytes, n);
			vq_push(&d->s.queue[q], r->chain.head, (uint32_t)vq_span_write(out, bytes, n));
			r->owed = n;
			r->owes = mv_rate_limited(&r->rate);
		}
	} while (left && !r->waits && vio_rearm(d, q));
	if (!left && !r->waits)
		vio_again(d, q);
	explicit_bzero(bytes, sizeof bytes);
	vio_signal_queue(d, q);
}

static void rng_free(struct vio_dev *d)
{
	struct vio_rng *r = MV_CONTAINER(d, struct vio_rng, dev);
	mv_timer_fini(&r->timer);
	vio_dev_fini(d);
	free(r);
}

static const struct vio_ops rng_ops = {
	.device_id = 4,
	.n_queues = 1,
	.queue_size_max = QUEUE_SIZE,
	.kick = rng_kick,
	.free = rng_free,
};

int vio_rng_new(struct gmem *mem, struct mv_loop *loop, struct vio_dev **ret_dev, struct mv_err *err)
{
	MV_FREE struct vio_rng *r = calloc(1, sizeof *r);
	if (!r)
		return mv_fail(err, ENOMEM, "out of memory");
	int e = vio_dev_init(&r->dev, &rng_ops, "rng", mem, loop, VIO_FEATURES, err);
	if (e)
		return e;
	*ret_dev = &MV_TAKE(r)->dev;
	return 0;
}

int vio_rng_set_limit(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err)
{
	struct vio_rng *r = MV_CONTAINER(d, struct vio_rng, dev);
	if (!rate->bandwidth.size && !rate->ops.size)
		return 0;
	int e = mv_timer_init(d->loop, &r->timer, on_timer, r);
	if (e)
		return mv_fail(err, -e, "no timer for its rate limit: %s", strerror(-e));
	mv_rate_set(&r->rate, rate, mv_now_ns());
	return 0;
}
