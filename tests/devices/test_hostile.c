// SPDX-License-Identifier: Apache-2.0
// Drivers that break the rules, against every device that thaw has (t_devices.c): whatever they do, the
// process lives, nothing outside guest memory is touched (guard pages, and SAN=asan), the device stops or
// goes on as virtio 1.2 says, and after a reset it answers a good request.
#include "tests/devices/t_devices.h"

#include <errno.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { SIZE = 16, N = VQ_DESC_NEXT, W = VQ_DESC_WRITE, I = VQ_DESC_INDIRECT, DATA_BYTES = 8192 };

struct fixture {
	struct t_vm vm;
	struct t_dev t;
	struct vio_dev *d; // = t.d
	const struct t_device *kind;
	unsigned n_queues;
	struct t_queue drv[VIO_MAX_QUEUES];
	uint64_t data; // DATA_BYTES of guest memory
	uint64_t end;  // all that the driver uses lies below
	uint64_t features;
};

static void stop_loop(void *arg) { mv_loop_stop(arg); }

// One batch of the loop's events, none needed.
static void turn(struct fixture *f)
{
	f->vm.loop.before_wait = stop_loop;
	f->vm.loop.before_wait_arg = &f->vm.loop;
	mv_loop_stop(&f->vm.loop); // wakes it
	mv_loop_again(&f->vm.loop);
	assert_int_equal(mv_loop_run(&f->vm.loop), 0);
	f->vm.loop.before_wait = NULL;
}

static void drain_peer(struct fixture *f)
{
	static char buf[65536];
	while (f->t.peer_fd >= 0 && recv(f->t.peer_fd, buf, sizeof buf, MSG_DONTWAIT) > 0)
		;
}

// The driver begins anew: empty rings, the device reset.
static void forget(struct fixture *f)
{
	t_set(f->d, 0x70, 0);
	assert_int_equal(t_get(f->d, 0x70), 0);
	memset(t_ptr(&f->vm, 0x1000, f->end - 0x1000), 0, f->end - 0x1000);
	for (unsigned q = 0; q < f->n_queues; q++)
		f->drv[q].avail_idx = f->drv[q].seen = f->drv[q].next_desc = 0;
	drain_peer(f);
	t_irqs(f->d);
}

static void start(struct fixture *f)
{
	forget(f);
	t_start(f->d, f->features, f->drv, f->n_queues);
}

static void set_up(struct fixture *f, const struct t_device *kind)
{
	*f = (struct fixture){ .kind = kind, .t.peer_fd = -1 };
	t_vm_init(&f->vm);
	kind->make(&f->vm, &f->t);
	f->d = f->t.d;
	f->n_queues = f->d->s.n_queue;
	for (unsigned q = 0; q < f->n_queues; q++)
		t_queue_init(&f->drv[q], &f->vm, SIZE);
	f->data = t_alloc(&f->vm, DATA_BYTES, 16);
	f->end = mv_align_up(f->vm.next_gpa, 4096);
	f->features = f->d->features_offered;
}

static void tear_down(struct fixture *f)
{
	t_dev_free(&f->t);
	t_vm_fini(&f->vm);
}

// The request that this kind of device answers, at descriptor `at`; its number of descriptors.
static unsigned good_request(struct fixture *f, struct vq_desc *at, uint16_t index)
{
	const struct t_device *k = f->kind;
	unsigned n = 0;
	memcpy(t_ptr(&f->vm, f->data, sizeof k->head), k->head, sizeof k->head);
	if (k->n_readable)
		t_desc(&at[n++], f->data, k->n_readable, k->n_writable ? N : 0, (uint16_t)(index + 1));
	if (k->n_writable)
		t_desc(&at[n++], f->data + 4096, k->n_writable, W, 0);
	return n;
}

static void add_good(struct fixture *f)
{
	struct t_queue *q = &f->drv[f->kind->queue];
	uint16_t head = (uint16_t)(q->avail_idx * 2 % q->size);
	good_request(f, &q->desc[head], head);
	t_publish(q, head);
}

static bool stopped(struct fixture *f) { return t_get(f->d, 0x70) & VIO_NEEDS_RESET; }

// Whatever was before: it works.
static void still_works(struct fixture *f)
{
	struct t_queue *q = &f->drv[f->kind->queue];
	start(f);
	for (unsigned i = 0; i < 3; i++) {
		add_good(f);
		t_event(f->d, f->kind->queue);
		t_run_until(&f->vm, t_has_used, q);
		assert_true(t_used(q, NULL, NULL));
		assert_false(stopped(f));
	}
}

// What is saved of it, it takes back.
static void save_and_load(struct fixture *f)
{
	MV_BUF saved = { 0 };
	struct mv_err err = { 0 };
	vio_quiesce(f->d);
	vio_save(f->d, &saved);
	assert_false(saved.failed);
	if (vio_load(f->d, saved.p, saved.len, &err))
		fail_msg("%s: %s", f->kind->name, err.msg);
	vio_unquiesce(f->d);
}

static void for_each_device(void (*fn)(struct fixture *f))
{
	for (unsigned i = 0; i < t_n_devices; i++) {
		static struct fixture f;
		if (!t_devices[i].n_readable && !t_devices[i].n_writable)
			continue;
		set_up(&f, &t_devices[i]);
		fn(&f);
		tear_down(&f);
	}
}

// --- descriptors --------------------------------------------------------------------------------
#define LOW T_LOW_BYTES
#define TABLE UINT64_MAX // stands for the address of an indirect table of `table` below
struct attack {
	const char *what;
	struct {
		uint64_t gpa;
		uint32_t len;
		unsigned flags;
		uint16_t next;
	} d[2], table[2];
	uint16_t head;
	uint16_t more; // added to the available index
	bool lives;    // permitted, or up to the device; else it must stop
};
static const struct attack attacks[] = {
	{ "head out of range", .head = SIZE },
	{ "head far out of range", .head = UINT16_MAX },
	{ "next out of range", .d = { { 0x1000, 1, N, SIZE } } },
	{ "a circle of one", .d = { { 0x1000, 1, N, 0 } } },
	{ "a circle of two", .d = { { 0x1000, 1, N, 1 }, { 0x1000, 1, N, 0 } } },
	{ "a circle of nothing", .d = { { 0x1000, 0, N, 0 } } },
	{ "behind memory", .d = { { LOW, 1, 0, 0 } } },
	{ "behind memory, to write", .d = { { LOW, 1, W, 0 } } },
	{ "over the end", .d = { { LOW - 1, 2, W, 0 } } },
	{ "over the end of the last region", .d = { { T_HIGH_GPA + T_HIGH_BYTES - 1, 2, W, 0 } } },
	{ "before a region", .d = { { T_HIGH_GPA - 1, 2, W, 0 } } },
	{ "wraps", .d = { { UINT64_MAX - 1, 8, W, 0 } } },
	{ "far away", .d = { { 1ULL << 63, 8, 0, 0 } } },
	{ "longer than memory", .d = { { 0, UINT32_MAX, W, 0 } } },
	{ "write, then read", .d = { { 0x1000, 1, W | N, 1 }, { 0x1000, 1, 0, 0 } } },
	{ "indirect in indirect", .d = { { TABLE, 32, I, 0 } }, .table = { { 0x1000, 16, I, 0 } } },
	{ "an indirect circle", .d = { { TABLE, 32, I, 0 } },
	  .table = { { 0x1000, 1, N, 1 }, { 0x1000, 1, N, 0 } } },
	{ "next outside its table", .d = { { TABLE, 32, I, 0 } }, .table = { { 0x1000, 1, N, 2 } } },
	{ "behind an indirect table", .d = { { TABLE, 16, I | N, 1 }, { 0x1000, 1, 0, 0 } } },
	{ "an empty table", .d = { { TABLE, 0, I, 0 } } },
	{ "half a descriptor", .d = { { TABLE, 24, I, 0 } } },
	{ "a table too large", .d = { { 0, (VQ_SIZE_MAX + 1) * 16, I, 0 } } },
	{ "a table over the end", .d = { { LOW - 16, 32, I, 0 } } },
	{ "a table that wraps", .d = { { UINT64_MAX - 15, 32, I, 0 } } },
	{ "a table of 4 GiB", .d = { { 0, UINT32_MAX - 15, I, 0 } } },
	{ "one more than the queue holds", .more = SIZE },
	{ "the index goes back", .more = UINT16_MAX - 1 },
	{ "the index jumps half around", .more = 0x7fff },
	{ "nothing at all", .d = { { 0x1000, 0, 0, 0 } }, .lives = true },
	{ "nothing to write", .d = { { 0x1000, 0, W, 0 } }, .lives = true },
	{ "only to read", .d = { { 0x1000, 64, 0, 0 } }, .lives = true },
	{ "only to write", .d = { { 0x1000, 64, W, 0 } }, .lives = true },
	{ "one byte each", .d = { { 0x1000, 1, N, 1 }, { 0x1000, 1, W, 0 } }, .lives = true },
	{ "all of memory to read", .d = { { 0, LOW, 0, 0 } }, .lives = true },
	{ "all of memory to write", .d = { { 0, LOW, W, 0 } }, .lives = true },
	{ "all of it both ways", .d = { { 0, LOW, N, 1 }, { 0, LOW, W, 0 } }, .lives = true },
	{ "the last byte", .d = { { LOW - 1, 1, W, 0 } }, .lives = true },
	{ "the last byte of all", .d = { { T_HIGH_GPA + T_HIGH_BYTES - 1, 1, 0, 0 } }, .lives = true },
	{ "flags that don't exist", .d = { { 0x1000, 64, 0xfff0 | W, 0 } }, .lives = true },
};

static void attack(struct fixture *f, unsigned q, const struct attack *a)
{
	struct t_queue *drv = &f->drv[q];
	uint64_t table_gpa = f->data + DATA_BYTES / 2;
	struct vq_desc *table = t_ptr(&f->vm, table_gpa, sizeof *table * 2);
	start(f);
	for (unsigned i = 0; i < 2; i++) {
		t_desc(&drv->desc[i], a->d[i].gpa == TABLE ? table_gpa : a->d[i].gpa, a->d[i].len,
		       a->d[i].flags, a->d[i].next);
		t_desc(&table[i], a->table[i].gpa, a->table[i].len, a->table[i].flags, a->table[i].next);
	}
	t_publish(drv, a->head);
	__atomic_store_n(&drv->avail->idx.raw, le16_make((uint16_t)(drv->avail_idx + a->more)).raw,
			 __ATOMIC_RELEASE);
	if (f->kind->stir)
		f->kind->stir(&f->t);
	t_kick(f->d, q);
	turn(f);
	if (q != f->kind->queue) { // buffers of the other queues are taken when there is something to put in
		add_good(f);
		t_kick(f->d, f->kind->queue);
	}
	if ((q == f->kind->queue || (int)q == f->kind->in) && !a->lives && !stopped(f))
		fail_msg("%s: %s: it goes on", f->kind->name, a->what);
	if (stopped(f)) {
		struct vq before = f->d->s.queue[q];
		assert_true(t_get(f->d, 0x60) & VIO_ISR_CONFIG); // section 2.1.2
		add_good(f);
		t_kick(f->d, f->kind->queue);
		t_event(f->d, q);
		turn(f);
		assert_int_equal(f->d->s.queue[q].next_used, before.next_used);
		t_set(f->d, 0x70, 0xff);
		assert_true(stopped(f)); // until reset
	}
	save_and_load(f);
}

static void all_attacks(struct fixture *f)
{
	const uint64_t sets[] = { f->d->features_offered, VIRTIO_F_VERSION_1,
				  VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC };
	for (unsigned s = 0; s < MV_ARRAY_LEN(sets); s++) {
		f->features = sets[s];
		for (unsigned q = 0; q < f->n_queues; q++)
			for (unsigned i = 0; i < MV_ARRAY_LEN(attacks); i++)
				attack(f, q, &attacks[i]);
		still_works(f);
	}
}

static void test_descriptors(void **state)
{
	(void)state;
	for_each_device(all_attacks);
}

// --- rings --------------------------------------------------------------------------------------
// Rings over each other and buffers over rings: the device overwrites what it reads.
static void overlaps(struct fixture *f)
{
	const unsigned q = f->kind->queue;
	const struct t_queue good = f->drv[q];
	for (unsigned variant = 0; variant < 64; variant++) {
		const uint64_t at[] = { good.desc_gpa, good.driver_gpa & ~15ULL, good.device_gpa & ~15ULL,
					f->data };
		struct t_queue *drv = &f->drv[q];
		forget(f);
		drv->desc_gpa = at[variant & 3];
		drv->driver_gpa = at[variant >> 2 & 3];
		drv->device_gpa = at[variant >> 4 & 3];
		t_start(f->d, f->features, f->drv, f->n_queues);
		struct vq_desc *desc = t_ptr(&f->vm, drv->desc_gpa, SIZE * sizeof *desc);
		struct vq_avail *avail = t_ptr(&f->vm, drv->driver_gpa, 4 + SIZE * 2 + 2);
		for (unsigned i = 0; i < 3 * SIZE && !stopped(f); i++) {
			good_request(f, desc, 0);
			t_desc(&desc[2], drv->device_gpa, 64, W, 0); // into the used ring
			t_desc(&desc[3], drv->driver_gpa, 64, W, 0);
			avail->ring[i % SIZE] = le16_make((uint16_t)(i % 4));
			avail->idx = le16_make((uint16_t)(i + 1));
			t_kick(f->d, q);
			turn(f);
		}
		f->drv[q] = good;
		save_and_load(f);
	}
	still_works(f);
}

static void bad_set_up(struct fixture *f)
{
	const struct {
		uint32_t size;
		uint64_t desc, driver, device; // offsets added
	} cases[] = {
		{ 0, 0, 0, 0 },
		{ 3, 0, 0, 0 },
		{ SIZE - 1, 0, 0, 0 },
		{ 2u * f->d->ops->queue_size_max, 0, 0, 0 },
		{ 65536 + SIZE, 0, 0, 0 }, // not taken for SIZE
		{ UINT32_MAX, 0, 0, 0 },
		{ SIZE, 8, 0, 0 },
		{ SIZE, 0, 1, 0 },
		{ SIZE, 0, 0, 2 },
		{ SIZE, LOW, 0, 0 },
		{ SIZE, 0, LOW, 0 },
		{ SIZE, 0, 0, LOW },
		{ SIZE, 1ULL << 63, 0, 0 },
		{ SIZE, 0, 0 - f->drv[0].driver_gpa - 2, 0 }, // two bytes below 2^64
		{ SIZE, 0, 0, LOW - f->drv[0].device_gpa - 4 },
	};
	for (unsigned i = 0; i < MV_ARRAY_LEN(cases); i++) {
		const uint64_t at[3] = { f->drv[0].desc_gpa + cases[i].desc,
					 f->drv[0].driver_gpa + cases[i].driver,
					 f->drv[0].device_gpa + cases[i].device };
		forget(f);
		t_negotiate(f->d, f->features);
		t_set(f->d, 0x30, 0);
		t_set(f->d, 0x38, cases[i].size);
		for (unsigned k = 0; k < 3; k++) {
			t_set(f->d, 0x80 + k * 16, (uint32_t)at[k]);
			t_set(f->d, 0x84 + k * 16, (uint32_t)(at[k] >> 32));
		}
		t_set(f->d, 0x44, 1);
		assert_int_equal(t_get(f->d, 0x44), 0);
		assert_true(stopped(f));
		t_set(f->d, 0x70, t_get(f->d, 0x70) | VIO_DRIVER_OK);
		assert_false(f->d->active);
		for (unsigned q = 0; q < f->n_queues; q++)
			t_kick(f->d, q);
		turn(f);
		save_and_load(f);
	}
	still_works(f);
}

static void test_rings(void **state)
{
	(void)state;
	for_each_device(overlaps);
	for_each_device(bad_set_up);
}

// --- negotiation and registers ------------------------------------------------------------------
static void acknowledge(struct vio_dev *d, uint64_t features)
{
	t_set(d, 0x70, 0);
	t_set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER);
	for (uint32_t half = 0; half < 2; half++) {
		t_set(d, 0x24, half);
		t_set(d, 0x20, (uint32_t)(features >> 32 * half));
	}
	t_set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK);
}

static void negotiation(struct fixture *f)
{
	struct vio_dev *d = f->d;
	for (unsigned bit = 0; bit < 64; bit++) { // each that was not offered, alone
		bool offered = d->features_offered >> bit & 1;
		acknowledge(d, VIRTIO_F_VERSION_1 | 1ULL << bit);
		assert_int_equal(!!(t_get(d, 0x70) & VIO_FEATURES_OK), offered);
		t_set(d, 0x70, t_get(d, 0x70) | VIO_DRIVER_OK);
		assert_int_equal(!!(t_get(d, 0x70) & VIO_DRIVER_OK), offered);
	}
	acknowledge(d, d->features_offered & ~VIRTIO_F_VERSION_1);
	assert_false(t_get(d, 0x70) & VIO_FEATURES_OK);
	acknowledge(d, VIRTIO_F_VERSION_1);
	for (uint32_t sel = 0; sel < 5; sel++) { // too late, and beyond what exists
		t_set(d, 0x24, sel);
		t_set(d, 0x20, UINT32_MAX);
	}
	assert_int_equal(d->s.features_acked, VIRTIO_F_VERSION_1);
	t_set(d, 0x14, 0x80000000);
	assert_int_equal(t_get(d, 0x10), 0);
	t_set(d, 0x70, 0);
	for (uint32_t v = 1; v < 256; v++) // any order: never alive without features
		t_set(d, 0x70, v & ~(uint32_t)VIO_FEATURES_OK);
	assert_false(t_get(d, 0x70) & (VIO_DRIVER_OK | VIO_NEEDS_RESET));
	still_works(f);
}

// A queue that is filled and kicked too early, and changed when it is in use.
static void set_up_games(struct fixture *f)
{
	const unsigned q = f->kind->queue;
	struct vio_dev *d = f->d;
	struct t_queue *drv = &f->drv[q];
	forget(f);
	t_kick(d, q); // not even set up
	t_kick(d, VIO_MAX_QUEUES + 1);
	t_kick(d, UINT32_MAX);
	t_negotiate(d, f->features);
	add_good(f);
	t_set(d, 0x30, q);
	t_set(d, 0x38, SIZE);
	t_set(d, 0x44, 1); // at address zero: memory, so no error
	t_kick(d, q);
	t_event(d, q);
	turn(f);
	assert_false(t_has_used(drv)); // not before DRIVER_OK
	t_set(d, 0x80, (uint32_t)drv->desc_gpa);
	assert_int_equal(d->s.queue[q].desc_gpa, 0); // not while it is ready
	t_set(d, 0x44, 0);
	for (unsigned i = 0; i < 3; i++) {
		t_set(d, 0x80 + i * 16,
		      (uint32_t)(const uint64_t[]){ drv->desc_gpa, drv->driver_gpa, drv->device_gpa }[i]);
		t_set(d, 0x44, i == 2);
	}
	t_set(d, 0x44, 1); // twice is as good as once
	t_set(d, 0x70, t_get(d, 0x70) | VIO_DRIVER_OK);
	t_run_until(&f->vm, t_has_used, drv); // what was there at DRIVER_OK
	assert_true(t_used(drv, NULL, NULL));
	const struct vq before = d->s.queue[q];
	for (uint32_t i = 0; i < f->n_queues; i++) {
		t_set(d, 0x30, i);
		for (uint32_t reg = 0x30; reg < 0x100; reg += 4)
			if (reg != 0x50 && reg != 0x70) {
				t_set(d, reg, reg == 0x30 ? i : 0);
				t_set(d, reg, reg == 0x30 ? i : UINT32_MAX);
			}
	}
	assert_memory_equal(&before, &d->s.queue[q], offsetof(struct vq, next_avail));
	add_good(f);
	t_kick(d, q);
	t_run_until(&f->vm, t_has_used, drv);
	// Any width at any place, configuration space as well.
	uint64_t v = 0x5555555555555555;
	for (uint64_t at = 0; at < 0x200; at++)
		for (uint32_t len = 1; len <= 8; len *= 2) {
			uint64_t in[2] = { 0, v };
			vio_mmio_read(d, at, in, len);
			assert_int_equal(in[1], v); // no more than len
			if (at % 4 || len != 4 || at >= 0x100)
				vio_mmio_write(d, at, &v, len);
		}
	save_and_load(f);
	still_works(f);
}

static void test_registers(void **state)
{
	(void)state;
	for_each_device(negotiation);
	for_each_device(set_up_games);
}

// --- reset --------------------------------------------------------------------------------------
// With requests in flight, at any moment: from then on the device writes nothing (section 2.4).
static void resets(struct fixture *f)
{
	const unsigned q = f->kind->queue;
	const size_t bytes = f->end - 0x1000;
	uint8_t *memory = t_ptr(&f->vm, 0x1000, bytes);
	MV_FREE uint8_t *copy = malloc(bytes);
	for (unsigned round = 0; round < 60; round++) {
		start(f);
		for (unsigned i = 0; i < SIZE / 2; i++)
			add_good(f);
		if (round & 1)
			t_kick(f->d, q);
		else
			t_event(f->d, q);
		for (unsigned i = 0; i < round % 5; i++)
			turn(f);
		if (round % 7 == 6) // the driver breaks a rule as well
			t_publish(&f->drv[q], SIZE + 1);
		t_kick(f->d, q);
		t_set(f->d, 0x70, 0);
		memset(memory, 0xa5, bytes);
		memcpy(copy, memory, bytes);
		t_kick(f->d, q);
		t_event(f->d, q);
		t_run_ms(&f->vm, 2);
		assert_memory_equal(memory, copy, bytes);
		assert_int_equal(f->d->s.queue[q].n.popped, f->d->s.queue[q].n.used);
	}
	still_works(f);
}

static void test_reset(void **state)
{
	(void)state;
	for_each_device(resets);
}

// --- anything -----------------------------------------------------------------------------------
static void random_step(struct fixture *f, uint64_t *seed)
{
	uint64_t r = t_rand(seed);
	struct t_queue *drv = &f->drv[(r >> 8) % f->n_queues];
	switch (r % 16) {
	case 0:
		t_set(f->d, (r >> 16) % 0x120 & ~3u, r & 0x80 ? (uint32_t)(r >> 32) : (uint32_t)(r >> 60));
		break;
	case 1: // the rings and the buffers
		t_mutate(t_ptr(&f->vm, 0x1000, f->end - 0x1000), f->end - 0x1000, seed);
		break;
	case 2:
	case 3:
	case 4: { // a descriptor that is likely to be good
		const uint64_t base[] = { f->data, 0x1000, LOW - 64, T_HIGH_GPA };
		t_desc(&drv->desc[(r >> 16) % SIZE], base[r >> 20 & 3] + (r >> 24) % 128,
		       (uint32_t)(r >> 32) % 256, (unsigned)(r >> 40) & 7, (uint16_t)((r >> 44) % SIZE));
		break;
	}
	case 5:
	case 6:
	case 7: add_good(f); break;
	case 8:
	case 9: t_publish(drv, (uint16_t)((r >> 16) % (SIZE + (r >> 32) % 64 / 63))); break;
	case 10: t_kick(f->d, (uint32_t)(drv - f->drv)); break;
	case 11:
	case 12: t_event(f->d, (unsigned)(drv - f->drv)); break;
	case 13:
		if (f->kind->stir && r & 0x10000)
			f->kind->stir(&f->t);
		turn(f);
		break;
	case 14:
		if ((r >> 16) % 8 == 0 || stopped(f))
			start(f);
		break;
	case 15:
		if ((r >> 16) % 16 == 0)
			save_and_load(f);
		break;
	}
	drain_peer(f);
}

static void at_random(struct fixture *f)
{
	uint64_t seed = 0x1234567;
	for (unsigned i = 0; i < 200; i++) {
		f->features = i & 1 ? f->d->features_offered : VIRTIO_F_VERSION_1;
		start(f);
		for (unsigned k = 0; k < 200; k++)
			random_step(f, &seed);
		still_works(f);
	}
	if (f->d->s.queue[f->kind->queue].n.used < 1000)
		fail_msg("%s: hardly reached", f->kind->name);
}

static void test_random(void **state)
{
	(void)state;
	for_each_device(at_random);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_descriptors), cmocka_unit_test(test_rings),
		cmocka_unit_test(test_registers),   cmocka_unit_test(test_reset),
		cmocka_unit_test(test_random),
	};
	mv_log_init("test", MV_ERROR); // what devices say of such drivers
	return cmocka_run_group_tests(tests, NULL, NULL);
}
