// SPDX-License-Identifier: Apache-2.0
// Drives with copy-on-write layers, through the device and its queue: random requests
// against a model, chains, what a crash leaves, hostile files.
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "tests/devices/t_driver.h"

#include "devices/disk.h"
#include "microvm/base/util.h"

enum {
	IN = 0,
	OUT = 1,
	FLUSH = 4,
	DISCARD = 11,
	WRITE_ZEROES = 13,
	OK = 0,
	SECTOR = 512,
	DATA_BYTES = 1 << 20
};
#define F_FLUSH (1ULL << 9)
#define F_ZEROS (1ULL << 13 | 1ULL << 14)
#define SECTORS 73737u // 36 MiB and a bit: three pages of the map, the last one not full
#define DISK_BYTES ((size_t)SECTORS * SECTOR)

struct fixture {
	struct t_vm vm;
	struct t_queue drv;
	struct mv_ring *ring;
	struct vio_dev *d;
	char dir[64];
	unsigned n_layers;
	bool keep;
	uint64_t header_gpa, status_gpa, data_gpa;
	uint8_t *data;
	uint8_t *model;   // what the disk must hold
	uint8_t *flushed; // what it held at the last flush
	uint8_t *touched; // per sector: written since
};

static bool force_sync;

// --- durability: what the ring's system calls promise, in the mode without io_uring -------
static struct {
	bool on;
	uint64_t data_offset;
	uint8_t written[SECTORS], durable[SECTORS]; // of the newest layer's data
	bool map_dirty;                             // map written, not synced
	bool too_early;                             // a bit was written before its data was durable
	unsigned map_writes, syncs;
} disk_log;

static void start_log(void)
{
	struct layer shape = { .n_sectors = SECTORS };
	memset(&disk_log, 0, sizeof disk_log);
	disk_log.data_offset = layer_offset(&shape, 0);
	disk_log.on = true;
}

int fdatasync(int fd)
{
	if (disk_log.on) {
		for (unsigned i = 0; i < SECTORS; i++)
			disk_log.durable[i] |= disk_log.written[i];
		disk_log.map_dirty = false;
		disk_log.syncs++;
	}
	return (int)syscall(SYS_fdatasync, fd);
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	if (disk_log.on && (uint64_t)offset >= disk_log.data_offset)
		memset(disk_log.written + ((uint64_t)offset - disk_log.data_offset) / SECTOR, 1,
		       (size_t)len / SECTOR);
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n_iov, off_t offset)
{
	ssize_t n = syscall(SYS_pwritev, fd, iov, n_iov, offset, 0);
	if (!disk_log.on || n <= 0)
		return n;
	if ((uint64_t)offset >= disk_log.data_offset) {
		uint64_t first = ((uint64_t)offset - disk_log.data_offset) / SECTOR;
		memset(disk_log.written + first, 1, (size_t)n / SECTOR);
		return n;
	}
	// A map page: each bit in it must stand for data that is durable already.
	uint64_t bit = ((uint64_t)offset - LAYER_MAP_OFFSET) * 8;
	const uint8_t *p = iov[0].iov_base;
	for (uint64_t i = 0; i < (uint64_t)n * 8 && bit + i < SECTORS; i++)
		disk_log.too_early |= (p[i / 8] >> i % 8 & 1) && !disk_log.durable[bit + i];
	disk_log.map_dirty = true;
	disk_log.map_writes++;
	return n;
}

// --- the drive ----------------------------------------------------------------------------
static char *path_of(struct fixture *f, unsigned layer)
{
	static char path[2][96]; // two may be in use
	static unsigned turn;
	snprintf(path[++turn % 2], sizeof path[0], "%s/layer-%u", f->dir, layer);
	return path[turn % 2];
}

static int open_file(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	return fd;
}

static int open_base(struct fixture *f)
{
	char path[96];
	snprintf(path, sizeof path, "%s/base", f->dir);
	return open_file(path, O_RDONLY);
}

// Opens n layers, the last one writable (and made if it is not there).
static int open_drive(struct fixture *f, unsigned n, struct vio_dev **ret_dev, struct mv_err *err)
{
	struct disk_files files = { .base_fd = open_base(f), .n_layers = n, .keep = f->keep };
	for (unsigned i = 0; i < n; i++)
		files.layer_fd[i] = open_file(path_of(f, i), i + 1 < n ? O_RDONLY : O_RDWR | O_CREAT);
	return vio_blk_new(&f->vm.mem, &f->vm.loop, f->ring, "d", &(struct vio_blk_options){ .serial = "" },
			   &files, ret_dev, err);
}

static void start_drive(struct fixture *f, unsigned n)
{
	struct mv_err err = { 0 };
	if (open_drive(f, n, &f->d, &err))
		fail_msg("%s", err.msg);
	f->n_layers = n;
	t_queue_init(&f->drv, &f->vm, 64);
	t_start(f->d, VIO_FEATURES | F_FLUSH | F_ZEROS, &f->drv, 1);
}

static void stop_drive(struct fixture *f) { vio_free(MV_TAKE(f->d)); }

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	t_tmpdir(f->dir);
	f->model = malloc(DISK_BYTES);
	f->flushed = malloc(DISK_BYTES);
	f->touched = calloc(SECTORS, 1);
	for (size_t i = 0; i < DISK_BYTES; i += 8)
		memcpy(f->model + i, &(uint64_t){ i * 0x9e3779b97f4a7c15 }, 8);
	memcpy(f->flushed, f->model, DISK_BYTES);
	char path[96];
	snprintf(path, sizeof path, "%s/base", f->dir);
	int fd = open_file(path, O_RDWR | O_CREAT);
	assert_int_equal(mv_pwrite_full(fd, f->model, DISK_BYTES, 0), 0);
	close(fd);
	assert_int_equal(mv_ring_new(&f->vm.loop, 16, force_sync, &f->ring, NULL), 0);
	f->header_gpa = t_alloc(&f->vm, 16 * 64, 16);
	f->status_gpa = t_alloc(&f->vm, 64, 1);
	f->data_gpa = t_alloc(&f->vm, DATA_BYTES, 4096);
	f->data = t_ptr(&f->vm, f->data_gpa, DATA_BYTES);
	srandom(7);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	disk_log.on = false;
	vio_free(f->d);
	mv_ring_free(f->ring);
	t_vm_fini(&f->vm);
	t_remove_tree(f->dir);
	free(f->model);
	free(f->flushed);
	free(f->touched);
	free(f);
	return 0;
}

static void add(struct fixture *f, unsigned i, uint32_t type, uint64_t sector, uint32_t at, uint32_t len)
{
	uint32_t h[4] = { type, 0, (uint32_t)sector, 0 };
	uint32_t cut = len > 1500 ? 1500 : len; // data in two uneven pieces
	memcpy(t_ptr(&f->vm, f->header_gpa + 16 * i, 16), h, 16);
	struct t_buf bufs[4] = { { f->header_gpa + 16 * i, 16, false },
				 { f->data_gpa + at, cut, type == IN },
				 { f->data_gpa + at + cut, len - cut, type == IN } };
	unsigned n = !len ? 1 : len == cut ? 2 : 3;
	bufs[n++] = (struct t_buf){ f->status_gpa + i, 1, true };
	*(uint8_t *)t_ptr(&f->vm, f->status_gpa + i, 1) = 0xee;
	t_add(&f->drv, bufs, n);
}

struct count {
	struct fixture *f;
	unsigned n, want;
};

static bool all_used(void *arg)
{
	struct count *c = arg;
	while (t_used(&c->f->drv, NULL, NULL))
		c->n++;
	return c->n == c->want;
}

static void finish(struct fixture *f, unsigned n)
{
	struct count c = { .f = f, .want = n };
	vio_again(f->d, 0);
	t_run_until(&f->vm, all_used, &c);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(*(uint8_t *)t_ptr(&f->vm, f->status_gpa + i, 1), OK);
}

static void note_write(struct fixture *f, uint64_t sector, uint32_t at, uint32_t len)
{
	memcpy(f->model + sector * SECTOR, f->data + at, len);
	memset(f->touched + sector, 1, len / SECTOR);
}

static void note_flush(struct fixture *f)
{
	memcpy(f->flushed, f->model, DISK_BYTES);
	memset(f->touched, 0, SECTORS);
}

static void read_and_compare(struct fixture *f, uint64_t sector, uint32_t len)
{
	memset(f->data, 0xa5, len);
	add(f, 0, IN, sector, 0, len);
	finish(f, 1);
	assert_memory_equal(f->data, f->model + sector * SECTOR, len);
}

static void compare_all(struct fixture *f)
{
	for (uint64_t s = 0; s < SECTORS; s += DATA_BYTES / SECTOR) {
		uint64_t left = (SECTORS - s) * SECTOR;
		read_and_compare(f, s, left < DATA_BYTES ? (uint32_t)left : DATA_BYTES);
	}
}

// Places that matter: the ends of the disk, of map words and of map pages; small and large.
static uint64_t random_place(uint32_t *ret_len)
{
	static const uint32_t near[] = { 0, 64, 4096, 32768, 65536, SECTORS - 1 };
	uint64_t n = random() % 4 ? 1 + (uint64_t)random() % 9 : 1 + (uint64_t)random() % 300;
	uint64_t s = (near[random() % 6] + (uint64_t)random() % 400) - 200;
	s = s > SECTORS ? (uint64_t)random() % SECTORS : s;
	n = n < SECTORS - s ? n : SECTORS - s;
	*ret_len = (uint32_t)n * SECTOR;
	return n ? s : random_place(ret_len);
}

static void fill(struct fixture *f, uint32_t at, uint32_t len)
{
	for (uint32_t i = 0; i < len; i += 4)
		memcpy(f->data + at + i, &(uint32_t){ (uint32_t)random() }, 4);
}

// Discarded or made zeros: reads as zeros, and never as what a layer below has.
static void random_zeros(struct fixture *f)
{
	struct {
		uint64_t sector;
		uint32_t n, flags;
	} range[3];
	bool discard = random() % 2;
	for (unsigned i = 0; i < 3; i++) {
		uint32_t len;
		range[i].sector = random_place(&len);
		range[i].n = len / SECTOR;
		range[i].flags = !discard && random() % 2;
		memset(f->model + range[i].sector * SECTOR, 0, len);
		memset(f->touched + range[i].sector, 1, len / SECTOR);
	}
	memcpy(f->data, range, sizeof range);
	add(f, 0, discard ? DISCARD : WRITE_ZEROES, 0, 0, sizeof range);
	finish(f, 1);
}

static void random_write(struct fixture *f)
{
	uint32_t len;
	uint64_t s = random_place(&len);
	if (random() % 4 == 0) {
		random_zeros(f);
		return;
	}
	fill(f, 0, len);
	add(f, 0, OUT, s, 0, len);
	finish(f, 1);
	note_write(f, s, 0, len);
}

static void freeze(struct fixture *f)
{
	struct mv_err err = { 0 };
	int reader = open_file(path_of(f, f->n_layers - 1), O_RDONLY);
	vio_quiesce(f->d);
	if (vio_blk_freeze(f->d, reader, open_file(path_of(f, f->n_layers), O_RDWR | O_CREAT | O_EXCL), &err))
		fail_msg("%s", err.msg);
	vio_blk_freeze_end(f->d, true);
	f->n_layers++;
	vio_unquiesce(f->d);
}

static void flush(struct fixture *f)
{
	add(f, 0, FLUSH, 0, 0, 0);
	finish(f, 1);
	note_flush(f);
}

static void random_requests(struct fixture *f, unsigned steps, unsigned freeze_every)
{
	for (unsigned i = 1; i <= steps; i++) {
		uint32_t len;
		uint64_t s = random_place(&len);
		switch (random() % 8) {
		case 0: flush(f); break;
		case 1:
		case 2:
		case 3: random_write(f); break;
		default: read_and_compare(f, s, len);
		}
		if (i % freeze_every == 0 && f->n_layers < VMCFG_MAX_LAYERS)
			freeze(f);
	}
	compare_all(f);
}

static void test_model_ephemeral(void **state)
{
	struct fixture *f = *state;
	uint8_t *base = malloc(DISK_BYTES);
	memcpy(base, f->model, DISK_BYTES);
	start_drive(f, 1);
	random_requests(f, 1500, 90);
	assert_int_equal(f->n_layers, VMCFG_MAX_LAYERS);
	struct mv_err err = { 0 };
	int fds = t_count_fds();
	assert_int_equal(vio_blk_freeze(f->d, open_base(f), open_base(f), &err), -E2BIG);
	assert_int_equal(t_count_fds(), fds);
	stop_drive(f);
	int fd = open_base(f); // never written
	assert_int_equal(mv_pread_full(fd, f->flushed, DISK_BYTES, 0), 0);
	assert_memory_equal(f->flushed, base, DISK_BYTES);
	close(fd);
	free(base);
}

// Two clones on the same frozen layers: each has its own top, none sees the other.
static void test_siblings(void **state)
{
	struct fixture *f = *state;
	start_drive(f, 1);
	for (int i = 0; i < 60; i++)
		random_write(f);
	freeze(f);
	uint8_t *frozen = malloc(DISK_BYTES);
	memcpy(frozen, f->model, DISK_BYTES);
	for (int i = 0; i < 60; i++)
		random_write(f);
	compare_all(f);
	stop_drive(f); // its top, layer 1, is not needed any more
	memcpy(f->model, frozen, DISK_BYTES);
	for (int sibling = 0; sibling < 2; sibling++) {
		assert_int_equal(unlink(path_of(f, 1)), 0);
		start_drive(f, 2);
		compare_all(f);
		for (int i = 0; i < 30; i++)
			random_write(f);
		compare_all(f);
		stop_drive(f);
		memcpy(f->model, frozen, DISK_BYTES);
	}
	free(frozen);
}

// All layers as one, of which the next drive is made; the drive itself goes on as it was.
static void test_copy(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	char path[96];
	snprintf(path, sizeof path, "%s/copy", f->dir);
	start_drive(f, 1);
	for (int round = 0; round < 3; round++) {
		random_requests(f, 150, 50);
		unsigned n = f->n_layers;
		vio_quiesce(f->d);
		if (vio_blk_copy_layers(f->d, open_file(path, O_RDWR | O_CREAT | O_EXCL), &err))
			fail_msg("%s", err.msg);
		int fds = t_count_fds();
		assert_int_equal(vio_blk_copy_layers(f->d, open_file(path, O_RDONLY), &err), -EACCES);
		assert_int_equal(vio_blk_copy_layers(f->d, open_base(f), &err), -EACCES);
		assert_int_equal(t_count_fds(), fds);
		vio_unquiesce(f->d);
		compare_all(f);
		assert_int_equal(vio_blk_layers(f->d), n);
		stop_drive(f);
		for (unsigned i = 0; i < n; i++)
			assert_int_equal(unlink(path_of(f, i)), 0);
		assert_int_equal(rename(path, path_of(f, 0)), 0);
		start_drive(f, 2);
		compare_all(f);
	}
}

static void test_model_kept(void **state)
{
	struct fixture *f = *state;
	f->keep = true;
	start_drive(f, 1);
	for (int round = 0; round < 4; round++) {
		random_requests(f, 150, 70);
		flush(f);
		stop_drive(f);
		start_drive(f, f->n_layers); // all of it comes back
		compare_all(f);
	}
}

static void copy_file(const char *from, const char *to)
{
	char command[300];
	snprintf(command, sizeof command, "cp --sparse=always %s %s", from, to);
	assert_int_equal(system(command), 0);
}

// The process dies at any point: the file as it is then, opened anew, has all that was
// flushed, and of what was not each sector old or new.
static void test_kill_at_any_point(void **state)
{
	struct fixture *f = *state;
	char copy[96];
	f->keep = true;
	start_drive(f, 1);
	for (int round = 0; round < 12; round++) {
		for (long i = random() % 12; i >= 0; i--)
			random_write(f);
		if (random() % 2)
			flush(f);
		for (long i = random() % 5; i > 0; i--)
			random_write(f);
		if (round == 6)
			freeze(f);
		snprintf(copy, sizeof copy, "%s/copy", f->dir);
		copy_file(path_of(f, f->n_layers - 1), copy);
		struct disk_files files = { .base_fd = open_base(f), .n_layers = f->n_layers, .keep = true };
		struct mv_err err = { 0 };
		struct disk d;
		for (unsigned i = 0; i + 1 < f->n_layers; i++)
			files.layer_fd[i] = open_file(path_of(f, i), O_RDONLY);
		files.layer_fd[f->n_layers - 1] = open_file(copy, O_RDWR);
		if (disk_open(&d, &files, f->ring, &err))
			fail_msg("%s", err.msg);
		for (uint64_t s = 0; s < SECTORS; s++) {
			uint8_t got[SECTOR];
			uint64_t offset;
			int fd;
			disk_read_place(&d, s * SECTOR, SECTOR, &fd, &offset);
			assert_int_equal(mv_pread_full(fd, got, SECTOR, offset), 0);
			if (!f->touched[s] || memcmp(got, f->model + s * SECTOR, SECTOR))
				assert_memory_equal(got, f->flushed + s * SECTOR, SECTOR);
		}
		disk_close(&d);
	}
}

// Power loss: a map page is written only when the data of all its bits is durable, and a
// flush answers only when the map is. Many requests at once, flushes among the writes.
static void test_order_of_writes(void **state)
{
	struct fixture *f = *state;
	if (!force_sync) // io_uring's writes can't be watched from here
		return;
	f->keep = true;
	start_drive(f, 1);
	start_log();
	for (int round = 0; round < 100; round++) {
		for (unsigned i = 0; i < 12; i++) {
			uint32_t len, at = i * 8192;
			uint64_t s = random_place(&len);
			if (i % 4 == 3 || len > 8192) {
				add(f, i, FLUSH, 0, 0, 0);
				continue;
			}
			fill(f, at, len);
			add(f, i, OUT, s, at, len);
			note_write(f, s, at, len);
		}
		finish(f, 12);
		random_write(f);
		flush(f);
		assert_false(disk_log.map_dirty);
		assert_false(disk_log.too_early);
	}
	assert_true(disk_log.map_writes > 10);
	unsigned syncs = disk_log.syncs, writes = disk_log.map_writes;
	flush(f); // nothing new: one sync
	assert_int_equal(disk_log.syncs, syncs + 1);
	assert_int_equal(disk_log.map_writes, writes);
	random_write(f);
	freeze(f); // syncs the data before it writes the map
	assert_int_equal(disk_log.syncs, syncs + 2);
}

static void test_ephemeral_flush_costs_nothing(void **state)
{
	struct fixture *f = *state;
	start_drive(f, 1);
	start_log();
	random_write(f);
	flush(f);
	assert_int_equal(disk_log.syncs, 0);
	t_start(f->d, VIO_FEATURES, &f->drv, 1); // write-through
}

static void must_fail(struct fixture *f, unsigned n, int code, const char *text)
{
	struct vio_dev *d = NULL;
	struct mv_err err = { 0 };
	int fds = t_count_fds();
	assert_int_equal(open_drive(f, n, &d, &err), -code);
	assert_message(err, text);
	assert_null(d);
	assert_int_equal(t_count_fds(), fds);
}

static void test_hostile_files(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *d = NULL;
	char save[96];
	uint8_t b;
	start_drive(f, 1);
	must_fail(f, 1, EBUSY, "another VM uses it");
	random_write(f);
	freeze(f);
	random_write(f);
	must_fail(f, 1, EBUSY, "another VM uses it"); // frozen: never to be written again
	freeze(f);
	stop_drive(f);
	snprintf(save, sizeof save, "%s/save", f->dir);
	copy_file(path_of(f, 1), save);
	// Each bit of the header.
	for (unsigned i = 0; i < 64 * 8; i++) {
		int fd = open_file(path_of(f, 1), O_RDWR);
		assert_int_equal(mv_pread_full(fd, &b, 1, i / 8), 0);
		b ^= (uint8_t)(1 << i % 8);
		assert_int_equal(mv_pwrite_full(fd, &b, 1, i / 8), 0);
		must_fail(f, 3, EINVAL, i < 64 ? "not a layer file" : "header is damaged");
		b ^= (uint8_t)(1 << i % 8);
		assert_int_equal(mv_pwrite_full(fd, &b, 1, i / 8), 0);
		close(fd);
	}
	// Any length but the right one; a layer missing, twice, in the wrong place.
	struct stat st;
	assert_int_equal(stat(path_of(f, 1), &st), 0);
	const off_t sizes[] = { 0, 10, 64, 65536, 100000, st.st_size - 1, st.st_size + 1 };
	for (unsigned i = 0; i < MV_ARRAY_LEN(sizes); i++) {
		assert_int_equal(truncate(path_of(f, 1), sizes[i]), 0);
		must_fail(f, 3, EINVAL, i < 2 ? "not a layer file" : "truncated");
		copy_file(save, path_of(f, 1));
	}
	copy_file(path_of(f, 2), path_of(f, 1));
	must_fail(f, 3, EINVAL, "on another layer");
	copy_file(save, path_of(f, 1));
	assert_int_equal(open_drive(f, 3, &d, NULL), 0);
	vio_free(d);
	// A map of ones, beyond the disk's end, too: sectors that were never written are zeros.
	int fd = open_file(path_of(f, 2), O_RDWR);
	memset(f->flushed, 0xff, 4096);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(mv_pwrite_full(fd, f->flushed, 4096, LAYER_MAP_OFFSET + i * 4096u), 0);
	close(fd);
	start_drive(f, 3);
	memset(f->model, 0, DISK_BYTES);
	compare_all(f);
	stop_drive(f);
	// Another base.
	char path[96];
	snprintf(path, sizeof path, "%s/base", f->dir);
	assert_int_equal(truncate(path, DISK_BYTES + SECTOR), 0);
	must_fail(f, 3, EINVAL, "the base has 73738");
	assert_int_equal(truncate(path, 100), 0);
	must_fail(f, 3, EINVAL, "at least 512 bytes");
}

static void test_freeze_refused(void **state)
{
	struct fixture *f = *state;
	struct mv_err err = { 0 };
	start_drive(f, 1);
	random_write(f);
	int fds = t_count_fds();
	// The wrong file; the right one but writable; a fresh file that is none.
	int fresh = open_file(path_of(f, 1), O_RDWR | O_CREAT);
	assert_int_equal(vio_blk_freeze(f->d, open_base(f), fresh, &err), -EINVAL);
	assert_message(err, "newest layer");
	fresh = open_file(path_of(f, 1), O_RDWR);
	assert_int_equal(vio_blk_freeze(f->d, open_file(path_of(f, 0), O_RDWR), fresh, &err), -EINVAL);
	fresh = open_base(f);
	assert_int_equal(vio_blk_freeze(f->d, open_file(path_of(f, 0), O_RDONLY), fresh, &err), -EACCES);
	// Prepared and dropped, twice; then done.
	for (int i = 0; i < 2; i++) {
		fresh = open_file(path_of(f, 1), O_RDWR | O_TRUNC);
		assert_int_equal(vio_blk_freeze(f->d, open_file(path_of(f, 0), O_RDONLY), fresh, &err), 0);
		vio_blk_freeze_end(f->d, false);
		assert_int_equal(t_count_fds(), fds);
		random_write(f);
		compare_all(f);
	}
	assert_int_equal(unlink(path_of(f, 1)), 0);
	freeze(f);
	compare_all(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_model_ephemeral, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_siblings, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_copy, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_model_kept, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_kill_at_any_point, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_order_of_writes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_ephemeral_flush_costs_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_hostile_files, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_freeze_refused, set_up, tear_down),
	};
	int failed = cmocka_run_group_tests_name("io_uring where there is one", tests, NULL, NULL);
	force_sync = true;
	return failed + cmocka_run_group_tests_name("plain system calls", tests, NULL, NULL);
}
