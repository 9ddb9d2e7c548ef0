// SPDX-License-Identifier: Apache-2.0
// The service manager's side of the daemon, after sd_listen_fds(3) and sd_notify(3), without libsystemd.
// Main thread, before there are others: the variables are taken out of the environment, so that no child
// believes that they are meant for it.
#pragma once
#include <limits.h>

#include "microvm/base/err.h"

// The listening socket that this process was started with: *ret_fd (close-on-exec, non-blocking, never to be
// removed from the file system by us) and its path. -1: there is none. Anything but exactly one listening
// Unix stream socket with a path is -EINVAL.
int service_socket(int *ret_fd, char path[PATH_MAX], struct mv_err *err);

// Once at the start: remembers where to tell.
int service_init(struct mv_err *err);
// E.g. "READY=1". Nobody wants to know: nothing happens. Failing is logged.
void service_tell(const char *what);
