// SPDX-License-Identifier: Apache-2.0
/*
 * The tiny guest: a whole guest system, for tests, bench and demo. This file is its main loop; machine.h is
 * what the architecture's folder adds, and says how the CPU runs it.
 *
 * Theory of operation. start.S brings vCPU 0 into guest_main(), with interrupts masked and all memory and
 * MMIO identity-mapped; other vCPUs stay parked. It says READY on the serial port (the first byte is the
 * first I/O that the host's program sees), then answers each line with one line, "OK ..." or "ERR reason";
 * empty ones not. The commands are in the table `commands`.
 *
 * Waiting costs no CPU. wait_interrupt() sleeps until an interrupt is pending; one that comes between the
 * last look at the UART and the sleep ends the sleep at once. Interrupts are edge-triggered, so whoever
 * takes one empties its source each time.
 *
 *   received data
 *   the monitor's "you were restored" (a new generation ID). The answer is RESTORED: nobody needs to ask, so
 * it is the first I/O of a restored guest. the power button. The answer is BUTTON and power-off. the timer,
 * armed by `timer MS`, one shot. It says TIMER. the rng device's, which `events` unmasks, see there.
 *
 * Nothing here is initialised at a command but the virtio queues, at the first `rand`, `blk` and so on
 * (virtio.c); so a snapshot can be taken at any time, also in mid-command.
 */
#include "tests/guest/tiny.h"

#define LINE_MAX 300

struct machine machine;

// --- the serial port -------------------------------------------------------------
#define UART_DATA 0 // registers of a 16550
#define UART_IER 1
#define UART_MCR 4
#define UART_LSR 5
#define LSR_DATA 0x01
#define LSR_THR_EMPTY 0x20

// Waits after the byte, not before it: so a line's first I/O is its first byte.
void put_char(char c)
{
	uart_write(UART_DATA, (u8)c);
	while (!(uart_read(UART_LSR) & LSR_THR_EMPTY))
		;
}

void put(const char *s)
{
	while (*s)
		put_char(*s++);
}

void put_hex(u64 v, int digits)
{
	while (digits--)
		put_char("0123456789abcdef"[v >> (4 * digits) & 15]);
}

static void put_dec(u64 v)
{
	char b[21], *p = b + 20;
	*p = 0;
	do
		*--p = (char)('0' + v % 10);
	while (v /= 10);
	put(p);
}

void put_bytes(const volatile u8 *p, u64 n)
{
	while (n--)
		put_hex(*p++, 2);
}

void error(const char *reason)
{
	put("ERR ");
	put(reason);
	put("\n");
}

void ok_dec(u64 v)
{
	put("OK ");
	put_dec(v);
	put("\n");
}

void ok_text(const char *s)
{
	put("OK ");
	put(s);
	put("\n");
}

// --- events --------------------------------------------------------------------------
u32 handle_events(void)
{
	u32 events = take_events();
	if (events & EVENT_RESTORED)
		put("RESTORED\n");
	if (events & EVENT_TIMER)
		put("TIMER\n");
	if (events & EVENT_BUTTON) {
		put("BUTTON\n");
		power_off();
	}
	return events;
}

static char get_char(void)
{
	while (!(uart_read(UART_LSR) & LSR_DATA)) {
		wait_interrupt();
		handle_events();
	}
	return (char)uart_read(UART_DATA);
}

static bool read_line(char *line)
{
	u64 n = 0;
	for (char c; (c = get_char()) != '\n';)
		if (c != '\r' && n++ < LINE_MAX)
			line[n - 1] = c;
	line[n < LINE_MAX ? n : LINE_MAX] = 0;
	return n <= LINE_MAX;
}

void guest_main(u64 info, u32 kind)
{
	static char line[LINE_MAX + 1];
	machine_init(info, kind); // who has seen READY may take a snapshot, and its clones say RESTORED
	put("READY\n");
	uart_write(UART_MCR, 0x0b); // DTR, RTS, OUT2: lets the interrupt out
	uart_write(UART_IER, 0x01); // received data
	for (;;) {
		if (!read_line(line))
			error("line too long");
		else if (*line)
			run_line(line);
	}
}
