/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entry points, tables and the few kernel-mode instructions of the tiny guest.
 *
 * Two ways in, one way on:
 *
 *   start32  PVH (XEN_ELFNOTE_PHYS32_ENTRY): 32-bit protected mode, paging off,
 *            ebx = struct hvm_start_info.
 *   start64  Linux 64-bit boot protocol, the ELF entry: long mode, identity
 *            paging, rsi = struct boot_params.
 *   enter    common: our GDT, IDT, TSS and page tables, then iretq to guest_main()
 *            in user mode (CPL 3, interrupts off).
 *
 * Everything that could be computed is a constant in the image, since monitors
 * on some hosts interpret kernel mode one instruction at a time. Kernel mode is
 * left for ever but for user mode's hlt. That is a fault, and not an `int` or
 * `syscall`, as kvm-pvm (the host this was written on) delivers faults of a
 * guest's user mode but neither of these two; it drops the IOPL, too, so the
 * ports are opened by the TSS as well. QEMU's emulation needs the IOPL: its check of
 * the TSS refuses the busy type that KVM gives a restored task register. All of it is
 * plain x86 and runs anywhere.
 *
 * The IDT has no other exception gates: any fault is a triple fault, on purpose.
 */
#include "tests/guest/x86_64/entry.h"

#define PTE_TABLE	0x027	/* present, writable, user, accessed */
#define PTE_2M		0x0e7	/* the same, dirty, 2 MiB page */
#define MSR_EFER	0xc0000080
#define EFER_LME	0x100
#define CR0_PG_WP_NE_PE	0x80010031	/* with ET */
#define CR4_PAE		0x20
#define OPCODE_HLT	0xf4

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad start32

	.text
	.code32
start32:
	cld
	mov $pml4, %eax
	mov %eax, %cr3
	mov $CR4_PAE, %eax
	mov %eax, %cr4
	mov $MSR_EFER, %ecx
	xor %edx, %edx
	mov $EFER_LME, %eax
	wrmsr
	mov $CR0_PG_WP_NE_PE, %eax
	mov %eax, %cr0
	lgdt gdt_pointer
	mov %ebx, %edi
	mov $BOOT_PVH, %esi
	ljmp $SEL_KERNEL_CODE, $enter

	.code64
	.globl start64
start64:
	cld
	mov $pml4, %eax
	mov %rax, %cr3
	lgdt gdt_pointer
	mov %rsi, %rdi
	mov $BOOT_LINUX, %esi
	mov $kernel_stack_top, %esp
	push $SEL_KERNEL_CODE
	push $enter
	lretq

	/* edi = boot information, esi = its kind: the arguments of guest_main(). */
enter:
	xor %eax, %eax
	mov %eax, %ss
	mov $kernel_stack_top, %esp
	lidt idt_pointer
	mov $SEL_TSS, %ax
	ltr %ax
	push $SEL_USER_DATA
	push $user_stack_top - 8	/* as after a call */
	push $USER_RFLAGS
	push $SEL_USER_CODE
	push $guest_main
	iretq

	/*
	 * General protection. User mode's hlt faults to here, and kernel mode halts
	 * in its place: sleeps until an interrupt was taken, then returns behind the
	 * hlt. Any other fault is an error and ends in a triple fault. rax is lost.
	 */
	.globl on_protection, on_serial, on_restored, on_button, on_timer, on_virtio
on_protection:
	add $8, %rsp			/* the error code */
	mov (%rsp), %rax
	cmpb $OPCODE_HLT, (%rax)
	jne fatal
	incq (%rsp)
	sti
	hlt
	iretq
fatal:
	ud2

	/* They only come at the hlt above; user mode ends them at the local APIC. */
on_serial:
	movb $1, irq_serial
	iretq
on_restored:
	movb $1, irq_restored
	iretq
on_button:
	movb $1, irq_button
	iretq
on_timer:
	movb $1, irq_timer
	iretq
on_virtio:
	movb $1, irq_virtio
	iretq

	.data
	.balign 4096
pml4:	.quad pdpt + PTE_TABLE
	.fill 511, 8, 0
pdpt:	.quad pd + PTE_TABLE, pd + 0x1000 + PTE_TABLE
	.quad pd + 0x2000 + PTE_TABLE, pd + 0x3000 + PTE_TABLE
	.quad pd + 0x4000 + PTE_TABLE
	.fill 507, 8, 0
pd:	.set page, 0
	.rept 5 * 512			/* 5 GiB, identity; the last one for virtio-pmem */
	.quad page + PTE_2M
	.set page, page + 0x200000
	.endr

gdt:	.quad 0
	.quad 0x00af9b000000ffff	/* SEL_KERNEL_CODE */
	.quad 0x00cf93000000ffff	/* unused, keeps syscall's order */
	.quad 0x00cff3000000ffff	/* SEL_USER_DATA */
	.quad 0x00affb000000ffff	/* SEL_USER_CODE */
	.word tss_limit, tss_lo, tss_mid, 0	/* SEL_TSS; tiny.ld splits its base */
	.quad 0
gdt_pointer:
	.word . - gdt - 1
	.quad gdt
idt_pointer:
	.word idt_end - idt - 1
	.quad idt

	/* A gate's offset is in pieces; tiny.ld defines them. */
	.macro gate handler
	.word \handler\()_lo, SEL_KERNEL_CODE, 0x8e00, \handler\()_hi
	.quad 0
	.endm
	.balign 16
idt:	.fill VECTOR_PROTECTION * 2, 8, 0
	gate on_protection
	.fill (VECTOR_SERIAL - VECTOR_PROTECTION - 1) * 2, 8, 0
	gate on_serial
	gate on_restored
	gate on_button
	gate on_timer
	gate on_virtio
idt_end:

	.globl tss
	.balign 16
tss:	.long 0
	.quad kernel_stack_top		/* rsp0 */
	.fill 90, 1, 0
	.word io_ports - tss
io_ports:
	.fill IO_PORTS / 8, 1, 0	/* open to user mode */
	.byte 0xff
	.set tss_limit, . - tss - 1

	.bss
	.balign 16
	.skip 1024
kernel_stack_top:
	.skip 8192
user_stack_top:
