// SPDX-License-Identifier: Apache-2.0
#include "api/pager.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api/events.h"
#include "api/lazy.h"
#include "api/metrics.h"
#include "api/spawn.h"
#include "api/vm.h"
#include "microvm/base/util.h"
#include "snapshot/pager.h"

#define SEND_WAIT_MS 2000 // the pager reads between two faults
#define MAX_STARTS 20     // in 10 s

static int start(struct server *s, struct mv_err *err);

static void kill_it(struct pager_process *p)
{
	if (p->pid)
		syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
}

static void forget(struct pager_process *p)
{
	mv_watch_del(&p->pid_watch);
	mv_watch_del(&p->socket_watch);
	mv_close(&p->socket);
	mv_close(&p->pidfd);
	p->pid = 0;
}

static void on_end(void *arg, uint32_t events)
{
	struct server *s = arg;
	struct pager_process *p = &s->pager;
	struct mv_err err = { 0 };
	siginfo_t si = { 0 };
	(void)events;
	if (waitid(P_PIDFD, (id_t)p->pidfd, &si, WEXITED | WNOHANG) || !si.si_pid)
		return;
	forget(p);
	if (s->stopping || !lazy_needs_pager(s))
		return;
	char why[32];
	bool by_signal = si.si_code != CLD_EXITED;
	const char *what = by_signal && si.si_status == SIGSYS ? "a system call that it may not make" : "";
	snprintf(why, sizeof why, "%s %d", by_signal ? "signal" : "status", si.si_status);
	mv_log(MV_WARN, "the pager ended (%s%s%s); another one goes on", why, what[0] ? ": " : "", what);
	if (mv_ratelimit_ok(&p->starts, MAX_STARTS) && !start(s, &err)) {
		event_emit(s, EVENT_PAGER_RESTARTED, &(struct event_info){ .reason = why, .detail = what });
		metrics_add(M_PAGER_RESTARTS, 0, 1);
		return;
	}
	mv_log(MV_ERROR, "no pager: %s", err.msg[0] ? err.msg : "it keeps ending");
	lazy_no_pager(s);
}

// Its messages are few; one that is malformed ends it.
static void on_message(void *arg, uint32_t events)
{
	static uint8_t buf[MSG_MAX_BYTES]; // the loop's thread only
	struct server *s = arg;
	struct pager_corrupt corrupt;
	struct msg m;
	(void)events;
	int r = msg_recv(s->pager.socket, buf, &m);
	if (r == -EAGAIN)
		return;
	if (!r && m.type == PAGER_COMPLETE)
		lazy_complete(s, m.id);
	else if (!r && m.type == PAGER_PREFILLED)
		lazy_prefilled(s, m.id);
	else if (!r && m.type == PAGER_DAMAGED)
		lazy_damaged(s, m.id);
	else if (!r && m.type == PAGER_CORRUPT &&
		 !mv_state_load(&pager_corrupt_table, m.body, m.body_len, &corrupt, NULL))
		lazy_corrupt(s, m.id, corrupt.chunk);
	else
		r = r ? r : -EPROTO;
	if (r) {
		mv_watch_del(&s->pager.socket_watch);
		kill_it(&s->pager);
		return;
	}
	msg_close_fds(&m);
}

static int start(struct server *s, struct mv_err *err)
{
	struct pager_process *p = &s->pager;
	MV_FD theirs = -1;
	int r = spawn_socket(&p->socket, &theirs, err);
	if (r)
		return r;
	r = spawn_vmm(s->pager_path, theirs, -1, &p->pidfd, &p->pid, err);
	if (r) {
		p->pid = 0;
		mv_close(&p->socket);
		return r;
	}
	r = mv_watch_add(&s->loop, &p->pid_watch, p->pidfd, EPOLLIN, on_end, s);
	r = r ? r : mv_watch_add(&s->loop, &p->socket_watch, p->socket, EPOLLIN, on_message, s);
	if (r) {
		kill_it(p);
		waitid(P_PIDFD, (id_t)p->pidfd, &(siginfo_t){ 0 }, WEXITED);
		forget(p);
		return mv_fail(err, -r, "can't watch the pager: %s", strerror(-r));
	}
	lazy_give_all(s);
	return 0;
}

int pager_need(struct server *s, struct mv_err *err)
{
	if (s->pager.pid)
		return 0;
	if (!s->pager_path[0])
		return mv_fail(err, ENOENT, "thaw-pager is neither beside thawd nor in PATH");
	return start(s, err);
}

void pager_tell(struct server *s, uint16_t type, uint64_t id, const struct mv_table *table, const void *body,
		const int *fds, unsigned n_fds)
{
	struct pager_process *p = &s->pager;
	struct pollfd room = { .fd = p->socket, .events = POLLOUT };
	int r;
	if (!p->pid)
		return; // it ended: whoever comes next gets all
	do
		r = msg_send(p->socket, type, id, table, body, fds, n_fds);
	while ((r == -EAGAIN || r == -ETOOMANYREFS) && poll(&room, 1, SEND_WAIT_MS) > 0);
	if (r && r != -EPIPE)
		mv_log(MV_ERROR, "the pager takes no message: %s", strerror(-r));
	if (r)
		kill_it(p);
}

void pager_stop(struct server *s)
{
	struct pager_process *p = &s->pager;
	if (p->pid) {
		mv_watch_del(&p->pid_watch);
		vm_end_process(s, MV_TAKE_FD(p->pidfd));
	}
	forget(p);
}
