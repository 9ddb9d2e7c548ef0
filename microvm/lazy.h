// SPDX-License-Identifier: Apache-2.0
// The VM process's part of lazy loading (snapshot/pager.h): a userfaultfd over its guest's
// memory. From then on a touch of a page that the memory file does not have yet waits until
// somebody with that descriptor has filled it.
#pragma once
#include "microvm/base/gmem.h"
#include "microvm/base/msg.h"

// After gmem_map() and before anything touches the memory. device_fd: /dev/userfaultfd
// (borrowed), or -1: by system call, which needs rights. The caller owns ret_uffd and keeps it
// as long as the memory is used: with the last descriptor of it the waiting ends, and the
// guest would see zeros. features: of UFFD_FEATURE_*; -EINVAL when the kernel lacks one; LAZY_EXACT:
// as lazy_exact().
// ret_lazy: what was registered.
int lazy_register(const struct gmem *m, int device_fd, uint64_t features, int *ret_uffd,
		  struct msg_lazy *ret_lazy, struct mv_err *err);

// As Firecracker does it: connects to the page handler's socket (socket_fd: opened with O_PATH,
// borrowed) and sends one message, what is registered as JSON and a copy of the userfaultfd; there
// is no reply. Registers with EVENT_REMOVE first. Whatever is wrong with the socket: -ECONNREFUSED.
int lazy_register_with_handler(const struct gmem *m, int device_fd, int socket_fd, int *ret_uffd,
			       struct mv_err *err);

// Until ret_uffd is closed the kernel maps just the pages that are touched, not their neighbours
// (fault-around: mm/memory.c, should_fault_around(): not where writes may be tracked; with WP_ASYNC
// that is possible for files of any kind, and nothing is ever reported), so that the page tables say
// what was read. Memory behaves as always; a fault
// per page is the price. Needs Linux 6.7; -ENOTSUP and others: it goes on mapping neighbours.
#define LAZY_EXACT ((1u << 12) | (1u << 15)) // UFFD_FEATURE_WP_HUGETLBFS_SHMEM, WP_ASYNC
int lazy_exact(const struct gmem *m, int device_fd, int *ret_uffd);

// Waits until all memory is there, so that a fork (which has no userfaultfd) or whoever reads
// the memory as a file sees all of it.
int lazy_populate(const struct gmem *m, struct mv_err *err);
