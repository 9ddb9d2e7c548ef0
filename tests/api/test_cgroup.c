// SPDX-License-Identifier: Apache-2.0
// api/cgroup.c on folders that look like cgroups, and api/spawn.c into a real one where this host
// has a cgroup v2 that we may write.
#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/cgroup.h"
#include "api/spawn.h"
#include "microvm/base/util.h"

static char folder[64];
static int dir_fd;

static void put(const char *name, const char *text)
{
	MV_FD fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void has(const char *name, const char *text)
{
	char got[100] = "";
	MV_FD fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(read(fd, got, sizeof got - 1) >= 0);
	assert_string_equal(got, text);
}

static int set_up(void **state)
{
	(void)state;
	snprintf(folder, sizeof folder, "/tmp/thaw-cgroup-XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir_fd < 0;
}

static int tear_down(void **state)
{
	static const char *const files[] = { "memory.max", "memory.oom.group", "memory.swap.max",
					     "cpu.max",    "pids.max",         "memory.events" };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(files); i++)
		unlinkat(dir_fd, files[i], 0);
	close(dir_fd);
	return rmdir(folder);
}

static void test_limits(void **state)
{
	(void)state;
	struct mv_err err = { 0 };
	put("memory.max", "");
	put("memory.oom.group", "");
	put("cpu.max", "");
	put("pids.max", "");
	// No memory.swap.max: a kernel without swap.
	struct vm_limits l = { .memory_mib = 8192, .cpu_percent = 150, .pids = 12 };
	assert_int_equal(cgroup_write_limits(dir_fd, &l, &err), 0);
	has("memory.max", "8589934592");
	has("memory.oom.group", "1");
	has("cpu.max", "150000 100000");
	has("pids.max", "12");
	put("memory.swap.max", "");
	assert_int_equal(cgroup_write_limits(dir_fd, &l, &err), 0);
	has("memory.swap.max", "0");
}

static void test_only_what_was_asked_for(void **state)
{
	(void)state;
	struct mv_err err = { 0 };
	put("cpu.max", "");
	struct vm_limits l = { .cpu_percent = 1 };
	assert_int_equal(cgroup_write_limits(dir_fd, &l, &err), 0);
	has("cpu.max", "1000 100000");
	assert_int_equal(faccessat(dir_fd, "memory.max", F_OK, 0), -1);
	// A controller that is not there is an error that names the file.
	l.memory_mib = 1;
	assert_int_equal(cgroup_write_limits(dir_fd, &l, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "memory.max"));
}

static void test_out_of_memory(void **state)
{
	(void)state;
	assert_false(cgroup_was_out_of_memory(dir_fd));
	put("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 0\noom_group_kill 4\n");
	assert_false(cgroup_was_out_of_memory(dir_fd));
	put("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n");
	assert_true(cgroup_was_out_of_memory(dir_fd));
	put("memory.events", "oom_kill 1");
	assert_true(cgroup_was_out_of_memory(dir_fd));
}

static void test_own_path(void **state)
{
	(void)state;
	char path[PATH_MAX];
	assert_true(cgroup_parse_self("0::/system.slice/thawd.service\n", path));
	assert_string_equal(path, "/system.slice/thawd.service");
	assert_true(cgroup_parse_self("9:name=systemd:/a\n4:memory:/b\n0::/\n", path));
	assert_string_equal(path, "/");
	assert_false(cgroup_parse_self("4:memory:/b\n10::/x\n", path)); // v1 alone
	assert_false(cgroup_parse_self("0::relative\n", path));
	assert_false(cgroup_parse_self("", path));
}

static void test_no_cgroup(void **state)
{
	(void)state;
	static struct cgroup_base b;
	struct mv_err err = { 0 };
	struct cgroup c = { .fd = -1 };
	assert_int_equal(cgroup_base_open(&b, folder, true, &err), -EINVAL); // an ordinary folder
	assert_non_null(strstr(err.msg, "it is no cgroup v2"));
	assert_int_equal(b.fd, -1);
	struct vm_limits l = { .pids = 9 };
	assert_int_equal(cgroup_make(&b, "id", &l, &c, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "no cgroup to set them in"));
	assert_int_equal(c.fd, -1);
	cgroup_leave(&c, NULL); // nothing to do
	assert_int_equal(cgroup_base_open(&b, "/nowhere", true, &err), -ENOENT);
	// A base without the controller that is asked for.
	b = (struct cgroup_base){ .fd = dir_fd, .controllers = CGROUP_CPU };
	assert_int_equal(cgroup_make(&b, "id", &l, &c, &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "no pids controller"));
}

// --- a real one -------------------------------------------------------------------------
static bool make_real(char path[100])
{
	static const char *const mounts[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	for (size_t i = 0; i < MV_ARRAY_LEN(mounts); i++) {
		char probe[120];
		snprintf(probe, sizeof probe, "%s/cgroup.controllers", mounts[i]);
		snprintf(path, 100, "%s/thaw-test-%d", mounts[i], (int)getpid());
		if (!access(probe, R_OK) && !mkdir(path, 0755))
			return true;
	}
	return false;
}

static char cgroup_of(pid_t pid, char text[400])
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
	FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, 399, f) : 0;
	text[n] = 0;
	if (f)
		fclose(f);
	return text[0];
}

// What is started there is there from the start, without any limit having to exist.
static void test_started_in_a_cgroup(void **state)
{
	(void)state;
	char path[100], text[400], want[120];
	struct mv_err err = { 0 };
	if (!make_real(path)) {
		print_message("# SKIP no cgroup v2 that can be written\n");
		skip();
	}
	struct cgroup_base base = { .fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	struct cgroup c = { .fd = -1 };
	struct vm_limits none = { 0 };
	assert_int_equal(cgroup_make(&base, "x", &none, &c, &err), 0);
	int pair[2], pidfd = -1, status;
	pid_t pid = 0;
	assert_int_equal(pipe(pair), 0);
	assert_int_equal(spawn_vmm("/bin/cat", pair[0], c.fd, &pidfd, &pid, &err), 0); // ends: stdin is empty
	assert_true(cgroup_of(pid, text)); // at least a zombie: not reaped yet
	snprintf(want, sizeof want, "/thaw-test-%d/vm-x\n", (int)getpid());
	assert_non_null(strstr(text, want));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	close(pidfd);
	// A program that is not there: an error, and nothing is left.
	assert_int_equal(spawn_vmm("/nowhere", pair[0], c.fd, &pidfd, &pid, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/nowhere"));
	assert_int_equal(waitpid(-1, &status, WNOHANG), -1);
	// Removed at once when it is empty.
	cgroup_leave(&c, NULL);
	assert_int_equal(c.fd, -1);
	assert_int_equal(faccessat(base.fd, "vm-x", F_OK, 0), -1);
	close(pair[0]);
	close(pair[1]);
	close(base.fd);
	assert_int_equal(rmdir(path), 0);
}

// Somebody is still in it: removed when that one has ended.
static void test_removed_when_empty(void **state)
{
	(void)state;
	char path[100];
	struct mv_err err = { 0 };
	struct mv_loop loop;
	struct mv_timer limit;
	if (!make_real(path)) {
		print_message("# SKIP no cgroup v2 that can be written\n");
		skip();
	}
	assert_int_equal(mv_loop_init(&loop), 0);
	struct cgroup_base base = { .fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	struct cgroup c = { .fd = -1 };
	struct vm_limits none = { 0 };
	int pair[2], pidfd = -1;
	pid_t pid = 0;
	assert_int_equal(cgroup_make(&base, "y", &none, &c, &err), 0);
	assert_int_equal(pipe(pair), 0);
	assert_int_equal(spawn_vmm("/usr/bin/yes", pair[0], c.fd, &pidfd, &pid, &err), 0); // for ever
	cgroup_leave(&c, &loop); // kills it (Linux 5.14)
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	for (int i = 0; i < 100 && !faccessat(base.fd, "vm-y", F_OK, 0); i++) {
		assert_int_equal(mv_timer_init(&loop, &limit, (mv_timer_fn *)mv_loop_stop, &loop), 0);
		mv_timer_arm(&limit, 20000000);
		loop.stop = false;
		mv_loop_run(&loop);
		mv_timer_fini(&limit);
	}
	assert_int_equal(faccessat(base.fd, "vm-y", F_OK, 0), -1);
	mv_loop_fini(&loop);
	close(pidfd);
	close(pair[0]);
	close(pair[1]);
	close(base.fd);
	assert_int_equal(rmdir(path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_limits, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_only_what_was_asked_for, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_out_of_memory, set_up, tear_down),
		cmocka_unit_test(test_own_path),
		cmocka_unit_test_setup_teardown(test_no_cgroup, set_up, tear_down),
		cmocka_unit_test(test_started_in_a_cgroup),
		cmocka_unit_test(test_removed_when_empty),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
