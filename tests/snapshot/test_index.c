// SPDX-License-Identifier: Apache-2.0
// snapshot/index.c: right after every change, and quiet when nothing changed.
#include <sys/stat.h>

#include "snapshot/index.h"
#include "tests/snapshot/t_store.h"

static void refresh(struct store_index *x, struct t_store *t, size_t n)
{
	assert_int_equal(store_index_refresh(x, &t->s), 0);
	assert_int_equal(x->n, n);
}

static void counts(void **state)
{
	struct t_store *t = *state;
	struct store_index x = { 0 };
	struct store_usage u;
	refresh(&x, t, 0);
	t_store_make(t, "b", NULL, false);
	refresh(&x, t, 1);
	u = x.total;
	assert_true(u.apparent_bytes > T_MEM_MIB << 20 && u.disk_bytes > 0 && u.disk_bytes < 1 << 20);
	t_store_make(t, "a", NULL, false);
	refresh(&x, t, 2);
	assert_int_equal(x.n_reads, 2); // b was known
	assert_int_equal(x.total.apparent_bytes, 2 * u.apparent_bytes);
	usleep(150000); // time stamps are not told apart closer than that
	refresh(&x, t, 2);
	assert_true(x.folder_ns != 0);
	refresh(&x, t, 2);
	assert_int_equal(x.n_reads, 2);
	// By hand: removed, foreign, damaged.
	assert_int_equal(mkdir(t_store_path(t, "snapshots/empty"), 0700), 0);
	refresh(&x, t, 3);
	assert_int_equal(rmdir(t_store_path(t, "snapshots/empty")), 0);
	assert_int_equal(store_delete(&t->s, "b", &t->err), 0);
	refresh(&x, t, 1);
	assert_int_equal(x.total.apparent_bytes, u.apparent_bytes);
	assert_int_equal(x.n_reads, 2);
	store_index_free(&x);
	assert_int_equal(x.n, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(counts, t_store_setup, t_store_teardown),
	};
	return cmocka_run_group_tests_name("snapshot/index", tests, NULL, NULL);
}
