// SPDX-License-Identifier: Apache-2.0
// snapshot/chain.c and flatten.c: random histories of a memory, written file by file, must read as the
// memory was; no bit of any file may change without being noticed. `test_chain --make FOLDER` makes
// golden files (docs/architecture.md), once for each minor version of the format.
#include "tests/t.h"

#include <errno.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/chain.h"
#include "snapshot/chunk_head.h"
#include "snapshot/flatten.h"
#include "snapshot/format.h"
#include "snapshot/memory.h"

// The regions meet inside chunk 2, and the last chunk has 3 pages.
enum { PAGE = 4096, N_PAGES = 8 * 16 + 3, LOW_PAGES = 2 * 16 + 5, N = 9, TOTAL = N_PAGES * PAGE };

struct history {
	struct gmem m;
	uint64_t seed;
	int fd[CHAIN_MAX + 1]; // newest first
	unsigned n;
	bool raw_base;
};

static uint8_t scratch[CHAIN_SCRATCH_BYTES], to[CHUNK_BYTES];

static uint8_t *page_at(const struct gmem *m, unsigned page)
{
	return page < LOW_PAGES ? m->region[0].hva + page * PAGE
				: m->region[1].hva + (page - LOW_PAGES) * PAGE;
}

// Content by kind: zeros, text, random.
static void fill(uint8_t *page, uint64_t *seed)
{
	uint64_t kind = t_rand(seed) % 3;
	for (unsigned i = 0; i < PAGE; i++)
		page[i] = kind == 0 ? 0 : (uint8_t)(kind == 1 ? 'a' + i / 64 % 20 : t_rand(seed));
}

static void begin(struct history *h, bool raw_base)
{
	struct mv_err err = { 0 };
	uint64_t bytes, data;
	*h = (struct history){ .seed = 77, .raw_base = raw_base, .n = 1 };
	assert_int_equal(gmem_add(&h->m, 0, LOW_PAGES * PAGE), 0);
	assert_int_equal(gmem_add(&h->m, 4ULL << 30, TOTAL - LOW_PAGES * PAGE), 0);
	assert_int_equal(gmem_map(&h->m, -1, &err), 0);
	for (unsigned i = 0; i < N_PAGES; i++)
		if (i / 16 != 1) // chunk 1 begins as zeros
			fill(page_at(&h->m, i), &h->seed);
	h->fd[0] = t_file();
	assert_int_equal(snap_memory_write_as(!raw_base, h->fd[0], &h->m, &bytes, &data, &err), 0);
}

// A file with what changed; 0 bits: nothing did.
static void add(struct history *h, const uint64_t *changed)
{
	struct mv_err err = { 0 };
	uint64_t bytes;
	assert_true(h->n < MV_ARRAY_LEN(h->fd));
	memmove(h->fd + 1, h->fd, h->n++ * sizeof h->fd[0]);
	h->fd[0] = t_file();
	if (chunk_write_changed(h->fd[0], &h->m, changed, false, 1, &bytes, &err))
		fail_msg("%s", err.msg);
}

static void change_pages(struct history *h, unsigned first, unsigned last)
{
	uint64_t changed[N_PAGES / 64 + 1] = { 0 };
	for (unsigned i = first; i <= last; i++) {
		fill(page_at(&h->m, i), &h->seed);
		changed[i / 64] |= 1ULL << i % 64;
	}
	add(h, changed);
}

static void end(struct history *h)
{
	while (h->n)
		close(h->fd[--h->n]);
	gmem_fini(&h->m);
}

static bool same(const struct history *h, uint64_t chunk, const uint8_t *bytes)
{
	for (unsigned k = 0; k < 16 && chunk * 16 + k < N_PAGES; k++)
		if (memcmp(bytes + k * PAGE, page_at(&h->m, (unsigned)chunk * 16 + k), PAGE))
			return false;
	return true;
}

static void check(const struct history *h)
{
	struct mv_err err = { 0 };
	struct chain c;
	uint64_t stored = 0;
	if (chain_open(h->fd, h->n, h->raw_base, TOTAL, &c, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(c.n_chunks, N);
	for (unsigned i = 0; i < N; i++) {
		stored += !chain_is_zero(&c, i);
		memset(to, 0xaa, sizeof to);
		assert_int_equal(chain_read(&c, i, scratch, to), 0);
		if (!same(h, i, to))
			fail_msg("chunk %u differs, %u files", i, h->n);
		if (chain_is_zero(&c, i) && (to[0] || memcmp(to, to + 1, chain_len(&c, i) - 1)))
			fail_msg("chunk %u is not zero", i);
	}
	assert_int_equal(c.n_stored, stored);
	chain_fini(&c);
	chain_fini(&c);
}

static void histories_of_any_length(void **state)
{
	(void)state;
	for (unsigned raw = 0; raw < 2; raw++) {
		struct history h;
		begin(&h, raw);
		check(&h);
		while (h.n < 66) {
			uint64_t changed[N_PAGES / 64 + 1] = { 0 };
			for (unsigned k = (unsigned)(t_rand(&h.seed) % 20); k; k--) {
				unsigned i = (unsigned)(t_rand(&h.seed) % N_PAGES);
				fill(page_at(&h.m, i), &h.seed);
				changed[i / 64] |= 1ULL << i % 64;
			}
			add(&h, changed);
			check(&h);
		}
		end(&h);
	}
}

static void edges_of_patches(void **state)
{
	static const struct {
		unsigned first, last;
	} changes[] = {
		{ 0, 0 },     { 15, 15 },   { 0, 14 },  { 1, 15 },    { 0, 15 },    { 16, 16 },
		{ 16, 31 },   { 33, 40 },   { 36, 37 }, { 47, 48 },   { 128, 128 }, { 130, 130 },
		{ 129, 130 }, { 128, 130 }, { 0, 130 }, { 127, 128 },
	};
	struct history h;
	(void)state;
	for (unsigned raw = 0; raw < 2; raw++) {
		begin(&h, raw);
		for (unsigned i = 0; i < MV_ARRAY_LEN(changes); i++) {
			change_pages(&h, changes[i].first, changes[i].last);
			check(&h);
		}
		end(&h);
	}
}

// Over zeros and over a hole: the pages that no patch has are zeros.
static void patches_over_zeros(void **state)
{
	struct history h;
	(void)state;
	for (unsigned raw = 0; raw < 2; raw++) {
		begin(&h, raw);
		memset(page_at(&h.m, 20), 5, PAGE);
		add(&h, (uint64_t[]){ 1 << 20, 0, 0 });
		check(&h);
		end(&h);
	}
}

static void as_many_as_allowed(void **state)
{
	static struct history h;
	struct mv_err err = { 0 };
	struct chain c;
	(void)state;
	begin(&h, false);
	while (h.n < CHAIN_MAX)
		change_pages(&h, h.n % 16, h.n % 16); // patches of one chunk over each other
	check(&h);
	change_pages(&h, 3, 3);
	assert_int_equal(chain_open(h.fd, h.n, false, TOTAL, &c, &err), -E2BIG);
	assert_message(err, "flatten");
	end(&h);
}

// What was damaged is either refused or not used; wrong bytes never come out.
static bool notices(const struct history *h, bool *ret_used)
{
	struct mv_err err = { 0 };
	struct chain c;
	int r = chain_open(h->fd, h->n, false, TOTAL, &c, &err);
	*ret_used = r != 0;
	if (r)
		return r == -EINVAL && err.msg[0];
	bool ok = true;
	for (unsigned i = 0; ok && i < N; i++) {
		r = chain_read(&c, i, scratch, to);
		*ret_used |= r == -EBADMSG;
		ok = r == -EBADMSG || (!r && same(h, i, to));
	}
	chain_fini(&c);
	return ok;
}

static void every_flipped_bit_is_found(void **state)
{
	struct mv_err err = { 0 };
	struct history h;
	struct stat st;
	uint8_t b;
	bool used;
	(void)state;
	begin(&h, false);
	change_pages(&h, 0, 3);
	change_pages(&h, 2, 20);
	change_pages(&h, 35, 35);
	for (unsigned k = 0; k < h.n; k++) {
		assert_int_equal(fstat(h.fd[k], &st), 0);
		unsigned n_used = 0;
		for (off_t i = 0; i < st.st_size; i += i < 70 || i > st.st_size - N * 24 ? 1 : 89) {
			assert_int_equal(pread(h.fd[k], &b, 1, i), 1);
			b ^= (uint8_t)(1 << i % 8);
			assert_int_equal(pwrite(h.fd[k], &b, 1, i), 1);
			if (!notices(&h, &used))
				fail_msg("file %u, byte %ld", k, (long)i);
			n_used += used;
			if (chunk_verify(h.fd[k], TOTAL, k + 1 < h.n, &err) != -EINVAL)
				fail_msg("file %u, byte %ld not found by verify", k, (long)i);
			b ^= (uint8_t)(1 << i % 8);
			assert_int_equal(pwrite(h.fd[k], &b, 1, i), 1);
		}
		assert_true(n_used > 64 + N * 24 - 89);
		assert_int_equal(chunk_verify(h.fd[k], TOTAL, k + 1 < h.n, &err), 0);
	}
	check(&h);
	end(&h);
}

static void must_refuse(const struct history *h, uint64_t bytes, const char *why)
{
	struct mv_err err = { 0 };
	struct chain c = { .n_parts = 7 };
	assert_int_equal(chain_open(h->fd, h->n, h->raw_base, bytes, &c, &err), -EINVAL);
	assert_message(err, why);
	assert_int_equal(c.n_parts, 7);
}

static void files_that_do_not_fit(void **state)
{
	struct history h;
	struct stat st;
	(void)state;
	begin(&h, false);
	change_pages(&h, 5, 6);
	must_refuse(&h, TOTAL + CHUNK_BYTES, "file 1 of 2"); // of another size
	must_refuse(&h, TOTAL - 1, "whole pages");
	int base = h.fd[1];
	h.n = 1;
	must_refuse(&h, TOTAL, "incremental"); // the base is missing
	h.n = 2;
	h.fd[1] = h.fd[0];
	must_refuse(&h, TOTAL, "file 2 of 2, from the newest: memory: the file is incremental");
	h.fd[1] = base;
	h.raw_base = true; // which it is not
	must_refuse(&h, TOTAL, "are wanted");
	h.raw_base = false;
	check(&h);
	for (unsigned k = 2; k-- > 0;) {
		assert_int_equal(fstat(h.fd[k], &st), 0);
		assert_int_equal(ftruncate(h.fd[k], st.st_size - 1), 0);
		must_refuse(&h, TOTAL, k ? "file 2 of 2, from the newest: memory: truncated" : "truncated");
		assert_int_equal(ftruncate(h.fd[k], 0), 0);
		must_refuse(&h, TOTAL, "truncated");
	}
	end(&h);
}

static void a_raw_base_that_shrinks(void **state)
{
	struct mv_err err = { 0 };
	struct history h;
	struct chain c;
	(void)state;
	begin(&h, true);
	change_pages(&h, 5, 6);
	assert_int_equal(chain_open(h.fd, h.n, true, TOTAL, &c, &err), 0);
	assert_int_equal(ftruncate(h.fd[1], 3 * PAGE), 0);
	assert_int_equal(chain_read(&c, 0, scratch, to), -ENODATA);
	chain_fini(&c);
	must_refuse(&h, TOTAL, "file 2 of 2");
	end(&h);
}

// A file whose chunk i is stored as given, with right checksums.
static void forge(int fd, unsigned i, uint32_t kind, const uint8_t *stored, uint32_t n, uint32_t claimed)
{
	struct chunk_entry e[N];
	for (unsigned k = 0; k < N; k++)
		e[k] = (struct chunk_entry){ .kind = le32_make(CHUNK_PARENT) };
	e[i] = (struct chunk_entry){ le64_make(CHUNK_HEAD_BYTES), le32_make(claimed), le32_make(kind),
				     le64_make(snap_xxh3(stored, n)) };
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(mv_pwrite_full(fd, stored, n, CHUNK_HEAD_BYTES), 0);
	assert_int_equal(chunk_finish(fd, TOTAL, true, e, CHUNK_HEAD_BYTES + n), 0);
}

static void hostile_patches(void **state)
{
	static uint8_t s[2 + CHUNK_BYTES];
	static const struct {
		unsigned chunk, mask;
		uint32_t n, claimed;
		int result; // of reading; -EINVAL: refused at once
	} cases[] = {
		{ 0, 1, 2 + PAGE, 2 + PAGE, 0 },
		{ 0, 0, 2 + PAGE, 2 + PAGE, -EBADMSG },                // no page
		{ 0, 0xffff, 2 + 15 * PAGE, 2 + 15 * PAGE, -EBADMSG }, // all
		{ 0, 3, 2 + PAGE, 2 + PAGE, -EBADMSG },                // not a block that decodes to two
		{ 0, 1, 2 + 2 * PAGE, 2 + 2 * PAGE, -EBADMSG },        // more than it says
		{ 0, 1, 3, 3, -EBADMSG },
		{ 0, 1, 2, 2, -EINVAL },
		{ 0, 1, 1, 1, -EINVAL },
		{ 0, 0x7fff, 2 + 15 * PAGE, 2 + 15 * PAGE, 0 },
		{ 0, 0x7fff, 2 + 15 * PAGE + 1, 2 + 15 * PAGE + 1, -EINVAL },
		{ 0, 1, 2 + PAGE, UINT32_MAX, -EINVAL },
		{ N - 1, 4, 2 + PAGE, 2 + PAGE, 0 },
		{ N - 1, 7, 2 + 2 * PAGE, 2 + 2 * PAGE, -EBADMSG }, // all of the short one
		{ N - 1, 9, 2 + 2 * PAGE, 2 + 2 * PAGE, -EBADMSG }, // one behind the memory
		{ N - 1, 8, 2 + PAGE, 2 + PAGE, -EBADMSG },
		{ N - 1, 3, 2 + 3 * PAGE, 2 + 3 * PAGE, -EINVAL },
	};
	struct history h;
	(void)state;
	begin(&h, false);
	change_pages(&h, 5, 5);
	for (unsigned k = 0; k < MV_ARRAY_LEN(cases); k++) {
		struct mv_err err = { 0 };
		struct chain c;
		s[0] = (uint8_t)cases[k].mask;
		s[1] = (uint8_t)(cases[k].mask >> 8);
		forge(h.fd[0], cases[k].chunk, CHUNK_PATCH, s, cases[k].n, cases[k].claimed);
		int r = chain_open(h.fd, 2, false, TOTAL, &c, &err);
		assert_int_equal(r, cases[k].result == -EINVAL ? -EINVAL : 0);
		if (r) {
			assert_message(err, "malformed");
			continue;
		}
		// Nothing behind a short chunk is written, whatever it says.
		memset(to, 0x5a, sizeof to);
		r = chain_read(&c, cases[k].chunk, scratch, to);
		if (r != cases[k].result)
			fail_msg("case %u: %d", k, r);
		if (cases[k].chunk == N - 1)
			assert_int_equal(to[3 * PAGE], 0x5a);
		chain_fini(&c);
	}
	end(&h);
}

static void flattened(void **state)
{
	struct mv_err err = { 0 };
	struct history h, flat;
	struct chain c;
	(void)state;
	for (unsigned raw = 0; raw < 2; raw++) {
		begin(&h, raw);
		for (unsigned i = 0; i < 10; i++)
			change_pages(&h, 11 * i, 11 * i + i);
		assert_int_equal(chain_open(h.fd, h.n, raw, TOTAL, &c, &err), 0);
		for (unsigned k = 0; k < 8; k++) {
			bool lz4 = k & 1;
			flat = h;
			flat.n = 1;
			flat.raw_base = !lz4;
			flat.fd[0] = t_file();
			if (chain_flatten(&c, flat.fd[0], lz4 ? SNAP_MEMORY_LZ4_HIGH : SNAP_MEMORY_RAW, k / 2,
					  &err))
				fail_msg("%s", err.msg);
			check(&flat);
			assert_int_equal(chain_flatten(&c, flat.fd[0], lz4, 1, &err), -EINVAL); // not empty
			close(flat.fd[0]);
		}
		chain_fini(&c);
		end(&h);
	}
}

static void flatten_of_a_damaged_chunk(void **state)
{
	struct mv_err err = { 0 };
	struct history h;
	struct chain c;
	(void)state;
	begin(&h, false);
	change_pages(&h, 33, 33);
	assert_int_equal(chain_open(h.fd, h.n, false, TOTAL, &c, &err), 0);
	assert_int_equal(pwrite(h.fd[0], "\xff", 1, CHUNK_HEAD_BYTES), 1); // the mask
	for (unsigned lz4 = 0; lz4 < 2; lz4++) {
		int fd = t_file();
		assert_int_equal(chain_flatten(&c, fd, lz4, 2, &err), -EINVAL);
		assert_message(err, "chunk 2 (from byte 131072 of the memory) is damaged");
		close(fd);
	}
	chain_fini(&c);
	end(&h);
}

// --- golden files ---

#define GOLDEN "tests/golden/memory-1.1"
enum { GOLDEN_FILES = 3, GOLDEN_BYTES = 3 * CHUNK_BYTES };

// Of memory of 3 chunks: text; in file 1 two pages of chunk 0 are new, in file 2 one of them again and
// all of chunk 1; chunk 2 was never written.
static void golden_page(struct gmem *m, unsigned page, unsigned turn)
{
	uint8_t *p = m->region[0].hva + page * PAGE;
	for (unsigned i = 0; i < PAGE; i += 16)
		snprintf((char *)p + i, 16, "%u of turn %u", page, turn);
}

static void golden_turn(struct gmem *m, unsigned turn, uint64_t changed)
{
	for (unsigned i = 0; i < GOLDEN_BYTES / PAGE; i++)
		if (changed >> i & 1)
			golden_page(m, i, turn);
}

static const uint64_t golden_changed[GOLDEN_FILES] = { 0xffffffff, 0x4002, 0xffff0002 };

static void golden_memory(struct gmem *m)
{
	*m = (struct gmem){ 0 };
	assert_int_equal(gmem_add(m, 0, GOLDEN_BYTES), 0);
	assert_int_equal(gmem_map(m, -1, NULL), 0);
}

static int make_golden(const char *folder)
{
	struct gmem m;
	uint64_t bytes;
	char path[256];
	int r = 0;
	golden_memory(&m);
	for (unsigned i = 0; !r && i < GOLDEN_FILES; i++) {
		snprintf(path, sizeof path, "%s/%u", folder, i);
		MV_FD fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
		golden_turn(&m, i, golden_changed[i]);
		r = i ? chunk_write_changed(fd, &m, &golden_changed[i], false, 1, &bytes, NULL)
		      : chunk_write(fd, &m, false, 1, &bytes, NULL);
	}
	gmem_fini(&m);
	return r;
}

static void golden_files_load(void **state)
{
	struct mv_err err = { 0 };
	struct gmem m;
	struct chain c;
	int fd[GOLDEN_FILES];
	(void)state;
	if (access(GOLDEN, R_OK))
		skip(); // not run from the source folder
	golden_memory(&m);
	for (unsigned n = 0; n < GOLDEN_FILES; n++) {
		char path[64];
		snprintf(path, sizeof path, GOLDEN "/%u", n);
		fd[GOLDEN_FILES - 1 - n] = open(path, O_RDONLY | O_CLOEXEC);
		golden_turn(&m, n, golden_changed[n]);
		if (chain_open(fd + GOLDEN_FILES - 1 - n, n + 1, false, GOLDEN_BYTES, &c, &err))
			fail_msg("%s", err.msg);
		assert_int_equal(c.n_stored, 2);
		for (unsigned i = 0; i < 3; i++) {
			assert_int_equal(chain_read(&c, i, scratch, to), 0);
			assert_memory_equal(to, m.region[0].hva + i * CHUNK_BYTES, CHUNK_BYTES);
		}
		chain_fini(&c);
	}
	for (unsigned n = 0; n < GOLDEN_FILES; n++)
		close(fd[n]);
	gmem_fini(&m);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--make"))
		return make_golden(argv[2]) ? 1 : 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(histories_of_any_length),
		cmocka_unit_test(edges_of_patches),
		cmocka_unit_test(patches_over_zeros),
		cmocka_unit_test(as_many_as_allowed),
		cmocka_unit_test(every_flipped_bit_is_found),
		cmocka_unit_test(files_that_do_not_fit),
		cmocka_unit_test(a_raw_base_that_shrinks),
		cmocka_unit_test(hostile_patches),
		cmocka_unit_test(flattened),
		cmocka_unit_test(flatten_of_a_damaged_chunk),
		cmocka_unit_test(golden_files_load),
	};
	return cmocka_run_group_tests_name("snapshot/chain", tests, NULL, NULL);
}
