// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>

#include "snapshot/format.h"

enum { HEADER = 32, LIMIT = 4096 };
static const char payload[] = "the payload of a state file";

static int state_file(void)
{
	struct mv_err err = { 0 };
	int fd = t_file();
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, payload, sizeof payload, &err), 0);
	return fd;
}

static int read_state(int fd, struct mv_err *err)
{
	uint8_t *p = NULL;
	size_t len = 0;
	*err = (struct mv_err){ 0 };
	int r = snap_container_read(fd, SNAP_MAGIC_STATE, "state", LIMIT, &p, &len, err);
	if (!r) {
		assert_int_equal(len, sizeof payload);
		assert_memory_equal(p, payload, len);
		free(p);
	} else {
		assert_null(p);
		assert_int_equal(err->code, -r);
		assert_message(*err, "state: ");
	}
	return r;
}

// Writes `byte` at an offset of a good file; what reading says.
static int read_patched(off_t at, uint8_t byte, struct mv_err *err)
{
	int fd = state_file();
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	int r = read_state(fd, err);
	close(fd);
	return r;
}

static void round_trip(void **state)
{
	struct mv_err err;
	(void)state;
	int fd = state_file();
	lseek(fd, 7, SEEK_SET); // the position does not matter
	assert_int_equal(read_state(fd, &err), 0);
	close(fd);

	uint8_t *p = NULL;
	size_t len = 1;
	fd = t_file();
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, NULL, 0, &err), 0);
	assert_int_equal(snap_container_read(fd, SNAP_MAGIC_STATE, "state", 0, &p, &len, &err), 0);
	assert_int_equal(len, 0);
	assert_non_null(p);
	free(p);
	close(fd);
}

static void every_flipped_bit_is_found(void **state)
{
	struct mv_err err;
	(void)state;
	for (off_t at = 0; at < (off_t)(HEADER + sizeof payload); at++)
		for (int bit = 0; bit < 8; bit++) {
			uint8_t byte;
			int fd = state_file();
			assert_int_equal(pread(fd, &byte, 1, at), 1);
			byte ^= (uint8_t)(1u << bit);
			assert_int_equal(pwrite(fd, &byte, 1, at), 1);
			assert_true(read_state(fd, &err) < 0);
			close(fd);
		}
}

static void every_truncation_is_found(void **state)
{
	struct mv_err err;
	(void)state;
	int fd = state_file();
	for (off_t len = HEADER + (off_t)sizeof payload - 1; len >= 0; len--) {
		assert_int_equal(ftruncate(fd, len), 0);
		assert_int_equal(read_state(fd, &err), -EINVAL);
		assert_message(err, len < HEADER ? "too short" : "truncated");
	}
	close(fd);
}

static void each_problem_has_its_message(void **state)
{
	struct mv_err err;
	int pipe_fd[2];
	(void)state;

	assert_int_equal(read_patched(0, 'X', &err), -EINVAL);
	assert_message(err, "not a thaw state file");
	assert_int_equal(read_patched(8, 2, &err), -EINVAL);
	assert_message(err, "made by a newer thaw: format 2, this one reads up to 1");
	assert_int_equal(read_patched(8, 0, &err), -EINVAL);
	assert_message(err, "damaged header");
	assert_int_equal(read_patched(12, 1, &err), -EINVAL);
	assert_message(err, "damaged header");
	assert_int_equal(read_patched(23, 0x80, &err), -EFBIG);
	assert_message(err, "the limit is 4096");
	assert_int_equal(read_patched(24, 0, &err), -EINVAL);
	assert_message(err, "checksum wrong");
	assert_int_equal(read_patched(HEADER, 'X', &err), -EINVAL);
	assert_message(err, "checksum wrong");
	assert_int_equal(read_patched(HEADER + sizeof payload, 0, &err), -EINVAL);
	assert_message(err, "1 bytes too many");

	assert_int_equal(pipe(pipe_fd), 0);
	assert_int_equal(read_state(pipe_fd[0], &err), -EINVAL);
	assert_message(err, "not a regular file");
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	assert_int_equal(read_state(-1, &err), -EBADF);
}

static void payload_over_the_limit(void **state)
{
	static const char big[LIMIT + 1];
	struct mv_err err;
	(void)state;
	int fd = t_file();
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, big, sizeof big, &err), 0);
	assert_int_equal(read_state(fd, &err), -EFBIG);
	close(fd);
}

static void full_file_system(void **state)
{
	struct mv_err err;
	(void)state;
	int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		skip();
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, payload, sizeof payload, &err), -ENOSPC);
	assert_message(err, "full");
	close(fd);
}

static void sections(void **state)
{
	MV_BUF b = { 0 };
	struct snap_section s;
	struct mv_err err = { 0 };
	size_t pos = 0;
	(void)state;

	snap_section_append(&b, 1, 0, "machine", 7);
	size_t mark = snap_section_begin(&b, 2, 3);
	mv_buf_append(&b, "vc", 2);
	mv_buf_append(&b, "pu", 2);
	snap_section_end(&b, mark);
	snap_section_append(&b, 9, 0, NULL, 0);
	assert_false(b.failed);
	assert_int_equal(b.len, 3 * 16 + 7 + 4);

	assert_int_equal(snap_section_next(b.p, b.len, &pos, &s, &err), 1);
	assert_true(s.kind == 1 && s.index == 0 && s.len == 7 && !memcmp(s.bytes, "machine", 7));
	assert_int_equal(snap_section_next(b.p, b.len, &pos, &s, &err), 1);
	assert_true(s.kind == 2 && s.index == 3 && s.len == 4 && !memcmp(s.bytes, "vcpu", 4));
	assert_int_equal(snap_section_next(b.p, b.len, &pos, &s, &err), 1);
	assert_true(s.kind == 9 && s.len == 0);
	assert_int_equal(snap_section_next(b.p, b.len, &pos, &s, &err), 0);
	assert_int_equal(snap_section_next(b.p, b.len, &pos, &s, &err), 0);

	// A failed buffer stays failed and nothing is touched.
	struct mv_buf bad = { .failed = true };
	snap_section_append(&bad, 1, 0, "x", 1);
	assert_true(bad.failed && !bad.p);
}

static void hostile_sections(void **state)
{
	uint64_t seed = 11;
	(void)state;
	for (int round = 0; round < 20000; round++) {
		MV_BUF b = { 0 };
		struct snap_section s;
		struct mv_err err;
		size_t pos = 0, n = 0;
		for (uint32_t i = 0; i < 4; i++)
			snap_section_append(&b, i, i, payload, i * 5);
		t_mutate(b.p, b.len, &seed);
		size_t len = b.len - t_rand(&seed) % 3;
		uint8_t *copy = malloc(len); // its own allocation: a sanitizer sees one byte too far
		memcpy(copy, b.p, len);
		while (snap_section_next(copy, len, &pos, &s, &err) == 1) {
			assert_true(s.bytes >= copy && s.len <= len && s.bytes + s.len <= copy + len);
			assert_true(++n < 10);
		}
		free(copy);
	}
}

// --- file hash ---

static uint64_t hash_of(int fd, uint64_t *ret_data)
{
	uint64_t h = 0;
	assert_int_equal(snap_xxh3_file(fd, (uint64_t)lseek(fd, 0, SEEK_END), &h, ret_data), 0);
	return h;
}

static void write_at(int fd, uint64_t at, const void *p, size_t len)
{
	assert_int_equal(mv_pwrite_full(fd, p, len, at), 0);
}

// The same content with data where the other has holes hashes alike, at sizes and
// places around chunk and page borders.
static void hash_depends_on_content_only(void **state)
{
	static const uint64_t sizes[] = { 1, 4095, 65535, 65536, 65537, 300000, 1 << 20, (1 << 20) + 4096 };
	static const uint8_t zeros[1 << 21];
	uint64_t seed = 5, data;
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(sizes); i++)
		for (int n = 0; n < 8; n++) {
			int sparse = t_file(), dense = t_file();
			assert_int_equal(ftruncate(sparse, (off_t)sizes[i]), 0);
			write_at(dense, 0, zeros, sizes[i]);
			for (int k = 0; k < n; k++) {
				uint64_t at = t_rand(&seed) % sizes[i], v = t_rand(&seed);
				size_t len = sizes[i] - at < sizeof v ? (size_t)(sizes[i] - at) : sizeof v;
				write_at(sparse, at, &v, len);
				write_at(dense, at, &v, len);
			}
			uint64_t want = hash_of(dense, &data);
			assert_int_equal(data, sizes[i]);
			assert_int_equal(hash_of(sparse, &data), want);
			assert_true(data <= sizes[i] && data <= (uint64_t)n * 8192);
			close(sparse);
			close(dense);
		}
}

static void hash_sees_every_byte_and_the_order(void **state)
{
	uint64_t data, before;
	uint8_t one = 1;
	(void)state;
	int fd = t_file();
	assert_int_equal(ftruncate(fd, 200000), 0);
	before = hash_of(fd, &data);
	assert_int_equal(data, 0);
	for (uint64_t at = 0; at < 200000; at += 7001) {
		write_at(fd, at, &one, 1);
		uint64_t now = hash_of(fd, &data);
		assert_int_not_equal(now, before);
		before = now;
	}
	// An empty file, and fixed values: the format must not change by accident.
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_true(hash_of(fd, &data) == 0x2d06800538d394c2u); // XXH3-64 of nothing
	assert_int_equal(ftruncate(fd, 65536 * 2), 0);
	assert_true(hash_of(fd, &data) == 0xadab74347d8951u);
	close(fd);
}

static void hash_of_a_short_file(void **state)
{
	uint64_t h = 1, data = 1;
	(void)state;
	int fd = t_file();
	write_at(fd, 0, payload, sizeof payload);
	assert_int_equal(snap_xxh3_file(fd, sizeof payload + 1, &h, &data), -ENODATA);
	assert_true(h == 1 && data == 1);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(every_flipped_bit_is_found),
		cmocka_unit_test(every_truncation_is_found),
		cmocka_unit_test(each_problem_has_its_message),
		cmocka_unit_test(payload_over_the_limit),
		cmocka_unit_test(full_file_system),
		cmocka_unit_test(sections),
		cmocka_unit_test(hostile_sections),
		cmocka_unit_test(hash_depends_on_content_only),
		cmocka_unit_test(hash_sees_every_byte_and_the_order),
		cmocka_unit_test(hash_of_a_short_file),
	};
	return cmocka_run_group_tests_name("snapshot/format", tests, NULL, NULL);
}
