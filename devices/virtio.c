// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define STATUS_BITS                                                                                          \
	(VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_DRIVER_OK | VIO_FEATURES_OK | VIO_NEEDS_RESET | VIO_FAILED)

static const struct mv_field state_fields[] = {
	MV_INT(struct vio_state, device_id, 1, MV_U32, 1, 63),
	MV_INT(struct vio_state, features_acked, 2, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vio_state, status, 3, MV_U32, 0, STATUS_BITS),
	MV_INT(struct vio_state, isr, 4, MV_U32, 0, VIO_ISR_QUEUE | VIO_ISR_CONFIG),
	MV_INT(struct vio_state, config_generation, 5, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vio_state, features_sel, 6, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vio_state, driver_features_sel, 7, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vio_state, queue_sel, 8, MV_U32, 0, UINT32_MAX),
	MV_ARRAY(struct vio_state, queue, n_queue, 9, vq_table),
	MV_VAR(struct vio_state, device, n_device, 10),
};
static MV_DEFINE_TABLE(state_table, struct vio_state, state_fields);

static void on_kick(void *arg, uint32_t events)
{
	struct vio_kick *k = arg;
	unsigned q = (unsigned)(k - k->dev->kick);
	eventfd_t n;
	(void)events;
	if (eventfd_read(k->dev->kick_fd[q], &n))
		return;
	k->signals += n;
	if (vio_live(k->dev, q))
		k->dev->ops->kick(k->dev, q);
}

void vio_exclude(struct vio_dev *d, bool on)
{
	if (d->ops->exclude)
		d->ops->exclude(d, on);
}

// Replaces the state, but for what was counted.
static void set_state(struct vio_dev *d, const struct vio_state *s)
{
	struct vq_counts n[VIO_MAX_QUEUES];
	for (unsigned q = 0; q < VIO_MAX_QUEUES; q++)
		n[q] = d->s.queue[q].n;
	d->s = *s;
	for (unsigned q = 0; q < VIO_MAX_QUEUES; q++)
		d->s.queue[q].n = n[q];
}

static void power_on(struct vio_dev *d)
{
	const struct vio_state s = { .device_id = d->ops->device_id,
				     .n_queue = d->n_queues,
				     .config_generation = d->s.config_generation };
	set_state(d, &s);
	for (unsigned q = 0; q < d->n_queues; q++)
		d->kick[q].broken = NULL;
	d->active = false;
}

int vio_dev_init(struct vio_dev *d, const struct vio_ops *ops, const char *name, struct gmem *mem,
		 struct mv_loop *loop, uint64_t features, struct mv_err *err)
{
	int r = 0;
	d->ops = ops;
	d->n_queues = d->n_queues ? d->n_queues : ops->n_queues;
	snprintf(d->name, sizeof d->name, "%s", name);
	d->mem = mem;
	d->loop = loop;
	d->features_offered = features;
	power_on(d);
	for (unsigned q = 0; q < VIO_MAX_QUEUES; q++)
		d->kick_fd[q] = -1;
	d->broken_fd = -1;
	d->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->irq_fd < 0)
		r = -errno;
	for (unsigned q = 0; !r && q < d->n_queues; q++) {
		d->kick[q].dev = d;
		d->kick_fd[q] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = d->kick_fd[q] < 0 ? -errno
				      : mv_watch_add(loop, &d->kick[q].watch, d->kick_fd[q], EPOLLIN, on_kick,
						     &d->kick[q]);
	}
	if (!r)
		return 0;
	vio_dev_fini(d);
	return mv_fail(err, -r, "%s: cannot make an eventfd: %s", name, strerror(-r));
}

void vio_dev_fini(struct vio_dev *d)
{
	for (unsigned q = 0; q < d->n_queues; q++) {
		mv_watch_del(&d->kick[q].watch);
		mv_close(&d->kick_fd[q]);
	}
	mv_watch_del(&d->broken_watch);
	mv_close(&d->broken_fd);
	mv_close(&d->irq_fd);
}

static void on_broken(void *arg, uint32_t events)
{
	struct vio_dev *d = arg;
	eventfd_t n;
	const char *why = NULL;
	(void)events;
	eventfd_read(d->broken_fd, &n);
	vio_exclude(d, true);
	for (unsigned q = 0; q < d->n_queues; q++)
		why = d->kick[q].broken ? d->kick[q].broken : why;
	vio_exclude(d, false);
	if (why) // else it was reset meanwhile
		vio_needs_reset(d, why);
}

int vio_move_queue(struct vio_dev *d, unsigned q, struct mv_loop *loop)
{
	int r = 0;
	if (d->kick[q].watch.loop == loop)
		return 0;
	if (d->broken_fd < 0) {
		d->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = d->broken_fd < 0
			    ? -errno
			    : mv_watch_add(d->loop, &d->broken_watch, d->broken_fd, EPOLLIN, on_broken, d);
	}
	if (r)
		return r;
	mv_watch_del(&d->kick[q].watch);
	return mv_watch_add(loop, &d->kick[q].watch, d->kick_fd[q], EPOLLIN, on_kick, &d->kick[q]);
}

static bool is_moved(const struct vio_dev *d, unsigned q) { return d->kick[q].watch.loop != d->loop; }

void vio_queue_broken(struct vio_dev *d, unsigned q, const char *why)
{
	if (!is_moved(d, q)) {
		vio_needs_reset(d, why);
		return;
	}
	d->kick[q].broken = why;
	eventfd_write(d->broken_fd, 1);
}

bool vio_live(const struct vio_dev *d, unsigned q)
{
	return (d->s.status & (VIO_DRIVER_OK | VIO_NEEDS_RESET)) == VIO_DRIVER_OK && !d->quiesced &&
	       d->s.queue[q].ready && !d->kick[q].broken;
}

bool vio_pop(struct vio_dev *d, unsigned q, struct vq_chain *ret_chain)
{
	if (!vio_live(d, q))
		return false;
	int r = vq_pop(&d->s.queue[q], ret_chain);
	if (r < 0)
		vio_queue_broken(d, q, strerror(-r));
	return r == 1;
}

bool vio_rearm(struct vio_dev *d, unsigned q) { return vio_live(d, q) && vq_enable_notify(&d->s.queue[q]); }

void vio_wake(struct vio_dev *d, unsigned q)
{
	__atomic_fetch_add(&d->kick[q].own, 1, __ATOMIC_RELAXED);
	eventfd_write(d->kick_fd[q], 1);
}

void vio_again(struct vio_dev *d, unsigned q)
{
	d->kick[q].again++;
	vio_wake(d, q);
}

uint64_t vio_kicks_by_event(const struct vio_dev *d, unsigned q)
{
	uint64_t all = d->kick[q].signals, own = __atomic_load_n(&d->kick[q].own, __ATOMIC_RELAXED);
	return all > own ? all - own : 0; // own may be ahead: not yet taken
}

static void signal_driver(struct vio_dev *d, uint32_t isr)
{
	__atomic_fetch_or(&d->s.isr, isr, __ATOMIC_SEQ_CST); // from any loop
	eventfd_write(d->irq_fd, 1);
}

void vio_signal_queue(struct vio_dev *d, unsigned q)
{
	if (d->s.queue[q].ready && vq_should_signal(&d->s.queue[q]))
		signal_driver(d, VIO_ISR_QUEUE);
}

void vio_signal_config(struct vio_dev *d)
{
	d->s.config_generation++;
	d->config_interrupts++;
	signal_driver(d, VIO_ISR_CONFIG);
}

void vio_needs_reset(struct vio_dev *d, const char *why)
{
	mv_log_limited(MV_WARN, "%s: stopped until the guest resets it: %s", d->name, why);
	vio_exclude(d, true);
	d->s.status |= VIO_NEEDS_RESET;
	vio_exclude(d, false);
	if (d->s.status & VIO_DRIVER_OK)
		vio_signal_config(d);
}

void vio_notify(struct vio_dev *d, unsigned q)
{
	if (is_moved(d, q))
		vio_wake(d, q);
	else if (vio_live(d, q))
		d->ops->kick(d, q);
}

static void look_at_queues(struct vio_dev *d)
{
	for (unsigned q = 0; q < d->n_queues; q++)
		vio_notify(d, q);
}

static void activate(struct vio_dev *d)
{
	d->active = true;
	if (d->ops->activate)
		d->ops->activate(d);
}

// Sections 2.1.1 and 3.1.1: bits are only added, in order; zero resets.
void vio_set_status(struct vio_dev *d, uint32_t value)
{
	if (!value) {
		if (d->ops->reset)
			d->ops->reset(d);
		vio_exclude(d, true);
		power_on(d);
		vio_exclude(d, false);
		return;
	}
	uint32_t now = d->s.status, add = value & ~now & (STATUS_BITS & ~VIO_NEEDS_RESET);
	uint64_t acked = d->s.features_acked;
	if ((add & VIO_FEATURES_OK) && ((acked & ~d->features_offered) || !(acked & VIRTIO_F_VERSION_1)))
		add &= ~(uint32_t)VIO_FEATURES_OK; // the driver sees that it did not stick
	if (!((now | add) & VIO_FEATURES_OK))
		add &= ~(uint32_t)VIO_DRIVER_OK;
	vio_exclude(d, true);
	d->s.status = now | add;
	vio_exclude(d, false);
	if ((add & VIO_DRIVER_OK) && !(now & VIO_NEEDS_RESET) && !d->quiesced) {
		activate(d);
		look_at_queues(d); // a driver may fill queues before it sets DRIVER_OK
	}
}

void vio_set_ready(struct vio_dev *d, unsigned i, bool ready)
{
	struct vq *q = &d->s.queue[i];
	q->ready = false;
	if (!ready)
		return;
	int r = q->size > d->ops->queue_size_max ? -EINVAL : vq_map(q, d->mem, d->s.features_acked);
	if (r)
		vio_needs_reset(d, r == -EFAULT ? "a ring is outside guest memory"
						: "a ring has a bad size or alignment");
	else
		q->ready = true;
}

void vio_quiesce(struct vio_dev *d)
{
	vio_exclude(d, true);
	d->quiesced = true;
	vio_exclude(d, false);
	if (d->ops->quiesce)
		d->ops->quiesce(d);
}

void vio_unquiesce(struct vio_dev *d)
{
	vio_exclude(d, true);
	d->quiesced = false;
	vio_exclude(d, false);
	if (d->restored && d->ops->restored)
		d->ops->restored(d);
	d->restored = false;
	if (d->s.isr) // the interrupt itself may not have reached the saved interrupt controller
		eventfd_write(d->irq_fd, 1);
	if ((d->s.status & (VIO_DRIVER_OK | VIO_NEEDS_RESET)) == VIO_DRIVER_OK && !d->active)
		activate(d);
	look_at_queues(d);
}

void vio_save(const struct vio_dev *d, struct mv_buf *out)
{
	struct vio_state s = d->s;
	MV_BUF own = { 0 };
	if (d->ops->state)
		mv_state_save(d->ops->state, (const uint8_t *)d + d->ops->state_offset, &own);
	if (own.failed || own.len > sizeof s.device) {
		out->failed = true;
		return;
	}
	if (own.len)
		memcpy(s.device, own.p, own.len);
	s.n_device = (uint32_t)own.len;
	mv_state_save(&state_table, &s, out);
}

// Everything the table's ranges cannot say; maps the rings of `s`.
static int check(const struct vio_dev *d, struct vio_state *s, struct mv_err *err)
{
	bool features_ok = s->status & VIO_FEATURES_OK;
	if (s->device_id != d->ops->device_id || s->n_queue > d->n_queues)
		return mv_fail(err, EINVAL, "the saved device is of another type (%u)", s->device_id);
	// Before FEATURES_OK the driver may have written anything.
	if (features_ok && (s->features_acked & ~d->features_offered))
		return mv_fail(err, EINVAL, "the guest uses features 0x%llx that are not available here%s",
			       (unsigned long long)(s->features_acked & ~d->features_offered),
			       d->features_hint ? d->features_hint : "");
	if (((s->status & VIO_DRIVER_OK) && !features_ok) ||
	    (features_ok && !(s->features_acked & VIRTIO_F_VERSION_1)))
		return mv_fail(err, EINVAL, "impossible device status 0x%x", s->status);
	for (unsigned i = 0; i < s->n_queue; i++) {
		struct vq *q = &s->queue[i];
		if (q->size > d->ops->queue_size_max || (q->ready && !features_ok) ||
		    (q->ready && vq_map(q, d->mem, s->features_acked)))
			return mv_fail(err, EINVAL, "queue %u: bad size, alignment or address", i);
	}
	return 0;
}

static int load(struct vio_dev *d, const void *bytes, size_t len, struct mv_err *err)
{
	const struct mv_table *own = d->ops->state;
	MV_FREE void *scratch = calloc(1, own ? own->size : 1);
	struct vio_state s;
	if (!scratch)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&state_table, bytes, len, &s, err);
	if (!r)
		r = check(d, &s, err);
	if (!r && own)
		r = mv_state_load(own, s.device, s.n_device, scratch, err);
	if (!r && own && d->ops->check_state)
		r = d->ops->check_state(d, scratch, err);
	if (r)
		return r;
	vio_exclude(d, true);
	set_state(d, &s);
	d->s.n_queue = d->n_queues;
	if (own)
		memcpy((uint8_t *)d + d->ops->state_offset, scratch, own->size);
	d->quiesced = d->restored = true;
	vio_exclude(d, false);
	return 0;
}

int vio_load(struct vio_dev *d, const void *bytes, size_t len, struct mv_err *err)
{
	int r = load(d, bytes, len, err);
	if (r)
		mv_wrap(err, "%s", d->name);
	return r;
}

void vio_free(struct vio_dev *d)
{
	if (d)
		d->ops->free(d);
}
