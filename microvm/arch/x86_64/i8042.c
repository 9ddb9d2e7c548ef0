// SPDX-License-Identifier: Apache-2.0
#include "i8042.h"

#include <string.h>

enum { // status register
	STATUS_OUT_FULL = 1 << 0,
	STATUS_SYSTEM = 1 << 2,
	STATUS_UNLOCKED = 1 << 4,
	// command byte
	CB_KEYBOARD_IRQ = 1 << 0,
	CB_SYSTEM = 1 << 2,
	CB_KEYBOARD_OFF = 1 << 4,
	CB_AUX_OFF = 1 << 5,
	CB_TRANSLATE = 1 << 6,
	// controller commands
	CMD_READ_CB = 0x20,
	CMD_WRITE_CB = 0x60,
	CMD_AUX_OFF = 0xa7,
	CMD_AUX_ON = 0xa8,
	CMD_AUX_TEST = 0xa9,
	CMD_SELF_TEST = 0xaa,
	CMD_KEYBOARD_TEST = 0xab,
	CMD_KEYBOARD_OFF = 0xad,
	CMD_KEYBOARD_ON = 0xae,
	CMD_WRITE_OUT = 0xd2, // echo back as if from the keyboard
	CMD_RESET = 0xfe,
	// keyboard
	KBD_LEDS = 0xed,
	KBD_SCANSET = 0xf0,
	KBD_ID = 0xf2,
	KBD_RATE = 0xf3,
	KBD_ENABLE = 0xf4,
	KBD_DISABLE = 0xf5,
	KBD_RESET = 0xff,
	KBD_ACK = 0xfa,
};

static const struct mv_field fields[] = {
	MV_INT(struct i8042, command_byte, 1, MV_U8, 0, 255),
	MV_INT(struct i8042, pending_command, 2, MV_U8, 0, 255),
	MV_INT(struct i8042, keyboard_command, 3, MV_U8, 0, 255),
	MV_FLAG(struct i8042, scanning, 4),
	MV_VAR(struct i8042, out, n_out, 5),
};
MV_DEFINE_TABLE(i8042_table, struct i8042, fields);

void i8042_init(struct i8042 *k)
{
	*k = (struct i8042){ .command_byte = CB_SYSTEM | CB_AUX_OFF | CB_TRANSLATE };
}

static bool irq_wanted(const struct i8042 *k) { return k->n_out && (k->command_byte & CB_KEYBOARD_IRQ); }

static void put(struct i8042 *k, uint8_t value)
{
	if (k->n_out < I8042_QUEUE)
		k->out[k->n_out++] = value;
}

uint8_t i8042_read(struct i8042 *k, unsigned offset, bool *ret_irq)
{
	uint8_t value = 0;
	if (offset)
		return (uint8_t)(STATUS_SYSTEM | STATUS_UNLOCKED | (k->n_out ? STATUS_OUT_FULL : 0));
	if (k->n_out) {
		value = k->out[0];
		memmove(k->out, k->out + 1, --k->n_out);
		*ret_irq = irq_wanted(k); // one edge per byte
	}
	return value;
}

static void command(struct i8042 *k, uint8_t value, bool *ret_reset)
{
	switch (value) {
	case CMD_READ_CB: put(k, k->command_byte); break;
	case CMD_WRITE_CB:
	case CMD_WRITE_OUT: k->pending_command = value; break;
	case CMD_SELF_TEST: put(k, 0x55); break;
	case CMD_KEYBOARD_TEST: put(k, 0); break;
	case CMD_AUX_TEST: put(k, 0xff); break; // no mouse port
	case CMD_KEYBOARD_OFF: k->command_byte |= CB_KEYBOARD_OFF; break;
	case CMD_KEYBOARD_ON: k->command_byte &= (uint8_t)~CB_KEYBOARD_OFF; break;
	case CMD_RESET: *ret_reset = true; break;
	default: break; // the rest has no effect here
	}
}

static void keyboard(struct i8042 *k, uint8_t value)
{
	if (k->keyboard_command) { // its argument
		bool asks_scanset = k->keyboard_command == KBD_SCANSET && value == 0;
		k->keyboard_command = 0;
		put(k, KBD_ACK);
		if (asks_scanset)
			put(k, 2);
		return;
	}
	put(k, KBD_ACK);
	switch (value) {
	case KBD_LEDS:
	case KBD_SCANSET:
	case KBD_RATE: k->keyboard_command = value; break;
	case KBD_ID:
		put(k, 0xab);
		put(k, 0x83);
		break;
	case KBD_ENABLE: k->scanning = true; break;
	case KBD_DISABLE: k->scanning = false; break;
	case KBD_RESET:
		k->scanning = true;
		put(k, 0xaa);
		break;
	default: break;
	}
}

void i8042_write(struct i8042 *k, unsigned offset, uint8_t value, bool *ret_irq, bool *ret_reset)
{
	if (offset)
		command(k, value, ret_reset);
	else if (k->pending_command) {
		uint8_t pending = k->pending_command;
		k->pending_command = 0;
		if (pending == CMD_WRITE_CB)
			k->command_byte = value;
		else
			put(k, value);
	} else
		keyboard(k, value);
	*ret_irq = irq_wanted(k);
}

bool i8042_ctrl_alt_del(struct i8042 *k, bool *ret_irq)
{
	// Scan code set 1 (translated) or 2, press only: the guest reboots on the last one.
	static const uint8_t set1[] = { 0x1d, 0x38, 0xe0, 0x53 }, set2[] = { 0x14, 0x11, 0xe0, 0x71 };
	const uint8_t *keys = k->command_byte & CB_TRANSLATE ? set1 : set2;

	if (!k->scanning || !(k->command_byte & CB_KEYBOARD_IRQ) || k->n_out + 4 > I8042_QUEUE)
		return false;
	for (int i = 0; i < 4; i++)
		put(k, keys[i]);
	*ret_irq = true;
	return true;
}
