// SPDX-License-Identifier: Apache-2.0
// What thaw-pager and thaw-page-handler give up before they read a first message: they work on what
// hostile VM processes and files say, and need for it no more than the descriptors they have and are
// given. The order:
//  1. sandbox_drop_rights(), while there is one thread: capabilities belong to a thread and are
//     inherited by those it starts.
//  2. Descriptors and threads are made.
//  3. sandbox_pager() or sandbox_page_handler(): from here on no file, socket, process or thread can be
//     made, by any thread, and no memory be made executable. Another system call than those listed
//     ends the process with SIGSYS.
// There is no root folder or namespace of its own: no call is left that opens a path. Nor a limit on
// descriptors or file sizes: descriptors come with messages, and memory is written into them.
// Errors are final: who can't be confined must not run.
#pragma once
#include "microvm/base/err.h"

// No new privileges, no capabilities, no core file.
int sandbox_drop_rights(struct mv_err *err);

// The descriptor: the only socket that messages go to and come from.
int sandbox_pager(int socket_fd, struct mv_err *err);

// The descriptor: the only socket that connections come from. Nothing can be sent to these.
int sandbox_page_handler(int listen_fd, struct mv_err *err);

// NULL; or why this build has no filter, in which case the two above do nothing: a sanitizer makes
// system calls of its own, other ones in each version.
const char *sandbox_lacks_filter(void);
