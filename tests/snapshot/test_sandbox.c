// SPDX-License-Identifier: Apache-2.0
// snapshot/sandbox.c: children enter a sandbox. What is forbidden ends them with SIGSYS, and ends nobody
// outside of it; the pager does all of its work inside. (tests/e2e/test_page_handler.py: so does the
// handler.)
#include "tests/t.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "microvm/base/util.h"
#include "snapshot/memory.h"
#include "snapshot/pager.h"
#include "snapshot/sandbox.h"
#include "snapshot/working_set.h"

enum { PAGE = 4096, TIMEOUT_MS = 20000 };

static struct {
	_Atomic bool before, after; // of the call in question, seen by the parent
} * seen;
static int own_socket[2], other_socket[2], file = -1;
static void *page;

static int set_up(void **state)
{
	(void)state;
	seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	file = t_file();
	return seen == MAP_FAILED || page == MAP_FAILED || socketpair(AF_UNIX, SOCK_DGRAM, 0, own_socket) ||
	       socketpair(AF_UNIX, SOCK_DGRAM, 0, other_socket);
}

static void need_filter(void)
{
	if (sandbox_lacks_filter()) {
		print_message("# SKIP %s\n", sandbox_lacks_filter());
		skip();
	}
}

// --- what is forbidden ---

static void do_open(void) { (void)!open("/dev/null", O_RDONLY); }
static void do_socket(void) { socket(AF_UNIX, SOCK_STREAM, 0); }
static void do_send_elsewhere(void) { send(other_socket[0], "x", 1, MSG_NOSIGNAL); }
static void do_sendmsg_elsewhere(void) { sendmsg(other_socket[0], &(struct msghdr){ 0 }, MSG_NOSIGNAL); }
static void do_recvmsg_elsewhere(void) { recvmsg(other_socket[0], &(struct msghdr){ 0 }, MSG_DONTWAIT); }
static void do_execve(void) { execve("/nothing", (char *[]){ NULL }, (char *[]){ NULL }); }
static void do_execveat(void) { syscall(SYS_execveat, file, "", NULL, NULL, AT_EMPTY_PATH); }
static void do_fork(void)
{
	if (!fork())
		_exit(0);
}
static void do_thread(void) { syscall(SYS_clone3, NULL, 0); }
static void do_ptrace(void) { ptrace(PTRACE_TRACEME, 0, NULL, NULL); }
static void do_read_memory(void) { process_vm_readv(getppid(), NULL, 0, NULL, 0, 0); }
static void do_kill(void) { kill(getpid(), 0); }
static void do_tgkill(void) { syscall(SYS_tgkill, 1, 1, 0); }
static void do_pidfd(void) { syscall(SYS_pidfd_open, getpid(), 0); }
static void do_mmap_exec(void)
{
	mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static void do_mprotect(void) { mprotect(page, PAGE, PROT_READ | PROT_EXEC); }
static void do_mremap_fixed(void) { mremap(page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page); }
static void do_unshare(void) { unshare(0); }
static void do_setns(void) { setns(-1, 0); }
static void do_chroot(void) { (void)!chroot("/nothing"); }
static void do_prctl(void) { prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); }
static void do_setrlimit(void) { setrlimit(RLIMIT_CORE, &(struct rlimit){ 0 }); }
static void do_fionread(void) { ioctl(file, FIONREAD, page); }
static void do_uffd_copy(void) { ioctl(file, UFFDIO_COPY, page); }
static void do_uffd_register(void) { ioctl(file, UFFDIO_REGISTER, page); }
static void do_getfl(void) { fcntl(file, F_GETFL); }
static void do_dup(void) { close(dup(file)); }
static void do_stat(void)
{
	struct stat st;
	stat("/", &st);
}
static void do_unlink(void) { unlink("/nothing"); }
static void do_ftruncate(void) { (void)!ftruncate(file, 0); }
static void do_memfd(void) { close(memfd_create("x", 0)); }
static void do_userfaultfd(void) { syscall(SYS_userfaultfd, 0); }
static void do_io_uring(void) { syscall(SYS_io_uring_setup, 0, NULL); }
static void do_bpf(void) { syscall(SYS_bpf, 0, NULL, 0); }
static void do_keyctl(void) { syscall(SYS_keyctl, -1); }
static void do_seccomp(void) { syscall(SYS_seccomp, -1, 0, NULL); }
static void do_setfl(void) { fcntl(file, F_SETFL, O_NONBLOCK); }
static void do_pwrite(void) { (void)!pwrite(file, "x", 1, PAGE); }
static void do_send_on_own(void) { sendmsg(own_socket[0], &(struct msghdr){ 0 }, MSG_NOSIGNAL); }
static void do_accept_elsewhere(void) { accept4(other_socket[0], NULL, NULL, 0); }
static void do_getsockopt(void)
{
	int type;
	getsockopt(own_socket[0], SOL_SOCKET, SO_TYPE, &type, &(socklen_t){ sizeof type });
}
static void do_pidfd_signal(void) { syscall(SYS_pidfd_send_signal, file, 0, NULL, 0); }
static void do_x32(void) { syscall(0x40000000 | SYS_getpid); } // the other numbers of x86-64
static void do_unknown(void) { syscall(9999); }

enum where { OUTSIDE, PAGER, HANDLER, BOTH = OUTSIDE };

static const struct {
	const char *name;
	void (*call)(void);
	enum where where; // it is forbidden
} forbidden[] = {
	{ "open", do_open, BOTH },
	{ "socket", do_socket, BOTH },
	{ "send to another socket", do_send_elsewhere, BOTH },
	{ "sendmsg to another socket", do_sendmsg_elsewhere, BOTH },
	{ "recvmsg from another socket", do_recvmsg_elsewhere, PAGER },
	{ "execve", do_execve, BOTH },
	{ "execveat", do_execveat, BOTH },
	{ "fork", do_fork, BOTH },
	{ "a thread", do_thread, BOTH },
	{ "ptrace", do_ptrace, BOTH },
	{ "process_vm_readv", do_read_memory, BOTH },
	{ "kill", do_kill, BOTH },
	{ "tgkill of another", do_tgkill, BOTH },
	{ "pidfd_open", do_pidfd, PAGER },
	{ "mmap PROT_EXEC", do_mmap_exec, BOTH },
	{ "mprotect PROT_EXEC", do_mprotect, BOTH },
	{ "mremap MREMAP_FIXED", do_mremap_fixed, BOTH },
	{ "unshare", do_unshare, BOTH },
	{ "setns", do_setns, BOTH },
	{ "chroot", do_chroot, BOTH },
	{ "prctl", do_prctl, BOTH },
	{ "setrlimit", do_setrlimit, BOTH },
	{ "ioctl FIONREAD", do_fionread, BOTH },
	{ "ioctl UFFDIO_COPY", do_uffd_copy, PAGER },
	{ "ioctl UFFDIO_REGISTER", do_uffd_register, BOTH },
	{ "fcntl F_GETFL", do_getfl, BOTH },
	{ "dup", do_dup, BOTH },
	{ "stat of a path", do_stat, BOTH },
	{ "unlink", do_unlink, BOTH },
	{ "ftruncate", do_ftruncate, BOTH },
	{ "memfd_create", do_memfd, BOTH },
	{ "userfaultfd", do_userfaultfd, BOTH },
	{ "io_uring_setup", do_io_uring, BOTH },
	{ "bpf", do_bpf, BOTH },
	{ "keyctl", do_keyctl, BOTH },
	{ "seccomp", do_seccomp, BOTH },
	{ "fcntl F_SETFL", do_setfl, HANDLER },
	{ "pwrite", do_pwrite, HANDLER },
	{ "sendmsg to its own socket", do_send_on_own, HANDLER },
	{ "accept from another socket", do_accept_elsewhere, BOTH },
	{ "getsockopt SO_TYPE", do_getsockopt, BOTH },
	{ "pidfd_send_signal", do_pidfd_signal, BOTH },
	{ "another ABI", do_x32, BOTH },
	{ "a number that does not exist", do_unknown, BOTH },
};

static void enter(enum where where)
{
	struct mv_err err = { 0 };
	int r = sandbox_drop_rights(&err);
	r = r                ? r
	    : where == PAGER ? sandbox_pager(own_socket[0], &err)
			     : sandbox_page_handler(own_socket[0], &err);
	if (r) {
		fprintf(stderr, "%s\n", err.msg);
		_exit(99);
	}
}

// The status of a child that makes the call.
static int status_of(void (*call)(void), enum where where)
{
	int status;
	seen->before = seen->after = false;
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		if (where != OUTSIDE)
			enter(where);
		seen->before = true;
		call();
		seen->after = true;
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void each_forbidden_call_ends_the_process(void **state)
{
	(void)state;
	need_filter();
	for (size_t i = 0; i < MV_ARRAY_LEN(forbidden); i++) {
		int status = status_of(forbidden[i].call, OUTSIDE);
		if (status || !seen->after)
			fail_msg("%s outside: status 0x%x", forbidden[i].name, (unsigned)status);
		for (enum where w = PAGER; w <= HANDLER; w++) {
			if (forbidden[i].where != BOTH && forbidden[i].where != w)
				continue;
			status = status_of(forbidden[i].call, w);
			if (!seen->before || seen->after || !WIFSIGNALED(status) ||
			    WTERMSIG(status) != SIGSYS)
				fail_msg("%s in %d: status 0x%x", forbidden[i].name, w, (unsigned)status);
		}
	}
}

static void *open_when_inside(void *arg)
{
	_Atomic bool *inside = arg;
	while (!*inside)
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	do_open();
	return NULL;
}

static void start_then_enter(void)
{
	pthread_t thread;
	_Atomic bool inside = false;
	if (pthread_create(&thread, NULL, open_when_inside, &inside))
		_exit(98);
	enter(PAGER);
	inside = true;
	pthread_join(thread, NULL);
}

static void the_filter_holds_for_threads_that_ran_before(void **state)
{
	(void)state;
	need_filter();
	int status = status_of(start_then_enter, OUTSIDE);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS && !seen->after);
}

// --- what is allowed ---

static void do_allowed(void)
{
	enum { MIB = 1 << 20 };
	struct timespec t;
	struct stat st;
	uint8_t *p = malloc(MIB / 2); // by mmap(2)
	bool ok = p;
	memset(p, 7, MIB / 2);
	p = realloc(p, 8 * MIB); // by mremap(2)
	ok = ok && p && p[MIB / 2 - 1] == 7 && !mv_pwrite_full(file, p, PAGE, PAGE);
	ok = ok && !mv_pread_full(file, p, PAGE, 0) && p[0] == 0 && p[PAGE - 1] == 0;
	free(p);
	for (unsigned i = 0; ok && i < 200; i++) // by brk(2)
		ok = malloc(10000);
	ok = ok && !fstat(file, &st) && st.st_size == 2 * PAGE && lseek(file, 0, SEEK_HOLE) >= 0;
	ok = ok && !syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) &&
	     !nanosleep(&(struct timespec){ 0 }, NULL);
	ok = ok && ioctl(file, UFFDIO_WAKE, page) && errno == ENOTTY;
	ok = ok && ioctl(file, UFFDIO_ZEROPAGE, page) && errno == ENOTTY;
	ok = ok && !fcntl(file, F_SETFL, O_NONBLOCK) && !close(file);
	ok = ok && !write(STDERR_FILENO, "", 0) &&
	     recvmsg(own_socket[0], &(struct msghdr){ 0 }, MSG_DONTWAIT) == -1;
	if (!ok)
		_exit(97);
}

static void what_the_pager_needs_is_allowed(void **state)
{
	(void)state;
	need_filter();
	assert_int_equal(status_of(do_allowed, OUTSIDE), 0);
	assert_int_equal(status_of(do_allowed, PAGER), 0);
}

static void an_abort_is_told_as_one(void **state)
{
	(void)state;
	need_filter();
	for (enum where w = PAGER; w <= HANDLER; w++) {
		int status = status_of(abort, w);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	}
}

static void do_sleep(void) { nanosleep(&(struct timespec){ .tv_nsec = 300000000 }, NULL); }

static void a_stopped_one_goes_on(void **state)
{
	int status;
	(void)state;
	need_filter();
	seen->before = seen->after = false;
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		enter(PAGER);
		raise(SIGSTOP); // tgkill of itself
		seen->before = true;
		do_sleep();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(kill(pid, SIGCONT), 0);
	while (!seen->before)
		sched_yield();
	nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL); // it sleeps
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

// --- the pager inside ---

// Chunk 1 is zeros in both; the last one is short.
enum { PAGES = 3 * 1024 + 5, BYTES = PAGES * PAGE, ZERO_FROM = 16, ZERO_TO = 32 };

static uint8_t content(unsigned i) { return i >= ZERO_FROM && i < ZERO_TO ? 0 : (uint8_t)(i % 251 + 1); }

static pid_t start_pager(int *ret_socket)
{
	struct mv_err err = { 0 };
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) { // as thaw-pager's main()
		if (dup2(pair[1], VMM_CONTROL_FD) < 0)
			_exit(98);
		close_range(VMM_CONTROL_FD + 1, ~0u, 0);
		int r = sandbox_drop_rights(&err);
		r = r ? r : pager_init(VMM_CONTROL_FD, &err);
		r = r ? r : sandbox_pager(VMM_CONTROL_FD, &err);
		_exit(r || pager_run() ? 97 : 0);
	}
	close(pair[1]);
	*ret_socket = pair[0];
	return pid;
}

// A memory file; the source for templates.
static int make_file(bool lz4)
{
	struct mv_err err = { 0 };
	struct gmem m = { 0 };
	uint64_t bytes, data;
	int fd = t_file();
	assert_int_equal(gmem_add(&m, 0, BYTES), 0);
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	for (unsigned i = 0; i < PAGES; i++)
		if (content(i))
			memset(m.region[0].hva + i * PAGE, content(i), PAGE);
	assert_int_equal(snap_memory_write_as(lz4, fd, &m, &bytes, &data, &err), 0);
	gmem_fini(&m);
	return fd;
}

// Every page but those of an extent in the midst, in chunks of zeros, too.
static int make_working_set(const char *id)
{
	struct working_set w = { .memory_bytes = BYTES };
	struct mv_err err = { 0 };
	int fd = t_file();
	snprintf(w.snapshot_id, sizeof w.snapshot_id, "%s", id);
	assert_int_equal(ws_add(&w, 0, 40, true), 0);
	assert_int_equal(ws_add(&w, 60, 30, false), 0);
	assert_int_equal(ws_write(fd, &w, &err), 0);
	ws_fini(&w);
	return fd;
}

static void wait_for(int socket_fd, uint16_t type, uint64_t id)
{
	static uint8_t buf[MSG_MAX_BYTES];
	struct pollfd p = { .fd = socket_fd, .events = POLLIN };
	struct msg m = { 0 };
	while (m.type != type || m.id != id) {
		assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
		assert_int_equal(msg_recv(socket_fd, buf, &m), 0);
		assert_int_not_equal(m.type, PAGER_CORRUPT);
		msg_close_fds(&m);
	}
}

// A mapping as a clone's.
static uint8_t *map_clone(int memfd, int *ret_uffd)
{
	struct uffdio_api api = { .api = UFFD_API };
	*ret_uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (*ret_uffd < 0) {
		print_message("# SKIP no userfaultfd: %s\n", strerror(errno));
		skip();
	}
	assert_int_equal(ioctl(*ret_uffd, UFFDIO_API, &api), 0);
	uint8_t *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
	assert_true(p != MAP_FAILED);
	struct uffdio_register reg = { .range = { (uintptr_t)p, BYTES },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	assert_int_equal(ioctl(*ret_uffd, UFFDIO_REGISTER, &reg), 0);
	return p;
}

// A line of /proc/PID/task/TID/status: 0 where it is another one.
static unsigned tasks_with(pid_t pid, const char *wanted)
{
	char path[80], line[256];
	unsigned n = 0, n_tasks = 0;
	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%.10s/status", (int)pid, e->d_name);
		FILE *f = fopen(path, "re");
		assert_non_null(f);
		n_tasks++;
		while (fgets(line, sizeof line, f))
			n += !strncmp(line, wanted, strlen(wanted));
		fclose(f);
	}
	closedir(d);
	return n == n_tasks ? n : 0;
}

static void serve_template(int socket_fd, uint64_t id, bool lz4)
{
	static const char snapshot_id[] = "00000000-0000-4000-8000-000000000001";
	const struct pager_template t = { BYTES, false, !lz4 };
	struct pager_working_set w = { { 0 } };
	struct pager_clone c = { .template_id = id };
	int memory = make_file(lz4), set = make_working_set(snapshot_id), memfd = t_file(), status = t_file();
	int uffd, fds[2] = { memfd, status };
	assert_int_equal(ftruncate(memfd, BYTES), 0);
	assert_int_equal(ftruncate(status, (off_t)pager_status_bytes((BYTES + 65535) / 65536)), 0);
	uint8_t *p = map_clone(memfd, &uffd);
	c.lazy = (struct msg_lazy){ .region = { { (uintptr_t)p, BYTES, 0 } }, .n_regions = 1 };
	memcpy(w.snapshot_id, snapshot_id, sizeof snapshot_id);
	assert_int_equal(msg_send(socket_fd, PAGER_FILES, id, NULL, NULL, &memory, 1), 0);
	assert_int_equal(msg_send(socket_fd, PAGER_TEMPLATE, id, &pager_template_table, &t, fds, 2), 0);
	assert_int_equal(msg_send(socket_fd, PAGER_WORKING_SET, id, &pager_working_set_table, &w, &set, 1),
			 0);
	wait_for(socket_fd, PAGER_PREFILLED, id);
	assert_int_equal(msg_send(socket_fd, PAGER_CLONE, id + 100, &pager_clone_table, &c, &uffd, 1), 0);
	for (unsigned i = 0; i < PAGES / 2; i++) // in sequence: the helper works, too
		assert_int_equal(p[i * PAGE + 9], content(i));
	for (unsigned i = PAGES; i-- > PAGES - 300;)
		assert_int_equal(p[i * PAGE + 9], content(i));
	assert_int_equal(msg_send(socket_fd, PAGER_FILL, id, NULL, NULL, NULL, 0), 0);
	wait_for(socket_fd, PAGER_COMPLETE, id);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(p[i * PAGE + 9], content(i));
	assert_int_equal(msg_send(socket_fd, PAGER_END_CLONE, id + 100, NULL, NULL, NULL, 0), 0);
	assert_int_equal(msg_send(socket_fd, PAGER_END_TEMPLATE, id, NULL, NULL, NULL, 0), 0);
	munmap(p, BYTES);
	for (unsigned i = 0; i < 5; i++)
		close((int[]){ memory, set, memfd, status, uffd }[i]);
}

static void the_pager_works_inside(void **state)
{
	int socket_fd, status;
	(void)state;
	need_filter();
	alarm(60); // a fault that nobody answers would wait for ever
	pid_t pid = start_pager(&socket_fd);
	serve_template(socket_fd, 1, true);
	serve_template(socket_fd, 2, false);
	cpu_set_t set;
	unsigned threads = !sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) < 2 ? 1 : 2;
	assert_int_equal(tasks_with(pid, "Seccomp:\t2\n"), threads);
	assert_int_equal(tasks_with(pid, "NoNewPrivs:\t1\n"), threads);
	assert_int_equal(tasks_with(pid, "CapPrm:\t0000000000000000\n"), threads);
	close(socket_fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_forbidden_call_ends_the_process),
		cmocka_unit_test(the_filter_holds_for_threads_that_ran_before),
		cmocka_unit_test(what_the_pager_needs_is_allowed),
		cmocka_unit_test(an_abort_is_told_as_one),
		cmocka_unit_test(a_stopped_one_goes_on),
		cmocka_unit_test(the_pager_works_inside),
	};
	return cmocka_run_group_tests(tests, set_up, NULL);
}
