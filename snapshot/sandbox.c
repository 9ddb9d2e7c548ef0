// SPDX-License-Identifier: Apache-2.0
// The lists are what snapshot/pager*.c and api/page_handler.c need, with what they call, and what glibc
// makes of that (Debian 12's and newer ones). Only the low 32 bits of arguments are looked at where the
// kernel does so, too: the upper ones of an int may hold anything.
#include "snapshot/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
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
#define NO_BITS(name, i, bits) IF_BITS(name, i, (uint32_t)(bits), 0)
#define IF(name, i, value) IF_BITS(name, i, UINT32_MAX, (uint32_t)(value))

int sandbox_drop_rights(struct mv_err *err)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };
	const struct rlimit no_core = { 0, 0 };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &head, none) ||
	    setrlimit(RLIMIT_CORE, &no_core)) // guests' memory passes through here
		return mv_fail(err, errno, "can't drop rights: %s", strerror(errno));
	return 0;
}

#ifdef MV_SAN
const char *sandbox_lacks_filter(void) { return "built with SAN=" MV_SAN; }

int sandbox_pager(int socket_fd, struct mv_err *err)
{
	(void)socket_fd;
	(void)err;
	return 0;
}

int sandbox_page_handler(int listen_fd, struct mv_err *err)
{
	(void)listen_fd;
	(void)err;
	return 0;
}
#else
const char *sandbox_lacks_filter(void) { return NULL; }

static int add_rules(scmp_filter_ctx filter, const struct rule *rule, size_t n)
{
	int r = 0;
	for (size_t i = 0; !r && i < n; i++)
		r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, rule[i].call, rule[i].n, &rule[i].arg);
	return r;
}

static int add_common(scmp_filter_ctx filter)
{
	const struct rule rules[] = {
		// Messages and events.
		ANY(epoll_wait),               // the loop
		ANY(epoll_pwait),              // what it is on other architectures
		ANY(epoll_ctl),                // VMs come and go
		ANY(close),                    // what came with messages
		ANY(preadv2),                  // messages of a userfaultfd, without waiting
		ANY(read),                     // of one before Linux 6.10; eventfds
		ANY(write),                    // eventfds; the log
		IF(ioctl, 1, UFFDIO_WAKE),     // the answer to a fault
		IF(ioctl, 1, UFFDIO_ZEROPAGE), // where there are zeros
		// Memory.
		ANY(pread64),                                    // of the memory file
		NO_BITS(mmap, 2, ~(PROT_READ | PROT_WRITE)),     // malloc; the status of a template
		ANY(munmap),                                     // both
		ANY(brk),                                        // malloc
		IF(mremap, 3, MREMAP_MAYMOVE),                   // realloc
		NO_BITS(mprotect, 2, ~(PROT_READ | PROT_WRITE)), // malloc of a second thread
		IF(madvise, 2, MADV_HUGEPAGE),                   // malloc, where GLIBC_TUNABLES ask for it
		// Threads and time.
		ANY(futex),           // locks, also of a loop that nobody shares
		ANY(clock_gettime),   // where the vDSO has no clock
		ANY(restart_syscall), // what waited, after SIGSTOP and SIGCONT
		// The end.
		ANY(exit_group),              // when nobody needs it any more
		ANY(getpid),                  // a line of the log; abort()
		ANY(gettid),                  // abort(): says SIGABRT and not SIGSYS
		ANY(rt_sigprocmask),          // abort()
		IF(tgkill, 0, getpid()),      // abort(): no process but this one
		IF(writev, 0, STDERR_FILENO), // what glibc says before it
	};
	return add_rules(filter, rules, MV_ARRAY_LEN(rules));
}

static int add_pager(scmp_filter_ctx filter, int socket_fd)
{
	const struct rule rules[] = {
		IF(recvmsg, 0, socket_fd),        // from the daemon alone
		IF(sendmsg, 0, socket_fd),        // and to it
		IF(fcntl, 1, F_SETFL),            // a clone's userfaultfd is made non-blocking
		ANY(pwrite64),                    // into the template's memfd
		ANY(lseek),                       // data and holes of a raw file
		ANY(fstat),                       // is it a file, and how large
		IF(newfstatat, 3, AT_EMPTY_PATH), // what glibc before 2.39 makes of fstat()
		ANY(clock_nanosleep),             // when the host has no memory for a page
	};
	return add_rules(filter, rules, MV_ARRAY_LEN(rules));
}

static int add_page_handler(scmp_filter_ctx filter, int listen_fd)
{
	const struct rule rules[] = {
		IF(accept4, 0, listen_fd),      // a VM process
		IF(getsockopt, 2, SO_PEERCRED), // which one
		ANY(pidfd_open),                // its end; there is no call that does something to it
		ANY(recvmsg),                   // its message
		ANY(readlink),                  // of /proc/self/fd: is it a userfaultfd that it sent
		ANY(readlinkat),                // what that is on other architectures
		IF(ioctl, 1, UFFDIO_COPY),      // the pages
		ANY(rt_sigreturn),              // SIGTERM
	};
	return add_rules(filter, rules, MV_ARRAY_LEN(rules));
}

static void release(scmp_filter_ctx *filter) { seccomp_release(*filter); }

static int confine(int (*add)(scmp_filter_ctx filter, int fd), int fd, struct mv_err *err)
{
	__attribute__((cleanup(release))) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = filter ? 0 : -ENOMEM;
	r = r ? r : seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	r = r ? r : seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1); // threads that are there, too
	r = r ? r : add_common(filter);
	r = r ? r : add(filter, fd);
	r = r ? r : seccomp_load(filter);
	return r ? mv_fail(err, -r, "can't set the system call filter: %s", strerror(-r)) : 0;
}

int sandbox_pager(int socket_fd, struct mv_err *err) { return confine(add_pager, socket_fd, err); }

int sandbox_page_handler(int listen_fd, struct mv_err *err)
{
	return confine(add_page_handler, listen_fd, err);
}
#endif
