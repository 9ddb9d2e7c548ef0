// SPDX-License-Identifier: Apache-2.0
// Ways to freeze the memory of a process that goes on running: what the freeze itself costs
// and what each page costs that is written afterwards. No KVM. The choice is explained in
// docs/architecture.md ("Live snapshots"); this is where its figures come from.
//
//   fork    fork(2); the kernel copies a page at the first write
//   remap   memory is a shared memfd; a private mapping of it is put over it
//   wp      userfaultfd write protection; a thread copies each page before it is written
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "microvm/base/util.h"

enum { PAGE = 4096, MEMORY = 256 << 20, DIRTY = MEMORY / 4 };

static void touch(uint8_t *m, uint8_t value)
{
	for (size_t i = 0; i < DIRTY; i += PAGE)
		m[i] = value;
}

static uint8_t *map(int fd, int flags)
{
	uint8_t *m = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
	return m == MAP_FAILED ? NULL : m;
}

static double us_since(uint64_t start) { return (double)(mv_now_ns() - start) / 1000; }

static int by_fork(double *ret_freeze, double *ret_write)
{
	uint8_t *m = map(-1, MAP_PRIVATE | MAP_ANONYMOUS);
	if (!m)
		return -errno;
	touch(m, 1);
	uint64_t start = mv_now_ns();
	pid_t pid = fork();
	if (pid == 0) {
		pause();
		_exit(0);
	}
	*ret_freeze = us_since(start);
	start = mv_now_ns();
	touch(m, 2);
	*ret_write = us_since(start) / (DIRTY / PAGE);
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	munmap(m, MEMORY);
	return pid < 0 ? -EAGAIN : 0;
}

static int by_remap(double *ret_freeze, double *ret_write)
{
	MV_FD fd = memfd_create("guest", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, MEMORY))
		return -errno;
	uint8_t *m = map(fd, MAP_SHARED);
	if (!m)
		return -errno;
	touch(m, 1);
	uint64_t start = mv_now_ns();
	void *p = mmap(m, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, 0);
	*ret_freeze = us_since(start);
	start = mv_now_ns();
	touch(m, 2);
	*ret_write = us_since(start) / (DIRTY / PAGE);
	munmap(m, MEMORY);
	return p == MAP_FAILED ? -errno : 0;
}

struct wp_server {
	int fd, end[2];
	uint8_t *copy;
	uintptr_t base;
};

static void *serve(void *arg)
{
	struct wp_server *s = arg;
	struct pollfd p[2] = { { .fd = s->fd, .events = POLLIN }, { .fd = s->end[0], .events = POLLIN } };
	struct uffd_msg m;
	while (poll(p, 2, 10000) > 0 && !p[1].revents)
		while (read(s->fd, &m, sizeof m) == sizeof m) {
			uintptr_t at = m.arg.pagefault.address & ~(uintptr_t)(PAGE - 1);
			struct uffdio_writeprotect w = { .range = { at, PAGE } };
			memcpy(s->copy + (at - s->base), (void *)at, PAGE);
			ioctl(s->fd, UFFDIO_WRITEPROTECT, &w);
		}
	return NULL;
}

static int by_wp(double *ret_freeze, double *ret_write)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	uint8_t *m = map(-1, MAP_PRIVATE | MAP_ANONYMOUS), *copy = map(-1, MAP_PRIVATE | MAP_ANONYMOUS);
	struct wp_server s = { .copy = copy, .base = (uintptr_t)m };
	struct uffdio_register reg = { .range = { (uintptr_t)m, MEMORY }, .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .range = { (uintptr_t)m, MEMORY },
					  .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	pthread_t t;

	if (!m || !copy)
		return -ENOMEM;
	touch(m, 1);
	s.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (s.fd < 0)
		return -errno;
	if (ioctl(s.fd, UFFDIO_API, &api)) { // features that the kernel lacks: arm64's before Linux 6.13
		int r = errno == EINVAL ? -ENOTSUP : -errno;
		close(s.fd);
		munmap(m, MEMORY);
		munmap(copy, MEMORY);
		return r;
	}
	if (pipe(s.end))
		return -errno;
	uint64_t start = mv_now_ns();
	int r = ioctl(s.fd, UFFDIO_REGISTER, &reg) || ioctl(s.fd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
	*ret_freeze = us_since(start);
	if (!r && pthread_create(&t, NULL, serve, &s))
		r = -EAGAIN;
	if (!r) {
		start = mv_now_ns();
		touch(m, 2);
		*ret_write = us_since(start) / (DIRTY / PAGE);
		close(s.end[1]);
		pthread_join(t, NULL);
		close(s.end[0]);
	}
	close(s.fd);
	munmap(m, MEMORY);
	munmap(copy, MEMORY);
	return r;
}

int bench_freeze(const struct bench_env *env, struct bench_results *res)
{
	static const struct {
		const char *freeze, *write;
		int (*run)(double *, double *);
	} ways[] = { { "freeze_fork", "freeze_fork_write", by_fork },
		     { "freeze_remap", "freeze_remap_write", by_remap },
		     { "freeze_wp", "freeze_wp_write", by_wp } };
	for (int i = 0; i < (env->quick ? 5 : 20); i++)
		for (size_t k = 0; k < MV_ARRAY_LEN(ways); k++) {
			double freeze = 0, write = 0;
			int r = ways[k].run(&freeze, &write);
			if (r == -ENOTSUP)
				continue;
			if (r)
				return r;
			bench_add(bench_series(res, ways[k].freeze, "us",
					       "freezing 256 MiB, 64 MiB of it dirty"),
				  freeze);
			bench_add(bench_series(res, ways[k].write, "us", "each page written afterwards"),
				  write);
		}
	return 0;
}
