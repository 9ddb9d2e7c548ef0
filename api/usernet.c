// SPDX-License-Identifier: Apache-2.0
#include "api/usernet.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api/passt.h"
#include "api/vm.h"
#include "microvm/base/util.h"

#define MAX_MESSAGES 5 // in 10 s

struct usernet {
	LIST_ENTRY(usernet) of_vm, of_all;
	struct server *srv;
	struct vm *vm; // NULL: it was killed, and only has to be reaped
	const struct vmcfg_net *net;
	struct passt p;
	struct mv_watch pid_watch, out_watch;
	struct mv_ratelimit messages;
	bool ended;
};

static LIST_HEAD(, usernet) all = LIST_HEAD_INITIALIZER(all); // that are to be reaped here

bool usernet_is(pid_t pid)
{
	const struct usernet *u;
	LIST_FOREACH (u, &all, of_all)
		if (u->p.pid == pid && !u->ended)
			return true;
	return false;
}

static void usernet_free(struct usernet *u)
{
	mv_watch_del(&u->pid_watch);
	mv_watch_del(&u->out_watch);
	passt_fini(&u->p);
	if (u->vm)
		LIST_REMOVE(u, of_vm);
	LIST_REMOVE(u, of_all);
	free(u);
}

static void on_output(void *arg, uint32_t events)
{
	struct usernet *u = arg;
	bool was_ready = u->p.ready;
	int r;
	(void)events;
	u->p.message[0] = was_ready ? 0 : u->p.message[0];
	r = passt_read(&u->p);
	if (r == -EPIPE)
		mv_watch_del(&u->out_watch); // the pidfd decides
	if (u->vm && was_ready && u->p.message[0] && mv_ratelimit_ok(&u->messages, MAX_MESSAGES))
		mv_log(MV_WARN, "vm %s: net %s: passt: %s", u->vm->cfg.name, u->net->id, u->p.message);
	if (u->vm && !was_ready && u->p.ready)
		vm_setup_check(u->vm);
}

static void on_end(void *arg, uint32_t events)
{
	struct usernet *u = arg;
	siginfo_t si = { 0 };
	(void)events;
	if (waitid(P_PIDFD, (id_t)u->p.pidfd, &si, WEXITED | WNOHANG) || !si.si_pid)
		return;
	u->ended = true;
	vm_reap_strays(u->srv); // those that waited behind this one
	if (!u->vm) {
		usernet_free(u);
		return;
	}
	bool was_ready = u->p.ready;
	while (!passt_read(&u->p)) // ends: nobody writes any more
		;
	// Status 0: the VM's side closed first, at its end as a rule.
	if (si.si_code != CLD_EXITED || si.si_status)
		mv_log(MV_WARN, "vm %s: net %s: passt ended (%s %d)%s%s; the link is down", u->vm->cfg.name,
		       u->net->id, si.si_code == CLD_EXITED ? "status" : "signal", si.si_status,
		       u->p.message[0] ? ": " : "", u->p.message);
	mv_watch_del(&u->pid_watch);
	mv_watch_del(&u->out_watch);
	if (!was_ready)
		vm_setup_check(u->vm); // may end the VM, and this with it
	else if (u->vm->shell)
		vm_kill(u->vm); // nobody's yet: its pool makes another one
}

static int start(struct vm *vm, const struct vmcfg_net *net, int *ret_fd, struct api_err *err)
{
	struct mv_err e = { 0 };
	int pair[2], r;
	// Their end blocks: passt sends the rest of a frame that was taken in part that way.
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return api_fail(err, API_LIMIT_REACHED, "net %s: socketpair: %s", net->id, strerror(errno));
	MV_FD ours = pair[0];
	MV_FD theirs = pair[1];
	struct usernet *u = calloc(1, sizeof *u);
	if (!u)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the network");
	r = passt_start(&net->user, theirs, &u->p, &e);
	if (r) {
		free(u);
		mv_wrap(&e, "net %s", net->id);
		return api_from(err, &e, r == -ENOENT ? API_FILE_NOT_FOUND : API_USER_NET_FAILED);
	}
	u->net = net;
	u->vm = vm;
	u->srv = vm->srv;
	LIST_INSERT_HEAD(&vm->user_nets, u, of_vm);
	LIST_INSERT_HEAD(&all, u, of_all);
	r = mv_watch_add(&vm->srv->loop, &u->pid_watch, u->p.pidfd, EPOLLIN, on_end, u);
	r = r ? r : mv_watch_add(&vm->srv->loop, &u->out_watch, u->p.out_fd, EPOLLIN, on_output, u);
	if (r)
		return api_fail(err, API_LIMIT_REACHED, "net %s: can't watch passt: %s", net->id,
				strerror(-r));
	*ret_fd = MV_TAKE_FD(ours);
	return 0;
}

int usernet_open(struct vm *vm, struct vm_fds *f, struct api_err *err)
{
	int r = 0;
	for (uint32_t i = 0; !r && i < vm->cfg.n_nets; i++)
		if (vm->cfg.net[i].user.present)
			r = start(vm, &vm->cfg.net[i], &f->tap[i][0], err);
	if (r)
		usernet_end(vm);
	return r;
}

int usernet_state(const struct vm *vm, struct api_err *err)
{
	const struct usernet *u;
	int r = 0;
	LIST_FOREACH (u, &vm->user_nets, of_vm) {
		const char *why = u->p.message;
		if (u->ended)
			return api_fail(err,
					strncmp(why, "Failed to bind", 14) ? API_USER_NET_FAILED : API_IN_USE,
					"net %s: passt could not start: %s", u->net->id,
					why[0] ? why : "it gave no reason");
		if (!u->p.ready)
			r = -EAGAIN;
	}
	return r;
}

void usernet_end(struct vm *vm)
{
	struct usernet *u;
	while ((u = LIST_FIRST(&vm->user_nets))) {
		LIST_REMOVE(u, of_vm);
		u->vm = NULL;
		mv_watch_del(&u->out_watch);
		if (!u->ended)
			syscall(SYS_pidfd_send_signal, u->p.pidfd, SIGKILL, NULL, 0);
		// By its watch, unless the loop would not wait for that.
		if (!u->ended && (vm->srv->stopping || !u->pid_watch.loop)) {
			mv_watch_del(&u->pid_watch);
			vm_end_process(vm->srv, MV_TAKE_FD(u->p.pidfd));
		} else if (!u->ended) {
			continue;
		}
		usernet_free(u);
	}
}
