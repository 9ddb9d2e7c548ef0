// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-console driver, virtio 1.2 section 5.3: two ports, by control messages.
#include "tests/guest/tiny.h"

enum { RX0, TX0, CONTROL_RX, CONTROL_TX, RX1, TX1, QUEUES };
enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };
#define A_WHILE 1000000ULL

static struct virtio queue[QUEUES];
static volatile struct message {
	u32 port;
	u16 event, value;
	char name[CONSOLE_NAME];
} got;
static bool listening; // a buffer for a message is there
static bool reading[2];
static volatile char data[2][64];
static struct console_port port[2];

static void listen(void)
{
	virtio_submit(&queue[CONTROL_RX], &(struct virtio_buf){ &got, sizeof got - 1, true }, 1);
	listening = true;
}

static void say(u32 p, u16 event, u16 value)
{
	static volatile struct message m;
	u32 len;
	m.port = p;
	m.event = event;
	m.value = value;
	virtio_request(&queue[CONTROL_TX], &(struct virtio_buf){ &m, 8, false }, 1, &len);
}

// All messages that have come.
static void hear(void)
{
	u32 len;
	while (virtio_wait(&queue[CONTROL_RX], A_WHILE, &len)) {
		if (got.port < 2 && got.event == PORT_ADD)
			say(got.port, PORT_READY, 1);
		else if (got.port < 2 && got.event == CONSOLE_PORT)
			port[got.port].tty = true;
		else if (got.port < 2 && got.event == PORT_OPEN)
			port[got.port].open = got.value;
		for (u32 i = 0; got.port < 2 && got.event == PORT_NAME && i < len - 8; i++)
			port[got.port].name[i] = got.name[i];
		listen();
	}
}

bool console_init(void)
{
	bool first = !queue[0].base;
	if (!virtio_init(queue, QUEUES, VIRTIO_CONSOLE))
		return false;
	if (first) {
		listen();
		say(0, DEVICE_READY, 1);
	}
	hear();
	return true;
}

const struct console_port *console_port(u32 p) { return &port[p]; }

bool console_write(u32 p, const char *text, u32 n)
{
	u32 len;
	return virtio_request(&queue[p ? TX1 : TX0], &(struct virtio_buf){ (volatile void *)text, n, false },
			      1, &len);
}

bool console_read(u32 p, char *to, u32 *ret_len)
{
	struct virtio *q = &queue[p ? RX1 : RX0];
	if (!reading[p]) {
		say(p, PORT_OPEN, 1);
		virtio_submit(q, &(struct virtio_buf){ data[p], sizeof data[p], true }, 1);
	}
	reading[p] = !virtio_wait(q, A_WHILE, ret_len);
	for (u32 i = 0; !reading[p] && i < *ret_len; i++)
		to[i] = data[p][i];
	return !reading[p];
}
