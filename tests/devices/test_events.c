// SPDX-License-Identifier: Apache-2.0
// How notifications and interrupts travel, for every device. A driver that floods one of them, by a queue
// that is always full and kicks without pause, must leave the others on the loop their turns: the flood is a
// thread, as another vCPU would be; the other device is a virtio-rng whose driver waits for each answer.
// And no device interrupts its driver more often than it asked for.
#include "tests/devices/t_devices.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

// The most that a device may do between two turns of another one: blk, in which each of four rounds of
// io_uring (ring.c) completes 128 requests that make room for as many, after those of the kick; by the
// queue's event and by the ring's.
enum { ROUNDS = 300, MAX_ROUNDS = 10000000, MOST = 2 * (4 + 1) * 128, ENOUGH = 20 * ROUNDS };

struct flood {
	struct t_vm vm;
	struct t_dev t;
	const struct t_device *kind;
	struct t_queue drv[VIO_MAX_QUEUES], other_drv;
	struct vio_dev *other;
	struct t_buf other_buf;
	bool end;
	// the loop's side
	const struct vq_counts *n;
	uint64_t at_kick, most;
	unsigned rounds;
};

static void *flood(void *arg)
{
	static char sink[65536];
	struct flood *f = arg;
	struct t_queue *q = &f->drv[f->kind->queue];
	while (!__atomic_load_n(&f->end, __ATOMIC_RELAXED)) {
		uint16_t used = le16_get((le16_t){ __atomic_load_n(&q->used->idx.raw, __ATOMIC_ACQUIRE) });
		le16_t idx =
			le16_make((uint16_t)(used + q->size)); // always the same request, as often as can be
		__atomic_store_n(&q->avail->idx.raw, idx.raw, __ATOMIC_RELEASE);
		eventfd_write(f->t.d->kick_fd[f->kind->queue], 1);
		if (f->t.peer_fd >= 0 && recv(f->t.peer_fd, sink, sizeof sink, MSG_DONTWAIT) < 0)
			continue;
	}
	return NULL;
}

static void kick_other(struct flood *f)
{
	f->at_kick = f->n->popped;
	t_add(&f->other_drv, &f->other_buf, 1);
	t_event(f->other, 0);
}

// After each batch of the loop's events.
static void look(void *arg)
{
	struct flood *f = arg;
	if (!t_used(&f->other_drv, NULL, NULL))
		return;
	uint64_t between = f->n->popped - f->at_kick;
	if (between > f->most)
		f->most = between;
	if ((++f->rounds >= ROUNDS && f->n->popped > ENOUGH) || f->rounds == MAX_ROUNDS)
		mv_loop_stop(&f->vm.loop);
	else
		kick_other(f);
}

static void run(struct flood *f, const struct t_device *kind)
{
	*f = (struct flood){ .kind = kind, .t.peer_fd = -1 };
	t_vm_init(&f->vm);
	kind->make(&f->vm, &f->t);
	struct vio_dev *d = f->t.d;
	for (unsigned q = 0; q < d->s.n_queue; q++)
		t_queue_init(&f->drv[q], &f->vm, d->ops->queue_size_max);
	uint64_t data = t_alloc(&f->vm, 8192, 16);
	t_start(d, VIRTIO_F_VERSION_1, f->drv, d->s.n_queue);
	struct vq_desc *desc = f->drv[kind->queue].desc;
	unsigned n = 0;
	if (kind->n_readable)
		t_desc(&desc[n++], data, kind->n_readable, kind->n_writable ? VQ_DESC_NEXT : 0, 1);
	if (kind->n_writable)
		t_desc(&desc[n++], data + 4096, kind->n_writable, VQ_DESC_WRITE, 0);
	memcpy(t_ptr(&f->vm, data, sizeof kind->head), kind->head, sizeof kind->head);

	assert_int_equal(vio_rng_new(&f->vm.mem, &f->vm.loop, &f->other, NULL), 0);
	t_queue_init(&f->other_drv, &f->vm, 64);
	f->other_buf = (struct t_buf){ t_alloc(&f->vm, 16, 1), 16, true };
	t_start(f->other, VIO_FEATURES, &f->other_drv, 1);
	f->n = &d->s.queue[kind->queue].n;

	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, flood, f), 0);
	kick_other(f);
	f->vm.loop.before_wait = look;
	f->vm.loop.before_wait_arg = f;
	assert_int_equal(mv_loop_run(&f->vm.loop), 0);
	__atomic_store_n(&f->end, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	f->vm.loop.before_wait = NULL;
	print_message(
		"# %s: %llu requests flooded, at most %llu between a kick and its answer in %u rounds\n",
		kind->name, (unsigned long long)f->n->popped, (unsigned long long)f->most, f->rounds);
	assert_false(t_get(d, 0x70) & VIO_NEEDS_RESET);
	assert_true(f->most <= MOST);
	assert_true(f->most > 0 && f->n->popped > ENOUGH); // it was a flood
	vio_free(f->other);
	t_dev_free(&f->t);
	t_vm_fini(&f->vm);
}

static void test_a_flood_leaves_turns_to_others(void **state)
{
	static struct flood f;
	(void)state;
	for (unsigned i = 0; i < t_n_devices; i++)
		if (t_devices[i].n_readable || t_devices[i].n_writable)
			run(&f, &t_devices[i]);
}

static bool all_used(void *arg)
{
	const struct t_queue *q = arg;
	return le16_get((le16_t){ __atomic_load_n(&q->used->idx.raw, __ATOMIC_ACQUIRE) }) == q->avail_idx;
}

// Sixteen requests by one kick, whatever order and number of turns they come back in: by EVENT_IDX one
// interrupt, for the last one; none when none is wanted, in both ways of saying so.
static void one_interrupt(struct t_vm *vm, const struct t_device *kind)
{
	enum { BATCH = 16 };
	const struct {
		uint64_t features;
		uint16_t event, flags, interrupts;
	} cases[] = { { VIO_FEATURES, BATCH - 1, 0, 1 },
		      { VIO_FEATURES, BATCH - 1, VQ_AVAIL_NO_INTERRUPT, 1 }, // the flag does not count there
		      { VIO_FEATURES, UINT16_MAX, 0, 0 },
		      { VIO_FEATURES, BATCH, 0, 0 },
		      { VIRTIO_F_VERSION_1, 0, VQ_AVAIL_NO_INTERRUPT, 0 } };
	for (unsigned i = 0; i < MV_ARRAY_LEN(cases); i++) {
		struct t_queue drv[VIO_MAX_QUEUES];
		struct t_dev t = { .peer_fd = -1 };
		uint64_t data = t_alloc(vm, 8192, 16);
		struct t_buf bufs[2];
		unsigned n = 0;
		kind->make(vm, &t);
		for (unsigned q = 0; q < t.d->s.n_queue; q++)
			t_queue_init(&drv[q], vm, 64);
		struct t_queue *q = &drv[kind->queue];
		const struct vq_counts *c = &t.d->s.queue[kind->queue].n;
		memcpy(t_ptr(vm, data, sizeof kind->head), kind->head, sizeof kind->head);
		if (kind->n_readable)
			bufs[n++] = (struct t_buf){ data, kind->n_readable, false };
		if (kind->n_writable)
			bufs[n++] = (struct t_buf){ data + 4096, kind->n_writable, true };
		*q->used_event = le16_make(cases[i].event);
		q->avail->flags = le16_make(cases[i].flags);
		t_start(t.d, cases[i].features, drv, t.d->s.n_queue);
		for (unsigned k = 0; k < BATCH; k++)
			t_add(q, bufs, n);
		t_event(t.d, kind->queue);
		t_run_until(vm, all_used, q);
		assert_int_equal(c->used, BATCH);
		assert_int_equal(c->interrupts, cases[i].interrupts);
		assert_int_equal(t_irqs(t.d), cases[i].interrupts);
		assert_int_equal(t_get(t.d, 0x60), cases[i].interrupts ? VIO_ISR_QUEUE : 0);
		t_dev_free(&t);
	}
}

static void test_interrupts_as_the_driver_asked(void **state)
{
	struct t_vm vm;
	(void)state;
	t_vm_init(&vm);
	for (unsigned i = 0; i < t_n_devices; i++)
		if (t_devices[i].n_readable || t_devices[i].n_writable)
			one_interrupt(&vm, &t_devices[i]);
	t_vm_fini(&vm);
}

int main(void)
{
	mv_log_init("test", MV_ERROR); // what a flood of bad packets says
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_a_flood_leaves_turns_to_others),
					    cmocka_unit_test(test_interrupts_as_the_driver_asked) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
