// SPDX-License-Identifier: Apache-2.0
// Default paths, for daemon and client alike; each function fills only an empty string.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "microvm/base/err.h"

int paths_default_socket(char path[PATH_MAX], struct mv_err *err); // $THAW_SOCKET first
int paths_default_state(char path[PATH_MAX], struct mv_err *err);
int paths_find_passt(char path[PATH_MAX]);                      // in PATH; -1: it is not there
int paths_default_pager(char path[PATH_MAX]);                   // 0, or -1 when it is not there
int paths_default_vmm(char path[PATH_MAX], struct mv_err *err); // must be there and executable

// mkdir -p
int paths_make_dirs(const char *path, mode_t mode, struct mv_err *err);
// All socket files in it but those to keep.
void paths_remove_sockets(const char *dir, bool (*keep)(const void *arg, const char *name), const void *arg);
