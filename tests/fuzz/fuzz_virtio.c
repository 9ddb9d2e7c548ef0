// SPDX-License-Identifier: Apache-2.0
// A hostile driver: the input is a list of what it does to one of the devices below, which was set up by the
// rules (QUEUE_SIZE entries, rings at ring_gpa()) - register accesses, writes to guest memory, notifications
// - with what the host does meanwhile: programs that connect, changes of size and limits, timers (each fires
// in the next turn of the loop), a snapshot and a restore of what somebody changed in its file.
#include <fcntl.h>
#include <linux/sockios.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices/devices.h"
#include "devices/disk.h"
#include "devices/mmds.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

enum { MEMORY_BYTES = 64 << 10, DISK_BYTES = 32 << 10, QUEUE_SIZE = 8, MAX_STEPS = 64 };
enum { FILE_GPA = 2 << 20, READ_ONLY_GPA = 4 << 20 };

static struct gmem mem;
static struct mv_loop loop;
static struct mv_ring *ring;
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

// Timers of devices do not wait.
int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	struct itimerspec soon = *new;
	if (soon.it_value.tv_sec)
		soon.it_value = (struct timespec){ .tv_nsec = 1 };
	return (int)syscall(SYS_timerfd_settime, fd, flags, &soon, old);
}

static int file_of(off_t bytes)
{
	int fd = memfd_create("file", MFD_CLOEXEC);
	must(fd >= 0 && !ftruncate(fd, bytes));
	return fd;
}

// --- the devices: how each is made, and what the host does to it ---
static struct vio_dev *make_blk(void)
{
	struct vio_dev *d;
	must(!vio_blk_new(&mem, &loop, ring, "disk", &(struct vio_blk_options){ .serial = "serial" },
			  &(struct disk_files){ .base_fd = file_of(DISK_BYTES) }, &d, NULL));
	return d;
}

static const struct vmcfg_rate some_rate = { .bandwidth = { 4096, 0, 1000 }, .ops = { 4, 2, 1000 } };

static void host_blk(struct vio_dev *d, unsigned arg)
{
	static const struct vmcfg_rate none;
	if (arg & 1)
		must(!vio_blk_set_rate(d, arg & 2 ? &some_rate : &none, NULL));
	else
		vio_blk_resize(d, arg / 2 * 512u, NULL); // the file is as large as it is
}

static struct vio_dev *make_rng(void)
{
	struct vio_dev *d;
	must(!vio_rng_new(&mem, &loop, &d, NULL));
	return d;
}

// A program comes, speaks, and goes.
static void connect_to(const struct sockaddr_un *address, size_t len)
{
	static int fd = -1;
	mv_close(&fd);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (!connect(fd, (const struct sockaddr *)address, sizeof(sa_family_t) + 6))
		send(fd, "CONNECT 1\nhello", len, MSG_NOSIGNAL);
}

static struct vio_dev *make_vsock(void)
{
	struct vio_dev *d;
	must(!vio_vsock_new(&mem, &loop, 3, listener(&vsock_address), "/nonexistent", &d, NULL));
	return d;
}

static void host_vsock(struct vio_dev *d, unsigned arg)
{
	(void)d;
	connect_to(&vsock_address, arg & 1 ? 15 : 10);
}

static struct vio_dev *make_net(void)
{
	struct vio_dev *d;
	int pair[2];
	must(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair));
	net_peer = pair[1];
	must(!vio_net_new(&mem, &loop, "net", (const uint8_t[]){ 2, 0, 0, 0, 0, 1 }, VIO_NET_STREAM, pair[0],
			  &d, NULL));
	struct mmds *m = mmds_new(&(struct mmds_config){ { 169, 254, 169, 254 }, false, false });
	must(m && !vio_net_set_mmds(d, m, NULL));
	return d;
}

// A frame for the guest, once the last one was read; what the guest sent goes away.
static void exchange_frames(unsigned size)
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

static void host_net(struct vio_dev *d, unsigned arg)
{
	static const struct vmcfg_rate none;
	switch (arg % 8) {
	case 6: vio_net_set_link(d, arg & 8); break;
	case 7:
		must(!vio_net_set_limits(d, arg & 8 ? &some_rate : &none, arg & 16 ? &some_rate : &none,
					 NULL));
		break;
	default: exchange_frames(arg);
	}
}

static struct vio_dev *make_balloon(void)
{
	const struct vio_balloon_config config = { .stats_interval_s = 1,
						   .reporting = true,
						   .hinting = true };
	struct vio_dev *d;
	must(!vio_balloon_new(&mem, &loop, &config, &d, NULL));
	return d;
}

static void host_balloon(struct vio_dev *d, unsigned arg)
{
	if (arg % 8 == 1)
		vio_balloon_hint(d, 1 + arg / 8, NULL, NULL,
				 NULL); // refused without a driver, or during another
	else if (arg & 1)
		must(!vio_balloon_set_interval(d, arg >> 1, NULL));
	else // a target that is more than the memory is refused
		must((arg >> 1 > MEMORY_BYTES / 4096) == (vio_balloon_set_target(d, arg >> 1, NULL) != 0));
}

static struct vio_dev *make_console(void)
{
	const struct vio_console_port ports[] = { { "one", listener(&port_address), false },
						  { "two", listener(&port_address), true } };
	struct vio_dev *d;
	must(!vio_console_new(&mem, &loop, ports, MV_ARRAY_LEN(ports), &d, NULL));
	return d;
}

static void host_console(struct vio_dev *d, unsigned arg)
{
	(void)d;
	connect_to(&port_address, arg & 15);
}

static struct vio_dev *make_file(uint64_t at, bool read_only)
{
	struct vio_dev *d;
	struct vio_pmem_config config = { .name = "file",
					  .fd = file_of(VIO_PMEM_ALIGN),
					  .read_only = read_only,
					  .gpa = at,
					  .size_bytes = VIO_PMEM_ALIGN };
	must(!gmem_map_file(&mem, at, VIO_PMEM_ALIGN, config.fd, !read_only, NULL));
	must(!vio_pmem_new(&mem, &loop, ring, &config, &d, NULL));
	return d;
}

static struct vio_dev *make_pmem(void) { return make_file(FILE_GPA, false); }
static struct vio_dev *make_read_only_pmem(void) { return make_file(READ_ONLY_GPA, true); }

static struct kind {
	struct vio_dev *(*make)(void);
	void (*host)(struct vio_dev *d, unsigned arg); // NULL: there is nothing
	struct vio_dev *d;
} kinds[] = {
	{ make_blk, host_blk, NULL },
	{ make_rng, NULL, NULL },
	{ make_vsock, host_vsock, NULL },
	{ make_net, host_net, NULL },
	{ make_balloon, host_balloon, NULL },
	{ make_console, host_console, NULL },
	{ make_pmem, NULL, NULL },
	{ make_read_only_pmem, NULL, NULL },
};

static void set_up(void)
{
	mv_log_init("fuzz", MV_ERROR);
	must(!gmem_add(&mem, 0, MEMORY_BYTES) && !gmem_map(&mem, -1, NULL) && !mv_loop_init(&loop));
	must(!mv_ring_new(&loop, 4, true, &ring, NULL));
	for (size_t i = 0; i < MV_ARRAY_LEN(kinds); i++)
		kinds[i].d = kinds[i].make();
	loop.before_wait = stop_loop;
	loop.before_wait_arg = &loop;
}

// --- the driver ---
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

static uint32_t take(const uint8_t **data, size_t *size, unsigned bytes)
{
	uint32_t v = 0;
	for (unsigned i = 0; i < bytes && *size; i++, ++*data, --*size)
		v |= (uint32_t) * *data << 8 * i;
	return v;
}

// What the next step is: its lower three bits; the others are the step's own.
enum { REGISTER, MEMORY, DESC, REQUEST, REQUEST_TOO, OFFER, TURN, HOST };

static void access_register(struct vio_dev *d, unsigned how, const uint8_t **data, size_t *size)
{
	uint64_t value = 0;
	uint32_t at = how & 1 ? take(data, size, 2) : take(data, size, 1) * 4, len = 1u << (how >> 2 & 3);
	if (how & 2) {
		vio_mmio_read(d, at, &value, len);
	} else {
		value = take(data, size, 4);
		vio_mmio_write(d, at, &value, how & 1 ? len : 4);
	}
}

static void put_desc(unsigned q, unsigned i, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
	struct vq_desc v = { .addr = le64_make(addr),
			     .len = le32_make(len),
			     .flags = le16_make((uint16_t)flags),
			     .next = le16_make((uint16_t)next) };
	gmem_write(&mem, gpa(ring_gpa(q, 0) + i * sizeof v), &v, sizeof v);
}

// In memory or in a file: a place for a few bytes, or the start of a page.
static uint64_t place(unsigned how, unsigned at)
{
	const uint64_t base[] = { 0, 0, FILE_GPA, READ_ONLY_GPA };
	return base[how >> 1 & 3] + 0x4000 + (how & 1 ? at % 16 * 0x1000 : at * 16);
}

static void write_desc(unsigned q, const uint8_t **data, size_t *size)
{
	uint32_t i = take(data, size, 1) % QUEUE_SIZE, at = take(data, size, 1), len = take(data, size, 1),
		 how = take(data, size, 1);
	put_desc(q, i, place(how >> 3, at), how & 8 ? len * 256 : len, how & 7,
		 take(data, size, 1) % (QUEUE_SIZE + 1));
}

// One more available, and a kick.
static void offer(struct vio_dev *d, unsigned q, unsigned desc)
{
	le16_t idx = { 0 }, head = le16_make((uint16_t)desc);
	gmem_read(&mem, gpa(ring_gpa(q, 1) + 2), &idx, 2);
	gmem_write(&mem, gpa(ring_gpa(q, 1) + 4u + le16_get(idx) % QUEUE_SIZE * 2u), &head, 2);
	idx = le16_make((uint16_t)(le16_get(idx) + 1));
	gmem_write(&mem, gpa(ring_gpa(q, 1) + 2), &idx, 2);
	set(d, 0x50, q);
}

// A request of two buffers to read, of what follows in the input, and two to write.
static void request(struct vio_dev *d, unsigned q, const uint8_t **data, size_t *size)
{
	unsigned how = take(data, size, 1), at = take(data, size, 1), room = take(data, size, 1);
	uint32_t n = take(data, size, 1) % 64, split = how >> 4;
	n = n < *size ? n : (uint32_t)*size;
	split = split < n ? split : n;
	gmem_write(&mem, gpa(0x3f00), *data, n);
	*data += n;
	*size -= n;
	enum { NEXT = 1, WRITABLE = 2 };
	put_desc(q, 0, 0x3f00, split, NEXT, 1);
	put_desc(q, 1, 0x3f00 + split, n - split, room ? NEXT : 0, 2);
	put_desc(q, 2, place(how, at), how & 1 ? room * 256 : room, NEXT | WRITABLE, 3);
	put_desc(q, 3, place(how, at + 1), how & 8 ? 1 : 16, WRITABLE, 0);
	offer(d, q, !n ? 2 : !split); // without those that would be empty
}

// A snapshot; and a restore of it into a device like new. Unchanged it must be accepted; changed, it is, or
// the device is as new.
static void restore(struct vio_dev *d, unsigned n_changes, const uint8_t **data, size_t *size)
{
	MV_BUF saved = { 0 }, before = { 0 }, after = { 0 };
	struct mv_err err = { 0 };
	vio_quiesce(d);
	vio_save(d, &saved);
	set(d, 0x70, 0);
	vio_save(d, &before);
	must(!saved.failed && !before.failed);
	for (unsigned i = 0; i < n_changes; i++)
		saved.p[take(data, size, 2) % saved.len] ^= (uint8_t)take(data, size, 1);
	if (vio_load(d, saved.p, saved.len, &err)) {
		if (!n_changes)
			fprintf(stderr, "%s\n", err.msg);
		vio_save(d, &after);
		must(n_changes && err.msg[0] && after.len == before.len &&
		     !memcmp(after.p, before.p, before.len));
	}
	vio_unquiesce(d);
	turn();
}

static void step(const struct kind *k, const uint8_t **data, size_t *size)
{
	struct vio_dev *d = k->d;
	unsigned op = take(data, size, 1), how = op / 8, q = how % d->n_queues;
	switch (op % 8) {
	case REGISTER: access_register(d, how, data, size); break;
	case MEMORY: {
		uint32_t at = take(data, size, 2), n = take(data, size, 1) % 64;
		n = n < *size ? n : (uint32_t)*size;
		gmem_write(&mem, gpa(at), *data, n);
		*data += n;
		*size -= n;
		break;
	}
	case DESC: write_desc(q, data, size); break;
	case REQUEST:
	case REQUEST_TOO: request(d, q, data, size); break;
	case OFFER: offer(d, q, take(data, size, 1) % (QUEUE_SIZE + 1)); break;
	case TURN: turn(); break;
	case HOST:
		if (how & 16)
			restore(d, how % 8, data, size);
		else if (k->host)
			k->host(d, take(data, size, 1));
		turn();
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!kinds[0].d)
		set_up();
	unsigned first = take(&data, &size, 1);
	const struct kind *k = &kinds[first % MV_ARRAY_LEN(kinds)];
	memset(gmem_ptr(&mem, gpa(0), MEMORY_BYTES), 0, MEMORY_BYTES);
	start(k->d, first & 0x80);
	for (unsigned i = 0; size && i < MAX_STEPS; i++)
		step(k, &data, &size);
	restore(k->d, 0, &data, &size);
	set(k->d, 0x70, 0);
	return 0;
}
