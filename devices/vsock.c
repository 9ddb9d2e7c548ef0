// SPDX-License-Identifier: Apache-2.0
// virtio-vsock (virtio 1.2 section 5.10): the device's three queues. Guest packets are
// checked here and handed to their stream (vsock_conn.c). Packets for the guest are made
// when there are receive buffers, from each stream in turn, the payload read from the socket
// straight into the guest; so nothing is buffered in that direction. One read may fill several
// buffers, each of which becomes a packet.
//
// Streams belong to the running VM, not to its snapshot: a restored guest is told by a
// TRANSPORT_RESET event (section 5.10.6.7) that all of its streams are gone.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "devices/vsock.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { QUEUE_SIZE = 256, PACKETS_PER_KICK = 128 };

#define SECOND_NS (1000ull * 1000 * 1000)
#define NO_BUFFER_NS (2 * SECOND_NS) // for a driver that does without events
#define HANDLE_NS (30 * SECOND_NS)   // a guest of many streams, on a busy host, takes its time
enum { EVENT_TRANSPORT_RESET = 0 };

#define F_STREAM (1ULL << 0) // section 5.10.3

// The first `len` bytes of s, which moves on past them; `room` holds as many entries.
static struct vq_span split(struct vq_span *s, struct iovec *room, unsigned len)
{
	struct vq_span front = { .iov = room, .n = s->n < len ? s->n : len };
	memcpy(room, s->iov, front.n * sizeof *room);
	for (unsigned i = 0; i < front.n; i++)
		front.bytes += room[i].iov_len;
	vq_span_trim(&front, len);
	vq_span_skip(s, len);
	return front;
}

static struct vsock_header header(const struct vio_vsock *v, uint32_t host_port, uint32_t guest_port,
				  enum vsock_op op)
{
	return (struct vsock_header){
		.src_cid = le64_make(VSOCK_HOST_CID),
		.dst_cid = le64_make(v->guest_cid),
		.src_port = le32_make(host_port),
		.dst_port = le32_make(guest_port),
		.type = le16_make(VSOCK_STREAM),
		.op = le16_make((uint16_t)op),
	};
}

// Makes one packet; false when nobody had one after all.
static bool next_packet(struct vio_vsock *v, struct vsock_header *h, struct vq_span *payload)
{
	if (v->n_rst) {
		*h = header(v, v->rst[v->rst_at].host_port, v->rst[v->rst_at].guest_port, OP_RST);
		v->rst_at = (v->rst_at + 1) % VSOCK_MAX_RST;
		v->n_rst--;
		return true;
	}
	struct vsock_conn *c = TAILQ_FIRST(&v->sending);
	*h = header(v, c->host_port, c->guest_port, OP_RW);
	TAILQ_REMOVE(&v->sending, c, sending);
	TAILQ_INSERT_TAIL(&v->sending, c, sending); // the next one's turn
	return vsock_conn_fill(c, h, payload);
}

static bool work_left(struct vio_vsock *v)
{
	struct vsock_conn *c;
	while (!v->n_rst && (c = TAILQ_FIRST(&v->sending)) && !vsock_conn_has_work(c))
		vsock_stop_sending(c);
	return v->n_rst || !TAILQ_EMPTY(&v->sending);
}

// Takes the buffers for the next packets, at most `most`. None: there are none, or the driver broke a rule.
static void gather(struct vio_vsock *v, unsigned most)
{
	struct vio_dev *d = &v->dev;
	struct vsock_batch *b = &v->batch;
	struct vq_span *s = &v->chain.writable, *all = &b->payload;
	const uint32_t want = v->n_rst ? 1 : vsock_conn_room(TAILQ_FIRST(&v->sending));

	b->n = b->n_header_iov = 0;
	*all = (struct vq_span){ .iov = b->payload_iov };
	while (all->bytes < want && b->n < most && b->n_header_iov < VSOCK_BATCH_IOV &&
	       all->n < VSOCK_BATCH_IOV && vio_pop(d, VSOCK_RX, &v->chain)) {
		vq_disable_notify(&d->s.queue[VSOCK_RX]);
		if (s->bytes <= VSOCK_HEADER_BYTES) {
			vio_needs_reset(d, "a receive buffer too small for any data");
			break;
		}
		struct vsock_buf *buf = &b->buf[b->n++];
		buf->head = v->chain.head;
		buf->header = split(s, b->header_iov + b->n_header_iov, VSOCK_HEADER_BYTES);
		b->n_header_iov += buf->header.n;
		buf->bytes = s->bytes;
		memcpy(all->iov + all->n, s->iov, s->n * sizeof *s->iov);
		all->n += s->n;
		all->bytes += s->bytes;
	}
}

// The payload of h lies in the first buffers: they are the guest's, a packet each. How many that was.
static unsigned deliver(struct vio_vsock *v, struct vsock_header *h)
{
	struct vq_used_elem used[VSOCK_BATCH];
	uint32_t rest = le32_get(h->len);
	unsigned n = 0;
	do {
		struct vsock_buf *buf = &v->batch.buf[n];
		uint32_t len = rest < buf->bytes ? rest : (uint32_t)buf->bytes;
		h->len = le32_make(len);
		vq_span_write(&buf->header, h, sizeof *h);
		used[n++] =
			(struct vq_used_elem){ le32_make(buf->head), le32_make(VSOCK_HEADER_BYTES + len) };
		rest -= len;
	} while (rest);
	vq_push_all(&v->dev.s.queue[VSOCK_RX], used, n);
	return n;
}

// What one stream may send at once: when several wait, its part of the buffers that are there.
static unsigned share(const struct vio_vsock *v, unsigned most)
{
	const struct vq *q = &v->dev.s.queue[VSOCK_RX];
	most = most < VSOCK_BATCH ? most : VSOCK_BATCH;
	if (v->n_sending > 1 && vio_live(&v->dev, VSOCK_RX)) {
		unsigned part = (uint16_t)(vq_driver_index(q) - q->next_avail) / v->n_sending;
		most = part < most ? part : most;
	}
	return most ? most : 1;
}

void vsock_pump(struct vio_vsock *v)
{
	struct vio_dev *d = &v->dev;
	unsigned left = PACKETS_PER_KICK;

	while (work_left(v) && left) {
		gather(v, share(v, left));
		if (!v->batch.n) {
			if (!vio_rearm(d, VSOCK_RX))
				break;
			continue;
		}
		struct vsock_header h;
		bool any = vio_live(d, VSOCK_RX) && next_packet(v, &h, &v->batch.payload);
		unsigned n = any ? deliver(v, &h) : 0;
		left -= n ? n : 1;
		for (; n < v->batch.n; n++)
			vq_unpop(&d->s.queue[VSOCK_RX]);
	}
	if (!left)
		vio_again(d, VSOCK_RX);
	vio_signal_queue(d, VSOCK_RX);
}

static void handle_packet(struct vio_vsock *v, struct vq_span *payload)
{
	struct vsock_header h;
	if (vq_span_read(payload, &h, sizeof h) < sizeof h || le32_get(h.len) > payload->bytes ||
	    le64_get(h.src_cid) != v->guest_cid || le64_get(h.dst_cid) != VSOCK_HOST_CID) {
		mv_log_limited(MV_WARN, "%s: dropped a malformed or misaddressed packet", v->dev.name);
		return;
	}
	vq_span_trim(payload, le32_get(h.len));
	uint32_t host_port = le32_get(h.dst_port), guest_port = le32_get(h.src_port);
	uint16_t op = le16_get(h.op);
	struct vsock_conn *c = vsock_conn_find(v, host_port, guest_port);
	if (le16_get(h.type) != VSOCK_STREAM || (!c && op != OP_REQUEST)) {
		if (op != OP_RST)
			vsock_rst(v, host_port, guest_port);
	} else if (c && op == OP_REQUEST) {
		vsock_conn_kill(c);
	} else if (c) {
		vsock_conn_receive(c, &h, payload);
	} else {
		vsock_connect(v, &h);
	}
}

static void run_tx(struct vio_vsock *v)
{
	struct vio_dev *d = &v->dev;
	unsigned left = PACKETS_PER_KICK;
	do {
		if (vio_live(d, VSOCK_TX))
			vq_disable_notify(&d->s.queue[VSOCK_TX]);
		for (; left && vio_pop(d, VSOCK_TX, &v->chain); left--) {
			uint16_t head = v->chain.head;
			handle_packet(v, &v->chain.readable);
			vq_push(&d->s.queue[VSOCK_TX], head, 0);
		}
	} while (left && vio_rearm(d, VSOCK_TX));
	if (!left)
		vio_again(d, VSOCK_TX);
	vio_signal_queue(d, VSOCK_TX);
	vsock_pump(v);
}

static void settled(void *arg)
{
	struct vio_vsock *v = arg;
	if (!v->settling && !v->transport_changed)
		return;
	v->settling = false;
	if (!v->accept_paused)
		mv_watch_mod(&v->listen_watch, EPOLLIN);
}

static void run_event(struct vio_vsock *v)
{
	struct vio_dev *d = &v->dev;
	le32_t id = le32_make(EVENT_TRANSPORT_RESET);
	if (v->settling && vio_live(d, VSOCK_EVENT) &&
	    vq_driver_index(&d->s.queue[VSOCK_EVENT]) != v->event_index)
		settled(v);
	while (v->transport_changed) {
		if (vio_pop(d, VSOCK_EVENT, &v->chain)) {
			size_t n = vq_span_write(&v->chain.writable, &id, sizeof id);
			vq_push(&d->s.queue[VSOCK_EVENT], v->chain.head, (uint32_t)n);
			v->event_index = vq_notify_next(&d->s.queue[VSOCK_EVENT]);
			v->transport_changed = false;
			v->settling = true;
			mv_timer_arm(&v->settle_timer, HANDLE_NS);
		} else if (!vio_rearm(d, VSOCK_EVENT)) {
			break; // the kick for the next buffer brings us back
		}
	}
	vio_signal_queue(d, VSOCK_EVENT);
}

static void vsock_kick(struct vio_dev *d, unsigned q)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	if (q == VSOCK_RX)
		vsock_pump(v);
	else if (q == VSOCK_TX)
		run_tx(v);
	else
		run_event(v);
}

static void vsock_reset(struct vio_dev *d)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	vsock_drop_all(v);
	v->n_rst = 0;
	settled(v); // a driver that starts anew has no streams
	v->transport_changed = false;
}

static void vsock_restored(struct vio_dev *d)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	v->transport_changed = d->s.status & VIO_DRIVER_OK;
	if (v->transport_changed) {
		mv_watch_mod(&v->listen_watch, 0);
		mv_timer_arm(&v->settle_timer, NO_BUFFER_NS);
	}
}

static void vsock_free(struct vio_dev *d)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	vsock_drop_all(v);
	mv_watch_del(&v->listen_watch);
	mv_timer_fini(&v->settle_timer);
	mv_close(&v->listen_fd);
	vio_dev_fini(d);
	free(v);
}

static const struct vio_ops vsock_ops = {
	.device_id = 19,
	.config_bytes = sizeof(le64_t),
	.n_queues = VSOCK_QUEUES,
	.queue_size_max = QUEUE_SIZE,
	.kick = vsock_kick,
	.reset = vsock_reset,
	.restored = vsock_restored,
	.free = vsock_free,
};

static void on_listen(void *arg, uint32_t events)
{
	(void)events;
	vsock_accept(arg);
}

static int check_listener(int fd, const char *path, struct mv_err *err)
{
	size_t max = sizeof(((struct vio_vsock *)0)->path) - sizeof "_4294967295";
	if (strlen(path) > max)
		return mv_fail(err, EINVAL,
			       "vsock: the socket path is longer than %zu characters; "
			       "\"_<port>\" must fit behind it",
			       max);
	int listening = 0;
	socklen_t size = sizeof listening;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) || !listening ||
	    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
		return mv_fail(err, EINVAL, "vsock: the descriptor for %s is not a listening socket", path);
	return 0;
}

static void set_cid(struct vio_vsock *v, uint32_t guest_cid)
{
	v->guest_cid = guest_cid;
	v->config.guest_cid = le64_make(guest_cid);
}

void vio_vsock_set_metadata(struct vio_dev *d, const void *bytes, uint32_t len)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	v->metadata = bytes;
	v->n_metadata = len;
}

int vio_vsock_claim(struct vio_dev *d, uint32_t guest_cid, int listen_fd, const char *path,
		    struct mv_err *err)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	MV_FD fd = listen_fd;
	set_cid(v, guest_cid);
	if (fd < 0)
		return 0;
	int r = check_listener(fd, path, err);
	if (r)
		return r;
	struct mv_loop *loop = v->listen_watch.loop;
	mv_watch_del(&v->listen_watch);
	mv_close(&v->listen_fd);
	r = mv_watch_add(loop, &v->listen_watch, fd, EPOLLIN, on_listen, v);
	if (r)
		return mv_fail(err, -r, "vsock: cannot watch the listening socket: %s", strerror(-r));
	v->listen_fd = MV_TAKE_FD(fd);
	snprintf(v->path, sizeof v->path, "%s", path);
	return 0;
}

int vio_vsock_new(struct gmem *mem, struct mv_loop *loop, uint32_t guest_cid, int listen_fd, const char *path,
		  struct vio_dev **ret_dev, struct mv_err *err)
{
	MV_FD fd = listen_fd;
	MV_FREE struct vio_vsock *v = calloc(1, sizeof *v);
	if (!v)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = check_listener(fd, path, err);
	if (r)
		return r;
	r = vio_dev_init(&v->dev, &vsock_ops, "vsock", mem, loop, VIO_FEATURES | F_STREAM, err);
	if (r)
		return r;
	r = mv_watch_add(loop, &v->listen_watch, fd, EPOLLIN, on_listen, v);
	if (!r && (r = mv_timer_init(loop, &v->settle_timer, settled, v)))
		mv_watch_del(&v->listen_watch);
	if (r) {
		vio_dev_fini(&v->dev);
		return mv_fail(err, -r, "vsock: cannot watch the listening socket: %s", strerror(-r));
	}
	snprintf(v->path, sizeof v->path, "%s", path);
	set_cid(v, guest_cid);
	v->dev.config = &v->config;
	TAILQ_INIT(&v->all);
	TAILQ_INIT(&v->sending);
	v->listen_fd = MV_TAKE_FD(fd);
	*ret_dev = &MV_TAKE(v)->dev;
	return 0;
}

void vio_vsock_watch_port(struct vio_dev *d, uint32_t port, void (*fn)(void *arg), void *arg)
{
	struct vio_vsock *v = MV_CONTAINER(d, struct vio_vsock, dev);
	v->watched_port = port;
	v->on_watched = fn;
	v->on_watched_arg = arg;
}
