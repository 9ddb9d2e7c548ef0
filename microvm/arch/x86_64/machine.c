// SPDX-License-Identifier: Apache-2.0
// The x86-64 machine around the CPUs: interrupt controllers, ports, power, generation ID.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "microvm/arch/arch.h"
#include "microvm/kvm.h"
#include "microvm/vmclock.h"
#include "x86.h"

struct machine_state {
	struct i8042 i8042;
	struct kvm_clock_data clock;
	struct kvm_irqchip chip[3]; // PIC master, PIC slave, I/O APIC
};

static const struct mv_field machine_fields[] = {
	MV_SUB(struct machine_state, i8042, 1, i8042_table),
	MV_RAW(struct machine_state, clock, 2),
	MV_RAW(struct machine_state, chip, 3),
};
MV_DEFINE_TABLE(x86_machine_table, struct machine_state, machine_fields);

_Static_assert(X86_VIRTIO_MMIO == 0xd0000000, "dsdt.asl spells the slots' addresses");

uint64_t arch_device_gpa(unsigned slot) { return X86_VIRTIO_MMIO + (uint64_t)slot * VIO_MMIO_BYTES; }

uint32_t arch_device_gsi(unsigned slot)
{
	// 8 to 10 are taken (the clock's old place, generation ID, power button); see dsdt.asl.
	return slot < 3 ? 5 + slot : 8 + slot;
}

uint32_t arch_serial_gsi(void) { return X86_GSI_COM1; }

int arch_mem_layout(struct gmem *m, uint32_t mem_mib)
{
	uint64_t bytes = (uint64_t)mem_mib << 20, low = bytes < X86_RAM_GAP ? bytes : X86_RAM_GAP;
	int r = gmem_add(m, 0, low);
	if (!r && bytes > low)
		r = gmem_add(m, 1ull << 32, bytes - low);
	return r;
}

uint64_t arch_file_gpa(const struct gmem *m)
{
	const struct gmem_region *last = &m->region[m->n_regions - 1];
	uint64_t end = last->gpa + last->size_bytes;
	if (m->n_files)
		end = m->file[m->n_files - 1].gpa + m->file[m->n_files - 1].size_bytes;
	end = end < X86_FILES ? X86_FILES : end;
	return mv_align_up(end, X86_FILE_ALIGN);
}

int arch_vm_init(struct vm *vm, struct mv_err *err)
{
	uint64_t identity_map = X86_KVM_IDENTITY_MAP;
	int r;

	if ((r = kvm_call(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map, "KVM_SET_IDENTITY_MAP_ADDR",
			  err)) < 0 ||
	    (r = kvm_call(vm->vm_fd, KVM_SET_TSS_ADDR, (void *)(uintptr_t)X86_KVM_TSS, "KVM_SET_TSS_ADDR",
			  err)) < 0 ||
	    (r = kvm_call(vm->vm_fd, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP", err)) < 0)
		return r;
	i8042_init(&vm->arch.i8042);
	return 0;
}

void arch_vm_warm(struct vm *vm) { (void)vm; } // nothing to gain

void arch_vm_fini(struct vm *vm) { (void)vm; } // all of it goes with the VM's descriptor

int arch_vcpu_init(struct vcpu *c, struct mv_err *err)
{
	(void)c;
	(void)err;
	return 0;
}

int arch_vcpus_made(struct vm *vm, struct mv_err *err)
{
	(void)vm;
	(void)err;
	return 0;
}

int arch_describe(int fd, const struct arch_description *d, struct mv_err *err)
{
	(void)fd;
	(void)d;
	return mv_fail(err, ENOTSUP,
		       "x86-64 has no device tree; its ACPI tables are in the guest's /sys/firmware/acpi");
}

// A PC's devices are at ports.
bool arch_mmio(struct vm *vm, uint64_t gpa_, void *data, uint32_t len, bool is_write)
{
	(void)vm;
	(void)gpa_;
	(void)data;
	(void)len;
	(void)is_write;
	return false;
}

int arch_boot(struct vm *vm, int kernel_fd, int initrd_fd, struct mv_err *err)
{
	struct x86_entry entry;
	int64_t rsdp = x86_write_acpi(vm);
	if (rsdp < 0)
		return mv_fail(err, (int)-rsdp, "the ACPI tables do not fit guest memory");
	int r = x86_load_kernel(vm, kernel_fd, initrd_fd, (uint64_t)rsdp, &entry, err);
	for (unsigned i = 0; !r && i < vm->n_vcpus; i++) {
		r = x86_set_cpuid(&vm->vcpu[i], err);
		r = r ? r : x86_set_boot_msrs(&vm->vcpu[i], err);
	}
	// The others wait for INIT and SIPI, as KVM made them.
	if (!r)
		r = x86_set_boot_registers(&vm->vcpu[0], &entry, err);
	return r ? r : arch_new_generation(vm, false, err);
}

static uint64_t real_time_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// The guest's clock and the wall clock it belongs to. KVM reads both at once where the
// host's clock is the TSC (KVM_CLOCK_REALTIME); else we read the second one beside it.
static int get_clock(struct vm *vm, struct kvm_clock_data *ret_clock, struct mv_err *err)
{
	int r = kvm_call(vm->vm_fd, KVM_GET_CLOCK, ret_clock, "KVM_GET_CLOCK", err);
	if (!r && !(ret_clock->flags & KVM_CLOCK_REALTIME))
		ret_clock->realtime = real_time_ns();
	return r < 0 ? r : 0;
}

// kvmclock moves on where KVM can by itself (KVM API 4.29), so that the guest's wall clock is right. Where
// the TSC is invariant, Linux takes the time from it and not from kvmclock.
int arch_vm_catch_up(struct vm *vm, struct mv_err *err)
{
	struct kvm_clock_data c = vm->arch.clock;
	int adjust = kvm_capability(vm->vm_fd, KVM_CAP_ADJUST_CLOCK);
	c.flags &= KVM_CLOCK_REALTIME & (uint32_t)adjust;
	uint64_t now = real_time_ns(), passed = c.realtime && now > c.realtime ? now - c.realtime : 0;
	if (!c.flags)
		c.clock += passed;
	int r = kvm_call(vm->vm_fd, KVM_SET_CLOCK, &c, "KVM_SET_CLOCK", err);
	return r < 0 ? r : x86_set_tscs(vm, vm->arch.saved_tsc, passed, err);
}

int arch_vm_save(struct vm *vm, struct mv_buf *out, struct mv_err *err)
{
	struct machine_state s = { .i8042 = vm->arch.i8042 };
	int r = get_clock(vm, &s.clock, err);
	for (uint32_t i = 0; r >= 0 && i < MV_ARRAY_LEN(s.chip); i++) {
		s.chip[i].chip_id = i;
		r = kvm_call(vm->vm_fd, KVM_GET_IRQCHIP, &s.chip[i], "KVM_GET_IRQCHIP", err);
	}
	if (r < 0)
		return r;
	mv_state_save(&x86_machine_table, &s, out);
	return 0;
}

int arch_vm_load(struct vm *vm, const void *bytes, size_t len, struct mv_err *err)
{
	struct machine_state s;
	int r = mv_state_load(&x86_machine_table, bytes, len, &s, err);
	for (uint32_t i = 0; r >= 0 && i < MV_ARRAY_LEN(s.chip); i++) {
		if (s.chip[i].chip_id != i)
			return mv_fail(err, EINVAL, "damaged interrupt controller state");
		r = kvm_call(vm->vm_fd, KVM_SET_IRQCHIP, &s.chip[i], "KVM_SET_IRQCHIP", err);
	}
	if (r < 0)
		return r;
	vm->arch.i8042 = s.i8042;
	vm->arch.clock = s.clock;
	return 0;
}

void arch_vm_resume(struct vm *vm)
{
	// "It was stopped from outside": no soft-lockup report. EINVAL: the guest has no kvmclock.
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		ioctl(vm->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
}

int arch_new_generation(struct vm *vm, bool notify, struct mv_err *err)
{
	uint8_t id[16];
	mv_random(id, sizeof id);
	if (gmem_write(&vm->mem, gpa(X86_GENERATION_ID), id, sizeof id))
		return mv_fail(err, EFAULT, "no guest memory at the generation ID's address");
	if (notify ? vmclock_restored(&vm->mem, gpa(X86_VMCLOCK))
		   : vmclock_boot(&vm->mem, gpa(X86_VMCLOCK), X86_VMCLOCK_BYTES))
		return mv_fail(err, EFAULT, "no guest memory at the address of VMCLOCK");
	int r = notify ? kvm_pulse_gsi(vm->vm_fd, X86_GSI_GENERATION) : 0;
	return r ? mv_fail(err, -r, "KVM_IRQ_LINE: %s", strerror(-r)) : 0;
}

int arch_power_button(struct vm *vm, struct mv_err *err)
{
	int r = kvm_pulse_gsi(vm->vm_fd, X86_GSI_POWER_BUTTON);
	return r ? mv_fail(err, -r, "KVM_IRQ_LINE: %s", strerror(-r)) : 0;
}

int arch_ctrl_alt_del(struct vm *vm, struct mv_err *err)
{
	bool irq = false;
	if (!i8042_ctrl_alt_del(&vm->arch.i8042, &irq))
		return mv_fail(err, ENOTSUP,
			       "the guest has no keyboard driver that listens; use power-button or kill");
	return irq ? kvm_pulse_gsi(vm->vm_fd, X86_GSI_KEYBOARD) : 0;
}

static void port_write(struct vm *vm, uint16_t port, uint8_t value)
{
	bool irq = false, reset = false;

	switch (port) {
	case X86_COM1 ... X86_COM1 + 7: serial_write(&vm->serial, port - X86_COM1, value); break;
	case X86_I8042_DATA:
	case X86_I8042_COMMAND:
		i8042_write(&vm->arch.i8042, port - X86_I8042_DATA, value, &irq, &reset);
		break;
	case X86_RESET: reset = true; break;
	case X86_SLEEP_CONTROL: // SLP_EN and SLP_TYP, ACPI 6.5 table 4.23
		if (value & 0x20 && (value >> 2 & 7) == X86_S5)
			vm_request_exit(vm, VM_EXIT_SHUTDOWN, "");
		break;
	default: break; // a port nobody has
	}
	if (irq)
		kvm_pulse_gsi(vm->vm_fd, X86_GSI_KEYBOARD);
	if (reset)
		vm_request_exit(vm, VM_EXIT_RESET, "");
}

static uint8_t port_read(struct vm *vm, uint16_t port)
{
	bool irq = false;
	uint8_t value = 0xff;

	switch (port) {
	case X86_COM1 ... X86_COM1 + 7: return serial_read(&vm->serial, port - X86_COM1);
	case X86_I8042_DATA:
	case X86_I8042_COMMAND: value = i8042_read(&vm->arch.i8042, port - X86_I8042_DATA, &irq); break;
	case X86_SLEEP_CONTROL:
	case X86_SLEEP_STATUS: return 0;
	default: break;
	}
	if (irq)
		kvm_pulse_gsi(vm->vm_fd, X86_GSI_KEYBOARD);
	return value;
}

// Port I/O; string instructions come as `count` accesses. Wider accesses go to a port
// and its neighbours, as on the bus.
bool arch_vcpu_exit(struct vcpu *c)
{
	struct kvm_run *run = c->run;
	struct vm *vm = c->vm;

	if (run->exit_reason != KVM_EXIT_IO)
		return false;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	mv_loop_lock(&vm->loop);
	for (uint32_t i = 0; i < run->io.count; i++)
		for (uint8_t b = 0; b < run->io.size; b++, data++) {
			uint16_t port = (uint16_t)(run->io.port + b);
			if (run->io.direction == KVM_EXIT_IO_OUT)
				port_write(vm, port, *data);
			else
				*data = port_read(vm, port);
		}
	mv_loop_unlock(&vm->loop);
	return true;
}
