// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "microvm/base/scratch.h"

#define REGION 4096u

static bool inside(const void *p, const void *first) { return (uintptr_t)p - (uintptr_t)first < REGION; }

static void all_zeros(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		assert_int_equal(p[i], 0);
}

static void test_without_a_region(void **state)
{
	(void)state;
	uint8_t *p = mv_scratch(100);
	assert_non_null(p);
	all_zeros(p, 100);
	mv_scratch_free(p);
	mv_scratch_free(NULL);
	mv_scratch_drop();
}

// What was given back is taken again, in turn or not, and cleared.
static void test_a_stack(void **state)
{
	(void)state;
	mv_scratch_make(REGION, true);
	uint8_t *a = mv_scratch(1000), *b = mv_scratch(1001), *c = mv_scratch(1000);
	assert_true(inside(b, a) && inside(c, a));
	assert_int_equal((uintptr_t)c % 16, 0);
	memset(a, 1, 1000);
	memset(b, 2, 1000);
	mv_scratch_free(a);
	mv_scratch_free(b);
	uint8_t *d = mv_scratch(500); // above c, which is still there
	assert_true(d > c && inside(d, a));
	mv_scratch_free(d);
	mv_scratch_free(c); // now all is free
	assert_ptr_equal(mv_scratch(1000), a);
	all_zeros(a, 1000);
	mv_scratch_free(a);
	mv_scratch_drop();
}

static void test_what_does_not_fit(void **state)
{
	(void)state;
	mv_scratch_make(REGION, false);
	mv_scratch_make(REGION, false); // has one
	uint8_t *a = mv_scratch(REGION - 100), *b = mv_scratch(REGION), *c = mv_scratch(SIZE_MAX);
	assert_non_null(a);
	assert_non_null(b);
	assert_false(inside(b, a));
	assert_null(c);
	all_zeros(b, REGION);
	mv_scratch_free(b);
	mv_scratch_free(a);
	mv_scratch_drop();
}

static void *other_thread(void *ours)
{
	void *p = mv_scratch(100);
	bool apart = p && !inside(p, ours);
	mv_scratch_free(p);
	return apart ? ours : NULL;
}

static void test_it_is_one_threads(void **state)
{
	(void)state;
	pthread_t t;
	void *r = NULL;
	mv_scratch_make(REGION, false);
	void *p = mv_scratch(100);
	assert_int_equal(pthread_create(&t, NULL, other_thread, p), 0);
	pthread_join(t, &r);
	assert_ptr_equal(r, p);
	mv_scratch_free(p);
	mv_scratch_drop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_a_region),
		cmocka_unit_test(test_a_stack),
		cmocka_unit_test(test_what_does_not_fit),
		cmocka_unit_test(test_it_is_one_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
