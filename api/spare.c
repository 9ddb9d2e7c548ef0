// SPDX-License-Identifier: Apache-2.0
#include "api/spare.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api/spawn.h"
#include "api/spawner.h"
#include "api/vm.h"
#include "microvm/base/util.h"

#define REFILL_NS (3ull * 1000 * 1000)  // after the last one was taken: requests go first
#define RETRY_NS (100ull * 1000 * 1000) // after one that failed, and twice as long after each more
#define MAX_RETRY_SHIFT 10

static void end(struct server *s, struct vm_process *p)
{
	if (p->pidfd >= 0)
		vm_end_process(s, MV_TAKE_FD(p->pidfd));
	mv_close(&p->socket);
	p->pid = 0;
}

// What goes wrong may go wrong again; it is told when a VM is really started.
static void failed(struct server *s)
{
	end(s, &s->warming);
	if (s->want_spares)
		mv_timer_arm(&s->spare_timer, RETRY_NS << s->spare_failures);
	s->spare_failures += s->spare_failures < MAX_RETRY_SHIFT;
}

static void on_warm(void *arg, uint32_t events)
{
	static uint8_t buf[MSG_MAX_BYTES]; // the loop's thread only
	static struct msg_reply rep;
	struct server *s = arg;
	struct msg m = { 0 };
	struct mv_err err;
	(void)events;
	int r = msg_recv(s->warming.socket, buf, &m);
	if (r == -EAGAIN)
		return;
	mv_watch_del(&s->warming_watch);
	if (!r)
		r = m.type == MSG_REPLY ? mv_state_load(&msg_reply_table, m.body, m.body_len, &rep, &err)
					: -EPROTO;
	msg_close_fds(&m);
	if (r || rep.code) {
		failed(s);
		return;
	}
	s->spare_failures = 0;
	s->spare[s->n_spares++] = s->warming;
	s->warming = (struct vm_process){ .socket = -1, .pidfd = -1 };
	if (s->n_spares < s->want_spares)
		mv_timer_arm(&s->spare_timer, REFILL_NS);
}

static void on_started(struct spawn_job *j)
{
	struct server *s = j->s;
	s->warming.pidfd = j->pidfd;
	s->warming.pid = j->pid;
	if (!j->pid || s->n_spares >= s->want_spares || // the daemon ends
	    mv_watch_add(&s->loop, &s->warming_watch, s->warming.socket, EPOLLIN, on_warm, s))
		failed(s);
}

static void on_refill(void *arg)
{
	static struct spawn_job job; // one at a time
	struct server *s = arg;
	struct mv_err err;
	MV_FD theirs = -1;
	if (s->warming.socket >= 0 || s->n_spares >= s->want_spares)
		return;
	MV_FD kvm = open(s->kvm_path, O_RDWR | O_CLOEXEC);
	if (kvm < 0 || spawn_socket(&s->warming.socket, &theirs, &err))
		return;
	if (msg_send(s->warming.socket, MSG_WARM, 0, NULL, NULL, &kvm, 1)) {
		mv_close(&s->warming.socket);
		return;
	}
	job = (struct spawn_job){ .s = s, .theirs = MV_TAKE_FD(theirs), .cgroup_fd = -1, .done = on_started };
	spawner_start(&job);
}

int spares_init(struct server *s, unsigned n)
{
	int r = mv_timer_init(&s->loop, &s->spare_timer, on_refill, s);
	if (r)
		return r;
	s->want_spares = n;
	if (n)
		mv_timer_arm(&s->spare_timer, REFILL_NS);
	return 0;
}

bool spare_take(struct server *s, struct vm_process *ret_p)
{
	if (s->want_spares)
		mv_timer_arm(&s->spare_timer, REFILL_NS);
	while (s->n_spares) {
		struct vm_process p = s->spare[--s->n_spares];
		siginfo_t si = { 0 };
		if (!waitid(P_PIDFD, (id_t)p.pidfd, &si, WEXITED | WNOHANG) && !si.si_pid) {
			*ret_p = p;
			return true;
		}
		mv_close(&p.pidfd); // it ended
		mv_close(&p.socket);
	}
	return false;
}

void spares_stop(struct server *s)
{
	s->want_spares = 0;
	while (s->n_spares)
		end(s, &s->spare[--s->n_spares]);
	mv_watch_del(&s->warming_watch);
	if (s->warming.pid)
		end(s, &s->warming);
	mv_timer_fini(&s->spare_timer);
}
