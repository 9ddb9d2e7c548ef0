// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_driver.h"

#include <errno.h>

#include "microvm/base/util.h"

enum { BYTES = 4 << 20 };
#define FILE_GPA (8ULL << 30)

struct fixture {
	struct t_vm vm;
	struct t_queue q;
	struct mv_ring *ring;
	struct vio_dev *d;
	int fd;
};

static int open_again(int fd)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int other = open(path, O_RDWR | O_CLOEXEC);
	assert_true(other >= 0);
	return other;
}

static int make(struct fixture *f, int fd, bool read_only, bool other, struct vio_dev **ret_d,
		struct mv_err *err)
{
	uint64_t bytes;
	assert_int_equal(vio_pmem_check(fd, &bytes, NULL), 0);
	struct vio_pmem_config c = { .name = "p",
				     .fd = fd,
				     .read_only = read_only,
				     .other_file = other,
				     .gpa = FILE_GPA,
				     .size_bytes = bytes };
	return vio_pmem_new(&f->vm.mem, &f->vm.loop, f->ring, &c, ret_d, err);
}

static void start(struct fixture *f, bool read_only)
{
	t_vm_init(&f->vm);
	t_queue_init(&f->q, &f->vm, 64);
	f->fd = t_file();
	assert_int_equal(ftruncate(f->fd, BYTES), 0);
	assert_int_equal(mv_ring_new(&f->vm.loop, 8, false, &f->ring, NULL), 0);
	assert_int_equal(gmem_map_file(&f->vm.mem, FILE_GPA, BYTES, f->fd, !read_only, NULL), 0);
	assert_int_equal(make(f, open_again(f->fd), read_only, false, &f->d, NULL), 0);
	t_start(f->d, VIO_FEATURES, &f->q, 1);
}

static void end(struct fixture *f)
{
	vio_free(f->d);
	mv_ring_free(f->ring);
	t_vm_fini(&f->vm);
	close(f->fd);
}

static uint64_t add(struct fixture *f, uint32_t type, uint64_t answer)
{
	uint64_t a = t_alloc(&f->vm, 8, 4);
	uint8_t *p = t_ptr(&f->vm, a, 8);
	memcpy(p, &type, 4);
	memset(p + 4, 0x55, 4);
	t_add(&f->q, (struct t_buf[]){ { a, 4, false }, { answer ? answer : a + 4, 4, true } }, 2);
	return a + 4;
}

static uint32_t answer(struct fixture *f, uint64_t a)
{
	uint32_t v, len;
	t_run_until(&f->vm, t_has_used, &f->q);
	assert_true(t_used(&f->q, NULL, &len));
	assert_int_equal(len, 4);
	memcpy(&v, t_ptr(&f->vm, a, 4), 4);
	return v;
}

static void test_flush(void **state)
{
	(void)state;
	for (int read_only = 0; read_only < 2; read_only++) {
		struct fixture f;
		start(&f, read_only);
		assert_int_equal(t_get(f.d, 0x104), FILE_GPA >> 32);
		assert_int_equal(t_get(f.d, 0x108), BYTES);
		uint64_t a = add(&f, 0, 0);
		t_kick(f.d, 0);
		assert_int_equal(answer(&f, a), 0);
		a = add(&f, 1, 0); // there is no other request
		t_kick(f.d, 0);
		assert_int_equal(answer(&f, a), UINT32_MAX);
		// Many at once; a pause waits for them.
		for (unsigned i = 0; i < 30; i++)
			add(&f, 0, 0);
		t_kick(f.d, 0);
		vio_quiesce(f.d);
		for (unsigned i = 0; i < 30; i++)
			assert_true(t_used(&f.q, NULL, NULL));
		vio_unquiesce(f.d);
		// No room for an answer.
		t_add(&f.q, (struct t_buf[]){ { 0x1000, 4, false } }, 1);
		t_kick(f.d, 0);
		t_run_until(&f.vm, t_has_used, &f.q);
		end(&f);
	}
}

// Devices reach the file's memory as the guest does: all of it, but no write to what is read-only.
static void test_memory_of_devices(void **state)
{
	struct fixture f;
	(void)state;
	start(&f, false);
	add(&f, 0, FILE_GPA + BYTES - 4);
	memset((void *)(uintptr_t)gmem_ptr(&f.vm.mem, gpa(FILE_GPA + BYTES - 4), 4), 1, 4);
	t_kick(f.d, 0);
	assert_int_equal(answer(&f, FILE_GPA + BYTES - 4), 0);
	assert_null(gmem_ptr(&f.vm.mem, gpa(FILE_GPA + BYTES - 4), 5));
	assert_null(gmem_ptr_to_read(&f.vm.mem, gpa(FILE_GPA - 1), 1));
	end(&f);
	start(&f, true);
	assert_non_null(gmem_ptr_to_read(&f.vm.mem, gpa(FILE_GPA), BYTES));
	assert_null(gmem_ptr(&f.vm.mem, gpa(FILE_GPA), 1));
	add(&f, 0, FILE_GPA);
	t_kick(f.d, 0);
	assert_false(t_has_used(&f.q));
	assert_true(t_get(f.d, 0x70) & VIO_NEEDS_RESET);
	end(&f);
}

static void wait_for_one(struct fixture *f)
{
	t_run_until(&f->vm, t_has_used, &f->q);
	assert_true(t_used(&f->q, NULL, NULL));
}

// A flush is one operation of the whole file; those that are found together are one. What waits goes by a new
// limit.
static void test_limit(void **state)
{
	const struct vmcfg_rate none = { 0 };
	const struct vmcfg_rate rates[] = { { .ops = { .size = 1, .refill_ms = 50 } },
					    { .bandwidth = { .size = BYTES, .refill_ms = 50 } } };
	(void)state;
	for (unsigned i = 0; i < MV_ARRAY_LEN(rates); i++) {
		struct fixture f;
		start(&f, false);
		assert_int_equal(vio_pmem_set_rate(f.d, &rates[i], NULL), 0);
		uint64_t before = mv_now_ns();
		for (unsigned k = 0; k < 3; k++)
			add(&f, 0, 0);
		t_kick(f.d, 0);
		for (unsigned k = 0; k < 3; k++)
			wait_for_one(&f);
		for (unsigned k = 0; k < 2; k++) {
			add(&f, 0, 0);
			t_kick(f.d, 0);
			t_kick(f.d, 0); // while it waits
			assert_false(t_has_used(&f.q));
			wait_for_one(&f);
		}
		assert_true(mv_now_ns() - before >= 95 * 1000000ull);
		// Over a pause.
		add(&f, 0, 0);
		t_kick(f.d, 0);
		vio_quiesce(f.d);
		assert_false(t_has_used(&f.q));
		vio_unquiesce(f.d);
		wait_for_one(&f);
		struct vmcfg_rate slow = rates[i];
		slow.ops.refill_ms = slow.bandwidth.refill_ms = VMCFG_MAX_REFILL_MS;
		assert_int_equal(vio_pmem_set_rate(f.d, &slow, NULL), 0);
		for (unsigned k = 0; k < 2; k++) {
			add(&f, 0, 0);
			t_kick(f.d, 0);
			if (!k)
				wait_for_one(&f); // the new bucket is full
		}
		assert_false(t_has_used(&f.q));
		assert_int_equal(vio_pmem_set_rate(f.d, &none, NULL), 0);
		wait_for_one(&f);
		end(&f);
	}
}

static void test_which_file(void **state)
{
	struct fixture f;
	struct mv_err err;
	struct vio_dev *d;
	uint64_t bytes;
	(void)state;
	start(&f, true);
	vio_quiesce(f.d);
	MV_BUF saved = { 0 };
	vio_save(f.d, &saved);
	assert_int_equal(vio_load(f.d, saved.p, saved.len, NULL), 0);
	int other = t_file();
	assert_int_equal(ftruncate(other, BYTES), 0);
	assert_int_equal(make(&f, open_again(other), true, false, &d, NULL), 0);
	assert_int_equal(vio_load(d, saved.p, saved.len, &err), -EINVAL);
	assert_message(err, "changed or replaced since the snapshot");
	vio_free(d);
	assert_int_equal(make(&f, open_again(other), true, true, &d, NULL), 0);
	assert_int_equal(vio_load(d, saved.p, saved.len, &err), 0);
	// From here on this is the file.
	vio_unquiesce(d);
	vio_quiesce(d);
	MV_BUF second = { 0 };
	vio_save(d, &second);
	vio_free(d);
	assert_int_equal(make(&f, open_again(other), true, false, &d, NULL), 0);
	assert_int_equal(vio_load(d, second.p, second.len, NULL), 0);
	assert_int_equal(make(&f, open_again(other), false, false, &(struct vio_dev *){ NULL }, &err),
			 -EBUSY);
	vio_free(d);
	assert_int_equal(ftruncate(other, 2 * BYTES), 0);
	assert_int_equal(make(&f, other, true, true, &d, NULL), 0);
	assert_int_equal(vio_load(d, saved.p, saved.len, &err), -EINVAL);
	assert_message(err, "that of the snapshot had 4194304");
	vio_free(d);
	end(&f);
	int fd = t_file();
	assert_int_equal(vio_pmem_check(fd, &bytes, &err), -EINVAL); // empty
	assert_int_equal(ftruncate(fd, BYTES + 4096), 0);
	assert_int_equal(vio_pmem_check(fd, &bytes, &err), -EINVAL);
	assert_message(err, "not a multiple of 2 MiB");
	close(fd);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(vio_pmem_check(fd, &bytes, &err), -EINVAL);
	close(fd);
}

static void test_hostile(void **state)
{
	struct fixture f;
	uint64_t seed = 3;
	(void)state;
	start(&f, false);
	for (unsigned turn = 0; turn < 200; turn++) {
		f.vm.next_gpa = 0x1000;
		t_queue_init(&f.q, &f.vm, 64);
		memset(t_ptr(&f.vm, 0x1000, f.vm.next_gpa - 0x1000), 0, f.vm.next_gpa - 0x1000);
		t_start(f.d, turn & 1 ? VIO_FEATURES : 1ULL << 32, &f.q, 1);
		for (unsigned i = 0; i < 40; i++) {
			uint64_t at = t_rand(&seed) % 2 ? FILE_GPA + t_rand(&seed) % (BYTES + 64)
							: t_rand(&seed) % T_LOW_BYTES;
			if (at < 0x10000)
				at += 0x10000;
			t_desc(&f.q.desc[t_rand(&seed) % 64], at, (uint32_t)t_rand(&seed) % 9,
			       (unsigned)t_rand(&seed) % 8, (uint16_t)(t_rand(&seed) % 65));
			t_publish(&f.q, (uint16_t)(t_rand(&seed) % 65));
			t_kick(f.d, 0);
		}
		if (turn & 2)
			t_set(f.d, 0x70, 0); // with flushes under way
	}
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flush),   cmocka_unit_test(test_memory_of_devices),
		cmocka_unit_test(test_limit),   cmocka_unit_test(test_which_file),
		cmocka_unit_test(test_hostile),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
