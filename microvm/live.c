// SPDX-License-Identifier: Apache-2.0
#include "microvm/live.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices/devices.h"
#include "microvm/base/progress.h"
#include "microvm/lazy.h"
#include "microvm/save.h"
#include "snapshot/chunk.h"
#include "snapshot/format.h"
#include "snapshot/memory.h"

#define CHILD_NICE 5 // the VM goes first

// The child's descriptors, after all others are closed: a lock, tap or socket of the VM must
// not live on in here.
enum { FD_STATE = 3, FD_MEMORY, FD_RESULT, FD_PROGRESS, FD_END };

// progress_fd: -1: none
static void keep_only(int state_fd, int memory_fd, int result_fd, int progress_fd)
{
	const int from[] = { state_fd, memory_fd, result_fd, progress_fd };
	int high[MV_ARRAY_LEN(from)];
	// Twice, since the sources may sit on the targets.
	for (size_t i = 0; i < MV_ARRAY_LEN(from); i++)
		high[i] = fcntl(from[i], F_DUPFD, FD_END);
	for (size_t i = 0; i < MV_ARRAY_LEN(from); i++)
		if (dup2(high[i], FD_STATE + (int)i) < 0)
			close(FD_STATE + (int)i);
	close_range(FD_END, ~0u, 0);
}

// No userfaultfd in here: what a lazily loaded VM lacks is not touched. It was never written, so
// it is not in the set either, but for what a device gave back unwritten.
static int write_changed(struct vm *vm, uint32_t kind, struct live_result *result, struct mv_err *err)
{
	struct dirty *d = &vm->dirty;
	bool raw = kind == SNAP_MEMORY_RAW;
	int r = raw ? dirty_complete(d, &vm->mem, err) : 0;
	// A page handler's memory was loaded whole, by the full snapshot before or for this one.
	if (!r && d->set && vm->uffd_fd >= 0 && d->from_file)
		r = dirty_keep_private(d->set, &vm->mem, err);
	if (!r && raw)
		return snap_memory_write_changed(FD_MEMORY, &vm->mem, d->set, &result->memory_bytes,
						 &result->memory_data_bytes, err);
	r = r ? r
	      : chunk_write_changed(FD_MEMORY, &vm->mem, d->set, kind == SNAP_MEMORY_LZ4_HIGH, 0,
				    &result->memory_bytes, err);
	result->memory_data_bytes = result->memory_bytes;
	return r;
}

// Whoever asked reads the file. What can't be had is not told: the snapshot is what counts.
static void tell_progress(void)
{
	void *p = mmap(NULL, sizeof(struct mv_progress), PROT_READ | PROT_WRITE, MAP_SHARED, FD_PROGRESS, 0);
	if (p != MAP_FAILED)
		mv_progress_set(p);
}

// What is to be written, and to where.
struct split {
	struct live_snapshot *s;
	struct vm *vm;
	const int *fds; // as MSG_SNAPSHOT has them
	unsigned n_own; // of these, before those of layers
	const struct msg_snapshot *how;
};

static int copy_layers(const struct split *w, struct mv_err *err)
{
	int r = 0;
	for (uint32_t i = 0, k = w->n_own; !r && i < w->vm->cfg.n_drives; i++)
		if (w->vm->cfg.drive[i].layer != VMCFG_LAYER_NONE)
			r = vio_blk_copy_layers(w->vm->dev[i], dup(w->fds[k++]), err);
	return r;
}

static void __attribute__((noreturn))
child_main(const struct split *w, const struct mv_buf *state, int result_fd, pid_t parent)
{
	struct vm *vm = w->vm;
	const struct msg_snapshot *how = w->how;
	struct live_result result = { .state_bytes = state->len };
	struct mv_err err = { 0 };

	prctl(PR_SET_PDEATHSIG, SIGKILL); // a VM that is killed takes its unfinished snapshot along
	prctl(PR_SET_NAME, "snapshot");
	if (getppid() != parent)
		_exit(1);
	setpriority(PRIO_PROCESS, 0, CHILD_NICE);
	int r = how->copy_layers ? copy_layers(w, &err)
				 : 0; // with all the VM's descriptors, which it waits with
	keep_only(w->fds[0], w->fds[1], result_fd, how->progress ? w->fds[2] : -1);
	if (how->progress)
		tell_progress();
	r = r ? r : snap_container_write(FD_STATE, SNAP_MAGIC_STATE, state->p, state->len, &err);
	if (!r && how->incremental)
		r = write_changed(vm, how->lz4, &result, &err);
	else if (!r)
		r = snap_memory_write_as(how->lz4, FD_MEMORY, &vm->mem, &result.memory_bytes,
					 &result.memory_data_bytes, &err);
	result.code = -r;
	memcpy(result.text, err.msg, sizeof result.text);
	_exit(mv_write_full(FD_RESULT, &result, sizeof result) ? 1 : 0);
}

// The child has written its result, or has died.
static void finish(struct live_snapshot *s)
{
	struct live_result result = { 0 };
	int status = 0;
	size_t have = 0;
	ssize_t n;

	while (have < sizeof result) {
		n = read(s->result_fd, (char *)&result + have, sizeof result - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += (size_t)n;
	}
	mv_watch_del(&s->watch);
	mv_close(&s->result_fd);
	while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR)
		;
	bool died = have != sizeof result;
	bool lost_page = died ? WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS : result.code == EFAULT;
	if (lost_page && gmem_pages_pooled(s->vm->mem.pages)) {
		// The guest wrote a page and the pool had no other one: the kernel took the child's.
		result = (struct live_result){ .code = ENOBUFS };
		snprintf(
			result.text, sizeof result.text,
			"the host's huge pages ran out while the guest went on writing: pause the VM for its "
			"snapshot, or raise vm.nr_hugepages");
		have = sizeof result;
	}
	if (have != sizeof result) {
		result = (struct live_result){ .code = EIO };
		snprintf(result.text, sizeof result.text,
			 "the process that writes the snapshot died (status 0x%x)", (unsigned)status);
	}
	s->pid = 0;
	if (result.code)
		dirty_failed(&s->vm->dirty);
	s->done(s->arg, s, &result);
}

static void on_result(void *arg, uint32_t events)
{
	(void)events;
	finish(arg);
}

void live_finish(struct live_snapshot *s)
{
	if (s->pid)
		finish(s);
}

void live_abort(struct live_snapshot *s)
{
	if (!s->pid)
		return;
	kill(s->pid, SIGKILL);
	mv_watch_del(&s->watch);
	mv_close(&s->result_fd);
	waitpid(s->pid, NULL, 0);
	s->pid = 0;
	dirty_failed(&s->vm->dirty);
}

static int start_child(const struct split *w, const struct mv_buf *state, struct mv_err *err)
{
	struct live_snapshot *s = w->s;
	pid_t parent = getpid();
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return mv_fail(err, errno, "pipe: %s", strerror(errno));
	s->result_fd = fds[0];
	s->pid = fork();
	if (s->pid == 0)
		child_main(w, state, fds[1], parent);
	close(fds[1]);
	int r = 0;
	if (s->pid < 0) {
		r = mv_fail(err, errno, "cannot fork to freeze the VM's memory: %s; free memory, or pids",
			    strerror(errno));
		s->pid = 0;
	} else if ((r = mv_watch_add(&w->vm->loop, &s->watch, s->result_fd, EPOLLIN, on_result, s))) {
		mv_fail(err, -r, "event loop: %s", strerror(-r));
		live_abort(s);
	}
	if (r)
		mv_close(&s->result_fd);
	return r;
}

int live_freeze(struct vm *vm, bool whole, int *layer_fds, unsigned n_fds, live_split_fn *split, void *arg,
		struct live_pause *ret_pause, struct mv_err *err)
{
	bool was_running = vm->state == VM_RUNNING;
	MV_BUF state = { 0 };
	struct mv_err ignored;

	*ret_pause = (struct live_pause){ 0 };
	// The child has no userfaultfd: what is not there yet would be zeros to it.
	int r = whole && vm->uffd_fd >= 0 ? lazy_populate(&vm->mem, err) : 0;
	uint64_t start = mv_now_ns();
	r = r ? r : vm_pause(vm, err);
	if (r)
		return r;
	// A guest that was about to end (power off) is not worth a snapshot.
	if (vm->exit_reason != VM_EXIT_NONE)
		r = mv_fail(err, EBUSY, "the VM is ending");
	else if (layer_fds)
		r = vm_freeze(vm, layer_fds, n_fds, err);
	if (!r)
		r = saved_vm_state(vm, &state, err);
	// Before the fork: the child must not have a frozen layer mapped from a writable descriptor.
	ret_pause->layers_frozen = !r && layer_fds;
	vm_freeze_end(vm, !r);
	if (!r)
		r = split(arg, &state, err);
	if (was_running && vm->exit_reason == VM_EXIT_NONE) {
		int back = vm_run(vm, r ? &ignored : err);
		ret_pause->ns = mv_now_ns() - start;
		r = r ? r : back; // it does not run any more: so the copy is not wanted either
	}
	return r;
}

static int start_writer(void *arg, const struct mv_buf *state, struct mv_err *err)
{
	const struct split *w = arg;
	struct vm *vm = w->vm;
	// From here to the fork nothing writes guest memory; reading a vCPU's state may (steal time).
	int r = dirty_take(&vm->dirty, &vm->mem, vm->vm_fd, w->how->confirmed, err);
	if (!r && (r = start_child(w, state, err)))
		dirty_failed(&vm->dirty);
	return r;
}

int live_start(struct live_snapshot *s, struct vm *vm, int *fds, unsigned n_fds,
	       const struct msg_snapshot *how,
	       void (*done)(void *arg, const struct live_snapshot *s, const struct live_result *result),
	       void *arg, struct mv_err *err)
{
	if (s->pid)
		return mv_fail(err, EBUSY, "a snapshot of this VM is being written");
	*s = (struct live_snapshot){
		.done = done, .arg = arg, .result_fd = -1, .vm = vm, .copies_layers = how->copy_layers
	};
	const unsigned n_own = 2 + how->progress; // then those of layers
	struct split w = { s, vm, fds, n_own, how };
	if (how->copy_layers && vm->state != VM_PAUSED)
		return mv_fail(err, EBUSY, "the layers of a VM that is %s can't be copied",
			       vm_state_name(vm->state));
	unsigned wanted = n_own;
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		wanted += vm->cfg.drive[i].layer != VMCFG_LAYER_NONE;
	if (how->copy_layers && n_fds != wanted)
		return mv_fail(err, EPROTO, "a descriptor for a layer is missing");
	// Of a page handler's memory nobody can tell pages that were given back, which are zeros, from those
	// that were not loaded: so it is loaded for a raw file, whose first one may come before any full one.
	bool whole = !how->incremental || (!how->lz4 && !vm->dirty.from_file);
	int r = dirty_check(&vm->dirty, how, err);
	r = r ? r
	      : live_freeze(vm, whole, how->copy_layers ? NULL : fds + n_own, n_fds - n_own, start_writer, &w,
			    &s->pause, err);
	if (r)
		live_abort(s);
	return r;
}
