// SPDX-License-Identifier: Apache-2.0
// A 16550A serial port (the part a PC driver uses): registers, FIFO'd receive, and a
// console ring buffer that keeps the last CONSOLE_RING_BYTES of output.
// Loop lock held for every call.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/state.h"

#define SERIAL_RX_BYTES 4096u
#define CONSOLE_RING_BYTES (256u * 1024)

struct serial {
	// saved (serial_table)
	uint8_t ier, lcr, mcr, scr; // the other registers follow from the rest
	bool fifo_on;
	uint16_t divisor;
	uint8_t rx[SERIAL_RX_BYTES]; // input not yet read by the guest, oldest first
	uint32_t n_rx;
	bool thr_ipending; // transmitter-empty interrupt waiting to be read from IIR
	// runtime
	int irq_fd;   // eventfd wired to IRQ 4, edge
	uint8_t *out; // ring of the last output
	uint64_t out_total;
	void (*on_output)(void *arg, uint8_t byte); // optional; each byte, in the vCPU's thread
	void *on_output_arg;
};

extern const struct mv_table serial_table;

int serial_init(struct serial *s); // 0 or -errno; makes irq_fd and the ring
void serial_fini(struct serial *s);

// Register 0..7.
uint8_t serial_read(struct serial *s, unsigned reg);
void serial_write(struct serial *s, unsigned reg, uint8_t value);

// Queues input for the guest; returns how many bytes there was room for.
uint32_t serial_input(struct serial *s, const uint8_t *data, uint32_t len);

// Copies output from absolute position *offset (moved forward to the oldest byte kept);
// returns the number of bytes copied.
uint32_t serial_output(const struct serial *s, uint64_t *offset, uint8_t *buf, uint32_t len);

void serial_save(const struct serial *s, struct mv_buf *out);
// Into a fresh port; input and interrupt state continue, the ring starts empty.
int serial_load(struct serial *s, const void *bytes, size_t len, struct mv_err *err);
