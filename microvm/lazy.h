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
// guest would see zeros. ret_lazy: what was registered.
int lazy_register(const struct gmem *m, int device_fd, int *ret_uffd, struct msg_lazy *ret_lazy,
		  struct mv_err *err);

// Waits until all memory is there, so that a fork (which has no userfaultfd) or whoever reads
// the memory as a file sees all of it.
int lazy_populate(const struct gmem *m, struct mv_err *err);
