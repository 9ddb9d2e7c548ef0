// SPDX-License-Identifier: Apache-2.0
// ACPI tables (ACPI 6.5 section 5.2): RSDP -> XSDT -> FADT (hardware-reduced) -> DSDT,
// and MADT. Without a table a stock kernel finds neither CPUs nor virtio-mmio devices.
#include <errno.h>
#include <string.h>

#include "dsdt.hex"
#include "x86.h"

struct sdt_head {
	char signature[4];
	le32_t length;
	uint8_t revision, checksum;
	char oem_id[6], oem_table_id[8];
	le32_t oem_revision;
	char creator_id[4];
	le32_t creator_revision;
} __attribute__((packed));

struct gas { // generic address structure, 5.2.3.2
	uint8_t space, bit_width, bit_offset, access;
	le64_t address;
} __attribute__((packed));

struct rsdp { // 5.2.5.3
	char signature[8];
	uint8_t checksum;
	char oem_id[6];
	uint8_t revision;
	le32_t rsdt;
	le32_t length;
	le64_t xsdt;
	uint8_t checksum_all, reserved[3];
} __attribute__((packed));

struct xsdt {
	struct sdt_head head;
	le64_t table[2];
} __attribute__((packed));

struct fadt { // 5.2.9; members not named are zero: hardware-reduced
	struct sdt_head head;
	uint8_t unused1[73];                    // 36..108
	le16_t iapc_boot_arch;                  // 109
	uint8_t unused2;                        // 111
	le32_t flags;                           // 112
	struct gas reset_reg;                   // 116
	uint8_t reset_value;                    // 128
	le16_t arm_boot_arch;                   // 129
	uint8_t minor_version;                  // 131
	le64_t x_facs, x_dsdt;                  // 132, 140
	uint8_t unused3[96];                    // 148..243
	struct gas sleep_control, sleep_status; // 244, 256
	le64_t hypervisor_id;                   // 268
} __attribute__((packed));
_Static_assert(sizeof(struct fadt) == 276, "FADT revision 6");

enum {
	FADT_NO_VGA = 1 << 2, // iapc_boot_arch, table 5.10
	FADT_NO_CMOS_RTC = 1 << 5,
	FADT_8042 = 1 << 1,
	FADT_WBINVD = 1 << 0, // flags, table 5.9
	FADT_SLEEP_BUTTON = 1 << 5,
	FADT_POWER_BUTTON = 1 << 4,
	FADT_RESET_REG = 1 << 10,
	FADT_HW_REDUCED = 1 << 20,
	GAS_IO = 1,
};

struct madt { // 5.2.12
	struct sdt_head head;
	le32_t lapic, flags;
	struct {
		uint8_t type, length, id, reserved;
		le32_t address, gsi_base;
	} __attribute__((packed)) ioapic;
	struct {
		uint8_t type, length, processor, apic_id;
		le32_t flags;
	} __attribute__((packed)) cpu[VMCFG_MAX_VCPUS];
} __attribute__((packed));

static uint8_t checksum(const void *p, size_t len)
{
	uint8_t sum = 0;
	for (size_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)p)[i]);
	return (uint8_t)-sum;
}

static void head_init(void *table, const char *signature, uint8_t revision, size_t len)
{
	struct sdt_head *h = table;
	memcpy(h->signature, signature, 4);
	h->length = le32_make((uint32_t)len);
	h->revision = revision;
	memcpy(h->oem_id, "THAW\0", 6);
	memcpy(h->oem_table_id, "MICROVM", 8);
	h->oem_revision = le32_make(1);
	memcpy(h->creator_id, "THAW", 4);
	h->creator_revision = le32_make(1);
	h->checksum = checksum(table, len);
}

// Appends a table at *at (advanced, 16-aligned); returns its address, 0 when it does not fit.
static uint64_t put(struct vm *vm, uint64_t *at, const void *table, size_t len)
{
	uint64_t address = *at;
	if (address + len > X86_DEVICE_MAP || gmem_write(&vm->mem, gpa(address), table, len))
		return 0;
	*at = mv_align_up(address + len, 16);
	return address;
}

static uint64_t put_madt(struct vm *vm, uint64_t *at)
{
	struct madt m = { .lapic = le32_make(X86_LAPIC) };
	size_t len = offsetof(struct madt, cpu) + vm->cfg.vcpus * sizeof m.cpu[0];
	m.ioapic.type = 1;
	m.ioapic.length = sizeof m.ioapic;
	m.ioapic.address = le32_make(X86_IOAPIC);
	for (uint32_t i = 0; i < vm->cfg.vcpus; i++) {
		m.cpu[i].length = sizeof m.cpu[0]; // type 0: processor local APIC
		m.cpu[i].processor = m.cpu[i].apic_id = (uint8_t)i;
		m.cpu[i].flags = le32_make(1); // enabled
	}
	head_init(&m, "APIC", 4, len);
	return put(vm, at, &m, len);
}

static uint64_t put_fadt(struct vm *vm, uint64_t *at, uint64_t dsdt)
{
	struct fadt f = {
		.iapc_boot_arch = le16_make(FADT_NO_VGA | FADT_NO_CMOS_RTC | FADT_8042),
		.flags = le32_make(FADT_WBINVD | FADT_POWER_BUTTON | FADT_SLEEP_BUTTON | FADT_RESET_REG |
				   FADT_HW_REDUCED),
		.reset_reg = { GAS_IO, 8, 0, 1, le64_make(X86_RESET) },
		.reset_value = 1,
		.minor_version = 5,
		.x_dsdt = le64_make(dsdt),
		.sleep_control = { GAS_IO, 8, 0, 1, le64_make(X86_SLEEP_CONTROL) },
		.sleep_status = { GAS_IO, 8, 0, 1, le64_make(X86_SLEEP_STATUS) },
	};
	head_init(&f, "FACP", 6, sizeof f);
	return put(vm, at, &f, sizeof f);
}

int64_t x86_write_acpi(struct vm *vm)
{
	uint64_t at = X86_ACPI_TABLES + 64; // behind the RSDP
	// Which slots exist; with the command line alone none.
	uint32_t slots = vm->cfg.discovery != VMCFG_CMDLINE ? (uint32_t)((1ull << vm->n_devs) - 1) : 0;
	le32_t map = le32_make(slots);
	uint64_t dsdt = put(vm, &at, dsdt_aml_code, sizeof dsdt_aml_code);
	uint64_t fadt = put_fadt(vm, &at, dsdt), madt = put_madt(vm, &at);
	struct xsdt x = { .table = { le64_make(fadt), le64_make(madt) } };
	head_init(&x, "XSDT", 1, sizeof x);
	uint64_t xsdt = put(vm, &at, &x, sizeof x);
	struct rsdp r = { .revision = 2, .length = le32_make(sizeof r), .xsdt = le64_make(xsdt) };
	memcpy(r.signature, "RSD PTR ", 8);
	memcpy(r.oem_id, "THAW\0", 6);
	r.checksum = checksum(&r, 20);
	r.checksum_all = checksum(&r, sizeof r);
	if (!dsdt || !fadt || !madt || !xsdt || gmem_write(&vm->mem, gpa(X86_ACPI_TABLES), &r, sizeof r) ||
	    gmem_write(&vm->mem, gpa(X86_DEVICE_MAP), &map, sizeof map))
		return -ENOSPC;
	return X86_ACPI_TABLES;
}
