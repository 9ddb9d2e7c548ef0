// SPDX-License-Identifier: Apache-2.0
// What the store reads may be damaged, forged, foreign or of another version.
#include "tests/snapshot/t_store.h"

#include <errno.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "microvm/base/bytes.h"
#include "snapshot/format.h"

enum { HEADER = 32 };

static void *zalloc(size_t n)
{
	void *p = calloc(1, n);
	assert_non_null(p);
	return p;
}

static void must_refuse(struct t_store *f, const char *name, const char *why)
{
	assert_int_equal(t_store_use(f, name), -EINVAL);
	assert_message(f->err, name);
	assert_message(f->err, why);
}

static void flip(int fd, off_t at)
{
	uint8_t b;
	assert_int_equal(pread(fd, &b, 1, at), 1);
	b ^= 0xff;
	assert_int_equal(pwrite(fd, &b, 1, at), 1);
}

static void every_flipped_byte_is_found(void **state)
{
	static const char *const files[] = { "snapshots/x/manifest", "snapshots/x/state" };
	struct t_store *f = *state;
	t_store_must_make(f, "x");
	for (int k = 0; k < 2; k++) {
		int fd = t_store_open_rw(f, files[k]);
		off_t size = lseek(fd, 0, SEEK_END);
		assert_true(size > HEADER);
		for (off_t at = 0; at < size; at++) {
			flip(fd, at);
			int r = t_store_use(f, "x");
			assert_true(r == -EINVAL || r == -EFBIG);
			assert_message(f->err, k ? "state: " : "manifest: ");
			flip(fd, at);
		}
		close(fd);
	}
	int fd = t_store_open_rw(f, "snapshots/x/memory");
	for (off_t at = 0; at < T_MEM_MIB << 20; at += 262139) {
		flip(fd, at);
		must_refuse(f, "x", "memory: checksum wrong");
		flip(fd, at);
	}
	close(fd);
	assert_int_equal(t_store_use(f, "x"), 0);
}

static void truncation_and_growth(void **state)
{
	static const char *const files[] = { "manifest", "state", "memory" };
	struct t_store *f = *state;
	char below[64];
	t_store_must_make(f, "x");
	for (int k = 0; k < 3; k++) {
		snprintf(below, sizeof below, "snapshots/x/%s", files[k]);
		int fd = t_store_open_rw(f, below);
		off_t size = lseek(fd, 0, SEEK_END);
		uint8_t *copy = zalloc((size_t)size);
		assert_int_equal(pread(fd, copy, (size_t)size, 0), size);
		const off_t sizes[] = { 0, 1, HEADER, size - 1, size + 1 };
		for (size_t i = 0; i < MV_ARRAY_LEN(sizes); i++) {
			assert_int_equal(ftruncate(fd, sizes[i]), 0);
			must_refuse(f, "x", files[k]);
		}
		assert_int_equal(ftruncate(fd, size), 0);
		assert_int_equal(pwrite(fd, copy, (size_t)size, 0), size);
		assert_int_equal(t_store_use(f, "x"), 0);
		free(copy);
		close(fd);
	}
}

// Puts a manifest there with a header and bytes of our choice.
static void forge_manifest(struct t_store *f, unsigned major, unsigned minor, const void *tail,
			   size_t tail_len)
{
	MV_BUF b = { 0 };
	struct {
		char magic[8];
		le16_t major, minor;
		le32_t zero;
		le64_t len;
	} h = { .major = le16_make((uint16_t)major), .minor = le16_make((uint16_t)minor) };
	memcpy(h.magic, SNAP_MAGIC_MANIFEST, 8);
	mv_buf_append(&b, &h, sizeof h);
	mv_state_save(&manifest_table, &f->m, &b);
	mv_buf_append(&b, tail, tail_len);
	h.len = le64_make(b.len - sizeof h);
	memcpy(b.p, &h, sizeof h);
	le64_t hash = le64_make(XXH3_64bits(b.p, b.len));
	int fd = t_store_open_rw(f, "snapshots/x/manifest");
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(mv_pwrite_full(fd, b.p, sizeof h, 0), 0);
	assert_int_equal(mv_pwrite_full(fd, &hash, sizeof hash, sizeof h), 0);
	assert_int_equal(mv_pwrite_full(fd, b.p + sizeof h, b.len - sizeof h, HEADER), 0);
	close(fd);
}

static void other_versions(void **state)
{
	static const uint8_t skippable[] = { 0x01, 0xf0, 0, 0, 2, 0, 0, 0, 'h', 'i' };
	static const uint8_t unknown[] = { 0x01, 0x70, 0, 0, 2, 0, 0, 0, 'h', 'i' };
	struct t_store *f = *state;
	t_store_must_make(f, "x");
	forge_manifest(f, SNAP_FORMAT_MAJOR, SNAP_FORMAT_MINOR, NULL, 0);
	assert_int_equal(t_store_use(f, "x"), 0);
	forge_manifest(f, SNAP_FORMAT_MAJOR, SNAP_FORMAT_MINOR + 1, skippable, sizeof skippable);
	assert_int_equal(t_store_use(f, "x"), 0);
	forge_manifest(f, SNAP_FORMAT_MAJOR, SNAP_FORMAT_MINOR + 1, unknown, sizeof unknown);
	must_refuse(f, "x", "unknown field 28673 (made by a newer version?)");
	forge_manifest(f, SNAP_FORMAT_MAJOR + 1, 0, NULL, 0);
	must_refuse(f, "x", "made by a newer thaw: format 2, this one reads up to 1");
}

// Good containers with contents that must not be believed.
static void forged_contents(void **state)
{
	struct t_store *f = *state;
	t_store_must_make(f, "x");
	const struct manifest good = f->m;

	strcpy(f->m.name, "y");
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "it belongs to a snapshot named y");
	f->m = good;
	strcpy(f->m.name, "../x");
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "not a snapshot's name");
	f->m = good;
	strcpy(f->m.file[1].name, "../../memory");
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "one state and one memory file");
	f->m = good;
	f->m.n_files = 1;
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "one state and one memory file");
	f->m = good;
	f->m.cfg.mem_mib = 8;
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "for a VM of 8 MiB");
	f->m = good;
	f->m.file[0].size_bytes++;
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "the manifest says");
	f->m = good;
	f->m.cfg.vcpus = 33;
	forge_manifest(f, SNAP_FORMAT_MAJOR, 0, NULL, 0);
	must_refuse(f, "x", "33 is not within 1..32");
}

static void foreign_things(void **state)
{
	static const char *const files[] = { "manifest", "state", "memory" };
	struct t_store *f = *state;
	char below[64];

	assert_int_equal(mkdir(t_store_path(f, "snapshots/dir"), 0700), 0);
	must_refuse(f, "dir", "manifest: missing");
	int fd = open(t_store_path(f, "snapshots/file"), O_CREAT | O_WRONLY, 0600);
	close(fd);
	must_refuse(f, "file", "not a folder");
	assert_int_equal(symlink("dir", t_store_path(f, "snapshots/link")), 0);
	must_refuse(f, "link", "not a folder");

	t_store_must_make(f, "x"); // each file in turn a link to itself elsewhere, a FIFO, a folder
	for (int k = 0; k < 3; k++) {
		snprintf(below, sizeof below, "snapshots/x/%s", files[k]);
		char *path = strdup(t_store_path(f, below));
		assert_int_equal(rename(path, t_store_path(f, "aside")), 0);
		must_refuse(f, "x", "missing");
		assert_int_equal(symlink(t_store_path(f, "aside"), path), 0);
		must_refuse(f, "x", "is a symbolic link");
		assert_int_equal(unlink(path), 0);
		assert_int_equal(mkfifo(path, 0600), 0);
		must_refuse(f, "x", "not a regular file");
		assert_int_equal(unlink(path), 0);
		assert_int_equal(mkdir(path, 0700), 0);
		must_refuse(f, "x", "not a regular file");
		assert_int_equal(rmdir(path), 0);
		assert_int_equal(rename(t_store_path(f, "aside"), path), 0);
		free(path);
	}
	assert_int_equal(t_store_use(f, "x"), 0);

	// A folder with something else in it is not removed, one of ours that is damaged is.
	assert_int_equal(mkdir(t_store_path(f, "snapshots/x/mine"), 0700), 0);
	assert_int_equal(store_delete(&f->s, "x", &f->err), -ENOTEMPTY);
	assert_message(f->err, "its folder holds mine as well");
	assert_int_equal(t_store_use(f, "x"), 0);
	assert_int_equal(rmdir(t_store_path(f, "snapshots/x/mine")), 0);
	t_store_cut(f, "snapshots/x/manifest", 3);
	assert_int_equal(store_delete(&f->s, "x", &f->err), 0);
	assert_int_equal(t_store_entries(f, "incoming"), 0);
}

static int collect(void *arg, const char *name, const struct manifest *m, const struct mv_err *err)
{
	char *text = arg;
	sprintf(text + strlen(text), "%s%s ", name, m ? "" : "(bad)");
	assert_true(m ? !err->code && !strcmp(m->name, name) : err->code && err->msg[0]);
	return !strcmp(name, "stop") ? 7 : 0;
}

static void list_in_order(void **state)
{
	struct t_store *f = *state;
	char text[256] = "";
	assert_int_equal(store_list(&f->s, collect, text), 0);
	assert_string_equal(text, "");
	t_store_must_make(f, "b");
	t_store_must_make(f, "a");
	t_store_must_make(f, "c");
	t_store_cut(f, "snapshots/b/manifest", 40);
	assert_int_equal(mkdir(t_store_path(f, "snapshots/\xff\n x"), 0700), 0);
	assert_int_equal(store_list(&f->s, collect, text), 0);
	assert_string_equal(text, "a b(bad) c ???x(bad) ");
	t_store_must_make(f, "stop");
	t_store_must_make(f, "t");
	text[0] = 0;
	assert_int_equal(store_list(&f->s, collect, text), 7);
	assert_string_equal(text, "a b(bad) c stop ");
}

static void random_manifests(void **state)
{
	struct t_store *f = *state;
	uint64_t seed = 3;
	MV_BUF b = { 0 };
	struct manifest *m = zalloc(sizeof *m);
	t_store_must_make(f, "x");
	mv_state_save(&manifest_table, &f->m, &b);
	int fd = t_file(), loaded = 0;
	for (int i = 0; i < 20000; i++) {
		uint8_t *copy = zalloc(b.len);
		memcpy(copy, b.p, b.len);
		t_mutate(copy, b.len, &seed);
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(snap_container_write(fd, SNAP_MAGIC_MANIFEST, copy, b.len, NULL), 0);
		f->err = (struct mv_err){ 0 };
		int r = manifest_load(fd, m, &f->err);
		assert_true(r == 0 || (r < 0 && f->err.msg[0]));
		if (!r) { // then it is one that we could have written
			assert_int_equal(manifest_check(m, &f->err), 0);
			loaded++;
		}
		free(copy);
	}
	assert_true(loaded > 0 && loaded < 20000);
	close(fd);
	free(m);
}

#define T(name) cmocka_unit_test_setup_teardown(name, t_store_setup, t_store_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(every_flipped_byte_is_found),
		T(truncation_and_growth),
		T(other_versions),
		T(forged_contents),
		T(foreign_things),
		T(list_in_order),
		T(random_manifests),
	};
	return cmocka_run_group_tests_name("snapshot/store_read", tests, NULL, NULL);
}
