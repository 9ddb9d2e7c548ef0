// SPDX-License-Identifier: Apache-2.0
#include "api/fc/vmm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/fc/fc.h"
#include "api/spawn.h"
#include "api/vmfds.h"
#include "microvm/base/util.h"

#define CALL_MS 30000
#define LOAD_MS 600000 // boot, load and snapshot: as much as disks need
#define END_MS 1000    // when a signal ended the front
#define CONSOLE_WAIT_MS 60000
#define MESSAGES_PER_TURN 16
#define MESSAGES_AT_END 64

// Scratch of the loop's thread.
static uint8_t message[MSG_MAX_BYTES];
static struct msg_reply answer, other;
static struct msg_event event;

static void gone(struct fc *fc)
{
	struct fc_vmm *v = &fc->vmm;
	bool good = v->exit_reason == VM_EXIT_SHUTDOWN || v->exit_reason == VM_EXIT_RESET ||
		    v->exit_reason == VM_EXIT_TRIPLE_FAULT;
	mv_watch_del(&v->socket_watch);
	mv_watch_del(&v->pid_watch);
	fc->exit_status = good ? FC_EXIT_OK : FC_EXIT_ERROR;
}

static void merge_times(struct msg_times *to, const struct msg_times *from)
{
	uint64_t *d = (uint64_t *)to;
	const uint64_t *s = (const uint64_t *)from;
	for (size_t i = 0; i < sizeof *to / sizeof *d; i++)
		if (s[i])
			d[i] = s[i];
}

static void note_times(struct fc *fc, const struct msg_times *times)
{
	bool before = fc->vmm.times.first_io;
	merge_times(&fc->vmm.times, times);
	if (fc->args->boot_timer && !before && fc->vmm.times.first_io > fc->vmm.times.running)
		fc_log(fc, FC_INFO,
		       "Guest's first I/O = %llu us after its start, at %llu us (CLOCK_MONOTONIC)",
		       (unsigned long long)(fc->vmm.times.first_io - fc->vmm.times.running) / 1000,
		       (unsigned long long)fc->vmm.times.first_io / 1000);
}

static int on_event(struct fc *fc, const struct msg *m)
{
	struct fc_vmm *v = &fc->vmm;
	struct mv_err e;
	if (mv_state_load(&msg_event_table, m->body, m->body_len, &event, &e))
		return -EPROTO;
	note_times(fc, &event.times);
	if (event.state != VM_EXITED || v->exited)
		return 0;
	uint64_t from = event.console_end - event.n_data;
	uint64_t skip = v->console_offset > from ? v->console_offset - from : 0;
	if (event.n_data > event.console_end)
		return -EPROTO;
	if (skip < event.n_data)
		fc_serial_output(&fc->port, event.data + skip, event.n_data - (uint32_t)skip);
	v->exited = true;
	v->exit_reason = event.reason;
	mv_strcpy(v->exit_detail, sizeof v->exit_detail, event.detail);
	gone(fc);
	return 0;
}

static void on_console(struct fc *fc, const struct msg_reply *r)
{
	struct fc_vmm *v = &fc->vmm;
	v->console_call = 0;
	if (r->code || r->n_data > sizeof r->data)
		return;
	if (r->console_offset > v->console_offset)
		fc->port.lost_bytes += r->console_offset - v->console_offset;
	v->console_offset = r->console_offset + r->n_data;
	fc_serial_output(&fc->port, r->data, r->n_data);
	if (!fc->port.n_pending) // else: when that was written
		fc_vmm_read_console(fc);
}

static int on_reply(struct fc *fc, const struct msg *m)
{
	struct mv_err e;
	bool waited = m->id == fc->vmm.waits_for;
	struct msg_reply *r = waited ? &answer : &other;
	if (mv_state_load(&msg_reply_table, m->body, m->body_len, r, &e))
		return -EPROTO;
	note_times(fc, &r->times);
	if (waited)
		fc->vmm.waits_for = 0;
	else if (m->id == fc->vmm.console_call)
		on_console(fc, r);
	else if (m->id == fc->vmm.input_call)
		fc_serial_input_done(&fc->port, r);
	else
		fc_on_answer(fc, m->id, r);
	return 0;
}

// One message; 0, or why there is none: -EAGAIN, -EPIPE, -EPROTO...
static int receive(struct fc *fc)
{
	struct msg m;
	int r = msg_recv(fc->vmm.socket, message, &m);
	if (r)
		return r;
	bool bad = m.n_fds > 0; // with a page handler the VM process gives its userfaultfd away itself
	msg_close_fds(&m);
	if (bad)
		return -EPROTO;
	if (m.type == MSG_REPLY)
		return on_reply(fc, &m);
	if (m.type == MSG_BALLOON_STATS && m.id == 0)
		return 0; // asked for when a client wants them
	return m.type == MSG_EVENT && m.id == 0 ? on_event(fc, &m) : -EPROTO;
}

static void crashed(struct fc *fc, const char *how)
{
	if (fc->vmm.exited)
		return;
	fc->vmm.exited = true;
	fc->vmm.exit_reason = VM_EXIT_CRASHED;
	mv_strcpy(fc->vmm.exit_detail, sizeof fc->vmm.exit_detail, how);
	gone(fc);
}

static void on_socket(void *arg, uint32_t events)
{
	struct fc *fc = arg;
	int r = 0;
	(void)events;
	for (int i = 0; !r && i < MESSAGES_PER_TURN && !fc->vmm.exited; i++)
		r = receive(fc);
	if (!r || r == -EAGAIN || fc->vmm.exited)
		return;
	mv_watch_del(&fc->vmm.socket_watch); // from here on the pidfd decides
	if (r == -EPIPE)
		return;
	syscall(SYS_pidfd_send_signal, fc->vmm.pidfd, SIGKILL, NULL, 0);
	crashed(fc, "the VM process broke the control protocol");
}

static void on_pidfd(void *arg, uint32_t events)
{
	struct fc *fc = arg;
	siginfo_t si = { 0 };
	char how[100];
	(void)events;
	for (int i = 0; i < MESSAGES_AT_END && !receive(fc); i++)
		;
	if (fc->vmm.exited)
		return;
	waitid(P_PIDFD, (id_t)fc->vmm.pidfd, &si, WEXITED | WNOHANG | WNOWAIT);
	snprintf(how, sizeof how, "the VM process ended unexpectedly, %s %d",
		 si.si_code == CLD_EXITED ? "status" : "by signal", si.si_status);
	crashed(fc, how);
}

static void on_late(void *arg)
{
	struct fc *fc = arg;
	if (!fc->vmm.exited)
		syscall(SYS_pidfd_send_signal, fc->vmm.pidfd, SIGKILL, NULL, 0);
	crashed(fc, "the VM process did not answer in time");
}

void fc_vmm_hurry(struct fc *fc)
{
	if (fc->vmm.late.watch.loop)
		mv_timer_arm(&fc->vmm.late, END_MS * 1000000ull);
}

int fc_vmm_start(struct fc *fc, struct mv_err *err)
{
	struct fc_vmm *v = &fc->vmm;
	struct api_err ignored;
	char *const argv[] = { "thaw-vmm", NULL };
	MV_FD theirs = -1;
	MV_FD kvm = -1;
	MV_FD log = -1;
	int r = fc_log_pipe(&fc->log, &fc->loop, &log);
	if (r)
		return mv_fail(err, -r, "pipe: %s", strerror(-r));
	r = spawn_socket(&v->socket, &theirs, err);
	// What fails here fails again, and is told, at the boot or load.
	if (!r && !vmfds_kvm("/dev/kvm", &kvm, &ignored))
		r = msg_send(v->socket, MSG_MAKE_KVM, 0, NULL, NULL, &kvm, 1);
	r = r ? r : spawn_helper(v->path, argv, theirs, log, &v->pidfd, &v->pid, err);
	if (!r)
		r = mv_timer_init(&fc->loop, &v->late, on_late, fc);
	if (!r)
		r = mv_watch_add(&fc->loop, &v->pid_watch, v->pidfd, EPOLLIN, on_pidfd, fc);
	return r ? r : mv_watch_add(&fc->loop, &v->socket_watch, v->socket, EPOLLIN, on_socket, fc);
}

void fc_vmm_stop(struct fc *fc)
{
	struct fc_vmm *v = &fc->vmm;
	mv_watch_del(&v->socket_watch);
	mv_watch_del(&v->pid_watch);
	mv_timer_fini(&v->late);
	if (v->pid) {
		if (!v->exited) // else it ends by itself, perhaps after a snapshot was written
			syscall(SYS_pidfd_send_signal, v->pidfd, SIGKILL, NULL, 0);
		waitid(P_PIDFD, (id_t)v->pidfd, &(siginfo_t){ 0 }, WEXITED);
	}
	fc_log_drain(&fc->log);
	v->pid = 0;
	mv_close(&v->pidfd);
	mv_close(&v->socket);
}

int fc_vmm_restart(struct fc *fc, struct mv_err *err)
{
	struct fc_vmm *v = &fc->vmm;
	fc_vmm_stop(fc);
	v->console_call = v->console_offset = v->input_call = v->waits_for = 0;
	v->exited = false;
	v->times = (struct msg_times){ 0 };
	return fc_vmm_start(fc, err);
}

static int has_ended(const struct fc *fc, struct api_err *err)
{
	const struct fc_vmm *v = &fc->vmm;
	return api_fail(err, API_VM_GONE, "The microVM has ended (%s)%s%s", vm_exit_name(v->exit_reason),
			v->exit_detail[0] ? ": " : "", v->exit_detail);
}

static int send_one(struct fc *fc, enum msg_type type, uint64_t id, const struct mv_table *table,
		    const void *obj, const int *fds, unsigned n_fds, struct api_err *err)
{
	if (fc->vmm.exited || fc->vmm.socket < 0)
		return has_ended(fc, err);
	int r = msg_send(fc->vmm.socket, (uint16_t)type, id, table, obj, fds, n_fds);
	if (r)
		return api_fail(err, API_VM_FAILED, "The VM process takes no message: %s", strerror(-r));
	return 0;
}

// Until it has answered, ended, or its time is up.
static void wait_for(struct fc *fc, uint64_t id, uint64_t ms)
{
	struct fc_vmm *v = &fc->vmm;
	v->waits_for = id;
	mv_timer_arm(&v->late, (fc->signal ? END_MS : ms) * 1000000u);
	while (v->waits_for && !v->exited)
		if (mv_loop_turn(&fc->loop))
			crashed(fc, "the event loop failed");
	if (!fc->signal)
		mv_timer_disarm(&v->late);
}

int fc_vmm_call(struct fc *fc, enum msg_type type, const struct mv_table *table, const void *obj,
		const int *fds, unsigned n_fds, const struct msg_reply **ret_reply, struct api_err *err)
{
	struct fc_vmm *v = &fc->vmm;
	bool slow = type == MSG_BOOT || type == MSG_RESTORE || type == MSG_SNAPSHOT;
	uint64_t id = ++v->last_id;
	int r = send_one(fc, type, id, table, obj, fds, n_fds, err);
	if (r)
		return r;
	wait_for(fc, id, slow ? LOAD_MS : CALL_MS);
	if (v->waits_for) {
		v->waits_for = 0;
		return has_ended(fc, err);
	}
	if (answer.code)
		return api_fail(err, API_VM_FAILED, "%s",
				answer.text[0] ? answer.text : strerror((int)answer.code));
	if (ret_reply)
		*ret_reply = &answer;
	return 0;
}

int fc_vmm_send(struct fc *fc, enum msg_type type, const struct mv_table *table, const void *obj,
		uint64_t *ret_id, struct api_err *err)
{
	uint64_t id = ++fc->vmm.last_id;
	int r = send_one(fc, type, id, table, obj, NULL, 0, err);
	if (!r)
		*ret_id = id;
	return r;
}

void fc_vmm_read_console(struct fc *fc)
{
	struct fc_vmm *v = &fc->vmm;
	struct api_err ignored; // that it has ended is told elsewhere
	const struct msg_console_read q = { .offset = v->console_offset,
					    .max_bytes = MSG_CONSOLE_BYTES,
					    .wait_ms = CONSOLE_WAIT_MS };
	if (!v->console_call)
		fc_vmm_send(fc, MSG_CONSOLE_READ, &msg_console_read_table, &q, &v->console_call, &ignored);
}
