// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>

#include "microvm/base/err.h"

static void fail_and_wrap(void **state)
{
	struct mv_err err;
	(void)state;
	assert_int_equal(mv_fail(&err, ENOENT, "disk %d", 3), -ENOENT);
	assert_int_equal(mv_wrap(&err, "vm %s", "a"), -ENOENT);
	assert_int_equal(mv_wrap(&err, "daemon"), -ENOENT);
	assert_int_equal(err.code, ENOENT);
	assert_string_equal(err.msg, "daemon: vm a: disk 3");
}

static void no_error_wanted(void **state)
{
	(void)state;
	assert_int_equal(mv_fail(NULL, EBUSY, "x"), -EBUSY);
	assert_int_equal(mv_wrap(NULL, "x"), -EIO);
}

// Whatever the lengths, the text ends inside the buffer; the innermost end is what goes.
static void too_long(void **state)
{
	char text[1000];
	struct mv_err err;
	(void)state;
	for (size_t inner = 0; inner < sizeof text; inner += 37)
		for (size_t outer = 0; outer < sizeof text; outer += 41) {
			memset(text, 'i', sizeof text);
			mv_fail(&err, EIO, "%.*s", (int)inner, text);
			assert_true(strlen(err.msg) < sizeof err.msg);
			memset(text, 'o', sizeof text);
			mv_wrap(&err, "%.*s", (int)outer, text);
			size_t len = strnlen(err.msg, sizeof err.msg);
			assert_true(len < sizeof err.msg);
			size_t o = strspn(err.msg, "o");
			assert_true(o == (outer < sizeof err.msg - 3 ? outer : sizeof err.msg - 3));
			assert_memory_equal(err.msg + o, ": ", 2);
			assert_int_equal(o + 2 + strspn(err.msg + o + 2, "i"), len);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fail_and_wrap),
		cmocka_unit_test(no_error_wanted),
		cmocka_unit_test(too_long),
	};
	return cmocka_run_group_tests_name("base/err", tests, NULL, NULL);
}
