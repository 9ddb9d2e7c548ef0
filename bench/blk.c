// SPDX-License-Identifier: Apache-2.0
// virtio-blk without a guest: a driver in this process fills the queue of the real device and notifies it,
// so exits and interrupt injection are left out, and what remains beside the floor is what the device
// costs. The floor is the same pattern by io_uring alone, on the same file and from the same memory. Both
// take turns of some milliseconds, so that noise of the machine hits both; the ratio is per pair of turns.
//
//   *_dev   notified by a call, no interrupts: descriptors, header, io_uring, used ring
//   *_loop  notified by an eventfd that the event loop watches, as KVM does it, and an interrupt per batch:
//   with the
//           event path
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "devices/devices.h"
#include "devices/disk.h"
#include "microvm/base/util.h"

enum { QUEUE_SIZE = 64, MAX_DEPTH = 32, DESCS = 3, MEM_MIB = 64, FILE_MIB = 256 };
#define TURN_NS (15u * 1000 * 1000)
#define F_FLUSH (1ULL << 9)

struct pattern {
	const char *name;
	uint32_t bytes, depth;
	bool write, sequential, direct;
};

static const struct pattern patterns[] = {
	{ "read_4k_qd1", 4096, 1, false, false, false },
	{ "read_4k_qd32", 4096, 32, false, false, false },
	{ "write_4k_qd1", 4096, 1, true, false, false },
	{ "write_4k_qd32", 4096, 32, true, false, false },
	{ "read_1m", 1 << 20, 1, false, true, false },
	{ "write_1m", 1 << 20, 1, true, true, false },
	{ "direct_read_4k_qd1", 4096, 1, false, false, true },
	{ "direct_read_4k_qd32", 4096, 32, false, false, true },
};

// The driver's memory: a slot for each request in flight.
struct slot {
	struct vq_desc desc[DESCS];
	struct {
		le32_t type, reserved;
		le64_t sector;
	} header;
	uint8_t status;
};

struct turn {
	double rate, cpu_ns; // requests per second; per request
};

struct bench_blk {
	struct gmem mem;
	struct mv_loop loop;
	struct mv_ring *ring;
	struct vio_dev *d;
	int fd;
	// in guest memory
	struct vq_desc *desc;
	struct vq_avail *avail;
	struct vq_used *used;
	struct slot *slot;
	uint64_t slot_gpa, data_gpa;
	uint8_t *data;
	// the turn
	const struct pattern *p;
	uint64_t seed, next_block, n_done, end_ns;
	uint16_t added, seen;
	unsigned inflight, n_free, free_slot[MAX_DEPTH];
	bool by_loop;
	int error;
};

static uint64_t place(struct bench_blk *b)
{
	uint64_t n = ((uint64_t)FILE_MIB << 20) / b->p->bytes;
	if (b->p->sequential)
		return b->next_block++ % n * b->p->bytes;
	b->seed = b->seed * 6364136223846793005u + 1442695040888963407u;
	return (b->seed >> 33) % n * b->p->bytes;
}

static uint64_t cpu_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct turn result(uint64_t n, uint64_t start_ns, uint64_t start_cpu_ns)
{
	double done = n ? (double)n : 1;
	return (struct turn){ done * 1e9 / (double)(mv_now_ns() - start_ns),
			      (double)(cpu_ns() - start_cpu_ns) / done };
}

// --- the floor --------------------------------------------------------------------------
static int floor_turn(struct bench_blk *b, struct io_uring *u, struct turn *ret_turn)
{
	struct io_uring_cqe *cqe;
	uint64_t start = mv_now_ns(), cpu = cpu_ns(), now = start, n = 0;
	b->n_free = b->p->depth;
	for (unsigned i = 0; i < b->p->depth; i++)
		b->free_slot[i] = i;
	while (now - start < TURN_NS || b->n_free < b->p->depth) {
		while (b->n_free && now - start < TURN_NS) {
			unsigned i = b->free_slot[--b->n_free];
			struct io_uring_sqe *sqe = io_uring_get_sqe(u);
			if (b->p->write)
				io_uring_prep_write(sqe, b->fd, b->data + (size_t)i * b->p->bytes,
						    b->p->bytes, place(b));
			else
				io_uring_prep_read(sqe, b->fd, b->data + (size_t)i * b->p->bytes, b->p->bytes,
						   place(b));
			io_uring_sqe_set_data64(sqe, i);
		}
		int r = io_uring_submit_and_wait(u, 1);
		if (r < 0 && r != -EINTR)
			return r;
		while (!io_uring_peek_cqe(u, &cqe)) {
			if (cqe->res != (int)b->p->bytes)
				return cqe->res < 0 ? cqe->res : -EIO;
			b->free_slot[b->n_free++] = (unsigned)io_uring_cqe_get_data64(cqe);
			io_uring_cqe_seen(u, cqe);
			n++;
		}
		now = mv_now_ns();
	}
	*ret_turn = result(n, start, cpu);
	return 0;
}

// --- the driver ---------------------------------------------------------------------------
static void add(struct bench_blk *b)
{
	unsigned i = b->free_slot[--b->n_free];
	struct slot *s = &b->slot[i];
	uint64_t at = b->slot_gpa + i * sizeof *s;
	uint16_t write = b->p->write ? 0 : VQ_DESC_WRITE;
	s->header.type = le32_make(b->p->write);
	s->header.sector = le64_make(place(b) / 512);
	s->status = 0xff;
	s->desc[0] = (struct vq_desc){ le64_make(at + offsetof(struct slot, header)),
				       le32_make(sizeof s->header), le16_make(VQ_DESC_NEXT), le16_make(1) };
	s->desc[1] =
		(struct vq_desc){ le64_make(b->data_gpa + (uint64_t)i * b->p->bytes), le32_make(b->p->bytes),
				  le16_make(VQ_DESC_NEXT | write), le16_make(2) };
	s->desc[2] = (struct vq_desc){ le64_make(at + offsetof(struct slot, status)), le32_make(1),
				       le16_make(VQ_DESC_WRITE), le16_make(0) };
	b->desc[i] = (struct vq_desc){ le64_make(at), le32_make(sizeof s->desc), le16_make(VQ_DESC_INDIRECT),
				       le16_make(0) };
	b->avail->ring[b->added++ % QUEUE_SIZE] = le16_make((uint16_t)i);
	__atomic_store_n(&b->avail->idx.raw, le16_make(b->added).raw, __ATOMIC_RELEASE);
	b->inflight++;
}

static bool reap(struct bench_blk *b)
{
	uint16_t idx = le16_get((le16_t){ __atomic_load_n(&b->used->idx.raw, __ATOMIC_ACQUIRE) });
	if (idx == b->seen)
		return false;
	for (; b->seen != idx; b->seen++) {
		unsigned i = le32_get(b->used->ring[b->seen % QUEUE_SIZE].id);
		if (b->slot[i].status)
			b->error = -EIO;
		b->free_slot[b->n_free++] = i;
		b->inflight--;
		b->n_done++;
	}
	// used_event: an interrupt for the next one, or as late as can be
	b->avail->ring[QUEUE_SIZE] = le16_make((uint16_t)(b->by_loop ? b->seen : b->seen - 1));
	return true;
}

// Section 2.7.10: does the device want to hear of what was added since?
static bool must_notify(const struct bench_blk *b, uint16_t before)
{
	le16_t avail_event;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memcpy(&avail_event, &b->used->ring[QUEUE_SIZE], sizeof avail_event);
	return (uint16_t)(b->added - le16_get(avail_event) - 1) < (uint16_t)(b->added - before);
}

// Between two waits of the loop: takes what is done, adds new requests and notifies, until all are with the
// kernel. The turn ends when its time is over and nothing is in flight.
static void drive(void *arg)
{
	struct bench_blk *b = arg;
	do {
		reap(b);
		bool over = b->error || mv_now_ns() >= b->end_ns;
		uint16_t before = b->added;
		while (!over && b->n_free)
			add(b);
		if (!b->inflight) {
			mv_loop_stop(&b->loop);
			return;
		}
		if (!must_notify(b, before))
			return; // what is in flight comes by itself
		if (b->by_loop) {
			vio_again(b->d, 0);
			return;
		}
		vio_notify(b->d, 0);
	} while (le16_get(b->used->idx) != b->seen);
}

static int device_turn(struct bench_blk *b, bool by_loop, struct turn *ret_turn)
{
	uint64_t start = mv_now_ns(), cpu = cpu_ns();
	b->n_done = 0;
	b->n_free = b->p->depth;
	for (unsigned i = 0; i < b->p->depth; i++)
		b->free_slot[i] = i;
	b->end_ns = start + TURN_NS;
	b->by_loop = by_loop;
	b->loop.before_wait = drive;
	b->loop.before_wait_arg = b;
	mv_loop_again(&b->loop);
	vio_again(b->d, 0); // the first turn of the loop
	int r = mv_loop_run(&b->loop);
	*ret_turn = result(b->n_done, start, cpu);
	return r ? r : b->error;
}

// --- setting up -----------------------------------------------------------------------------
static void set(struct bench_blk *b, uint64_t reg, uint64_t value, bool both_halves)
{
	le32_t low = le32_make((uint32_t)value), high = le32_make((uint32_t)(value >> 32));
	vio_mmio_write(b->d, reg, &low, sizeof low);
	if (both_halves)
		vio_mmio_write(b->d, reg + 4, &high, sizeof high);
}

static void *take(struct bench_blk *b, uint64_t *gpa_next, size_t bytes, uint64_t *ret_gpa)
{
	*ret_gpa = mv_align_up(*gpa_next, 4096);
	*gpa_next = *ret_gpa + bytes;
	return gmem_ptr(&b->mem, gpa(*ret_gpa), bytes);
}

// Registers of virtio 1.2 section 4.2.2.
static void start_driver(struct bench_blk *b)
{
	const uint64_t features = VIO_FEATURES | F_FLUSH;
	uint64_t next = 0, desc, avail, used;
	b->desc = take(b, &next, QUEUE_SIZE * sizeof *b->desc, &desc);
	b->avail = take(b, &next, 4096, &avail);
	b->used = take(b, &next, 4096, &used);
	b->slot = take(b, &next, MAX_DEPTH * sizeof *b->slot, &b->slot_gpa);
	b->data = take(b, &next, MAX_DEPTH << 20, &b->data_gpa);
	set(b, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER, false);
	for (uint32_t half = 0; half < 2; half++) {
		set(b, 0x24, half, false);
		set(b, 0x20, features >> 32 * half, false);
	}
	set(b, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK, false);
	set(b, 0x38, QUEUE_SIZE, false);
	set(b, 0x80, desc, true);
	set(b, 0x90, avail, true);
	set(b, 0xa0, used, true);
	set(b, 0x44, 1, false);
	set(b, 0x70, VIO_ACKNOWLEDGE | VIO_DRIVER | VIO_FEATURES_OK | VIO_DRIVER_OK, false);
	memset(b->data, 0x5a, MAX_DEPTH << 20);
}

static int start_device(struct bench_blk *b, const char *path, const struct pattern *p, struct mv_err *err)
{
	struct disk_files files = { .direct = p->direct };
	struct vio_blk_options o = { .serial = "bench" };
	files.base_fd = open(path, O_RDWR | O_CLOEXEC);
	b->fd = open(path, O_RDWR | O_CLOEXEC | (p->direct ? O_DIRECT : 0));
	b->p = p;
	b->seed = 1;
	int r = b->fd < 0 ? mv_fail(err, errno, "%s", strerror(errno)) : mv_loop_init(&b->loop);
	r = r ? r : gmem_add(&b->mem, 0, (uint64_t)MEM_MIB << 20);
	r = r ? r : gmem_map(&b->mem, -1, err);
	r = r ? r : mv_ring_new(&b->loop, 256, false, &b->ring, err);
	if (r) {
		mv_close(&files.base_fd);
		return r;
	}
	return vio_blk_new(&b->mem, &b->loop, b->ring, "bench", &o, &files, &b->d, err);
}

static void stop_device(struct bench_blk *b)
{
	vio_free(b->d);
	mv_ring_free(b->ring);
	mv_loop_fini(&b->loop);
	gmem_fini(&b->mem);
	mv_close(&b->fd);
}

static struct bench_series *series(struct bench_results *res, const struct pattern *p, const char *what,
				   const char *unit, const char *doc)
{
	char name[64];
	snprintf(name, sizeof name, "blk_%s_%s", p->name, what);
	return bench_series(res, strdup(name), unit, doc); // lives as long as the results, to the end
}

static int run_turns(const struct bench_env *env, struct bench_blk *b, struct bench_results *res)
{
	struct bench_series *floor = series(res, b->p, "floor", "1/s", "io_uring alone");
	struct bench_series *dev = series(res, b->p, "dev", "1/s", "through the device, notified by a call");
	struct bench_series *loop = series(res, b->p, "loop", "1/s", "through device and event loop");
	struct bench_series *ratio = series(res, b->p, "ratio", "ratio", "rate: device / floor");
	struct bench_series *floor_cpu = series(res, b->p, "floor_cpu", "ns", "CPU time per request");
	struct bench_series *dev_cpu = series(res, b->p, "dev_cpu", "ns", "the same, through the device");
	struct bench_series *loop_cpu = series(res, b->p, "loop_cpu", "ns", "and through the event loop");
	struct bench_series *ratio_cpu = series(res, b->p, "ratio_cpu", "ratio", "CPU time: floor / device");
	struct io_uring u;
	struct turn f, d, l;
	int r = io_uring_queue_init(256, &u, 0);
	if (r)
		return r;
	for (int i = -2; !r && i < env->samples / 4; i++) { // the first two are for warming up
		r = floor_turn(b, &u, &f);
		r = r ? r : device_turn(b, false, &d);
		r = r ? r : device_turn(b, true, &l);
		if (r || i < 0)
			continue;
		bench_add(floor, f.rate);
		bench_add(dev, d.rate);
		bench_add(loop, l.rate);
		bench_add(ratio, d.rate / f.rate);
		bench_add(floor_cpu, f.cpu_ns);
		bench_add(dev_cpu, d.cpu_ns);
		bench_add(loop_cpu, l.cpu_ns);
		bench_add(ratio_cpu, f.cpu_ns / d.cpu_ns);
	}
	io_uring_queue_exit(&u);
	return r;
}

static int make_file(const char *path)
{
	MV_FREE uint8_t *mib = malloc(1 << 20);
	MV_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : mib ? 0 : -ENOMEM;
	for (uint64_t i = 0; !r && i < FILE_MIB; i++) {
		memset(mib, (int)i + 1, 1 << 20);
		r = mv_pwrite_full(fd, mib, 1 << 20, i << 20);
	}
	return r ? r : fsync(fd) ? -errno : 0;
}

int bench_blk(const struct bench_env *env, struct bench_results *res)
{
	char path[1100];
	snprintf(path, sizeof path, "%s/blk.img", env->out);
	int r = make_file(path);
	for (size_t i = 0; !r && i < MV_ARRAY_LEN(patterns); i++) {
		struct bench_blk b = { .fd = -1 };
		struct mv_err err = { 0 };
		r = start_device(&b, path, &patterns[i], &err);
		if (!r) {
			start_driver(&b);
			r = run_turns(env, &b, res);
		} else {
			fprintf(stderr, "bench: blk_%s: %s\n", patterns[i].name, err.msg);
			r = patterns[i].direct ? 0 : r; // not every file system has direct I/O
		}
		stop_device(&b);
	}
	unlink(path);
	return r;
}
