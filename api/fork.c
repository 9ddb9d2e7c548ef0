// SPDX-License-Identifier: Apache-2.0
#include "api/fork.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "api/spawn.h"
#include "microvm/base/util.h"

#define FORK_WAIT_NS (10ull * 1000 * 1000 * 1000) // for one answer

// 0: there is no such process.
static pid_t parent_of(pid_t pid)
{
	pid_t parent;
	uint64_t start_ticks;
	return spawn_stat(pid, &parent, &start_ticks) ? 0 : parent;
}

// The pidfd comes first: as long as the process it refers to is there, its number is its own.
static int open_child(pid_t pid, pid_t parent)
{
	MV_FD pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	if (pidfd < 0 || parent_of(pid) != parent || syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0))
		return -1;
	return MV_TAKE_FD(pidfd);
}

// The last one that is answered may free what the source is part of.
static void answer(struct fork_wait *w, struct vm_process *p, const struct api_err *err)
{
	mv_close(&w->socket); // not taken: whoever has the other end ends
	w->fn(w->arg, p, err);
}

static void end(struct fork_source *f, const char *why)
{
	struct api_err err;
	struct fork_wait *w;
	TAILQ_HEAD(, fork_wait) waiting = TAILQ_HEAD_INITIALIZER(waiting);
	TAILQ_CONCAT(&waiting, &f->waiting, link);
	mv_watch_del(&f->watch);
	mv_close(&f->socket);
	api_fail(&err, API_VM_FAILED, "the fork of the VM failed: %s", why);
	while ((w = TAILQ_FIRST(&waiting))) {
		TAILQ_REMOVE(&waiting, w, link);
		answer(w, NULL, &err);
	}
}

static void on_late(void *arg)
{
	struct fork_source *f = arg;
	if (!TAILQ_EMPTY(&f->waiting))
		end(f, "its copy does not answer");
}

static int on_forked(struct fork_source *f, const struct msg *m)
{
	struct msg_forked body;
	struct fork_wait *w = TAILQ_FIRST(&f->waiting);
	struct api_err err;
	if (m->type != ZYGOTE_FORKED || m->n_fds || !w || w->id != m->id ||
	    mv_state_load(&msg_forked_table, m->body, m->body_len, &body, NULL))
		return -EPROTO;
	struct vm_process p = { .socket = w->socket, .pid = (pid_t)body.pid, .pidfd = -1 };
	if (!body.code && (p.pidfd = open_child(p.pid, f->pid)) < 0)
		return -EPROTO;
	TAILQ_REMOVE(&f->waiting, w, link);
	if (!TAILQ_EMPTY(&f->waiting))
		mv_timer_arm(&f->timer, FORK_WAIT_NS);
	if (body.code) {
		api_fail(&err, API_LIMIT_REACHED, "cannot fork the VM: %s; free memory, or pids",
			 strerror((int)body.code));
		answer(w, NULL, &err);
		return 0;
	}
	w->socket = -1;
	answer(w, &p, NULL);
	mv_close(&p.socket);
	mv_close(&p.pidfd);
	return 0;
}

static void on_socket(void *arg, uint32_t events)
{
	static uint8_t buf[MSG_MAX_BYTES]; // the loop's thread only
	struct fork_source *f = arg;
	struct msg m;
	(void)events;
	int r = msg_recv(f->socket, buf, &m);
	if (r == -EAGAIN)
		return;
	if (!r) {
		r = on_forked(f, &m);
		msg_close_fds(&m);
	}
	if (r)
		end(f, r == -EPIPE ? "its copy ended" : "it does not keep to the protocol");
}

int fork_source_init(struct fork_source *f, struct server *s, int socket, pid_t parent_pid, pid_t pid,
		     struct api_err *err)
{
	*f = (struct fork_source){ .s = s, .socket = socket, .pid = pid };
	s->n_forks++;
	TAILQ_INIT(&f->waiting);
	if (pid <= 0 || parent_of(pid) != parent_pid) {
		mv_close(&f->socket);
		return api_fail(err, API_VM_FAILED, "the fork of the VM failed: its copy ended");
	}
	int r = mv_timer_init(&s->loop, &f->timer, on_late, f);
	r = r ? r : mv_watch_add(&s->loop, &f->watch, f->socket, EPOLLIN, on_socket, f);
	if (!r)
		return 0;
	fork_source_fini(f);
	return api_fail(err, API_LIMIT_REACHED, "can't watch the fork of a VM: %s", strerror(-r));
}

void fork_source_fini(struct fork_source *f)
{
	if (!f->s)
		return;
	mv_watch_del(&f->watch);
	mv_timer_fini(&f->timer);
	mv_close(&f->socket);
	f->s->n_forks--;
	server_try_end(f->s);
	f->s = NULL;
}

int fork_ask(struct fork_source *f, struct fork_wait *w,
	     void (*fn)(void *arg, struct vm_process *p, const struct api_err *err), void *arg,
	     struct api_err *err)
{
	struct mv_err e = { 0 };
	MV_FD theirs = -1;
	*w = (struct fork_wait){ .id = ++f->last_id, .socket = -1, .fn = fn, .arg = arg };
	if (f->socket < 0)
		return api_fail(err, API_VM_FAILED, "the fork of the VM failed: its copy ended");
	if (spawn_socket(&w->socket, &theirs, &e))
		return api_from(err, &e, API_INTERNAL);
	int r = msg_send(f->socket, ZYGOTE_FORK, w->id, NULL, NULL, &theirs, 1);
	if (r) {
		mv_close(&w->socket);
		return api_fail(err, API_VM_FAILED, "the fork of the VM takes no message: %s", strerror(-r));
	}
	if (TAILQ_EMPTY(&f->waiting))
		mv_timer_arm(&f->timer, FORK_WAIT_NS);
	TAILQ_INSERT_TAIL(&f->waiting, w, link);
	return 0;
}
