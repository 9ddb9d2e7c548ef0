// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_devices.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "devices/disk.h"
#include "microvm/base/util.h"

static const uint8_t mac[6] = { 2, 0, 0, 0, 0, 1 };

static void make_drive(struct t_vm *vm, struct t_dev *t, bool read_only, unsigned n_queues)
{
	const struct vio_blk_options o = { .serial = "serial", .n_queues = n_queues };
	const struct disk_files files = { .base_fd = t_file(), .read_only = read_only };
	assert_int_equal(ftruncate(files.base_fd, 1 << 20), 0);
	assert_int_equal(mv_ring_new(&vm->loop, 64, false, &t->ring, NULL), 0);
	assert_int_equal(vio_blk_new(&vm->mem, &vm->loop, t->ring, "disk", &o, &files, &t->d, NULL), 0);
}

static void make_blk(struct t_vm *vm, struct t_dev *t) { make_drive(vm, t, false, 1); }
static void make_blk_ro(struct t_vm *vm, struct t_dev *t) { make_drive(vm, t, true, 1); }
static void make_blk_mq(struct t_vm *vm, struct t_dev *t) { make_drive(vm, t, false, VMCFG_MAX_BLK_QUEUES); }

// As that of a shell, which gets its tap later: what is offered is the same.
static void make_tap(struct t_vm *vm, struct t_dev *t)
{
	const struct vio_net_options o = { .name = "net", .mac = mac, .kind = VIO_NET_TAP, .n_pairs = 2 };
	int fds[] = { -1, -1 };
	assert_int_equal(vio_net_new_with(&vm->mem, &vm->loop, &o, fds, &t->d, NULL), 0);
}

static void make_stream(struct t_vm *vm, struct t_dev *t)
{
	int s[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
	t->peer_fd = s[0];
	assert_int_equal(vio_net_new(&vm->mem, &vm->loop, "net", mac, VIO_NET_STREAM, s[1], &t->d, NULL), 0);
}

static void make_vsock(struct t_vm *vm, struct t_dev *t)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	sa_family_t only_family = AF_UNIX; // the kernel chooses an abstract name
	assert_int_equal(bind(fd, (struct sockaddr *)&only_family, sizeof only_family), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(vio_vsock_new(&vm->mem, &vm->loop, 3, fd, "/nonexistent", &t->d, NULL), 0);
}

static void make_rng(struct t_vm *vm, struct t_dev *t)
{
	assert_int_equal(vio_rng_new(&vm->mem, &vm->loop, &t->d, NULL), 0);
}

static void make_console(struct t_vm *vm, struct t_dev *t)
{
	sa_family_t only_family = AF_UNIX;
	struct vio_console_port port[] = { { "log", -1, false }, { "shell", -1, true } };
	for (unsigned i = 0; i < MV_ARRAY_LEN(port); i++) {
		port[i].listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		assert_int_equal(bind(port[i].listen_fd, (struct sockaddr *)&only_family, sizeof only_family),
				 0);
		assert_int_equal(listen(port[i].listen_fd, 1), 0);
	}
	assert_int_equal(vio_console_new(&vm->mem, &vm->loop, port, MV_ARRAY_LEN(port), &t->d, NULL), 0);
}

static void make_balloon(struct t_vm *vm, struct t_dev *t)
{
	assert_int_equal(vio_balloon_new(&vm->mem, &vm->loop, &(struct vio_balloon_config){ 0 }, &t->d, NULL),
			 0);
}

static void make_balloon_full(struct t_vm *vm, struct t_dev *t)
{
	const struct vio_balloon_config c = { .deflate_on_oom = true, .reporting = true, .hinting = true };
	assert_int_equal(vio_balloon_new(&vm->mem, &vm->loop, &c, &t->d, NULL), 0);
}

// Its file need not be in guest memory to be flushed.
static void make_pmem(struct t_vm *vm, struct t_dev *t)
{
	struct vio_pmem_config c = {
		.name = "p", .fd = t_file(), .gpa = 8ULL << 30, .size_bytes = VIO_PMEM_ALIGN
	};
	assert_int_equal(ftruncate(c.fd, VIO_PMEM_ALIGN), 0);
	assert_int_equal(mv_ring_new(&vm->loop, 64, false, &t->ring, NULL), 0);
	assert_int_equal(vio_pmem_new(&vm->mem, &vm->loop, t->ring, &c, &t->d, NULL), 0);
}

// A frame for the guest, its length in front.
static void send_frame(struct t_dev *t)
{
	static const uint8_t frame[4 + 60] = { 0, 0, 0, 60 };
	ssize_t n = send(t->peer_fd, frame, sizeof frame, MSG_NOSIGNAL | MSG_DONTWAIT);
	assert_true(n == sizeof frame || (n < 0 && errno == EAGAIN)); // full of those before
}

const struct t_device t_devices[] = {
	// VIRTIO_BLK_T_IN of sector 0: header; data and status
	{ "blk", 2, make_blk, 0, 16, 512 + 1, { 0 }, -1, NULL },
	{ "blk, read-only", 2, make_blk_ro, 0, 16, 512 + 1, { 0 }, -1, NULL },
	{ "blk, as many queues as can be", 2, make_blk_mq, 0, 16, 512 + 1, { 0 }, -1, NULL },
	{ "net behind a tap", 1, make_tap, 0, 0, 0, { 0 }, -1, NULL },
	// A frame that goes nowhere: the device's header, Ethernet
	{ "net behind a stream", 1, make_stream, 1, 12 + 60, 0, { 0 }, 0, send_frame },
	// A request for a stream to a port where nobody listens: answered by a reset
	{ "vsock",
	  19,
	  make_vsock,
	  1,
	  44,
	  0,
	  { [0] = 3, [8] = 2, [17] = 4, [20] = 1, [28] = 1, [30] = 1 },
	  0,
	  NULL },
	{ "rng", 4, make_rng, 0, 0, 16, { 0 }, -1, NULL },
	{ "console", 3, make_console, 1, 8, 0, { 0 }, -1, NULL }, // nobody listens to the port
	{ "balloon", 5, make_balloon, 1, 4, 0, { 0 }, -1, NULL }, // takes page 0 out of it
	{ "balloon with all", 5, make_balloon_full, 1, 4, 0, { 0 }, -1, NULL },
	{ "pmem", 27, make_pmem, 0, 4, 4, { 0 }, -1, NULL }, // VIRTIO_PMEM_REQ_TYPE_FLUSH is 0
};
const unsigned t_n_devices = MV_ARRAY_LEN(t_devices);

void t_dev_free(struct t_dev *t)
{
	vio_free(t->d);
	mv_ring_free(t->ring);
	mv_close(&t->peer_fd);
}
