// SPDX-License-Identifier: Apache-2.0
// The matcher of the ready text against a search of all that was said.
#include "microvm/ready.h"

#include <stdio.h>
#include <string.h>

#include "tests/t.h"

static bool found_at(const char *text, const char *stream, size_t *ret_at)
{
	struct ready_text r;
	char padded[VMCFG_MARKER_LEN] = { 0 };
	snprintf(padded, sizeof padded, "%s", text);
	ready_text_init(&r, padded);
	for (size_t i = 0; stream[i]; i++)
		if (ready_text_byte(&r, (uint8_t)stream[i])) {
			*ret_at = i + 1;
			return true;
		}
	return false;
}

static void check(const char *text, const char *stream)
{
	const char *at = strstr(stream, text);
	size_t end = 0;
	assert_int_equal(found_at(text, stream, &end), at != NULL);
	if (at)
		assert_int_equal(end, (size_t)(at - stream) + strlen(text));
}

static void test_texts_that_repeat_themselves(void **state)
{
	(void)state;
	check("READY", "RREAREADREADY\n");
	check("aab", "aaaab");
	check("abab", "abaabab");
	check("aaaa", "aaabaaaa");
	check("login: ", "logilogin:login: ");
	check("x", "");
	check("abc", "ababab");
}

// All streams of 12 letters a and b, all texts of up to 5.
static void test_every_short_stream(void **state)
{
	(void)state;
	for (unsigned len = 1; len <= 5; len++)
		for (unsigned t = 0; t < 1u << len; t++)
			for (unsigned s = 0; s < 1u << 12; s++) {
				char text[8] = { 0 }, stream[16] = { 0 };
				for (unsigned i = 0; i < len; i++)
					text[i] = t >> i & 1 ? 'b' : 'a';
				for (unsigned i = 0; i < 12; i++)
					stream[i] = s >> i & 1 ? 'b' : 'a';
				check(text, stream);
			}
}

static void test_it_is_found_again_and_bytes_of_any_value_do_no_harm(void **state)
{
	(void)state;
	struct ready_text r;
	const char text[VMCFG_MARKER_LEN] = "ab";
	unsigned found = 0;
	ready_text_init(&r, text);
	for (unsigned i = 4 * 256; i--;) // downwards: no b behind an a
		assert_false(ready_text_byte(&r, (uint8_t)i));
	for (unsigned i = 0; i < 10; i++)
		found += ready_text_byte(&r, i % 2 ? 'b' : 'a');
	assert_int_equal(found, 5);
}

static void test_the_longest_text_and_none(void **state)
{
	(void)state;
	struct ready_text r;
	char text[VMCFG_MARKER_LEN] = { 0 };
	ready_text_init(&r, text);
	for (unsigned i = 0; i < 256; i++)
		assert_false(ready_text_byte(&r, (uint8_t)i));
	memset(text, 'a', sizeof text - 1);
	ready_text_init(&r, text);
	for (unsigned i = 0; i + 2 < sizeof text; i++)
		assert_false(ready_text_byte(&r, 'a'));
	assert_true(ready_text_byte(&r, 'a'));
	assert_true(ready_text_byte(&r, 'a')); // it overlaps itself
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_texts_that_repeat_themselves),
		cmocka_unit_test(test_every_short_stream),
		cmocka_unit_test(test_it_is_found_again_and_bytes_of_any_value_do_no_harm),
		cmocka_unit_test(test_the_longest_text_and_none),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
