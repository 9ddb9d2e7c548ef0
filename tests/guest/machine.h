/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an architecture's folder supplies, the same names in each: arch.h, with what has to be inline, and
 * machine.c, all of below. The rest of the guest knows nothing of the architecture.
 *
 * arch.h: mmio_read(), mmio_write(): one plain instruction each, since the host has to decode an MMIO exit.
 * uart_read(), uart_write(): a register of the 16550. barrier(): memory, between us and a device, both ways;
 * read_barrier(): what it wrote, once its index was seen. relax(): in a loop that polls. counter(): what the
 * kernel would take its time from. HEAP_ALIGN. MAPPED_END: where what can be touched ends.
 */
#ifndef TESTS_GUEST_MACHINE_H
#define TESTS_GUEST_MACHINE_H

#include "arch.h"

#define GENID_BYTES 16

enum event {
	EVENT_SERIAL = 1,
	EVENT_RESTORED = 2, // a new generation ID
	EVENT_BUTTON = 4,   // power
	EVENT_TIMER = 8,
	EVENT_VIRTIO = 16, // at the pin of machine_unmask_virtio()
};

// For us and for the compiler.
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);

// The entry's way into tiny.c: the arguments of machine_init().
void guest_main(u64 info, u32 kind);

// Filled by machine_init().
struct machine {
	char cmdline[1024];
	u64 ram_bytes;        // that the host says there is
	u64 heap, heap_pages; // behind the image
	u64 genid;            // 0: not known
	u32 n_cpus;           // enabled ones; 0: not known
};
extern struct machine machine;
// Interrupts are ready, and what the host says of the machine was read. No I/O that ends up at the host's
// program.
void machine_init(u64 info, u32 kind);
// The nth place where a virtio-mmio device may be, 0 behind the last one.
u64 machine_virtio(u32 n);

// Sleeps until an interrupt is there, also if it came before.
void wait_interrupt(void);
// What came since, as a set of enum event, each only once.
u32 take_events(void);

void timer_start(u64 ms); // one shot; 0: none
// A device's interrupt, by the number that the host's program gave it. False: there is no such number.
bool machine_unmask_virtio(u64 pin);
bool machine_virtio_pending(void);

__attribute__((noreturn)) void power_off(void);
__attribute__((noreturn)) void reset(void);
// The CPU gives up. Returns where that can't be had.
void crash(void);
#endif
