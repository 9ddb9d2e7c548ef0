// SPDX-License-Identifier: Apache-2.0
// Opens the files a VM process gets by descriptor: it needs no file system of its own.
// Each way to fail has its own error; on failure nothing stays open or behind on disk.
#pragma once
#include <stdbool.h>

#include "api/error.h"
#include "microvm/base/vmcfg.h"

// Removes the socket files of a VM; those that nobody listens on.
void vmfds_unlink(const struct vmcfg *cfg);
void vmfds_unlink_stale(const struct vmcfg *cfg);

// The listening socket of a vsock device alone.
int vmfds_vsock(const struct vmcfg_vsock *v, int *ret_fd, struct api_err *err);

// Fills all but state, memory, layers (layers.h) and user networks (usernet.h); kernel and initrd only for
// a boot, no taps for a shell (pool.h). The caller owns ret_fds, and the vsock socket file at
// cfg->vsock.path when cfg->vsock.present.
enum vmfds_for { VMFDS_BOOT, VMFDS_CLONE, VMFDS_SHELL };
int vmfds_open(const struct vmcfg *cfg, const char *kvm_path, enum vmfds_for what, struct vm_fds *ret_fds,
	       struct api_err *err);

// One at a time. A file: regular or, with block_ok, a block device, and not empty. A net: each pair's tap, or
// the socket of a passt.
int vmfds_file(const char *what, const char *path, bool writing, bool block_ok, int *ret_fd,
	       struct api_err *err);
int vmfds_kvm(const char *path, int *ret_fd, struct api_err *err);
int vmfds_net(const struct vmcfg_net *n, int *fds, struct api_err *err);

bool vmfds_remove_stale(const char *path); // a socket file nobody listens on; else nothing happens

// The socket file of a page handler, for its clone to connect to (microvm/lazy.h).
int vmfds_open_handler(const char *path, int *ret_fd, struct api_err *err);
