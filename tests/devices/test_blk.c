// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/devices/t_driver.h"

#include "devices/disk.h"
#include "microvm/base/util.h"

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2, SECTORS = 1024 };
#define F_FLUSH (1ULL << 9)
#define F_RO (1ULL << 5)
#define F_WCE (1ULL << 11)
#define F_MQ (1ULL << 12)
#define F_ZEROS (1ULL << 13 | 1ULL << 14)
#define ALL (VIO_FEATURES | F_FLUSH)

struct fixture {
	struct t_vm vm;
	struct t_queue drv;
	struct mv_ring *ring;
	struct vio_dev *d;
	char dir[64], path[80];
	uint64_t header_gpa, status_gpa, data_gpa;
	uint8_t *status, *data;
};

static bool force_sync;

static struct vio_blk_options options; // serial is set by new_drive()
static bool direct;

static int new_drive(struct fixture *f, int fd, bool read_only, struct vio_dev **ret_dev, struct mv_err *err)
{
	struct disk_files files = { .base_fd = fd, .read_only = read_only, .direct = direct };
	options.serial = "disk-serial";
	return vio_blk_new(&f->vm.mem, &f->vm.loop, f->ring, "root", &options, &files, ret_dev, err);
}

static int open_drive(struct fixture *f, bool read_only, struct vio_dev **ret_dev, struct mv_err *err)
{
	int fd = open(f->path, read_only ? O_RDONLY | O_CLOEXEC : O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return new_drive(f, fd, read_only, ret_dev, err);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	t_queue_init(&f->drv, &f->vm, 256);
	t_tmpdir(f->dir);
	snprintf(f->path, sizeof f->path, "%s/disk", f->dir);
	int fd = open(f->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, SECTORS * 512 + 100), 0); // not a whole number of sectors
	close(fd);
	assert_int_equal(mv_ring_new(&f->vm.loop, 16, force_sync, &f->ring, NULL), 0);
	assert_int_equal(open_drive(f, false, &f->d, NULL), 0);
	f->header_gpa = t_alloc(&f->vm, 16 * 256, 16);
	f->status_gpa = t_alloc(&f->vm, 256, 1);
	f->data_gpa = t_alloc(&f->vm, 1 << 20, 4096);
	f->status = t_ptr(&f->vm, f->status_gpa, 256);
	f->data = t_ptr(&f->vm, f->data_gpa, 1 << 20);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	vio_free(f->d);
	mv_ring_free(f->ring);
	t_vm_fini(&f->vm);
	t_remove_tree(f->dir);
	free(f);
	return 0;
}

static void put_header(struct fixture *f, unsigned i, uint32_t type, uint64_t sector)
{
	uint32_t h[4] = { type, 0, (uint32_t)sector, (uint32_t)(sector >> 32) };
	memcpy(t_ptr(&f->vm, f->header_gpa + 16 * i, 16), h, 16);
	f->status[i] = 0xee;
}

// Request i of len bytes at its own place of the data area.
static void add(struct fixture *f, unsigned i, uint32_t type, uint64_t sector, uint64_t at, uint32_t len)
{
	put_header(f, i, type, sector);
	t_add(&f->drv,
	      (struct t_buf[]){ { f->header_gpa + 16 * i, 16, false },
				{ f->data_gpa + at, len, type == IN || type == GET_ID },
				{ f->status_gpa + i, 1, true } },
	      3);
}

// One request from kick to interrupt; its status. *ret_len is the used length.
static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t len, uint32_t *ret_len)
{
	add(f, 0, type, sector, 0, len);
	vio_again(f->d, 0);
	t_run_until(&f->vm, t_has_used, &f->drv);
	assert_true(t_used(&f->drv, NULL, ret_len));
	return f->status[0];
}

static void test_read_write(void **state)
{
	struct fixture *f = *state;
	uint32_t len = 0;
	uint64_t capacity;
	t_start(f->d, ALL, &f->drv, 1);
	vio_mmio_read(f->d, 0x100, &capacity, 8);
	assert_int_equal(capacity, SECTORS);
	assert_int_equal(t_get(f->d, 0x10c), VQ_MAX_DATA);
	assert_int_equal(t_get(f->d, 0x114), 512);
	memset(f->data, 'w', 8192);
	assert_int_equal(request(f, OUT, 8, 8192, &len), OK);
	assert_int_equal(len, 1);
	*f->drv.used_event = le16_make(1);
	assert_int_equal(t_irqs(f->d), 1);
	memset(f->data, 0, 8192);
	assert_int_equal(request(f, IN, 7, 1024, &len), OK);
	assert_int_equal(len, 1025);
	assert_int_equal(f->data[511], 0);
	assert_int_equal(f->data[512], 'w');
	assert_int_equal(request(f, FLUSH, 0, 0, &len), OK);
	assert_int_equal(request(f, GET_ID, 0, 20, &len), OK);
	assert_int_equal(len, 21);
	assert_memory_equal(f->data, "disk-serial\0\0\0\0\0\0\0\0\0", 20);
	assert_int_equal(request(f, GET_ID, 0, 512, &len), OK);
	assert_int_equal(len, 20);
	assert_int_equal(request(f, 99, 0, 512, &len), UNSUPP);
	assert_int_equal(request(f, IN, 0, 0, &len), OK);
}

static void test_ranges(void **state)
{
	struct fixture *f = *state;
	uint32_t len;
	t_start(f->d, ALL, &f->drv, 1);
	assert_int_equal(request(f, IN, SECTORS - 1, 512, &len), OK);
	assert_int_equal(request(f, IN, SECTORS - 1, 1024, &len), IOERR);
	assert_int_equal(len, 0);
	assert_int_equal(request(f, OUT, SECTORS, 512, &len), IOERR);
	assert_int_equal(request(f, IN, UINT64_MAX, 512, &len), IOERR);
	assert_int_equal(request(f, IN, UINT64_MAX / 512 + 1, 512, &len), IOERR); // x 512 wraps to 0
	assert_int_equal(request(f, IN, 0, 511, &len), IOERR);
	assert_int_equal(request(f, OUT, 0, 513, &len), IOERR);
	// The file became shorter behind our back: part of it, then all of it is missing.
	assert_int_equal(truncate(f->path, 10 * 512), 0);
	assert_int_equal(request(f, IN, 8, 2048, &len), IOERR);
	assert_int_equal(len, 1024);
	assert_int_equal(request(f, IN, 100, 512, &len), IOERR);
	assert_int_equal(t_get(f->d, 0x70) & VIO_NEEDS_RESET, 0);
}

// A write that stops half-way at the file size limit: the rest is tried, then fails.
static void test_short_write(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, limit;
	uint32_t len;
	t_start(f->d, ALL, &f->drv, 1);
	assert_int_equal(truncate(f->path, 0), 0);
	getrlimit(RLIMIT_FSIZE, &old);
	limit = (struct rlimit){ .rlim_cur = 4096 + 512, .rlim_max = old.rlim_max };
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &limit);
	memset(f->data, 's', 8192);
	uint8_t status = request(f, OUT, 0, 8192, &len);
	setrlimit(RLIMIT_FSIZE, &old);
	struct stat st;
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(status, IOERR);
	assert_int_equal(st.st_size, 4096 + 512);
}

// Header and status split over many descriptors, header and data in one, indirect.
static void test_layouts(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ALL, &f->drv, 1);
	for (int indirect = 0; indirect < 2; indirect++) {
		uint16_t (*put)(struct t_queue *, const struct t_buf *, unsigned) =
			indirect ? t_add_indirect : t_add;
		put_header(f, 0, OUT, 3);
		memcpy(t_ptr(&f->vm, f->data_gpa + 0x1000, 16), t_ptr(&f->vm, f->header_gpa, 16), 16);
		memset(f->data + 0x1010, 'L', 512);
		put(&f->drv,
		    (struct t_buf[]){ { f->data_gpa + 0x1000, 3, false },
				      { f->data_gpa + 0x1003, 13 + 500, false },
				      { f->data_gpa + 0x1010 + 500, 12, false },
				      { f->status_gpa, 1, true } },
		    4);
		vio_again(f->d, 0);
		t_run_until(&f->vm, t_has_used, &f->drv);
		assert_true(t_used(&f->drv, NULL, NULL));
		assert_int_equal(f->status[0], OK);
		put_header(f, 0, IN, 3);
		memset(f->data, 0, 1024);
		put(&f->drv,
		    (struct t_buf[]){ { f->header_gpa, 16, false },
				      { f->data_gpa, 100, true },
				      { f->data_gpa + 100, 413, true } }, // the status is its last byte
		    3);
		vio_again(f->d, 0);
		t_run_until(&f->vm, t_has_used, &f->drv);
		assert_true(t_used(&f->drv, NULL, NULL));
		assert_int_equal(f->data[0], 'L');
		assert_int_equal(f->data[511], 'L');
		assert_int_equal(f->data[512], OK);
	}
}

static void test_malformed(void **state)
{
	struct fixture *f = *state;
	struct t_buf bad[][2] = {
		{ { f->header_gpa, 15, false }, { f->status_gpa, 1, true } },
		{ { f->header_gpa, 16, false }, { f->status_gpa, 0, true } },
	};
	for (unsigned i = 0; i < 2; i++) {
		t_queue_init(&f->drv, &f->vm, 8);
		t_start(f->d, ALL, &f->drv, 1);
		t_add(&f->drv, bad[i], 2);
		t_kick(f->d, 0);
		assert_true(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
		assert_false(t_has_used(&f->drv));
	}
	uint32_t len; // after a reset it works again
	t_queue_init(&f->drv, &f->vm, 8);
	t_start(f->d, ALL, &f->drv, 1);
	assert_int_equal(request(f, IN, 0, 512, &len), OK);
}

struct count {
	struct fixture *f;
	unsigned n, want;
};

static bool all_used(void *arg)
{
	struct count *c = arg;
	uint16_t head;
	while (t_used(&c->f->drv, &head, NULL))
		c->n++;
	return c->n == c->want;
}

// More requests than the device and the ring have room for, several times over.
static void test_many(void **state)
{
	struct fixture *f = *state;
	struct t_buf bufs[3];
	t_start(f->d, ALL, &f->drv, 1);
	for (unsigned i = 0; i < 256; i++)
		memset(f->data + i * 2048, (int)i, 2048);
	for (int round = 0; round < 6; round++) {
		bool write = round % 2 == 0;
		for (unsigned i = 0; i < 256; i++) {
			put_header(f, i, write ? OUT : IN, i * 4);
			bufs[0] = (struct t_buf){ f->header_gpa + 16 * i, 16, false };
			bufs[1] = (struct t_buf){ f->data_gpa + i * 2048, 2048, !write };
			bufs[2] = (struct t_buf){ f->status_gpa + i, 1, true };
			t_add_indirect(&f->drv, bufs, 3);
		}
		if (!write)
			memset(f->data, 0, 256 * 2048);
		vio_again(f->d, 0);
		struct count c = { .f = f, .want = 256 };
		t_run_until(&f->vm, all_used, &c);
		for (unsigned i = 0; i < 256; i++) {
			assert_int_equal(f->status[i], OK);
			assert_int_equal(f->data[i * 2048 + 2047], i);
		}
	}
}

static void test_read_only_and_locks(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d2 = NULL, *d3 = NULL;
	struct mv_err err = { 0 };
	uint32_t len;
	int before = t_count_fds();
	assert_int_equal(open_drive(f, false, &d2, &err), -EBUSY);
	assert_message(err, "another VM uses the file");
	assert_int_equal(open_drive(f, true, &d2, &err), -EBUSY);
	assert_int_equal(t_count_fds(), before); // and closed what it was given
	assert_null(d2);
	vio_free(MV_TAKE(f->d)); // gives the lock back
	assert_int_equal(open_drive(f, true, &d2, NULL), 0);
	assert_int_equal(open_drive(f, true, &d3, NULL), 0);
	assert_int_equal(open_drive(f, false, &f->d, &err), -EBUSY);
	vio_free(d3);
	f->d = d2;
	assert_true(f->d->features_offered & F_RO);
	t_start(f->d, ALL | F_RO, &f->drv, 1);
	assert_int_equal(request(f, OUT, 0, 512, &len), IOERR);
	assert_int_equal(request(f, IN, 0, 512, &len), OK);
	assert_int_equal(request(f, FLUSH, 0, 0, &len), OK);
	// What is no drive at all.
	int fd = open(f->path, O_RDONLY | O_CLOEXEC), p[2];
	struct vio_dev *none = NULL;
	assert_int_equal(new_drive(f, fd, false, &none, &err), -EACCES);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(new_drive(f, p[0], false, &none, &err), -EINVAL);
	close(p[1]);
	assert_int_equal(new_drive(f, t_file(), false, &none, &err),
			 -EINVAL); // empty
	assert_null(none);
}

// Requests are queued, the VM is paused and saved, and a clone goes on with a copy.
static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	t_start(f->d, ALL, &f->drv, 1);
	for (unsigned i = 0; i < 20; i++) {
		memset(f->data + i * 512, 'a' + (int)i, 512);
		add(f, i, OUT, i, i * 512, 512);
	}
	t_kick(f->d, 0);
	vio_quiesce(f->d); // waits: nothing in flight is part of a snapshot
	assert_int_equal(mv_ring_inflight(f->ring), 0);
	for (unsigned i = 0; i < 20; i++) {
		assert_true(t_used(&f->drv, NULL, NULL));
		assert_int_equal(f->status[i], OK);
	}
	add(f, 21, IN, 19, 0, 512); // put there before the pause, kick not yet seen
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	assert_false(saved.failed);
	vio_free(MV_TAKE(f->d));

	assert_int_equal(open_drive(f, true, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, &err), -EINVAL);
	assert_message(err, "writable");
	vio_free(MV_TAKE(f->d));
	assert_int_equal(truncate(f->path, 512 * (SECTORS - 1)), 0);
	assert_int_equal(open_drive(f, false, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, &err), -EINVAL);
	assert_message(err, "1023 sectors");
	vio_free(MV_TAKE(f->d));
	assert_int_equal(truncate(f->path, 512 * SECTORS), 0);
	assert_int_equal(open_drive(f, false, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, &err), 0);
	assert_false(t_has_used(&f->drv));
	vio_unquiesce(f->d);
	t_run_until(&f->vm, t_has_used, &f->drv);
	assert_true(t_used(&f->drv, NULL, NULL));
	assert_int_equal(f->data[0], 'a' + 19);
	uint32_t len;
	assert_int_equal(request(f, FLUSH, 0, 0, &len), OK);
}

// A reset with requests in flight: they end before it does.
static void test_reset(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ALL, &f->drv, 1);
	for (unsigned i = 0; i < 60; i++)
		add(f, i, IN, i, i * 512, 512);
	t_kick(f->d, 0);
	t_set(f->d, 0x70, 0);
	assert_int_equal(mv_ring_inflight(f->ring), 0);
	memset(f->data, 'x', 60 * 512);
	t_run_ms(&f->vm, 20);
	for (unsigned i = 0; i < 60 * 512; i++)
		assert_int_equal(f->data[i], 'x');
}

// Without FLUSH the device syncs each write itself; and the free of a busy device.
static void test_write_through(void **state)
{
	struct fixture *f = *state;
	uint32_t len;
	t_start(f->d, VIO_FEATURES, &f->drv, 1);
	assert_int_equal(request(f, OUT, 0, 4096, &len), OK);
	for (unsigned i = 0; i < 10; i++)
		add(f, i, OUT, i, i * 512, 512);
	t_kick(f->d, 0);
}

// Within their rate requests wait in the queue, in order, and none is lost: neither by a pause, a save and a
// restore in between, nor by a reset.
static void test_rate(void **state)
{
	struct fixture *f = *state;
	struct vmcfg_rate rate = { .ops = { 4, 2, 100 } };
	struct mv_err err = { 0 };
	assert_int_equal(vio_blk_set_rate(f->d, &rate, NULL), 0);
	t_start(f->d, ALL, &f->drv, 1);
	uint64_t start = mv_now_ns();
	for (unsigned i = 0; i < 16; i++) {
		memset(f->data + i * 512, 'a' + (int)i, 512);
		add(f, i, OUT, i, i * 512, 512);
	}
	t_kick(f->d, 0);
	struct count c = { .f = f, .want = 6 }; // the bucket and the burst
	t_run_until(&f->vm, all_used, &c);
	vio_quiesce(f->d);
	assert_int_equal(mv_ring_inflight(f->ring), 0);
	assert_false(t_has_used(&f->drv));
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	t_run_ms(&f->vm, 60); // the timer fires in the pause
	assert_false(t_has_used(&f->drv));
	vio_unquiesce(f->d);
	c = (struct count){ .f = f, .want = 2 };
	t_run_until(&f->vm, all_used, &c);
	vio_quiesce(f->d);
	vio_free(MV_TAKE(f->d));

	// A clone has seen 6 of the 16. Two of the rest have run: again, as far as the disk knows.
	options.rate = (struct vmcfg_rate){ .bandwidth = { 1024, 0, 50 } };
	assert_int_equal(open_drive(f, false, &f->d, NULL), 0);
	options.rate = (struct vmcfg_rate){ 0 };
	assert_int_equal(vio_load(f->d, saved.p, saved.len, &err), 0);
	f->drv.seen = 6;
	f->drv.used->idx = le16_make(6);
	vio_unquiesce(f->d);
	c = (struct count){ .f = f, .want = 10 };
	start = mv_now_ns();
	t_run_until(&f->vm, all_used, &c);
	assert_true(mv_now_ns() - start >= 4 * 50 * 1000000ull - 1000000); // 5 KiB, of which one was there
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(f->status[i], OK);
	char disk[16 * 512];
	int fd = open(f->path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(pread(fd, disk, sizeof disk, 0), sizeof disk);
	close(fd);
	assert_memory_equal(disk, f->data, sizeof disk);

	// Throttled for a day; then the limit goes, and by a reset in between.
	rate = (struct vmcfg_rate){ .ops = { 1, 0, 86400000 } };
	assert_int_equal(vio_blk_set_rate(f->d, &rate, NULL), 0);
	for (int reset = 0; reset < 2; reset++) {
		t_queue_init(&f->drv, &f->vm, 256);
		t_start(f->d, ALL, &f->drv, 1);
		for (unsigned i = 0; i < 3; i++)
			add(f, i, IN, i, 0, 512);
		t_kick(f->d, 0);
		t_run_ms(&f->vm, 20);
		c = (struct count){ .f = f };
		all_used(&c);
		assert_int_equal(c.n, reset ? 0 : 1);
	}
	assert_int_equal(vio_blk_set_rate(f->d, &(struct vmcfg_rate){ 0 }, NULL), 0);
	c = (struct count){ .f = f, .want = 3 };
	t_run_until(&f->vm, all_used, &c);
}

struct range {
	uint64_t sector;
	uint32_t n, flags;
};

static uint8_t zero(struct fixture *f, uint32_t type, const struct range *ranges, unsigned n)
{
	memcpy(f->data, ranges, n * sizeof *ranges);
	uint32_t len;
	return request(f, type, 0, n * (uint32_t)sizeof *ranges, &len);
}

static void fill(struct fixture *f, char c, uint64_t sectors)
{
	memset(f->data, c, sectors * 512);
	uint32_t len;
	assert_int_equal(request(f, OUT, 0, (uint32_t)sectors * 512, &len), OK);
}

// Is each of the sectors the letter c?
static bool is(struct fixture *f, uint64_t sector, uint64_t n, char c)
{
	uint32_t len;
	memset(f->data, 'e', n * 512);
	assert_int_equal(request(f, IN, sector, (uint32_t)n * 512, &len), OK);
	for (uint64_t i = 0; i < n * 512; i++)
		if (f->data[i] != c)
			return false;
	return true;
}

static void check_zeros(struct fixture *f)
{
	for (int kind = 0; kind < 3; kind++) { // discard, zeros with and without unmap
		uint32_t type = kind ? WRITE_ZEROES : DISCARD, flags = kind == 1;
		fill(f, 'x', 200);
		struct range r[] = {
			{ 8, 8, flags }, { 31, 2, flags }, { 50, 0, flags }, { 40, 100, flags }
		};
		assert_int_equal(zero(f, type, r, 4), OK);
		assert_true(is(f, 0, 8, 'x') && is(f, 8, 8, 0) && is(f, 16, 15, 'x') && is(f, 31, 2, 0));
		assert_true(is(f, 33, 7, 'x') && is(f, 40, 100, 0) && is(f, 140, 60, 'x'));
		fill(f, 'y', 20);
		assert_true(is(f, 0, 20, 'y'));
	}
}

static void test_zeros(void **state)
{
	struct fixture *f = *state;
	struct range r[20] = { { 0 } };
	uint64_t capacity = SECTORS;
	t_start(f->d, ALL | F_ZEROS, &f->drv, 1);
	check_zeros(f);
	assert_int_equal(t_get(f->d, 0x100 + 40), 16); // max_discard_seg
	struct stat st;
	fill(f, 'x', 1000);
	assert_int_equal(zero(f, DISCARD, (struct range[]){ { 0, 1024, 0 } }, 1), OK);
	assert_int_equal(stat(f->path, &st), 0);
	assert_true(st.st_blocks < 100 && st.st_size == SECTORS * 512 + 100);

	// Hostile ones change nothing.
	fill(f, 'x', 200);
	for (int kind = 0; kind < 2; kind++) {
		uint32_t type = kind ? WRITE_ZEROES : DISCARD;
		const struct {
			struct range second;
			uint8_t status;
		} bad[] = {
			{ { capacity, 1, 0 }, IOERR },
			{ { capacity - 1, 2, 0 }, IOERR },
			{ { UINT64_MAX, 1, 0 }, IOERR },
			{ { UINT64_MAX, UINT32_MAX, 0 }, IOERR },
			{ { 0, UINT32_MAX, 0 }, IOERR },
			{ { UINT64_MAX / 512 + 1, 1, 0 }, IOERR },
			{ { 10, 1, 2 }, UNSUPP },
			{ { 10, 1, 1u << 31 }, UNSUPP },
			{ { 10, 1, 1 }, kind ? OK : UNSUPP }, // unmap is not for discards
		};
		for (unsigned i = 0; i < MV_ARRAY_LEN(bad) - (unsigned)kind; i++) {
			r[0] = (struct range){ 0, 200, 0 };
			r[1] = bad[i].second;
			assert_int_equal(zero(f, type, r, 2), bad[i].status);
		}
		memset(r, 0, sizeof r);
		assert_int_equal(zero(f, type, r, 17), IOERR); // too many
		uint32_t len;
		assert_int_equal(request(f, type, 0, 0, &len), IOERR);
		assert_int_equal(request(f, type, 0, 17, &len), IOERR);
		assert_int_equal(request(f, type, 0, 1 << 19, &len), IOERR);
		assert_int_equal(zero(f, type, r, 16), OK); // all of them empty
		assert_true(is(f, 0, 200, 'x'));
	}

	// Not without the feature; and writes nothing when read-only.
	t_queue_init(&f->drv, &f->vm, 256);
	t_start(f->d, ALL, &f->drv, 1);
	r[0] = (struct range){ 0, 1, 0 };
	assert_int_equal(zero(f, DISCARD, r, 1), UNSUPP);
	assert_int_equal(zero(f, WRITE_ZEROES, r, 1), UNSUPP);
	vio_free(MV_TAKE(f->d));
	assert_int_equal(open_drive(f, true, &f->d, NULL), 0);
	assert_int_equal(f->d->features_offered & F_ZEROS, 0);
}

// A file system without ZERO_RANGE (tmpfs): zeros are written.
static void test_zeros_by_writing(void **state)
{
	struct fixture *f = *state;
	vio_free(MV_TAKE(f->d));
	int fd = t_file();
	assert_int_equal(ftruncate(fd, SECTORS * 512), 0);
	assert_true(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0 &&
		    errno == EOPNOTSUPP);
	assert_int_equal(new_drive(f, fd, false, &f->d, NULL), 0);
	t_start(f->d, VIO_FEATURES | F_ZEROS, &f->drv, 1); // each is durable when done, too
	check_zeros(f);
	fill(f, 'x', SECTORS);
	assert_int_equal(zero(f, WRITE_ZEROES, (struct range[]){ { 1, SECTORS - 1, 0 } }, 1), OK);
	assert_true(is(f, 0, 1, 'x') && is(f, 1, SECTORS - 1, 0));
}

static void test_topology(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	struct stat st;
	assert_int_equal(stat(f->path, &st), 0);
	uint32_t per_block = (uint32_t)st.st_blksize / 512;
	t_start(f->d, ALL, &f->drv, 1);
	assert_int_equal(t_get(f->d, 0x108), 16 << 20); // size_max
	assert_int_equal(1u << (t_get(f->d, 0x118) & 0xff), per_block);
	assert_int_equal(t_get(f->d, 0x118) >> 16, per_block); // min_io_size
	assert_int_equal(t_get(f->d, 0x100 + 44), per_block);  // discard_sector_alignment
	vio_free(MV_TAKE(f->d));
	options.block_bytes = 4096;
	int r = open_drive(f, false, &f->d, NULL);
	struct vio_dev *none = NULL;
	int fd = t_file(), grown = ftruncate(fd, 4095), small = new_drive(f, fd, true, &none, &err);
	options.block_bytes = 0;
	assert_int_equal(r | grown, 0);
	assert_int_equal(small, -EINVAL);
	t_start(f->d, ALL, &f->drv, 1);
	assert_int_equal(t_get(f->d, 0x114), 4096);
	assert_int_equal(t_get(f->d, 0x100), SECTORS / 8 * 8);
	assert_int_equal(1u << (t_get(f->d, 0x118) & 0xff), st.st_blksize / 4096);
}

// Requests of random length, in pieces that begin and end anywhere, against a model of the disk: many at a
// time, so that some wait for the bounce buffer.
static void check_scattered(struct fixture *f, unsigned block)
{
	enum { AT_ONCE = 8, BYTES = SECTORS * 512 };
	uint8_t *model = calloc(1, BYTES);
	uint64_t seed = 5;
	fill(f, 0, SECTORS);
	for (unsigned round = 0; round < 60; round++) {
		struct {
			uint64_t sector, at;
			uint32_t len;
			bool write;
		} io[AT_ONCE];
		for (unsigned i = 0; i < AT_ONCE; i++) {
			uint32_t slice = SECTORS / AT_ONCE * 512; // each in its own part of the disk
			uint32_t len = (1 + (uint32_t)t_rand(&seed) % 12) * block;
			uint32_t in_slice = (uint32_t)(t_rand(&seed) % (slice - len)) / block * block;
			uint32_t cut = 1 + (uint32_t)t_rand(&seed) % (len - 1);
			io[i].at = (uint64_t)i * (slice + 4096) + t_rand(&seed) % 4096 * (t_rand(&seed) & 1);
			io[i].sector = ((uint64_t)i * slice + in_slice) / 512;
			io[i].len = len;
			io[i].write = t_rand(&seed) & 1;
			for (uint32_t k = 0; k < len; k++)
				f->data[io[i].at + k] = (uint8_t)t_rand(&seed);
			if (io[i].write)
				memcpy(model + io[i].sector * 512, f->data + io[i].at, len);
			put_header(f, i, io[i].write ? OUT : IN, io[i].sector);
			t_add(&f->drv,
			      (struct t_buf[]){ { f->header_gpa + 16 * i, 16, false },
						{ f->data_gpa + io[i].at, cut, !io[i].write },
						{ f->data_gpa + io[i].at + cut, len - cut, !io[i].write },
						{ f->status_gpa + i, 1, true } },
			      4);
		}
		vio_again(f->d, 0);
		struct count c = { .f = f, .want = AT_ONCE };
		t_run_until(&f->vm, all_used, &c);
		for (unsigned i = 0; i < AT_ONCE; i++) {
			assert_int_equal(f->status[i], OK);
			assert_memory_equal(f->data + io[i].at, model + io[i].sector * 512, io[i].len);
		}
	}
	free(model);
}

static void test_scattered(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ALL, &f->drv, 1);
	check_scattered(f, 512);
}

static void test_direct(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	uint32_t len;
	vio_free(MV_TAKE(f->d));
	direct = true;
	options.block_bytes = 4096;
	int r = open_drive(f, false, &f->d, &err), p[2], none = pipe(p), refused;
	options.block_bytes = 0;
	struct vio_dev *no_drive = NULL;
	refused = new_drive(f, open("/proc/version", O_RDONLY | O_CLOEXEC), true, &no_drive, NULL);
	direct = false;
	close(p[0]);
	close(p[1]);
	assert_true(!none && refused && !no_drive);
	if (r == -EINVAL) {
		assert_message(err, "has no direct I/O");
		assert_int_equal(open_drive(f, false, &f->d, &err), 0);
		print_message("# SKIP no direct I/O in %s\n", f->dir);
		skip();
	}
	assert_int_equal(r, 0);
	int fd = open(f->path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(truncate(f->path, SECTORS * 512), 0);
	t_start(f->d, ALL | F_ZEROS, &f->drv, 1);
	check_scattered(f, 4096);
	fill(f, 'x', SECTORS); // larger than the bounce buffer is half of
	put_header(f, 0, IN, 0);
	t_add(&f->drv,
	      (struct t_buf[]){ { f->header_gpa, 16, false },
				{ f->data_gpa + 1, SECTORS * 512, true },
				{ f->status_gpa, 1, true } },
	      3);
	vio_again(f->d, 0);
	t_run_until(&f->vm, t_has_used, &f->drv);
	assert_true(t_used(&f->drv, NULL, &len));
	assert_int_equal(len, SECTORS * 512 + 1);
	assert_true(f->data[1] == 'x' && f->data[SECTORS * 512] == 'x');
	assert_int_equal(zero(f, WRITE_ZEROES, (struct range[]){ { 8, 16, 0 } }, 1), OK);
	assert_true(is(f, 0, 8, 'x') && is(f, 8, 16, 0) && is(f, 24, 8, 'x'));
	assert_int_equal(request(f, FLUSH, 0, 0, &len), OK);
	close(fd);
}

// A loop device, where there may be one.
static bool attach(const char *file, const char *more, char path[64])
{
	char command[200];
	snprintf(command, sizeof command, "losetup --find --show %s %s 2>/dev/null", more, file);
	FILE *p = popen(command, "re");
	bool got = p && fgets(path, 64, p);
	if (p)
		pclose(p);
	path[strcspn(path, "\n")] = 0;
	return got;
}

static void detach(const char *path)
{
	char command[100];
	snprintf(command, sizeof command, "losetup -d %s", path);
	assert_int_equal(system(command), 0);
}

static void test_block_device(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	struct vio_dev *none = NULL;
	char path[64] = "";
	vio_free(MV_TAKE(f->d));
	assert_int_equal(truncate(f->path, SECTORS * 512), 0);
	if (!attach(f->path, "--sector-size 4096", path)) {
		assert_int_equal(open_drive(f, false, &f->d, NULL), 0);
		print_message("# SKIP no loop device\n");
		skip();
	}
	int r = new_drive(f, open(path, O_RDWR | O_CLOEXEC), false, &f->d, &err);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	detach(path); // when the last descriptor is closed
	assert_int_equal(r, 0);
	t_start(f->d, ALL | F_ZEROS, &f->drv, 1);
	assert_int_equal(t_get(f->d, 0x100), SECTORS);
	assert_int_equal(1u << (t_get(f->d, 0x118) & 0xff), 4096 / 512);
	check_scattered(f, 512);
	for (int kind = 0; kind < 3; kind++) {
		fill(f, 'x', 64);
		struct range range = { 16, 24, kind == 1 };
		assert_int_equal(zero(f, kind ? WRITE_ZEROES : DISCARD, &range, 1), OK);
		assert_true(is(f, 0, 16, 'x') && is(f, 16, 24, 0) && is(f, 40, 24, 'x'));
	}
	vio_free(MV_TAKE(f->d));
	direct = true;
	options.block_bytes = 512;
	int small = new_drive(f, open(path, O_RDWR | O_CLOEXEC), false, &none, &err);
	options.block_bytes = 0;
	r = new_drive(f, fd, false, &f->d, NULL);
	direct = false;
	assert_int_equal(small, -EINVAL);
	assert_message(err, "needs block_size 4096");
	assert_int_equal(r, 0);
	t_queue_init(&f->drv, &f->vm, 256);
	t_start(f->d, ALL, &f->drv, 1);
	assert_int_equal(t_get(f->d, 0x114), 4096); // by itself
	check_scattered(f, 4096);
	// Where the device can only be read, so can the drive.
	assert_true(attach(f->path, "--read-only", path));
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) // newer kernels say so at once
		assert_true(errno == EACCES || errno == EROFS || errno == EPERM);
	else
		assert_int_equal(new_drive(f, fd, false, &none, &err), -EINVAL);
	assert_int_equal(new_drive(f, open(path, O_RDONLY | O_CLOEXEC), true, &none, NULL), 0);
	detach(path);
	vio_free(none);
}

// --- several queues, each but the first with a thread ------------------------------------
enum { QUEUES = 4, EACH = 16 };

static void start_queues(struct fixture *f, struct t_queue q[QUEUES])
{
	for (unsigned i = 0; i < QUEUES; i++)
		t_queue_init(&q[i], &f->vm, 256);
	t_start(f->d, ALL | F_MQ, q, QUEUES);
}

// Request i of queue n at its own place of disk and memory; all of them together are SECTORS.
static void add_to(struct fixture *f, struct t_queue *q, unsigned n, unsigned i, uint32_t type)
{
	enum { BYTES = SECTORS * 512 / QUEUES / EACH };
	unsigned at = n * EACH + i;
	put_header(f, at, type, at * (BYTES / 512));
	t_add(&q[n],
	      (struct t_buf[]){ { f->header_gpa + 16 * at, 16, false },
				{ f->data_gpa + at * BYTES, BYTES, type == IN },
				{ f->status_gpa + at, 1, true } },
	      3);
}

static void kick_all(struct fixture *f)
{
	for (unsigned n = 0; n < QUEUES; n++)
		t_kick(f->d, n);
}

// The other queues' threads don't wake our loop: it is run a little, again and again, for at most five
// seconds.
static void wait_used(struct fixture *f, struct t_queue q[QUEUES], unsigned want)
{
	for (unsigned ms = 0; want; ms++) {
		assert_true(ms < 5000);
		t_run_ms(&f->vm, 1);
		for (unsigned n = 0; n < QUEUES; n++)
			while (t_used(&q[n], NULL, NULL))
				want--;
	}
}

static void all_queues(struct fixture *f, struct t_queue q[QUEUES], uint32_t type)
{
	for (unsigned i = 0; i < EACH; i++)
		for (unsigned n = 0; n < QUEUES; n++)
			add_to(f, q, n, i, type);
	kick_all(f);
}

static void check_status(struct fixture *f)
{
	for (unsigned i = 0; i < QUEUES * EACH; i++)
		assert_int_equal(f->status[i], OK);
}

static void reopen(struct fixture *f)
{
	vio_free(MV_TAKE(f->d));
	options.n_queues = QUEUES;
	int r = open_drive(f, false, &f->d, NULL);
	options.n_queues = 0;
	assert_int_equal(r, 0);
}

static void test_queues(void **state)
{
	struct fixture *f = *state;
	struct t_queue q[QUEUES];
	uint8_t *model = malloc(SECTORS * 512);
	uint64_t seed = 3;
	assert_false(f->d->features_offered & F_MQ);
	reopen(f);
	start_queues(f, q);
	assert_int_equal(t_get(f->d, 0x120) >> 16, QUEUES); // num_queues
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < SECTORS * 512; i++)
			model[i] = (uint8_t)t_rand(&seed);
		memcpy(f->data, model, SECTORS * 512);
		all_queues(f, q, OUT);
		wait_used(f, q, QUEUES * EACH);
		check_status(f);
		all_queues(f, q, FLUSH);
		wait_used(f, q, QUEUES * EACH);
		check_status(f);
		memset(f->data, 0, SECTORS * 512);
		all_queues(f, q, IN);
		wait_used(f, q, QUEUES * EACH);
		check_status(f);
		assert_memory_equal(f->data, model, SECTORS * 512);
	}
	assert_true(t_irqs(f->d) > 0);

	// Paused and saved with requests everywhere: each is done, or still in its queue for a clone.
	memset(f->data, 0, SECTORS * 512);
	all_queues(f, q, IN);
	vio_quiesce(f->d);
	unsigned done = 0;
	for (unsigned n = 0; n < QUEUES; n++)
		while (t_used(&q[n], NULL, NULL))
			done++;
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	t_run_ms(&f->vm, 5);
	for (unsigned n = 0; n < QUEUES; n++)
		assert_false(t_has_used(&q[n]));
	reopen(f);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(f->d);
	wait_used(f, q, QUEUES * EACH - done);
	check_status(f);
	assert_memory_equal(f->data, model, SECTORS * 512);

	// Reset with requests in flight, and then it is used again; freed with some in flight.
	for (unsigned round = 0; round < 20; round++) {
		all_queues(f, q, round % 2 ? IN : OUT);
		if (round % 3)
			t_run_ms(&f->vm, 1);
		t_set(f->d, 0x70, 0);
		memset(f->data, 'x', SECTORS * 512);
		start_queues(f, q);
		for (unsigned i = 0; i < SECTORS * 512; i++)
			assert_int_equal(f->data[i], 'x');
	}
	all_queues(f, q, IN);
	wait_used(f, q, QUEUES * EACH);

	// A driver that breaks a rule in a thread's queue stops the whole device.
	put_header(f, 0, IN, 0);
	t_add(&q[2], (struct t_buf[]){ { f->header_gpa, 15, false }, { f->status_gpa, 1, true } }, 2);
	t_kick(f->d, 2);
	for (unsigned ms = 0; !(t_get(f->d, 0x70) & VIO_NEEDS_RESET); ms++) {
		assert_true(ms < 2000);
		t_run_ms(&f->vm, 1);
	}
	all_queues(f, q, IN);
	t_run_ms(&f->vm, 20);
	for (unsigned n = 0; n < QUEUES; n++)
		assert_false(t_has_used(&q[n]));
	start_queues(f, q);
	all_queues(f, q, IN);
	wait_used(f, q, QUEUES * EACH);
	check_status(f);

	// They share one rate.
	struct vmcfg_rate rate = { .ops = { 10, 6, 100 } };
	assert_int_equal(vio_blk_set_rate(f->d, &rate, NULL), 0);
	uint64_t start = mv_now_ns();
	all_queues(f, q, IN);
	wait_used(f, q, QUEUES * EACH);
	assert_true(mv_now_ns() - start >= 479 * 1000000ull); // 16 at once, 48 at 10 ms each
	check_status(f);
	assert_int_equal(vio_blk_set_rate(f->d, &(struct vmcfg_rate){ 0 }, NULL), 0);
	all_queues(f, q, OUT);
	free(model);
}

// The guest's choice between write-back and write-through is a byte of configuration space.
static void test_writeback(void **state)
{
	struct fixture *f = *state;
	uint8_t v = 0;
	uint32_t len;
	t_start(f->d, ALL | F_WCE, &f->drv, 1);
	vio_mmio_read(f->d, 0x120, &v, 1);
	assert_int_equal(v, 1);
	v = 0;
	vio_mmio_write(f->d, 0x121, &v, 1);
	vio_mmio_write(f->d, 0x11f, &(uint16_t){ 0 }, 2);
	vio_mmio_write(f->d, UINT64_MAX - 1, &v, 1);
	vio_mmio_read(f->d, 0x120, &v, 1);
	assert_int_equal(v, 1);
	v = 0;
	vio_mmio_write(f->d, 0x120, &v, 1);
	assert_int_equal(request(f, OUT, 0, 4096, &len), OK);
	MV_BUF saved = { 0 };
	vio_quiesce(f->d);
	vio_save(f->d, &saved);
	vio_free(MV_TAKE(f->d));
	assert_int_equal(open_drive(f, false, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(f->d);
	vio_mmio_read(f->d, 0x120, &v, 1);
	assert_int_equal(v, 0);
	t_set(f->d, 0x70, 0);
	vio_mmio_read(f->d, 0x120, &v, 1);
	assert_int_equal(v, 1);
	v = 0;
	vio_mmio_write(f->d, 0x120, &v, 1); // not negotiated
	vio_mmio_read(f->d, 0x120, &v, 1);
	assert_int_equal(v, 1);
}

static void test_resize(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	uint32_t len;
	t_start(f->d, ALL, &f->drv, 1);
	uint32_t generation = t_get(f->d, 0xfc);
	assert_int_equal(vio_blk_resize(f->d, 0, &err), 0); // as it was: nothing to tell
	assert_int_equal(t_get(f->d, 0xfc), generation);
	assert_int_equal(vio_blk_resize(f->d, SECTORS * 512, &err), -EINVAL);
	assert_message(err, "nothing is cut off");
	assert_int_equal(request(f, OUT, SECTORS, 512, &len), IOERR);
	t_irqs(f->d);
	assert_int_equal(vio_blk_resize(f->d, 2 * SECTORS * 512, &err), 0);
	assert_true(t_get(f->d, 0x60) & VIO_ISR_CONFIG);
	assert_int_equal(t_irqs(f->d), 1);
	assert_int_equal(t_get(f->d, 0xfc), generation + 1);
	assert_int_equal(t_get(f->d, 0x100), 2 * SECTORS);
	assert_int_equal(vio_blk_bytes(f->d), 2 * SECTORS * 512);
	assert_int_equal(request(f, OUT, 2 * SECTORS - 1, 512, &len), OK);
	assert_int_equal(request(f, OUT, 2 * SECTORS, 512, &len), IOERR);
	// By somebody else, to less.
	assert_int_equal(truncate(f->path, 100 * 512 + 511), 0);
	assert_int_equal(vio_blk_resize(f->d, 0, &err), 0);
	assert_int_equal(t_get(f->d, 0x100), 100);
	assert_int_equal(request(f, IN, 100, 512, &len), IOERR);
	assert_int_equal(request(f, IN, 99, 512, &len), OK);
	assert_int_equal(truncate(f->path, 511), 0);
	assert_int_equal(vio_blk_resize(f->d, 0, &err), -EINVAL);
	assert_int_equal(t_get(f->d, 0x100), 100);
	vio_free(MV_TAKE(f->d));
	assert_int_equal(truncate(f->path, SECTORS * 512), 0);
	assert_int_equal(open_drive(f, true, &f->d, NULL), 0);
	assert_int_equal(vio_blk_resize(f->d, 2 * SECTORS * 512, &err), -EINVAL);
	assert_message(err, "read-only");
	// While requests are in flight, with threads: each ends, one way or the other.
	struct t_queue q[QUEUES];
	reopen(f);
	start_queues(f, q);
	for (unsigned round = 0; round < 20; round++) {
		all_queues(f, q, IN);
		assert_int_equal(truncate(f->path, round % 2 ? SECTORS * 512 : SECTORS * 256), 0);
		assert_int_equal(vio_blk_resize(f->d, 0, &err), 0);
		wait_used(f, q, QUEUES * EACH);
		for (unsigned i = 0; i < QUEUES * EACH; i++)
			assert_true(f->status[i] == OK || f->status[i] == IOERR);
	}
	all_queues(f, q, IN);
	wait_used(f, q, QUEUES * EACH);
	check_status(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read_write, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_ranges, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_short_write, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_layouts, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_malformed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_many, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_read_only_and_locks, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_save_load, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_reset, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_write_through, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_rate, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_zeros, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_zeros_by_writing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_topology, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_writeback, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_scattered, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_direct, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_block_device, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_queues, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_resize, set_up, tear_down),
	};
	int failed = cmocka_run_group_tests_name("io_uring where there is one", tests, NULL, NULL);
	force_sync = true;
	return failed + cmocka_run_group_tests_name("plain system calls", tests, NULL, NULL);
}
