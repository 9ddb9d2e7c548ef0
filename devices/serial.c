// SPDX-License-Identifier: Apache-2.0
// 16550A: TI PC16550D data sheet, section 8. The transmitter is always empty; speed and
// line format are kept but mean nothing.
#include "devices/serial.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "microvm/base/util.h"

enum { RBR_THR_DLL, IER_DLM, IIR_FCR, LCR, MCR, LSR, MSR, SCR };
enum { IER_RX = 0x01, IER_TX_EMPTY = 0x02, IER_BITS = 0x0f };
enum { IIR_TX_EMPTY = 0x02, IIR_RX = 0x04, IIR_NONE = 0x01, IIR_FIFO_ON = 0xc0 };
enum { FCR_ENABLE = 0x01, FCR_CLEAR_RX = 0x02 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 0x01, MCR_RTS = 0x02, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10, MCR_BITS = 0x1f };
enum { LSR_DATA = 0x01, LSR_TX_EMPTY = 0x60 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

static const struct mv_field serial_fields[] = {
	MV_INT(struct serial, ier, 1, MV_U8, 0, IER_BITS),
	MV_INT(struct serial, lcr, 2, MV_U8, 0, UINT8_MAX),
	MV_INT(struct serial, mcr, 3, MV_U8, 0, MCR_BITS),
	MV_INT(struct serial, scr, 4, MV_U8, 0, UINT8_MAX),
	MV_FLAG(struct serial, fifo_on, 5),
	MV_INT(struct serial, divisor, 6, MV_U16, 0, UINT16_MAX),
	MV_VAR(struct serial, rx, n_rx, 7),
	MV_FLAG(struct serial, thr_ipending, 8),
};
MV_DEFINE_TABLE(serial_table, struct serial, serial_fields);

int serial_init(struct serial *s)
{
	*s = (struct serial){ .divisor = 12, .irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	if (s->irq_fd < 0)
		return -errno;
	s->out = malloc(CONSOLE_RING_BYTES);
	if (!s->out) {
		serial_fini(s);
		return -ENOMEM;
	}
	return 0;
}

void serial_fini(struct serial *s)
{
	mv_close(&s->irq_fd);
	free(MV_TAKE(s->out));
}

// The interrupt identification, received data before transmitter empty.
static uint8_t pending(const struct serial *s)
{
	if ((s->ier & IER_RX) && s->n_rx)
		return IIR_RX;
	if ((s->ier & IER_TX_EMPTY) && s->thr_ipending)
		return IIR_TX_EMPTY;
	return IIR_NONE;
}

// An edge: after every event that may be a new reason, so that none is lost.
static void raise_irq(struct serial *s)
{
	if (pending(s) != IIR_NONE)
		eventfd_write(s->irq_fd, 1);
}

static void drop_rx(struct serial *s, uint32_t n)
{
	s->n_rx -= n;
	memmove(s->rx, s->rx + n, s->n_rx);
}

static uint8_t modem_status(const struct serial *s)
{
	if (!(s->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (uint8_t)((s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
			 (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

uint8_t serial_read(struct serial *s, unsigned reg)
{
	bool dlab = s->lcr & LCR_DLAB;
	uint8_t v = 0;
	switch (reg) {
	case RBR_THR_DLL:
		if (dlab)
			return (uint8_t)s->divisor;
		if (s->n_rx) {
			v = s->rx[0];
			drop_rx(s, 1);
		}
		return v;
	case IER_DLM: return dlab ? (uint8_t)(s->divisor >> 8) : s->ier;
	case IIR_FCR:
		v = pending(s);
		if (v == IIR_TX_EMPTY)
			s->thr_ipending = false; // reading it is the acknowledgement
		return v | (s->fifo_on ? IIR_FIFO_ON : 0);
	case LCR: return s->lcr;
	case MCR: return s->mcr;
	case LSR: return LSR_TX_EMPTY | (s->n_rx ? LSR_DATA : 0);
	case MSR: return modem_status(s);
	case SCR: return s->scr;
	default: return 0;
	}
}

static void transmit(struct serial *s, uint8_t byte)
{
	if (s->mcr & MCR_LOOP) {
		serial_input(s, &byte, 1);
	} else {
		s->out[s->out_total++ % CONSOLE_RING_BYTES] = byte;
		if (s->on_output)
			s->on_output(s->on_output_arg, byte);
	}
	s->thr_ipending = true; // sent at once, so empty again
	raise_irq(s);
}

void serial_write(struct serial *s, unsigned reg, uint8_t value)
{
	bool dlab = s->lcr & LCR_DLAB;
	switch (reg) {
	case RBR_THR_DLL:
		if (dlab)
			s->divisor = (uint16_t)((s->divisor & 0xff00) | value);
		else
			transmit(s, value);
		break;
	case IER_DLM:
		if (dlab) {
			s->divisor = (uint16_t)((s->divisor & 0x00ff) | value << 8);
			break;
		}
		// Enabling it while the transmitter is empty is a reason, too.
		if ((value & IER_TX_EMPTY) && !(s->ier & IER_TX_EMPTY))
			s->thr_ipending = true;
		s->ier = value & IER_BITS;
		raise_irq(s);
		break;
	case IIR_FCR:
		s->fifo_on = value & FCR_ENABLE;
		if (value & FCR_CLEAR_RX)
			s->n_rx = 0;
		break;
	case LCR: s->lcr = value; break;
	case MCR: s->mcr = value & MCR_BITS; break;
	case SCR: s->scr = value; break;
	default: break; // LSR and MSR are read-only
	}
}

uint32_t serial_input(struct serial *s, const uint8_t *data, uint32_t len)
{
	uint32_t room = SERIAL_RX_BYTES - s->n_rx, n = len < room ? len : room;
	memcpy(s->rx + s->n_rx, data, n);
	s->n_rx += n;
	raise_irq(s);
	return n;
}

uint32_t serial_output(const struct serial *s, uint64_t *offset, uint8_t *buf, uint32_t len)
{
	uint64_t oldest = s->out_total > CONSOLE_RING_BYTES ? s->out_total - CONSOLE_RING_BYTES : 0;
	if (*offset < oldest)
		*offset = oldest;
	uint32_t n = 0;
	for (uint64_t at = *offset; n < len && at < s->out_total; at++)
		buf[n++] = s->out[at % CONSOLE_RING_BYTES];
	return n;
}

void serial_save(const struct serial *s, struct mv_buf *out) { mv_state_save(&serial_table, s, out); }

int serial_load(struct serial *s, const void *bytes, size_t len, struct mv_err *err)
{
	struct serial loaded;
	int r = mv_state_load(&serial_table, bytes, len, &loaded, err);
	if (r) {
		mv_wrap(err, "serial port");
		return r;
	}
	loaded.irq_fd = s->irq_fd;
	loaded.out = s->out;
	loaded.on_output = s->on_output;
	loaded.on_output_arg = s->on_output_arg;
	*s = loaded;
	raise_irq(s); // it may not have reached the saved interrupt controller
	return 0;
}
