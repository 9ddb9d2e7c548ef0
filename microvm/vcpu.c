// SPDX-License-Identifier: Apache-2.0
// A vCPU thread alternates between KVM_RUN and the handling of its exits. To stop it,
// the loop sets kvm_run->immediate_exit and sends a signal: KVM_RUN then completes the
// access of the last exit and returns EINTR (KVM API 4.10, "immediate_exit"). Only after
// an EINTR does the thread look whether it is to stop, so a stopped vCPU has no
// half-done access.
#include "microvm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "microvm/base/log.h"
#include "microvm/kvm.h"

#define KICK_SIGNAL SIGUSR1
// Small enough to lie beside other mappings: libc's 8 MiB have page tables of their own.
#define STACK_BYTES (256u << 10)
#define CLAIM_STACK_BYTES (10u << 10)

static void on_kick(int signal_number)
{
	(void)signal_number; // its arrival is enough
}

void vcpu_setup_signal(void)
{
	struct sigaction sa = { .sa_handler = on_kick };
	sigaction(KICK_SIGNAL, &sa, NULL);
}

int vcpu_open(struct vm *vm, unsigned index, struct mv_err *err)
{
	struct vcpu *c = &vm->vcpu[index];
	int bytes = kvm_run_bytes(vm->kvm_fd);
	if (bytes < 0)
		return mv_fail(err, -bytes, "KVM_GET_VCPU_MMAP_SIZE: %s", strerror(-bytes));
	c->vm = vm;
	c->index = index;
	c->stopped = true;
	c->fd = kvm_create_vcpu(vm->vm_fd, index, err);
	if (vm->n_vcpus <= index)
		vm->n_vcpus = index + 1;
	if (c->fd < 0)
		return -err->code;
	// Populated: each of its pages would be a fault just before the guest runs, or at its first exit.
	void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, c->fd, 0);
	if (p == MAP_FAILED)
		return mv_fail(err, errno, "vCPU %u: %s", index, strerror(errno));
	madvise(p, (size_t)bytes, MADV_DONTFORK); // this VM's, not that of a forked process
	c->run = p;
	c->run_bytes = (size_t)bytes;
	return arch_vcpu_init(c, err);
}

void vcpu_close(struct vcpu *c)
{
	if (c->run)
		munmap(c->run, c->run_bytes);
	c->run = NULL;
	mv_close(&c->fd);
}

// Waits, stopped, until the vCPU is to run (true) or to end (false). In a VM that is ending
// nobody runs any more: what the guest would do next is not of the machine that ended.
static bool wait_for_run(struct vcpu *c)
{
	struct vm *vm = c->vm;
	pthread_mutex_lock(&vm->run_lock);
	while ((!vm->run_vcpus || __atomic_load_n(&vm->exit_reason, __ATOMIC_RELAXED) != VM_EXIT_NONE) &&
	       !vm->end_vcpus) {
		if (!c->stopped) {
			c->stopped = true;
			pthread_cond_broadcast(&vm->changed);
		}
		pthread_cond_wait(&vm->changed, &vm->run_lock);
	}
	bool run = !vm->end_vcpus;
	c->stopped = !run;
	c->run->immediate_exit = 0;
	pthread_mutex_unlock(&vm->run_lock);
	return run;
}

void vcpu_times(struct vm *vm)
{
	const struct vcpu *c = &vm->vcpu[0];
	uint64_t entered = __atomic_load_n(&c->entered_ns, __ATOMIC_RELAXED);
	if (entered)
		vm->times.running = entered;
	vm->times.first_exit = __atomic_load_n(&c->left_ns, __ATOMIC_RELAXED);
}

static void request_exit(struct vcpu *c, enum vm_exit reason, const char *detail)
{
	mv_loop_lock(&c->vm->loop);
	vm_request_exit(c->vm, reason, detail);
	mv_loop_unlock(&c->vm->loop);
}

// A guest's port or memory access: the first one is a milestone that clients wait for.
static void note_first_io(struct vm *vm)
{
	if (__atomic_load_n(&vm->io_seen, __ATOMIC_RELAXED))
		return;
	mv_loop_lock(&vm->loop);
	if (!vm->io_seen) {
		uint64_t one = 1;
		vcpu_times(vm);
		vm->times.first_io = mv_now_ns();
		__atomic_store_n(&vm->io_seen, true, __ATOMIC_RELAXED); // looked at without the lock
		ssize_t ignored = write(vm->notify_fd, &one, sizeof one);
		(void)ignored;
	}
	mv_loop_unlock(&vm->loop);
}

static void on_mmio(struct vcpu *c)
{
	struct kvm_run *run = c->run;
	note_first_io(c->vm);
	mv_loop_lock(&c->vm->loop);
	vm_mmio(c->vm, run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write);
	mv_loop_unlock(&c->vm->loop);
}

// One writer, so no atomic addition: the store is only not to be torn.
static void count_exit(struct vcpu *c)
{
	uint64_t *n = &c->exits.other;
	switch (c->run->exit_reason) {
	case KVM_EXIT_MMIO: n = &c->exits.mmio; break;
	case KVM_EXIT_IO: n = &c->exits.io; break;
	case KVM_EXIT_HLT: n = &c->exits.hlt; break;
	}
	__atomic_store_n(n, *n + 1, __ATOMIC_RELAXED);
}

struct msg_exits vcpu_exits(const struct vcpu *c)
{
	return (struct msg_exits){ .mmio = __atomic_load_n(&c->exits.mmio, __ATOMIC_RELAXED),
				   .io = __atomic_load_n(&c->exits.io, __ATOMIC_RELAXED),
				   .hlt = __atomic_load_n(&c->exits.hlt, __ATOMIC_RELAXED),
				   .other = __atomic_load_n(&c->exits.other, __ATOMIC_RELAXED) };
}

// True: go on running.
static bool on_exit_reason(struct vcpu *c)
{
	struct kvm_run *run = c->run;
	char text[100];

	switch (run->exit_reason) {
	case KVM_EXIT_MMIO: on_mmio(c); return true;
	case KVM_EXIT_IO: note_first_io(c->vm); return arch_vcpu_exit(c);
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN: return true;
	case KVM_EXIT_SHUTDOWN: request_exit(c, VM_EXIT_TRIPLE_FAULT, ""); return false;
	case KVM_EXIT_FAIL_ENTRY:
		snprintf(text, sizeof text, "vCPU %u: KVM_EXIT_FAIL_ENTRY, hardware reason 0x%llx", c->index,
			 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		snprintf(text, sizeof text, "vCPU %u: KVM_EXIT_INTERNAL_ERROR, suberror %u", c->index,
			 run->internal.suberror);
		break;
	default:
		if (arch_vcpu_exit(c))
			return true;
		snprintf(text, sizeof text, "vCPU %u: unexpected KVM exit %u", c->index, run->exit_reason);
	}
	request_exit(c, VM_EXIT_KVM_ERROR, text);
	return false;
}

// A claim goes deeper into the stack than the wait for it: not by faults while somebody waits.
static void __attribute__((noinline)) touch_stack(void)
{
	volatile char deep[CLAIM_STACK_BYTES];
	for (size_t i = 0; i < sizeof deep; i += GMEM_PAGE_BYTES) // a host page at most
		deep[i] = 0;
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *c = arg;
	char name[16];
	snprintf(name, sizeof name, "vcpu%u", c->index);
	pthread_setname_np(pthread_self(), name);

	if (c->takes_claim) {
		touch_stack();
		mv_loop_borrow(&c->vm->loop);
	}
	bool go = wait_for_run(c), first = !c->left_ns;
	if (go && first)
		__atomic_store_n(&c->entered_ns, mv_now_ns(), __ATOMIC_RELAXED);
	while (go) {
		int r = ioctl(c->fd, KVM_RUN, 0);
		if (first)
			__atomic_store_n(&c->left_ns, mv_now_ns(), __ATOMIC_RELAXED);
		first = false;
		if (r == 0) {
			count_exit(c);
			// The VM is ending: wait for the order to end, as if stopped.
			if (!on_exit_reason(c))
				go = wait_for_run(c);
		} else if (errno == EINTR) {
			count_exit(c);
			if (__atomic_load_n(&c->run->immediate_exit, __ATOMIC_RELAXED))
				go = wait_for_run(c);
		} else if (errno != EAGAIN) {
			char text[100];
			snprintf(text, sizeof text, "vCPU %u: KVM_RUN: %s", c->index, strerror(errno));
			request_exit(c, VM_EXIT_KVM_ERROR, text);
			go = wait_for_run(c);
		}
	}
	return NULL;
}

static int start_thread(struct vcpu *c, struct mv_err *err)
{
	pthread_attr_t attr;
	size_t guard = mv_host_page_bytes();
	// Our own, with a page of guard below: libc keeps those of ended threads, and a parked VM would keep
	// 8 KiB.
	c->takes_claim = c->vm->shell && !c->index;
	c->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK,
			-1, 0);
	int e = c->stack == MAP_FAILED || mprotect(c->stack, guard, PROT_NONE) ? errno : 0;
	pthread_attr_init(&attr);
	if (!e)
		e = pthread_attr_setstack(&attr, c->stack + guard, STACK_BYTES - guard);
	if (!e)
		e = pthread_create(&c->thread, &attr, vcpu_thread, c);
	pthread_attr_destroy(&attr);
	if (e && c->stack != MAP_FAILED)
		munmap(c->stack, STACK_BYTES);
	if (e)
		return mv_fail(err, e, "cannot start the thread of vCPU %u: %s", c->index, strerror(e));
	c->has_thread = true;
	return 0;
}

int vcpus_start(struct vm *vm, struct mv_err *err)
{
	int r = 0;
	// Of a warm VM: it waits already. That of a shell has more to do.
	if (vm->shell)
		vcpus_end(vm);
	vm->end_vcpus = false;
	for (unsigned i = 0; !r && i < vm->n_vcpus; i++)
		r = vm->vcpu[i].has_thread ? 0 : start_thread(&vm->vcpu[i], err);
	return r;
}

// A timer that expires is a count that KVM_RUN makes an interrupt of. So it is called with a signal pending,
// which it lets in (4.25): it looks at timers before it looks at signals, and then returns.
int vcpu_settle(struct vcpu *c, struct mv_err *err)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t blocked;
	} mask = { .head.len = sizeof mask.blocked, .blocked = ~(1ULL << (KICK_SIGNAL - 1)) };
	sigset_t kick, before;
	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &kick, &before);
	pthread_kill(pthread_self(), KICK_SIGNAL);
	int r = kvm_call(c->fd, KVM_SET_SIGNAL_MASK, &mask, "KVM_SET_SIGNAL_MASK", err);
	c->run->immediate_exit = 0;
	if (r >= 0 && (ioctl(c->fd, KVM_RUN, 0) == 0 || errno != EINTR))
		r = mv_fail(err, EIO, "vCPU %u: did not stand still", c->index);
	if (r >= 0)
		r = kvm_call(c->fd, KVM_SET_SIGNAL_MASK, NULL, "KVM_SET_SIGNAL_MASK", err);
	sigtimedwait(&kick, NULL, &(struct timespec){ 0 });
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r < 0 ? r : 0;
}

uint64_t vcpus_cpu_ns(const struct vm *vm)
{
	uint64_t ns = 0;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct timespec t;
		clockid_t clock;
		if (vm->vcpu[i].has_thread && !pthread_getcpuclockid(vm->vcpu[i].thread, &clock) &&
		    !clock_gettime(clock, &t))
			ns += (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	}
	return ns;
}

void vcpus_run(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->run_vcpus = true;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->run_lock);
}

static void kick_all(struct vm *vm)
{
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct vcpu *c = &vm->vcpu[i];
		if (!c->has_thread || c->stopped)
			continue;
		__atomic_store_n(&c->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		pthread_kill(c->thread, KICK_SIGNAL);
	}
}

static bool all_stopped(const struct vm *vm)
{
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpu[i].has_thread && !vm->vcpu[i].stopped)
			return false;
	return true;
}

void vcpus_stop(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->run_vcpus = false;
	kick_all(vm);
	bool stopped = all_stopped(vm);
	pthread_mutex_unlock(&vm->run_lock);
	if (stopped)
		return;
	mv_loop_unlock(&vm->loop);
	pthread_mutex_lock(&vm->run_lock);
	while (!all_stopped(vm))
		pthread_cond_wait(&vm->changed, &vm->run_lock);
	pthread_mutex_unlock(&vm->run_lock);
	mv_loop_lock(&vm->loop);
}

void vcpus_end(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->end_vcpus = true;
	vm->run_vcpus = false;
	kick_all(vm);
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->run_lock);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct vcpu *c = &vm->vcpu[i];
		if (!c->has_thread)
			continue;
		pthread_join(c->thread, NULL);
		munmap(c->stack, STACK_BYTES);
		c->has_thread = false;
	}
}

void vcpus_forget(struct vm *vm)
{
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpu[i].has_thread)
			munmap(vm->vcpu[i].stack, STACK_BYTES);
}
