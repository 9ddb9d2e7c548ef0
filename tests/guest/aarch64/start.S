/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entry, page table and vectors of the tiny guest on arm64.
 *
 * An Image (Linux Documentation/arch/arm64/booting.rst): entered at EL1 with the MMU off, interrupts masked and the
 * device tree's address in x0. Unlike a kernel it is linked for one place, 2 MiB behind the start of RAM, where
 * thaw loads it. One table maps 512 GiB, identity: the first GiB as a device, all else as
 * normal memory, since exclusive and unaligned accesses and the caches need that. All of it is a constant in the image.
 *
 * Interrupts stay masked for ever: wfi wakes for a pending one anyway, and gic.c acknowledges it. So all vectors
 * are faults of ours.
 */
#define MAIR		0xff04		/* 0: device, nGnRE; 1: normal, write-back */
#define BLOCK		0x701		/* accessed, inner shareable, a block */
#define NORMAL		0x4		/* attributes 1 */
#define NEVER_EXECUTED	(3 << 53)
#define GIB		(1 << 30)
/* 39 bits; tables write-back, inner shareable; 4 KiB; none for the upper half; 40 bits of physical addresses. */
#define TCR		(25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32)
#define SCTLR_M_C_I	(1 | 1 << 2 | 1 << 12)
#define SCTLR_A_WXN	(1 << 1 | 1 << 19)

	.section .head, "ax"
	.globl start
start:	b enter
	.long 0
	.quad 0				/* text_offset */
	.quad image_bytes
	.quad 2				/* little-endian, 4 KiB pages, at the start of RAM */
	.quad 0, 0, 0
	.ascii "ARM\x64"
	.long 0

	.text
enter:	mov x19, x0
	ldr x0, =MAIR
	msr mair_el1, x0
	ldr x0, =TCR
	msr tcr_el1, x0
	ldr x0, =table
	msr ttbr0_el1, x0
	ldr x0, =vectors
	msr vbar_el1, x0
	isb
	tlbi vmalle1
	ic iallu
	dsb nsh
	isb
	mrs x0, sctlr_el1
	ldr x1, =SCTLR_A_WXN
	bic x0, x0, x1
	ldr x1, =SCTLR_M_C_I
	orr x0, x0, x1
	msr sctlr_el1, x0
	isb
	ldr x0, =bss_start
	ldr x1, =image_end
1:	stp xzr, xzr, [x0], #16
	cmp x0, x1
	b.lo 1b
	ldr x0, =stack_top
	mov sp, x0
	mov x0, x19
	mov w1, #0
	b guest_main

	.balign 2048
vectors:
	.rept 16
	b 2f
	.balign 128
	.endr
2:	ldr x0, =stack_top
	mov sp, x0
	mrs x0, esr_el1
	mrs x1, elr_el1
	mrs x2, far_el1
	b machine_fault

	.section .rodata
	.balign 4096
table:	.quad BLOCK + NEVER_EXECUTED
	.quad GIB + BLOCK + NORMAL
	.set at, 2 * GIB
	.rept 510
	.quad at + BLOCK + NORMAL + NEVER_EXECUTED
	.set at, at + GIB
	.endr

	.bss
	.balign 16
	.skip 16384
stack_top:
