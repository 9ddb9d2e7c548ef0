// SPDX-License-Identifier: Apache-2.0
// Guest-physical addresses, ports and interrupts of the x86-64 machine. Plain numbers
// only: the ACPI source (dsdt.asl) includes this file too.
//
//   0x00000500 GDT            0x00007000 zero page      0x00020000 command line
//   0x00006000 PVH start info 0x00009000 page tables    0x0009fc00 end of low RAM
//   0x000e0000 ACPI tables, device map, generation ID, VMCLOCK (reserved in the memory map)
//   0x00100000 RAM ... 0xc0000000; 0x100000000 ... RAM
//   0xd0000000 virtio-mmio slots; 0xfec00000 I/O APIC; 0xfee00000 local APICs
#ifndef X86_LAYOUT_H
#define X86_LAYOUT_H

#define X86_GDT 0x500
#define X86_PVH_INFO 0x6000
#define X86_ZERO_PAGE 0x7000
#define X86_PAGE_TABLES 0x9000
#define X86_CMDLINE 0x20000
#define X86_LOW_RAM_END 0x9fc00
#define X86_BIOS_START 0xe0000
#define X86_ACPI_TABLES 0xe0000
#define X86_DEVICE_MAP 0xfd000    // 32-bit mask: which virtio-mmio slots exist
#define X86_GENERATION_ID 0xfe000 // 16 bytes
#define X86_VMCLOCK 0xff000       // a page of its own: the guest's programs can map it
#define X86_VMCLOCK_BYTES 0x1000
#define X86_HIGH_RAM 0x100000
#define X86_RAM_GAP 0xc0000000

#define X86_FILES 0x100000000    // virtio-pmem from here on, above RAM; not in the memory map
#define X86_FILE_ALIGN 0x8000000 // a section of Linux' memory map

#define X86_VIRTIO_MMIO 0xd0000000
#define X86_IOAPIC 0xfec00000
#define X86_LAPIC 0xfee00000
#define X86_KVM_IDENTITY_MAP 0xfeffc000 // one page, then three for the TSS (Intel only)
#define X86_KVM_TSS 0xfeffd000

#define X86_COM1 0x3f8
#define X86_I8042_DATA 0x60
#define X86_I8042_COMMAND 0x64
#define X86_SLEEP_CONTROL 0x600 // ACPI hardware-reduced, ACPI 6.5 section 4.8.3.7
#define X86_SLEEP_STATUS 0x601
#define X86_RESET 0x602
#define X86_S5 5 // SLP_TYP of soft-off

#define X86_GSI_KEYBOARD 1
#define X86_GSI_COM1 4
#define X86_GSI_GENERATION 9
#define X86_GSI_POWER_BUTTON 10

#endif
