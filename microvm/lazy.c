// SPDX-License-Identifier: Apache-2.0
#include "microvm/lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

#include "microvm/base/util.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 // Linux 5.14
#endif

enum { HANDLER_WAIT_S = 10 }; // for a page handler with a full queue

_Static_assert(sizeof((struct msg_lazy){ 0 }.region) / sizeof(struct msg_lazy_region) >= GMEM_MAX_REGIONS,
	       "every region fits the message");

// Not UFFD_USER_MODE_ONLY: KVM touches guest memory in the kernel.
static int open_uffd(int device_fd)
{
	int fd = -1;
#ifdef USERFAULTFD_IOC_NEW // Linux 6.1
	if (device_fd >= 0)
		fd = ioctl(device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
#endif
	return fd >= 0 ? fd : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

int lazy_exact(const struct gmem *m, int device_fd, int *ret_uffd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = LAZY_EXACT };
	MV_FD fd = open_uffd(device_fd);
	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api))
		return errno == EINVAL ? -ENOTSUP : -errno;
	for (unsigned i = 0; i < m->n_regions; i++) {
		struct uffdio_register reg = { .range = { (uintptr_t)m->region[i].hva,
							  m->region[i].size_bytes },
					       .mode = UFFDIO_REGISTER_MODE_WP };
		if (ioctl(fd, UFFDIO_REGISTER, &reg))
			return -errno;
	}
	*ret_uffd = MV_TAKE_FD(fd);
	return 0;
}

int lazy_register(const struct gmem *m, int device_fd, uint64_t features, int *ret_uffd,
		  struct msg_lazy *ret_lazy, struct mv_err *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct msg_lazy lazy = { .n_regions = m->n_regions };
	MV_FD fd = open_uffd(device_fd);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return mv_fail(err, errno, "no userfaultfd: %s", strerror(errno));
	for (unsigned i = 0; i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		struct uffdio_register reg = { .range = { (uintptr_t)r->hva, r->size_bytes },
					       .mode = UFFDIO_REGISTER_MODE_MISSING };
		reg.mode |= features == LAZY_EXACT ? UFFDIO_REGISTER_MODE_WP : 0;
		if (ioctl(fd, UFFDIO_REGISTER, &reg))
			return mv_fail(err, errno, "userfaultfd can't watch guest memory: %s",
				       strerror(errno));
		lazy.region[i] = (struct msg_lazy_region){ (uintptr_t)r->hva, r->size_bytes, r->file_offset };
	}
	*ret_uffd = MV_TAKE_FD(fd);
	*ret_lazy = lazy;
	return 0;
}

// By /proc/self/fd, since a VM process opens nothing by path. It connects itself, and not the
// daemon for it, because the handler finds the VM process by SO_PEERCRED.
static int connect_handler(int socket_fd, struct mv_err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = HANDLER_WAIT_S };
	snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d", socket_fd);
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return mv_fail(err, errno, "socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); // of connect(2), too
	if (connect(fd, (struct sockaddr *)&a, sizeof a))
		return mv_fail(err, ECONNREFUSED, "page handler: %s",
			       errno == ECONNREFUSED ? "nobody listens on its socket; start it first"
			       : errno == EAGAIN     ? "it takes no more connections"
						     : strerror(errno));
	return MV_TAKE_FD(fd);
}

// Numbers only, so this one message needs no JSON library in here. A page is the host's, which
// a userfaultfd goes by. Both page sizes are in bytes, also the one whose name says otherwise.
static size_t print_regions(const struct msg_lazy *lazy, char *to, size_t size)
{
	size_t n = 0;
	for (uint32_t i = 0; i < lazy->n_regions; i++) {
		const struct msg_lazy_region *r = &lazy->region[i];
		n += (size_t)snprintf(to + n, size - n,
				      "%c{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,"
				      "\"page_size\":%u,\"page_size_kib\":%u}",
				      i ? ',' : '[', (unsigned long long)r->hva,
				      (unsigned long long)r->size_bytes, (unsigned long long)r->file_offset,
				      mv_host_page_bytes(), mv_host_page_bytes());
	}
	return n + (size_t)snprintf(to + n, size - n, "]");
}

static int send_uffd(int socket_fd, const struct msg_lazy *lazy, int uffd, struct mv_err *err)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof uffd)] = { 0 };
	char text[GMEM_MAX_REGIONS * 160];
	struct iovec iov = { text, print_regions(lazy, text, sizeof text) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof uffd);
	memcpy(CMSG_DATA(c), &uffd, sizeof uffd);
	ssize_t n = sendmsg(socket_fd, &m, MSG_NOSIGNAL);
	if (n != (ssize_t)iov.iov_len)
		return mv_fail(err, ECONNREFUSED, "page handler: it did not take the message: %s",
			       n < 0 ? strerror(errno) : "not all of it");
	return 0;
}

int lazy_register_with_handler(const struct gmem *m, int device_fd, int socket_fd, int *ret_uffd,
			       struct mv_err *err)
{
	struct msg_lazy lazy;
	MV_FD uffd = -1;
	MV_FD handler = connect_handler(socket_fd, err);
	if (handler < 0)
		return -err->code;
	int r = lazy_register(m, device_fd, UFFD_FEATURE_EVENT_REMOVE, &uffd, &lazy, err);
	r = r ? r : send_uffd(handler, &lazy, uffd, err);
	if (!r)
		*ret_uffd = MV_TAKE_FD(uffd);
	return r;
}

int lazy_populate(const struct gmem *m, struct mv_err *err)
{
	for (unsigned i = 0; i < m->n_regions; i++)
		while (madvise(m->region[i].hva, m->region[i].size_bytes, MADV_POPULATE_READ))
			if (errno != EINTR && errno != EAGAIN)
				return mv_fail(err, errno, "can't load all memory: %s", strerror(errno));
	return 0;
}
