// SPDX-License-Identifier: Apache-2.0
// The probe guest is a counting loop in 32-bit protected mode at CPL 0, without paging,
// ended by hlt: what a hypervisor that only emulates kernel mode is hundreds of times
// slower at. (KVM API, Documentation/virt/kvm/api.rst.)
#include "microvm/kvm_probe.h"

#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

#include "microvm/base/util.h"

#define CODE_GPA 0x1000u
#define TSS_ADDR 0xfffbd000u

const uint64_t kvm_probe_gpa = 0;
const uint32_t kvm_probe_last_exit = KVM_EXIT_HLT;

const struct kvm_probe_flag kvm_probe_flags[] = { { "svm", "AMD-V" },
						  { "vmx", "Intel VT-x" },
						  { NULL, NULL } };

const struct kvm_probe_need kvm_probe_needed[] = {
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
const size_t kvm_probe_n_needed = MV_ARRAY_LEN(kvm_probe_needed);

static int set_registers(int vcpu_fd, struct kvm_probe *p)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = CODE_GPA, .rflags = 2 };
	if (kvm_probe_step(p, "KVM_GET_SREGS", ioctl(vcpu_fd, KVM_GET_SREGS, &s)))
		return -1;
	struct kvm_segment flat = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1 };
	flat.db = flat.s = flat.g = 1; // 32-bit, not a system segment, limit in pages
	s.ds = s.es = s.fs = s.gs = s.ss = flat;
	s.cs = flat;
	s.cs.selector = 8;
	s.cs.type = 11; // code, readable, accessed
	s.cr0 |= 1;     // PE
	if (kvm_probe_step(p, "KVM_SET_SREGS", ioctl(vcpu_fd, KVM_SET_SREGS, &s)))
		return -1;
	return kvm_probe_step(p, "KVM_SET_REGS", ioctl(vcpu_fd, KVM_SET_REGS, &r));
}

int kvm_probe_prepare(int vm_fd, int vcpu_fd, uint8_t *memory, struct kvm_probe *p)
{
	// mov ecx, LOOPS; again: dec ecx; jnz again; hlt
	static const uint8_t code[] = {
		0xb9, KVM_PROBE_LOOPS & 0xff, KVM_PROBE_LOOPS >> 8 & 0xff, 0, 0, 0x49, 0x75, 0xfd, 0xf4
	};
	memcpy(memory + CODE_GPA, code, sizeof code);
	ioctl(vm_fd, KVM_SET_TSS_ADDR, TSS_ADDR); // only old Intel CPUs need it
	return set_registers(vcpu_fd, p);
}
