// SPDX-License-Identifier: Apache-2.0
// Theory of operation. While it is to be parked, a timer looks at the CPU time of the vCPU threads. Did none
// of them run between two looks, they are stopped and asked whether they wait (arch_vcpu_waits()). Then the
// irqfds are taken off: what was signalled before is in the interrupt controllers when that returns, what
// comes later stays in the eventfds. Now the state is saved, and everything of KVM's closed.
//
// Waking makes the VM as a restore does, in its order (memory slots first), but with the same devices, and
// neither generation ID nor anything else of its identity changes. Last come the irqfds; what was left in an
// eventfd is signalled again, since KVM delivers what it finds there but leaves it for the next time.
#include "microvm/park.h"

#include <errno.h>
#include <malloc.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "microvm/base/log.h"
#include "microvm/kvm.h"
#include "microvm/save.h"
#include "microvm/vcpu.h"
#include "snapshot/codec.h"

#define NS_PER_MS 1000000ull
// A guest that will wake by itself sooner is not parked: it would have its VM back before that pays.
#define WORTH_NS (50 * NS_PER_MS)
// The VM is made again this long before the guest's timer is due, which then is KVM's again.
#define EARLY_NS (2 * NS_PER_MS)
#define STACK_BYTES (128u << 10)
#define STACK_KEPT_PAGES 2
#define TELL_NS (1000 * NS_PER_MS) // between two tellings to the daemon

_Static_assert(PARK_IRQS == 1 + VM_MAX_DEVICES, "a watch for each interrupt");

static unsigned n_irqs(const struct vm *vm) { return 1 + vm->n_devs; }

static int irq_fd(const struct vm *vm, unsigned i) { return i ? vm->dev[i - 1]->irq_fd : vm->serial.irq_fd; }

static uint32_t irq_gsi(unsigned i) { return i ? arch_device_gsi(i - 1) : arch_serial_gsi(); }

static void arm(struct vm *vm)
{
	struct park *p = &vm->park;
	uint64_t now = mv_now_ns(), next = UINT64_MAX;
	if (!p->parked && p->idle_ms)
		next = now + p->idle_ms * NS_PER_MS;
	else if (p->parked && vm->state == VM_RUNNING && p->due_ns != UINT64_MAX)
		next = p->due_ns - EARLY_NS;
	if (p->untold && p->told_ns + TELL_NS < next)
		next = p->told_ns + TELL_NS;
	if (next == UINT64_MAX)
		mv_timer_disarm(&p->timer);
	else
		mv_timer_arm(&p->timer, next > now ? next - now : 0);
}

static void tell(struct vm *vm)
{
	struct park *p = &vm->park;
	uint64_t now = mv_now_ns();
	if (!p->untold || now - p->told_ns < TELL_NS)
		return;
	p->told_ns = now;
	p->untold = false;
	vm->on_parked(vm);
}

void park_tell_again(struct vm *vm)
{
	if (!vm->park.timer.watch.loop)
		return; // nothing to tell
	vm->park.untold = true;
	vm->park.told_ns = 0;
	arm(vm);
}

// --- interrupts while KVM has none ------------------------------------------------------------
static void on_irq(void *arg, uint32_t events)
{
	struct mv_err ignored; // the VM ends by it
	(void)events;
	park_wake(arg, PARK_WOKEN_BY_DEVICE, &ignored);
}

static void unwatch(struct vm *vm)
{
	for (unsigned i = 0; i < PARK_IRQS; i++)
		mv_watch_del(&vm->park.irq[i]);
}

static int watch(struct vm *vm, struct mv_err *err)
{
	for (unsigned i = 0; i < n_irqs(vm); i++) {
		int r = mv_watch_add(&vm->loop, &vm->park.irq[i], irq_fd(vm, i), EPOLLIN, on_irq, vm);
		if (r)
			return mv_fail(err, -r, "cannot watch an interrupt: %s", strerror(-r));
	}
	return 0;
}

// Before Linux 5.11 KVM leaves in the eventfd what it has delivered.
static int irqs_off(struct vm *vm, struct mv_err *err)
{
	int r = 0;
	for (unsigned i = 0; r >= 0 && i < n_irqs(vm); i++) {
		eventfd_t delivered;
		eventfd_read(irq_fd(vm, i), &delivered);
		r = kvm_irqfd_off(vm->vm_fd, irq_fd(vm, i), irq_gsi(i), err);
	}
	return r < 0 ? r : 0;
}

static int irqs_on(struct vm *vm, struct mv_err *err)
{
	bool due[PARK_IRQS];
	int r = 0;
	for (unsigned i = 0; i < n_irqs(vm); i++) {
		eventfd_t n;
		due[i] = !eventfd_read(irq_fd(vm, i), &n);
	}
	for (unsigned i = 0; r >= 0 && i < n_irqs(vm); i++) {
		r = kvm_irqfd(vm->vm_fd, irq_fd(vm, i), irq_gsi(i), err);
		if (due[i])
			eventfd_write(irq_fd(vm, i), 1);
	}
	return r < 0 ? r : 0;
}

// --- parking ----------------------------------------------------------------------------------
// Do all vCPUs wait, and how long until the first timer of theirs?
static int all_wait(struct vm *vm, bool *ret_wait, uint64_t *ret_left_ns, struct mv_err *err)
{
	*ret_wait = true;
	*ret_left_ns = UINT64_MAX;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		bool waits;
		uint64_t left;
		int r = arch_vcpu_waits(&vm->vcpu[i], &waits, &left, err);
		if (r)
			return r;
		*ret_wait = *ret_wait && waits && left >= WORTH_NS;
		*ret_left_ns = left < *ret_left_ns ? left : *ret_left_ns;
	}
	return 0;
}

static int keep_state(struct vm *vm, struct mv_err *err)
{
	struct park *p = &vm->park;
	MV_BUF state = { 0 };
	MV_FREE void *scratch = malloc(codec_state_bytes());
	int r = arch_park(vm, err);
	r = r ? r : saved_vm_kvm_state(vm, &state, err);
	if (r)
		return r;
	p->state = (struct mv_buf){ .p = malloc(codec_bound(state.len)) };
	if (scratch && p->state.p)
		p->state.len = codec_compress(scratch, false, state.p, state.len, p->state.p,
					      codec_bound(state.len));
	uint8_t *fits = p->state.len ? realloc(p->state.p, p->state.len) : NULL;
	if (!fits)
		return mv_fail(err, ENOMEM, "out of memory");
	p->state.p = fits;
	p->state_bytes = (uint32_t)state.len;
	return 0;
}

static void close_kvm(struct vm *vm)
{
	vcpus_end(vm); // they are stopped, so none waits for our lock
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		vcpu_close(&vm->vcpu[i]);
	mv_close(&vm->vm_fd);
}

// The vCPUs are stopped. 1: parked; 0: it has something to do after all.
static int try_park(struct vm *vm, struct mv_err *err)
{
	struct park *p = &vm->park;
	uint64_t left;
	int r = all_wait(vm, &p->waits, &left, err);
	if (r || (vm->state == VM_RUNNING && !p->waits))
		return r;
	r = irqs_off(vm, err);
	// Again: now it is certain that no interrupt is on its way.
	r = r ? r : all_wait(vm, &p->waits, &left, err);
	bool park = !r && (p->waits || vm->state == VM_PAUSED);
	if (park)
		r = keep_state(vm, err);
	if (!r && park)
		r = dirty_keep_log(&vm->dirty, &vm->mem, vm->vm_fd, err);
	if (!r && park && vm->state == VM_RUNNING)
		r = watch(vm, err);
	if (!r && park) {
		p->since_ns = mv_now_ns();
		p->due_ns = left == UINT64_MAX ? left : p->since_ns + left;
		p->parked = true;
		p->stats.parked = true;
		p->stats.parks++;
		close_kvm(vm);
		return 1;
	}
	unwatch(vm);
	mv_buf_fini(&p->state);
	struct mv_err why;
	if (irqs_on(vm, &why)) // it has no interrupts any more
		vm_request_exit(vm, VM_EXIT_KVM_ERROR, why.msg);
	return r;
}

// The heap's end, and what of the main thread's stack was used by something deeper than this. Below it
// nothing else is mapped: the kernel keeps a gap there.
static void shrink(void)
{
	uint32_t page_bytes = mv_host_page_bytes();
	uintptr_t top = mv_align_up((uintptr_t)__builtin_frame_address(0), page_bytes) -
			STACK_KEPT_PAGES * page_bytes;
	madvise((void *)(top - STACK_BYTES), STACK_BYTES, MADV_DONTNEED); // -ENOMEM: where it never grew to
	malloc_trim(0);
}

static void look(struct vm *vm)
{
	struct park *p = &vm->park;
	struct mv_err err;
	uint64_t cpu_ns = vcpus_cpu_ns(vm);
	bool ran = cpu_ns != p->cpu_ns;
	p->cpu_ns = cpu_ns;
	// One that never ran is loaded in a state of its own: its clock is yet to be set.
	if (ran || !vm->times.running || (vm->state != VM_RUNNING && vm->state != VM_PAUSED))
		return;
	bool running = vm->state == VM_RUNNING;
	if (running)
		vcpus_stop(vm);
	if (vm->exit_reason != VM_EXIT_NONE)
		return;
	int r = try_park(vm, &err);
	if (r < 0)
		mv_log_limited(MV_WARN, "vm %s: not parked: %s", vm->cfg.name, err.msg);
	if (r <= 0 && running)
		vcpus_run(vm);
	if (r <= 0)
		return;
	p->untold = true;
	shrink();
}

static void on_timer(void *arg)
{
	struct vm *vm = arg;
	struct park *p = &vm->park;
	struct mv_err ignored; // the VM ends by it
	if (vm->state == VM_EXITED)
		return;
	if (!p->parked && p->idle_ms)
		look(vm);
	else if (p->parked && vm->state == VM_RUNNING && p->due_ns - EARLY_NS <= mv_now_ns())
		park_wake(vm, PARK_WOKEN_BY_TIMER, &ignored);
	tell(vm);
	arm(vm);
}

int park_set(struct vm *vm, uint32_t idle_ms, struct mv_err *err)
{
	struct park *p = &vm->park;
	if (vm->shell || (vm->state != VM_RUNNING && vm->state != VM_PAUSED && vm->state != VM_CREATED))
		return mv_fail(err, EBUSY, "the VM is %s", vm_state_name(vm->state));
	int r = arch_park_check(vm, err);
	if (!r && !p->timer.watch.loop && (r = mv_timer_init(&vm->loop, &p->timer, on_timer, vm)))
		mv_fail(err, -r, "no timer: %s", strerror(-r));
	if (r)
		return r;
	p->idle_ms = idle_ms;
	arm(vm);
	return 0;
}

// --- waking -----------------------------------------------------------------------------------
static int make_kvm(struct vm *vm, struct mv_err *err)
{
	MV_BUF state = { 0 };
	vm->vm_fd = kvm_create_vm(vm->kvm_fd, err);
	if (vm->vm_fd < 0)
		return -err->code;
	int r = park_state(&vm->park, &state, err);
	if (r || (r = kvm_set_memory(vm->vm_fd, &vm->mem, vm->cfg.track_dirty, err)) < 0 ||
	    (r = arch_vm_init(vm, err)) < 0)
		return r;
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if ((r = vcpu_open(vm, i, err)))
			return r;
	r = arch_vcpus_made(vm, err);
	r = r ? r : saved_vm_kvm_load(vm, state.p, state.len, err);
	r = r ? r : arch_unpark(vm, err);
	for (unsigned i = 0; !r && i < vm->n_devs; i++)
		r = vm_wire_kicks(vm, i, err);
	r = r ? r : irqs_on(vm, err);
	return r ? r : vcpus_start(vm, err);
}

int park_wake(struct vm *vm, enum park_cause why, struct mv_err *err)
{
	struct park *p = &vm->park;
	uint64_t start = mv_now_ns();
	if (!p->parked)
		return 0;
	unwatch(vm);
	int r = make_kvm(vm, err);
	p->parked = p->stats.parked = false;
	mv_buf_fini(&p->state);
	if (r) {
		mv_wrap(err, "it was parked and can't be woken");
		vm_request_exit(vm, VM_EXIT_KVM_ERROR, err->msg);
		return r;
	}
	if (vm->state == VM_RUNNING)
		vcpus_run(vm);
	uint64_t end = mv_now_ns(), took = end - start;
	struct msg_parking *s = &p->stats;
	s->wakes[why]++;
	s->parked_ns += start - p->since_ns;
	s->wake_ns += took;
	s->wake_last_ns = took;
	s->wake_max_ns = took > s->wake_max_ns ? took : s->wake_max_ns;
	p->cpu_ns = 0; // of other threads now
	p->untold = true;
	tell(vm);
	arm(vm);
	return 0;
}

void park_pause(struct vm *vm)
{
	if (!vm->park.parked)
		return;
	unwatch(vm);
	arm(vm);
}

// The state is still VM_PAUSED.
int park_resume(struct vm *vm, struct mv_err *err)
{
	struct park *p = &vm->park;
	if (!p->parked)
		return 0;
	if (!p->waits)
		return park_wake(vm, PARK_WOKEN_BY_REQUEST, err);
	mv_timer_arm(&p->timer, 0); // plans anew, when it runs
	return watch(vm, err);
}

int park_state(const struct park *p, struct mv_buf *out, struct mv_err *err)
{
	MV_FREE uint8_t *state = malloc(p->state_bytes);
	if (!state)
		return mv_fail(err, ENOMEM, "out of memory");
	if (codec_decompress(p->state.p, p->state.len, state, p->state_bytes))
		return mv_fail(err, EIO, "the state of a parked VM is damaged");
	mv_buf_append(out, state, p->state_bytes);
	return out->failed ? mv_fail(err, ENOMEM, "out of memory") : 0;
}

void park_fini(struct vm *vm)
{
	unwatch(vm);
	mv_timer_fini(&vm->park.timer);
	mv_buf_fini(&vm->park.state);
}
