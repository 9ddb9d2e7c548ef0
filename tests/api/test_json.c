// SPDX-License-Identifier: Apache-2.0
// api/json.c: the table walker finds every error, and what it encodes it can decode.
#include "tests/t.h"

#include <stdlib.h>
#include <string.h>

#include "api/json.h"
#include "microvm/base/util.h"

struct inner {
	char name[8];
	uint64_t big;
};
struct outer {
	uint32_t small, word, n_list, n_heap;
	bool flag, has_one;
	uint8_t mac[6];
	char path[16];
	struct inner one, list[2], *heap;
};

// clang-format off
#define OFF(s, m) .offset = (uint32_t)offsetof(s, m), .size = (uint32_t)sizeof(((s *)0)->m)
static const struct js_field inner_fields[] = {
	{ .name = "name", .type = JS_NAME, .flags = JS_REQUIRED, OFF(struct inner, name), .doc = "a name" },
	{ .name = "big", .type = JS_UINT, OFF(struct inner, big), .max = UINT64_MAX },
};
static const struct js_table inner_table = { .fields = inner_fields, .n_fields = MV_ARRAY_LEN(inner_fields) };
static const char *const words[] = { "red", "green", NULL };
static const struct js_field outer_fields[] = {
	{ .name = "small", .type = JS_UINT, OFF(struct outer, small), .min = 2, .max = 9 },
	{ .name = "word", .type = JS_WORD, OFF(struct outer, word), .words = words },
	{ .name = "flag", .type = JS_BOOL, OFF(struct outer, flag) },
	{ .name = "mac", .type = JS_MAC, OFF(struct outer, mac), .flags = JS_OMIT_EMPTY },
	{ .name = "path", .type = JS_PATH, OFF(struct outer, path), .flags = JS_OMIT_EMPTY },
	{ .name = "one", .type = JS_OBJ, OFF(struct outer, one), .sub = &inner_table,
	  .present = 1 + offsetof(struct outer, has_one) },
	{ .name = "list", .type = JS_LIST, OFF(struct outer, list[0]), .sub = &inner_table, .max_count = 2,
	  .count_offset = offsetof(struct outer, n_list) },
	{ .name = "heap", .type = JS_LISTP, .offset = offsetof(struct outer, heap),
	  .size = sizeof(struct inner), .sub = &inner_table, .max_count = 3,
	  .count_offset = offsetof(struct outer, n_heap) },
};
static const struct js_table outer_table = { .fields = outer_fields, .n_fields = MV_ARRAY_LEN(outer_fields) };

// clang-format on

static void expect_code(const char *text, enum api_code code, const char *in_message)
{
	struct outer o = { .small = 2 };
	struct api_err err = { 0 };
	int r = js_decode(&outer_table, text, strlen(text), &o, &err);
	free(o.heap);
	if (code == API_OK) {
		assert_int_equal(r, 0);
		return;
	}
	assert_int_not_equal(r, 0);
	assert_string_equal(api_code_info(err.code)->name, api_code_info(code)->name);
	if (!strstr(err.msg, in_message))
		fail_msg("\"%s\" is not in \"%s\"", in_message, err.msg);
}

static void test_decode_errors(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		enum api_code code;
		const char *in_message;
	} cases[] = {
		{ "{}", API_OK, "" },
		{ "", API_OK, "" },
		{ " { \"small\" : 9 } \n", API_OK, "" },
		{ "{\"small\":2}x", API_INVALID_JSON, "line 1" },
		{ "{\"small\":2,\"small\":3}", API_INVALID_JSON, "duplicate" },
		{ "{\"small\":2,}", API_INVALID_JSON, "" },
		{ "{\"path\":\"/a\\u0000b\"}", API_INVALID_JSON, "" },
		{ "{\"path\":\"/\xff\"}", API_INVALID_JSON, "" },
		{ "[]", API_WRONG_TYPE, "body" },
		{ "7", API_WRONG_TYPE, "body" },
		{ "{\"x\":1}", API_UNKNOWN_FIELD, "x: no such field; known are: small, word" },
		{ "{\"\":1}", API_UNKNOWN_FIELD, "" },
		{ "{\"small\":1}", API_INVALID_VALUE, "1 is not within 2..9" },
		{ "{\"small\":10}", API_INVALID_VALUE, "" },
		{ "{\"small\":-3}", API_INVALID_VALUE, "" },
		{ "{\"small\":4294967298}", API_INVALID_VALUE, "" },
		{ "{\"small\":99999999999999999999}", API_INVALID_JSON, "" },
		{ "{\"small\":2.0}", API_WRONG_TYPE, "must be an integer" },
		{ "{\"small\":null}", API_WRONG_TYPE, "null" },
		{ "{\"small\":\"2\"}", API_WRONG_TYPE, "a string" },
		{ "{\"word\":\"blue\"}", API_INVALID_VALUE, "\"red\" or \"green\"" },
		{ "{\"word\":0}", API_WRONG_TYPE, "" },
		{ "{\"flag\":1}", API_WRONG_TYPE, "true or false" },
		{ "{\"path\":\"rel\"}", API_INVALID_VALUE, "absolute" },
		{ "{\"path\":\"\"}", API_INVALID_VALUE, "absolute" },
		{ "{\"path\":\"/0123456789abcd\"}", API_OK, "" },
		{ "{\"path\":\"/0123456789abcde\"}", API_INVALID_VALUE, "longer than 15" },
		{ "{\"path\":\"/a\\nb\"}", API_INVALID_VALUE, "control character" },
		{ "{\"path\":\"/a\\u007f\"}", API_INVALID_VALUE, "control character" },
		{ "{\"mac\":\"02:00:00:00:00:0A\"}", API_OK, "" },
		{ "{\"mac\":\"02:00:00:00:00:0\"}", API_INVALID_VALUE, "mac" },
		{ "{\"mac\":\"02:00:00:00:00:0G\"}", API_INVALID_VALUE, "mac" },
		{ "{\"mac\":\"03:00:00:00:00:01\"}", API_INVALID_VALUE, "unicast" },
		{ "{\"mac\":\"00:00:00:00:00:00\"}", API_INVALID_VALUE, "mac" },
		{ "{\"one\":{}}", API_MISSING_FIELD, "one.name: is missing (a name)" },
		{ "{\"one\":{\"name\":\"-x\"}}", API_INVALID_VALUE, "one.name" },
		{ "{\"one\":{\"name\":\"a\",\"big\":9223372036854775807}}", API_OK, "" },
		{ "{\"list\":{}}", API_WRONG_TYPE, "an array" },
		{ "{\"list\":[{\"name\":\"a\"},{\"name\":\"b\",\"y\":1}]}", API_UNKNOWN_FIELD, "list[1].y" },
		{ "{\"list\":[{\"name\":\"a\"},{\"name\":\"b\"},{\"name\":\"c\"}]}", API_INVALID_VALUE,
		  "at most 2" },
		{ "{\"heap\":[{\"name\":\"a\"},{\"name\":1}]}", API_WRONG_TYPE, "heap[1].name" },
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(cases); i++)
		expect_code(cases[i].text, cases[i].code, cases[i].in_message);
}

static void test_decode_values_and_round_trip(void **state)
{
	(void)state;
	static const char text[] =
		"{\"small\":7,\"word\":\"green\",\"flag\":true,\"mac\":\"02:00:00:00:00:0a\",\"path\":\"/x\","
		"\"one\":{\"name\":\"n\",\"big\":5},\"list\":[{\"name\":\"l\",\"big\":1}],"
		"\"heap\":[{\"name\":\"h\",\"big\":2},{\"name\":\"i\",\"big\":3}]}";
	struct outer o = { .small = 2 };
	struct api_err err;
	assert_int_equal(js_decode(&outer_table, text, strlen(text), &o, &err), 0);
	assert_int_equal(o.small, 7);
	assert_int_equal(o.word, 1);
	assert_true(o.flag && o.has_one);
	assert_int_equal(o.mac[5], 10);
	assert_int_equal(o.n_list, 1);
	assert_int_equal(o.n_heap, 2);
	assert_string_equal(o.heap[1].name, "i");
	char *out = js_text(js_encode(&outer_table, &o), false);
	assert_non_null(out);
	out[strlen(out) - 1] = 0; // its newline
	assert_string_equal(out, text);
	free(out);
	free(o.heap);
}

static void test_absent_fields_keep_their_defaults(void **state)
{
	(void)state;
	struct outer o = { .small = 5, .flag = true };
	struct api_err err;
	assert_int_equal(js_decode(&outer_table, "{}", 2, &o, &err), 0);
	assert_int_equal(o.small, 5);
	assert_true(o.flag);
	assert_false(o.has_one);
}

static void test_output_is_always_utf8(void **state)
{
	(void)state;
	js *o = js_object();
	js_put_str(o, "s", "a\xff\"b");
	char *text = js_text(o, false);
	assert_string_equal(text, "{\"s\":\"a?\\\"b\"}\n");
	free(text);
}

static void test_readers(void **state)
{
	(void)state;
	struct api_err err;
	static const char text[] = "{\"a\":{\"b\":[1,{\"c\":\"x\"}],\"t\":true}}";
	js *v = js_parse(text, strlen(text), &err);
	assert_int_equal(js_len(js_get(v, "a.b")), 2);
	assert_string_equal(js_str(js_at(js_get(v, "a.b"), 1), "c", "none"), "x");
	assert_string_equal(js_str(v, "a.z", "none"), "none");
	assert_int_equal(js_int(v, "a.t", -1), -1);
	assert_true(js_true(v, "a.t"));
	assert_null(js_get(v, "a.b.c.d"));
	js_free(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode_errors),
		cmocka_unit_test(test_decode_values_and_round_trip),
		cmocka_unit_test(test_absent_fields_keep_their_defaults),
		cmocka_unit_test(test_output_is_always_utf8),
		cmocka_unit_test(test_readers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
