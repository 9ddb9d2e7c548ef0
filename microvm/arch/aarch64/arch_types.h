// SPDX-License-Identifier: Apache-2.0
// arm64's part of struct vm.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "pl031.h"
#include "pl061.h"

// KVM can't carry out, nor pass over, what writes a pair of registers or moves its base to a read-only slot,
// as a kernel's copies do. All that is left would be an abort, after which that kernel's driver hangs.
#define ARCH_READ_ONLY_FILE GMEM_OWN_COPY
#define ARCH_ID 2 // enum manifest_arch

struct a64_clock {             // saved
	uint64_t hz;           // of the virtual counter
	uint64_t counter;      // the virtual counter
	uint64_t real_ns;      // CLOCK_REALTIME when it was read
	uint64_t phys_counter; // the physical one, where KVM lets it be set (Linux 6.4)
	bool has_phys_counter;
};

struct vcpu_state;

struct arch_vm {
	unsigned gic_version; // 3 or 2; 0: there is none yet, nor gic_fd
	int gic_fd;
	struct pl031 rtc;         // saved
	struct pl061 gpio;        // saved
	struct a64_clock clock;   // of the state that was loaded
	struct vcpu_state *fresh; // a new vCPU's registers, of a warm VM until a state is loaded; or NULL
};
