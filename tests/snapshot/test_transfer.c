// SPDX-License-Identifier: Apache-2.0
// snapshot/transfer.c: what is exported comes back the same; what was changed, cut or forged
// on its way is refused and leaves nothing.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "microvm/base/bytes.h"
#include "snapshot/format.h"
#include "snapshot/transfer.h"
#include "tests/snapshot/t_store.h"

static int export_to_memory(struct t_store *t, const char *name)
{
	struct store_export *x = NULL;
	int fd = memfd_create("export", MFD_CLOEXEC);
	assert_true(fd >= 0);
	if (store_export_open(&t->s, name, &x, &t->err) || store_export_write(x, fd, &t->err))
		fail_msg("%s", t->err.msg);
	store_export_free(x);
	return fd;
}

static int import_from(struct t_store *t, int fd, const char *name)
{
	struct store_draft d;
	struct manifest *m = calloc(1, sizeof *m);
	assert_non_null(m);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	t->err = (struct mv_err){ 0 };
	int r = store_begin_import(&t->s, name, &d, &t->err);
	if (!r) {
		r = store_import_read(&d, fd, m, &t->err);
		if (r)
			store_abort(&t->s, &d);
		else
			r = store_commit_import(&t->s, &d, m, &t->err);
	}
	assert_int_equal(t->err.code, -r);
	if (r)
		assert_int_equal(t_store_entries(t, "incoming"), 0);
	else
		t->m = *m;
	free(m);
	return r;
}

static void must_refuse(struct t_store *t, int fd, const char *why)
{
	assert_int_equal(import_from(t, fd, "y"), -EINVAL);
	assert_message(t->err, why);
	assert_int_equal(t_store_use(t, "y"), -ENOENT);
}

static off_t size_of(int fd)
{
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	return st.st_size;
}

static void there_and_back(void **state)
{
	struct t_store *t = *state;
	struct stat st;
	t_store_make(t, "x", NULL, false);
	struct manifest was = t->m;
	int fd = export_to_memory(t, "x");
	assert_true(size_of(fd) < 64 << 10); // holes are not sent
	assert_int_equal(import_from(t, fd, "y"), 0);
	assert_int_equal(t_store_use(t, "y"), 0);
	assert_string_not_equal(t->m.id, was.id); // x has it
	assert_int_equal(t->m.n_files, was.n_files);
	for (unsigned i = 0; i < was.n_files; i++)
		assert_int_equal(t->m.file[i].xxh3, was.file[i].xxh3);
	assert_int_equal(stat(t_store_path(t, "snapshots/y/memory"), &st), 0);
	assert_true(st.st_size == T_MEM_MIB << 20 && st.st_blocks * 512 < 64 << 10); // still sparse
	assert_int_equal(st.st_mode & 0777, 0400);
	assert_int_equal(import_from(t, fd, "y"), -EEXIST);
	assert_int_equal(import_from(t, fd, "../y"), -EINVAL);
	// Where the original is not, it keeps its id.
	assert_int_equal(store_delete(&t->s, "x", &t->err), 0);
	assert_int_equal(import_from(t, fd, "z"), 0);
	assert_string_equal(t->m.id, was.id);
	close(fd);
}

static void damage_on_the_way(void **state)
{
	struct t_store *t = *state;
	t_store_make(t, "x", NULL, false);
	int fd = export_to_memory(t, "x");
	off_t size = size_of(fd);
	uint8_t *bytes = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(bytes, MAP_FAILED);
	for (off_t at = 0; at < size; at += at < 2048 ? 1 : 37) {
		bytes[at] ^= (uint8_t)(1u << (at & 7));
		assert_int_equal(import_from(t, fd, "y"), -EINVAL);
		bytes[at] ^= (uint8_t)(1u << (at & 7));
	}
	munmap(bytes, (size_t)size);
	assert_int_equal(mv_pwrite_full(fd, "x", 1, (uint64_t)size), 0);
	must_refuse(t, fd, "bytes behind");
	for (off_t at = size - 1; at > 0; at -= at > size - 100 || at < 100 ? 1 : 97) {
		assert_int_equal(ftruncate(fd, at), 0);
		assert_int_equal(import_from(t, fd, "y"), -EINVAL);
	}
	assert_int_equal(ftruncate(fd, 0), 0);
	must_refuse(t, fd, "not an exported snapshot");
	close(fd);
}

static void damaged_at_home(void **state)
{
	struct t_store *t = *state;
	t_store_make(t, "x", NULL, false);
	chmod(t_store_path(t, "snapshots/x/memory"), 0600);
	int memory = open(t_store_path(t, "snapshots/x/memory"), O_RDWR | O_CLOEXEC);
	assert_int_equal(mv_pwrite_full(memory, "G", 1, 1 << 20), 0);
	int fd = export_to_memory(t, "x");
	must_refuse(t, fd, "memory: checksum wrong");
	close(fd);
	assert_int_equal(ftruncate(memory, 1 << 20), 0);
	close(memory);
	struct store_export *x = NULL;
	assert_int_equal(store_export_open(&t->s, "x", &x, &t->err), -EINVAL);
	assert_null(x);
	assert_int_equal(store_export_open(&t->s, "none", &x, &t->err), -ENOENT);
}

// --- streams with right checksums and wrong contents ---

struct forged {
	int fd;
	uint64_t at;
};

static void add_record(struct forged *g, uint32_t kind, uint32_t file, uint64_t offset, const void *bytes,
		       size_t len)
{
	struct {
		le32_t kind, file;
		le64_t offset, len, xxh3;
	} h = { le32_make(kind), le32_make(file), le64_make(offset), le64_make(len), le64_make(0) };
	h.xxh3 = le64_make(snap_xxh3_record(&h, 24, bytes, len));
	assert_int_equal(mv_pwrite_full(g->fd, &h, sizeof h, g->at), 0);
	assert_int_equal(mv_pwrite_full(g->fd, bytes, len, g->at + sizeof h), 0);
	g->at += sizeof h + len;
}

static struct forged begin_forged(unsigned major)
{
	struct forged g = { .fd = memfd_create("forged", MFD_CLOEXEC), .at = 24 };
	struct {
		char magic[8];
		le16_t major, minor;
		le32_t zero;
		le64_t xxh3;
	} h = { .major = le16_make((uint16_t)major) };
	memcpy(h.magic, TRANSFER_MAGIC, 8);
	h.xxh3 = le64_make(snap_xxh3_record(&h, 16, "", 0));
	assert_int_equal(mv_pwrite_full(g.fd, &h, sizeof h, 0), 0);
	return g;
}

static void add_manifest(struct t_store *t, struct forged *g)
{
	int fd = open(t_store_path(t, "snapshots/x/manifest"), O_RDONLY | O_CLOEXEC);
	uint8_t bytes[65536];
	ssize_t n = read(fd, bytes, sizeof bytes);
	assert_true(n > 0 && n < (ssize_t)sizeof bytes);
	add_record(g, 1, 0, 0, bytes, (size_t)n);
	close(fd);
}

static void forged(void **state)
{
	enum { MANIFEST = 1, DATA, END };
	static const struct {
		struct {
			uint32_t kind, file;
			uint64_t offset, len;
		} r[3];
		const char *why;
	} cases[] = {
		{ { { DATA, 0, 0, 1 } }, "does not begin with a manifest" },
		{ { { MANIFEST, 0, 0, 0 }, { MANIFEST, 0, 0, 0 } }, "out of place" },
		{ { { MANIFEST, 0, 0, 0 }, { DATA, 2, 0, 1 } }, "out of place" }, // no such file
		{ { { MANIFEST, 0, 0, 0 }, { DATA, 1, 0, 1 }, { DATA, 0, 0, 1 } }, "out of place" },
		{ { { MANIFEST, 0, 0, 0 }, { DATA, 1, 8, 1 }, { DATA, 1, 0, 1 } },
		  "outside of the file" }, // backwards
		{ { { MANIFEST, 0, 0, 0 }, { DATA, 1, (T_MEM_MIB << 20) - 1, 2 } }, "outside of the file" },
		{ { { MANIFEST, 0, 0, 0 }, { DATA, 1, UINT64_MAX, 1 } }, "outside of the file" },
		{ { { MANIFEST, 0, 0, 0 }, { END, 0, 7, 0 } }, "out of place" },       // wrong count
		{ { { MANIFEST, 0, 0, 0 }, { DATA, 0, 0, 300 << 10 } }, "malformed" }, // too long
		{ { { MANIFEST, 0, 0, 0 }, { 9, 0, 0, 0 } }, "malformed" },
		{ { { MANIFEST, 0, 0, 0 }, { END, 0, 1, 0 } }, "state: " }, // files of zeros
		{ { { 0, 0, 0, 0 } }, "cut off" },
	};
	struct t_store *t = *state;
	uint8_t *zeros = calloc(1, 300 << 10);
	t_store_make(t, "x", NULL, false);
	for (size_t i = 0; i < MV_ARRAY_LEN(cases); i++) {
		struct forged g = begin_forged(SNAP_FORMAT_MAJOR);
		for (unsigned k = 0; k < 3 && cases[i].r[k].kind; k++)
			if (cases[i].r[k].kind == MANIFEST)
				add_manifest(t, &g);
			else
				add_record(&g, cases[i].r[k].kind, cases[i].r[k].file, cases[i].r[k].offset,
					   zeros, cases[i].r[k].len);
		assert_int_equal(import_from(t, g.fd, "y"), -EINVAL);
		if (!strstr(t->err.msg, cases[i].why))
			fail_msg("case %zu: %s, not %s", i, t->err.msg, cases[i].why);
		close(g.fd);
	}
	struct forged g = begin_forged(SNAP_FORMAT_MAJOR + 1);
	must_refuse(t, g.fd, "made by a newer thaw");
	close(g.fd);
	free(zeros);
}

static void nobody_reads(void **state)
{
	struct t_store *t = *state;
	struct store_export *x = NULL;
	int fds[2];
	t_store_make(t, "x", NULL, false);
	assert_int_equal(pipe(fds), 0);
	close(fds[0]);
	assert_int_equal(store_export_open(&t->s, "x", &x, &t->err), 0);
	assert_int_equal(store_delete(&t->s, "x", &t->err), 0); // does not disturb it
	assert_int_equal(store_export_write(x, fds[1], &t->err), -EPIPE);
	int fd = memfd_create("export", MFD_CLOEXEC);
	assert_int_equal(store_export_write(x, fd, &t->err), 0);
	assert_int_equal(import_from(t, fd, "x"), 0);
	store_export_free(x);
	close(fd);
	close(fds[1]);
}

static void needs_its_parent(void **state)
{
	struct t_store *t = *state;
	t_store_make(t, "base", NULL, false);
	struct manifest base = t->m;
	t_store_make(t, "child", &base, true);
	int fd = export_to_memory(t, "child"), base_fd = export_to_memory(t, "base");
	assert_int_equal(store_delete(&t->s, "child", &t->err), 0);
	assert_int_equal(store_delete(&t->s, "base", &t->err), 0);
	assert_int_equal(import_from(t, fd, "child"), -ENOENT);
	assert_message(t->err, "needs its parent snapshot base");
	assert_int_equal(import_from(t, base_fd, "other-name"), 0); // known by its id
	assert_int_equal(import_from(t, fd, "child"), 0);
	close(fd);
	close(base_fd);
}

#define T(name) cmocka_unit_test_setup_teardown(name, t_store_setup, t_store_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(there_and_back), T(damage_on_the_way), T(damaged_at_home),
		T(forged),         T(nobody_reads),      T(needs_its_parent),
	};
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("snapshot/transfer", tests, NULL, NULL);
}
