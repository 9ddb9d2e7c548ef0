// SPDX-License-Identifier: Apache-2.0
// x86-64's part of struct vm.
#pragma once
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "i8042.h"
#include "microvm/base/vmcfg.h"

#define ARCH_READ_ONLY_FILE GMEM_READ_ONLY // KVM emulates what writes there, and nobody takes the write
#define ARCH_ID 1                          // enum manifest_arch

struct arch_vm {
	struct i8042 i8042;          // saved
	struct kvm_clock_data clock; // saved
	uint64_t saved_tsc;          // of the first vCPU, in the state that was loaded
	struct {                     // of a parked VM
		uint64_t tsc_offset[VMCFG_MAX_VCPUS];
		uint64_t timer_boot_ns[VMCFG_MAX_VCPUS]; // a counting APIC timer is due, CLOCK_BOOTTIME; 0:
							 // none
		bool spent[VMCFG_MAX_VCPUS];             // one that counted, once, is due no more
		uint64_t boot_to_real_ns;                // the wall clock's lead on CLOCK_BOOTTIME
	} parked;
};
