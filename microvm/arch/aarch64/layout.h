// SPDX-License-Identifier: Apache-2.0
// Guest-physical addresses and interrupts of the arm64 machine. What a guest maps lies in 64 KiB steps, the
// largest page it may have; only virtio-mmio slots share such a page.
//
//   0x08000000 GIC distributor   0x08010000 GICv2 CPU interface   0x080a0000 GICv3 redistributors
//   0x09000000 16550 serial port 0x09010000 PL031 RTC             0x0a000000 virtio-mmio slots
//   0x09020000 PL061 GPIO
//   0x40000000 RAM: its first 2 MiB are not in the guest's memory map, and hold the generation ID and VMCLOCK
#pragma once

#define A64_GICD 0x08000000u
#define A64_GICD_BYTES 0x10000u
#define A64_GICC 0x08010000u
#define A64_GICC_BYTES 0x2000u
#define A64_GICR 0x080a0000u
#define A64_GICR_BYTES 0x20000u // of one vCPU
#define A64_SERIAL 0x09000000u
#define A64_SERIAL_BYTES 0x1000u
#define A64_RTC 0x09010000u
#define A64_RTC_BYTES 0x1000u
#define A64_GPIO 0x09020000u
#define A64_GPIO_BYTES 0x1000u
#define A64_VIRTIO_MMIO 0x0a000000u

#define A64_RAM 0x40000000u
#define A64_GENERATION_ID A64_RAM // 16 bytes
#define A64_VMCLOCK (A64_RAM + 0x10000)
#define A64_VMCLOCK_BYTES 0x10000u // the largest page that a guest may have, so that programs can map it
#define A64_KERNEL 0x40200000u // 2 MiB-aligned (Linux arm64 boot protocol); memory begins here for the guest
#define A64_FDT_BYTES 0x10000u
#define A64_MAX_RAM_BYTES                                                                                    \
	(512ull << 30) // below the end of KVM's default address space of 40 bits, with files
#define A64_INITRD_WINDOW_BYTES (1u << 30) // kernel, initrd and device tree lie in the first GiB
#define A64_FILE_ALIGN 0x20000000u         // a section of Linux' memory map with 64 KiB pages

// Shared peripheral interrupts, which are GSIs; all are edges.
#define A64_N_SPIS 32
#define A64_GSI_SERIAL 0
#define A64_GSI_GENERATION 1
#define A64_GSI_VMCLOCK 2
#define A64_GSI_GPIO 3
#define A64_GSI_VIRTIO 8
