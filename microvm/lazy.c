// SPDX-License-Identifier: Apache-2.0
#include "microvm/lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "microvm/base/util.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 // Linux 5.14
#endif

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

int lazy_register(const struct gmem *m, int device_fd, int *ret_uffd, struct msg_lazy *ret_lazy,
		  struct mv_err *err)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct msg_lazy lazy = { .n_regions = m->n_regions };
	MV_FD fd = open_uffd(device_fd);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return mv_fail(err, errno, "no userfaultfd: %s", strerror(errno));
	for (unsigned i = 0; i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		struct uffdio_register reg = { .range = { (uintptr_t)r->hva, r->size_bytes },
					       .mode = UFFDIO_REGISTER_MODE_MISSING };
		if (ioctl(fd, UFFDIO_REGISTER, &reg))
			return mv_fail(err, errno, "userfaultfd can't watch guest memory: %s",
				       strerror(errno));
		lazy.region[i] = (struct msg_lazy_region){ (uintptr_t)r->hva, r->size_bytes, r->file_offset };
	}
	*ret_uffd = MV_TAKE_FD(fd);
	*ret_lazy = lazy;
	return 0;
}

int lazy_populate(const struct gmem *m, struct mv_err *err)
{
	for (unsigned i = 0; i < m->n_regions; i++)
		while (madvise(m->region[i].hva, m->region[i].size_bytes, MADV_POPULATE_READ))
			if (errno != EINTR && errno != EAGAIN)
				return mv_fail(err, errno, "can't load all memory: %s", strerror(errno));
	return 0;
}
