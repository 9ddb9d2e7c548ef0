// SPDX-License-Identifier: Apache-2.0
#include "devices/serial.h"

#include "tests/t.h"

#include <errno.h>
#include <sys/eventfd.h>

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = 2 };

static struct serial s;
static unsigned outputs;

static void on_output(void *arg, uint8_t byte)
{
	(void)arg, (void)byte;
	outputs++;
}

static int set_up(void **state)
{
	(void)state;
	assert_int_equal(serial_init(&s), 0);
	s.on_output = on_output;
	outputs = 0;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	serial_fini(&s);
	serial_fini(&s); // may be called twice
	return 0;
}

static unsigned irqs(void)
{
	eventfd_t n = 0;
	return eventfd_read(s.irq_fd, &n) ? 0 : (unsigned)n;
}

// The steps by which Linux's 8250 driver recognises a 16550A and trusts its interrupt.
static void test_probe(void **state)
{
	(void)state;
	serial_write(&s, IER, 0);
	assert_int_equal(serial_read(&s, IER) & 0x0f, 0);
	serial_write(&s, IER, 0xff);
	assert_int_equal(serial_read(&s, IER), 0x0f); // no bits beyond those of a 16550A
	serial_write(&s, IER, 0);
	serial_write(&s, MCR, 0x10 | 0x0a); // loop, OUT2, RTS
	assert_int_equal(serial_read(&s, MSR) & 0xf0, 0x90);
	serial_write(&s, MCR, 0x10 | 0x05);
	assert_int_equal(serial_read(&s, MSR) & 0xf0, 0x60);
	serial_write(&s, MCR, 0);
	assert_int_equal(serial_read(&s, MSR) & 0xf0, 0xb0);
	serial_write(&s, SCR, 0xa5);
	assert_int_equal(serial_read(&s, SCR), 0xa5);
	assert_int_equal(serial_read(&s, IIR), 0x01);
	serial_write(&s, FCR, 1);
	assert_int_equal(serial_read(&s, IIR), 0xc1);
	serial_write(&s, LCR, 0xbf); // no EFR behind it
	assert_true(serial_read(&s, IIR) != 0);
	serial_write(&s, DATA, 0x34);
	serial_write(&s, IER, 0x12);
	assert_int_equal(serial_read(&s, DATA), 0x34);
	assert_int_equal(serial_read(&s, IER), 0x12);
	serial_write(&s, LCR, 3);
	assert_int_equal(serial_read(&s, IER), 0);
	assert_int_equal(serial_read(&s, LSR), 0x60);
	// Does enabling the transmitter interrupt raise it, each time?
	irqs();
	for (int i = 0; i < 2; i++) {
		serial_write(&s, IER, 2);
		assert_int_equal(irqs(), 1);
		assert_int_equal(serial_read(&s, IIR), 0xc2);
		assert_int_equal(serial_read(&s, IIR), 0xc1); // acknowledged by reading
		serial_write(&s, IER, 0);
	}
	assert_int_equal(outputs, 0);
}

static void test_output(void **state)
{
	(void)state;
	uint8_t buf[64];
	uint64_t at = 0;
	for (const char *p = "hello"; *p; p++)
		serial_write(&s, DATA, (uint8_t)*p);
	assert_int_equal(irqs(), 0); // not enabled
	assert_int_equal(outputs, 5);
	assert_int_equal(serial_output(&s, &at, buf, sizeof buf), 5);
	assert_memory_equal(buf, "hello", 5);
	at = 3;
	assert_int_equal(serial_output(&s, &at, buf, 1), 1);
	assert_int_equal(buf[0], 'l');
	at = 99;
	assert_int_equal(serial_output(&s, &at, buf, sizeof buf), 0);
	serial_write(&s, IER, 2);
	irqs();
	serial_write(&s, DATA, '!');
	assert_int_equal(irqs(), 1);
	for (unsigned i = 0; i < CONSOLE_RING_BYTES; i++)
		serial_write(&s, DATA, (uint8_t)i);
	at = 0;
	assert_int_equal(serial_output(&s, &at, buf, sizeof buf), sizeof buf);
	assert_int_equal(at, 6); // the oldest byte kept
	assert_int_equal(buf[0], 0);
	assert_int_equal(buf[63], 63);
	serial_write(&s, MCR, 0x10); // to ourselves, not to the console
	serial_write(&s, DATA, 'L');
	assert_int_equal(s.out_total, 6 + CONSOLE_RING_BYTES);
	assert_int_equal(serial_read(&s, DATA), 'L');
}

static void test_input(void **state)
{
	(void)state;
	static uint8_t many[SERIAL_RX_BYTES + 100];
	for (unsigned i = 0; i < sizeof many; i++)
		many[i] = (uint8_t)(i * 7);
	assert_int_equal(serial_input(&s, many, 10), 10);
	assert_int_equal(irqs(), 0);
	assert_true(serial_read(&s, LSR) & 1);
	serial_write(&s, IER, 1); // enabling it with data there
	assert_int_equal(irqs(), 1);
	assert_int_equal(serial_read(&s, IIR), 0x04);
	assert_int_equal(serial_input(&s, many + 10, sizeof many - 10), SERIAL_RX_BYTES - 10);
	assert_int_equal(irqs(), 1);
	assert_int_equal(serial_input(&s, many, 1), 0);
	for (unsigned i = 0; i < SERIAL_RX_BYTES; i++)
		assert_int_equal(serial_read(&s, DATA), (uint8_t)(i * 7));
	assert_int_equal(serial_read(&s, LSR) & 1, 0);
	assert_int_equal(serial_read(&s, IIR), 0x01);
	assert_int_equal(serial_read(&s, DATA), 0); // empty
	serial_input(&s, many, 5);
	serial_write(&s, FCR, 3); // clears it
	assert_int_equal(serial_read(&s, LSR) & 1, 0);
}

static void test_save_load(void **state)
{
	(void)state;
	serial_write(&s, IER, 3);
	serial_write(&s, FCR, 1);
	serial_write(&s, DATA, 'x');
	serial_input(&s, (const uint8_t *)"abc", 3);
	serial_read(&s, DATA);
	MV_BUF saved = { 0 };
	serial_save(&s, &saved);
	assert_false(saved.failed);
	serial_fini(&s);
	assert_int_equal(serial_init(&s), 0);
	struct mv_err err = { 0 };
	assert_int_equal(serial_load(&s, saved.p, saved.len - 1, &err), -EINVAL);
	assert_message(err, "serial port");
	assert_int_equal(serial_load(&s, saved.p, saved.len, &err), 0);
	assert_int_equal(irqs(), 1); // what was pending goes on
	assert_int_equal(serial_read(&s, IIR), 0xc4);
	assert_int_equal(serial_read(&s, DATA), 'b');
	assert_int_equal(serial_read(&s, DATA), 'c');
	assert_int_equal(serial_read(&s, IIR), 0xc2);
	assert_int_equal(s.out_total, 0);
	// A saved state from anywhere: refused, or harmless.
	uint64_t seed = 1;
	MV_FREE uint8_t *copy = malloc(saved.len);
	for (unsigned i = 0; i < 20000; i++) {
		memcpy(copy, saved.p, saved.len);
		t_mutate(copy, saved.len, &seed);
		if (!serial_load(&s, copy, saved.len, NULL))
			assert_true(s.n_rx <= SERIAL_RX_BYTES);
		serial_read(&s, DATA);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_probe, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_output, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_input, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_save_load, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
