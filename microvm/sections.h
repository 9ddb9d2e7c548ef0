// SPDX-License-Identifier: Apache-2.0
// The kinds of sections of a snapshot's state file (snapshot/format.h). save.c writes and
// reads them all; cpu_report.c only looks at a vCPU.
#pragma once

// Kinds are part of the format: never renumbered, never reused. From SECTION_SKIP on an
// older reader skips a kind it does not know.
enum {
	SECTION_SHAPE = 1,  // struct shape
	SECTION_VCPU = 2,   // by index; architecture's
	SECTION_ARCH = 3,   // chips and clock; architecture's
	SECTION_SERIAL = 4, // serial_table
	SECTION_VIRTIO = 5, // by slot
	SECTION_SKIP = 0x8000,
	SECTION_MEMORY = SECTION_SKIP, // snapshot/memory_map.h
};
