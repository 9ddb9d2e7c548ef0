// SPDX-License-Identifier: Apache-2.0
// What the files of this folder share.
#ifndef TESTS_GUEST_AARCH64_A64_H
#define TESTS_GUEST_AARCH64_A64_H

#include "tests/guest/tiny.h"

#define FDT_NONE 0xffffffffu
#define FDT_MAX_REG 4
struct fdt_node {
	const char *name;                  // with its unit address
	u32 depth;                         // 1: below the root
	const char *compatible, *bootargs; // "": none. Of several strings the first one
	u64 reg[FDT_MAX_REG];              // of two cells each
	u32 spi;                           // the number of its first shared interrupt; FDT_NONE
};
// Calls fn for each node, in the tree's order. It believes the host, but for the tree's bounds. False: no
// tree, or one that is cut off.
bool fdt_walk(u64 addr, void (*fn)(const struct fdt_node *node));

// The interrupt controller, GICv2 or GICv3, for this CPU. Numbers are the controller's: shared ones from
// GIC_SPI on.
#define GIC_SPI 32
#define GIC_SPIS 32
#define GIC_NONE 1020 // and above
struct gic {
	u32 version;     // 0: there is none
	u64 dist, other; // the first redistributor (3), or the CPU interface (2)
};
void gic_init(const struct gic *g);
void gic_enable(u32 irq); // edges, if it is a shared one; to this CPU
u32 gic_take(void);       // the next pending one; to be ended
void gic_end(u32 irq);
bool gic_pending(u32 irq);
#endif
