// SPDX-License-Identifier: Apache-2.0
// devices/virtio.c and devices/virtio_mmio.c, by the rng device and a small one of our own.
#include <errno.h>
#include <poll.h>

#include "tests/devices/t_driver.h"

#include "microvm/base/util.h"

struct toy {
	struct vio_dev dev;
	struct {
		uint32_t value;
	} saved;
	unsigned kicks[2], activations, resets, restores;
	struct vq_chain c;
	void (*meanwhile)(void *arg); // between the last look at a queue and asking for notifications
	void *meanwhile_arg;
};

static void toy_kick(struct vio_dev *d, unsigned q)
{
	struct toy *t = MV_CONTAINER(d, struct toy, dev);
	t->kicks[q]++;
	do {
		while (vio_pop(d, q, &t->c))
			vq_push(&d->s.queue[q], t->c.head, 7);
		if (t->meanwhile)
			t->meanwhile(t->meanwhile_arg);
	} while (vio_rearm(d, q));
	vio_signal_queue(d, q);
}
static void toy_activate(struct vio_dev *d) { MV_CONTAINER(d, struct toy, dev)->activations++; }
static void toy_reset(struct vio_dev *d) { MV_CONTAINER(d, struct toy, dev)->resets++; }
static void toy_restored(struct vio_dev *d) { MV_CONTAINER(d, struct toy, dev)->restores++; }
static int toy_check(const struct vio_dev *d, const void *loaded, struct mv_err *err)
{
	(void)d;
	return *(const uint32_t *)loaded == 13 ? mv_fail(err, EINVAL, "unlucky") : 0;
}
static void toy_free(struct vio_dev *d)
{
	vio_dev_fini(d);
	free(MV_CONTAINER(d, struct toy, dev));
}

struct toy_saved {
	uint32_t value;
};
static const struct mv_field toy_fields[] = { MV_INT(struct toy_saved, value, 1, MV_U32, 0, 100) };
static MV_DEFINE_TABLE(toy_table, struct toy_saved, toy_fields);
static const struct vio_ops toy_ops = {
	.device_id = 42,
	.config_bytes = 6,
	.n_queues = 2,
	.queue_size_max = 16,
	.state = &toy_table,
	.state_offset = offsetof(struct toy, saved),
	.activate = toy_activate,
	.reset = toy_reset,
	.kick = toy_kick,
	.check_state = toy_check,
	.restored = toy_restored,
	.free = toy_free,
};

struct fixture {
	struct t_vm vm;
	struct t_queue drv[2];
	struct toy *t;
	struct vio_dev *d;
};

static struct toy *toy_new(struct t_vm *vm, uint64_t features)
{
	struct toy *t = calloc(1, sizeof *t);
	assert_int_equal(vio_dev_init(&t->dev, &toy_ops, "toy", &vm->mem, &vm->loop, features, NULL), 0);
	t->dev.config = "abcdef";
	return t;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	t_queue_init(&f->drv[0], &f->vm, 16);
	t_queue_init(&f->drv[1], &f->vm, 8);
	f->t = toy_new(&f->vm, VIO_FEATURES | 5);
	f->d = &f->t->dev;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	vio_free(f->d);
	t_vm_fini(&f->vm);
	free(f);
	return 0;
}

static void test_registers(void **state)
{
	struct vio_dev *d = ((struct fixture *)*state)->d;
	assert_int_equal(t_get(d, 0x000), 0x74726976);
	assert_int_equal(t_get(d, 0x004), 2);
	assert_int_equal(t_get(d, 0x008), 42);
	assert_int_equal(t_get(d, 0x00c), 0x77616874);
	assert_int_equal(t_get(d, 0x010), 5 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
	t_set(d, 0x014, 1);
	assert_int_equal(t_get(d, 0x010), 1);
	t_set(d, 0x014, 2);
	assert_int_equal(t_get(d, 0x010), 0);
	assert_int_equal(t_get(d, 0x034), 16);
	t_set(d, 0x030, 2); // no such queue
	assert_int_equal(t_get(d, 0x034), 0);
	assert_int_equal(t_get(d, 0x044), 0);
	assert_int_equal(t_get(d, 0x0b0), UINT32_MAX);
	assert_int_equal(t_get(d, 0x0bc), UINT32_MAX);
	// Wrong widths and places read as zero, and nothing is written by them.
	uint64_t wide = UINT64_MAX;
	vio_mmio_read(d, 0, &wide, 8);
	assert_int_equal(wide, 0);
	wide = UINT64_MAX;
	vio_mmio_read(d, 2, &wide, 2);
	assert_int_equal(wide, 0xffffffffffff0000);
	vio_mmio_write(d, 0x070, &wide, 8);
	vio_mmio_write(d, 0x070, "\x01", 1);
	assert_int_equal(t_get(d, 0x070), 0);
	assert_int_equal(t_get(d, 0xffc), 0);
	char text[8] = { 0 };
	vio_mmio_read(d, 0x101, text, 2);
	assert_string_equal(text, "bc");
	vio_mmio_read(d, 0x104, text, 4); // only two bytes are left
	assert_memory_equal(text, "\0\0\0", 4);
	vio_mmio_write(d, 0x100, "zzzz", 4);
	vio_mmio_read(d, 0x100, text, 4);
	assert_memory_equal(text, "abcd", 4);
}

static void test_negotiation(void **state)
{
	struct vio_dev *d = ((struct fixture *)*state)->d;
	t_set(d, 0x020, 1);
	assert_int_equal(d->s.features_acked, 0); // not before DRIVER
	t_set(d, 0x070, 1 | 2);
	t_set(d, 0x020, 1);
	t_set(d, 0x070, 1 | 2 | 8);
	assert_int_equal(t_get(d, 0x070), 3); // without VERSION_1
	t_set(d, 0x024, 1);
	t_set(d, 0x020, 3); // VERSION_1 and one that was not offered
	t_set(d, 0x070, 1 | 2 | 8);
	assert_int_equal(t_get(d, 0x070), 3);
	t_set(d, 0x020, 1);
	t_set(d, 0x070, 1 | 2 | 4);
	assert_int_equal(t_get(d, 0x070), 3); // DRIVER_OK too early
	t_set(d, 0x070, 1 | 2 | 8);
	assert_int_equal(t_get(d, 0x070), 11);
	t_set(d, 0x020, 0);
	assert_int_equal(d->s.features_acked, VIRTIO_F_VERSION_1 | 1); // closed now
	t_set(d, 0x070, 64 | 128 | 11);
	assert_int_equal(t_get(d, 0x070), 128 | 11); // NEEDS_RESET is ours to set
	t_set(d, 0x070, 1);
	assert_int_equal(t_get(d, 0x070), 128 | 11); // bits are not taken back
	t_set(d, 0x070, 0);
	assert_int_equal(t_get(d, 0x070), 0);
	assert_int_equal(d->s.features_acked, 0);
}

static void test_queues_and_interrupts(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = f->d;
	struct t_buf b = { t_alloc(&f->vm, 16, 1), 16, true };
	t_add(&f->drv[1], &b, 1); // filled before DRIVER_OK
	t_start(d, VIO_FEATURES, f->drv, 2);
	assert_int_equal(f->t->activations, 1);
	assert_true(t_used(&f->drv[1], NULL, NULL));
	assert_int_equal(t_irqs(d), 1);
	assert_int_equal(t_get(d, 0x060), 1);
	t_set(d, 0x064, 1);
	assert_int_equal(t_get(d, 0x060), 0);
	t_set(d, 0x044, 0); // not while the driver is active
	assert_int_equal(t_get(d, 0x044), 1);
	t_add(&f->drv[0], &b, 1);
	t_kick(d, 0); // by register
	assert_true(t_used(&f->drv[0], NULL, NULL));
	t_add(&f->drv[0], &b, 1);
	t_event(d, 0);
	t_run_until(&f->vm, t_has_used, &f->drv[0]);
	t_kick(d, 2); // no such queue
	unsigned resets = f->t->resets;
	t_set(d, 0x070, 0);
	assert_int_equal(f->t->resets, resets + 1);
	unsigned kicks = f->t->kicks[0];
	t_kick(d, 0);
	assert_int_equal(f->t->kicks[0], kicks); // not alive
	assert_int_equal(t_get(d, 0x044), 0);
}

// What is counted, and that a reset takes none of it back.
static void test_counters(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = f->d;
	struct t_buf b = { t_alloc(&f->vm, 16, 1), 16, true };
	const struct vq_counts *n = &d->s.queue[0].n;
	t_start(d, VIO_FEATURES, f->drv, 2);
	for (unsigned i = 0; i < 6; i++)
		t_add(&f->drv[0], &b, 1);
	t_kick(d, 0); // six requests, one kick, one interrupt
	assert_int_equal(d->kick[0].by_exit, 1);
	assert_int_equal(vio_kicks_by_event(d, 0), 0);
	assert_int_equal(n->popped, 6);
	assert_int_equal(n->used, 6);
	assert_int_equal(n->interrupts, 1);
	assert_int_equal(n->suppressed, 0);
	assert_int_equal(t_irqs(d), 1);
	*f->drv[0].used_event = le16_make(11); // after six more: six kicks, one interrupt
	for (unsigned i = 0; i < 6; i++) {
		t_add(&f->drv[0], &b, 1);
		t_event(d, 0);
		t_run_ms(&f->vm, 1);
		assert_int_equal(n->interrupts, i < 5 ? 1 : 2);
	}
	assert_int_equal(vio_kicks_by_event(d, 0), 6);
	assert_int_equal(n->suppressed, 5);
	assert_int_equal(t_irqs(d), 1);
	for (unsigned i = 0; i < 2; i++) // none asked for
		t_add(&f->drv[0], &b, 1);
	t_event(d, 0);
	t_event(d, 0);
	vio_again(d, 0); // the device's own is no kick
	t_run_ms(&f->vm, 1);
	assert_int_equal(vio_kicks_by_event(d, 0), 8);
	assert_int_equal(d->kick[0].again, 1);
	assert_int_equal(n->suppressed, 6);
	assert_int_equal(t_irqs(d), 0);
	t_kick(d, 2); // no such queue
	assert_int_equal(d->config_interrupts, 0);
	vio_signal_config(d);
	assert_int_equal(d->config_interrupts, 1);
	assert_int_equal(t_irqs(d), 1);
	t_set(d, 0x070, 0);
	assert_int_equal(n->used, 14);
	assert_int_equal(n->interrupts, 2);
	assert_int_equal(vio_kicks_by_event(d, 0), 8);
}

// InterruptStatus says why, until the driver acknowledges just that.
static void test_isr(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = f->d;
	struct t_buf b = { t_alloc(&f->vm, 16, 1), 16, true };
	t_start(d, VIO_FEATURES, f->drv, 2);
	t_add(&f->drv[0], &b, 1);
	t_kick(d, 0);
	vio_signal_config(d);
	assert_int_equal(t_get(d, 0x060), VIO_ISR_QUEUE | VIO_ISR_CONFIG);
	assert_int_equal(t_get(d, 0x060), VIO_ISR_QUEUE | VIO_ISR_CONFIG); // reading changes nothing
	t_set(d, 0x064, VIO_ISR_QUEUE);
	assert_int_equal(t_get(d, 0x060), VIO_ISR_CONFIG);
	t_set(d, 0x064, ~(uint32_t)VIO_ISR_CONFIG);
	assert_int_equal(t_get(d, 0x060), VIO_ISR_CONFIG);
	t_set(d, 0x064, UINT32_MAX);
	assert_int_equal(t_get(d, 0x060), 0);
	assert_int_equal(t_irqs(d), 2);
	// One that the driver did not want leaves no trace: a shared line must not look busy.
	t_add(&f->drv[0], &b, 1);
	t_kick(d, 0);
	assert_int_equal(t_get(d, 0x060), 0);
	assert_int_equal(t_irqs(d), 0);
	// Not acknowledged yet: the next one is an edge of its own all the same.
	*f->drv[0].used_event = le16_make(2);
	for (uint16_t i = 0; i < 2; i++) {
		t_add(&f->drv[0], &b, 1);
		t_kick(d, 0);
		*f->drv[0].used_event = le16_make((uint16_t)(i + 3));
	}
	assert_int_equal(t_irqs(d), 2);
	t_set(d, 0x070, 0);
	assert_int_equal(t_get(d, 0x060), 0);
}

static void test_bad_ring_address(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = f->d;
	t_negotiate(d, VIO_FEATURES);
	t_set(d, 0x038, 16);
	t_set(d, 0x084, 0xffff0000);
	t_set(d, 0x044, 1);
	assert_int_equal(t_get(d, 0x044), 0);
	assert_true(t_get(d, 0x070) & VIO_NEEDS_RESET);
	assert_int_equal(t_irqs(d), 0); // the driver is not active yet
	t_negotiate(d, VIO_FEATURES);
	t_set(d, 0x038, 17); // larger than the maximum: as if never set
	t_set(d, 0x044, 1);
	assert_int_equal(t_get(d, 0x044), 0);
}

static void test_needs_reset(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = f->d;
	t_start(d, VIO_FEATURES, f->drv, 2);
	uint32_t generation = t_get(d, 0x0fc);
	t_publish(&f->drv[0], 99);
	t_kick(d, 0);
	assert_true(t_get(d, 0x070) & VIO_NEEDS_RESET);
	assert_int_equal(t_get(d, 0x060), 2); // by a configuration interrupt
	assert_int_equal(t_irqs(d), 1);
	assert_true(t_get(d, 0x0fc) != generation);
	t_kick(d, 1); // stands still
	assert_int_equal(f->t->kicks[1], 1);
	memset(&f->drv[0].avail->idx, 0, 2);
	memset(&f->drv[0].used->idx, 0, 2);
	f->drv[0].avail_idx = f->drv[0].seen = 0;
	t_start(d, VIO_FEATURES, f->drv, 2);
	t_add(&f->drv[0], (struct t_buf[]){ { 0x1000, 1, true } }, 1);
	t_kick(d, 0);
	assert_true(t_used(&f->drv[0], NULL, NULL));
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = f->d;
	struct t_buf b = { t_alloc(&f->vm, 16, 1), 16, true };
	t_start(d, VIO_FEATURES | 1, f->drv, 2);
	f->t->saved.value = 77;
	t_add(&f->drv[0], &b, 1);
	t_kick(d, 0);
	assert_int_equal(t_irqs(d), 1);
	vio_quiesce(d);
	t_add(&f->drv[0], &b, 1);
	t_kick(d, 0); // must wait
	assert_true(t_used(&f->drv[0], NULL, NULL));
	assert_false(t_has_used(&f->drv[0]));
	MV_BUF saved = { 0 };
	vio_save(d, &saved);
	assert_false(saved.failed);

	struct toy *t2 = toy_new(&f->vm, VIO_FEATURES | 5);
	assert_int_equal(vio_load(&t2->dev, saved.p, saved.len, NULL), 0);
	assert_int_equal(t2->activations, 0);
	vio_unquiesce(&t2->dev);
	assert_int_equal(t2->saved.value, 77);
	assert_int_equal(t2->activations, 1);
	assert_int_equal(t2->restores, 1);
	assert_true(t_used(&f->drv[0], NULL, NULL)); // the kick that was missed
	assert_true(t_irqs(&t2->dev) >= 1);          // isr was set
	vio_quiesce(&t2->dev);
	vio_unquiesce(&t2->dev);
	assert_int_equal(t2->activations, 1);
	assert_int_equal(t2->restores, 1);

	struct mv_err err = { 0 };
	struct toy *t3 = toy_new(&f->vm, VIO_FEATURES); // lacks a feature in use
	assert_int_equal(vio_load(&t3->dev, saved.p, saved.len, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "toy: "));
	struct vio_dev *rng;
	assert_int_equal(vio_rng_new(&f->vm.mem, &f->vm.loop, &rng, NULL), 0);
	assert_int_equal(vio_load(rng, saved.p, saved.len, NULL), -EINVAL); // another type
	for (size_t n = 0; n < saved.len; n++)
		assert_int_equal(vio_load(rng, saved.p, n, NULL), -EINVAL);
	vio_free(rng);

	// A ring that was moved outside of memory, and the device's own objection.
	struct vq *q = &d->s.queue[1];
	MV_BUF bad = { 0 }, unlucky = { 0 };
	q->desc_gpa = T_LOW_BYTES;
	vio_save(d, &bad);
	assert_int_equal(vio_load(&t3->dev, bad.p, bad.len, &err), -EINVAL);
	q->desc_gpa = f->drv[1].desc_gpa;
	f->t->saved.value = 13;
	d->s.features_acked = VIRTIO_F_VERSION_1;
	vio_save(d, &unlucky);
	assert_int_equal(vio_load(&t3->dev, unlucky.p, unlucky.len, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "unlucky"));
	assert_int_equal(t3->dev.s.status, 0); // untouched
	// A state from anywhere: refused, or a device that works by the rules.
	uint64_t seed = 1;
	unsigned good = 0;
	MV_FREE uint8_t *copy = malloc(saved.len);
	for (unsigned i = 0; i < 20000; i++) {
		memcpy(copy, saved.p, saved.len);
		t_mutate(copy, saved.len, &seed);
		if (vio_load(&t2->dev, copy, saved.len, NULL))
			continue;
		vio_unquiesce(&t2->dev);
		good++;
	}
	assert_true(good > 100);
	vio_free(&t2->dev);
	vio_free(&t3->dev);
	// A state of a version with fewer queues, and of one with more.
	MV_BUF older = { 0 }, newer = { 0 };
	f->t->saved.value = 77;
	d->s.n_queue = 1;
	vio_save(d, &older);
	d->s.n_queue = 3;
	vio_save(d, &newer);
	d->s.n_queue = 2;
	struct toy *t4 = toy_new(&f->vm, VIO_FEATURES);
	assert_int_equal(vio_load(&t4->dev, newer.p, newer.len, NULL), -EINVAL);
	assert_int_equal(vio_load(&t4->dev, older.p, older.len, NULL), 0);
	assert_true(t4->dev.s.queue[0].ready && !t4->dev.s.queue[1].ready);
	assert_int_equal(t4->dev.s.n_queue, 2);
	vio_free(&t4->dev);
	vio_unquiesce(d);
}

static void *run_loop(void *loop)
{
	mv_loop_run(loop);
	return NULL;
}

// The driver adds a buffer where it can be missed, and kicks only when asked to: the device has found
// the queue empty, but has not yet asked for notifications again.
struct race {
	struct t_queue *q;
	struct vio_dev *d;
	struct t_buf b;
	unsigned left, kicks;
};

static void add_in_the_gap(void *arg)
{
	struct race *r = arg;
	if (!r->left)
		return;
	r->left--;
	uint16_t old = r->q->avail_idx;
	t_add(r->q, &r->b, 1);
	bool wanted = r->d->s.queue[0].event_idx ? (uint16_t)(r->q->avail_idx - le16_get(*r->q->avail_event) -
							      1) < (uint16_t)(r->q->avail_idx - old)
						 : !le16_get(r->q->used->flags);
	if (wanted)
		r->kicks++;
}

static void test_no_lost_notification_in_the_gap(void **state)
{
	struct fixture *f = *state;
	for (int event_idx = 0; event_idx < 2; event_idx++) {
		t_queue_init(&f->drv[0], &f->vm, 16);
		t_start(f->d, event_idx ? VIO_FEATURES : VIRTIO_F_VERSION_1, f->drv, 1);
		struct race r = { &f->drv[0], f->d, { t_alloc(&f->vm, 16, 1), 16, true }, 70000, 0 };
		f->t->meanwhile = add_in_the_gap;
		f->t->meanwhile_arg = &r;
		uint16_t first = f->d->s.queue[0].next_used;
		t_add(&f->drv[0], &r.b, 1);
		t_kick(f->d, 0);
		assert_int_equal(r.left, 0);
		assert_int_equal((uint16_t)(f->d->s.queue[0].next_used - first), (uint16_t)70001);
		if (event_idx)
			assert_int_equal(r.kicks, 0); // so nothing but the second look can have found them
		f->t->meanwhile = NULL;
	}
}

// Driver and device on two threads: the driver kicks only when asked to, and waits for
// nothing but the interrupt. A notification lost on either side stops it.
static void test_no_lost_notification(void **state)
{
	struct fixture *f = *state;
	struct t_buf b = { t_alloc(&f->vm, 16, 1), 16, true };
	uint64_t counted = 0, used = 0;
	for (int event_idx = 0; event_idx < 2; event_idx++) {
		struct t_queue *q = &f->drv[0];
		t_queue_init(q, &f->vm, 16);
		t_start(f->d, event_idx ? VIO_FEATURES : VIRTIO_F_VERSION_1, f->drv, 1);
		f->vm.loop.stop = false;
		pthread_t thread;
		assert_int_equal(pthread_create(&thread, NULL, run_loop, &f->vm.loop), 0);
		uint64_t seed = 3;
		uint32_t kicks = 0, done = 0, outstanding = 0;
		while (done < 200000) {
			uint16_t old = q->avail_idx;
			for (uint64_t n = 1 + t_rand(&seed) % 8; n && outstanding < 16; n--, outstanding++)
				t_add(q, &b, 1);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			uint16_t event = __atomic_load_n(&q->avail_event->raw, __ATOMIC_RELAXED);
			if (event_idx ? (uint16_t)(q->avail_idx - event - 1) < (uint16_t)(q->avail_idx - old)
				      : !__atomic_load_n(&q->used->flags.raw, __ATOMIC_RELAXED)) {
				t_event(f->d, 0);
				kicks++;
			}
			// Ask for an interrupt at the next completion; sleep only if there is none yet.
			__atomic_store_n(&q->used_event->raw, q->seen, __ATOMIC_RELAXED);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			struct pollfd p = { .fd = f->d->irq_fd, .events = POLLIN };
			while (outstanding && !t_has_used(q)) {
				if (poll(&p, 1, 5000) != 1)
					fail_msg("stuck after %u requests", done);
				t_irqs(f->d);
			}
			for (; t_used(q, NULL, NULL); done++)
				outstanding--;
		}
		mv_loop_stop(&f->vm.loop);
		pthread_join(thread, NULL);
		// Every kick is counted, those that one turn of the loop took together as well.
		while (vio_kicks_by_event(f->d, 0) < counted + kicks)
			t_run_ms(&f->vm, 1);
		assert_int_equal(vio_kicks_by_event(f->d, 0), counted += kicks);
		assert_int_equal(f->d->s.queue[0].n.used, used += done + outstanding);
		assert_int_equal(f->d->s.queue[0].n.popped, used);
		assert_int_equal(f->d->kick[0].by_exit, 0);
		assert_true(event_idx ? kicks < done : kicks <= done);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_registers, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_negotiation, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_queues_and_interrupts, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_counters, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_isr, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_bad_ring_address, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_needs_reset, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_lost_notification_in_the_gap, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_lost_notification, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_save_load, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
