// SPDX-License-Identifier: Apache-2.0
// Preloaded into thawd, linked into tests/faults/thaw-vmm: one chosen call fails, or a process
// dies before it.
// THAW_FAULTS names a file; while it holds "SERIAL OP N ACTION", the Nth call of OP counted
// since SERIAL changed is the one:
//
//   OP      write (also pwrite), fsync, rename, unlink, mkdir, truncate, or any of these; ioctl
//   ACTION  kill (SIGKILL), kill=PID (of another process), short (writes: half is written), or
//           an errno as a number
//
// A process that is forked after the first call counts on from there. Only regular files and folders count,
// not the log, sockets and pipes. When it has happened, <file>.fired is there. Everything else goes straight
// to the kernel.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long serial, calls;

struct plan {
	long serial, n;
	char op[16], action[16];
};

static bool read_plan(struct plan *p)
{
	const char *path = getenv("THAW_FAULTS");
	char text[128];
	int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return false;
	long n = syscall(SYS_read, fd, text, sizeof text - 1);
	syscall(SYS_close, fd);
	text[n > 0 ? n : 0] = 0;
	return sscanf(text, "%ld %15s %ld %15s", &p->serial, p->op, &p->n, p->action) == 4;
}

static void fired(void)
{
	char path[4096];
	snprintf(path, sizeof path, "%s.fired", getenv("THAW_FAULTS"));
	syscall(SYS_close, (int)syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

// 0: go on; 1: a short write; -1: fail, errno is set.
static int fault(const char *op)
{
	struct plan p;
	if (!read_plan(&p) || (strcmp(p.op, op) && (strcmp(p.op, "any") || !strcmp(op, "ioctl"))))
		return 0;
	pthread_mutex_lock(&lock);
	if (p.serial != serial) {
		serial = p.serial;
		calls = 0;
	}
	bool now = ++calls == p.n;
	pthread_mutex_unlock(&lock);
	if (!now)
		return 0;
	fired();
	if (!strcmp(p.action, "kill"))
		kill(getpid(), SIGKILL);
	if (!strncmp(p.action, "kill=", 5)) {
		kill(atoi(p.action + 5), SIGKILL);
		return 0;
	}
	if (!strcmp(p.action, "short"))
		return 1;
	errno = atoi(p.action);
	return -1;
}

static int fault_fd(const char *op, int fd)
{
	struct stat st;
	if (fd <= STDERR_FILENO || fstat(fd, &st) || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)))
		return 0;
	return fault(op);
}

static size_t shorter(size_t n, int f) { return f == 1 && n > 1 ? n / 2 : n; }

ssize_t write(int fd, const void *buf, size_t n)
{
	int f = fault_fd("write", fd);
	return f < 0 ? -1 : syscall(SYS_write, fd, buf, shorter(n, f));
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t at)
{
	int f = fault_fd("write", fd);
	return f < 0 ? -1 : syscall(SYS_pwrite64, fd, buf, shorter(n, f), at);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off_t at) { return pwrite(fd, buf, n, at); }

int ftruncate(int fd, off_t n)
{
	return fault_fd("truncate", fd) < 0 ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

int fsync(int fd) { return fault_fd("fsync", fd) < 0 ? -1 : (int)syscall(SYS_fsync, fd); }

int fdatasync(int fd) { return fault_fd("fsync", fd) < 0 ? -1 : (int)syscall(SYS_fdatasync, fd); }

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	return fault("ioctl") < 0 ? -1 : (int)syscall(SYS_ioctl, fd, request, arg);
}

int renameat2(int old_dir, const char *old, int new_dir, const char *new, unsigned flags)
{
	return fault("rename") < 0 ? -1 : (int)syscall(SYS_renameat2, old_dir, old, new_dir, new, flags);
}

int unlinkat(int dir, const char *path, int flags)
{
	return fault("unlink") < 0 ? -1 : (int)syscall(SYS_unlinkat, dir, path, flags);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
	return fault("mkdir") < 0 ? -1 : (int)syscall(SYS_mkdirat, dir, path, mode);
}
