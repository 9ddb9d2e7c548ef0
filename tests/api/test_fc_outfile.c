// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <sys/stat.h>

#include "api/fc/outfile.h"
#include "microvm/base/util.h"

enum { PAGE = 4096, PAGES = 512, BYTES = PAGES * PAGE };

static char dir[64], memory_path[80], state_path[80];

static int setup(void **state)
{
	(void)state;
	t_tmpdir(dir);
	snprintf(memory_path, sizeof memory_path, "%s/mem", dir);
	snprintf(state_path, sizeof state_path, "%s/state", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	t_remove_tree(dir);
	return 0;
}

static unsigned n_files(void)
{
	DIR *d = opendir(dir);
	unsigned n = 0;
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2; // . and ..
}

static void put(const char *path, const char *text)
{
	MV_FD fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

static void assert_content(const char *path, const char *text)
{
	char got[100] = "";
	MV_FD fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(read(fd, got, sizeof got - 1), strlen(text));
	assert_string_equal(got, text);
}

// A sparse file of PAGES pages; every step-th from `first` on is data.
static void sparse(const char *path, unsigned first, unsigned step, char byte)
{
	static char page[PAGE];
	MV_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	memset(page, byte, sizeof page);
	for (unsigned i = first; i < PAGES; i += step)
		assert_int_equal(pwrite(fd, page, PAGE, (off_t)i * PAGE), PAGE);
}

static void opened(const char *path, uint64_t base, struct fc_outfile *f)
{
	struct mv_err err = { 0 };
	if (fc_outfile_open(path, base, f, &err))
		fail_msg("%s", err.msg);
}

static int publish(const char *state_text, const char *memory_text, struct mv_err *err)
{
	FC_OUTFILE s = FC_OUTFILE_NONE;
	FC_OUTFILE m = FC_OUTFILE_NONE;
	opened(state_path, 0, &s);
	opened(memory_path, 0, &m);
	assert_int_equal(write(s.fd, state_text, strlen(state_text)), strlen(state_text));
	assert_int_equal(write(m.fd, memory_text, strlen(memory_text)), strlen(memory_text));
	assert_true(n_files() >= 2);
	return fc_outfile_publish(&s, &m, 1, err);
}

static void old_files_are_replaced_not_written(void **state)
{
	struct mv_err err = { 0 };
	struct stat st;
	int fds = t_count_fds();
	(void)state;
	assert_int_equal(publish("s1", "m1", &err), 0);
	assert_content(state_path, "s1");
	assert_content(memory_path, "m1");
	assert_int_equal(chmod(memory_path, 0604), 0);
	int old = open(memory_path, O_RDONLY | O_CLOEXEC);
	const char *clone = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, old, 0); // not touched yet
	assert_int_equal(publish("s2 longer", "m2 longer", &err), 0);
	assert_content(state_path, "s2 longer");
	assert_content(memory_path, "m2 longer");
	assert_memory_equal(clone, "m1\0\0", 4);
	munmap((void *)(uintptr_t)clone, PAGE);
	close(old);
	assert_int_equal(stat(memory_path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0604);
	assert_int_equal(n_files(), 2);
	assert_int_equal(t_count_fds(), fds);
}

static void what_is_dropped_leaves_nothing(void **state)
{
	(void)state;
	put(memory_path, "old");
	FC_OUTFILE f = FC_OUTFILE_NONE;
	opened(memory_path, 0, &f);
	assert_int_equal(write(f.fd, "new", 3), 3);
	assert_int_equal(n_files(), 2);
	fc_outfile_drop(&f);
	fc_outfile_drop(&f);
	assert_int_equal(n_files(), 1);
	assert_content(memory_path, "old");
}

static void a_base_is_copied_with_its_holes(void **state)
{
	struct stat a, b;
	(void)state;
	sparse(memory_path, 3, 50, 'a');
	FC_OUTFILE f = FC_OUTFILE_NONE;
	opened(memory_path, BYTES, &f);
	assert_true(!stat(memory_path, &a) && !fstat(f.fd, &b));
	assert_int_equal(b.st_size, BYTES);
	for (unsigned i = 0; i < PAGES; i++) {
		char c = 1;
		off_t at = (off_t)i * PAGE;
		assert_int_equal(pread(f.fd, &c, 1, at + 77), 1);
		assert_int_equal(c, i % 50 == 3 ? 'a' : 0);
		assert_int_equal(lseek(f.fd, at, SEEK_DATA) == at, i % 50 == 3);
	}
	FC_OUTFILE other = FC_OUTFILE_NONE; // of another VM: not a base
	opened(memory_path, BYTES * 2, &other);
	assert_int_equal(lseek(other.fd, 0, SEEK_END), 0);
}

static void links_are_followed(void **state)
{
	char link[80];
	struct stat st;
	struct mv_err err = { 0 };
	FC_OUTFILE s = FC_OUTFILE_NONE;
	FC_OUTFILE m = FC_OUTFILE_NONE;
	(void)state;
	put(memory_path, "old");
	snprintf(link, sizeof link, "%s/link", dir);
	assert_int_equal(symlink("mem", link), 0);
	opened(link, 0, &m);
	opened(state_path, 0, &s);
	assert_int_equal(write(m.fd, "new", 3), 3);
	assert_int_equal(fc_outfile_publish(&s, &m, 1, &err), 0);
	assert_content(memory_path, "new");
	assert_true(!lstat(link, &st) && S_ISLNK(st.st_mode));
}

static void bad_paths(void **state)
{
	char path[80], text[PATH_MAX + 10];
	FC_OUTFILE f = FC_OUTFILE_NONE;
	FC_OUTFILE g = FC_OUTFILE_NONE;
	struct mv_err err;
	int fd = -1;
	(void)state;
	snprintf(path, sizeof path, "%s/fifo", dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(fc_outfile_open(path, 0, &f, &err), -EINVAL);
	assert_message(err, "not a regular file");
	assert_int_equal(fc_memory_open(path, 1, &fd, &err), -EINVAL);
	assert_int_equal(fc_outfile_open(dir, 0, &f, &err), -EINVAL);
	assert_int_equal(fc_outfile_open("/dev/null", 0, &f, &err), -EINVAL);
	snprintf(path, sizeof path, "%s/none/mem", dir);
	assert_int_equal(fc_outfile_open(path, 0, &f, &err), -ENOENT);
	assert_message(err, path);
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = 0;
	assert_int_equal(fc_outfile_open(text, 0, &f, &err), -ENAMETOOLONG);
	text[PATH_MAX - 5] = 0;
	assert_int_equal(fc_outfile_open(text, 0, &f, &err), -ENAMETOOLONG);
	assert_int_equal(n_files(), 1);
	opened(memory_path, 0, &f);
	opened(memory_path, 0, &g);
	assert_int_equal(fc_outfile_publish(&f, &g, 1, &err), -EINVAL);
	assert_message(err, "be two files of a snapshot");
}

static void a_failure_leaves_the_old_ones(void **state)
{
	FC_OUTFILE s = FC_OUTFILE_NONE;
	FC_OUTFILE m = FC_OUTFILE_NONE;
	struct mv_err err;
	(void)state;
	put(state_path, "old");
	opened(state_path, 0, &s);
	opened(memory_path, 0, &m);
	assert_int_equal(mkdir(memory_path, 0700), 0); // came in between
	assert_int_equal(fc_outfile_publish(&s, &m, 1, &err), -EISDIR);
	assert_content(state_path, "old");
	fc_outfile_drop(&s);
	fc_outfile_drop(&m);
	assert_int_equal(n_files(), 2);
}

static void what_was_replaced_comes_back(void **state)
{
	char paths[3][80];
	struct fc_outfile other[] = { FC_OUTFILE_NONE, FC_OUTFILE_NONE, FC_OUTFILE_NONE };
	FC_OUTFILE s = FC_OUTFILE_NONE;
	struct mv_err err = { 0 };
	(void)state;
	for (int round = 0; round < 2; round++) {
		put(state_path, "old");
		opened(state_path, 0, &s);
		for (unsigned i = 0; i < 3; i++) {
			snprintf(paths[i], sizeof paths[i], "%s/other%u", dir, i);
			if (i == 0)
				put(paths[i], "old"); // the next one is new, and the last can't be made
			opened(paths[i], 0, &other[i]);
			assert_int_equal(write(other[i].fd, "new", 3), 3);
		}
		if (round == 0)
			assert_int_equal(mkdir(paths[2], 0700), 0);
		int r = fc_outfile_publish(&s, other, 3, &err);
		for (unsigned i = 0; i < 3; i++)
			fc_outfile_drop(&other[i]);
		fc_outfile_drop(&s);
		if (round == 0) {
			assert_int_equal(r, -EISDIR);
			assert_content(state_path, "old");
			assert_content(paths[0], "old");
			assert_int_equal(access(paths[1], F_OK), -1);
			assert_int_equal(n_files(), 3);
			assert_int_equal(rmdir(paths[2]), 0);
		}
	}
	assert_content(state_path, "");
	for (unsigned i = 0; i < 3; i++)
		assert_content(paths[i], "new");
	assert_int_equal(n_files(), 4);
}

static void a_path_without_a_folder(void **state)
{
	struct mv_err err = { 0 };
	(void)state;
	MV_FD here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(chdir(dir), 0);
	FC_OUTFILE s = FC_OUTFILE_NONE;
	FC_OUTFILE m = FC_OUTFILE_NONE;
	opened("s", 0, &s);
	opened("m", 0, &m);
	int r = fc_outfile_publish(&s, &m, 1, &err);
	assert_int_equal(n_files(), 2);
	assert_int_equal(fchdir(here), 0);
	assert_int_equal(r, 0);
}

static void rebase(void **state)
{
	char diff_path[80];
	struct mv_err err = { 0 };
	(void)state;
	snprintf(diff_path, sizeof diff_path, "%s/diff", dir);
	sparse(memory_path, 0, 2, 'a');
	sparse(diff_path, 0, 5, 0); // zeros are content
	MV_FD old = open(memory_path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(fc_memory_rebase(memory_path, diff_path, &err), 0);
	MV_FD fd = -1;
	assert_int_equal(fc_memory_open(memory_path, BYTES >> 20, &fd, &err), 0);
	for (unsigned i = 0; i < PAGES; i++) {
		char c[2] = { 1, 1 };
		assert_int_equal(pread(fd, &c[0], 1, (off_t)i * PAGE), 1);
		assert_int_equal(pread(old, &c[1], 1, (off_t)i * PAGE), 1);
		assert_int_equal(c[0], i % 5 && i % 2 == 0 ? 'a' : 0);
		assert_int_equal(c[1], i % 2 ? 0 : 'a');
	}
	assert_int_equal(n_files(), 2);
	assert_int_equal(truncate(diff_path, BYTES - PAGE), 0);
	assert_int_equal(fc_memory_rebase(memory_path, diff_path, &err), -EINVAL);
	assert_message(err, "no memory file of 2093056 bytes");
	assert_int_equal(fc_memory_open(diff_path, BYTES >> 20, &old, &err), -EINVAL);
	assert_message(err, "2 MiB of memory");
	assert_int_equal(unlink(memory_path), 0);
	assert_int_equal(fc_memory_rebase(memory_path, diff_path, &err), -EINVAL);
	assert_int_equal(unlink(diff_path), 0);
	assert_int_equal(fc_memory_rebase(memory_path, diff_path, &err), -ENOENT);
	assert_int_equal(n_files(), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(old_files_are_replaced_not_written),
		TEST(what_is_dropped_leaves_nothing),
		TEST(a_base_is_copied_with_its_holes),
		TEST(links_are_followed),
		TEST(bad_paths),
		TEST(a_failure_leaves_the_old_ones),
		TEST(what_was_replaced_comes_back),
		TEST(a_path_without_a_folder),
		TEST(rebase),
	};
	return cmocka_run_group_tests_name("api/fc_outfile", tests, NULL, NULL);
}
