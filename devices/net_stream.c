// SPDX-License-Identifier: Apache-2.0
// A connected Unix stream socket, as passt and QEMU's "stream" have it: each frame with its
// length in front, four bytes, big-endian. There are no offloads: the guest computes its
// checksums and sends no frame larger than its MTU.
//
// In: bytes are read into one buffer, so a frame may arrive in any pieces; the length is
// taken from there once. A length that no frame can have means that the two sides no longer
// agree where frames begin, which can't be mended: the connection is closed.
//
// Out: straight from guest memory. Of a frame that the socket takes only in part the rest is
// kept, and is sent before anything else. While the socket is full the guest's
// queue waits; nobody polls, the socket's own event goes on.
//
// Both belong to the connection, not to the guest: a snapshot holds none of it, and a clone
// begins its own connection with a whole frame.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "devices/net.h"
#include "microvm/base/util.h"

enum {
	LENGTH_BYTES = 4,
	BUFFER_BYTES = 2 * (LENGTH_BYTES + NET_FRAME_MAX),
	RARP_BYTES = 60,                  // the shortest Ethernet frame, without its checksum
	FRONT_BYTES = NET_ETH_BYTES + 40, // with an IPv6 header
};

struct stream {
	struct net_backend b;
	int fd;                     // -1: the connection has ended
	struct mv_watch watch;      // edge-triggered
	uint32_t in_at, in_len;     // what was read and not yet given to the guest
	uint32_t rest_at, rest_len; // what the socket has not taken of the last frame
	uint8_t in[BUFFER_BYTES], rest[LENGTH_BYTES + NET_FRAME_MAX];
};

static void end(struct stream *s, const char *why)
{
	if (s->fd < 0)
		return;
	mv_watch_del(&s->watch);
	mv_close(&s->fd);
	s->in_len = s->rest_len = 0;
	s->b.events.down(s->b.events.arg, why);
}

// ---- in

// More bytes behind those that are there: 0; -EAGAIN: none now, or none ever again.
static int fill(struct stream *s)
{
	memmove(s->in, s->in + s->in_at, s->in_len);
	s->in_at = 0;
	ssize_t n;
	while ((n = recv(s->fd, s->in + s->in_len, BUFFER_BYTES - s->in_len, 0)) < 0 && errno == EINTR)
		;
	if (n > 0)
		s->in_len += (uint32_t)n;
	else if (n == 0)
		end(s, "the other side has closed the connection");
	else if (errno != EAGAIN)
		end(s, strerror(errno));
	return n > 0 ? 0 : -EAGAIN;
}

static ssize_t stream_receive(struct net_backend *b, const struct iovec *to, unsigned n)
{
	struct stream *s = MV_CONTAINER(b, struct stream, b);
	uint32_t length = 0;
	for (;;) {
		if (s->fd < 0)
			return -EAGAIN;
		if (s->in_len >= LENGTH_BYTES) {
			memcpy(&length, s->in + s->in_at, LENGTH_BYTES);
			length = ntohl(length);
			if (length < NET_ETH_BYTES || length > NET_FRAME_MAX) {
				char why[80];
				snprintf(why, sizeof why, "a frame of %u bytes can't be", length);
				end(s, why);
				return -EAGAIN;
			}
			if (s->in_len >= LENGTH_BYTES + length)
				break;
		}
		int r = fill(s);
		if (r)
			return r;
	}
	static const uint8_t header[NET_HEADER_BYTES]; // nothing is left to do
	net_scatter(to, n, 0, header, sizeof header);
	net_scatter(to, n, sizeof header, s->in + s->in_at + LENGTH_BYTES, length);
	s->in_at += LENGTH_BYTES + length;
	s->in_len -= LENGTH_BYTES + length;
	return (ssize_t)(NET_HEADER_BYTES + length);
}

// ---- out

// 0: the socket takes more.
static int send_rest(struct stream *s)
{
	while (s->rest_len) {
		ssize_t n = send(s->fd, s->rest + s->rest_at, s->rest_len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return -EAGAIN;
		if (n < 0) {
			end(s, strerror(errno));
			return -EPIPE;
		}
		s->rest_at += (uint32_t)n;
		s->rest_len -= (uint32_t)n;
	}
	return 0;
}

// Keeps what follows the first `sent` bytes of a frame: `front`, then `tail`.
static void keep_rest(struct stream *s, const uint8_t *front, size_t n_front, struct vq_span *tail,
		      size_t sent)
{
	size_t n = sent < n_front ? n_front - sent : 0;
	s->rest_at = 0;
	memcpy(s->rest, front + n_front - n, n);
	vq_span_skip(tail, sent - (n_front - n));
	n += vq_span_read(tail, s->rest + n, sizeof s->rest - n);
	s->rest_len = (uint32_t)n;
}

// passt opens sockets to wherever a frame is addressed, and versions up to 2023 at least do so
// for the addresses of the host itself as well (127.0.0.0/8, ::1, and 0.0.0.0, which connect(2)
// takes for the same). None of them exists between hosts (RFC 1122 section 3.2.1.3).
static bool to_loopback(const uint8_t *frame, size_t len)
{
	static const uint8_t zero[10];
	unsigned type = len >= NET_ETH_BYTES ? frame[12] * 256u + frame[13] : 0;
	if (type == 0x0800)
		return len >= NET_ETH_BYTES + 20 && (frame[30] == 127 || frame[30] == 0);
	// Unspecified, loopback, and IPv4 addresses in IPv6 ones (RFC 4291 section 2.5).
	return type == 0x86dd && len >= FRONT_BYTES && !memcmp(frame + 38, zero, sizeof zero);
}

static int stream_send(struct net_backend *b, struct vq_span *frame, uint8_t src_mac[NET_MAC_BYTES])
{
	struct stream *s = MV_CONTAINER(b, struct stream, b);
	struct iovec iov[VQ_MAX_IOV + 1];
	uint8_t header[NET_HEADER_BYTES], front[LENGTH_BYTES + FRONT_BYTES];
	if (s->fd < 0)
		return -EPIPE;
	int r = send_rest(s);
	if (r)
		return r;
	vq_span_read(frame, header, sizeof header);
	// No offload was negotiated, so nothing may be left to do. Flag 2 (data valid) is harmless.
	if ((header[0] & 1) || header[1])
		return -EINVAL;
	uint32_t length = htonl((uint32_t)frame->bytes);
	memcpy(front, &length, LENGTH_BYTES);
	size_t n_front = vq_span_read(frame, front + LENGTH_BYTES, FRONT_BYTES);
	if (to_loopback(front + LENGTH_BYTES, n_front))
		return -EADDRNOTAVAIL;
	n_front += LENGTH_BYTES;
	iov[0] = (struct iovec){ front, n_front };
	memcpy(iov + 1, frame->iov, frame->n * sizeof *iov);
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = frame->n + 1 };
	size_t whole = n_front + frame->bytes;
	ssize_t n;
	while ((n = sendmsg(s->fd, &m, MSG_NOSIGNAL)) < 0 && errno == EINTR)
		;
	if (n < 0 && errno == EAGAIN)
		return -EAGAIN;
	if (n < 0) {
		end(s, strerror(errno));
		return -EPIPE;
	}
	if ((size_t)n < whole)
		keep_rest(s, front, n_front, frame, (size_t)n);
	memcpy(src_mac, front + LENGTH_BYTES + NET_MAC_BYTES, NET_MAC_BYTES);
	return 0;
}

// A reverse ARP request in the guest's name (RFC 903), as QEMU sends after a migration: the
// other side has seen no frame of this guest and would not know where to send those for it.
static void stream_announce(struct net_backend *b, const uint8_t mac[NET_MAC_BYTES])
{
	static const uint8_t what[] = { 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3 };
	struct stream *s = MV_CONTAINER(b, struct stream, b);
	uint32_t length = htonl(RARP_BYTES);
	uint8_t *p = s->rest + LENGTH_BYTES;
	if (s->fd < 0 || s->rest_len)
		return;
	memset(p, 0, RARP_BYTES);
	memcpy(s->rest, &length, LENGTH_BYTES);
	memset(p, 0xff, NET_MAC_BYTES);
	memcpy(p + 6, mac, NET_MAC_BYTES);
	memcpy(p + 12, what, sizeof what);
	memcpy(p + 22, mac, NET_MAC_BYTES);
	memcpy(p + 32, mac, NET_MAC_BYTES);
	s->rest_at = 0;
	s->rest_len = LENGTH_BYTES + RARP_BYTES;
	send_rest(s);
}

static void stream_free(struct net_backend *b)
{
	struct stream *s = MV_CONTAINER(b, struct stream, b);
	mv_watch_del(&s->watch);
	mv_close(&s->fd);
	free(s);
}

static const struct net_backend_ops stream_ops = {
	.features_hint = "; the snapshot's guest uses the offloads of a tap: give the clone a tap, or take "
			 "the snapshot with a socket or user network",
	.receive = stream_receive,
	.send = stream_send,
	.announce = stream_announce,
	.free = stream_free,
};

static void on_socket(void *arg, uint32_t events)
{
	struct stream *s = arg;
	if ((events & EPOLLOUT) && !send_rest(s))
		s->b.events.writable(s->b.events.arg);
	if (events & (EPOLLIN | EPOLLRDHUP))
		s->b.events.readable(s->b.events.arg);
	// Noticed here also while the guest gives no buffers. passt never closes one half only.
	if (events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR))
		end(s, "the other side has closed the connection");
}

int net_stream_new(struct mv_loop *loop, const char *name, int stream_fd, const struct net_events *events,
		   struct net_backend **ret_b, struct mv_err *err)
{
	MV_FD fd = stream_fd;
	int type = 0, domain = 0, r;
	socklen_t size = sizeof type;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) || type != SOCK_STREAM ||
	    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) || domain != AF_UNIX ||
	    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
		return mv_fail(err, EINVAL, "%s: the descriptor is not a Unix stream socket", name);
	MV_FREE struct stream *s = calloc(1, sizeof *s);
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	s->b = (struct net_backend){ &stream_ops, *events, 0 };
	r = mv_watch_add(loop, &s->watch, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, on_socket, s);
	if (r)
		return mv_fail(err, -r, "%s: cannot watch the socket: %s", name, strerror(-r));
	s->fd = MV_TAKE_FD(fd);
	*ret_b = &MV_TAKE(s)->b;
	return 0;
}
