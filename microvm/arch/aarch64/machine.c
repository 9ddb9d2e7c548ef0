// SPDX-License-Identifier: Apache-2.0
// The arm64 machine around the CPUs: interrupt controller, serial port, clock, power, generation ID.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "a64.h"
#include "microvm/arch/arch.h"
#include "microvm/kvm.h"
#include "microvm/vmclock.h"

#define NS_PER_S 1000000000u

struct machine_state {
	uint32_t gic_version;
	uint64_t gic[A64_GIC_MAX_VALUES];
	uint32_t n_gic; // bytes
	struct a64_clock clock;
	struct pl031 rtc;
	struct pl061 gpio;
};

static const struct mv_field clock_fields[] = {
	MV_INT(struct a64_clock, hz, 1, MV_U64, 1, UINT32_MAX),
	MV_INT(struct a64_clock, counter, 2, MV_U64, 0, UINT64_MAX),
	MV_INT(struct a64_clock, real_ns, 3, MV_U64, 0, UINT64_MAX),
	MV_INT(struct a64_clock, phys_counter, 4, MV_U64, 0, UINT64_MAX),
	MV_FLAG(struct a64_clock, has_phys_counter, 5),
};
static MV_DEFINE_TABLE(clock_table, struct a64_clock, clock_fields);
static const struct mv_field machine_fields[] = {
	MV_INT(struct machine_state, gic_version, 1, MV_U32, 2, 3),
	MV_VAR(struct machine_state, gic, n_gic, 2),
	MV_SUB(struct machine_state, clock, 3, clock_table),
	MV_SUB(struct machine_state, rtc, 4, pl031_table),
	MV_OPT_SUB(struct machine_state, gpio, 5, pl061_table), // older machines have none
};
MV_DEFINE_TABLE(a64_machine_table, struct machine_state, machine_fields);

uint64_t arch_device_gpa(unsigned slot) { return A64_VIRTIO_MMIO + (uint64_t)slot * VIO_MMIO_BYTES; }

uint32_t arch_device_gsi(unsigned slot) { return A64_GSI_VIRTIO + slot; }

uint32_t arch_serial_gsi(void) { return A64_GSI_SERIAL; }

int arch_mem_layout(struct gmem *m, uint32_t mem_mib)
{
	uint64_t bytes = (uint64_t)mem_mib << 20;
	return bytes > A64_MAX_RAM_BYTES ? -E2BIG : gmem_add(m, A64_RAM, bytes);
}

uint64_t arch_file_gpa(const struct gmem *m)
{
	uint64_t end = m->region[0].gpa + m->region[0].size_bytes;
	if (m->n_files)
		end = m->file[m->n_files - 1].gpa + m->file[m->n_files - 1].size_bytes;
	return mv_align_up(end, A64_FILE_ALIGN);
}

int arch_vm_init(struct vm *vm, struct mv_err *err)
{
	struct kvm_enable_cap nisv = { .cap = KVM_CAP_ARM_NISV_TO_USER };
	int r = kvm_call(vm->vm_fd, KVM_ENABLE_CAP, &nisv, "KVM_CAP_ARM_NISV_TO_USER", err);
	return r < 0 ? r : a64_gic_create(vm, err);
}

void arch_vm_fini(struct vm *vm)
{
	if (vm->arch.gic_version)
		mv_close(&vm->arch.gic_fd);
	vm->arch.gic_version = 0;
	free(MV_TAKE(vm->arch.fresh));
}

int arch_boot(struct vm *vm, int kernel_fd, int initrd_fd, struct mv_err *err)
{
	uint64_t entry, fdt;
	if (vm->cfg.boot != VMCFG_BOOT_AUTO)
		return mv_fail(err, ENOTSUP, "boot: arm64 has one way to enter a kernel, \"auto\"");
	if (vm->cfg.discovery == VMCFG_CMDLINE)
		return mv_fail(err, ENOTSUP,
			       "discovery: arm64 guests find devices by the device tree; leave it out");
	if (vm->cfg.cpu.n_cpuid || vm->cfg.cpu.n_msrs)
		return mv_fail(err, ENOTSUP, "cpu: CPUID and MSRs are x86's; arm64 has no such bits to set");
	bool masked = vm->cfg.cpu.template != VMCFG_CPU_HOST || vm->cfg.cpu.n_disable;
	int r = masked ? a64_mask_features(vm, err) : 0;
	r = r ? r : a64_load_kernel(vm, kernel_fd, initrd_fd, &entry, &fdt, err);
	r = r ? r : a64_set_boot_registers(&vm->vcpu[0], entry, fdt, err);
	return r ? r : arch_new_generation(vm, false, err);
}

static uint64_t real_time_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static uint64_t counter_hz(void)
{
	uint64_t hz;
	__asm__("mrs %0, cntfrq_el0" : "=r"(hz));
	return hz;
}

static int get_clock(struct vm *vm, struct a64_clock *ret_clock, struct mv_err *err)
{
	struct a64_clock c = { .hz = counter_hz() };
	struct mv_err none;
	int r = a64_get_reg(&vm->vcpu[0], KVM_REG_ARM_TIMER_CNT, &c.counter, err);
	c.real_ns = real_time_ns();
	c.has_phys_counter = !a64_get_reg(&vm->vcpu[0], KVM_REG_ARM_PTIMER_CNT, &c.phys_counter, &none);
	if (!r)
		*ret_clock = c;
	return r;
}

// The counters, from which Linux takes all its time, are what they were and what passed since on the wall
// clock. Timers keep their values. KVM keeps one offset for all vCPUs, so the first one's is enough.
int arch_vm_catch_up(struct vm *vm, struct mv_err *err)
{
	const struct a64_clock *c = &vm->arch.clock;
	struct mv_err none;
	free(MV_TAKE(vm->arch.fresh)); // all vCPUs are loaded
	uint64_t now = real_time_ns(), passed_ns = now > c->real_ns ? now - c->real_ns : 0;
	uint64_t ticks = (uint64_t)((unsigned __int128)passed_ns * c->hz / NS_PER_S);
	int r = a64_set_reg(&vm->vcpu[0], KVM_REG_ARM_TIMER_CNT, c->counter + ticks, err);
	// Before Linux 6.4 guests see the host's own, and nothing can be done about it.
	if (!r && c->has_phys_counter)
		a64_set_reg(&vm->vcpu[0], KVM_REG_ARM_PTIMER_CNT, c->phys_counter + ticks, &none);
	return r;
}

// Nothing is there by which an arm64 guest could be told that it stood still.
void arch_vm_resume(struct vm *vm) { (void)vm; }

int arch_vm_save(struct vm *vm, struct mv_buf *out, struct mv_err *err)
{
	MV_FREE struct machine_state *s = calloc(1, sizeof *s);
	uint32_t n = A64_GIC_MAX_VALUES;
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = get_clock(vm, &s->clock, err);
	r = r ? r : a64_gic_save(vm, s->gic, &n, err);
	if (r)
		return r;
	s->gic_version = vm->arch.gic_version;
	s->n_gic = n * (uint32_t)sizeof s->gic[0];
	s->rtc = vm->arch.rtc;
	s->gpio = vm->arch.gpio;
	mv_state_save(&a64_machine_table, s, out);
	return 0;
}

int arch_vm_load(struct vm *vm, const void *bytes, size_t len, struct mv_err *err)
{
	MV_FREE struct machine_state *s = malloc(sizeof *s);
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&a64_machine_table, bytes, len, s, err);
	if (r)
		return r;
	if (s->n_gic % sizeof s->gic[0])
		return mv_fail(err, EINVAL, "damaged interrupt controller state");
	if (s->gic_version != vm->arch.gic_version)
		return mv_fail(err, ENOTSUP, "the snapshot's guest has a GICv%u, this host gives a GICv%u",
			       s->gic_version, vm->arch.gic_version);
	if (s->clock.hz != counter_hz())
		return mv_fail(err, ENOTSUP, "the snapshot's counter runs at %llu Hz, this host's at %llu Hz",
			       (unsigned long long)s->clock.hz, (unsigned long long)counter_hz());
	r = a64_gic_load(vm, s->gic, s->n_gic / (uint32_t)sizeof s->gic[0], err);
	if (r)
		return r;
	vm->arch.clock = s->clock;
	vm->arch.rtc = s->rtc;
	vm->arch.gpio = s->gpio;
	return 0;
}

// An edge on a shared interrupt (KVM API 4.25: their numbers begin at 32).
static int pulse(struct vm *vm, uint32_t gsi)
{
	return kvm_pulse_gsi(vm->vm_fd, KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (32 + gsi));
}

int arch_new_generation(struct vm *vm, bool notify, struct mv_err *err)
{
	uint8_t id[16];
	mv_random(id, sizeof id);
	if (gmem_write(&vm->mem, gpa(A64_GENERATION_ID), id, sizeof id))
		return mv_fail(err, EFAULT, "no guest memory at the generation ID's address");
	if (notify ? vmclock_restored(&vm->mem, gpa(A64_VMCLOCK))
		   : vmclock_boot(&vm->mem, gpa(A64_VMCLOCK), A64_VMCLOCK_BYTES))
		return mv_fail(err, EFAULT, "no guest memory at the address of VMCLOCK");
	int r = notify ? pulse(vm, A64_GSI_GENERATION) : 0;
	r = r || !notify ? r : pulse(vm, A64_GSI_VMCLOCK);
	return r ? mv_fail(err, -r, "KVM_IRQ_LINE: %s", strerror(-r)) : 0;
}

int arch_power_button(struct vm *vm, struct mv_err *err)
{
	if (!pl061_is_heard(&vm->arch.gpio))
		return mv_fail(err, ENOTSUP,
			       "the guest does not listen to its power button: its kernel needs the driver "
			       "gpio-keys, "
			       "which some kernels for clouds lack; power off in the guest, or use kill");
	int r = pl061_press(&vm->arch.gpio) ? pulse(vm, A64_GSI_GPIO) : 0;
	return r ? mv_fail(err, -r, "KVM_IRQ_LINE: %s", strerror(-r)) : 0;
}

int arch_ctrl_alt_del(struct vm *vm, struct mv_err *err)
{
	(void)vm;
	return mv_fail(err, ENOTSUP,
		       "the arm64 machine has no keyboard; power off in the guest, or use kill");
}

bool arch_mmio(struct vm *vm, uint64_t gpa_, void *data, uint32_t len, bool is_write)
{
	uint8_t *bytes = data;
	uint32_t word = 0;
	if (gpa_ >= A64_SERIAL && gpa_ - A64_SERIAL < 8) {
		if (is_write)
			serial_write(&vm->serial, (unsigned)(gpa_ - A64_SERIAL), bytes[0]);
		else {
			memset(data, 0, len);
			bytes[0] = serial_read(&vm->serial, (unsigned)(gpa_ - A64_SERIAL));
		}
		return true;
	}
	bool is_rtc = gpa_ >= A64_RTC && gpa_ - A64_RTC < A64_RTC_BYTES, irq = false;
	if (!is_rtc && (gpa_ < A64_GPIO || gpa_ - A64_GPIO >= A64_GPIO_BYTES))
		return false;
	size_t n = len < sizeof word ? len : sizeof word;
	uint64_t offset = gpa_ - (is_rtc ? A64_RTC : A64_GPIO);
	if (is_write) {
		memcpy(&word, data, n);
		if (is_rtc)
			pl031_write(&vm->arch.rtc, offset, word);
		else
			irq = pl061_write(&vm->arch.gpio, offset, word);
	} else {
		word = is_rtc ? pl031_read(&vm->arch.rtc, offset) : pl061_read(&vm->arch.gpio, offset, &irq);
		memset(data, 0, len);
		memcpy(data, &word, n);
	}
	if (irq)
		pulse(vm, A64_GSI_GPIO); // KVM refuses none that is in the table of its interrupt controller
	return true;
}

// An access that the hardware does not describe well enough to be carried out (a pair of registers, a
// vector), to where there is no memory. The guest gets what a bus gives: an external abort.
static bool abort_access(struct vcpu *c)
{
	struct kvm_vcpu_events e;
	if (ioctl(c->fd, KVM_GET_VCPU_EVENTS, &e))
		return false;
	e.exception.ext_dabt_pending = 1;
	return !ioctl(c->fd, KVM_SET_VCPU_EVENTS, &e);
}

// That, and PSCI's SYSTEM_OFF and SYSTEM_RESET. KVM has stopped all vCPUs by then.
bool arch_vcpu_exit(struct vcpu *c)
{
	struct vm *vm = c->vm;
	if (c->run->exit_reason == KVM_EXIT_ARM_NISV)
		return abort_access(c);
	if (c->run->exit_reason != KVM_EXIT_SYSTEM_EVENT)
		return false;
	uint32_t type = c->run->system_event.type;
	if (type != KVM_SYSTEM_EVENT_SHUTDOWN && type != KVM_SYSTEM_EVENT_RESET)
		return false;
	mv_loop_lock(&vm->loop);
	vm_request_exit(vm, type == KVM_SYSTEM_EVENT_RESET ? VM_EXIT_RESET : VM_EXIT_SHUTDOWN, "");
	mv_loop_unlock(&vm->loop);
	return true;
}
