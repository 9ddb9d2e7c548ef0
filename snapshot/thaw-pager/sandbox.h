// SPDX-License-Identifier: Apache-2.0
// What thaw-pager gives up before it reads its first message: it works on what hostile VM
// processes and files say, and needs for it no more than the descriptors it is given. The order:
//  1. sandbox_drop_rights(), while there is one thread: capabilities belong to a thread and are
//     inherited by those it starts.
//  2. pager_init(): descriptors and threads.
//  3. sandbox_filter(): from here on no file, socket, process or thread can be made, by any thread,
//     and no memory be made executable. Another system call than those listed ends the process with
//     SIGSYS; the daemon says so and starts another one.
// There is no root folder or namespace of its own: no call is left that opens a path. Nor a limit on
// descriptors or file sizes: the daemon sends descriptors, and memory is written into them.
// Errors are final: a pager that can't confine itself must not run.
#pragma once
#include "microvm/base/err.h"

// No new privileges, no capabilities, no core file, closed to debuggers; ends with its parent.
int sandbox_drop_rights(struct mv_err *err);

// socket_fd: the only one that messages may be sent to.
int sandbox_filter(int socket_fd, struct mv_err *err);

// NULL; or why this build has no filter, in which case sandbox_filter() does nothing: a sanitizer
// makes system calls of its own, other ones in each version.
const char *sandbox_lacks_filter(void);
