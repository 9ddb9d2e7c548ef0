/* SPDX-License-Identifier: Apache-2.0 */
/* What start.S and machine.c agree on. */
#ifndef TESTS_GUEST_X86_64_ENTRY_H
#define TESTS_GUEST_X86_64_ENTRY_H

#define SEL_KERNEL_CODE 0x08
#define SEL_USER_DATA 0x1b
#define SEL_USER_CODE 0x23
#define SEL_TSS 0x28
#define USER_RFLAGS 0x3002 /* IOPL 3 */
#define IO_PORTS 0x800     /* those below are open to user mode */

#define VECTOR_PROTECTION 0x0d
#define VECTOR_SERIAL 0x30 /* one priority class: one in service at a time */
#define VECTOR_RESTORED 0x31
#define VECTOR_BUTTON 0x32
#define VECTOR_TIMER 0x33
#define VECTOR_VIRTIO 0x34

#define BOOT_PVH 1
#define BOOT_LINUX 2
#endif
