// SPDX-License-Identifier: Apache-2.0
// The listening socket of the daemon, and of thaw-page-handler.
#pragma once
#include "microvm/base/err.h"

// Makes the folder when missing, replaces a socket file on which nobody listens, and
// listens with mode 0660. -EADDRINUSE: a living daemon, or a file that is no socket and is
// never removed. The caller removes the file at the end.
int listen_unix(const char *path, int *ret_fd, struct mv_err *err);
