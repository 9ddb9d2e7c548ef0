/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the tiny guest agree on. */
#ifndef TESTS_GUEST_TINY_H
#define TESTS_GUEST_TINY_H

#define SEL_KERNEL_CODE 0x08
#define SEL_USER_DATA 0x1b
#define SEL_USER_CODE 0x23
#define SEL_TSS 0x28
#define USER_RFLAGS 0x3002 // IOPL 3
#define IO_PORTS 0x800     /* those below are open to user mode */

#define VECTOR_PROTECTION 0x0d
#define VECTOR_SERIAL 0x30 /* one priority class: one in service at a time */
#define VECTOR_RESTORED 0x31
#define VECTOR_BUTTON 0x32
#define VECTOR_TIMER 0x33

#define BOOT_PVH 1
#define BOOT_LINUX 2

#ifndef __ASSEMBLER__
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE 4096ULL
#define MAPPED_END 0x100000000ULL // of start.S's page tables
#define RNG_MAX 64

// Exactly one plain mov each: an MMIO exit has to be decoded by the host.
static inline void mmio_write(u64 addr, u32 v)
{
	__asm__ volatile("movl %0, (%1)" : : "r"(v), "r"(addr) : "memory");
}

static inline u32 mmio_read(u64 addr)
{
	u32 v;
	__asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(addr) : "memory");
	return v;
}

// tiny.c
extern char cmdline[1024];
bool starts(const char *s, const char *with);
// Decimal, or hexadecimal behind 0x; *s moves behind the digits.
bool number(const char **s, u64 *v);

// rng.c. False: no such device; it gave nothing in time. n is at most RNG_MAX.
bool rng_init(void);
bool rng_fill(u8 *to, u64 n);
#endif

#endif
