// SPDX-License-Identifier: Apache-2.0
// The file of a working set: what is written is read again, all else is refused. And which
// pages of a private mapping of a file count as read and written.
#include "snapshot/working_set.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "microvm/base/bytes.h"
#include "snapshot/format.h"
#include "snapshot/pager.h"
#include "snapshot/touched.h"
#include "tests/t.h"

enum { PAGES = 1024, HEAD = 64 };
#define BYTES ((uint64_t)PAGES * WS_PAGE_BYTES)
static const char id[] = "11111111-2222-3333-4444-555555555555";

static struct working_set sample(void)
{
	struct working_set w = { .memory_bytes = BYTES, .recorded_unix_ns = 42 };
	memcpy(w.snapshot_id, id, sizeof id);
	assert_int_equal(ws_add(&w, 0, 1, true), 0);
	assert_int_equal(ws_add(&w, 1, 2, false), 0);
	assert_int_equal(ws_add(&w, 3, 4, false), 0); // becomes one with the last
	assert_int_equal(ws_add(&w, PAGES - 5, 5, true), 0);
	return w;
}

static void test_written_and_read(void **state)
{
	(void)state;
	struct working_set w = sample(), got;
	struct mv_err err;
	MV_FD fd = t_file();
	assert_int_equal(w.n_extents, 3);
	assert_int_equal(ws_write(fd, &w, &err), 0);
	assert_int_equal(ws_read(fd, id, BYTES, &got, &err), 0);
	assert_int_equal(got.n_extents, 3);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(got.extent[i].page, w.extent[i].page);
		assert_int_equal(got.extent[i].n_pages, w.extent[i].n_pages);
		assert_int_equal(got.extent[i].written, w.extent[i].written);
	}
	assert_int_equal(got.read_pages, 6);
	assert_int_equal(got.written_pages, 6);
	assert_int_equal(got.recorded_unix_ns, 42);
	assert_string_equal(got.snapshot_id, id);
	ws_fini(&got);
	ws_fini(&got);
	assert_int_equal(ws_read(fd, "", BYTES, &got, &err), -EINVAL);
	assert_message(err, "another snapshot");
	assert_int_equal(ws_read(fd, id, BYTES + 4096, &got, &err), -EINVAL);
	assert_message(err, "bytes of memory");
	ws_fini(&w);
}

static void test_an_empty_one(void **state)
{
	(void)state;
	struct working_set w = { .memory_bytes = BYTES }, got;
	struct mv_err err;
	MV_FD fd = t_file();
	assert_int_equal(ws_write(fd, &w, &err), 0);
	assert_int_equal(ws_read(fd, "", BYTES, &got, &err), 0);
	assert_int_equal(got.n_extents, 0);
	ws_fini(&got);
}

static void test_what_can_not_be_added(void **state)
{
	(void)state;
	struct working_set w = sample();
	static const uint64_t bad[][2] = {
		{ PAGES, 1 }, { UINT64_MAX, 1 },   { 3, 1 },       { PAGES - 1, 1 }, { 0, 1 },
		{ 500, 0 },   { 500, UINT64_MAX }, { 500, PAGES },
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++)
		assert_int_equal(ws_add(&w, bad[i][0], bad[i][1], false), -EINVAL);
	assert_int_equal(w.n_extents, 3);
	ws_fini(&w);
	w = (struct working_set){ .memory_bytes = 1ull << 40 };
	for (uint64_t i = 0; i < WS_MAX_EXTENTS; i++)
		assert_int_equal(ws_add(&w, 2 * i, 1, i % 2), 0);
	assert_int_equal(ws_add(&w, 2 * (uint64_t)WS_MAX_EXTENTS, 1, true), -E2BIG);
	ws_fini(&w);
}

// A container that is whole, with this payload.
static int read_payload(const void *bytes, size_t len, struct mv_err *err)
{
	struct working_set got = { 0 };
	MV_FD fd = t_file();
	assert_int_equal(snap_container_write(fd, WS_MAGIC, bytes, len, err), 0);
	int r = ws_read(fd, id, BYTES, &got, err);
	if (r)
		assert_null(got.extent); // untouched
	ws_fini(&got);
	return r;
}

static void put32(uint8_t *at, uint32_t v)
{
	le32_t x = le32_make(v);
	memcpy(at, &x, 4);
}

static void test_hostile_payloads(void **state)
{
	(void)state;
	struct working_set w = sample();
	struct mv_err err;
	MV_FD fd = t_file();
	uint8_t good[HEAD + 3 * 8], bad[sizeof good + 8] = { 0 };
	assert_int_equal(ws_write(fd, &w, &err), 0);
	assert_int_equal(pread(fd, good, sizeof good, 32), sizeof good);
	ws_fini(&w);
	assert_int_equal(read_payload(good, sizeof good, &err), 0);
	for (size_t len = 0; len < sizeof good; len++)
		assert_int_equal(read_payload(good, len, &err), -EINVAL);
	memcpy(bad, good, sizeof good);
	assert_int_equal(read_payload(bad, sizeof bad, &err), -EINVAL); // longer than its extents
	static const struct {
		size_t at;
		uint32_t v;
	} change[] = {
		{ 0, 4096 },                          // another size of memory
		{ 56, 2 },                            // fewer extents than bytes
		{ 56, UINT32_MAX },                   // 8 * this wraps in 32 bits
		{ 60, 1 },                            // reserved
		{ HEAD, 2 },                          // overlaps the next one
		{ HEAD + 4, 1u << 31 },               // no pages
		{ HEAD + 8, 0 },                      // not ascending
		{ HEAD + 16, PAGES },                 // outside
		{ HEAD + 20, 6 | 1u << 31 },          // ends outside
		{ HEAD + 20, 0x7fffffff | 1u << 31 }, // and wraps
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(change); i++) {
		memcpy(bad, good, sizeof good);
		put32(bad + change[i].at, change[i].v);
		assert_int_equal(read_payload(bad, sizeof good, &err), -EINVAL);
	}
	memcpy(bad, good, sizeof good);
	bad[16 + 36] = 'x'; // behind the id
	assert_int_equal(read_payload(bad, sizeof good, &err), -EINVAL);
	uint64_t seed = 7;
	for (int i = 0; i < 3000; i++) { // none of it crashes; what passes is a set of this memory
		memcpy(bad, good, sizeof good);
		t_mutate(bad, sizeof good, &seed);
		read_payload(bad, sizeof good, &err);
	}
}

// --- the page tables

struct seen {
	char kind[PAGES]; // 0, 'r', 'w'
};

static int see(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to, bool written)
{
	struct seen *s = arg;
	uint64_t at = (r->file_offset + (uint64_t)(from - r->hva)) / WS_PAGE_BYTES;
	for (; from < to; from += WS_PAGE_BYTES)
		s->kind[at++] = written ? 'w' : 'r';
	return 0;
}

static void look_at(enum snap_memory_finder finder)
{
	struct gmem m = { 0 };
	struct seen s = { { 0 } };
	struct mv_err err;
	MV_FD fd = t_file();
	assert_int_equal(ftruncate(fd, (off_t)BYTES), 0);
	assert_int_equal(gmem_add(&m, 0, BYTES / 2), 0);
	assert_int_equal(gmem_add(&m, 1ull << 32, BYTES / 2), 0);
	assert_int_equal(gmem_map(&m, fd, &err), 0);
	int r = snap_touched_walk(finder, &m, see, &s);
	if (r == -ENOTSUP) {
		gmem_fini(&m);
		print_message("# SKIP this kernel lacks PAGEMAP_SCAN\n");
		skip();
	}
	assert_int_equal(r, 0);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(s.kind[i], 0);
	volatile uint8_t *low = m.region[0].hva, *high = m.region[1].hva;
	(void)low[100 * WS_PAGE_BYTES];
	low[300 * WS_PAGE_BYTES] = 1;
	low[301 * WS_PAGE_BYTES] = 1;
	(void)high[200 * WS_PAGE_BYTES];
	high[0] = 1;
	assert_int_equal(snap_touched_walk(finder, &m, see, &s), 0);
	assert_int_equal(s.kind[100], 'r');
	assert_int_equal(s.kind[300], 'w');
	assert_int_equal(s.kind[301], 'w');
	assert_int_equal(s.kind[PAGES / 2], 'w');
	assert_int_equal(s.kind[PAGES / 2 + 200], 'r');
	int n_written = 0;
	for (int i = 0; i < PAGES; i++)
		n_written += s.kind[i] == 'w';
	assert_int_equal(n_written, 3);
	assert_int_equal(s.kind[50], 0); // beyond what the kernel maps around
	gmem_fini(&m);
}

static void test_touched_by_scan(void **state)
{
	(void)state;
	look_at(SNAP_MEMORY_SCAN);
}

static void test_touched_by_pagemap(void **state)
{
	(void)state;
	look_at(SNAP_MEMORY_PAGEMAP);
}

// --- in the store

static void test_in_the_store(void **state)
{
	(void)state;
	char root[64];
	struct store s;
	struct mv_err err;
	struct working_set w = sample();
	int fd = -1;
	t_tmpdir(root);
	assert_int_equal(store_open(&s, root, &err), 0);
	assert_int_equal(ws_store_open(&s, "none", &fd, &err), -ENOENT);
	assert_int_equal(ws_store_save(&s, "none", &w, &err), -ENOENT);
	assert_int_equal(ws_store_remove(&s, "none", &err), -ENOENT);
	assert_int_equal(ws_store_open(&s, "../x", &fd, &err), -EINVAL);
	assert_int_equal(mkdirat(s.snapshots_fd, "bad", 0700), 0); // without a manifest
	assert_int_equal(ws_store_open(&s, "bad", &fd, &err), -ENOENT);
	assert_int_equal(ws_store_save(&s, "bad", &w, &err), -EINVAL);
	assert_int_equal(ws_store_remove(&s, "bad", &err), 0);
	assert_int_equal(mkfifoat(s.snapshots_fd, "bad/working-set", 0600), 0);
	assert_int_equal(ws_store_open(&s, "bad", &fd, &err), -EINVAL);
	assert_int_equal(unlinkat(s.snapshots_fd, "bad/working-set", 0), 0);
	assert_int_equal(symlinkat("/etc/passwd", s.snapshots_fd, "bad/working-set"), 0);
	assert_int_equal(ws_store_open(&s, "bad", &fd, &err), -ELOOP);
	assert_int_equal(fd, -1);
	assert_int_equal(store_delete(&s, "bad", &err), 0); // it knows the name
	ws_fini(&w);
	store_close(&s);
	t_remove_tree(root);
}

// A page of the template is there or not, and on a host with larger ones it is several of the set.
static void test_whole_pages_of_the_host(void **state)
{
	(void)state;
	assert_int_equal(pager_whole_pages(0x8421, 1), 0x8421);
	assert_int_equal(pager_whole_pages(0x8020, 4), 0xf0f0);
	assert_int_equal(pager_whole_pages(0x8020, 16), 0xffff);
	for (unsigned each = 1; each <= 16; each *= 4)
		assert_int_equal(pager_whole_pages(0, each), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_written_and_read),      cmocka_unit_test(test_an_empty_one),
		cmocka_unit_test(test_what_can_not_be_added), cmocka_unit_test(test_hostile_payloads),
		cmocka_unit_test(test_touched_by_scan),       cmocka_unit_test(test_touched_by_pagemap),
		cmocka_unit_test(test_in_the_store),          cmocka_unit_test(test_whole_pages_of_the_host),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
