// SPDX-License-Identifier: Apache-2.0
#include <errno.h>

#include "tests/devices/t_driver.h"

#include "microvm/base/util.h"

struct fixture {
	struct t_vm vm;
	struct t_queue drv;
	struct vq q;
	struct vq_chain c;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	t_queue_init(&f->drv, &f->vm, 8);
	f->q = (struct vq){ .size = 8,
			    .desc_gpa = f->drv.desc_gpa,
			    .driver_gpa = f->drv.driver_gpa,
			    .device_gpa = f->drv.device_gpa };
	assert_int_equal(vq_map(&f->q, &f->vm.mem, VIO_FEATURES), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	t_vm_fini(&f->vm);
	free(f);
	return 0;
}

static void test_map(void **state)
{
	struct fixture *f = *state;
	static const uint16_t bad_sizes[] = { 0, 3, 12, 2048 };
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad_sizes); i++) {
		struct vq q = f->q;
		q.size = bad_sizes[i];
		assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EINVAL);
	}
	struct vq q = f->q;
	q.desc_gpa += 8;
	assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EINVAL);
	q = f->q, q.driver_gpa += 1;
	assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EINVAL);
	q = f->q, q.device_gpa += 2;
	assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EINVAL);
	q = f->q, q.desc_gpa = T_LOW_BYTES - 64; // half of it outside
	assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EFAULT);
	q = f->q, q.driver_gpa = UINT64_MAX - 1;
	assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EFAULT);
	q = f->q, q.device_gpa = T_HIGH_GPA + T_HIGH_BYTES - 4 - 64; // all but avail_event inside
	assert_int_equal(vq_map(&q, &f->vm.mem, 0), -EFAULT);
}

static void test_wrap_around(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa_ = t_alloc(&f->vm, 64, 1);
	uint16_t head, got;
	uint32_t len;
	assert_int_equal(vq_pop(&f->q, &f->c), 0);
	for (uint32_t i = 0; i < 70000; i++) { // past 2^16
		head = t_add(&f->drv, (struct t_buf[]){ { gpa_, 10, false }, { gpa_ + 10, 20, true } }, 2);
		assert_int_equal(vq_pop(&f->q, &f->c), 1);
		assert_int_equal(f->c.head, head);
		assert_int_equal(f->c.readable.bytes, 10);
		assert_int_equal(f->c.writable.bytes, 20);
		vq_unpop(&f->q);
		assert_int_equal(vq_pop(&f->q, &f->c), 1);
		assert_int_equal(vq_pop(&f->q, &f->c), 0);
		vq_push(&f->q, head, i);
		assert_true(t_used(&f->drv, &got, &len));
		assert_int_equal(got, head);
		assert_int_equal(len, i);
	}
}

// All at once, around the ring's end.
static void test_push_all(void **state)
{
	struct fixture *f = *state;
	struct vq_used_elem e[5];
	uint16_t head;
	uint32_t len;
	for (uint32_t i = 0; i < 20; i++) {
		for (uint32_t k = 0; k < 5; k++)
			e[k] = (struct vq_used_elem){ le32_make(i + k), le32_make(i * k) };
		vq_push_all(&f->q, e, i % 6);
		assert_int_equal(f->q.next_used, f->drv.seen + i % 6);
		for (uint32_t k = 0; k < i % 6; k++) {
			assert_true(t_used(&f->drv, &head, &len));
			assert_true(head == i + k && len == i * k);
		}
		assert_false(t_has_used(&f->drv));
	}
}

static void test_chain_and_spans(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 4096, 1);
	char *p = t_ptr(&f->vm, a, 100), text[16] = { 0 };
	memcpy(p, "Hello, world", 12);
	t_add(&f->drv,
	      (struct t_buf[]){ { a, 5, false },
				{ a, 0, false },
				{ a + 5, 7, false },
				{ 1, 0, true },
				{ a + 50, 3, true },
				{ a + 60, 4, true } },
	      6);
	assert_int_equal(vq_pop(&f->q, &f->c), 1);
	assert_int_equal(f->c.readable.n, 2); // empty ones are left out
	assert_int_equal(f->c.writable.n, 2);
	assert_int_equal(vq_span_read(&f->c.readable, text, 3), 3);
	assert_int_equal(vq_span_read(&f->c.readable, text + 3, 100), 9);
	assert_string_equal(text, "Hello, world");
	assert_int_equal(f->c.readable.bytes, 0);
	assert_null(vq_span_take_last(&f->c.readable));
	assert_ptr_equal(vq_span_take_last(&f->c.writable), p + 63);
	vq_span_trim(&f->c.writable, 4);
	assert_int_equal(f->c.writable.bytes, 4);
	assert_int_equal(vq_span_write(&f->c.writable, "abcdefg", 7), 4);
	assert_memory_equal(p + 50, "abc", 3);
	assert_memory_equal(p + 60, "d\0\0", 3);
}

static void test_indirect(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 4096, 1), table_gpa;
	struct t_buf many[VQ_MAX_IOV + 1];
	for (unsigned i = 0; i < MV_ARRAY_LEN(many); i++)
		many[i] = (struct t_buf){ a + i, 1, i > 20 };
	t_add_indirect(&f->drv, many, VQ_MAX_IOV);
	assert_int_equal(vq_pop(&f->q, &f->c), 1);
	assert_int_equal(f->c.readable.n, 21);
	assert_int_equal(f->c.writable.n, VQ_MAX_IOV - 21);
	// Direct descriptors may come before the indirect one; its table may lie anywhere.
	table_gpa = t_alloc(&f->vm, 64, 16) + 3;
	struct vq_desc d[2];
	t_desc(&d[0], a + 5, 6, VQ_DESC_NEXT, 1);
	t_desc(&d[1], a + 20, 7, VQ_DESC_WRITE, 0);
	memcpy(t_ptr(&f->vm, table_gpa, sizeof d), d, sizeof d);
	t_desc(&f->drv.desc[0], a, 5, VQ_DESC_NEXT, 1);
	t_desc(&f->drv.desc[1], table_gpa, 32, VQ_DESC_INDIRECT | VQ_DESC_WRITE, 0); // WRITE: ignored
	t_publish(&f->drv, 0);
	assert_int_equal(vq_pop(&f->q, &f->c), 1);
	assert_int_equal(f->c.readable.bytes, 11);
	assert_int_equal(f->c.writable.bytes, 7);
	t_add_indirect(&f->drv, many, VQ_MAX_IOV + 1);
	assert_int_equal(vq_pop(&f->q, &f->c), -E2BIG);
}

static void test_malformed(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 4096, 16);
	struct vq_desc *table = t_ptr(&f->vm, a, 64);
	enum { N = VQ_DESC_NEXT, W = VQ_DESC_WRITE, I = VQ_DESC_INDIRECT };
	const uint64_t end = T_LOW_BYTES;
	struct {
		struct {
			uint64_t gpa;
			uint32_t len;
			unsigned flags;
			uint16_t next;
		} d[3]; // two of the queue, the first of an indirect table
		uint16_t head;
		int error;
	} cases[] = {
		{ .head = 8, .error = -EPROTO },                                          // head out of range
		{ .d[0] = { a, 1, N, 8 }, .error = -EPROTO },                             // next out of range
		{ .d[0] = { a, 1, N, 1 }, .d[1] = { a, 1, N, 0 }, .error = -ELOOP },      // a circle
		{ .d[0] = { a, 1, W | N, 1 }, .d[1] = { a, 1, 0, 0 }, .error = -EINVAL }, // order
		{ .d[0] = { a, 0, W | N, 1 }, .d[1] = { a, 1, 0, 0 }, .error = -EINVAL }, // though empty
		{ .d[0] = { end - 4, 8, 0, 0 }, .error = -EFAULT },                       // over the end
		{ .d[0] = { end, 1, 0, 0 }, .error = -EFAULT },
		{ .d[0] = { UINT64_MAX, 2, 0, 0 }, .error = -EFAULT }, // wraps
		{ .d[0] = { T_HIGH_GPA - 4, 8, 0, 0 }, .error = -EFAULT },
		{ .d[0] = { a, 0xffffffff, 0, 0 }, .error = -EFAULT },
		{ .d[0] = { a, 0, I, 0 }, .error = -EINVAL },      // an empty table
		{ .d[0] = { a, 24, I, 0 }, .error = -EINVAL },     // half a descriptor
		{ .d[0] = { a, 16, I | N, 1 }, .error = -EINVAL }, // something behind it
		{ .d[0] = { a, 16 * 1025, I, 0 }, .error = -EINVAL },
		{ .d[0] = { end - 16, 32, I, 0 }, .error = -EFAULT },
		{ .d[0] = { a, 16, I, 0 }, .d[2] = { a, 16, I, 0 }, .error = -EINVAL }, // nested
		{ .d[0] = { a, 32, I, 0 }, .d[2] = { a, 1, N, 2 }, .error = -EPROTO },  // next outside it
		{ .d[0] = { a, 32, I, 0 }, .d[2] = { a, 1, N, 0 }, .error = -ELOOP },   // a circle in it
	};
	for (unsigned i = 0; i < MV_ARRAY_LEN(cases); i++) {
		struct vq_desc *const to[] = { &f->drv.desc[0], &f->drv.desc[1], table };
		for (unsigned k = 0; k < 3; k++)
			t_desc(to[k], cases[i].d[k].gpa, cases[i].d[k].len, cases[i].d[k].flags,
			       cases[i].d[k].next);
		t_publish(&f->drv, cases[i].head);
		int r = vq_pop(&f->q, &f->c);
		if (r != cases[i].error)
			fail_msg("case %u: %d instead of %d", i, r, cases[i].error);
		f->q.next_avail = f->drv.avail_idx; // go on with the next case
	}
	// Without the feature an indirect descriptor is none.
	f->q.indirect = false;
	t_add_indirect(&f->drv, (struct t_buf[]){ { a, 1, false } }, 1);
	assert_int_equal(vq_pop(&f->q, &f->c), -EINVAL);
	// More available than the queue can hold.
	f->drv.avail->idx = le16_make((uint16_t)(f->q.next_avail + 9));
	assert_int_equal(vq_pop(&f->q, &f->c), -EPROTO);
}

// Anything at all in the rings: refused, or what comes out lies in guest memory.
static void test_random(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 1, a = t_alloc(&f->vm, 4096, 16);
	struct vq_desc *table = t_ptr(&f->vm, a, 4096);
	unsigned good = 0;
	for (unsigned i = 0; i < 50000; i++) {
		for (unsigned k = 0; k < 16; k++) {
			uint64_t r = t_rand(&seed);
			const uint64_t base[] = { a, T_LOW_BYTES - 64, T_HIGH_GPA, r };
			t_desc(k < 8 ? &f->drv.desc[k] : &table[k - 8], base[r & 3] + (r >> 2) % 256,
			       r & 0x400 ? (uint32_t)(r >> 32) : 16 * (uint32_t)(r >> 60),
			       (unsigned)(r >> 16) & (r & 0x3000 ? 3 : 7), (uint16_t)((r >> 20) % 9));
		}
		t_publish(&f->drv, (uint16_t)(t_rand(&seed) % 9));
		if (vq_pop(&f->q, &f->c) == 1) {
			uint8_t *last = vq_span_take_last(&f->c.writable);
			if (last)
				*last = 0;
			vq_span_trim(&f->c.readable, 4096);
			uint8_t copy[4096];
			good += vq_span_read(&f->c.readable, copy, sizeof copy) > 0;
		}
		f->q.next_avail = f->drv.avail_idx;
	}
	assert_true(good > 1000); // the test reaches what it is for
}

static void test_4_gib(void **state)
{
	struct fixture *f = *state;
	struct gmem big = { 0 };
	assert_int_equal(gmem_add(&big, 0, 8ULL << 30), 0);
	if (gmem_map(&big, -1, NULL)) {
		print_message("# SKIP no 8 GiB of address space\n");
		skip();
	}
	memcpy(big.region[0].hva, f->vm.mem.region[0].hva, 1 << 20); // the rings
	assert_int_equal(vq_map(&f->q, &big, VIO_FEATURES), 0);
	struct vq_desc *d = gmem_ptr(&big, gpa(f->q.desc_gpa), 64);
	struct vq_avail *avail = gmem_ptr(&big, gpa(f->q.driver_gpa), 8);
	t_desc(&d[0], 1ULL << 20, UINT32_MAX, VQ_DESC_NEXT, 1);
	t_desc(&d[1], 1ULL << 20, 1, 0, 0);
	avail->idx = le16_make(1);
	assert_int_equal(vq_pop(&f->q, &f->c), -EOVERFLOW);
	gmem_fini(&big);
}

static void test_signal(void **state)
{
	struct fixture *f = *state;
	struct vq *q = &f->q;
	assert_false(vq_should_signal(q)); // nothing was pushed
	vq_push(q, 0, 0);
	assert_true(vq_should_signal(q)); // used_event 0: at the first
	vq_push(q, 0, 0);
	assert_false(vq_should_signal(q)); // the driver did not ask again
	*f->drv.used_event = le16_make(4);
	vq_push(q, 0, 0);
	vq_push(q, 0, 0);
	assert_false(vq_should_signal(q)); // used 4: entry 4 not yet filled
	vq_push(q, 0, 0);
	assert_true(vq_should_signal(q));
	*f->drv.used_event = le16_make(6);
	for (unsigned i = 0; i < 8; i++)
		vq_push(q, 0, 0);
	assert_true(vq_should_signal(q)); // passed over within a batch
	q->next_used = q->signalled_used = 0xffff;
	*f->drv.used_event = le16_make(0xffff);
	vq_push(q, 0, 0);
	assert_true(vq_should_signal(q)); // over the wrap

	q->event_idx = false;
	vq_push(q, 0, 0);
	assert_true(vq_should_signal(q));
	f->drv.avail->flags = le16_make(VQ_AVAIL_NO_INTERRUPT);
	vq_push(q, 0, 0);
	assert_false(vq_should_signal(q));
}

// All of it again by the definition (section 2.7.7.2): an interrupt for a batch if and only if it
// fills the entry used_event; whatever the indexes, also over the wrap.
static void test_signal_by_the_book(void **state)
{
	struct fixture *f = *state;
	struct vq *q = &f->q;
	for (uint32_t start = 0xfff0; start < 0x10010; start++)
		for (unsigned batch = 0; batch <= q->size; batch++)
			for (int event = -20; event <= 20; event++) {
				bool wanted = false;
				uint16_t at = (uint16_t)(start + (unsigned)event);
				struct vq_counts before = q->n;
				q->next_used = q->signalled_used = (uint16_t)start;
				*f->drv.used_event = le16_make(at);
				for (unsigned i = 0; i < batch; i++) {
					wanted |= q->next_used == at;
					vq_push(q, 0, 0);
				}
				assert_int_equal(vq_should_signal(q), wanted);
				assert_false(vq_should_signal(q)); // once per batch
				assert_int_equal(q->n.interrupts - before.interrupts, wanted);
				assert_int_equal(q->n.suppressed - before.suppressed, batch && !wanted);
			}
}

// The other direction: a driver kicks if and only if it fills the entry avail_event (section 2.7.10).
// Asking again after each request, over the wrap, misses none; not asking is never asked.
static void test_notify_over_the_wrap(void **state)
{
	struct fixture *f = *state;
	struct t_buf one = { t_alloc(&f->vm, 16, 1), 1, false };
	struct vq *q = &f->q;
	unsigned kicks = 0;
	f->drv.avail_idx = q->next_avail = 0xffe0;
	f->drv.avail->idx = le16_make(0xffe0);
	for (unsigned i = 0; i < 64; i++) {
		assert_false(vq_enable_notify(q));
		for (unsigned k = 0; k < 2; k++) { // the second one is no news
			uint16_t before = f->drv.avail_idx;
			t_add(&f->drv, &one, 1);
			uint16_t event = le16_get(*f->drv.avail_event);
			kicks += (uint16_t)(f->drv.avail_idx - event - 1) <
				 (uint16_t)(f->drv.avail_idx - before);
		}
		assert_int_equal(kicks, i + 1);
		assert_true(vq_enable_notify(q)); // a kick may have been missed: look again
		for (unsigned k = 0; k < 2; k++)
			assert_int_equal(vq_pop(q, &f->c), 1);
	}
	assert_int_equal(q->n.popped, 128);
	vq_unpop(q);
	assert_int_equal(q->n.popped, 127);
	assert_true(vq_enable_notify(q));
	uint16_t idx = vq_notify_next(q);
	assert_int_equal(le16_get(*f->drv.avail_event), idx);
	assert_int_equal(idx, f->drv.avail_idx);
}

static void test_notify(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 16, 1);
	struct t_buf one = { a, 1, false };
	t_add(&f->drv, &one, 1);
	assert_true(vq_enable_notify(&f->q)); // something is there already
	assert_int_equal(vq_pop(&f->q, &f->c), 1);
	assert_false(vq_enable_notify(&f->q));
	assert_int_equal(le16_get(*f->drv.avail_event), 1);
	f->q.event_idx = false;
	vq_disable_notify(&f->q);
	assert_int_equal(le16_get(f->drv.used->flags), VQ_USED_NO_NOTIFY);
	assert_false(vq_enable_notify(&f->q));
	assert_int_equal(le16_get(f->drv.used->flags), 0);
}

static bool marked(struct fixture *f, const void *p)
{
	uint64_t page = (uint64_t)((const uint8_t *)p - f->vm.mem.region[0].hva) / GMEM_PAGE_BYTES;
	return f->vm.mem.written[page / 64] >> page % 64 & 1;
}

// What the device writes, and nothing else: each on pages of its own, one access at a time.
static void test_marks_what_it_writes(void **state)
{
	struct fixture *f = *state;
	struct t_queue drv;
	uint64_t marks[(T_LOW_BYTES + T_HIGH_BYTES) / GMEM_PAGE_BYTES / 64];
	uint64_t page = t_alloc(&f->vm, 8 * 4096, 4096), used_gpa = t_alloc(&f->vm, 4 * 4096, 4096);
	f->vm.mem.written = marks;
	t_queue_init(&drv, &f->vm, 1024);
	// A used ring of 8 KiB that begins 8 bytes before a page: flags, index, half an entry in one
	// page, then two, avail_event in the last.
	struct vq q = { .size = 1024,
			.desc_gpa = drv.desc_gpa,
			.driver_gpa = drv.driver_gpa,
			.device_gpa = used_gpa + 4096 - 8 };
	uint8_t *used = t_ptr(&f->vm, used_gpa, 4 * 4096), *data = t_ptr(&f->vm, page, 8 * 4096);
	assert_int_equal(vq_map(&q, &f->vm.mem, VIO_FEATURES), 0);
	memset(marks, 0, sizeof marks);
	uint16_t head = t_add(&drv,
			      (struct t_buf[]){ { page, 4096, false },
						{ page + 4096 + 4095, 2, true },
						{ page + 4 * 4096, 4096, true },
						{ page + 6 * 4096, 0, true } },
			      4);
	assert_int_equal(vq_pop(&q, &f->c), 1);
	static const bool expected[8] = { false, true, true, false, true };
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(marked(f, data + i * 4096), expected[i]);
	for (unsigned i = 0; i < 4; i++)
		assert_false(marked(f, used + i * 4096));
	vq_push(&q, head, 0); // the entry lies across two pages
	assert_true(marked(f, used) && marked(f, used + 4096) && !marked(f, used + 2 * 4096));
	memset(marks, 0, sizeof marks);
	q.next_used = 800;
	vq_push(&q, head, 0);
	assert_true(marked(f, used) && !marked(f, used + 4096) && marked(f, used + 2 * 4096));
	memset(marks, 0, sizeof marks);
	vq_enable_notify(&q);
	assert_true(!marked(f, used) && !marked(f, used + 4096) && marked(f, used + 2 * 4096));
	memset(marks, 0, sizeof marks);
	vq_notify_next(&q);
	assert_true(marked(f, used + 2 * 4096));
	q.event_idx = false;
	for (unsigned i = 0; i < 2; i++) {
		memset(marks, 0, sizeof marks);
		if (i)
			vq_enable_notify(&q);
		else
			vq_disable_notify(&q);
		assert_true(marked(f, used) && !marked(f, used + 4096) && !marked(f, used + 2 * 4096));
	}
	f->vm.mem.written = NULL;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_map, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_wrap_around, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_push_all, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_chain_and_spans, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_indirect, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_malformed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_random, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_4_gib, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_signal, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_signal_by_the_book, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_notify, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_notify_over_the_wrap, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_marks_what_it_writes, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
