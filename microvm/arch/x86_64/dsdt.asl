// SPDX-License-Identifier: Apache-2.0
// The machine's DSDT; through the C preprocessor, then iasl. Slots that do not exist
// answer _STA with 0, by a bit mask that the monitor writes at X86_DEVICE_MAP.
#include "layout.h"

// Addresses are spelled as one number: iasl (20200925) writes wrong table lengths for
// constant expressions inside resource templates.
#define VIRTIO_SLOT(name, number, digit, gsi)                                            \
	Device (name) {                                                           \
		Name (_HID, "LNRO0005")                                           \
		Name (_UID, number)                                               \
		Name (_CCA, 1)                                                    \
		Method (_STA, 0, NotSerialized) {                                 \
			If ((DMAP >> number) & 1) { Return (0x0F) }                \
			Return (0)                                                \
		}                                                                 \
		Name (_CRS, ResourceTemplate () {                                 \
			Memory32Fixed (ReadWrite, 0xd000##digit##000, 0x1000)                \
			Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }    \
		})                                                                \
	}

DefinitionBlock ("", "DSDT", 2, "THAW", "MICROVM", 1)
{
	Name (_S5, Package () { X86_S5, 0 })

	Scope (\_SB) {
		OperationRegion (DREG, SystemMemory, X86_DEVICE_MAP, 4)
		Field (DREG, DWordAcc, NoLock, Preserve) { DMAP, 32 }

		VIRTIO_SLOT (VR00, 0, 0, 5)
		VIRTIO_SLOT (VR01, 1, 1, 6)
		VIRTIO_SLOT (VR02, 2, 2, 7)
		VIRTIO_SLOT (VR03, 3, 3, 11)
		VIRTIO_SLOT (VR04, 4, 4, 12)
		VIRTIO_SLOT (VR05, 5, 5, 13)
		VIRTIO_SLOT (VR06, 6, 6, 14)
		VIRTIO_SLOT (VR07, 7, 7, 15)
		VIRTIO_SLOT (VR08, 8, 8, 16)
		VIRTIO_SLOT (VR09, 9, 9, 17)
		VIRTIO_SLOT (VR10, 10, a, 18)
		VIRTIO_SLOT (VR11, 11, b, 19)
		VIRTIO_SLOT (VR12, 12, c, 20)
		VIRTIO_SLOT (VR13, 13, d, 21)
		VIRTIO_SLOT (VR14, 14, e, 22)
		VIRTIO_SLOT (VR15, 15, f, 23)

		Device (COM1) {
			Name (_HID, EisaId ("PNP0501"))
			Name (_UID, 0)
			Name (_CRS, ResourceTemplate () {
				IO (Decode16, X86_COM1, X86_COM1, 1, 8)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { X86_GSI_COM1 }
			})
		}

		Device (PS2K) {
			Name (_HID, EisaId ("PNP0303"))
			Name (_CRS, ResourceTemplate () {
				IO (Decode16, X86_I8042_DATA, X86_I8042_DATA, 1, 1)
				IO (Decode16, X86_I8042_COMMAND, X86_I8042_COMMAND, 1, 1)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { X86_GSI_KEYBOARD }
			})
		}

		Device (PWRB) { // control method power button, ACPI 6.5 section 4.8.2.2.1.2
			Name (_HID, EisaId ("PNP0C0C"))
		}

		Device (VGEN) { // Virtual Machine Generation ID, version 1.0
			Name (_HID, "THAW0001")
			Name (_CID, "VM_Gen_Counter")
			Name (_DDN, "VM_Gen_Counter")
			Name (ADDR, Package () { X86_GENERATION_ID, 0 })
		}

		Device (VCLK) { // Linux' include/uapi/linux/vmclock-abi.h
			Name (_HID, "AMZNC10C")
			Name (_CID, "VMCLOCK")
			Name (_DDN, "VMCLOCK")
			Name (_CRS, ResourceTemplate () {
				Memory32Fixed (ReadOnly, X86_VMCLOCK, X86_VMCLOCK_BYTES)
			})
		}

		Device (GED) { // generic event device, ACPI 6.5 section 5.6.9
			Name (_HID, "ACPI0013")
			Name (_UID, 0)
			Name (_CRS, ResourceTemplate () {
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { X86_GSI_GENERATION }
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { X86_GSI_POWER_BUTTON }
			})
			Method (_EVT, 1, Serialized) {
				If (Arg0 == X86_GSI_GENERATION) {
					Notify (\_SB.VGEN, 0x80)
					Notify (\_SB.VCLK, 0x80)
				}
				ElseIf (Arg0 == X86_GSI_POWER_BUTTON) { Notify (\_SB.PWRB, 0x80) }
			}
		}
	}
}
