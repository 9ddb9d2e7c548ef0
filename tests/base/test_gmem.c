// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>

#include "microvm/base/gmem.h"
#include "microvm/base/util.h"

enum { MIB = 1 << 20 };
#define HIGH_GPA (4ULL << 30)

// Two regions that touch and one far above: 1 MiB at 0, 1 MiB at 1 MiB, 2 MiB at 4 GiB.
static void make(struct gmem *m, int file_fd)
{
	struct mv_err err;
	*m = (struct gmem){ 0 };
	assert_int_equal(gmem_add(m, 0, MIB), 0);
	assert_int_equal(gmem_add(m, MIB, MIB), 0);
	assert_int_equal(gmem_add(m, HIGH_GPA, 2 * MIB), 0);
	assert_int_equal(gmem_map(m, file_fd, &err), 0);
}

static void layout(void **state)
{
	struct gmem m;
	(void)state;
	make(&m, -1);
	assert_int_equal(m.total_bytes, 4 * MIB);
	assert_int_equal(m.region[2].file_offset, 2 * MIB);
	assert_int_equal(gmem_add(&m, 8ULL << 30, MIB), 0);
	assert_int_equal(gmem_add(&m, 9ULL << 30, MIB), -ENOSPC);
	gmem_fini(&m);
	gmem_fini(&m);
}

static uint32_t page_bytes = 4096;
int getpagesize(void) { return (int)page_bytes; } // in libc's place: this host as one with larger pages

// Of a host with larger pages only whole ones go back, of anonymous memory and of a file's.
static void discard_on_larger_pages(void **state)
{
	static const uint32_t sizes[] = { 16 << 10, 64 << 10 };
	(void)state;
	for (unsigned i = 0; i < 2 * MV_ARRAY_LEN(sizes); i++) {
		uint32_t page = page_bytes = sizes[i / 2];
		int fd = i % 2 ? t_file() : -1;
		struct gmem m;
		assert_true(fd < 0 || !ftruncate(fd, 4 * MIB));
		make(&m, fd);
		uint8_t *p = m.region[1].hva;
		memset(p, 1, MIB);
		assert_int_equal(gmem_discard(&m, p, page - 4096), 0);
		assert_int_equal(gmem_discard(&m, p + 4096, 2 * page - 2 * 4096), 0);
		assert_int_equal(m.discarded_bytes, 0);
		assert_int_equal(gmem_discard(&m, p + page + 4096, 3 * page), 0);
		assert_int_equal(m.discarded_bytes, 2 * page);
		for (uint32_t at = 0; at < 8 * page; at += 4096)
			assert_int_equal(p[at], at < 2 * page || at >= 4 * page);
		assert_int_equal(gmem_discard(&m, p + 4 * page, page), 0);
		assert_int_equal(m.discarded_bytes, 3 * page);
		assert_int_equal(m.n_pieces, fd >= 0); // one piece: they touch
		gmem_fini(&m);
		mv_close(&fd);
	}
	page_bytes = 4096;
}

static void map_in_whole_host_pages(void **state)
{
	struct gmem m = { 0 };
	struct mv_err err;
	(void)state;
	page_bytes = 64 << 10;
	assert_int_equal(gmem_add(&m, MIB + (32 << 10), MIB), 0);
	assert_int_equal(gmem_map(&m, -1, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "0x108000 is not in whole pages of this host, of 65536 bytes"));
	page_bytes = 16 << 10;
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	gmem_fini(&m);
	page_bytes = 4096;
}

static void pointers(void **state)
{
	static const struct {
		uint64_t gpa;
		size_t len;
		bool ok;
	} c[] = {
		{ 0, 1, true },
		{ 0, MIB, true },
		{ 0, MIB + 1, false }, // a pointer never crosses regions
		{ MIB - 1, 1, true },
		{ MIB - 1, 2, false },
		{ MIB, MIB, true },
		{ 2 * MIB - 1, 1, true },
		{ 2 * MIB, 1, false },
		{ HIGH_GPA - 1, 1, false },
		{ HIGH_GPA, 2 * MIB, true },
		{ HIGH_GPA + 2 * MIB - 1, 1, true },
		{ HIGH_GPA + 2 * MIB - 1, 2, false },
		{ HIGH_GPA + 2 * MIB, 1, false },
		{ HIGH_GPA, SIZE_MAX, false },
		{ HIGH_GPA + 1, SIZE_MAX, false },
		{ UINT64_MAX, 1, false },
		{ UINT64_MAX, SIZE_MAX, false },
		{ 1, SIZE_MAX, false },
	};
	struct gmem m;
	(void)state;
	make(&m, -1);
	for (size_t i = 0; i < MV_ARRAY_LEN(c); i++)
		if (!!gmem_ptr(&m, gpa(c[i].gpa), c[i].len) != c[i].ok)
			fail_msg("%#llx + %#zx", (unsigned long long)c[i].gpa, c[i].len);
	assert_ptr_equal(gmem_ptr(&m, gpa(HIGH_GPA + 5), 1), m.region[2].hva + 5);
	gmem_fini(&m);
}

static void copies(void **state)
{
	struct gmem m;
	uint8_t buf[64], back[64];
	(void)state;
	make(&m, -1);
	for (size_t i = 0; i < sizeof buf; i++)
		buf[i] = (uint8_t)(i + 1);
	assert_int_equal(gmem_write(&m, gpa(MIB - 20), buf, sizeof buf), 0); // over the border
	assert_int_equal(gmem_read(&m, gpa(MIB - 20), back, sizeof back), 0);
	assert_memory_equal(buf, back, sizeof buf);
	assert_int_equal(m.region[0].hva[MIB - 1], 20);
	assert_int_equal(m.region[1].hva[0], 21);

	// Half outside: nothing is copied at all.
	memset(back, 0xee, sizeof back);
	assert_int_equal(gmem_write(&m, gpa(2 * MIB - 32), buf, sizeof buf), -EFAULT);
	assert_int_equal(m.region[1].hva[MIB - 32], 0);
	assert_int_equal(gmem_read(&m, gpa(2 * MIB - 32), back, sizeof back), -EFAULT);
	assert_int_equal(back[0], 0xee);
	assert_int_equal(gmem_read(&m, gpa(UINT64_MAX - 3), back, sizeof back), -EFAULT);
	assert_int_equal(gmem_read(&m, gpa(HIGH_GPA), back, SIZE_MAX), -EFAULT);
	gmem_fini(&m);
}

static void private_over_a_file(void **state)
{
	struct gmem m;
	char text[8] = "";
	(void)state;
	int fd = t_file();
	assert_int_equal(ftruncate(fd, 4 * MIB), 0);
	assert_int_equal(mv_pwrite_full(fd, "low", 4, 10), 0);
	assert_int_equal(mv_pwrite_full(fd, "high", 5, 2 * MIB + 10), 0);
	make(&m, fd);
	assert_int_equal(gmem_read(&m, gpa(10), text, 4), 0);
	assert_string_equal(text, "low");
	assert_int_equal(gmem_read(&m, gpa(HIGH_GPA + 10), text, 5), 0);
	assert_string_equal(text, "high");
	assert_int_equal(gmem_write(&m, gpa(10), "new", 4), 0); // never reaches the file
	assert_int_equal(mv_pread_full(fd, text, 4, 10), 0);
	assert_string_equal(text, "low");
	gmem_fini(&m);
	close(fd);
}

static bool is_zero(struct gmem *m, uint64_t a, size_t len)
{
	const uint8_t *p = gmem_ptr(m, gpa(a), len);
	return p && !p[0] && !memcmp(p, p + 1, len - 1);
}

// Zeros in both kinds of memory, and no page too many; neighbours become one piece.
static void discards(void **state)
{
	enum { PAGE = GMEM_PAGE_BYTES };
	static uint8_t full[4 * MIB];
	uint64_t written[4 * MIB / PAGE / 64];
	(void)state;
	memset(full, 0xaa, sizeof full);
	for (int from_file = 0; from_file < 2; from_file++) {
		int fd = from_file ? t_file() : -1;
		struct gmem m;
		if (from_file)
			assert_int_equal(mv_pwrite_full(fd, full, sizeof full, 0), 0);
		make(&m, fd);
		for (unsigned i = 0; i < 3; i++)
			memset(m.region[i].hva, 0xbb, m.region[i].size_bytes);
		memset(written, 0, sizeof written);
		m.written = written;
		uint8_t *low = m.region[0].hva, *high = m.region[2].hva;
		assert_int_equal(gmem_discard(&m, low + 2 * PAGE, 3 * PAGE), 0);
		assert_true(is_zero(&m, 2 * PAGE, 3 * PAGE));
		assert_int_equal(low[2 * PAGE - 1], 0xbb);
		assert_int_equal(low[5 * PAGE], 0xbb);
		assert_int_equal(written[0], 0x1c);
		low[3 * PAGE] = 7; // used again, and given back again with its neighbours
		assert_int_equal(gmem_discard(&m, low + PAGE, 5 * PAGE), 0);
		assert_true(is_zero(&m, PAGE, 5 * PAGE));
		assert_int_equal(m.n_pieces, from_file);
		assert_int_equal(gmem_discard(&m, low + 8 * PAGE, PAGE), 0);
		assert_int_equal(m.n_pieces, 2 * from_file);
		assert_int_equal(gmem_discard(&m, low + 6 * PAGE, 2 * PAGE), 0);
		assert_int_equal(m.n_pieces, from_file);
		assert_int_equal(gmem_discard(&m, high + 2 * MIB - PAGE, PAGE), 0);
		assert_true(is_zero(&m, HIGH_GPA + 2 * MIB - PAGE, PAGE));
		// Whole pages only; outside: nothing.
		assert_int_equal(gmem_discard(&m, low + 20 * PAGE + 1, 2 * PAGE - 2), 0);
		assert_int_equal(low[20 * PAGE + 1], 0xbb);
		assert_int_equal(gmem_discard(&m, low + 30 * PAGE - 5, PAGE + 10), 0);
		assert_true(is_zero(&m, 30 * PAGE, PAGE));
		assert_int_equal(low[30 * PAGE - 1], 0xbb);
		assert_int_equal(low[31 * PAGE], 0xbb);
		assert_int_equal(gmem_discard(&m, low + MIB - PAGE, 2 * PAGE), -EFAULT);
		assert_int_equal(gmem_discard(&m, full, PAGE), -EFAULT);
		gmem_fini(&m);
		if (from_file)
			close(fd);
	}
}

static void too_many_pieces(void **state)
{
	enum { PAGE = GMEM_PAGE_BYTES, PIECES = 16384 };
	struct gmem m = { 0 };
	int fd = t_file();
	(void)state;
	assert_int_equal(ftruncate(fd, 256 * MIB), 0);
	assert_int_equal(mv_pwrite_full(fd, "x", 1, 2ull * PIECES * PAGE), 0);
	assert_int_equal(gmem_add(&m, 0, 256 * MIB), 0);
	assert_int_equal(gmem_map(&m, fd, NULL), 0);
	for (size_t i = 0; i < PIECES; i++)
		assert_int_equal(gmem_discard(&m, m.region[0].hva + 2 * i * PAGE, PAGE), 0);
	assert_int_equal(gmem_discard(&m, m.region[0].hva + 2ull * PIECES * PAGE, PAGE), -ENOSPC);
	assert_int_equal(m.region[0].hva[2ull * PIECES * PAGE], 'x');        // it stays
	assert_int_equal(gmem_discard(&m, m.region[0].hva + PAGE, PAGE), 0); // joins two
	assert_int_equal(gmem_discard(&m, m.region[0].hva + 2ull * PIECES * PAGE, PAGE), 0);
	assert_int_equal(m.region[0].hva[2ull * PIECES * PAGE], 0);
	gmem_fini(&m);
	close(fd);
}

// Huge pages are never the file's: its bytes are copied, its holes are zeros, and it stays as it was.
static void huge_copy(void **state)
{
	enum { PAGE = GMEM_PAGE_BYTES, BYTES = 6 * MIB };
	static const uint64_t at[] = { 0, 3 * MIB - PAGE, 3 * MIB, 5 * MIB, BYTES - PAGE };
	struct mv_err err = { 0 };
	struct gmem m = { .pages = GMEM_THP };
	int fd = t_file();
	char byte;
	(void)state;
	assert_int_equal(ftruncate(fd, BYTES), 0);
	for (size_t i = 0; i < MV_ARRAY_LEN(at); i++)
		assert_int_equal(mv_pwrite_full(fd, &(char){ (char)(i + 1) }, 1, at[i]), 0);
	assert_int_equal(gmem_add(&m, 0, 3 * MIB), 0); // data across the border of two regions
	assert_int_equal(gmem_add(&m, HIGH_GPA, 3 * MIB), 0);
	int r = gmem_map(&m, fd, &err);
	if (r == -ENOBUFS) {
		print_message("# SKIP this kernel has no transparent huge pages\n");
		skip();
	}
	assert_int_equal(r, 0);
	assert_false(m.from_file);
	for (unsigned i = 0; i < m.n_regions; i++)
		assert_int_equal((uintptr_t)m.region[i].hva % gmem_pages_bytes(GMEM_THP), 0);
	for (uint64_t p = 0; p < BYTES; p += PAGE) {
		const struct gmem_region *g = &m.region[p >= 3 * MIB];
		uint8_t want = 0;
		for (size_t i = 0; i < MV_ARRAY_LEN(at); i++)
			want = at[i] == p ? (uint8_t)(i + 1) : want;
		assert_int_equal(g->hva[p - g->file_offset], want);
	}
	m.region[0].hva[0] = 99;
	assert_int_equal(gmem_discard(&m, m.region[1].hva, 3 * MIB), 0);
	assert_int_equal(m.region[1].hva[0], 0); // and not what the file has
	assert_int_equal(mv_pread_full(fd, &byte, 1, 0), 0);
	assert_int_equal(byte, 1);
	gmem_fini(&m);
	close(fd);
}

// More than any host has in its pool: refused when it is mapped, not when it is touched.
static void too_few_huge_pages(void **state)
{
	static const enum gmem_pages kinds[] = { GMEM_2M, GMEM_1G };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(kinds); i++) {
		struct gmem m = { .pages = kinds[i] };
		struct mv_err err = { 0 };
		assert_int_equal(gmem_add(&m, 0, 1ULL << 42), 0);
		assert_int_equal(gmem_map(&m, -1, &err), -ENOBUFS);
		assert_message(err, "huge pages");
		assert_null(m.region[0].hva);
	}
}

static void map_failure(void **state)
{
	struct gmem m = { 0 };
	struct mv_err err = { 0 };
	(void)state;
	assert_int_equal(gmem_add(&m, 0, MIB), 0);
	assert_int_equal(gmem_add(&m, 1ULL << 40, 1ULL << 60), 0);
	assert_true(gmem_map(&m, -1, &err) < 0);
	assert_message(err, "cannot map");
	assert_null(m.region[0].hva); // the first one is gone again
}

static void random_ranges(void **state)
{
	static const uint64_t edge[] = { 0, MIB, 2 * MIB, HIGH_GPA, HIGH_GPA + 2 * MIB, UINT64_MAX };
	struct gmem m;
	uint64_t seed = 9;
	uint8_t *buf = malloc(3 * MIB);
	(void)state;
	make(&m, -1);
	for (int i = 0; i < 200000; i++) {
		uint64_t a = edge[t_rand(&seed) % MV_ARRAY_LEN(edge)] + t_rand(&seed) % 64 - 32;
		size_t len = t_rand(&seed) % 8 ? t_rand(&seed) % 64 + 1 : (size_t)t_rand(&seed) | 1;
		uint8_t *p = gmem_ptr(&m, gpa(a), len);
		if (p) {
			bool inside = false;
			for (unsigned k = 0; k < m.n_regions; k++) {
				const struct gmem_region *r = &m.region[k];
				inside |= p >= r->hva && len <= r->size_bytes &&
					  p + len <= r->hva + r->size_bytes &&
					  a - r->gpa == (uint64_t)(p - r->hva);
			}
			assert_true(inside);
		}
		if (len <= 3 * MIB) {
			int r = i & 1 ? gmem_read(&m, gpa(a), buf, len) : gmem_write(&m, gpa(a), buf, len);
			assert_true(p ? r == 0 : r == 0 || r == -EFAULT);
		}
	}
	free(buf);
	gmem_fini(&m);
}

// A mark per page of any byte of which is named; by place in the file, not by address.
static void marks(void **state)
{
	static const struct {
		unsigned region;
		size_t at, len;
		unsigned first, n; // pages that get marked
	} c[] = {
		{ 0, 0, 1, 0, 1 },
		{ 0, 4095, 1, 0, 1 },
		{ 0, 4095, 2, 0, 2 },
		{ 0, 4096, 4096, 1, 1 },
		{ 0, 63 * 4096, 2 * 4096, 63, 2 }, // into the next word
		{ 0, 0, MIB, 0, 256 },
		{ 0, 3 * 4096 + 1, 200 * 4096, 3, 201 },
		{ 1, MIB - 1, 1, 511, 1 },
		{ 2, 0, 1, 512, 1 },
		{ 2, 0, 2 * MIB, 512, 512 },
		{ 2, 2 * MIB - 1, 1, 1023, 1 },
		{ 0, 5, 0, 0, 0 },
	};
	uint64_t written[4 * MIB / GMEM_PAGE_BYTES / 64];
	struct gmem m;
	(void)state;
	make(&m, -1);
	gmem_wrote(&m, m.region[0].hva, 1); // nobody asks
	m.written = written;
	for (size_t i = 0; i < MV_ARRAY_LEN(c); i++) {
		memset(written, 0, sizeof written);
		gmem_wrote(&m, m.region[c[i].region].hva + c[i].at, c[i].len);
		for (unsigned p = 0; p < 1024; p++)
			if ((written[p / 64] >> p % 64 & 1) != (p >= c[i].first && p < c[i].first + c[i].n))
				fail_msg("case %zu, page %u", i, p);
	}
	memset(written, 0, sizeof written);
	assert_int_equal(gmem_read(&m, gpa(0), &(char[9]){ 0 }, 9), 0);
	assert_int_equal(gmem_write(&m, gpa(MIB - 4), "12345678", 8), 0); // across two regions
	assert_int_equal(gmem_write(&m, gpa(2 * MIB - 4), "12345678", 8), -EFAULT);
	for (unsigned p = 0; p < 1024; p++)
		assert_int_equal(written[p / 64] >> p % 64 & 1, p == 255 || p == 256);
	gmem_fini(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(layout),
		cmocka_unit_test(discard_on_larger_pages),
		cmocka_unit_test(map_in_whole_host_pages),
		cmocka_unit_test(pointers),
		cmocka_unit_test(copies),
		cmocka_unit_test(private_over_a_file),
		cmocka_unit_test(discards),
		cmocka_unit_test(too_many_pieces),
		cmocka_unit_test(map_failure),
		cmocka_unit_test(random_ranges),
		cmocka_unit_test(marks),
		cmocka_unit_test(huge_copy),
		cmocka_unit_test(too_few_huge_pages),
	};
	return cmocka_run_group_tests_name("base/gmem", tests, NULL, NULL);
}
