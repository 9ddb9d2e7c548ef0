// SPDX-License-Identifier: Apache-2.0
// The two KVM calls that give a new vCPU its kind (KVM API 4.82, 4.83): PSCI and nothing that a KVM may lack.
// For the VM, for `thaw doctor` and for the daemon, which share no file. Any thread.
#pragma once
#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

// KVM API 4.139, which headers before Linux 6.7 lack.
#define A64_CAP_REG_MASK_RANGES 230 // KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES: bit 0, identification registers
#define A64_N_WRITABLE_MASKS (3 * 8 * 8) // op1 0, 1 and 3; CRm; op2
struct a64_reg_mask_range {
	uint64_t addr;
	uint32_t range, reserved[13];
};
#define A64_GET_REG_WRITABLE_MASKS _IOR(KVMIO, 0xb6, struct a64_reg_mask_range)

// off: waits for PSCI's CPU_ON. 0 or -errno.
static inline int a64_vcpu_init(int vm_fd, int vcpu_fd, bool off)
{
	struct kvm_vcpu_init init;
	if (ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, &init) < 0)
		return -errno;
	memset(init.features, 0, sizeof init.features);
	init.features[0] = 1u << KVM_ARM_VCPU_PSCI_0_2 | (off ? 1u << KVM_ARM_VCPU_POWER_OFF : 0);
	return ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, &init) < 0 ? -errno : 0;
}
