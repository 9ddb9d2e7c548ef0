// SPDX-License-Identifier: Apache-2.0
#include "api/vm.h"

#include <errno.h>
#include <poll.h>
#include <search.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "api/balloon.h"
#include "api/events.h"
#include "api/layers.h"
#include "api/lazy.h"
#include "api/lifetime.h"
#include "api/metadata.h"
#include "api/metrics.h"
#include "api/park.h"
#include "api/record.h"
#include "api/spare.h"
#include "api/spawn.h"
#include "api/usernet.h"
#include "api/vmfds.h"
#include "api/vmrec.h"
#include "api/vms.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define LOAD_TIMEOUT_MS 30000
#define ADOPT_TIMEOUT_MS 30000
#define LAST_WAIT_NS 1000000000u
#define MAX_CALLS 64         // waiting for one VM
#define MESSAGES_PER_TURN 16 // of one VM, so that none keeps the loop to itself
#define MESSAGES_AT_END 1024
#define MAX_EVENTS 50000 // in 10 s; more is an attempt to keep the daemon busy

struct vm_call {
	LIST_ENTRY(vm_call) of_vm, of_server;
	struct vm *vm;
	uint64_t id, deadline_ns;
	uint64_t timeout_ms;
	enum msg_type type;
	const char *what;
	vm_done_fn *done;
	void *arg;
	struct mv_log_tag tag; // of whoever made it
	bool timed_out;
	bool answered; // boot, restore: loaded; done when the user networks are up
};

// Scratch of the loop's thread.
static uint8_t message[MSG_MAX_BYTES];
static struct msg_reply reply;
static struct msg_event event;

static uint64_t unix_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct vm *vm_new(struct server *s, const struct vmcfg *cfg)
{
	// Fresh pages, of which a small configuration needs few; memory that was used before would be
	// cleared.
	struct vm *vm = mmap(NULL, sizeof *vm, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm == MAP_FAILED)
		return NULL;
	vm->srv = s;
	vm->refs = 1;
	vmcfg_copy(&vm->cfg, cfg);
	vm->created_unix_ns = unix_ns();
	vm->pidfd = vm->socket = vm->cgroup.fd = vm->record.fd = vm->orphan_fd = vm->starting.theirs = -1;
	LIST_INIT(&vm->calls);
	LIST_INIT(&vm->user_nets);
	LIST_INIT(&vm->waiters);
	LIST_INIT(&vm->ready_waiters);
	return vm;
}

struct vm *vm_ref(struct vm *vm)
{
	vm->refs++;
	return vm;
}

void vm_unref(struct vm *vm)
{
	if (!vm || --vm->refs)
		return;
	lazy_clone_end(vm); // never got a process
	mv_close(&vm->record.fd);
	free(vm->console_tail);
	free(vm->metadata);
	free(vm->text);
	munmap(vm, sizeof *vm);
}

bool vm_has_process(const struct vm *vm) { return vm->pid > 0 || vm->starting.theirs >= 0 || vm->leaving; }

// What the VM process refuses while it loads: its own checks of what the request gave.
static enum api_code load_refusal(bool boot, uint32_t code)
{
	switch (code) {
	case EBUSY: return API_IN_USE;
	case ENODEV: return API_NO_KVM;
	case EACCES:
	case EPERM: return API_KVM_DENIED;
	case ENOEXEC:
	case EFBIG: return boot ? API_KERNEL_INVALID : API_SNAPSHOT_CORRUPT;
	case ENODATA:
	case EBADMSG: return boot ? API_FILE_INVALID : API_SNAPSHOT_CORRUPT;
	case EINVAL: return boot ? API_INVALID_VALUE : API_SNAPSHOT_MISMATCH;
	case ENOTSUP: return API_CPU_INCOMPATIBLE;
	case ECONNREFUSED: return API_PAGE_HANDLER_FAILED;
	default: return API_VM_FAILED;
	}
}

enum api_code vm_refusal_code(enum msg_type type, uint32_t code)
{
	switch (code) {
	case ENOMEM: return API_OUT_OF_MEMORY;
	case ENOBUFS: return API_HUGE_PAGES_UNAVAILABLE;
	case EMFILE:
	case ENFILE:
	case EAGAIN: return API_LIMIT_REACHED;
	case ENOSPC:
	case EDQUOT: return type == MSG_CONSOLE_WRITE ? API_LIMIT_REACHED : API_NO_SPACE;
	default: break;
	}
	if (type == MSG_BOOT || type == MSG_RESTORE)
		return load_refusal(type == MSG_BOOT, code);
	if (type == MSG_BALLOON_HINT && code == ETIMEDOUT)
		return API_WAIT_TIMEOUT;
	if (type == MSG_BALLOON_HINT && (code == ENOTSUP || code == ECANCELED))
		return API_WRONG_STATE;
	if (code == EBUSY && type == MSG_BALLOON_HINT)
		return API_BUSY;
	if (code == EBUSY)
		return type == MSG_CONSOLE_READ ? API_LIMIT_REACHED : API_WRONG_STATE;
	if (code == EINVAL && type == MSG_DRIVE_SET)
		return API_INVALID_VALUE;
	return code == ENOTSUP && type == MSG_STOP ? API_WRONG_STATE : API_VM_FAILED;
}

// --- calls and their deadlines ---------------------------------------------------------
static void arm_deadline(struct server *s, uint64_t due_ns)
{
	if (s->call_timer_due_ns && s->call_timer_due_ns <= due_ns)
		return;
	uint64_t now = mv_now_ns();
	s->call_timer_due_ns = due_ns;
	mv_timer_arm(&s->call_timer, due_ns > now ? due_ns - now : 0);
}

static void on_deadline(void *arg)
{
	struct server *s = arg;
	uint64_t now = mv_now_ns(), next = 0;
	struct vm_call *c;
	s->call_timer_due_ns = 0;
	LIST_FOREACH (c, &s->calls, of_server) {
		if (c->timed_out)
			continue;
		if (c->deadline_ns <= now) {
			struct mv_log_tag before = mv_log_set_tag(c->tag);
			mv_log(MV_WARN, "vm %s: no answer to \"%s\" within %llu ms, killed", c->vm->cfg.name,
			       c->what, (unsigned long long)c->timeout_ms);
			mv_log_set_tag(before);
			c->timed_out = c->vm->timed_out = true;
			vm_kill(c->vm); // its end fails all its calls
		} else if (!next || c->deadline_ns < next) {
			next = c->deadline_ns;
		}
	}
	if (next)
		arm_deadline(s, next);
}

int vm_calls_init(struct server *s)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	s->last_version = (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
	LIST_INIT(&s->calls);
	return mv_timer_init(&s->loop, &s->call_timer, on_deadline, s);
}

static void end_call(struct vm_call *c, const struct api_err *err, const struct msg_reply *r)
{
	LIST_REMOVE(c, of_vm);
	LIST_REMOVE(c, of_server);
	c->vm->n_calls--;
	struct mv_log_tag before = mv_log_set_tag(c->tag);
	c->done(c->arg, c->vm, err, r);
	mv_log_set_tag(before);
	free(c);
}

int vm_call(struct vm *vm, enum msg_type type, const struct mv_table *table, const void *obj, const int *fds,
	    unsigned n_fds, uint64_t timeout_ms, const char *what, vm_done_fn *done, void *arg,
	    struct api_err *err)
{
	// One that was never loaded can't have ended by itself.
	enum api_code gone = vm->state ? API_VM_GONE : API_VM_CRASHED;
	if (vm->socket < 0 || vm->kill_sent)
		return api_fail(err, gone, "VM %s has ended", vm->cfg.name);
	if (vm->n_calls >= MAX_CALLS)
		return api_fail(err, API_LIMIT_REACHED,
				"VM %s: %u requests wait for it already; try again later", vm->cfg.name,
				vm->n_calls);
	struct vm_call *c = calloc(1, sizeof *c);
	if (!c)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	c->vm = vm;
	c->id = ++vm->next_id;
	c->timeout_ms = timeout_ms;
	c->deadline_ns = mv_now_ns() + timeout_ms * 1000000u;
	c->type = type;
	c->what = what;
	c->done = done;
	c->arg = arg;
	c->tag = mv_log_tag();
	int r = msg_send(vm->socket, (uint16_t)type, c->id, table, obj, fds, n_fds);
	if (r) {
		free(c);
		if (r == -ENOMEM)
			return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
		if (r == -EPIPE)
			return api_fail(err, gone, "VM %s has ended", vm->cfg.name);
		return api_fail(err, API_VM_FAILED, "VM %s takes no message (%s)", vm->cfg.name,
				strerror(-r));
	}
	if (type != MSG_ACTIVITY && type != MSG_DEVICES && type != MSG_BALLOON_STATS)
		lifetime_touch(vm); // looking keeps nobody alive
	LIST_INSERT_HEAD(&vm->calls, c, of_vm);
	LIST_INSERT_HEAD(&vm->srv->calls, c, of_server);
	vm->n_calls++;
	arm_deadline(vm->srv, c->deadline_ns);
	return 0;
}

// --- messages from the process -----------------------------------------------------------
static bool merge_times(struct msg_times *to, const struct msg_times *from)
{
	const struct msg_times before = *to;
	uint64_t *d = (uint64_t *)to;
	const uint64_t *s = (const uint64_t *)from;
	for (size_t i = 0; i < sizeof *to / sizeof *d; i++)
		if (s[i])
			d[i] = s[i];
	return memcmp(&before, to, sizeof before) != 0;
}

static void tell_state(const struct vm *vm)
{
	struct event_info info = { .vm = vm };
	if (vm->state == VM_RUNNING)
		event_emit(vm->srv, EVENT_VM_RUNNING, &info);
	else if (vm->state == VM_PAUSED)
		event_emit(vm->srv, EVENT_VM_PAUSED, &info);
	if (vm->state != VM_EXITED)
		return;
	info.reason = vm_exit_name(vm->exit_reason);
	info.detail = vm->exit_detail;
	event_emit(vm->srv, EVENT_VM_EXITED, &info);
	metrics_add(M_VM_EXITS, vm->exit_reason, 1);
}

void vm_changed(struct vm *vm) { vm->version = ++vm->srv->last_version; }

// The one place where a VM's state changes.
static void set_state(struct vm *vm, unsigned state)
{
	if (vm->state == state)
		return;
	vm->state = state;
	vm_changed(vm);
	lifetime_state(vm);
	park_state(vm);
	if (vm->shown)
		tell_state(vm);
}

void vm_show(struct vm *vm)
{
	char fork[16 + VMCFG_NAME_LEN] = "";
	if (vm->forked_from[0])
		snprintf(fork, sizeof fork, "forked from %s", vm->forked_from);
	vm->shown = true;
	vm_changed(vm);
	event_emit(vm->srv, EVENT_VM_CREATED,
		   &(struct event_info){ .vm = vm,
					 .snapshot = vm->from_snapshot,
					 .snapshot_id = vm->from_snapshot_id,
					 .detail = fork });
	tell_state(vm);
}

static void state_after(struct vm *vm, enum msg_type type)
{
	if (vm->exit_told)
		return;
	if (type == MSG_BOOT)
		set_state(vm, VM_CREATED);
	else if (type == MSG_RUN)
		set_state(vm, VM_RUNNING);
	else if (type == MSG_PAUSE)
		set_state(vm, VM_PAUSED);
	else if (type == MSG_RESTORE || type == MSG_CLAIM)
		set_state(vm, reply.state == VM_RUNNING ? VM_RUNNING : VM_PAUSED);
	else if (type == MSG_ADOPT && reply.state && reply.state != VM_EXITED)
		set_state(vm, reply.state);
}

void vm_setup_check(struct vm *vm)
{
	struct api_err err = { 0 };
	struct vm_call *c;
	LIST_FOREACH (c, &vm->calls, of_vm)
		if (c->answered)
			break;
	int r = c ? usernet_state(vm, &err) : -EAGAIN;
	if (r != -EAGAIN)
		end_call(c, r ? &err : NULL, r ? NULL : &reply); // of which only that it came matters
}

static void note_times(struct vm *vm, const struct msg_times *times)
{
	struct vm_waiter *w;
	if (merge_times(&vm->times, times))
		vm_changed(vm);
	while (vm->times.ready && (w = LIST_FIRST(&vm->ready_waiters))) {
		vm_wait_cancel(w);
		w->fn(w->arg, vm);
	}
}

static int on_reply(struct vm *vm, const struct msg *m)
{
	struct vm_call *c;
	struct mv_err e = { 0 };
	struct api_err err = { 0 };
	LIST_FOREACH (c, &vm->calls, of_vm)
		if (c->id == m->id)
			break;
	if (!c || mv_state_load(&msg_reply_table, m->body, m->body_len, &reply, &e))
		return -EPROTO;
	note_times(vm, &reply.times);
	if (c->type == MSG_ADOPT)
		balloon_note(vm, &reply.balloon);
	if (c->type == MSG_SNAPSHOT || c->type == MSG_FORK)
		layers_freeze_end(vm, reply.layers_frozen);
	if (!reply.code) {
		state_after(vm, c->type);
		c->answered = c->type == MSG_BOOT || c->type == MSG_RESTORE;
		if (c->answered)
			vm_setup_check(vm);
		else
			end_call(c, NULL, &reply);
		return 0;
	}
	api_fail(&err, vm_refusal_code(c->type, reply.code), "VM %s: %s", vm->cfg.name,
		 reply.text[0] ? reply.text : strerror((int)reply.code));
	end_call(c, &err, NULL);
	return 0;
}

static int on_event(struct vm *vm, const struct msg *m)
{
	struct mv_err e = { 0 };
	if (!mv_ratelimit_ok(&vm->events, MAX_EVENTS))
		return -EPROTO;
	if (mv_state_load(&msg_event_table, m->body, m->body_len, &event, &e))
		return -EPROTO;
	if ((vm->from_snapshot[0] || vm->forked_from[0]) && !vm->times.first_io &&
	    event.times.first_io > vm->requested_ns)
		metrics_observe(M_CLONE_FIRST_IO, event.times.first_io - vm->requested_ns);
	note_times(vm, &event.times);
	if (vm->exit_told)
		return 0;
	if (event.state != VM_EXITED) {
		if (vm->state) // not while loading
			set_state(vm, event.state);
		return 0;
	}
	vm->exit_told = true;
	vm->exit_reason = event.reason;
	memcpy(vm->exit_detail, event.detail, sizeof vm->exit_detail);
	vm->console_end = event.console_end;
	if (event.n_data && event.n_data <= event.console_end && (vm->console_tail = malloc(event.n_data))) {
		memcpy(vm->console_tail, event.data, event.n_data);
		vm->n_console_tail = event.n_data;
	}
	return 0;
}

// One message; 0, or why there is none: -EAGAIN, -EPIPE, -EPROTO...
static int receive(struct vm *vm)
{
	struct msg m;
	int r = msg_recv(vm->socket, message, &m);
	if (r)
		return r;
	if (m.type == MSG_LAZY && m.id == 0) {
		r = lazy_clone_take(vm, &m);
		msg_close_fds(&m);
		return r;
	}
	bool bad = m.n_fds > 0; // a VM has no other descriptors to give
	msg_close_fds(&m);
	if (bad)
		return -EPROTO;
	if (m.type == MSG_REPLY)
		return on_reply(vm, &m);
	if (m.type == MSG_RECORDED && m.id == 0)
		return record_told(vm, &m);
	if (m.type == MSG_BALLOON_STATS && m.id == 0)
		return balloon_told(vm, &m);
	if (m.type == MSG_PARKING && m.id == 0)
		return park_told(vm, &m);
	return m.type == MSG_EVENT && m.id == 0 ? on_event(vm, &m) : -EPROTO;
}

static void on_socket(void *arg, uint32_t events)
{
	struct vm *vm = vm_ref(arg);
	int r = 0;
	(void)events;
	for (int i = 0; !r && i < MESSAGES_PER_TURN && vm->socket >= 0; i++)
		r = receive(vm);
	if (r && r != -EAGAIN && vm->socket >= 0) {
		mv_watch_del(&vm->socket_watch); // from here on the pidfd decides
		if (r != -EPIPE && !vm->kill_sent) {
			snprintf(vm->exit_detail, sizeof vm->exit_detail, "broke the control protocol");
			mv_log(MV_WARN, "vm %s: broke the control protocol, killed", vm->cfg.name);
			syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
		}
	}
	vm_unref(vm);
}

// --- the end -----------------------------------------------------------------------------
static void note_reason(struct vm *vm, const siginfo_t *si)
{
	if (vm->exit_told && vm->exit_reason != VM_EXIT_NONE)
		return;
	if (si->si_pid && si->si_code != CLD_EXITED)
		vm->exit_signal = si->si_status;
	if (vm->corrupt) {
		vm->exit_reason = VM_EXIT_SNAPSHOT_CORRUPT;
		return;
	}
	if (vm->cgroup.out_of_memory) {
		vm->exit_reason = VM_EXIT_OUT_OF_MEMORY;
		snprintf(vm->exit_detail, sizeof vm->exit_detail, "needed more than its limit of %u MiB",
			 vm->policy.limits.memory_mib);
		return;
	}
	if (vm->kill_sent) {
		vm->exit_reason = vm->end_reason ? vm->end_reason : VM_EXIT_KILLED;
		if (vm->timed_out)
			snprintf(vm->exit_detail, sizeof vm->exit_detail, "the VM process did not answer");
		return;
	}
	vm->exit_reason = VM_EXIT_CRASHED;
	if (vm->exit_detail[0])
		return;
	if (vm->exit_signal)
		snprintf(vm->exit_detail, sizeof vm->exit_detail, "VM process ended by signal %d (%s)",
			 vm->exit_signal, strsignal(vm->exit_signal));
	else if (si->si_pid)
		snprintf(vm->exit_detail, sizeof vm->exit_detail, "VM process ended with status %d",
			 si->si_status);
	else
		snprintf(vm->exit_detail, sizeof vm->exit_detail, "VM process ended unexpectedly");
}

// why: NULL, or why it never ran.
static void fail_calls(struct vm *vm, const struct api_err *why)
{
	struct vm_call *c;
	while ((c = LIST_FIRST(&vm->calls))) {
		struct api_err err = { 0 };
		if (why)
			err = *why;
		else if (vm->state != VM_EXITED)
			api_fail(&err, API_SHUTTING_DOWN, "the daemon is ending; VM %s goes on (%s)",
				 vm->cfg.name, c->what);
		else if (c->timed_out)
			api_fail(&err, API_VM_TIMEOUT,
				 "VM %s did not answer (%s) within %llu ms and was ended", vm->cfg.name,
				 c->what, (unsigned long long)c->timeout_ms);
		else if (vm->exit_reason == VM_EXIT_SNAPSHOT_CORRUPT)
			api_fail(&err, API_SNAPSHOT_CORRUPT, "VM %s (%s): %s", vm->cfg.name, c->what,
				 vm->exit_detail);
		else if (vm->exit_reason == VM_EXIT_CRASHED)
			api_fail(&err, API_VM_CRASHED, "VM %s crashed (%s): %s", vm->cfg.name, c->what,
				 vm->exit_detail);
		else
			api_fail(&err, API_VM_GONE, "VM %s ended (%s) while the request waited (%s)",
				 vm->cfg.name, vm_exit_name(vm->exit_reason), c->what);
		end_call(c, &err, NULL);
	}
}

static int by_pid(const void *a, const void *b)
{
	pid_t x = ((const struct vm *)a)->pid, y = ((const struct vm *)b)->pid;
	return x < y ? -1 : x > y;
}

// A process that is known has a pidfd, which brings it to finish(), and that to here again; the spawner does
// when all it started are known, and the reaper when none of those that it has is left.
void vm_reap_strays(struct server *s)
{
	static struct vm key; // the loop's thread only
	siginfo_t si = { 0 };
	while (!s->spawner.n_jobs && !s->reaper.n_jobs &&
	       !waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) && si.si_pid) {
		key.pid = si.si_pid;
		if (si.si_pid == s->pager.pid || usernet_is(si.si_pid) || tfind(&key, &s->by_pid, by_pid))
			return;
		waitid(P_PID, (id_t)si.si_pid, &(siginfo_t){ 0 }, WEXITED | WNOHANG);
		si = (siginfo_t){ 0 };
	}
}

static void forget_process(struct vm *vm)
{
	mv_watch_del(&vm->socket_watch);
	mv_watch_del(&vm->pid_watch);
	mv_close(&vm->socket);
	mv_close(&vm->pidfd);
	lazy_clone_end(vm);
	tdelete(vm, &vm->srv->by_pid, by_pid);
	record_drop(vm);
	vm->pid = 0;
}

// The last of a process, also of one that goes on.
static void end_waits(struct vm *vm, const struct api_err *why)
{
	struct vm_waiter *w;
	vm->srv->n_live--;
	fail_calls(vm, why);
	while ((w = LIST_FIRST(&vm->waiters))) {
		vm_wait_cancel(w);
		w->fn(w->arg, vm);
	}
	if (vm->state == VM_EXITED && vm->policy.auto_delete && vm->shown)
		vms_remove(vm);
	server_try_end(vm->srv);
	vm_unref(vm); // the process's
}

void vm_leave(struct vm *vm)
{
	if (!vm_has_process(vm) || vm->leaving || vm->kill_sent)
		return;
	if (!vm->outlives || !vm->shown) {
		vm_kill(vm);
		return;
	}
	forget_process(vm);
	end_waits(vm, NULL);
}

static void exited(struct vm *vm, const struct api_err *why)
{
	vm->leaving = false;
	set_state(vm, VM_EXITED);
	if (vm->shown)
		mv_log(vm->exit_reason == VM_EXIT_CRASHED ? MV_WARN : MV_INFO, "vm %s: exited, %s%s%s",
		       vm->cfg.name, vm_exit_name(vm->exit_reason), vm->exit_detail[0] ? ": " : "",
		       vm->exit_detail);
	end_waits(vm, why);
}

// Sockets and layers: a file system may take its time, for the gigabytes of a layer above all. So a thread
// does it, and the VM has exited when it is done: who has seen that may use the paths again.
struct files_job {
	struct worker_job job;
	struct vm *vm;
	bool failed;
	struct api_err why;
};

static void remove_files(struct vm *vm)
{
	if (vm->owns_sockets)
		vmfds_unlink(&vm->cfg);
	vm->owns_sockets = false;
	layers_remove(vm);
}

static void files_run(struct worker_job *job) { remove_files(((struct files_job *)job)->vm); }

static void files_done(struct worker_job *job)
{
	struct files_job *j = (struct files_job *)job;
	exited(j->vm, j->failed ? &j->why : NULL);
	free(j);
}

static bool remove_files_later(struct vm *vm, const struct api_err *why)
{
	struct files_job *j = vm->owns_sockets || vm->owns_layers ? malloc(sizeof *j) : NULL;
	if (!j)
		return false;
	*j = (struct files_job){ .job = { .run = files_run, .done = files_done }, .vm = vm, .failed = why };
	if (why)
		j->why = *why;
	worker_add(&vm->srv->remover, &j->job);
	return true;
}

static void finish(struct vm *vm, const siginfo_t *si, const struct api_err *why)
{
	int r = 0;
	for (int i = 0; !r && vm->socket_watch.loop && i < MESSAGES_AT_END; i++)
		r = receive(vm); // what it said last
	forget_process(vm);
	vm_reap_strays(vm->srv);
	vmrec_remove(vm);
	cgroup_leave(&vm->cgroup, &vm->srv->loop);
	usernet_end(vm);
	note_reason(vm, si);
	vm->leaving = true;
	if (remove_files_later(vm, why))
		return;
	remove_files(vm);
	exited(vm, why);
}

// To release a zombie takes the kernel milliseconds when many end at once, so a thread does it.
struct reap_job {
	struct worker_job job;
	struct server *s;
	int pidfd;
};

static void reap_run(struct worker_job *job)
{
	waitid(P_PIDFD, (id_t)((struct reap_job *)job)->pidfd, &(siginfo_t){ 0 }, WEXITED | WNOHANG);
}

static void reap_done(struct worker_job *job)
{
	struct reap_job *j = (struct reap_job *)job;
	struct server *s = j->s;
	close(j->pidfd);
	free(j);
	vm_reap_strays(s);
}

// It has ended. Until finish() was here nobody takes its number for that of another process: the loop alone
// asks.
static void reap(struct vm *vm)
{
	struct reap_job *j = malloc(sizeof *j);
	if (!j) {
		waitid(P_PIDFD, (id_t)vm->pidfd, &(siginfo_t){ 0 }, WEXITED | WNOHANG);
		return;
	}
	mv_watch_del(&vm->pid_watch);
	*j = (struct reap_job){ .job = { .run = reap_run, .done = reap_done }, .s = vm->srv };
	j->pidfd = MV_TAKE_FD(vm->pidfd);
	worker_add(&vm->srv->reaper, &j->job);
}

// One that is nobody's: nothing waits for its end but the daemon's.
struct ending {
	LIST_ENTRY(ending) link;
	struct server *s;
	struct mv_watch watch;
	int pidfd;
};

static void ending_free(struct ending *e)
{
	LIST_REMOVE(e, link);
	mv_watch_del(&e->watch);
	mv_close(&e->pidfd);
	free(e);
}

static void on_ending(void *arg, uint32_t events)
{
	struct ending *e = arg;
	struct server *s = e->s;
	(void)events;
	waitid(P_PIDFD, (id_t)e->pidfd, &(siginfo_t){ 0 }, WEXITED | WNOHANG);
	ending_free(e);
	server_try_end(s);
}

void vm_end_process(struct server *s, int pidfd)
{
	struct ending *e = calloc(1, sizeof *e);
	syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	if (!e || mv_watch_add(&s->loop, &e->watch, pidfd, EPOLLIN, on_ending, e)) {
		close(pidfd); // vm_reap_strays() will find it
		free(e);
		return;
	}
	e->s = s;
	e->pidfd = pidfd;
	LIST_INSERT_HEAD(&s->endings, e, link);
}

void vm_forget_processes(struct server *s)
{
	uint64_t until_ns = mv_now_ns() + LAST_WAIT_NS;
	for (struct ending *e; (e = LIST_FIRST(&s->endings)); ending_free(e)) {
		struct pollfd p = { .fd = e->pidfd, .events = POLLIN };
		uint64_t now = mv_now_ns();
		if (poll(&p, 1, now < until_ns ? (int)((until_ns - now) / 1000000u) : 0) > 0)
			waitid(P_PIDFD, (id_t)e->pidfd, &(siginfo_t){ 0 }, WEXITED | WNOHANG);
	}
}

static void on_pidfd(void *arg, uint32_t events)
{
	struct vm *vm = arg;
	siginfo_t si = { 0 };
	(void)events;
	// ECHILD: it was forked by another VM, so how it ended is not ours to know.
	int r = waitid(P_PIDFD, (id_t)vm->pidfd, &si, WEXITED | WNOHANG | WNOWAIT);
	if (r ? errno != ECHILD : !si.si_pid)
		return;
	if (!r)
		reap(vm);
	finish(vm, &si, NULL);
}

void vm_kill(struct vm *vm)
{
	if (!vm_has_process(vm))
		return;
	vm->kill_sent = true; // on_started() sends it to one that is being started
	if (vm->pid)
		syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
}

void vm_wait_end(struct vm *vm, struct vm_waiter *w, vm_end_fn *fn, void *arg)
{
	*w = (struct vm_waiter){ .fn = fn, .arg = arg, .waiting = true };
	LIST_INSERT_HEAD(&vm->waiters, w, link);
}

void vm_wait_ready(struct vm *vm, struct vm_waiter *w, vm_end_fn *fn, void *arg)
{
	*w = (struct vm_waiter){ .fn = fn, .arg = arg, .waiting = true };
	LIST_INSERT_HEAD(&vm->ready_waiters, w, link);
}

void vm_wait_cancel(struct vm_waiter *w)
{
	if (w->waiting)
		LIST_REMOVE(w, link);
	w->waiting = false;
}

// --- the start -----------------------------------------------------------------------------
static int watch_process(struct vm *vm)
{
	int r = mv_watch_add(&vm->srv->loop, &vm->pid_watch, vm->pidfd, EPOLLIN, on_pidfd, vm);
	return r ? r : mv_watch_add(&vm->srv->loop, &vm->socket_watch, vm->socket, EPOLLIN, on_socket, vm);
}

// Undoes a start that failed half-way; its calls are dropped, not ended.
static void abandon_process(struct vm *vm)
{
	struct vm_call *c;
	mv_watch_del(&vm->pid_watch);
	mv_watch_del(&vm->socket_watch);
	if (vm->pid)
		vm_end_process(vm->srv, MV_TAKE_FD(vm->pidfd));
	mv_close(&vm->socket);
	mv_close(&vm->pidfd);
	vm->pid = 0;
	cgroup_leave(&vm->cgroup, &vm->srv->loop);
	while ((c = LIST_FIRST(&vm->calls))) {
		LIST_REMOVE(c, of_vm);
		LIST_REMOVE(c, of_server);
		vm->n_calls--;
		free(c);
	}
}

static int watch(struct vm *vm, struct api_err *err)
{
	int r = watch_process(vm);
	return r ? api_fail(err, API_LIMIT_REACHED, "can't watch the VM process: %s", strerror(-r)) : 0;
}

// The process is there, or will never be. Nothing that it said was read before.
static void on_started(struct spawn_job *j)
{
	struct vm *vm = MV_CONTAINER(j, struct vm, starting);
	struct api_err err;
	vm->pid = j->pid;
	vm->pidfd = j->pidfd;
	int r = j->pid ? watch(vm, &err) : api_from(&err, &j->err, API_INTERNAL);
	if (!r && !tsearch(vm, &vm->srv->by_pid, by_pid))
		r = api_fail(&err, API_OUT_OF_MEMORY, "no memory for another VM");
	if (!r && vm->kill_sent)
		vm_kill(vm);
	if (!r)
		return;
	siginfo_t si = { 0 };
	mv_watch_del(&vm->socket_watch);
	if (vm->pid) {
		vm->kill_sent = true;
		mv_watch_del(&vm->pid_watch);
		vm_end_process(vm->srv, MV_TAKE_FD(vm->pidfd));
	}
	finish(vm, &si, &err);
}

static int make_cgroup(struct vm *vm, struct api_err *err)
{
	struct mv_err e = { 0 };
	if (!vm->policy.has_limits ||
	    !cgroup_make(&vm->srv->cgroup, vm->cfg.id, &vm->policy.limits, &vm->cgroup, &e))
		return 0;
	return api_from(err, &e, API_LIMITS_UNAVAILABLE);
}

static int send_setup(struct vm *vm, enum msg_type type, bool run, struct vm_fds *fds, vm_done_fn *done,
		      void *arg, struct api_err *err)
{
	static struct msg_setup setup; // the loop's thread only
	int list[VM_FDS_MAX];
	setup = (struct msg_setup){ .cfg = vm->cfg,
				    .run = run,
				    .lazy = lazy_clone_waits(vm),
				    .shell = vm->shell,
				    .record_limit_ms = vm->record.limit_ms,
				    .orphan_s = vm->srv->orphan_s };
	memcpy(setup.snapshot_id, vm->from_snapshot_id, sizeof setup.snapshot_id);
	int r = vmrec_listen(vm, fds, err);
	if (r)
		return r;
	unsigned n = vm_fds_pack(fds, list, &setup.fd_mask);
	r = metadata_send_first(vm, err);
	return r ? r
		 : vm_call(vm, type, &msg_setup_table, &setup, list, n, LOAD_TIMEOUT_MS,
			   type == MSG_BOOT ? "boot" : "restore", done, arg, err);
}

static int adopt_process(struct vm *vm, struct vm_process *p, enum msg_type type, bool run,
			 struct vm_fds *fds, vm_done_fn *done, void *arg, struct api_err *err)
{
	vm->socket = MV_TAKE_FD(p->socket);
	vm->pidfd = MV_TAKE_FD(p->pidfd);
	vm->pid = p->pid;
	int r = send_setup(vm, type, run, fds, done, arg, err);
	return r ? r : watch(vm, err);
}

// The message is sent before the process is started: it finds it at once, however long
// this one is off the CPU.
static int start_process(struct vm *vm, enum msg_type type, bool run, struct vm_fds *fds, vm_done_fn *done,
			 void *arg, struct api_err *err)
{
	struct mv_err e = { 0 };
	struct vm_process spare;
	MV_FD theirs = -1;
	if (!vm->policy.has_limits && spare_take(vm->srv, &spare)) // else: it would be in our cgroup
		return adopt_process(vm, &spare, type, run, fds, done, arg, err);
	if (spawn_socket(&vm->socket, &theirs, &e))
		return api_from(err, &e, API_INTERNAL);
	int r = send_setup(vm, type, run, fds, done, arg, err);
	r = r ? r : make_cgroup(vm, err);
	if (!r)
		vm->starting = (struct spawn_job){ .s = vm->srv,
						   .theirs = MV_TAKE_FD(theirs),
						   .cgroup_fd = vm->cgroup.fd,
						   .done = on_started };
	return r;
}

// After one of the two above.
static int started(struct vm *vm, struct vm_fds *fds, int r, struct api_err *err)
{
	vm_fds_close(fds);
	if (!r && (lifetime_reserve(vm->srv, vm) || (vm->pid && !tsearch(vm, &vm->srv->by_pid, by_pid))))
		r = api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	if (!r) {
		vm->srv->n_live++;
		vm_ref(vm); // the process's, until finish()
		if (vm->starting.theirs >= 0)
			spawner_start(&vm->starting);
		return 0;
	}
	abandon_process(vm);
	mv_close(&vm->starting.theirs);
	vmrec_remove(vm);
	if (vm->owns_sockets)
		vmfds_unlink(&vm->cfg);
	vm->owns_sockets = false;
	layers_remove(vm);
	usernet_end(vm);
	return r;
}

int vm_launch(struct vm *vm, enum msg_type type, bool run, struct vm_fds *fds, vm_done_fn *done, void *arg,
	      struct api_err *err)
{
	vm->owns_sockets = fds->vsock >= 0 || fds->console[0] >= 0;
	return started(vm, fds, start_process(vm, type, run, fds, done, arg, err), err);
}

int vm_adopt(struct vm *vm, struct vm_process *p, bool run, struct vm_fds *fds, vm_done_fn *done, void *arg,
	     struct api_err *err)
{
	vm->owns_sockets = fds->vsock >= 0 || fds->console[0] >= 0;
	return started(vm, fds, adopt_process(vm, p, MSG_RESTORE, run, fds, done, arg, err), err);
}

int vm_attach(struct vm *vm, struct vm_process *p, vm_done_fn *done, void *arg, struct api_err *err)
{
	static struct msg_adopt body; // the loop's thread only
	int r = 0;
	vm->socket = MV_TAKE_FD(p->socket);
	vm->pidfd = MV_TAKE_FD(p->pidfd);
	vm->pid = p->pid;
	body = (struct msg_adopt){ .orphan_s = vm->srv->orphan_s };
	memcpy(body.id, vm->cfg.id, sizeof body.id);
	if (tfind(vm, &vm->srv->by_pid, by_pid))
		r = api_fail(err, API_INTERNAL, "another VM has process %d", (int)vm->pid);
	r = r ? r
	      : vm_call(vm, MSG_ADOPT, &msg_adopt_table, &body, NULL, 0, ADOPT_TIMEOUT_MS, "adopt", done, arg,
			err);
	r = r ? r : watch(vm, err);
	if (!r && !tsearch(vm, &vm->srv->by_pid, by_pid))
		r = api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	if (r) {
		vm->pid = 0; // not to be killed
		abandon_process(vm);
		return r;
	}
	vm->srv->n_live++;
	vm_ref(vm); // the process's, until finish()
	return 0;
}
