// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>

#include "snapshot/memory_map.h"

enum { MIB = 1 << 20 };

static void two_regions(struct gmem *m, uint64_t low, uint64_t high)
{
	*m = (struct gmem){ 0 };
	assert_int_equal(gmem_add(m, 0, low), 0);
	if (high)
		assert_int_equal(gmem_add(m, 4ULL << 30, high), 0);
}

static void round_trip(void **state)
{
	struct memory_map map;
	struct mv_err err = { 0 };
	struct gmem m, other;
	MV_BUF b = { 0 };
	(void)state;
	two_regions(&m, 8 * MIB, 4 * MIB);
	memory_map_save(&m, &b);
	assert_false(b.failed);
	assert_int_equal(memory_map_parse(b.p, b.len, &map, &err), 0);
	assert_int_equal(map.n_regions, 2);
	assert_int_equal(map.region[1].gpa, 4ULL << 30);
	assert_int_equal(map.region[1].file_offset, 8 * MIB);
	assert_int_equal(memory_map_check(&map, &m, &err), 0);
	two_regions(&other, 7 * MIB, 5 * MIB);
	assert_int_equal(memory_map_check(&map, &other, &err), -EINVAL);
	assert_message(err, "0x800000 bytes at 0x0, this thaw 0x700000 at 0x0");
	two_regions(&other, 12 * MIB, 0);
	assert_int_equal(memory_map_check(&map, &other, &err), -EINVAL);
	assert_message(err, "in 2 regions, this thaw makes 1");
}

static void what_can_t_be(void **state)
{
	struct memory_map map = { .n_regions = 77 };
	struct mv_err err = { 0 };
	struct gmem m;
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		MV_BUF b = { 0 };
		two_regions(&m, 8 * MIB, 4 * MIB);
		switch (i) {
		case 0: m.region[1].gpa = 8 * MIB - GMEM_PAGE_BYTES; break; // inside the first
		case 1: m.region[1].file_offset++; break;
		case 2: m.region[0].file_offset = GMEM_PAGE_BYTES; break;
		case 3: m.region[1].size_bytes = UINT64_MAX; break;
		}
		memory_map_save(&m, &b);
		assert_int_equal(memory_map_parse(b.p, b.len, &map, &err), -EINVAL);
		assert_message(err, i < 3 ? "does not follow" : "size_bytes");
	}
	assert_int_equal(map.n_regions, 77);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(what_can_t_be),
	};
	return cmocka_run_group_tests_name("snapshot/memory_map", tests, NULL, NULL);
}
