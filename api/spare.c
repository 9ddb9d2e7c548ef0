// SPDX-License-Identifier: Apache-2.0
#include "api/spare.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api/spawn.h"
#include "api/spawner.h"
#include "api/vm.h"
#include "microvm/base/util.h"

#define REFILL_NS (3ull * 1000 * 1000) // after the last one was taken: requests go first

static void end(struct vm_process *p)
{
	syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
	waitid(P_PIDFD, (id_t)p->pidfd, &(siginfo_t){ 0 }, WEXITED); // waits for a message: dies at once
	mv_close(&p->pidfd);
	mv_close(&p->socket);
}

// What goes wrong here goes wrong again, and is told, when a VM is really started.
static void on_started(struct spawn_job *j)
{
	struct server *s = j->s;
	struct vm_process p = { .pidfd = j->pidfd, .pid = j->pid };
	p.socket = MV_TAKE_FD(s->spare_socket);
	if (!j->pid) {
		mv_close(&p.socket);
		return;
	}
	if (s->n_spares >= s->want_spares) { // the daemon ends
		end(&p);
		return;
	}
	s->spare[s->n_spares++] = p;
	if (s->n_spares < s->want_spares)
		mv_timer_arm(&s->spare_timer, REFILL_NS);
}

static void on_refill(void *arg)
{
	static struct spawn_job job; // one at a time
	struct server *s = arg;
	struct mv_err err;
	MV_FD theirs = -1;
	if (s->spare_socket >= 0 || s->n_spares >= s->want_spares)
		return;
	MV_FD kvm = open(s->kvm_path, O_RDWR | O_CLOEXEC);
	if (kvm < 0 || spawn_socket(&s->spare_socket, &theirs, &err))
		return;
	if (msg_send(s->spare_socket, MSG_WARM, 0, NULL, NULL, &kvm, 1)) {
		mv_close(&s->spare_socket);
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
		end(&s->spare[--s->n_spares]);
	mv_timer_fini(&s->spare_timer);
}
