// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/memory.h"

enum { PAGE = 4096, LOW = 8 << 20, HIGH = 4 << 20, TOTAL = LOW + HIGH };
static const enum snap_memory_finder finders[] = { SNAP_MEMORY_AUTO, SNAP_MEMORY_SCAN, SNAP_MEMORY_PAGEMAP,
						   SNAP_MEMORY_ALL };

static void make(struct gmem *m, int file_fd)
{
	struct mv_err err = { 0 };
	*m = (struct gmem){ 0 };
	assert_int_equal(gmem_add(m, 0, LOW), 0);
	assert_int_equal(gmem_add(m, 4ULL << 30, HIGH), 0);
	assert_int_equal(gmem_map(m, file_fd, &err), 0);
}

// Page i of the whole memory, whichever region it is in.
static uint8_t *page(const struct gmem *m, unsigned i)
{
	return i < LOW / PAGE ? m->region[0].hva + i * PAGE : m->region[1].hva + i * PAGE - LOW;
}

static void check_file(int fd, const struct gmem *m)
{
	uint8_t *buf = malloc(TOTAL);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, TOTAL);
	assert_int_equal(mv_pread_full(fd, buf, TOTAL, 0), 0);
	assert_memory_equal(buf, m->region[0].hva, LOW);
	assert_memory_equal(buf + LOW, m->region[1].hva, HIGH);
	free(buf);
}

// Returns the data bytes written; -1 when this kernel lacks the finder.
static int64_t write_and_check(enum snap_memory_finder finder, const struct gmem *m, int *ret_fd)
{
	struct mv_err err = { 0 };
	uint64_t bytes = 0, data = 0;
	int fd = t_file();
	int r = snap_memory_write_by(finder, fd, m, &bytes, &data, &err);
	if (r == -ENOTSUP) {
		close(fd);
		return -1;
	}
	if (r)
		fail_msg("%s", err.msg);
	assert_int_equal(bytes, TOTAL);
	check_file(fd, m);
	*ret_fd = fd;
	return (int64_t)data;
}

static size_t resident_pages(const struct gmem *m)
{
	size_t n = 0;
	for (unsigned i = 0; i < m->n_regions; i++) {
		unsigned char vec[LOW / PAGE];
		assert_int_equal(mincore(m->region[i].hva, m->region[i].size_bytes, vec), 0);
		for (size_t k = 0; k < m->region[i].size_bytes / PAGE; k++)
			n += vec[k] & 1;
	}
	return n;
}

static void anonymous_memory(void **state)
{
	static const unsigned used[] = { 0, 1, 2, 100, LOW / PAGE - 1, LOW / PAGE, TOTAL / PAGE - 1 };
	(void)state;
	for (size_t f = 0; f < MV_ARRAY_LEN(finders); f++) {
		struct gmem m;
		struct stat st;
		int fd;
		make(&m, -1);
		for (size_t i = 0; i < MV_ARRAY_LEN(used); i++)
			memset(page(&m, used[i]) + i * 600, 0x5a, 8); // few bytes, at varying places
		page(&m, 200)[0] = 1;
		page(&m, 200)[0] = 0;                                    // written, but zero again
		assert_int_equal(*(volatile uint8_t *)page(&m, 300), 0); // only read
		int64_t data = write_and_check(finders[f], &m, &fd);
		if (data >= 0) {
			assert_int_equal(data, sizeof used / sizeof *used * PAGE);
			assert_int_equal(fstat(fd, &st), 0);
			assert_true(st.st_blocks * 512 < 64 * PAGE);
			close(fd);
		}
		gmem_fini(&m);
	}
}

static void untouched_pages_are_not_faulted_in(void **state)
{
	static const enum snap_memory_finder lazy[] = { SNAP_MEMORY_SCAN, SNAP_MEMORY_PAGEMAP };
	uint64_t bytes, data;
	(void)state;
	for (size_t f = 0; f < MV_ARRAY_LEN(lazy); f++) {
		struct gmem m;
		struct mv_err err;
		make(&m, -1);
		madvise(m.region[0].hva, LOW, MADV_NOHUGEPAGE);
		madvise(m.region[1].hva, HIGH, MADV_NOHUGEPAGE);
		*page(&m, 17) = 1;
		int fd = t_file();
		if (!snap_memory_write_by(lazy[f], fd, &m, &bytes, &data, &err)) {
			assert_int_equal(data, PAGE);
			assert_int_equal(resident_pages(&m), 1);
		}
		close(fd);
		gmem_fini(&m);
	}
}

// A clone that is frozen again: its own pages and the template's, touched or not.
static void private_mapping_of_a_file(void **state)
{
	(void)state;
	for (size_t f = 0; f < MV_ARRAY_LEN(finders); f++) {
		struct gmem m;
		int fd, template = t_file();
		assert_int_equal(ftruncate(template, TOTAL), 0);
		for (unsigned i = 0; i < TOTAL / PAGE; i += 3)
			assert_int_equal(mv_pwrite_full(template, "template", 8, (uint64_t)i * PAGE + 40), 0);
		make(&m, template);
		memset(page(&m, 3), 0, PAGE);           // the clone zeroed a page of the template
		memset(page(&m, 4), 7, PAGE);           // wrote where the template has a hole
		memset(page(&m, 6), 8, PAGE);           // overwrote
		assert_int_equal(page(&m, 9)[40], 't'); // only read
		int64_t data = write_and_check(finders[f], &m, &fd);
		if (data >= 0) {
			assert_int_equal(data, ((TOTAL / PAGE + 2) / 3) * PAGE);
			close(fd);
		}
		gmem_fini(&m);
		close(template);
	}
}

static void random_patterns(void **state)
{
	uint64_t seed = 77;
	(void)state;
	for (int round = 0; round < 24; round++) {
		struct gmem m;
		int fd;
		make(&m, -1);
		for (unsigned i = 0; i < TOTAL / PAGE;) { // runs, some longer than one write
			unsigned run = (unsigned)(t_rand(&seed) % (round % 3 ? 700 : 5)) + 1;
			bool fill = t_rand(&seed) & 1;
			for (; run && i < TOTAL / PAGE; run--, i++)
				if (fill)
					page(&m, i)[t_rand(&seed) % PAGE] = 1;
		}
		if (write_and_check(finders[round % 4], &m, &fd) >= 0)
			close(fd);
		gmem_fini(&m);
	}
}

static void refuses_a_file_with_content(void **state)
{
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes = 1, data = 1;
	(void)state;
	make(&m, -1);
	int fd = t_file();
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(snap_memory_write(fd, &m, &bytes, &data, &err), -EINVAL);
	assert_message(err, "not an empty file");
	assert_true(bytes == 1 && data == 1);
	close(fd);
	gmem_fini(&m);
}

// --- what changed ---

static uint64_t set[TOTAL / PAGE / 64];
static bool in_set(unsigned i) { return set[i / 64] >> i % 64 & 1; }

// What is in the set is data and as in memory, zeros as well, and nothing else is.
static void check_changes(int fd, const struct gmem *m)
{
	static uint8_t buf[PAGE];
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, TOTAL);
	for (unsigned i = 0; i < TOTAL / PAGE; i++) {
		off_t at = (off_t)i * PAGE;
		assert_int_equal(lseek(fd, at, SEEK_DATA) == at, in_set(i));
		assert_int_equal(pread(fd, buf, PAGE, at), PAGE);
		if (in_set(i))
			assert_memory_equal(buf, page(m, i), PAGE);
	}
}

static uint64_t write_changes(int fd, const struct gmem *m)
{
	struct mv_err err = { 0 };
	uint64_t bytes = 0, data = 0;
	if (snap_memory_write_changed(fd, m, set, &bytes, &data, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(bytes, TOTAL);
	return data / PAGE;
}

static void changes_are_data(void **state)
{
	uint64_t seed = 5;
	char dir[64], path[80];
	(void)state;
	t_tmpdir(dir);
	snprintf(path, sizeof path, "%s/memory", dir);
	for (unsigned round = 0; round < 12; round++) {
		struct gmem m;
		unsigned n = 0;
		make(&m, -1);
		memset(set, 0, sizeof set);
		for (unsigned i = 0; i < TOTAL / PAGE;) {
			unsigned run = (unsigned)(t_rand(&seed) % (round % 2 ? 500 : 4)) + 1;
			unsigned kind = (unsigned)(t_rand(&seed) % 3);
			for (; run && i < TOTAL / PAGE; run--, i++) {
				if (kind)
					page(&m, i)[t_rand(&seed) % PAGE] = (uint8_t)(kind - 1); // also zeros
				if (round == 0 || (round > 1 && t_rand(&seed) % 8 < kind * 4)) {
					set[i / 64] |= 1ULL << i % 64;
					n++;
				}
			}
		}
		// On the disk's file system, and in memory.
		int fd = round % 3 ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : t_file();
		assert_int_equal(write_changes(fd, &m), n);
		check_changes(fd, &m);
		close(fd);
		gmem_fini(&m);
	}
	t_remove_tree(dir);
}

static uint32_t page_bytes = PAGE;
int getpagesize(void) { return (int)page_bytes; } // in libc's place: this host as one with larger pages

static void changes_in_whole_pages_of_the_host(void **state)
{
	static const unsigned changed[] = { 0, 6, 31, 32, 100, TOTAL / PAGE - 1 };
	struct gmem m;
	(void)state;
	make(&m, -1);
	for (unsigned i = 0; i < TOTAL / PAGE; i++)
		memset(page(&m, i), (int)(i % 251 + 1), PAGE);
	for (page_bytes = 4 * PAGE; page_bytes <= 16 * PAGE; page_bytes *= 4) {
		unsigned each = page_bytes / PAGE, n = 0;
		memset(set, 0, sizeof set);
		for (unsigned i = 0; i < MV_ARRAY_LEN(changed); i++)
			set[changed[i] / 64] |= 1ULL << changed[i] % 64;
		int fd = t_file();
		uint64_t written = write_changes(fd, &m);
		for (unsigned i = 0; i < MV_ARRAY_LEN(changed); i++) // what has to be there
			for (unsigned k = 0; k < each; k++)
				set[changed[i] / 64] |= 1ULL << (changed[i] / each * each + k) % 64;
		for (unsigned i = 0; i < MV_ARRAY_LEN(set); i++)
			n += (unsigned)__builtin_popcountll(set[i]);
		assert_int_equal(written, n);
		check_changes(fd, &m);
		close(fd);
	}
	page_bytes = PAGE;
	gmem_fini(&m);
}

static void changes_over_a_complete_file(void **state)
{
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes, data;
	(void)state;
	make(&m, -1);
	int fd = t_file();
	for (unsigned i = 0; i < TOTAL / PAGE; i += 2)
		memset(page(&m, i), 'a', PAGE);
	assert_int_equal(snap_memory_write(fd, &m, &bytes, &data, &err), 0);
	memset(set, 0, sizeof set);
	for (unsigned i = 0; i < TOTAL / PAGE; i += 7) {
		memset(page(&m, i), i % 3 ? 'b' : 0, PAGE);
		set[i / 64] |= 1ULL << i % 64;
	}
	assert_int_equal(write_changes(fd, &m), (TOTAL / PAGE + 6) / 7);
	check_file(fd, &m);
	assert_int_equal(ftruncate(fd, TOTAL - PAGE), 0);
	assert_int_equal(snap_memory_write_changed(fd, &m, set, &bytes, &data, &err), -EINVAL);
	assert_message(err, "over one of 12 MiB");
	close(fd);
	gmem_fini(&m);
}

// There a page that is written makes 2 MiB of data: laid over another file it would delete 511 pages.
static void coarse_holes_are_refused(void **state)
{
	char dir[64], path[80];
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes, data;
	(void)state;
	t_tmpdir(dir);
	if (mount("none", dir, "tmpfs", 0, "huge=always")) {
		print_message("# SKIP mounting a tmpfs with huge pages: %s\n", strerror(errno));
		t_remove_tree(dir);
		skip();
	}
	snprintf(path, sizeof path, "%s/memory", dir);
	make(&m, -1);
	memset(set, 0, sizeof set);
	set[3] = 1;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int r = snap_memory_write_changed(fd, &m, set, &bytes, &data, &err);
	off_t first = lseek(fd, 0, SEEK_DATA);
	close(fd);
	umount(dir);
	t_remove_tree(dir);
	gmem_fini(&m);
	if (first == 3 * 64 * PAGE) {
		print_message("# SKIP this kernel's tmpfs has no huge pages to give\n");
		skip();
	}
	assert_int_equal(r, -ENOTSUP);
	assert_message(err, "holes");
}

static void full_file_system(void **state)
{
	char dir[64], path[80];
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes, data;
	(void)state;
	t_tmpdir(dir);
	if (mount("none", dir, "tmpfs", 0, "size=1m")) {
		print_message("# SKIP mounting a small tmpfs: %s\n", strerror(errno));
		t_remove_tree(dir);
		skip();
	}
	snprintf(path, sizeof path, "%s/memory", dir);
	make(&m, -1);
	memset(m.region[0].hva, 1, LOW);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	int r = snap_memory_write(fd, &m, &bytes, &data, &err);
	close(fd);
	umount(dir);
	t_remove_tree(dir);
	gmem_fini(&m);
	assert_int_equal(r, -ENOSPC);
	assert_message(err, "the file system is full after");
}

static void file_size_limit(void **state)
{
	struct rlimit old, small;
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes, data;
	(void)state;
	make(&m, -1);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = PAGE;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	int fd = t_file();
	int r = snap_memory_write(fd, &m, &bytes, &data, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(r, -EFBIG);
	assert_message(err, "cannot make a file of 12 MiB");
	close(fd);
	gmem_fini(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(anonymous_memory),
		cmocka_unit_test(untouched_pages_are_not_faulted_in),
		cmocka_unit_test(private_mapping_of_a_file),
		cmocka_unit_test(random_patterns),
		cmocka_unit_test(refuses_a_file_with_content),
		cmocka_unit_test(changes_are_data),
		cmocka_unit_test(changes_in_whole_pages_of_the_host),
		cmocka_unit_test(changes_over_a_complete_file),
		cmocka_unit_test(coarse_holes_are_refused),
		cmocka_unit_test(full_file_system),
		cmocka_unit_test(file_size_limit),
	};
	return cmocka_run_group_tests_name("snapshot/memory", tests, NULL, NULL);
}
