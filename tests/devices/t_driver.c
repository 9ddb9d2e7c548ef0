// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_driver.h"

#include <string.h>
#include <sys/eventfd.h>

#include "microvm/base/util.h"

void t_vm_init(struct t_vm *vm)
{
	*vm = (struct t_vm){ .next_gpa = 0x1000 };
	assert_int_equal(gmem_add(&vm->mem, 0, T_LOW_BYTES), 0);
	assert_int_equal(gmem_add(&vm->mem, T_HIGH_GPA, T_HIGH_BYTES), 0);
	for (unsigned i = 0; i < vm->mem.n_regions; i++) {
		size_t bytes = vm->mem.region[i].size_bytes;
		uint8_t *p = mmap(NULL, bytes + 2 * GMEM_PAGE_BYTES, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		assert_true(p != MAP_FAILED);
		vm->mem.region[i].hva = p + GMEM_PAGE_BYTES;
		assert_int_equal(mprotect(vm->mem.region[i].hva, bytes, PROT_READ | PROT_WRITE), 0);
	}
	assert_int_equal(mv_loop_init(&vm->loop), 0);
}

void t_vm_fini(struct t_vm *vm)
{
	mv_loop_fini(&vm->loop);
	for (unsigned i = 0; i < vm->mem.n_regions; i++) {
		munmap(vm->mem.region[i].hva - GMEM_PAGE_BYTES,
		       vm->mem.region[i].size_bytes + 2 * GMEM_PAGE_BYTES);
		vm->mem.region[i].hva = NULL;
	}
}

uint64_t t_alloc(struct t_vm *vm, uint64_t bytes, uint64_t align)
{
	uint64_t at = mv_align_up(vm->next_gpa, align);
	vm->next_gpa = at + bytes;
	assert_true(vm->next_gpa <= T_LOW_BYTES);
	return at;
}

void *t_ptr(struct t_vm *vm, uint64_t addr, size_t len)
{
	void *p = gmem_ptr(&vm->mem, gpa(addr), len);
	assert_non_null(p);
	return p;
}

struct run {
	struct mv_loop *loop;
	bool (*cond)(void *arg);
	void *arg;
	bool timed_out;
};

static void check(void *arg)
{
	struct run *r = arg;
	if (r->timed_out || (r->cond && r->cond(r->arg)))
		mv_loop_stop(r->loop);
}

static void time_out(void *arg) { ((struct run *)arg)->timed_out = true; }

static bool run(struct t_vm *vm, bool (*cond)(void *arg), void *arg, uint64_t ns)
{
	struct run r = { .loop = &vm->loop, .cond = cond, .arg = arg };
	struct mv_timer timer;
	if (cond && cond(arg))
		return true;
	assert_int_equal(mv_timer_init(&vm->loop, &timer, time_out, &r), 0);
	mv_timer_arm(&timer, ns);
	vm->loop.before_wait = check;
	vm->loop.before_wait_arg = &r;
	vm->loop.stop = false;
	assert_int_equal(mv_loop_run(&vm->loop), 0);
	vm->loop.before_wait = NULL;
	mv_timer_fini(&timer);
	return cond && cond(arg);
}

void t_run_until(struct t_vm *vm, bool (*cond)(void *arg), void *arg)
{
	const uint64_t end_ns = mv_now_ns() + 2000000000u,
		       piece_ns = 1000000; // a device's threads don't wake us
	bool done = false;
	while (!done && mv_now_ns() < end_ns)
		done = run(vm, cond, arg, piece_ns);
	assert_true(done);
}

void t_run_ms(struct t_vm *vm, unsigned ms) { run(vm, NULL, NULL, ms * 1000000ULL); }

void t_queue_init(struct t_queue *q, struct t_vm *vm, uint16_t size)
{
	*q = (struct t_queue){ .vm = vm, .size = size };
	size_t desc = size * sizeof *q->desc, avail = sizeof *q->avail + size * 2u + 2u,
	       used = sizeof *q->used + size * sizeof(struct vq_used_elem) + 2u;
	q->desc = t_ptr(vm, q->desc_gpa = t_alloc(vm, desc, 16), desc);
	q->avail = t_ptr(vm, q->driver_gpa = t_alloc(vm, avail, 2), avail);
	q->used = t_ptr(vm, q->device_gpa = t_alloc(vm, used, 4), used);
	q->used_event = &q->avail->ring[size];
	q->avail_event = (le16_t *)(void *)&q->used->ring[size];
}

T_AS_GUEST void t_desc(struct vq_desc *d, uint64_t addr, uint32_t len, unsigned flags, uint16_t next)
{
	*d = (struct vq_desc){ le64_make(addr), le32_make(len), le16_make((uint16_t)flags), le16_make(next) };
}

void t_publish(struct t_queue *q, uint16_t head)
{
	q->avail->ring[q->avail_idx++ % q->size] = le16_make(head);
	__atomic_store_n(&q->avail->idx.raw, le16_make(q->avail_idx).raw, __ATOMIC_RELEASE);
}

uint16_t t_add(struct t_queue *q, const struct t_buf *bufs, unsigned n)
{
	uint16_t head = q->next_desc % q->size;
	for (unsigned i = 0; i < n; i++) {
		uint16_t at = q->next_desc++ % q->size;
		t_desc(&q->desc[at], bufs[i].gpa, bufs[i].len,
		       (bufs[i].writable ? VQ_DESC_WRITE : 0) | (i + 1 < n ? VQ_DESC_NEXT : 0),
		       q->next_desc % q->size);
	}
	t_publish(q, head);
	return head;
}

uint16_t t_add_indirect(struct t_queue *q, const struct t_buf *bufs, unsigned n)
{
	uint32_t bytes = n * (uint32_t)sizeof(struct vq_desc);
	uint64_t table_gpa = t_alloc(q->vm, bytes, 16);
	struct vq_desc *table = t_ptr(q->vm, table_gpa, bytes);
	for (unsigned i = 0; i < n; i++)
		t_desc(&table[i], bufs[i].gpa, bufs[i].len,
		       (bufs[i].writable ? VQ_DESC_WRITE : 0) | (i + 1 < n ? VQ_DESC_NEXT : 0),
		       (uint16_t)(i + 1));
	uint16_t head = q->next_desc++ % q->size;
	t_desc(&q->desc[head], table_gpa, bytes, VQ_DESC_INDIRECT, 0);
	t_publish(q, head);
	return head;
}

bool t_has_used(void *queue)
{
	struct t_queue *q = queue;
	return le16_get((le16_t){ __atomic_load_n(&q->used->idx.raw, __ATOMIC_ACQUIRE) }) != q->seen;
}

bool t_used(struct t_queue *q, uint16_t *ret_head, uint32_t *ret_len)
{
	if (!t_has_used(q))
		return false;
	struct vq_used_elem *e = &q->used->ring[q->seen++ % q->size];
	if (ret_head)
		*ret_head = (uint16_t)le32_get(e->id);
	if (ret_len)
		*ret_len = le32_get(e->len);
	return true;
}

uint32_t t_get(struct vio_dev *d, uint64_t reg)
{
	le32_t v;
	vio_mmio_read(d, reg, &v, sizeof v);
	return le32_get(v);
}

void t_set(struct vio_dev *d, uint64_t reg, uint32_t value)
{
	le32_t v = le32_make(value);
	vio_mmio_write(d, reg, &v, sizeof v);
}

void t_negotiate(struct vio_dev *d, uint64_t features)
{
	t_set(d, 0x70, 0);
	t_set(d, 0x70, VIO_ACKNOWLEDGE);
	t_set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER);
	for (uint32_t half = 0; half < 2; half++) {
		t_set(d, 0x14, half);
		t_set(d, 0x24, half);
		t_set(d, 0x20, t_get(d, 0x10) & (uint32_t)(features >> 32 * half));
	}
	t_set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK);
	assert_true(t_get(d, 0x70) & VIO_FEATURES_OK);
}

void t_start(struct vio_dev *d, uint64_t features, struct t_queue *queues, unsigned n)
{
	t_negotiate(d, features);
	for (unsigned i = 0; i < n; i++) {
		t_set(d, 0x30, i);
		assert_true(t_get(d, 0x34) >= queues[i].size);
		t_set(d, 0x38, queues[i].size);
		t_set(d, 0x80, (uint32_t)queues[i].desc_gpa);
		t_set(d, 0x84, (uint32_t)(queues[i].desc_gpa >> 32));
		t_set(d, 0x90, (uint32_t)queues[i].driver_gpa);
		t_set(d, 0x94, (uint32_t)(queues[i].driver_gpa >> 32));
		t_set(d, 0xa0, (uint32_t)queues[i].device_gpa);
		t_set(d, 0xa4, (uint32_t)(queues[i].device_gpa >> 32));
		t_set(d, 0x44, 1);
		assert_int_equal(t_get(d, 0x44), 1);
	}
	t_set(d, 0x70, t_get(d, 0x70) | VIO_DRIVER_OK);
}

void t_kick(struct vio_dev *d, unsigned q) { t_set(d, VIO_NOTIFY_OFFSET, q); }

void t_event(struct vio_dev *d, unsigned q) { assert_int_equal(eventfd_write(d->kick_fd[q], 1), 0); }

unsigned t_irqs(struct vio_dev *d)
{
	eventfd_t n = 0;
	return eventfd_read(d->irq_fd, &n) ? 0 : (unsigned)n;
}
