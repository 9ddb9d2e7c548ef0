// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_driver.h"

struct fixture {
	struct t_vm vm;
	struct t_queue drv;
	struct vio_dev *d;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	t_queue_init(&f->drv, &f->vm, 64);
	assert_int_equal(vio_rng_new(&f->vm.mem, &f->vm.loop, &f->d, NULL), 0);
	t_start(f->d, VIO_FEATURES, &f->drv, 1);
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

static void test_bytes(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 8192, 16);
	uint8_t *p = t_ptr(&f->vm, a, 8192), zero[4096] = { 0 };
	uint32_t len;
	t_add(&f->drv, (struct t_buf[]){ { a, 64, true }, { a + 100, 64, true } }, 2);
	t_kick(f->d, 0);
	assert_true(t_used(&f->drv, NULL, &len));
	assert_int_equal(len, 128);
	assert_memory_not_equal(p, zero, 64);
	assert_memory_not_equal(p, p + 100, 64);
	assert_memory_equal(p + 64, zero, 36);
	assert_int_equal(t_irqs(f->d), 1);
	t_add(&f->drv, (struct t_buf[]){ { a, 8192, true } }, 1); // filled in part
	t_kick(f->d, 0);
	assert_true(t_used(&f->drv, NULL, &len));
	assert_int_equal(len, 4096);
	assert_memory_equal(p + 4096, zero, 4096);
	t_add(&f->drv, (struct t_buf[]){ { a, 64, false } }, 1); // no room at all
	t_kick(f->d, 0);
	assert_true(t_used(&f->drv, NULL, &len));
	assert_int_equal(len, 0);
}

// One turn of the loop has its limit; the rest follows by itself.
static void test_bounded(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 16, 16);
	unsigned n = 0;
	for (unsigned i = 0; i < 64; i++)
		t_add(&f->drv, (struct t_buf[]){ { a, 16, true } }, 1);
	t_kick(f->d, 0);
	while (t_used(&f->drv, NULL, NULL))
		n++;
	assert_int_equal(n, 32);
	for (; n < 64; n++) {
		t_run_until(&f->vm, t_has_used, &f->drv);
		assert_true(t_used(&f->drv, NULL, NULL));
	}
}

// A buffer goes when those before it are paid for; none is lost.
static void test_limit(void **state)
{
	struct fixture *f = *state;
	const struct vmcfg_rate rate = { .bandwidth = { .size = 1000, .refill_ms = 100 } };
	uint64_t a = t_alloc(&f->vm, 1000, 16);
	unsigned n = 0;
	assert_int_equal(vio_rng_set_limit(f->d, &rate, NULL), 0);
	for (unsigned i = 0; i < 5; i++)
		t_add(&f->drv, (struct t_buf[]){ { a, 1000, true } }, 1);
	uint64_t start = mv_now_ns();
	t_kick(f->d, 0);
	while (t_used(&f->drv, NULL, NULL))
		n++;
	assert_int_equal(n, 2); // the bucket's, and the one that is owed for
	t_kick(f->d, 0);
	assert_false(t_used(&f->drv, NULL, NULL));
	for (; n < 5; n++) {
		t_run_until(&f->vm, t_has_used, &f->drv);
		assert_true(t_used(&f->drv, NULL, NULL));
	}
	assert_true(mv_now_ns() - start >= 290 * 1000000ull);
}

// Two clones of one state, over copies of one memory, draw different bytes.
static void test_clones_differ(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 32, 16);
	uint8_t *p = t_ptr(&f->vm, a, 32), first[32];
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	t_add(&f->drv, (struct t_buf[]){ { a, 32, true } }, 1);
	for (int clone = 0; clone < 2; clone++) {
		struct vio_dev *d;
		assert_int_equal(vio_rng_new(&f->vm.mem, &f->vm.loop, &d, NULL), 0);
		assert_int_equal(vio_load(d, saved.p, saved.len, NULL), 0);
		vio_unquiesce(d);
		if (clone)
			assert_memory_not_equal(p, first, 32);
		memcpy(first, p, 32);
		vio_free(d);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_bytes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_bounded, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limit, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_clones_differ, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
