// SPDX-License-Identifier: Apache-2.0
// arm64's inline part: see machine.h.
#ifndef TESTS_GUEST_ARCH_H
#define TESTS_GUEST_ARCH_H

#define MAPPED_END 0x8000000000ULL // of start.S's table
#define HEAP_ALIGN 0x10000ULL

extern u64 uart; // from the device tree

static inline void mmio_write(u64 addr, u32 v)
{
	__asm__ volatile("str %w0, [%1]" : : "r"(v), "r"(addr) : "memory");
}

static inline u32 mmio_read(u64 addr)
{
	u32 v;
	__asm__ volatile("ldr %w0, [%1]" : "=r"(v) : "r"(addr) : "memory");
	return v;
}

static inline void uart_write(u16 reg, u8 v)
{
	__asm__ volatile("strb %w0, [%1]" : : "r"(v), "r"(uart + reg) : "memory");
}

static inline u8 uart_read(u16 reg)
{
	u32 v;
	__asm__ volatile("ldrb %w0, [%1]" : "=r"(v) : "r"(uart + reg) : "memory");
	return (u8)v;
}

static inline void barrier(void) { __asm__ volatile("dsb sy" : : : "memory"); }
static inline void read_barrier(void) { __asm__ volatile("dmb oshld" : : : "memory"); }
static inline void relax(void) { __asm__ volatile("yield"); }

static inline u64 counter(void)
{
	u64 v;
	__asm__ volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(v) : : "memory");
	return v;
}
#endif
