// SPDX-License-Identifier: Apache-2.0
/*
 * arm64's part of the tiny guest. All runs at EL1 with interrupts masked; the device tree says what there is.
 * The timer is the virtual one, and power is PSCI's. Nothing is known of a power button.
 *
 * Sources: the bindings that microvm/arch/aarch64/fdt.c names; Arm DEN 0022 (PSCI); Arm DDI 0487, D11
 * (timer).
 */
#include "tests/guest/aarch64/a64.h"

#define PSCI_SYSTEM_OFF 0x84000008
#define PSCI_SYSTEM_RESET 0x84000009
#define IRQ_TIMER 27 // the virtual timer's, on all KVMs

extern char image_end[];
void machine_fault(u64 esr, u64 elr, u64 far);

u64 uart;
static struct gic gic;
static u64 virtio[32];
static u32 n_virtio;
static u32 irq_serial, irq_restored, irq_virtio; // 0: none

void *memcpy(void *to, const void *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((u8 *)to)[i] = ((const u8 *)from)[i];
	return to;
}

void *memset(void *to, int c, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((u8 *)to)[i] = (u8)c;
	return to;
}

static u32 irq_of(const struct fdt_node *n) { return n->spi < GIC_SPIS ? GIC_SPI + n->spi : 0; }

static void add_ram(u64 addr, u64 size)
{
	u64 start = ((u64)image_end + HEAP_ALIGN - 1) & ~(HEAP_ALIGN - 1), end = addr + size;
	machine.ram_bytes += size;
	if (addr <= start && start < end) { // over the tree, which is not read again
		machine.heap = start;
		machine.heap_pages = (end - start) / PAGE;
	}
}

static void read_node(const struct fdt_node *n)
{
	if (same(n->compatible, "ns16550a")) {
		uart = n->reg[0];
		irq_serial = irq_of(n);
	} else if (same(n->compatible, "arm,gic-v3") || same(n->compatible, "arm,cortex-a15-gic")) {
		gic = (struct gic){ same(n->compatible, "arm,gic-v3") ? 3 : 2, n->reg[0], n->reg[2] };
	} else if (same(n->compatible, "microsoft,vmgenid")) {
		machine.genid = n->reg[0];
		irq_restored = irq_of(n);
	} else if (same(n->compatible, "virtio,mmio")) {
		if (n_virtio < sizeof virtio / sizeof *virtio)
			virtio[n_virtio++] = n->reg[0];
	} else if (n->depth == 1 && starts(n->name, "memory@")) {
		add_ram(n->reg[0], n->reg[1]);
	} else if (n->depth == 2 && starts(n->name, "cpu@")) {
		machine.n_cpus++;
	} else if (n->depth == 1 && same(n->name, "chosen")) {
		copy_text(machine.cmdline, n->bootargs, sizeof machine.cmdline);
	}
}

void machine_init(u64 tree, u32 kind)
{
	(void)kind;
	if (!fdt_walk(tree, read_node) || !uart || !gic.version)
		power_off();
	gic_init(&gic);
	if (irq_restored)
		gic_enable(irq_restored);
	gic_enable(irq_serial);
	gic_enable(IRQ_TIMER);
}

u64 machine_virtio(u32 n) { return n < n_virtio ? virtio[n] : 0; }

void wait_interrupt(void) { __asm__ volatile("dsb sy\n\twfi" : : : "memory"); }

u32 take_events(void)
{
	u32 irq, events = 0;
	while ((irq = gic_take()) < GIC_NONE) {
		if (irq == IRQ_TIMER) {
			timer_start(0); // its line is a level
			events |= EVENT_TIMER;
		} else {
			events |= irq == irq_serial     ? EVENT_SERIAL
				  : irq == irq_restored ? EVENT_RESTORED
				  : irq == irq_virtio   ? EVENT_VIRTIO
							: 0u;
		}
		gic_end(irq);
	}
	return events;
}

void timer_start(u64 ms)
{
	u64 hz;
	__asm__("mrs %0, cntfrq_el0" : "=r"(hz));
	__asm__ volatile("msr cntv_cval_el0, %0" : : "r"(counter() + ms * hz / 1000));
	__asm__ volatile("msr cntv_ctl_el0, %0\n\tisb" : : "r"((u64)(ms > 0)) : "memory");
}

bool machine_unmask_virtio(u64 pin)
{
	if (pin >= GIC_SPIS)
		return false;
	irq_virtio = GIC_SPI + (u32)pin;
	gic_enable(irq_virtio);
	return true;
}

bool machine_virtio_pending(void) { return gic_pending(irq_virtio); }

static void psci(u64 function)
{
	register u64 x0 __asm__("x0") = function;
	__asm__ volatile("hvc #0" : "+r"(x0) : : "x1", "x2", "x3", "memory");
}

void power_off(void)
{
	psci(PSCI_SYSTEM_OFF);
	for (;;)
		wait_interrupt();
}

void reset(void)
{
	psci(PSCI_SYSTEM_RESET);
	for (;;)
		wait_interrupt();
}

// What ends a machine on x86-64 is an endless loop of faults here, which nobody sees.
void crash(void) {}

void machine_fault(u64 esr, u64 elr, u64 far)
{
	const u64 value[] = { esr, elr, far };
	put("FAULT");
	for (u32 i = 0; i < sizeof value / sizeof *value; i++) {
		put_char(' ');
		put_hex(value[i], 16);
	}
	put("\n");
	power_off();
}
