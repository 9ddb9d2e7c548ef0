// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/chunk.h"
#include "snapshot/chunk_head.h"
#include "snapshot/format.h"

enum { PAGE = 4096, LOW = 2 << 20, HIGH = 1 << 20, TOTAL = LOW + HIGH, N = TOTAL / CHUNK_BYTES };

static uint8_t *at(const struct gmem *m, unsigned offset)
{
	return offset < LOW ? m->region[0].hva + offset : m->region[1].hva + offset - LOW;
}

// Chunk 1: text; 2: random; 3: one byte; 4: written, then zero again; 5: a page of random
// between untouched ones; the last: text. All others were never touched.
static void make(struct gmem *m)
{
	struct mv_err err = { 0 };
	uint64_t seed = 5;
	*m = (struct gmem){ 0 };
	assert_int_equal(gmem_add(m, 0, LOW), 0);
	assert_int_equal(gmem_add(m, 4ULL << 30, HIGH), 0); // follows in the file
	assert_int_equal(gmem_map(m, -1, &err), 0);
	for (unsigned i = 0; i < CHUNK_BYTES; i++) {
		*at(m, 1 * CHUNK_BYTES + i) = (uint8_t) "some text "[i % 10];
		*at(m, 2 * CHUNK_BYTES + i) = (uint8_t)t_rand(&seed);
		*at(m, (N - 1) * CHUNK_BYTES + i) = (uint8_t)(i / 100);
	}
	*at(m, 3 * CHUNK_BYTES + 9999) = 1;
	memset(at(m, 4 * CHUNK_BYTES), 3, CHUNK_BYTES);
	memset(at(m, 4 * CHUNK_BYTES), 0, CHUNK_BYTES);
	for (unsigned i = 0; i < PAGE; i++)
		*at(m, 5 * CHUNK_BYTES + 3 * PAGE + i) = (uint8_t)t_rand(&seed);
}

static int write_file(const struct gmem *m, unsigned n_threads)
{
	struct mv_err err = { 0 };
	struct stat st;
	uint64_t bytes = 0;
	int fd = t_file();
	if (chunk_write(fd, m, false, n_threads, &bytes, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(bytes, st.st_size);
	return fd;
}

static void every_kind_and_random_access(void **state)
{
	static const uint32_t kinds[] = { CHUNK_ZERO, CHUNK_LZ4, CHUNK_RAW, CHUNK_LZ4,
					  CHUNK_ZERO, CHUNK_LZ4, CHUNK_ZERO };
	static uint8_t scratch[CHUNK_BYTES], to[CHUNK_BYTES];
	struct chunk_index x;
	struct mv_err err = { 0 };
	struct gmem m;
	uint64_t seed = 9;
	(void)state;
	make(&m);
	for (unsigned threads = 0; threads < 4; threads++) {
		int fd = write_file(&m, threads);
		assert_int_equal(chunk_index_read(fd, TOTAL, &x, &err), 0);
		assert_int_equal(x.n_chunks, N);
		assert_int_equal(x.n_stored, 5);
		for (unsigned i = 0; i < MV_ARRAY_LEN(kinds); i++)
			assert_int_equal(chunk_kind(&x, i), kinds[i]);
		for (unsigned turn = 0; turn < 4 * N; turn++) {
			unsigned i = turn < N ? turn : (unsigned)(t_rand(&seed) % N);
			memset(to, 0xaa, sizeof to);
			assert_int_equal(chunk_read(&x, fd, i, scratch, to), 0);
			assert_memory_equal(to, at(&m, i * CHUNK_BYTES), CHUNK_BYTES);
		}
		assert_int_equal(chunk_verify(fd, TOTAL, false, &err), 0);
		chunk_index_fini(&x);
		close(fd);
	}
	gmem_fini(&m);
}

static void untouched_memory_is_not_faulted_in(void **state)
{
	unsigned char vec[TOTAL / PAGE];
	struct mv_err err = { 0 };
	struct gmem m = { 0 };
	size_t n = 0;
	(void)state;
	assert_int_equal(gmem_add(&m, 0, TOTAL), 0);
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	madvise(m.region[0].hva, TOTAL, MADV_NOHUGEPAGE);
	m.region[0].hva[10 * CHUNK_BYTES + 5 * PAGE] = 1;
	int fd = write_file(&m, 2);
	assert_int_equal(mincore(m.region[0].hva, TOTAL, vec), 0);
	for (size_t i = 0; i < sizeof vec; i++)
		n += vec[i] & 1;
	assert_int_equal(n, 1);
	close(fd);
	gmem_fini(&m);
}

static void every_flipped_byte_is_found(void **state)
{
	struct mv_err err = { 0 };
	struct gmem m;
	struct stat st;
	uint8_t b;
	(void)state;
	make(&m);
	int fd = write_file(&m, 2);
	assert_int_equal(fstat(fd, &st), 0);
	for (off_t i = 0; i < st.st_size; i += i < 600 || i > st.st_size - 1200 ? 1 : 97) {
		assert_int_equal(pread(fd, &b, 1, i), 1);
		b ^= (uint8_t)(1 << i % 8);
		assert_int_equal(pwrite(fd, &b, 1, i), 1);
		if (chunk_verify(fd, TOTAL, false, &err) != -EINVAL || !err.msg[0])
			fail_msg("byte %ld", (long)i);
		b ^= (uint8_t)(1 << i % 8);
		assert_int_equal(pwrite(fd, &b, 1, i), 1);
	}
	assert_int_equal(chunk_verify(fd, TOTAL, false, &err), 0);
	close(fd);
	gmem_fini(&m);
}

static void truncated_oversized_or_foreign(void **state)
{
	struct chunk_index x;
	struct mv_err err = { 0 };
	struct gmem m;
	struct stat st;
	(void)state;
	make(&m);
	int fd = write_file(&m, 1);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(chunk_index_read(fd, TOTAL + CHUNK_BYTES, &x, &err), -EINVAL);
	assert_message(err, "are wanted");
	assert_int_equal(ftruncate(fd, st.st_size + 1), 0);
	assert_int_equal(chunk_index_read(fd, TOTAL, &x, &err), -EINVAL);
	assert_message(err, "bytes behind its end");
	for (off_t len = st.st_size - 1; len >= 0; len -= len > 200 ? 997 : 1) {
		assert_int_equal(ftruncate(fd, len), 0);
		assert_int_equal(chunk_index_read(fd, TOTAL, &x, &err), -EINVAL);
	}
	assert_message(err, "truncated");
	close(fd);
	gmem_fini(&m);
}

// Writes a good checksum over whatever index and header are there.
static void seal(int fd, struct chunk_head *h, struct chunk_entry *e, uint64_t n)
{
	h->index_xxh3 = le64_make(snap_xxh3(e, n * sizeof *e));
	h->head_xxh3 = le64_make(snap_xxh3(h, offsetof(struct chunk_head, head_xxh3)));
	assert_int_equal(mv_pwrite_full(fd, h, sizeof *h, 0), 0);
	assert_int_equal(mv_pwrite_full(fd, e, n * sizeof *e, le64_get(h->index_offset)), 0);
}

static void hostile_but_well_checksummed(void **state)
{
	static uint8_t scratch[CHUNK_BYTES], to[CHUNK_BYTES];
	struct chunk_entry e[N], good[N];
	struct chunk_head h, was;
	struct chunk_index x;
	struct mv_err err = { 0 };
	struct gmem m;
	(void)state;
	make(&m);
	int fd = write_file(&m, 1);
	assert_int_equal(mv_pread_full(fd, &was, sizeof was, 0), 0);
	assert_int_equal(mv_pread_full(fd, good, sizeof good, le64_get(was.index_offset)), 0);

	const struct {
		uint64_t offset;
		uint32_t stored, kind;
		const char *message; // NULL: accepted, found at the read
	} bad[] = {
		{ 0, 100, CHUNK_LZ4, "malformed" },
		{ 63, 100, CHUNK_LZ4, "malformed" },
		{ le64_get(was.index_offset), 1, CHUNK_LZ4, "malformed" },
		{ UINT64_MAX, 100, CHUNK_LZ4, "malformed" },
		{ UINT64_MAX - 50, 100, CHUNK_LZ4, "malformed" },
		{ 64, 0, CHUNK_LZ4, "malformed" },
		{ 64, CHUNK_BYTES + 1, CHUNK_LZ4, "malformed" },
		{ 64, 100, CHUNK_RAW, "malformed" },
		{ 64, 0, CHUNK_ZERO, "malformed" },
		{ 64, 100, 77, "malformed" },
		{ 0, 0, CHUNK_PARENT, "incremental" },
		{ 64, 100, CHUNK_PATCH, "incremental" },
		{ 64, 100, CHUNK_LZ4, NULL },
	};
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		memcpy(e, good, sizeof e);
		h = was;
		e[7] = (struct chunk_entry){ le64_make(bad[i].offset), le32_make(bad[i].stored),
					     le32_make(bad[i].kind), le64_make(0) };
		seal(fd, &h, e, N);
		int r = chunk_index_read(fd, TOTAL, &x, &err);
		if (bad[i].message) {
			assert_int_equal(r, -EINVAL);
			assert_message(err, bad[i].message);
			continue;
		}
		assert_int_equal(r, 0);
		assert_int_equal(chunk_read(&x, fd, 7, scratch, to), -EBADMSG);
		chunk_index_fini(&x);
	}
	// Two chunks in one place are fine; a block that decodes to less than a chunk is not.
	memcpy(e, good, sizeof e);
	h = was;
	e[7] = good[1];
	seal(fd, &h, e, N);
	assert_int_equal(chunk_verify(fd, TOTAL, false, &err), 0);
	uint8_t block[] = { 0x10, 'a' };
	uint64_t place = le64_get(good[2].offset);
	assert_int_equal(mv_pwrite_full(fd, block, sizeof block, place), 0);
	e[2] = (struct chunk_entry){ le64_make(place), le32_make(2), le32_make(CHUNK_LZ4),
				     le64_make(snap_xxh3(block, 2)) };
	seal(fd, &h, e, N);
	assert_int_equal(chunk_verify(fd, TOTAL, false, &err), -EINVAL);
	assert_message(err, "chunk 2 ");
	h.major = le16_make(CHUNK_MAJOR + 1);
	seal(fd, &h, e, N);
	assert_int_equal(chunk_index_read(fd, TOTAL, &x, &err), -EINVAL);
	assert_message(err, "newer thaw");
	close(fd);
	gmem_fini(&m);
}

static void refuses_a_file_with_content(void **state)
{
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes = 7;
	(void)state;
	make(&m);
	int fd = t_file();
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(chunk_write(fd, &m, false, 1, &bytes, &err), -EINVAL);
	assert_int_equal(bytes, 7);
	close(fd);
	gmem_fini(&m);
}

static void a_write_error_ends_all_threads(void **state)
{
	struct rlimit old, small;
	struct gmem m;
	struct mv_err err = { 0 };
	uint64_t bytes;
	(void)state;
	make(&m);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = PAGE;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	int fd = t_file();
	int r = chunk_write(fd, &m, false, 3, &bytes, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(r, -EFBIG);
	assert_message(err, "cannot write");
	close(fd);
	gmem_fini(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_and_random_access),
		cmocka_unit_test(untouched_memory_is_not_faulted_in),
		cmocka_unit_test(every_flipped_byte_is_found),
		cmocka_unit_test(truncated_oversized_or_foreign),
		cmocka_unit_test(hostile_but_well_checksummed),
		cmocka_unit_test(refuses_a_file_with_content),
		cmocka_unit_test(a_write_error_ends_all_threads),
	};
	return cmocka_run_group_tests_name("snapshot/chunk", tests, NULL, NULL);
}
