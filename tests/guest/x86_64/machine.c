// SPDX-License-Identifier: Apache-2.0
/*
 * x86-64's part of the tiny guest. guest_main() runs in user mode for good, with the I/O ports open and 5 GiB
 * of identity-mapped memory at hand, MMIO included. wait_interrupt() faults into kernel mode, which does
 * nothing but `sti; hlt`, and comes back when an interrupt was taken. User mode has interrupts off, so one
 * that came before is still pending at the local APIC and ends the hlt at once. User mode writes the APIC's
 * EOI, its page being mapped like all others; the timer is the local APIC's.
 *
 * Pin 4 of the I/O APIC is the UART's, 9 the generation ID's, 10 the power button's. The generation ID
 * itself is where thaw.genid= of the command line says.
 *
 * Sources: PVH start info, xen/include/public/arch-x86/hvm/start_info.h; Linux
 * Documentation/arch/x86/{boot,zero-page}.rst; ACPI 6.5 sections 4.8.3.7 (sleep
 * control), 5.2.5, 5.2.8, 5.2.12; 82093AA.
 */
#include "tests/guest/tiny.h"
#include "tests/guest/x86_64/entry.h"

#define MMIO_HOLE 0xd0000000ULL // no RAM from here to 4 GiB
#define VIRTIO_FIRST MMIO_HOLE
#define VIRTIO_SLOTS 32

extern char image_end[];

volatile u8 irq_serial, irq_restored, irq_button, irq_timer, irq_virtio; // set by start.S

static u64 rsdp_addr;

void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

void *memset(void *to, int c, size_t n)
{
	void *d = to;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return to;
}

static void *at(u64 addr) { return (void *)addr; }

static u32 get32(u64 addr)
{
	u32 v;
	memcpy(&v, at(addr), sizeof v);
	return v;
}

static u64 get64(u64 addr)
{
	u64 v;
	memcpy(&v, at(addr), sizeof v);
	return v;
}

#define LAPIC 0xfee00000ULL
#define LAPIC_EOI 0x0b0
#define LAPIC_SVR 0x0f0
#define LAPIC_IRR 0x200 // eight words, 16 bytes apart
#define LAPIC_TIMER 0x320
#define LAPIC_LINT0 0x350
#define LAPIC_TIMER_COUNT 0x380
#define LAPIC_TIMER_DIVIDE 0x3e0
#define LAPIC_DIVIDE_16 3
#define TICKS_PER_MS 62500ULL // KVM's local APIC counts 1 GHz
#define LAPIC_MASKED 0x10000
#define IOAPIC 0xfec00000ULL
#define IOAPIC_DATA 0x10
#define PIN_SERIAL 4
#define PIN_RESTORED 9
#define PIN_BUTTON 10
#define PINS 24

static void ioapic_set(u32 reg, u32 v)
{
	mmio_write(IOAPIC, reg);
	mmio_write(IOAPIC + IOAPIC_DATA, v);
}

// Edge, active high, fixed, to APIC ID 0.
static void unmask_pin(u32 pin, u32 vector)
{
	ioapic_set(0x11 + 2 * pin, 0);
	ioapic_set(0x10 + 2 * pin, vector);
}

static void interrupts_init(void)
{
	mmio_write(LAPIC + LAPIC_LINT0, LAPIC_MASKED); // the old PIC stays out of it
	mmio_write(LAPIC + LAPIC_SVR, 0x1ff);
	unmask_pin(PIN_RESTORED, VECTOR_RESTORED);
	unmask_pin(PIN_BUTTON, VECTOR_BUTTON);
	unmask_pin(PIN_SERIAL, VECTOR_SERIAL);
}

void wait_interrupt(void)
{
	__asm__ volatile("hlt" : : : "rax", "memory", "cc"); // a fault: see start.S
}

u32 take_events(void)
{
	u32 events = (irq_serial ? EVENT_SERIAL : 0u) | (irq_restored ? EVENT_RESTORED : 0u) |
		     (irq_button ? EVENT_BUTTON : 0u) | (irq_timer ? EVENT_TIMER : 0u) |
		     (irq_virtio ? EVENT_VIRTIO : 0u);
	if (events) // one at a time: the vectors have the same priority class
		mmio_write(LAPIC + LAPIC_EOI, 0);
	irq_serial = irq_restored = irq_button = irq_timer = irq_virtio = 0;
	return events;
}

void timer_start(u64 ms)
{
	mmio_write(LAPIC + LAPIC_TIMER_DIVIDE, LAPIC_DIVIDE_16);
	mmio_write(LAPIC + LAPIC_TIMER, VECTOR_TIMER); // one shot
	mmio_write(LAPIC + LAPIC_TIMER_COUNT, (u32)(ms * TICKS_PER_MS));
}

bool machine_unmask_virtio(u64 pin)
{
	if (pin >= PINS)
		return false;
	unmask_pin((u32)pin, VECTOR_VIRTIO);
	return true;
}

bool machine_virtio_pending(void)
{
	return mmio_read(LAPIC + LAPIC_IRR + VECTOR_VIRTIO / 32 * 16) >> VECTOR_VIRTIO % 32 & 1;
}

#define SLEEP_CONTROL 0x600 // ACPI sleep control register
#define SLEEP_S5 ((5 << 2) | 0x20)
#define I8042_COMMAND 0x64
#define I8042_RESET 0xfe

void power_off(void)
{
	out8(SLEEP_CONTROL, SLEEP_S5);
	for (;;)
		wait_interrupt();
}

void reset(void)
{
	out8(I8042_COMMAND, I8042_RESET);
	for (;;)
		wait_interrupt();
}

void crash(void)
{
	__builtin_trap(); // no gate for it, none for what follows
}

// --- boot information ------------------------------------------------------------
static void add_ram(u64 addr, u64 size, u32 type)
{
	u64 start = ((u64)image_end + HEAP_ALIGN - 1) & ~(HEAP_ALIGN - 1), end = addr + size;
	if (type != 1)
		return;
	machine.ram_bytes += size;
	if (end > MMIO_HOLE)
		end = MMIO_HOLE;
	if (addr <= start && start < end) {
		machine.heap = start;
		machine.heap_pages = (end - start) / PAGE;
	}
}

static void read_boot_info(u64 info, u32 kind)
{
	u64 text, table, entries, size;
	if (kind == BOOT_PVH) { // struct hvm_start_info, version 1
		text = get64(info + 24);
		rsdp_addr = get64(info + 32);
		table = get64(info + 40);
		entries = get32(info + 48);
		size = 24;
	} else { // struct boot_params
		text = get32(info + 0x228) | (u64)get32(info + 0xc8) << 32;
		rsdp_addr = get64(info + 0x70);
		table = info + 0x2d0;
		entries = get32(info + 0x1e8) & 0xff;
		size = 20;
	}
	for (; entries--; table += size)
		add_ram(get64(table), get64(table + 8), get32(table + 16));
	if (text && text < MAPPED_END)
		copy_text(machine.cmdline, at(text), sizeof machine.cmdline);
}

// Enabled processors in the MADT, 0 without one.
static u32 count_cpus(void)
{
	u32 n = 0;
	if (!rsdp_addr || rsdp_addr >= MMIO_HOLE)
		return 0;
	u64 xsdt = get64(rsdp_addr + 24);
	for (u64 p = xsdt + 36; xsdt && p < xsdt + get32(xsdt + 4); p += 8) {
		u64 t = get64(p), e = t + 44, end = t + get32(t + 4);
		if (!starts(at(t), "APIC"))
			continue;
		for (; e < end; e += *(u8 *)at(e + 1) ? *(u8 *)at(e + 1) : end) {
			u8 type = *(u8 *)at(e);
			if (type == 0)
				n += get32(e + 4) & 1;
			else if (type == 9) // local x2APIC
				n += get32(e + 8) & 1;
		}
	}
	return n;
}

void machine_init(u64 info, u32 kind)
{
	interrupts_init();
	read_boot_info(info, kind);
	machine.n_cpus = count_cpus();
	if (!cmdline_number("thaw.genid=", &machine.genid) || machine.genid >= MMIO_HOLE)
		machine.genid = 0;
}

// By the kernel's parameters virtio_mmio.device=SIZE@ADDR:IRQ; without one, by looking.
u64 machine_virtio(u32 n)
{
	bool named = false;
	u32 found = 0;
	for (const char *p = machine.cmdline; *p; p++) {
		u64 v;
		if (!starts(p, "virtio_mmio.device="))
			continue;
		while (*p && *p != ' ' && *p != '@')
			p++;
		if (*p != '@')
			break;
		const char *s = p + 1;
		named = true;
		if (number(&s, &v) && v && v < MAPPED_END && found++ == n)
			return v;
	}
	return named || n >= VIRTIO_SLOTS ? 0 : VIRTIO_FIRST + n * PAGE;
}
