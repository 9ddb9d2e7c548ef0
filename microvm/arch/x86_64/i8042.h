// SPDX-License-Identifier: Apache-2.0
// The i8042 keyboard controller: as much as Linux's i8042 and atkbd drivers need to
// find a keyboard that types Ctrl-Alt-Del, and the reset line. Loop lock held.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/state.h"

#define I8042_QUEUE 32

struct i8042 {                    // saved (i8042_table)
	uint8_t command_byte;     // what 0x20/0x60 read and write
	uint8_t pending_command;  // controller command that waits for its data byte, 0 none
	uint8_t keyboard_command; // keyboard command that waits for its argument, 0 none
	bool scanning;
	uint8_t out[I8042_QUEUE]; // bytes for the guest, oldest first
	uint32_t n_out;
};

extern const struct mv_table i8042_table;

void i8042_init(struct i8042 *k);
// offset 0: data (0x60), 4: status and command (0x64). *ret_irq: raise IRQ 1;
// *ret_reset: the guest pulled the reset line.
uint8_t i8042_read(struct i8042 *k, unsigned offset, bool *ret_irq);
void i8042_write(struct i8042 *k, unsigned offset, uint8_t value, bool *ret_irq, bool *ret_reset);
// Types Ctrl-Alt-Del; false when the guest has no keyboard driver listening or the queue is full.
bool i8042_ctrl_alt_del(struct i8042 *k, bool *ret_irq);
