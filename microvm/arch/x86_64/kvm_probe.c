// SPDX-License-Identifier: Apache-2.0
// The probe guest is a counting loop in 32-bit protected mode at CPL 0, without paging,
// ended by hlt: what a hypervisor that only emulates kernel mode is hundreds of times
// slower at. (KVM API, Documentation/virt/kvm/api.rst.)
#include "microvm/kvm_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "microvm/base/util.h"

#define GUEST_BYTES 0x4000u
#define CODE_GPA 0x1000u
#define TSS_ADDR 0xfffbd000u
#define LOOPS 20000u                  // of two instructions
#define SLOW_NS_PER_INSTRUCTION 100.0 // hardware: about 1, emulation: about 600
#define RUNS_MAX 16

static const struct {
	int capability;
	const char *name;
} needed[] = {
	{ KVM_CAP_IRQCHIP, "IRQCHIP" },
	{ KVM_CAP_USER_MEMORY, "USER_MEMORY" },
	{ KVM_CAP_IRQFD, "IRQFD" },
	{ KVM_CAP_IOEVENTFD, "IOEVENTFD" },
	{ KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT" },
	{ KVM_CAP_MP_STATE, "MP_STATE" },
	{ KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS" },
	{ KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK" },
	{ KVM_CAP_XSAVE, "XSAVE" },
	{ KVM_CAP_XCRS, "XCRS" },
	{ KVM_CAP_DEBUGREGS, "DEBUGREGS" },
	{ KVM_CAP_EXT_CPUID, "EXT_CPUID" },
	{ KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER" },
};

static void check_capabilities(int kvm_fd, struct kvm_probe *p)
{
	size_t used = 0;
	for (size_t i = 0; i < MV_ARRAY_LEN(needed) && used < sizeof p->missing; i++)
		if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, needed[i].capability) <= 0)
			used += (size_t)snprintf(p->missing + used, sizeof p->missing - used, "%s%s",
						 used ? " " : "", needed[i].name);
	p->max_vcpus = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
}

static int step(struct kvm_probe *p, const char *what, long result)
{
	if (result >= 0)
		return 0;
	snprintf(p->guest_error, sizeof p->guest_error, "%s: %s", what, strerror(errno));
	return -1;
}

static int set_registers(int vcpu_fd, struct kvm_probe *p)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = CODE_GPA, .rflags = 2 };
	if (step(p, "KVM_GET_SREGS", ioctl(vcpu_fd, KVM_GET_SREGS, &s)))
		return -1;
	struct kvm_segment flat = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1 };
	flat.db = flat.s = flat.g = 1; // 32-bit, not a system segment, limit in pages
	s.ds = s.es = s.fs = s.gs = s.ss = flat;
	s.cs = flat;
	s.cs.selector = 8;
	s.cs.type = 11; // code, readable, accessed
	s.cr0 |= 1;     // PE
	if (step(p, "KVM_SET_SREGS", ioctl(vcpu_fd, KVM_SET_SREGS, &s)))
		return -1;
	return step(p, "KVM_SET_REGS", ioctl(vcpu_fd, KVM_SET_REGS, &r));
}

static void time_guest(int vcpu_fd, volatile struct kvm_run *run, struct kvm_probe *p)
{
	uint64_t start = mv_now_ns();
	for (int i = 0; i < RUNS_MAX; i++) {
		if (ioctl(vcpu_fd, KVM_RUN, 0) && errno != EINTR && step(p, "KVM_RUN", -1))
			return;
		if (run->exit_reason != KVM_EXIT_HLT)
			continue;
		p->guest_ran = true;
		p->ns_per_instruction = (double)(mv_now_ns() - start) / (2.0 * LOOPS);
		p->hardware_speed = p->ns_per_instruction < SLOW_NS_PER_INSTRUCTION;
		return;
	}
	snprintf(p->guest_error, sizeof p->guest_error, "KVM exit reason %u", run->exit_reason);
}

static void run_guest(int kvm_fd, int vm_fd, uint8_t *memory, struct kvm_probe *p)
{
	// mov ecx, LOOPS; again: dec ecx; jnz again; hlt
	static const uint8_t code[] = { 0xb9, LOOPS & 0xff, LOOPS >> 8 & 0xff, 0, 0, 0x49, 0x75, 0xfd, 0xf4 };
	memcpy(memory + CODE_GPA, code, sizeof code);
	struct kvm_userspace_memory_region slot = { .memory_size = GUEST_BYTES,
						    .userspace_addr = (uintptr_t)memory };
	if (step(p, "KVM_SET_USER_MEMORY_REGION", ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot)))
		return;
	ioctl(vm_fd, KVM_SET_TSS_ADDR, TSS_ADDR); // only old Intel CPUs need it
	MV_FD vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	int run_bytes = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (step(p, "KVM_CREATE_VCPU", vcpu_fd) || step(p, "KVM_GET_VCPU_MMAP_SIZE", run_bytes))
		return;
	struct kvm_run *run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	if (run == MAP_FAILED) {
		step(p, "mmap", -1);
		return;
	}
	if (!set_registers(vcpu_fd, p))
		time_guest(vcpu_fd, run, p);
	munmap(run, (size_t)run_bytes);
}

static void probe_guest(int kvm_fd, struct kvm_probe *p)
{
	uint8_t *memory = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		step(p, "mmap", -1);
		return;
	}
	MV_FD vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (!step(p, "KVM_CREATE_VM", vm_fd))
		run_guest(kvm_fd, vm_fd, memory, p);
	munmap(memory, GUEST_BYTES);
}

int kvm_probe(const char *device, struct kvm_probe *ret_p, struct mv_err *err)
{
	struct kvm_probe p = { 0 };
	MV_FD fd = open(device, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return mv_fail(err, errno == EPERM ? EACCES : errno, "%s: %s", device, strerror(errno));
	p.api_version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (p.api_version < 0)
		return mv_fail(err, ENOTTY, "%s is not KVM", device);
	if (p.api_version == KVM_API_VERSION) {
		check_capabilities(fd, &p);
		probe_guest(fd, &p);
	}
	*ret_p = p;
	return 0;
}
