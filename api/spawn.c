// SPDX-License-Identifier: Apache-2.0
// posix_spawn(3) is CLONE_VM | CLONE_VFORK: no page table of a big daemon is copied. It can't
// start a process in another cgroup (glibc can since 2.39); that is done by a plain clone3(2), which
// copies them: slower, but nobody shares our memory meanwhile, and the daemon is small.
#include "api/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "microvm/base/msg.h"
#include "microvm/base/util.h"

extern char **environ;

// Descriptors of the daemon are close-on-exec; dup2 onto 3 clears the flag, also when the
// number is the same (posix_spawn_file_actions_adddup2 promises that).
static int plan(posix_spawn_file_actions_t *files, posix_spawnattr_t *attr, int child_end, int out_fd)
{
	sigset_t none, all;
	sigemptyset(&none);
	sigemptyset(&all);
	sigaddset(&all, SIGPIPE);
	int r = posix_spawn_file_actions_adddup2(files, child_end, VMM_CONTROL_FD);
	if (!r)
		r = posix_spawn_file_actions_addopen(files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (!r && out_fd < 0)
		r = posix_spawn_file_actions_addopen(files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	if (!r && out_fd >= 0)
		r = posix_spawn_file_actions_adddup2(files, out_fd, STDOUT_FILENO);
	if (!r && out_fd >= 0)
		r = posix_spawn_file_actions_adddup2(files, out_fd, STDERR_FILENO);
	if (!r)
		r = posix_spawnattr_setsigmask(attr, &none);
	if (!r)
		r = posix_spawnattr_setsigdefault(attr, &all);
	if (!r)
		r = posix_spawnattr_setpgroup(attr, 0);
	if (!r)
		r = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
							   POSIX_SPAWN_SETPGROUP);
	return r;
}

static int start(const char *path, char *const argv[], int child_end, int out_fd, pid_t *ret_pid)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	int r = posix_spawn_file_actions_init(&files);
	if (r)
		return r;
	r = posix_spawnattr_init(&attr);
	if (!r) {
		r = plan(&files, &attr, child_end, out_fd);
		if (!r)
			r = posix_spawn(ret_pid, path, &files, &attr, argv, environ);
		posix_spawnattr_destroy(&attr);
	}
	posix_spawn_file_actions_destroy(&files);
	return r;
}

int spawn_socket(int *ret_ours, int *ret_theirs, struct mv_err *err)
{
	int pair[2];
	const int room = 4 * (int)MSG_MAX_BYTES;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return mv_fail(err, errno, "socketpair: %s", strerror(errno));
	fcntl(pair[0], F_SETFL, O_NONBLOCK);
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	*ret_ours = pair[0];
	*ret_theirs = pair[1];
	return 0;
}

// The name, in brackets, may hold anything.
int spawn_stat(pid_t pid, pid_t *ret_parent, uint64_t *ret_start_ticks)
{
	char path[32], text[1024], state;
	unsigned long long start_ticks;
	int parent;
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
	if (f)
		fclose(f);
	text[n] = 0;
	const char *end = strrchr(text, ')');
	if (!end ||
	    sscanf(end + 1, " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
		   &state, &parent, &start_ticks) != 3)
		return -ESRCH;
	*ret_parent = parent;
	*ret_start_ticks = start_ticks;
	return 0;
}

// Between clone and exec: system calls only, in the child's copy of our memory. As plan().
static int become(const char *path, int child_end)
{
	const char *slash = strrchr(path, '/');
	char *const argv[] = { (char *)(uintptr_t)(slash ? slash + 1 : path), NULL };
	sigset_t none;
	sigemptyset(&none);
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 || dup2(null_fd, STDOUT_FILENO) < 0)
		return errno;
	if (child_end == VMM_CONTROL_FD ? fcntl(child_end, F_SETFD, 0) : dup2(child_end, VMM_CONTROL_FD) < 0)
		return errno;
	if (setpgid(0, 0) || signal(SIGPIPE, SIG_DFL) == SIG_ERR || sigprocmask(SIG_SETMASK, &none, NULL))
		return errno;
	execve(path, argv, environ);
	return errno;
}

// An error of the child comes by a pipe that exec closes.
static int start_in(const char *path, int child_end, int cgroup_fd, int *ret_pidfd, pid_t *ret_pid)
{
	int pipe_fds[2], pidfd = -1, failed = 0;
	struct clone_args a = { .flags = CLONE_INTO_CGROUP | CLONE_PIDFD,
				.pidfd = (uint64_t)(uintptr_t)&pidfd,
				.exit_signal = SIGCHLD,
				.cgroup = (uint64_t)cgroup_fd };
	if (pipe2(pipe_fds, O_CLOEXEC))
		return errno;
	MV_FD report = pipe_fds[0];
	long pid = syscall(SYS_clone3, &a, sizeof a);
	if (!pid) {
		failed = become(path, child_end);
		ssize_t ignored = write(pipe_fds[1], &failed, sizeof failed);
		(void)ignored;
		_exit(127);
	}
	int r = pid < 0 ? errno : 0;
	close(pipe_fds[1]);
	if (!r && read(report, &failed, sizeof failed) == sizeof failed) {
		r = failed;
		waitpid((pid_t)pid, NULL, 0);
		mv_close(&pidfd);
	}
	if (r)
		return r;
	*ret_pidfd = pidfd; // close-on-exec by itself
	*ret_pid = (pid_t)pid;
	return 0;
}

int spawn_vmm(const char *path, int theirs, int cgroup_fd, int *ret_pidfd, pid_t *ret_pid, struct mv_err *err)
{
	if (cgroup_fd >= 0) {
		int failed = start_in(path, theirs, cgroup_fd, ret_pidfd, ret_pid);
		return failed ? mv_fail(err, failed, "can't start %s in its cgroup: %s", path,
					strerror(failed))
			      : 0;
	}
	const char *slash = strrchr(path, '/');
	char *const argv[] = { (char *)(uintptr_t)(slash ? slash + 1 : path), NULL };
	return spawn_helper(path, argv, theirs, -1, ret_pidfd, ret_pid, err);
}

int spawn_helper(const char *path, char *const argv[], int theirs, int out_fd, int *ret_pidfd, pid_t *ret_pid,
		 struct mv_err *err)
{
	pid_t pid;
	int r = start(path, argv, theirs, out_fd, &pid);
	if (r)
		return mv_fail(err, r, "can't start %s: %s", path, strerror(r));
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0); // close-on-exec by itself
	if (pidfd < 0) {
		r = errno;
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return mv_fail(err, r, "pidfd_open: %s", strerror(r));
	}
	*ret_pidfd = pidfd;
	*ret_pid = pid;
	return 0;
}
