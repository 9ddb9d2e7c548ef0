// SPDX-License-Identifier: Apache-2.0
// Streams of virtio-vsock: each is one non-blocking Unix socket. What the guest sends goes
// to the socket at once, or, while the host program does not read, into a buffer that the
// guest's credit keeps bounded. What the host program sends stays in the socket until the
// guest has credit and a receive buffer.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices/vsock.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { ACCEPTS_PER_TURN = 64, HELLO_MAX = 32, READ_MAX = 1 << 20 };
#define FIRST_HOST_PORT (1u << 30) // away from the ports that servers use
#define LAST_HOST_PORT (UINT32_MAX >> 1)

static unsigned bit(enum vsock_op op) { return 1u << op; }

static unsigned hash_of(uint32_t host_port, uint32_t guest_port)
{
	return (host_port * 31 + guest_port) % VSOCK_HASH;
}

struct vsock_conn *vsock_conn_find(struct vio_vsock *v, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_conn *c;
	LIST_FOREACH (c, &v->hash[hash_of(host_port, guest_port)], hashed)
		if (c->host_port == host_port && c->guest_port == guest_port)
			return c;
	return NULL;
}

void vsock_rst(struct vio_vsock *v, uint32_t host_port, uint32_t guest_port)
{
	if (v->n_rst == VSOCK_MAX_RST)
		return;
	unsigned at = (v->rst_at + v->n_rst++) % VSOCK_MAX_RST;
	v->rst[at].host_port = host_port;
	v->rst[at].guest_port = guest_port;
}

static void put_ports(struct vsock_conn *c, uint32_t host_port, uint32_t guest_port)
{
	c->host_port = host_port;
	c->guest_port = guest_port;
	LIST_INSERT_HEAD(&c->v->hash[hash_of(host_port, guest_port)], c, hashed);
	c->is_hashed = true;
}

static void set_sending(struct vsock_conn *c)
{
	if (!c->is_sending && vsock_conn_has_work(c)) {
		TAILQ_INSERT_TAIL(&c->v->sending, c, sending);
		c->is_sending = true;
		c->v->n_sending++;
	}
}

void vsock_stop_sending(struct vsock_conn *c)
{
	if (c->is_sending) {
		TAILQ_REMOVE(&c->v->sending, c, sending);
		c->v->n_sending--;
	}
	c->is_sending = false;
}

// The guest's side no longer knows the stream.
static void forget_ports(struct vsock_conn *c)
{
	if (c->is_hashed)
		LIST_REMOVE(c, hashed);
	c->is_hashed = false;
	vsock_stop_sending(c);
}

// Whether room in the socket is an event. Only a stream with a buffer waits for that; else each read(2) of
// the host program would wake us for nothing.
static void watch_room(struct vsock_conn *c, bool on)
{
	if (c->watches_room != on)
		mv_watch_mod(&c->watch, EPOLLIN | EPOLLRDHUP | EPOLLET | (on ? EPOLLOUT : 0u));
	c->watches_room = on;
}

static void drop_buffer(struct vsock_conn *c)
{
	free(MV_TAKE(c->buf));
	c->buf_at = c->buf_len = 0;
	c->fwd_cnt = c->received_cnt;
}

static void close_socket(struct vsock_conn *c)
{
	c->v->n_metadata_conns -= MV_TAKE_AS(c->is_metadata, false);
	mv_watch_del(&c->watch);
	mv_close(&c->fd);
	drop_buffer(c);
	if (MV_TAKE_AS(c->v->accept_paused, false) && !c->v->settling && !c->v->transport_changed)
		mv_watch_mod(&c->v->listen_watch, EPOLLIN);
}

static void conn_free(struct vsock_conn *c)
{
	forget_ports(c);
	close_socket(c);
	TAILQ_REMOVE(&c->v->all, c, all);
	c->v->n_conns--;
	free(c);
}

void vsock_conn_kill(struct vsock_conn *c)
{
	if (c->is_hashed)
		vsock_rst(c->v, c->host_port, c->guest_port);
	conn_free(c);
}

void vsock_drop_all(struct vio_vsock *v)
{
	struct vsock_conn *c;
	while ((c = TAILQ_FIRST(&v->all)))
		conn_free(c);
}

// At the limit a stream that is over but for one side's silence makes room.
static bool make_room(struct vio_vsock *v)
{
	struct vsock_conn *c;
	if (v->n_conns < VSOCK_MAX_CONNS)
		return true;
	TAILQ_FOREACH(c, &v->all, all)
	if (c->state == CONN_CLOSING || c->state == CONN_LINGER) {
		vsock_conn_kill(c);
		return true;
	}
	return false;
}

static void on_socket(void *arg, uint32_t events);

// Takes fd. NULL: no memory, or too many streams; fd closed.
static struct vsock_conn *conn_new(struct vio_vsock *v, int fd, enum vsock_conn_state state)
{
	struct vsock_conn *c = make_room(v) ? calloc(1, sizeof *c) : NULL;
	if (!c || mv_watch_add(v->dev.loop, &c->watch, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, on_socket, c)) {
		close(fd);
		free(c);
		return NULL;
	}
	c->v = v;
	c->fd = fd;
	c->state = state;
	TAILQ_INSERT_TAIL(&v->all, c, all);
	v->n_conns++;
	return c;
}

void vsock_accept(struct vio_vsock *v)
{
	for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
		int fd = accept4(v->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
			v->accept_paused = true;
			mv_watch_mod(&v->listen_watch, 0);
		}
		if (fd < 0)
			return;
		conn_new(v, fd, CONN_HELLO); // its first event reads the CONNECT line
	}
}

// Starts anywhere: a clone's guest may not have forgotten the streams of the VM that the
// snapshot was taken of, and a new one must not look like one of those.
static void next_host_port(struct vio_vsock *v)
{
	if (v->next_host_port < FIRST_HOST_PORT || v->next_host_port >= LAST_HOST_PORT) {
		uint32_t random;
		mv_random(&random, sizeof random);
		v->next_host_port = FIRST_HOST_PORT + random % (LAST_HOST_PORT - FIRST_HOST_PORT);
	}
	v->next_host_port++;
}

// "CONNECT <port>\n", looked at until complete, so that what follows stays in the socket.
// False: c was freed.
static bool read_hello(struct vsock_conn *c)
{
	struct vio_vsock *v = c->v;
	char line[HELLO_MAX + 1] = { 0 }, *end;
	ssize_t n = recv(c->fd, line, HELLO_MAX, MSG_PEEK);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	char *newline = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
	if (!newline && n > 0 && n < HELLO_MAX && !c->hung_up)
		return true;
	static const char word[] = "CONNECT ";
	const char *digits = line + sizeof word - 1;
	unsigned long port = 0;
	bool ok = newline && !strncasecmp(line, word, sizeof word - 1) && *digits >= '0' && *digits <= '9';
	if (ok) {
		port = strtoul(digits, &end, 10);
		ok = end == newline && port < UINT32_MAX &&
		     recv(c->fd, line, (size_t)(newline - line) + 1, 0) > 0;
	}
	if (!ok) {
		conn_free(c);
		return false;
	}
	do
		next_host_port(v);
	while (vsock_conn_find(v, v->next_host_port, (uint32_t)port));
	put_ports(c, v->next_host_port, (uint32_t)port);
	c->state = CONN_REQUESTED;
	c->want = (uint8_t)bit(OP_REQUEST);
	return true;
}

// A stream whose host program has said everything and is gone: the document waits in the socket,
// so there is no buffer, no state and no limit on how slowly a guest may read. -1: not now.
static int open_metadata(struct vio_vsock *v)
{
	int pair[2], room = 4 * (int)VSOCK_METADATA_MAX_BYTES;
	if (v->n_metadata_conns >= VSOCK_MAX_METADATA ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
		return -1;
	MV_FD ours = pair[0];
	MV_FD writer = pair[1];
	setsockopt(writer, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	ssize_t n = v->n_metadata ? send(writer, v->metadata, v->n_metadata, MSG_NOSIGNAL) : 0;
	if (n != (ssize_t)v->n_metadata) {
		mv_log_limited(MV_WARN, "%s: the metadata does not fit a socket (net.core.wmem_max)",
			       v->dev.name);
		return -1;
	}
	return MV_TAKE_FD(ours);
}

// A Unix connect is done at once or not at all (EAGAIN: the listener's backlog is full).
static int connect_host(const struct vio_vsock *v, uint32_t host_port)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int n = snprintf(a.sun_path, sizeof a.sun_path, "%s_%u", v->path, host_port);
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (n >= (int)sizeof a.sun_path || fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a))
		return -1;
	return MV_TAKE_FD(fd);
}

void vsock_connect(struct vio_vsock *v, const struct vsock_header *h)
{
	uint32_t host_port = le32_get(h->dst_port), guest_port = le32_get(h->src_port);
	bool metadata = host_port == VSOCK_METADATA_PORT;
	if (v->on_watched && host_port == v->watched_port)
		v->on_watched(v->on_watched_arg);
	int fd = metadata ? open_metadata(v) : connect_host(v, host_port);
	struct vsock_conn *c = fd < 0 ? NULL : conn_new(v, fd, CONN_OPEN);
	if (!c) {
		vsock_rst(v, host_port, guest_port);
		return;
	}
	c->is_metadata = metadata;
	v->n_metadata_conns += metadata;
	put_ports(c, host_port, guest_port);
	c->peer_buf_alloc = le32_get(h->buf_alloc);
	c->peer_fwd_cnt = le32_get(h->fwd_cnt);
	c->want = (uint8_t)bit(OP_RESPONSE);
	set_sending(c);
}

// ---- guest to host

static void host_stopped_reading(struct vsock_conn *c)
{
	drop_buffer(c);
	c->host_shut |= SHUT_RECEIVE;
	c->want |= (uint8_t)bit(OP_SHUTDOWN);
}

// Tells the guest how much was forwarded before it could run out of credit.
static void offer_credit(struct vsock_conn *c)
{
	if (c->state == CONN_OPEN && c->fwd_cnt != c->told_fwd_cnt &&
	    c->received_cnt - c->told_fwd_cnt >= VSOCK_BUF_BYTES / 2)
		c->want |= (uint8_t)bit(OP_CREDIT_UPDATE);
}

// Buffer to socket. False: c was lingering, is done, and was freed.
static bool flush_buffer(struct vsock_conn *c)
{
	while (c->buf_len) {
		uint32_t to_end = VSOCK_BUF_BYTES - c->buf_at;
		ssize_t n = send(c->fd, c->buf + c->buf_at, c->buf_len < to_end ? c->buf_len : to_end,
				 MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			host_stopped_reading(c);
			break;
		}
		c->fwd_cnt += (uint32_t)n;
		c->buf_len -= (uint32_t)n;
		c->buf_at = (c->buf_at + (uint32_t)n) % VSOCK_BUF_BYTES;
	}
	if (!c->buf_len) {
		drop_buffer(c);
		if (c->state == CONN_LINGER) {
			conn_free(c);
			return false;
		}
		if (c->guest_shut & SHUT_SEND)
			shutdown(c->fd, SHUT_WR);
	}
	offer_credit(c);
	return true;
}

// False: the stream must be killed.
static bool forward(struct vsock_conn *c, struct vq_span *s)
{
	if (s->bytes > VSOCK_BUF_BYTES - c->buf_len || (c->guest_shut & SHUT_SEND))
		return false; // more than its credit, or after it said that it was done
	c->received_cnt += (uint32_t)s->bytes;
	while (s->bytes && !c->buf_len && !(c->host_shut & SHUT_RECEIVE)) {
		struct msghdr m = { .msg_iov = s->iov, .msg_iovlen = s->n };
		ssize_t n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			host_stopped_reading(c);
			break;
		}
		c->fwd_cnt += (uint32_t)n;
		vq_span_skip(s, (size_t)n);
	}
	if (c->host_shut & SHUT_RECEIVE) {
		c->fwd_cnt = c->received_cnt;
	} else if (s->bytes) {
		if (!c->buf && !(c->buf = malloc(VSOCK_BUF_BYTES)))
			return false;
		uint32_t at = (c->buf_at + c->buf_len) % VSOCK_BUF_BYTES;
		c->buf_len += (uint32_t)s->bytes;
		vq_span_read(s, c->buf + at, VSOCK_BUF_BYTES - at);
		vq_span_read(s, c->buf, VSOCK_BUF_BYTES);
		watch_room(c, true);
	}
	offer_credit(c);
	return true;
}

static bool say_ok(struct vsock_conn *c)
{
	char line[32];
	int n = snprintf(line, sizeof line, "OK %u\n", c->host_port);
	return send(c->fd, line, (size_t)n, MSG_NOSIGNAL) == n; // an empty socket has room
}

// False: the guest is done with the stream; it lingers or was freed.
static bool guest_shutdown(struct vsock_conn *c, unsigned flags)
{
	c->guest_shut |= flags & SHUT_ALL;
	if (c->guest_shut == SHUT_ALL) {
		vsock_rst(c->v, c->host_port, c->guest_port);
		forget_ports(c);
		c->state = CONN_LINGER;
		flush_buffer(c);
		return false;
	}
	if (c->guest_shut & SHUT_RECEIVE)
		shutdown(c->fd, SHUT_RD);
	if ((c->guest_shut & SHUT_SEND) && !c->buf_len)
		shutdown(c->fd, SHUT_WR);
	return true;
}

void vsock_conn_receive(struct vsock_conn *c, const struct vsock_header *h, struct vq_span *payload)
{
	bool ok = true;
	uint16_t op = le16_get(h->op);
	// A guest whose program does not read answers, too: to ask again at once would never end.
	if (c->peer_buf_alloc != le32_get(h->buf_alloc) || c->peer_fwd_cnt != le32_get(h->fwd_cnt))
		c->asked_credit = false;
	c->peer_buf_alloc = le32_get(h->buf_alloc);
	c->peer_fwd_cnt = le32_get(h->fwd_cnt);
	switch (op) {
	case OP_RST: conn_free(c); return;
	case OP_SHUTDOWN:
		ok = c->state != CONN_REQUESTED;
		if (ok && !guest_shutdown(c, le32_get(h->flags)))
			return;
		break;
	case OP_RESPONSE:
		ok = c->state == CONN_REQUESTED && say_ok(c);
		c->state = CONN_OPEN;
		break;
	case OP_RW: ok = c->state != CONN_REQUESTED && forward(c, payload); break;
	case OP_CREDIT_UPDATE: break;
	case OP_CREDIT_REQUEST: c->want |= (uint8_t)bit(OP_CREDIT_UPDATE); break;
	default: ok = false;
	}
	if (ok)
		set_sending(c);
	else
		vsock_conn_kill(c);
}

// ---- host to guest

static uint32_t credit(const struct vsock_conn *c)
{
	uint32_t unread = c->sent_cnt - c->peer_fwd_cnt;
	return unread < c->peer_buf_alloc ? c->peer_buf_alloc - unread : 0;
}

static bool may_read(const struct vsock_conn *c)
{
	return c->state == CONN_OPEN && c->readable && !(c->guest_shut & SHUT_RECEIVE) &&
	       !(c->host_shut & SHUT_SEND);
}

bool vsock_conn_has_work(const struct vsock_conn *c)
{
	return c->is_hashed && (c->want || (may_read(c) && (credit(c) || !c->asked_credit)));
}

uint32_t vsock_conn_room(const struct vsock_conn *c)
{
	uint32_t room = c->want || !may_read(c) ? 0 : credit(c);
	room = room < c->room ? room : c->room;
	return room ? room : 1; // any buffer
}

// The socket has no more; the next burst is expected to be as long, and then ends within what is asked for.
static void exhausted(struct vsock_conn *c)
{
	c->room = MV_TAKE_AS(c->burst, 0) + 1;
	c->readable = false;
}

// Reads into the payload: bytes, or 0 when a packet of another kind is due, or nothing.
static uint32_t read_socket(struct vsock_conn *c, struct vq_span *payload)
{
	uint32_t room = credit(c);
	if (!room) {
		if (!c->asked_credit)
			c->want |= (uint8_t)bit(OP_CREDIT_REQUEST);
		c->asked_credit = true;
		return 0;
	}
	vq_span_trim(payload, room);
	struct msghdr m = { .msg_iov = payload->iov, .msg_iovlen = payload->n };
	ssize_t n = recvmsg(c->fd, &m, 0);
	if (n > 0) {
		size_t burst = c->burst + (size_t)n;
		c->burst = burst < READ_MAX ? (uint32_t)burst : READ_MAX;
		c->room = (size_t)n == payload->bytes ? 2 * c->burst : 0;
		// Less than asked for: all that there was, unless the end is behind it, which comes without
		// another event, or descriptors (which nobody takes) divide the stream.
		if ((size_t)n < payload->bytes && !c->ended && !(m.msg_flags & MSG_CTRUNC))
			exhausted(c);
		return (uint32_t)n;
	}
	if (n < 0 && errno == EINTR)
		return 0;
	exhausted(c);
	if (n < 0 && errno == EAGAIN)
		return 0;
	c->host_shut |= n < 0 || c->hung_up ? SHUT_ALL : SHUT_SEND;
	c->want |= (uint8_t)bit(OP_SHUTDOWN);
	return 0;
}

// Packets without payload that are due, the handshake before anything else. Zero: none.
static uint8_t next_wanted(struct vsock_conn *c)
{
	static const uint8_t order[] = { OP_REQUEST, OP_RESPONSE, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST,
					 OP_SHUTDOWN };
	for (unsigned i = 0; i < sizeof order; i++)
		if (c->want & bit(order[i])) {
			c->want &= (uint8_t)~bit(order[i]);
			return order[i];
		}
	return 0;
}

bool vsock_conn_fill(struct vsock_conn *c, struct vsock_header *h, struct vq_span *payload)
{
	uint32_t len = 0;
	uint8_t op = next_wanted(c);
	if (!op && may_read(c)) {
		len = read_socket(c, payload);
		c->sent_cnt += len;
		op = len ? OP_RW : next_wanted(c);
	}
	if (!op)
		return false;
	if (op == OP_SHUTDOWN && c->host_shut == SHUT_ALL) {
		close_socket(c);
		c->state = CONN_CLOSING;
	}
	h->op = le16_make(op);
	h->len = le32_make(len);
	h->flags = le32_make(op == OP_SHUTDOWN ? c->host_shut : 0u);
	h->buf_alloc = le32_make(VSOCK_BUF_BYTES);
	h->fwd_cnt = le32_make(c->fwd_cnt);
	c->told_fwd_cnt = c->fwd_cnt;
	return true;
}

static void on_socket(void *arg, uint32_t events)
{
	struct vsock_conn *c = arg;
	struct vio_vsock *v = c->v;
	bool alive = true;
	if (events & (EPOLLHUP | EPOLLERR))
		c->hung_up = true;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->ended = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->readable = true;
	if (c->state == CONN_HELLO)
		alive = read_hello(c);
	else if (c->buf_len)
		alive = flush_buffer(c);
	else if (events & EPOLLOUT) // not at once when it was empty: it may fill again at once, too
		watch_room(c, false);
	if (!alive)
		return;
	if (c->hung_up && c->state == CONN_REQUESTED) {
		vsock_conn_kill(c);
	} else {
		if (c->hung_up && c->state == CONN_OPEN && (c->host_shut & SHUT_SEND))
			host_stopped_reading(c); // half-closed before, now gone
		set_sending(c);
	}
	vsock_pump(v);
}
