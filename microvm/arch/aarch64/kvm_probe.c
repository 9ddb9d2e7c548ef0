// SPDX-License-Identifier: Apache-2.0
// The probe guest is a counting loop at EL1 with the MMU off, ended by a store where there is no memory. (KVM
// API, Documentation/virt/kvm/api.rst.)
#include "microvm/kvm_probe.h"

#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "kvm_vcpu.h"
#include "microvm/base/util.h"

const uint64_t kvm_probe_gpa = 0x40000000;
const uint32_t kvm_probe_last_exit = KVM_EXIT_MMIO;

// Nothing in /proc/cpuinfo tells.
const struct kvm_probe_flag kvm_probe_flags[] = { { NULL, NULL } };

const struct kvm_probe_need kvm_probe_needed[] = {
	{ KVM_CAP_IRQCHIP, "IRQCHIP" },           { KVM_CAP_USER_MEMORY, "USER_MEMORY" },
	{ KVM_CAP_DEVICE_CTRL, "DEVICE_CTRL" },   { KVM_CAP_ONE_REG, "ONE_REG" },
	{ KVM_CAP_ARM_PSCI_0_2, "ARM_PSCI_0_2" }, { KVM_CAP_IRQFD, "IRQFD" },
	{ KVM_CAP_IOEVENTFD, "IOEVENTFD" },       { KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT" },
	{ KVM_CAP_MP_STATE, "MP_STATE" },         { KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS" },
};
const size_t kvm_probe_n_needed = MV_ARRAY_LEN(kvm_probe_needed);

int kvm_probe_prepare(int vm_fd, int vcpu_fd, uint8_t *memory, struct kvm_probe *p)
{
	static const uint32_t code[] = {
		0xd2800000u | KVM_PROBE_LOOPS << 5, // mov x0, LOOPS
		0xf1000400u,                        // again: subs x0, x0, 1
		0x54ffffe1u,                        // b.ne again
		0xb9000020u,                        // str w0, [x1], which is 0
	};
	uint64_t pc = kvm_probe_gpa;
	struct kvm_one_reg reg = { .id = KVM_REG_ARM64 | KVM_REG_ARM_CORE | KVM_REG_SIZE_U64 |
					 KVM_REG_ARM_CORE_REG(regs.pc),
				   .addr = (uintptr_t)&pc };
	memcpy(memory, code, sizeof code);
	if (kvm_probe_step(p, "KVM_ARM_VCPU_INIT", a64_vcpu_init(vm_fd, vcpu_fd, false)))
		return -1;
	return kvm_probe_step(p, "KVM_SET_ONE_REG", ioctl(vcpu_fd, KVM_SET_ONE_REG, &reg));
}
