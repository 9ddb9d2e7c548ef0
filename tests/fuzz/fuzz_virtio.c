// SPDX-License-Identifier: Apache-2.0
// A hostile driver: the input is a list of what it does to a blk, rng, vsock or net device that
// was set up by the rules (QUEUE_SIZE entries, rings at ring_gpa()) - register writes,
// writes to guest memory, notifications, host programs that connect.
#include <fcntl.h>
#include <linux/sockios.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "devices/devices.h"
#include "devices/disk.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { MEMORY_BYTES = 64 << 10, DISK_BYTES = 32 << 10, QUEUE_SIZE = 8, MAX_STEPS = 64 };

static struct gmem mem;
static struct mv_loop loop;
enum { NET = 3, BALLOON, CONSOLE, N_DEVICES };
static struct vio_dev *devices[N_DEVICES];
static int net_peer; // where frames come from
static struct sockaddr_un vsock_address = { .sun_family = AF_UNIX }, port_address = { .sun_family = AF_UNIX };

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void stop_loop(void *arg) { mv_loop_stop(arg); }

static void turn(void)
{
	mv_loop_stop(&loop); // wakes it
	loop.stop = false;
	mv_loop_run(&loop);
}

static int listener(struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof *address;
	sa_family_t only_family = AF_UNIX; // the kernel chooses an abstract name
	must(!bind(fd, (struct sockaddr *)&only_family, sizeof only_family) && !listen(fd, 64) &&
	     !getsockname(fd, (struct sockaddr *)address, &len));
	return fd;
}

static void set_up(void)
{
	struct mv_ring *ring;
	mv_log_init("fuzz", MV_ERROR);
	must(!gmem_add(&mem, 0, MEMORY_BYTES) && !gmem_map(&mem, -1, NULL) && !mv_loop_init(&loop));
	must(!mv_ring_new(&loop, 4, true, &ring, NULL));
	int fd = memfd_create("disk", MFD_CLOEXEC);
	must(!ftruncate(fd, DISK_BYTES));
	must(!vio_blk_new(&mem, &loop, ring, "disk", &(struct vio_blk_options){ .serial = "serial" },
			  &(struct disk_files){ .base_fd = fd }, &devices[0], NULL));
	must(!vio_rng_new(&mem, &loop, &devices[1], NULL));
	must(!vio_vsock_new(&mem, &loop, 3, listener(&vsock_address), "/nonexistent", &devices[2], NULL));
	int pair[2];
	must(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair));
	net_peer = pair[1];
	must(!vio_net_new(&mem, &loop, "net", (const uint8_t[]){ 2, 0, 0, 0, 0, 1 }, VIO_NET_STREAM, pair[0],
			  &devices[NET], NULL));
	const struct vio_balloon_config balloon = { .stats_interval_s = 3600, .reporting = true };
	must(!vio_balloon_new(&mem, &loop, &balloon, &devices[BALLOON], NULL));
	const struct vio_console_port ports[] = { { "one", listener(&port_address), false },
						  { "two", listener(&port_address), true } };
	must(!vio_console_new(&mem, &loop, ports, MV_ARRAY_LEN(ports), &devices[CONSOLE], NULL));
	loop.before_wait = stop_loop;
	loop.before_wait_arg = &loop;
}

static void set(struct vio_dev *d, uint64_t reg, uint32_t value)
{
	vio_mmio_write(d, reg, &value, sizeof value);
}

static uint32_t ring_gpa(unsigned q, unsigned part) { return 0x1000 + q * 0x400 + part * 0x100; }

static void start(struct vio_dev *d, bool features)
{
	set(d, 0x70, 0);
	set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER);
	set(d, 0x20, features ? (uint32_t)d->features_offered : 0);
	set(d, 0x24, 1);
	set(d, 0x20, 1);
	set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK);
	for (unsigned q = 0; q < d->n_queues; q++) {
		set(d, 0x30, q);
		set(d, 0x38, QUEUE_SIZE);
		set(d, 0x80, ring_gpa(q, 0));
		set(d, 0x90, ring_gpa(q, 1));
		set(d, 0xa0, ring_gpa(q, 2));
		set(d, 0x44, 1);
	}
	set(d, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK | VIO_DRIVER_OK);
}

// A frame for the guest, once the last one was read; what the guest sent goes away.
static void exchange_frames(uint8_t size)
{
	static uint8_t frame[4 + 14 + UINT8_MAX * 8], sink[1 << 16];
	uint32_t len = 14 + size * 8u;
	int unread = 1;
	while (recv(net_peer, sink, sizeof sink, 0) > 0)
		;
	frame[2] = (uint8_t)(len >> 8);
	frame[3] = (uint8_t)len;
	if (!ioctl(net_peer, SIOCOUTQ, &unread) && !unread)
		must(send(net_peer, frame, 4 + len, MSG_NOSIGNAL) == (ssize_t)(4 + len));
}

static uint32_t take(const uint8_t **data, size_t *size, unsigned bytes)
{
	uint32_t v = 0;
	for (unsigned i = 0; i < bytes && *size; i++, ++*data, --*size)
		v |= (uint32_t) * *data << 8 * i;
	return v;
}

static void step(struct vio_dev *d, int *host_fd, const uint8_t **data, size_t *size)
{
	uint8_t op = (uint8_t)take(data, size, 1);
	switch (op % 8) {
	case 0: {
		uint32_t reg = take(data, size, 1) * 4;
		set(d, reg, take(data, size, 4));
		break;
	}
	case 1: { // any memory
		uint32_t at = take(data, size, 2), n = take(data, size, 1) % 64;
		n = n < *size ? n : (uint32_t)*size;
		gmem_write(&mem, gpa(at), *data, n);
		*data += n;
		*size -= n;
		break;
	}
	case 2:
	case 3: { // a descriptor of a queue that is likely to be good
		unsigned q = op / 8 % d->n_queues;
		uint32_t i = take(data, size, 1) % QUEUE_SIZE;
		struct vq_desc v = { .addr = le64_make(0x4000 + take(data, size, 1) * 16),
				     .len = le32_make(take(data, size, 1)),
				     .flags = le16_make(take(data, size, 1) & 7),
				     .next = le16_make(take(data, size, 1) % (QUEUE_SIZE + 1)) };
		gmem_write(&mem, gpa(ring_gpa(q, 0) + i * sizeof v), &v, sizeof v);
		break;
	}
	case 4:
	case 5: { // one more available, and a kick
		unsigned q = op / 8 % d->n_queues;
		le16_t idx = { 0 }, head = le16_make((uint16_t)take(data, size, 1) % (QUEUE_SIZE + 1));
		gmem_read(&mem, gpa(ring_gpa(q, 1) + 2), &idx, 2);
		gmem_write(&mem, gpa(ring_gpa(q, 1) + 4u + le16_get(idx) % QUEUE_SIZE * 2u), &head, 2);
		idx = le16_make((uint16_t)(le16_get(idx) + 1));
		gmem_write(&mem, gpa(ring_gpa(q, 1) + 2), &idx, 2);
		set(d, 0x50, q);
		break;
	}
	case 6: turn(); break;
	case 7: // a host program comes, speaks, and goes
		if (d == devices[NET]) {
			exchange_frames((uint8_t)take(data, size, 1));
			turn();
			break;
		}
		mv_close(host_fd);
		*host_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (!connect(*host_fd,
			     (struct sockaddr *)(d == devices[CONSOLE] ? &port_address : &vsock_address),
			     sizeof(sa_family_t) + 6))
			send(*host_fd, "CONNECT 1\nhello", op & 8 ? 15 : 10, MSG_NOSIGNAL);
		turn();
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!devices[0])
		set_up();
	uint8_t kind = (uint8_t)take(&data, &size, 1);
	struct vio_dev *d = devices[kind % N_DEVICES];
	MV_FD host_fd = -1;
	memset(gmem_ptr(&mem, gpa(0), MEMORY_BYTES), 0, MEMORY_BYTES);
	start(d, kind & 0x80);
	for (unsigned i = 0; size && i < MAX_STEPS; i++)
		step(d, &host_fd, &data, &size);
	MV_BUF saved = { 0 };
	vio_quiesce(d);
	vio_save(d, &saved);
	must(!saved.failed);
	struct mv_err err;
	if (vio_load(d, saved.p, saved.len, &err)) { // what we save we must accept
		fprintf(stderr, "%s\n", err.msg);
		abort();
	}
	vio_unquiesce(d);
	turn();
	set(d, 0x70, 0);
	return 0;
}
