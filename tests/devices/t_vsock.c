// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_vsock.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "microvm/base/util.h"

enum { F_STREAM = 1 };

int t_listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(listen(fd, 128), 0);
	return fd;
}

void t_give_rx(struct t_vsock *f, unsigned n)
{
	for (; n; n--, f->n_rx_given++)
		t_add(&f->q[0],
		      (struct t_buf[]){ { f->rx_gpa + f->n_rx_given % T_VSOCK_N_RX * T_VSOCK_RX_BYTES,
					  T_VSOCK_RX_BYTES, true } },
		      1);
}

static void start(struct t_vsock *f, struct vio_dev *d)
{
	for (unsigned i = 0; i < 3; i++)
		t_queue_init(&f->q[i], &f->vm, T_VSOCK_N_RX);
	t_start(d, VIO_FEATURES | F_STREAM, f->q, 3);
	t_give_rx(f, T_VSOCK_N_RX);
	t_kick(d, 0);
}

int t_vsock_set_up(void **state)
{
	struct t_vsock *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	t_tmpdir(f->dir);
	snprintf(f->path, sizeof f->path, "%s/v", f->dir);
	f->rx_gpa = t_alloc(&f->vm, T_VSOCK_N_RX * T_VSOCK_RX_BYTES, 4096);
	f->tx_gpa = t_alloc(&f->vm, 1 << 20, 4096);
	int fd = t_listen_at(f->path);
	assert_int_equal(vio_vsock_new(&f->vm.mem, &f->vm.loop, T_VSOCK_CID, fd, f->path, &f->d, NULL), 0);
	start(f, f->d);
	*state = f;
	return 0;
}

int t_vsock_tear_down(void **state)
{
	struct t_vsock *f = *state;
	vio_free(f->d);
	t_vm_fini(&f->vm);
	t_remove_tree(f->dir);
	free(f);
	return 0;
}

struct vio_vsock *t_vsock_of(struct t_vsock *f) { return MV_CONTAINER(f->d, struct vio_vsock, dev); }

struct t_vsock_packet t_vsock_receive(struct t_vsock *f)
{
	struct t_vsock_packet p;
	uint16_t head;
	uint32_t len;
	t_run_until(&f->vm, t_has_used, &f->q[0]);
	assert_true(t_used(&f->q[0], &head, &len));
	memcpy(&p, t_ptr(&f->vm, le64_get(f->q[0].desc[head].addr), T_VSOCK_RX_BYTES), T_VSOCK_RX_BYTES);
	assert_int_equal(len, VSOCK_HEADER_BYTES + le32_get(p.h.len));
	assert_int_equal(le64_get(p.h.src_cid), 2);
	assert_int_equal(le64_get(p.h.dst_cid), T_VSOCK_CID);
	assert_int_equal(le16_get(p.h.type), VSOCK_STREAM);
	t_give_rx(f, 1);
	t_kick(f->d, 0);
	return p;
}

struct t_vsock_packet t_vsock_expect(struct t_vsock *f, enum vsock_op op)
{
	struct t_vsock_packet p = t_vsock_receive(f);
	if (le16_get(p.h.op) != op)
		fail_msg("packet %u instead of %u", le16_get(p.h.op), op);
	return p;
}

void t_vsock_expect_nothing(struct t_vsock *f)
{
	t_run_ms(&f->vm, 10);
	if (t_has_used(&f->q[0]))
		fail_msg("unexpected packet %u", le16_get(t_vsock_receive(f).h.op));
}

struct vsock_header t_vsock_packet(uint32_t guest_port, uint32_t host_port, uint16_t op, uint32_t len)
{
	return (struct vsock_header){ .src_cid = le64_make(T_VSOCK_CID),
				      .dst_cid = le64_make(2),
				      .src_port = le32_make(guest_port),
				      .dst_port = le32_make(host_port),
				      .len = le32_make(len),
				      .type = le16_make(VSOCK_STREAM),
				      .op = le16_make(op),
				      .buf_alloc = le32_make(T_VSOCK_GUEST_BUF) };
}

void t_vsock_transmit(struct t_vsock *f, const struct vsock_header *h, uint32_t payload_bytes)
{
	memcpy(t_ptr(&f->vm, f->tx_gpa, 64), h, sizeof *h);
	t_add(&f->q[1],
	      (struct t_buf[]){ { f->tx_gpa, VSOCK_HEADER_BYTES, false },
				{ f->tx_gpa + 64, payload_bytes, false } },
	      payload_bytes ? 2 : 1);
	t_kick(f->d, 1);
	assert_true(t_used(&f->q[1], NULL, NULL));
}

void t_send_op(struct t_vsock *f, uint32_t guest_port, uint32_t host_port, uint16_t op, uint32_t flags,
	       uint32_t fwd_cnt)
{
	struct vsock_header h = t_vsock_packet(guest_port, host_port, op, 0);
	h.flags = le32_make(flags);
	h.fwd_cnt = le32_make(fwd_cnt);
	t_vsock_transmit(f, &h, 0);
}

void t_send_data(struct t_vsock *f, uint32_t guest_port, uint32_t host_port, const void *data, uint32_t len)
{
	struct vsock_header h = t_vsock_packet(guest_port, host_port, OP_RW, len);
	memcpy(t_ptr(&f->vm, f->tx_gpa + 64, len), data, len);
	t_vsock_transmit(f, &h, len);
}

int t_host_connect(struct t_vsock *f, const char *hello)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	snprintf(a.sun_path, sizeof a.sun_path, "%s", f->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(send(fd, hello, strlen(hello), MSG_NOSIGNAL), strlen(hello));
	return fd;
}

struct wait {
	int fd;
	uint8_t *p;
	size_t want, n;
	bool eof;
};

static bool have_bytes(void *arg)
{
	struct wait *w = arg;
	while (w->n < w->want || !w->want) {
		uint8_t one;
		ssize_t n = recv(w->fd, w->p ? w->p + w->n : &one, w->p ? w->want - w->n : 1, 0);
		if (n == 0 || (n < 0 && errno == ECONNRESET))
			return w->eof = true;
		if (n < 0)
			return false;
		w->n += (size_t)n;
	}
	return true;
}

void t_host_reads(struct t_vsock *f, int fd, void *buf, size_t len)
{
	struct wait w = { .fd = fd, .p = buf, .want = len };
	t_run_until(&f->vm, have_bytes, &w);
	assert_int_equal(w.n, len);
}

void t_host_reads_eof(struct t_vsock *f, int fd)
{
	struct wait w = { .fd = fd };
	t_run_until(&f->vm, have_bytes, &w);
	assert_int_equal(w.n, 0);
}

uint32_t t_open_from_host(struct t_vsock *f, uint32_t guest_port, int *ret_fd)
{
	char hello[32], want[32], got[32] = { 0 };
	snprintf(hello, sizeof hello, "CONNECT %u\n", guest_port);
	int fd = t_host_connect(f, hello);
	struct t_vsock_packet p = t_vsock_expect(f, OP_REQUEST);
	assert_int_equal(le32_get(p.h.dst_port), guest_port);
	assert_int_equal(le32_get(p.h.buf_alloc), VSOCK_BUF_BYTES);
	uint32_t host_port = le32_get(p.h.src_port);
	t_send_op(f, guest_port, host_port, OP_RESPONSE, 0, 0);
	snprintf(want, sizeof want, "OK %u\n", host_port);
	t_host_reads(f, fd, got, strlen(want));
	assert_string_equal(got, want);
	*ret_fd = fd;
	return host_port;
}

int t_open_from_guest(struct t_vsock *f, uint32_t guest_port)
{
	char path[100];
	snprintf(path, sizeof path, "%s_52", f->path);
	int lfd = t_listen_at(path);
	t_send_op(f, guest_port, 52, OP_REQUEST, 0, 0);
	struct t_vsock_packet p = t_vsock_expect(f, OP_RESPONSE);
	assert_int_equal(le32_get(p.h.src_port), 52);
	assert_int_equal(le32_get(p.h.dst_port), guest_port);
	int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(fd >= 0);
	close(lfd);
	unlink(path);
	return fd;
}
