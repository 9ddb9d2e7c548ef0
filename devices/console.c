// SPDX-License-Identifier: Apache-2.0
// virtio-console with several ports (virtio 1.2 section 5.3): each is a Unix socket of the host, which one
// program at a time connects to.
//
// Theory of operation. A port's state that the guest has to be told of is a set of bits (enum tell), from
// which control messages are made when the driver has given buffers for them. So there is no queue of
// messages to fill up, and a clone tells anew what differs: it begins without connections.
//
// Towards the host: a port nobody is connected to swallows what the guest writes, as a serial line does.
// Where the program at the other end does not read, the guest's request waits, the part that was sent noted
// (out_done); but a terminal (`tty`) loses output then, since Linux spins with interrupts off until a
// console's request is done. Towards the guest: nothing is read from a socket before the guest has opened the
// port and given a buffer.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/devices.h"
#include "microvm/base/util.h"

#define F_MULTIPORT (1ULL << 1)
#define F_EMERG_WRITE (1ULL << 2)

enum { QUEUE_SIZE = 64, POPS_PER_KICK = 32, CONTROL_RX = 2, CONTROL_TX = 3 };
enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };

struct console_control { // section 5.3.6.2
	le32_t port;
	le16_t event, value;
};

struct console_config { // section 5.3.4
	le16_t cols, rows;
	le32_t max_nr_ports, emerg_wr;
};

enum tell { TELL_ADD = 1, TELL_CONSOLE = 2, TELL_NAME = 4, TELL_OPEN = 8, TELL_ALL = 15 }; // in this order

struct port_state {
	uint8_t tell;      // enum tell
	bool ready;        // the driver has a port of this number
	bool guest_open;   // a program of the guest has it open
	bool host_open;    // the driver was told that the host has
	uint32_t out_done; // bytes of the next request to the host that were sent already
};

struct console_state {
	struct port_state port[VIO_CONSOLE_MAX_PORTS];
	uint32_t n_ports;
};

static const struct mv_field port_fields[] = {
	MV_INT(struct port_state, tell, 1, MV_U8, 0, TELL_ALL),
	MV_FLAG(struct port_state, ready, 2),
	MV_FLAG(struct port_state, guest_open, 3),
	MV_FLAG(struct port_state, host_open, 4),
	MV_INT(struct port_state, out_done, 5, MV_U32, 0, UINT32_MAX),
};
static MV_DEFINE_TABLE(port_table, struct port_state, port_fields);

static const struct mv_field state_fields[] = {
	MV_ARRAY(struct console_state, port, n_ports, 1, port_table),
};
static MV_DEFINE_TABLE(console_table, struct console_state, state_fields);

struct port {
	struct vio_console *c;
	char name[VIO_CONSOLE_NAME_BYTES];
	bool tty;
	int listen_fd, fd;                   // fd -1: nobody is connected
	struct mv_watch listen_watch, watch; // the latter edge-triggered
	bool readable, writable;             // as of its last event
	bool accept_paused;
};

struct vio_console {
	struct vio_dev dev;
	struct console_state s;
	struct console_config config;
	struct port port[VIO_CONSOLE_MAX_PORTS];
	struct vq_chain chain;
};

static struct vio_console *of(struct vio_dev *d) { return MV_CONTAINER(d, struct vio_console, dev); }
static unsigned rx_of(unsigned port) { return port ? 2 * port + 2 : 0; }
static bool multiport(const struct vio_console *c) { return c->dev.s.features_acked & F_MULTIPORT; }
static unsigned number_of(const struct port *p) { return (unsigned)(p - p->c->port); }
static struct port_state *state_of(const struct port *p) { return &p->c->s.port[number_of(p)]; }

// --- control messages ---

// One message of a port, the first that is due.
static size_t next_message(struct port *p, uint8_t *to, size_t room)
{
	struct port_state *s = state_of(p);
	struct console_control m = { .port = le32_make(number_of(p)), .value = le16_make(1) };
	size_t name = 0;
	uint8_t what = s->tell & -s->tell;
	s->tell &= (uint8_t)~what;
	if (what == TELL_ADD)
		m.event = le16_make(PORT_ADD);
	else if (what == TELL_CONSOLE)
		m.event = le16_make(CONSOLE_PORT);
	else if (what == TELL_NAME) {
		m.event = le16_make(PORT_NAME);
		name = strnlen(p->name, room - sizeof m);
	} else {
		s->host_open = p->fd >= 0;
		m.event = le16_make(PORT_OPEN);
		m.value = le16_make(s->host_open);
	}
	memcpy(to, &m, sizeof m);
	memcpy(to + sizeof m, p->name, name);
	return sizeof m + name;
}

static void tell(struct vio_console *c)
{
	uint8_t bytes[sizeof(struct console_control) + VIO_CONSOLE_NAME_BYTES];
	struct vio_dev *d = &c->dev;
	for (unsigned i = 0; multiport(c) && i < c->s.n_ports; i++)
		while (c->s.port[i].tell) {
			if (!vio_pop(d, CONTROL_RX, &c->chain) &&
			    (!vio_rearm(d, CONTROL_RX) || !vio_pop(d, CONTROL_RX, &c->chain)))
				goto none; // goes on when the driver gives buffers
			size_t n = next_message(&c->port[i], bytes, sizeof bytes);
			n = vq_span_write(&c->chain.writable, bytes, n);
			vq_push(&d->s.queue[CONTROL_RX], c->chain.head, (uint32_t)n);
		}
none:
	vio_signal_queue(d, CONTROL_RX);
}

static void tell_open(struct port *p)
{
	struct port_state *s = state_of(p);
	if (!s->ready)
		return; // told when it is
	if (s->host_open != (p->fd >= 0))
		s->tell |= TELL_OPEN;
	else
		s->tell &= (uint8_t)~TELL_OPEN;
	tell(p->c);
}

static void on_control(struct vio_console *c, const struct console_control *m)
{
	uint32_t i = le32_get(m->port);
	bool yes = le16_get(m->value);
	if (le16_get(m->event) == DEVICE_READY) {
		for (uint32_t k = 0; yes && k < c->s.n_ports; k++)
			c->s.port[k] = (struct port_state){ .tell = TELL_ADD };
	} else if (i < c->s.n_ports && le16_get(m->event) == PORT_READY && yes) {
		c->s.port[i].ready = true;
		c->s.port[i].tell |= TELL_NAME | (c->port[i].tty ? TELL_CONSOLE : 0) |
				     (c->port[i].fd >= 0 ? TELL_OPEN : 0);
	} else if (i < c->s.n_ports && le16_get(m->event) == PORT_OPEN) {
		c->s.port[i].guest_open = yes;
		if (yes) // what waited in the socket
			vio_again(&c->dev, rx_of(i));
	}
}

// Reads what the driver says; true: there may be more.
static bool control_kick(struct vio_console *c)
{
	struct vio_dev *d = &c->dev;
	unsigned left = POPS_PER_KICK;
	do {
		for (; left && vio_pop(d, CONTROL_TX, &c->chain); left--) {
			struct console_control m;
			if (vq_span_read(&c->chain.readable, &m, sizeof m) == sizeof m)
				on_control(c, &m);
			vq_push(&d->s.queue[CONTROL_TX], c->chain.head, 0);
		}
	} while (left && vio_rearm(d, CONTROL_TX));
	vio_signal_queue(d, CONTROL_TX);
	tell(c);
	return !left;
}

// --- a port's data ---
static void on_accept(void *arg, uint32_t events);

static void disconnect(struct port *p)
{
	mv_watch_del(&p->watch);
	mv_close(&p->fd);
	p->readable = p->writable = false;
	mv_watch_mod(&p->listen_watch, EPOLLIN);
	tell_open(p);
}

// To the guest. True: there may be more for the next turn.
static bool port_in(struct port *p)
{
	struct vio_console *c = p->c;
	struct vio_dev *d = &c->dev;
	unsigned left = POPS_PER_KICK, q = rx_of(number_of(p));
	bool open = !multiport(c) || p->tty || state_of(p)->guest_open;
	ssize_t n = 1;
	while (n > 0 && left && open && p->readable &&
	       (vio_pop(d, q, &c->chain) || (vio_rearm(d, q) && vio_pop(d, q, &c->chain)))) {
		struct msghdr m = { .msg_iov = c->chain.writable.iov, .msg_iovlen = c->chain.writable.n };
		left--;
		while (c->chain.writable.bytes && // else there is no room, which is not the end of the stream
		       (n = recvmsg(p->fd, &m, MSG_DONTWAIT)) < 0 && errno == EINTR)
			;
		if (n > 0)
			vq_push(&d->s.queue[q], c->chain.head, c->chain.writable.bytes ? (uint32_t)n : 0);
		else
			vq_unpop(&d->s.queue[q]);
	}
	vio_signal_queue(d, q);
	if (n > 0)
		return !left;
	p->readable = false;
	if (n == 0 || errno != EAGAIN)
		disconnect(p);
	return false;
}

// Sends what is left of the request in c->chain; false: the socket takes no more now.
static bool send_request(struct port *p)
{
	struct vq_span *s = &p->c->chain.readable;
	uint32_t *done = &state_of(p)->out_done;
	vq_span_skip(s, *done);
	while (p->fd >= 0 && s->bytes) {
		struct msghdr m = { .msg_iov = s->iov, .msg_iovlen = s->n };
		ssize_t n = sendmsg(p->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0) {
			*done += (uint32_t)n;
			vq_span_skip(s, (size_t)n);
		} else if (errno == EAGAIN) {
			p->writable = false;
			if (!p->tty)
				return false;
			break;
		} else if (errno != EINTR) {
			disconnect(p);
		}
	}
	*done = 0;
	return true;
}

static bool port_out(struct port *p)
{
	struct vio_console *c = p->c;
	struct vio_dev *d = &c->dev;
	unsigned left = POPS_PER_KICK, q = rx_of(number_of(p)) + 1;
	bool full = p->fd >= 0 && !p->writable && !p->tty;
	while (!full && left && (vio_pop(d, q, &c->chain) || (vio_rearm(d, q) && vio_pop(d, q, &c->chain)))) {
		uint16_t head = c->chain.head; // a connection that ends is told of with the same chain
		left--;
		full = !send_request(p);
		if (full)
			vq_unpop(&d->s.queue[q]); // the socket's event goes on
		else
			vq_push(&d->s.queue[q], head, 0);
	}
	vio_signal_queue(d, q);
	return !left;
}

static void on_socket(void *arg, uint32_t events)
{
	struct port *p = arg;
	unsigned rx = rx_of(number_of(p));
	p->readable |= (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0;
	p->writable |= (events & EPOLLOUT) != 0;
	if (vio_live(&p->c->dev, rx + 1) && port_out(p))
		vio_again(&p->c->dev, rx + 1);
	if (vio_live(&p->c->dev, rx) && port_in(p))
		vio_again(&p->c->dev, rx);
	// Gone without having left anything, which a guest that has the port closed would never find out.
	uint8_t byte;
	if (p->fd >= 0 && p->readable && recv(p->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
		disconnect(p);
}

// One at a time: others wait in the socket's queue.
static void on_accept(void *arg, uint32_t events)
{
	struct port *p = arg;
	(void)events;
	// cppcheck-suppress nullPointer ; accept(2) allows it
	p->fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (p->fd < 0) {
		// No descriptor left: tried again when the guest does something with the port.
		p->accept_paused = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
		if (p->accept_paused)
			mv_watch_mod(&p->listen_watch, 0);
		return;
	}
	if (mv_watch_add(p->c->dev.loop, &p->watch, p->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
			 on_socket, p)) {
		mv_close(&p->fd);
		return;
	}
	mv_watch_mod(&p->listen_watch, 0);
	tell_open(p);
}

// --- the device ---
static void console_kick(struct vio_dev *d, unsigned q)
{
	struct vio_console *c = of(d);
	bool control = q == CONTROL_RX || q == CONTROL_TX, more = false;
	if (!multiport(c) && q > 1)
		return; // there are no such queues
	struct port *p = &c->port[q < 2 ? 0 : q / 2 - 1];
	if (p->accept_paused && !mv_watch_mod(&p->listen_watch, EPOLLIN))
		p->accept_paused = false;
	if (q == CONTROL_RX)
		tell(c);
	else if (control)
		more = control_kick(c);
	else
		more = q & 1 ? port_out(p) : port_in(p);
	if (more)
		vio_again(d, q);
}

// A driver that has none of its queues yet, in trouble: one character to the first port.
static void console_write_config(struct vio_dev *d, uint32_t offset, const void *data, uint32_t len)
{
	struct port *p = &of(d)->port[0];
	if (offset == offsetof(struct console_config, emerg_wr) && len == sizeof(le32_t) && p->fd >= 0) {
		ssize_t ignored = send(p->fd, data, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		(void)ignored;
	}
}

static void console_reset(struct vio_dev *d)
{
	struct console_state *s = &of(d)->s;
	memset(s->port, 0, sizeof s->port);
}

static int console_check(const struct vio_dev *d, const void *loaded, struct mv_err *err)
{
	uint32_t n = ((const struct console_state *)loaded)->n_ports;
	uint32_t want = of((struct vio_dev *)(uintptr_t)d)->s.n_ports;
	return n == want ? 0 : mv_fail(err, EINVAL, "the state is of %u ports, there are %u", n, want);
}

// The connections of the VM that was saved are not ours.
static void console_restored(struct vio_dev *d)
{
	struct vio_console *c = of(d);
	for (unsigned i = 0; i < c->s.n_ports; i++)
		if (c->s.port[i].ready && c->s.port[i].host_open != (c->port[i].fd >= 0))
			c->s.port[i].tell |= TELL_OPEN; // told when its queue is looked at
}

static void console_free(struct vio_dev *d)
{
	struct vio_console *c = of(d);
	for (unsigned i = 0; i < c->s.n_ports; i++) {
		struct port *p = &c->port[i];
		mv_watch_del(&p->watch);
		mv_watch_del(&p->listen_watch);
		mv_close(&p->fd);
		mv_close(&p->listen_fd);
	}
	vio_dev_fini(d);
	free(c);
}

// Queues of each port, and two for control messages.
#define OPS(n)                                                                                               \
	{                                                                                                    \
		.device_id = 3, .config_bytes = sizeof(struct console_config), .n_queues = 2 * (n) + 2,      \
		.queue_size_max = QUEUE_SIZE, .state = &console_table,                                       \
		.state_offset = offsetof(struct vio_console, s), .kick = console_kick,                       \
		.write_config = console_write_config, .reset = console_reset, .check_state = console_check,  \
		.restored = console_restored, .free = console_free,                                          \
	}
static const struct vio_ops console_ops[VIO_CONSOLE_MAX_PORTS] = { OPS(1), OPS(2), OPS(3), OPS(4) };
_Static_assert(2 * VIO_CONSOLE_MAX_PORTS + 2 <= VIO_MAX_QUEUES, "every port has its queues");

static int open_ports(struct vio_console *c, struct mv_err *err)
{
	for (unsigned i = 0; i < c->s.n_ports; i++) {
		struct port *p = &c->port[i];
		int r = mv_watch_add(c->dev.loop, &p->listen_watch, p->listen_fd, EPOLLIN, on_accept, p);
		if (r)
			return mv_fail(err, -r, "port %s: cannot watch its socket: %s", p->name,
				       strerror(-r));
	}
	return 0;
}

int vio_console_new(struct gmem *mem, struct mv_loop *loop, const struct vio_console_port *ports, unsigned n,
		    struct vio_dev **ret_dev, struct mv_err *err)
{
	struct vio_console *c = n && n <= VIO_CONSOLE_MAX_PORTS ? calloc(1, sizeof *c) : NULL;
	int r = c ? vio_dev_init(&c->dev, &console_ops[n - 1], "console", mem, loop,
				 VIO_FEATURES | F_MULTIPORT | F_EMERG_WRITE, err)
		  : mv_fail(err, n ? ENOMEM : EINVAL, "no memory for %u ports", n);
	for (unsigned i = 0; r && i < n; i++)
		close(ports[i].listen_fd);
	if (r) {
		free(c);
		return r;
	}
	c->dev.config = &c->config;
	c->config.max_nr_ports = le32_make(n);
	c->s.n_ports = n;
	for (unsigned i = 0; i < n; i++) {
		c->port[i] = (struct port){
			.c = c, .tty = ports[i].tty, .listen_fd = ports[i].listen_fd, .fd = -1
		};
		mv_strcpy(c->port[i].name, sizeof c->port[i].name, ports[i].name);
	}
	r = open_ports(c, err);
	if (r)
		console_free(&c->dev);
	else
		*ret_dev = &c->dev;
	return r;
}
