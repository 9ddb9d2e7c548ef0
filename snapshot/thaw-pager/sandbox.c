// SPDX-License-Identifier: Apache-2.0
// The list is what snapshot/pager*.c and what they call need, and what glibc makes of that (Debian 12's
// and newer ones). Only the low 32 bits of arguments are looked at where the kernel does so, too:
// the upper ones of an int may hold anything.
#include "snapshot/thaw-pager/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "microvm/base/util.h"

struct rule {
	int call;
	unsigned n; // conditions
	struct scmp_arg_cmp arg;
};
#define ANY(name)                                                                                            \
	{                                                                                                    \
		.call = SCMP_SYS(name)                                                                       \
	}
// Of argument i, the bits of the mask have this value.
#define IF_BITS(name, i, mask, value)                                                                        \
	{                                                                                                    \
		SCMP_SYS(name), 1, SCMP_CMP64(i, SCMP_CMP_MASKED_EQ, mask, value)                            \
	}
#define IF(name, i, value) IF_BITS(name, i, UINT32_MAX, (uint32_t)(value))

int sandbox_drop_rights(struct mv_err *err)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };
	const struct rlimit no_core = { 0, 0 };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &head, none) ||
	    setrlimit(RLIMIT_CORE, &no_core) ||
	    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) || // guests' memory passes through here
	    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return mv_fail(err, errno, "can't drop rights: %s", strerror(errno));
	return 0;
}

#ifdef MV_SAN
const char *sandbox_lacks_filter(void) { return "built with SAN=" MV_SAN; }

int sandbox_filter(int socket_fd, struct mv_err *err)
{
	(void)socket_fd;
	(void)err;
	return 0;
}
#else
const char *sandbox_lacks_filter(void) { return NULL; }

static int add_rules(scmp_filter_ctx filter, int socket_fd)
{
	const struct rule rules[] = {
		// Messages and events.
		ANY(epoll_wait),               // the loop
		ANY(epoll_pwait),              // what it is on other architectures
		ANY(epoll_ctl),                // clones come and go
		IF(recvmsg, 0, socket_fd),     // from the daemon alone
		IF(sendmsg, 0, socket_fd),     // and to it
		ANY(close),                    // what came with messages
		IF(fcntl, 1, F_SETFL),         // a clone's userfaultfd is made non-blocking
		ANY(preadv2),                  // messages of a userfaultfd, without waiting
		ANY(read),                     // of one before Linux 6.10; the helper's eventfd
		ANY(write),                    // the helper's eventfd; the log
		IF(ioctl, 1, UFFDIO_WAKE),     // the answer to a fault
		IF(ioctl, 1, UFFDIO_ZEROPAGE), // in a chunk of zeros
		// Memory files and templates.
		ANY(pread64),                     // chunks and indexes
		ANY(pwrite64),                    // into the memfd
		ANY(lseek),                       // data and holes of a raw file
		ANY(fstat),                       // sizes
		IF(newfstatat, 3, AT_EMPTY_PATH), // what glibc before 2.39 makes of fstat()
		IF_BITS(mmap, 2, UINT32_MAX & ~(uint32_t)(PROT_READ | PROT_WRITE), 0), // status; malloc
		ANY(munmap),                                                           // both
		ANY(brk),                                                              // malloc
		IF(mremap, 3, MREMAP_MAYMOVE),                                         // realloc
		IF(madvise, 2, MADV_HUGEPAGE), // malloc, where GLIBC_TUNABLES ask for it
		// Threads and time.
		ANY(futex),           // between pager and helper
		ANY(clock_nanosleep), // when the host has no memory for a page
		ANY(restart_syscall), // that, after SIGSTOP and SIGCONT
		ANY(clock_gettime),   // where the vDSO has no clock
		// The end.
		ANY(exit_group),              // the daemon is gone
		ANY(getpid),                  // a line of the log; abort()
		ANY(gettid),                  // abort(): says SIGABRT and not SIGSYS
		ANY(rt_sigprocmask),          // abort()
		IF(tgkill, 0, getpid()),      // abort(): no process but this one
		IF(writev, 0, STDERR_FILENO), // what glibc says before it
	};
	int r = 0;
	for (size_t i = 0; !r && i < MV_ARRAY_LEN(rules); i++)
		r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, rules[i].call, rules[i].n, &rules[i].arg);
	return r;
}

static void release(scmp_filter_ctx *filter) { seccomp_release(*filter); }

int sandbox_filter(int socket_fd, struct mv_err *err)
{
	__attribute__((cleanup(release))) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = filter ? 0 : -ENOMEM;
	r = r ? r : seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	r = r ? r : seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1); // the helper, too
	r = r ? r : add_rules(filter, socket_fd);
	r = r ? r : seccomp_load(filter);
	return r ? mv_fail(err, -r, "can't set the system call filter: %s", strerror(-r)) : 0;
}
#endif
