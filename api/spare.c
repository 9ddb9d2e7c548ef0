// SPDX-License-Identifier: Apache-2.0
#include "api/spare.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api/spawn.h"
#include "api/vm.h"
#include "microvm/base/util.h"

#define REFILL_NS (3ull * 1000 * 1000) // after the last one was taken: requests go first

// What goes wrong here goes wrong again, and is told, when a VM is really started.
static bool make(struct server *s, struct vm_process *ret_p)
{
	struct vm_process p = { .socket = -1, .pidfd = -1 };
	struct mv_err err;
	MV_FD theirs = -1;
	MV_FD kvm = open(s->kvm_path, O_RDWR | O_CLOEXEC);
	if (kvm < 0 || spawn_socket(&p.socket, &theirs, &err))
		return false;
	if (msg_send(p.socket, MSG_WARM, 0, NULL, NULL, &kvm, 1) ||
	    spawn_vmm(s->vmm_path, theirs, -1, &p.pidfd, &p.pid, &err)) {
		mv_close(&p.socket);
		return false;
	}
	*ret_p = p;
	return true;
}

static void on_refill(void *arg)
{
	struct server *s = arg;
	if (s->n_spares < s->want_spares && make(s, &s->spare[s->n_spares]) && ++s->n_spares < s->want_spares)
		mv_timer_arm(&s->spare_timer, REFILL_NS);
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
	while (s->n_spares) {
		struct vm_process *p = &s->spare[--s->n_spares];
		syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
		waitid(P_PIDFD, (id_t)p->pidfd, &(siginfo_t){ 0 },
		       WEXITED); // waits for a message: dies at once
		mv_close(&p->pidfd);
		mv_close(&p->socket);
	}
	mv_timer_fini(&s->spare_timer);
}
