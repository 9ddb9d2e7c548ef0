// SPDX-License-Identifier: Apache-2.0
#include "snapshot/uffd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

// RWF_NOWAIT and not O_NONBLOCK alone: the VM process shares the open file and could clear
// that flag. Linux before 6.10 lacks it for userfaultfd.
ssize_t uffd_read(int uffd, struct uffd_msg *m, size_t bytes)
{
	struct iovec v = { m, bytes };
	ssize_t n = preadv2(uffd, &v, 1, -1, RWF_NOWAIT);
	return n < 0 && errno == EOPNOTSUPP ? read(uffd, m, bytes) : n;
}

void uffd_wake(int uffd, uint64_t start, uint64_t len_bytes)
{
	struct uffdio_range r = { start, len_bytes };
	ioctl(uffd, UFFDIO_WAKE, &r);
}
