// SPDX-License-Identifier: Apache-2.0
// The interrupt controller: Arm IHI 0048 (GICv2) and IHI 0069 (GICv3). Interrupts are taken by asking for
// them, with the CPU's mask set for ever, so there is no handler.
#include "tests/guest/aarch64/a64.h"

enum { // of the distributor, and of a GICv3 redistributor's second frame
	CTLR = 0x000,
	IGROUPR = 0x080,
	ISENABLER = 0x100,
	ISPENDR = 0x200,
	ITARGETSR = 0x800, // GICv2
	ICFGR = 0xc00,
	IROUTER = 0x6000, // GICv3
	GICR_WAKER = 0x14,
	GICR_SGI = 0x10000,
};
enum { GICC_CTLR = 0x00, GICC_PMR = 0x04, GICC_IAR = 0x0c, GICC_EOIR = 0x10 };
#define CTLR_GROUP1_ARE 0x12
#define WAKER_SLEEP 2u
#define WAKER_ASLEEP 4u
#define ALL_PRIORITIES 0xff
#define IRQ_OF_IAR 0x3ff

#define ICC_PMR "S3_0_C4_C6_0"
#define ICC_IAR1 "S3_0_C12_C12_0"
#define ICC_EOIR1 "S3_0_C12_C12_1"
#define ICC_SRE "S3_0_C12_C12_5"
#define ICC_IGRPEN1 "S3_0_C12_C12_7"
#define SYS_WRITE(reg, v) __asm__ volatile("msr " reg ", %0\n\tisb" : : "r"((u64)(v)) : "memory")

static struct gic gic;

static void set_bits(u64 addr, u32 bits) { mmio_write(addr, mmio_read(addr) | bits); }

void gic_init(const struct gic *g)
{
	gic = *g;
	if (gic.version == 2) {
		mmio_write(gic.dist + CTLR, 1);
		mmio_write(gic.other + GICC_PMR, ALL_PRIORITIES);
		mmio_write(gic.other + GICC_CTLR, 1);
		return;
	}
	mmio_write(gic.dist + CTLR, CTLR_GROUP1_ARE);
	mmio_write(gic.other + GICR_WAKER, mmio_read(gic.other + GICR_WAKER) & ~WAKER_SLEEP);
	while (mmio_read(gic.other + GICR_WAKER) & WAKER_ASLEEP)
		;
	SYS_WRITE(ICC_SRE, 1);
	SYS_WRITE(ICC_PMR, ALL_PRIORITIES);
	SYS_WRITE(ICC_IGRPEN1, 1);
}

// Where the registers of an interrupt are.
static u64 frame(u32 irq) { return gic.version == 3 && irq < GIC_SPI ? gic.other + GICR_SGI : gic.dist; }

void gic_enable(u32 irq)
{
	u64 base = frame(irq);
	u32 bit = 1u << irq % 32, word = irq / 32 * 4;
	if (irq >= GIC_SPI)
		set_bits(base + ICFGR + irq / 16 * 4, 2u << irq % 16 * 2);
	if (gic.version == 3)
		set_bits(base + IGROUPR + word, bit);
	if (gic.version == 3 && irq >= GIC_SPI) {
		mmio_write(base + IROUTER + 8ull * irq, 0);
		mmio_write(base + IROUTER + 8ull * irq + 4, 0);
	} else if (irq >= GIC_SPI) {
		set_bits(base + ITARGETSR + irq / 4 * 4, 1u << irq % 4 * 8);
	}
	mmio_write(base + ISENABLER + word, bit);
}

u32 gic_take(void)
{
	u64 v;
	if (gic.version == 2)
		return mmio_read(gic.other + GICC_IAR) & IRQ_OF_IAR;
	__asm__ volatile("mrs %0, " ICC_IAR1 "\n\tdsb sy" : "=r"(v) : : "memory");
	return (u32)v;
}

void gic_end(u32 irq)
{
	if (gic.version == 2)
		mmio_write(gic.other + GICC_EOIR, irq);
	else
		SYS_WRITE(ICC_EOIR1, irq);
}

bool gic_pending(u32 irq) { return mmio_read(frame(irq) + ISPENDR + irq / 32 * 4) >> irq % 32 & 1; }
