// SPDX-License-Identifier: Apache-2.0
// Incremental memory files: what chunk_write_changed() stores, and which pages of a mapping
// are private to it.
#include "tests/t_chunk.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "snapshot/chunk.h"
#include "snapshot/pages.h"

// Regions meet inside chunk 2, and the last chunk has 3 pages.
enum { PAGE = 4096, N_PAGES = 8 * 16 + 3, LOW_PAGES = 2 * 16 + 5, N = 9, TOTAL = N_PAGES * PAGE };

static uint64_t bits[(N_PAGES + 63) / 64 + 1];
static uint8_t parent[TOTAL], now[TOTAL];

static uint8_t *page_at(const struct gmem *m, unsigned page)
{
	return page < LOW_PAGES ? m->region[0].hva + page * PAGE
				: m->region[1].hva + (page - LOW_PAGES) * PAGE;
}

static void map(struct gmem *m, int fd)
{
	struct mv_err err = { 0 };
	*m = (struct gmem){ 0 };
	assert_int_equal(gmem_add(m, 0, LOW_PAGES * PAGE), 0);
	assert_int_equal(gmem_add(m, 4ULL << 30, TOTAL - LOW_PAGES * PAGE), 0);
	assert_int_equal(gmem_map(m, fd, &err), 0);
	for (unsigned i = 0; i < 2; i++)
		madvise(m->region[i].hva, m->region[i].size_bytes, MADV_NOHUGEPAGE);
}

// Content by kind: zeros, text, random.
static void fill(uint8_t *page, uint64_t *seed)
{
	uint64_t kind = t_rand(seed) % 3;
	for (unsigned i = 0; i < PAGE; i++)
		page[i] = kind == 0 ? 0 : (uint8_t)(kind == 1 ? 'a' + i / 64 % 20 : t_rand(seed));
}

static void set(unsigned page) { bits[page / 64] |= 1ULL << page % 64; }
static bool is_set(unsigned page) { return bits[page / 64] >> page % 64 & 1; }

static int write_file(const struct gmem *m, const uint64_t *changed, unsigned n_threads)
{
	struct mv_err err = { 0 };
	struct stat st;
	uint64_t bytes = 0;
	int fd = t_file();
	if (chunk_write_changed(fd, m, changed, false, n_threads, &bytes, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(bytes, st.st_size);
	return fd;
}

// The parent with the file over it has to be what memory holds now, and the file must have the
// pages of bits[] and no others.
static void check_file(int fd, const struct gmem *m, uint32_t ret_kinds[N])
{
	uint64_t stored[MV_ARRAY_LEN(bits)] = { 0 };
	memcpy(now, parent, TOTAL);
	t_apply(fd, now, TOTAL, ret_kinds, stored);
	for (unsigned i = 0; i < N_PAGES; i++) {
		if ((stored[i / 64] >> i % 64 & 1) != is_set(i))
			fail_msg("page %u is %sin the file", i, is_set(i) ? "not " : "");
		if (memcmp(now + i * PAGE, page_at(m, i), PAGE))
			fail_msg("page %u differs", i);
	}
}

static void masks_and_kinds(void **state)
{
	static const struct {
		unsigned first, last;
	} changed[] = { { 0, 0 }, { 31, 31 }, { 36, 37 }, { 48, 63 }, { 64, 79 }, { 128, 128 } };
	static const uint32_t kinds[N] = { CHUNK_PATCH,  CHUNK_PATCH,  CHUNK_PATCH,  CHUNK_ZERO, CHUNK_LZ4,
					   CHUNK_PARENT, CHUNK_PARENT, CHUNK_PARENT, CHUNK_PATCH };
	uint32_t kind[N];
	struct gmem m;
	uint64_t seed = 3;
	(void)state;
	map(&m, -1);
	memset(bits, 0, sizeof bits);
	for (unsigned i = 0; i < TOTAL; i++)
		parent[i] = (uint8_t)t_rand(&seed);
	for (unsigned i = 0; i < N_PAGES; i++)
		memcpy(page_at(&m, i), parent + i * PAGE, PAGE);
	for (unsigned k = 0; k < MV_ARRAY_LEN(changed); k++)
		for (unsigned i = changed[k].first; i <= changed[k].last; i++) {
			set(i);
			memset(page_at(&m, i), i < 64 ? 0 : (int)i, PAGE); // zeros over random bytes
		}
	for (unsigned threads = 0; threads < 4; threads++) {
		int fd = write_file(&m, bits, threads);
		check_file(fd, &m, kind);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(kind[i], kinds[i]);
		close(fd);
	}
	gmem_fini(&m);
}

static void nothing_and_everything(void **state)
{
	uint32_t kind[N];
	struct mv_err err = { 0 };
	struct gmem m;
	uint64_t seed = 4;
	(void)state;
	map(&m, -1);
	memset(parent, 0, TOTAL);
	memset(bits, 0, sizeof bits);
	int fd = write_file(&m, bits, 2);
	check_file(fd, &m, kind);
	assert_int_equal(lseek(fd, 0, SEEK_END), CHUNK_HEAD_BYTES + N * sizeof(struct chunk_entry));
	close(fd);
	for (unsigned i = 0; i < N_PAGES; i++)
		fill(page_at(&m, i), &seed);
	memset(parent, 0x77, TOTAL);
	memset(bits, 0xff, sizeof bits); // also those behind the end
	fd = write_file(&m, bits, 2);
	check_file(fd, &m, kind);
	assert_int_equal(chunk_verify(fd, TOTAL, false, &err), 0); // a full file
	close(fd);
	gmem_fini(&m);
}

// Any set of pages, with any content. What did not change can't even be read.
static void random_sets(void **state)
{
	uint32_t kind[N];
	struct gmem m;
	uint64_t seed = 77;
	(void)state;
	for (unsigned turn = 0; turn < 60; turn++) {
		uint64_t one_in = 1 + t_rand(&seed) % 20;
		map(&m, -1);
		memset(bits, 0, sizeof bits);
		for (unsigned i = 0; i < N_PAGES; i++) {
			fill(parent + i * PAGE, &seed);
			memcpy(page_at(&m, i), parent + i * PAGE, PAGE);
			if (t_rand(&seed) % one_in == 0) {
				set(i);
				fill(page_at(&m, i), &seed);
			} else {
				assert_int_equal(mprotect(page_at(&m, i), PAGE, PROT_NONE), 0);
			}
		}
		int fd = write_file(&m, bits, turn % 3);
		for (unsigned i = 0; i < N_PAGES; i++)
			assert_int_equal(mprotect(page_at(&m, i), PAGE, PROT_READ), 0);
		check_file(fd, &m, kind);
		close(fd);
		gmem_fini(&m);
	}
}

// --- private pages ---

static int parent_file(void)
{
	int fd = t_file();
	uint64_t seed = 8;
	for (unsigned i = 0; i < TOTAL; i++)
		parent[i] = (uint8_t)t_rand(&seed);
	assert_int_equal(mv_pwrite_full(fd, parent, TOTAL, 0), 0);
	return fd;
}

static int note_private(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to)
{
	uint64_t *found = arg;
	for (; from < to; from += PAGE) {
		uint64_t page = (r->file_offset + (uint64_t)(from - r->hva)) / PAGE;
		found[page / 64] |= 1ULL << page % 64;
	}
	return 0;
}

static void assert_private(const struct gmem *m)
{
	const enum snap_memory_finder finders[] = { SNAP_MEMORY_SCAN, SNAP_MEMORY_PAGEMAP, SNAP_MEMORY_AUTO };
	for (unsigned i = 0; i < MV_ARRAY_LEN(finders); i++) {
		uint64_t found[MV_ARRAY_LEN(bits)] = { 0 };
		int r = snap_private_walk(finders[i], m, note_private, found);
		if (r == -ENOTSUP && finders[i] == SNAP_MEMORY_SCAN)
			continue; // before Linux 6.7
		assert_int_equal(r, 0);
		assert_memory_equal(found, bits, sizeof bits);
	}
}

static void what_copy_on_write_knows(void **state)
{
	uint32_t kind[N];
	struct gmem m;
	int file = parent_file();
	(void)state;
	map(&m, file);
	memset(bits, 0, sizeof bits);
	assert_private(&m);
	for (unsigned i = 0; i < N_PAGES; i++)
		assert_int_equal(*(volatile uint8_t *)page_at(&m, i), parent[i * PAGE]); // read: still shared
	assert_private(&m);
	memset(page_at(&m, 0), 0, PAGE); // zeros, and the same as before: both count
	*(volatile uint8_t *)page_at(&m, 100) = parent[100 * PAGE];
	*(volatile uint8_t *)page_at(&m, LOW_PAGES) = 1;
	*(volatile uint8_t *)page_at(&m, N_PAGES - 1) = 1;
	for (unsigned i = 48; i < 64; i++)
		*(volatile uint8_t *)page_at(&m, i) = (uint8_t)i;
	set(0), set(100), set(LOW_PAGES), set(N_PAGES - 1);
	for (unsigned i = 48; i < 64; i++)
		set(i);
	assert_private(&m);
	for (unsigned i = 0; i < 2; i++) // where there is swap, they go there, and are not lost
		madvise(m.region[i].hva, m.region[i].size_bytes, MADV_PAGEOUT);
	assert_private(&m);
	int fd = write_file(&m, NULL, 2);
	check_file(fd, &m, kind);
	assert_int_equal(kind[0], CHUNK_PATCH);
	assert_int_equal(kind[1], CHUNK_PARENT);
	assert_int_equal(kind[3], CHUNK_RAW);
	close(fd);
	close(file);
	gmem_fini(&m);
}

// Where the balloon has put zeros in the file's place, every page counts, touched or not.
static void what_was_given_back(void **state)
{
	uint32_t kind[N];
	struct gmem m;
	int file = parent_file();
	(void)state;
	map(&m, file);
	memset(bits, 0, sizeof bits);
	*(volatile uint8_t *)page_at(&m, 3) = 1;
	set(3);
	assert_int_equal(gmem_discard(&m, (void *)(uintptr_t)page_at(&m, 16), 16 * PAGE), 0);
	assert_int_equal(gmem_discard(&m, (void *)(uintptr_t)page_at(&m, 40), PAGE), 0);
	*(volatile uint8_t *)page_at(&m, 17) = 2;
	for (unsigned i = 16; i < 32; i++)
		set(i);
	set(40);
	assert_private(&m);
	int fd = write_file(&m, NULL, 2);
	check_file(fd, &m, kind);
	assert_int_equal(kind[0], CHUNK_PATCH);
	assert_int_equal(kind[2], CHUNK_PATCH);
	assert_int_equal(kind[3], CHUNK_PARENT);
	close(fd);
	assert_int_equal(gmem_discard(&m, (void *)(uintptr_t)page_at(&m, 17), PAGE), 0);
	fd = write_file(&m, NULL, 2);
	check_file(fd, &m, kind);
	assert_int_equal(kind[1], CHUNK_ZERO);
	close(fd);
	close(file);
	gmem_fini(&m);
}

// A file that is filled on demand: what is missing stays missing, the page of zeros is not a change.
static void missing_pages_stay_missing(void **state)
{
	uint32_t kind[N];
	struct stat st;
	struct gmem m;
	struct uffdio_api api = { .api = UFFD_API };
	int file = t_file();
	(void)state;
	assert_int_equal(ftruncate(file, TOTAL), 0);
	map(&m, file);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) {
		print_message("# SKIP no userfaultfd\n");
		skip();
	}
	struct uffdio_register reg = { .range = { (uintptr_t)m.region[1].hva, m.region[1].size_bytes },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	struct uffdio_zeropage zero = { .range = { (uintptr_t)page_at(&m, 64), CHUNK_BYTES } };
	assert_int_equal(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
	memset(page_at(&m, 70), 5, PAGE);
	memset(parent, 0, TOTAL);
	memset(bits, 0, sizeof bits);
	set(70);
	uint64_t found[MV_ARRAY_LEN(bits)] = { 0 };
	int r = snap_private_walk(SNAP_MEMORY_SCAN, &m, note_private, found);
	if (r != -ENOTSUP) {
		assert_int_equal(r, 0);
		assert_memory_equal(found, bits, sizeof bits);
	}
	for (unsigned i = 64; i < 80; i++)
		set(i); // the other finder can't tell zeros from changes
	uint64_t more[MV_ARRAY_LEN(bits)] = { 0 };
	assert_int_equal(snap_private_walk(SNAP_MEMORY_PAGEMAP, &m, note_private, more), 0);
	assert_memory_equal(more, bits, sizeof bits);
	memcpy(bits, r ? more : found, sizeof bits);
	int fd = write_file(&m, NULL, 1); // would hang at the first missing page
	assert_int_equal(fstat(file, &st), 0);
	assert_int_equal(st.st_blocks, 0); // nothing came into the file
	close(uffd);
	check_file(fd, &m, kind);
	close(fd);
	close(file);
	gmem_fini(&m);
}

static void private_needs_proc(void **state)
{
	struct gmem m;
	(void)state;
	map(&m, -1);
	assert_int_equal(snap_private_walk(SNAP_MEMORY_ALL, &m, note_private, bits), -ENOTSUP);
	gmem_fini(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(masks_and_kinds),     cmocka_unit_test(nothing_and_everything),
		cmocka_unit_test(random_sets),         cmocka_unit_test(what_copy_on_write_knows),
		cmocka_unit_test(what_was_given_back), cmocka_unit_test(missing_pages_stay_missing),
		cmocka_unit_test(private_needs_proc),
	};
	return cmocka_run_group_tests_name("snapshot/incremental", tests, NULL, NULL);
}
