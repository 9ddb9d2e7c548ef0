// SPDX-License-Identifier: Apache-2.0
// Theory of operation. In the zygote and in what it forks, all descriptors but the sockets are
// closed first, and never by the old objects' own functions: those would change what is
// shared with the parent (its epoll set). The old objects are left as they are, pages
// that nobody touches. What may not be shared at all (vCPU run areas, io_uring rings) is
// mapped with MADV_DONTFORK.
#include "microvm/zygote.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "microvm/base/msg.h"
#include "microvm/base/util.h"
#include "microvm/vcpu.h"

enum { FD_SOCKET = 3, FD_END_PIPE, FD_MIN };

struct split {
	struct zygote *z;
	struct vm *vm;
	int socket_fd;
};

static void move_fds(const int *from, int n)
{
	int high[2];
	for (int i = 0; i < n; i++) // twice, since the sources may sit on the targets
		high[i] = fcntl(from[i], F_DUPFD, FD_MIN);
	for (int i = 0; i < n; i++)
		dup2(high[i], FD_SOCKET + i);
	close_range(FD_SOCKET + (unsigned)n, ~0u, 0);
}

static void __attribute__((noreturn)) child_main(const struct vm_seed *seed, int control_fd)
{
	_Static_assert(FD_SOCKET == VMM_CONTROL_FD, "move_fds() puts the control socket there");
	uint64_t start = mv_now_ns();
	signal(SIGCHLD, SIG_DFL);
	prctl(PR_SET_NAME, "thaw-vmm");
	setpgid(0, 0);
	move_fds(&control_fd, 1);
	_exit(vmm_serve(start, seed));
}

static int fork_one(const struct vm_seed *seed, const struct msg *m, struct msg_forked *f)
{
	if (m->type != ZYGOTE_FORK || m->n_fds != 1)
		return -EPROTO;
	pid_t pid = fork();
	if (pid == 0)
		child_main(seed, m->fds[0]);
	f->code = pid < 0 ? (uint32_t)errno : 0;
	f->pid = pid < 0 ? 0 : (uint32_t)pid;
	return 0;
}

static void __attribute__((noreturn)) zygote_main(const struct vm_seed *seed, pid_t parent)
{
	static uint8_t buf[MSG_MAX_BYTES];
	struct msg m;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "zygote");
	signal(SIGCHLD, SIG_IGN); // whoever adopts them, it is not this one
	if (getppid() != parent)
		_exit(1);
	int r;
	while (!(r = msg_recv(FD_SOCKET, buf, &m))) {
		struct msg_forked f = { 0 };
		r = fork_one(seed, &m, &f);
		msg_close_fds(&m);
		if (r || msg_send(FD_SOCKET, ZYGOTE_FORKED, m.id, &msg_forked_table, &f, NULL, 0))
			break;
	}
	_exit(r == -EPIPE ? 0 : 1);
}

static void on_end(void *arg, uint32_t events)
{
	struct zygote *z = arg;
	(void)events;
	mv_watch_del(&z->watch);
	mv_close(&z->end_fd);
	waitpid(z->pid, NULL, 0);
	z->pid = 0;
}

void zygote_abort(struct zygote *z)
{
	if (!z->pid)
		return;
	kill(z->pid, SIGKILL);
	on_end(z, 0);
}

// Called while the VM stands still.
static int split(void *arg, const struct mv_buf *state, struct mv_err *err)
{
	struct split *s = arg;
	pid_t parent = getpid();
	int ends[2];
	if (pipe2(ends, O_CLOEXEC))
		return mv_fail(err, errno, "pipe: %s", strerror(errno));
	s->z->end_fd = ends[0];
	s->z->pid = fork();
	if (s->z->pid == 0) {
		struct vm_seed seed = { s->vm->mem, state->p, state->len };
		const int fds[] = { s->socket_fd, ends[1] };
		move_fds(fds, 2);
		vcpus_forget(s->vm);
		zygote_main(&seed, parent);
	}
	close(ends[1]);
	int r = 0;
	if (s->z->pid < 0) {
		r = mv_fail(err, errno, "cannot fork the VM: %s; free memory, or pids", strerror(errno));
		s->z->pid = 0;
	} else if ((r = mv_watch_add(&s->vm->loop, &s->z->watch, s->z->end_fd, EPOLLIN, on_end, s->z))) {
		mv_fail(err, -r, "event loop: %s", strerror(-r));
		zygote_abort(s->z);
	}
	if (r)
		mv_close(&s->z->end_fd);
	return r;
}

int zygote_start(struct zygote *z, struct vm *vm, int *fds, unsigned n_fds, struct live_pause *ret_pause,
		 struct mv_err *err)
{
	*z = (struct zygote){ .end_fd = -1 };
	struct split s = { z, vm, fds[0] };
	int r = live_freeze(vm, true, fds + 1, n_fds - 1, split, &s, ret_pause, err);
	if (r)
		zygote_abort(z);
	return r;
}
