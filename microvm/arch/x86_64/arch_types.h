// SPDX-License-Identifier: Apache-2.0
// x86-64's part of struct vm.
#pragma once
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "i8042.h"

#define ARCH_ID 1 // enum manifest_arch

struct arch_vm {
	struct i8042 i8042;          // saved
	struct kvm_clock_data clock; // saved; set again when a loaded VM first runs
	bool clock_pending;
};
