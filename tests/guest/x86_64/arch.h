// SPDX-License-Identifier: Apache-2.0
// x86-64's inline part: see machine.h.
#ifndef TESTS_GUEST_ARCH_H
#define TESTS_GUEST_ARCH_H

#define MAPPED_END 0x100000000ULL // of start.S's page tables, without the last GiB for virtio-pmem
#define HEAP_ALIGN 0x200000ULL
#define COM1 0x3f8

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

static inline void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }

static inline u8 in8(u16 port)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline void uart_write(u16 reg, u8 v) { out8((u16)(COM1 + reg), v); }
static inline u8 uart_read(u16 reg) { return in8((u16)(COM1 + reg)); }

static inline void barrier(void) { __asm__ volatile("mfence" : : : "memory"); }
static inline void read_barrier(void) { __asm__ volatile("" : : : "memory"); }
static inline void relax(void) { __asm__ volatile("pause"); }

static inline u64 counter(void)
{
	u32 low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}
#endif
