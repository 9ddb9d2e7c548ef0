// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>

#include "microvm/base/bytes.h"
#include "microvm/base/state.h"

struct part {
	uint8_t a;
	char s[8];
};

struct all {
	uint8_t u8;
	uint16_t u16;
	uint32_t u32;
	uint64_t u64;
	bool flag;
	char str[16];
	uint8_t raw[6];
	uint32_t n_blob;
	uint8_t blob[32];
	struct part sub;
	struct part list[3];
	uint32_t n_list;
	uint32_t opt;
};

static const struct mv_field part_fields[] = {
	MV_INT(struct part, a, 1, MV_U8, 0, 100),
	MV_STRING(struct part, s, 2),
};
static MV_DEFINE_TABLE(part_table, struct part, part_fields);

static const struct mv_field all_fields[] = {
	MV_INT(struct all, u8, 1, MV_U8, 0, 200),
	MV_INT(struct all, u16, 2, MV_U16, 10, 60000),
	MV_INT(struct all, u32, 3, MV_U32, 0, UINT32_MAX),
	MV_INT(struct all, u64, 4, MV_U64, 0, UINT64_MAX),
	MV_FLAG(struct all, flag, 5),
	MV_STRING(struct all, str, 6),
	MV_RAW(struct all, raw, 7),
	MV_VAR(struct all, blob, n_blob, 8),
	MV_SUB(struct all, sub, 9, part_table),
	MV_ARRAY(struct all, list, n_list, 10, part_table),
	MV_OPT_INT(struct all, opt, 11, MV_U32, 0, 9),
};
static MV_DEFINE_TABLE(all_table, struct all, all_fields);

static const struct all good = { .u8 = 200,
				 .u16 = 0x1234,
				 .u32 = UINT32_MAX,
				 .u64 = 0x0123456789abcdef,
				 .flag = true,
				 .str = "fifteen chars..",
				 .raw = { 1, 2, 3, 4, 5, 6 },
				 .n_blob = 3,
				 .blob = "\0\1\2",
				 .sub = { 7, "sub" },
				 .list = { { 1, "" }, { 2, "two" }, { 3, "three" } },
				 .n_list = 3,
				 .opt = 9 };

static int load(const struct mv_buf *b, struct all *a, struct mv_err *err)
{
	*err = (struct mv_err){ 0 };
	return mv_state_load(&all_table, b->p, b->len, a, err);
}

// One field as in the encoding.
static void put(struct mv_buf *b, uint16_t tag, const void *bytes, uint32_t len)
{
	struct {
		le16_t tag, zero;
		le32_t len;
	} h = { le16_make(tag), { 0 }, le32_make(len) };
	mv_buf_append(b, &h, sizeof h);
	mv_buf_append(b, bytes, len);
}

static void must_refuse(const struct mv_buf *b, const char *why)
{
	struct all a, before;
	struct mv_err err;
	memset(&a, 0xa5, sizeof a);
	before = a;
	assert_int_equal(load(b, &a, &err), -EINVAL);
	assert_message(err, why);
	assert_memory_equal(&a, &before, sizeof a); // untouched
	assert_int_equal(mv_state_load(&all_table, b->p, b->len, &a, NULL), -EINVAL);
}

static void round_trip(void **state)
{
	MV_BUF b = { 0 };
	MV_BUF again = { 0 };
	struct all a;
	struct mv_err err;
	(void)state;
	mv_state_save(&all_table, &good, &b);
	assert_false(b.failed);
	assert_int_equal(load(&b, &a, &err), 0);
	assert_memory_equal(&a, &good, sizeof a);
	mv_state_save(&all_table, &a, &again);
	assert_int_equal(again.len, b.len);
	assert_memory_equal(again.p, b.p, b.len);
}

static void encoding_is_little_endian_and_fixed(void **state)
{
	static const uint8_t want[] = { 1, 0, 0, 0, 1, 0, 0, 0, 77, 2, 0, 0, 0, 2, 0, 0, 0, 'h', 'i' };
	const struct part p = { 77, "hi" };
	MV_BUF b = { 0 };
	(void)state;
	mv_state_save(&part_table, &p, &b);
	assert_int_equal(b.len, sizeof want);
	assert_memory_equal(b.p, want, sizeof want);
}

static void every_truncation_is_refused(void **state)
{
	MV_BUF b = { 0 };
	struct all a;
	struct mv_err err;
	size_t accepted = 0;
	(void)state;
	mv_state_save(&all_table, &good, &b);
	for (size_t len = b.len; len--;) {
		struct mv_buf cut = { .p = len ? malloc(len) : NULL, .len = len };
		if (len)
			memcpy(cut.p, b.p, len);
		if (!load(&cut, &a, &err))
			accepted++; // ends just before the optional field, or array elements
		mv_buf_fini(&cut);
	}
	assert_int_equal(accepted, 4);
}

static void each_problem_has_its_message(void **state)
{
	static const char *const missing[] = { "u8: missing",  "u16: missing",  "u32: missing",
					       "u64: missing", "flag: missing", "str: missing",
					       "raw: missing", "blob: missing", "sub: missing" };
	static const uint8_t nul[] = "a\0b";
	static uint8_t big[64];
	static const struct {
		uint16_t tag;
		const void *bytes;
		uint32_t len;
		const char *why;
	} bad[] = {
		{ 1, "\xc9", 1, "u8: 201 is not within 0..200" },
		{ 1, "\1\0", 2, "u8: wrong length 2" },
		{ 1, "", 0, "u8: wrong length 0" },
		{ 2, "\x09\0", 2, "u16: 9 is not within 10..60000" },
		{ 3, big, 8, "u32: wrong length 8" },
		{ 5, "\2", 1, "flag: 2 is not within 0..1" },
		{ 6, big, 16, "str: longer than 15" },
		{ 6, nul, 3, "str: control character" },
		{ 6, "a\nb", 3, "str: control character" },
		{ 6, "\x7f", 1, "str: control character" },
		{ 7, big, 5, "raw: wrong length 5" },
		{ 8, big, 33, "blob: wrong length 33" },
		{ 9, "", 0, "struct part.a: missing" },
		{ 9, "\1\0\0\0\1\0\0\0\x65", 9, "struct part.a: 101 is not within 0..100" },
		{ 9, "\1\0\0\0\2\0\0\0\x64", 9, "field 1 is cut off" },
		{ 9, "\1\0\0\0", 4, "struct part: cut off" },
		{ 11, "\x0a\0\0\0", 4, "opt: 10 is not within 0..9" },
		{ 12, "", 0, "unknown field 12" },
		{ 0x7fff, "", 0, "unknown field 32767" },
	};
	(void)state;

	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++) {
		MV_BUF b = { 0 };
		put(&b, bad[i].tag, bad[i].bytes, bad[i].len);
		must_refuse(&b, bad[i].why);
	}
	for (size_t i = 0; i < MV_ARRAY_LEN(missing); i++) { // each field but one
		MV_BUF b = { 0 };
		MV_BUF without = { 0 };
		mv_state_save(&all_table, &good, &b);
		for (size_t at = 0; at < b.len;) {
			uint32_t len;
			memcpy(&len, b.p + at + 4, 4);
			if (b.p[at] != i + 1)
				mv_buf_append(&without, b.p + at, 8 + len);
			at += 8 + len;
		}
		must_refuse(&without, missing[i]);
	}
	MV_BUF b = { 0 };
	mv_state_save(&all_table, &good, &b);
	put(&b, 1, "\1", 1);
	must_refuse(&b, "u8: there twice");
	MV_BUF four = { 0 };
	mv_state_save(&all_table, &good, &four);
	put(&four, 10, "\1\0\0\0\1\0\0\0\1\2\0\0\0\0\0\0\0", 17);
	must_refuse(&four, "list: more than 3");
	MV_BUF reserved = { 0 };
	mv_state_save(&all_table, &good, &reserved);
	reserved.p[2] = 1;
	must_refuse(&reserved, "field 1 is cut off or malformed");
}

static void optional_and_skippable(void **state)
{
	MV_BUF b = { 0 };
	struct all a;
	struct mv_err err;
	(void)state;
	put(&b, MV_TAG_SKIP, "newer", 5);
	mv_state_save(&all_table, &good, &b);
	b.len -= 12; // without `opt`, the last
	put(&b, 0xffff, "newer still", 11);
	put(&b, 0xffff, NULL, 0);
	assert_int_equal(load(&b, &a, &err), 0);
	assert_int_equal(a.opt, 0);
	a.opt = good.opt;
	assert_memory_equal(&a, &good, sizeof a);
}

static void saving_out_of_bounds_fails(void **state)
{
	(void)state;
	for (int k = 0; k < 3; k++) {
		MV_BUF b = { 0 };
		struct all a = good;
		if (k == 0)
			a.n_list = 4;
		else if (k == 1)
			a.n_blob = 33;
		else
			memset(a.str, 'x', sizeof a.str);
		mv_state_save(&all_table, &a, &b);
		assert_true(b.failed);
	}
}

// Whatever loads can be saved, and loads again as the same.
static void hostile_bytes(void **state)
{
	uint64_t seed = 42;
	MV_BUF b = { 0 };
	int loaded = 0;
	(void)state;
	mv_state_save(&all_table, &good, &b);
	for (int i = 0; i < 200000; i++) {
		struct all a, c;
		struct mv_err err = { 0 };
		size_t len = b.len - (t_rand(&seed) % 4 ? 0 : t_rand(&seed) % b.len);
		uint8_t *copy = malloc(len);
		memcpy(copy, b.p, len);
		t_mutate(copy, len, &seed);
		int r = mv_state_load(&all_table, copy, len, &a, &err);
		free(copy);
		if (r) {
			assert_true(r == -EINVAL && err.msg[0]);
			continue;
		}
		loaded++;
		MV_BUF again = { 0 };
		mv_state_save(&all_table, &a, &again);
		assert_false(again.failed);
		assert_int_equal(load(&again, &c, &err), 0);
		assert_memory_equal(&a, &c, sizeof a);
	}
	assert_true(loaded > 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(encoding_is_little_endian_and_fixed),
		cmocka_unit_test(every_truncation_is_refused),
		cmocka_unit_test(each_problem_has_its_message),
		cmocka_unit_test(optional_and_skippable),
		cmocka_unit_test(saving_out_of_bounds_fails),
		cmocka_unit_test(hostile_bytes),
	};
	return cmocka_run_group_tests_name("base/state", tests, NULL, NULL);
}
