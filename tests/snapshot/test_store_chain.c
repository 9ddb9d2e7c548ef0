// SPDX-License-Identifier: Apache-2.0
// snapshot/store_chain.c and store_flatten.c: parents that are missing, others, or of another size.
#include <errno.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "snapshot/chain.h"
#include "snapshot/memory.h"
#include "snapshot/store_chain.h"
#include "tests/snapshot/t_store.h"

#define BYTES ((uint64_t)T_MEM_MIB << 20)

static unsigned length_of(struct t_store *t, const char *name, int result)
{
	struct manifest *m = malloc(sizeof *m);
	unsigned n = 0;
	assert_non_null(m);
	assert_int_equal(store_show(&t->s, name, m, &t->err), 0);
	assert_int_equal(store_chain_length(&t->s, m, &n, &t->err), result);
	free(m);
	return n;
}

// base <- s1 <- ... <- s<n>, the last one's manifest in t->m.
static void make_chain(struct t_store *t, unsigned n)
{
	char name[16];
	t_store_make(t, "base", NULL, false);
	for (unsigned i = 1; i <= n; i++) {
		struct manifest parent = t->m;
		snprintf(name, sizeof name, "s%u", i);
		t_store_make(t, name, &parent, true);
	}
}

// The guest's page 3, and what the base has at 1 MiB.
static void check_memory(struct t_store *t, const char *name, const char *page3)
{
	static uint8_t scratch[CHAIN_SCRATCH_BYTES], to[CHUNK_BYTES];
	struct manifest m;
	struct store_chain files;
	struct chain c;
	assert_int_equal(store_show(&t->s, name, &m, &t->err), 0);
	if (store_chain_open(&t->s, name, m.id, true, &files, &t->err) ||
	    chain_open(files.fd, files.n, files.raw_base, BYTES, &c, &t->err))
		fail_msg("%s", t->err.msg);
	assert_int_equal(chain_read(&c, 0, scratch, to), 0);
	assert_string_equal((char *)to + 3 * 4096, page3);
	assert_int_equal(chain_read(&c, (1 << 20) / CHUNK_BYTES, scratch, to), 0);
	assert_string_equal((char *)to, "guest memory");
	chain_fini(&c);
	store_chain_close(&files);
	store_chain_close(&files);
}

static void lengths_and_content(void **state)
{
	struct t_store *t = *state;
	make_chain(t, 3);
	assert_int_equal(length_of(t, "base", 0), 1);
	assert_int_equal(length_of(t, "s3", 0), 4);
	check_memory(t, "base", "");
	check_memory(t, "s2", "s2");
	check_memory(t, "s3", "s3");
	assert_int_equal(t_store_use(t, "s3"), 0);
}

static void parents_that_are_not_there(void **state)
{
	struct t_store *t = *state;
	struct store_chain files;
	struct manifest s2;
	make_chain(t, 2);
	s2 = t->m;
	assert_int_equal(store_delete(&t->s, "s1", &t->err), 0);
	length_of(t, "s2", -ENOENT);
	assert_message(t->err, "it needs its parent snapshot s1 (id ");
	assert_int_equal(store_chain_open(&t->s, "s2", s2.id, false, &files, &t->err), -EINVAL);
	assert_message(t->err, "snapshot s2: it needs its parent snapshot s1 (id ");
	assert_int_equal(t_store_use(t, "s2"), -EINVAL);
	t_store_make(t, "s1", NULL, false); // another one of its name
	length_of(t, "s2", -ENOENT);
	assert_message(t->err, "which is not here; the one of that name is another");
	assert_int_equal(store_chain_open(&t->s, "s2", t->m.id, false, &files, &t->err), -EINVAL);
	assert_message(t->err, "another one has that name now");
	assert_int_equal(store_chain_open(&t->s, "none", s2.id, false, &files, &t->err), -ENOENT);
	assert_int_equal(truncate(t_store_path(t, "snapshots/s1/manifest"), 10), 0);
	length_of(t, "s2", -EINVAL);
	assert_message(t->err, "parent snapshot s1: manifest");
}

static void a_parent_of_another_size(void **state)
{
	struct t_store *t = *state;
	struct manifest m;
	make_chain(t, 1);
	m = t->m;
	m.cfg.mem_mib = 2 * T_MEM_MIB;
	unsigned n = 77;
	assert_int_equal(store_chain_length(&t->s, &m, &n, &t->err), -EINVAL);
	assert_message(t->err, "parent snapshot base has 4 MiB of memory, it has 8");
	assert_int_equal(n, 77);
}

static void rewrite_manifest(struct t_store *t, const char *name, const struct manifest *m)
{
	char path[64];
	snprintf(path, sizeof path, "snapshots/%s/manifest", name);
	assert_int_equal(unlink(t_store_path(t, path)), 0);
	int fd = open(t_store_path(t, path), O_CREAT | O_WRONLY | O_CLOEXEC, 0400);
	if (manifest_save(fd, m, &t->err))
		fail_msg("%s", t->err.msg);
	close(fd);
}

static void circles_made_by_hand_end(void **state)
{
	struct t_store *t = *state;
	struct manifest s1, s2;
	struct store_chain files;
	bool changed;
	make_chain(t, 2);
	s2 = t->m;
	assert_int_equal(store_show(&t->s, "s1", &s1, &t->err), 0);
	strcpy(s1.parent_snapshot, "s2");
	strcpy(s1.parent_snapshot_id, s2.id);
	rewrite_manifest(t, "s1", &s1);
	length_of(t, "s2", -E2BIG);
	assert_message(t->err, "more than 1000 snapshots");
	assert_int_equal(store_chain_open(&t->s, "s2", s2.id, false, &files, &t->err), -EINVAL);
	assert_int_equal(store_flatten(&t->s, "s2", NULL, STORE_FORMAT_KEEP, &s2, &changed, &t->err),
			 -EINVAL);
	assert_int_equal(t_store_entries(t, "incoming"), 0);
}

static void a_thousand(void **state)
{
	struct t_store *t = *state;
	struct manifest *m = malloc(sizeof *m);
	char name[16];
	bool changed;
	assert_non_null(m);
	make_chain(t, 200); // of 1,000: by hand, which takes less time
	*m = t->m;
	for (unsigned i = 201; i < CHAIN_MAX; i++) {
		char parent[16], from[48], to[48];
		snprintf(parent, sizeof parent, "s%u", i - 1);
		snprintf(name, sizeof name, "s%u", i);
		snprintf(to, sizeof to, "snapshots/%s", name);
		assert_int_equal(mkdir(t_store_path(t, to), 0700), 0);
		for (unsigned k = 0; k < 2; k++) {
			char old[256];
			snprintf(from, sizeof from, "snapshots/s200/%s", k ? "memory" : "state");
			snprintf(to, sizeof to, "snapshots/%s/%s", name, k ? "memory" : "state");
			strcpy(old, t_store_path(t, from));
			assert_int_equal(link(old, t_store_path(t, to)), 0);
		}
		strcpy(m->parent_snapshot, parent);
		strcpy(m->parent_snapshot_id, m->id);
		mv_uuid(m->id);
		strcpy(m->name, name);
		snprintf(to, sizeof to, "snapshots/%s/manifest", name);
		int fd = open(t_store_path(t, to), O_CREAT | O_WRONLY | O_CLOEXEC, 0400);
		assert_int_equal(manifest_save(fd, m, &t->err), 0);
		close(fd);
	}
	assert_int_equal(length_of(t, "s999", 0), CHAIN_MAX);
	check_memory(t, "s999", "s200");
	t->m = *m;
	struct store_draft d;
	struct manifest child = *m;
	child.n_files = 0;
	strcpy(child.parent_snapshot, "s999");
	strcpy(child.parent_snapshot_id, m->id);
	unsigned n;
	assert_int_equal(store_chain_length(&t->s, &child, &n, &t->err), -E2BIG);
	assert_message(t->err, "flatten one");
	assert_int_equal(store_flatten(&t->s, "s999", NULL, STORE_FORMAT_KEEP, m, &changed, &t->err), 0);
	assert_true(changed);
	assert_int_equal(length_of(t, "s999", 0), 1);
	assert_int_equal(store_chain_length(&t->s, &child, &n, &t->err), 0);
	assert_int_equal(n, 2);
	assert_int_equal(store_begin(&t->s, "x", &d, &t->err), 0);
	store_abort(&t->s, &d);
	free(m);
}

static void flatten_every_way(void **state)
{
	struct t_store *t = *state;
	struct manifest m, was;
	bool changed = false;
	make_chain(t, 2);
	assert_int_equal(store_show(&t->s, "s1", &was, &t->err), 0);
	int before = open(t_store_path(t, "snapshots/s1/memory"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(store_flatten(&t->s, "s1", "copy", SNAP_MEMORY_RAW, &m, &changed, &t->err), 0);
	assert_true(changed && strcmp(m.id, was.id));
	assert_string_equal(m.name, "copy");
	check_memory(t, "copy", "s1");
	assert_int_equal(store_flatten(&t->s, "s1", NULL, STORE_FORMAT_KEEP, &m, &changed, &t->err), 0);
	assert_true(changed && !m.needs_parent);
	assert_string_equal(m.id, was.id);
	assert_int_equal(manifest_file_find(&m, "memory")->format, MANIFEST_LZ4);
	assert_int_equal(m.file[0].xxh3, was.file[0].xxh3);
	assert_int_equal(store_flatten(&t->s, "s1", NULL, STORE_FORMAT_KEEP, &m, &changed, &t->err), 0);
	assert_false(changed);
	assert_int_equal(store_flatten(&t->s, "s1", NULL, SNAP_MEMORY_RAW, &m, &changed, &t->err), 0);
	assert_true(changed);
	assert_int_equal(store_flatten(&t->s, "s1", "copy", STORE_FORMAT_KEEP, &m, &changed, &t->err),
			 -EEXIST);
	assert_int_equal(store_flatten(&t->s, "none", NULL, STORE_FORMAT_KEEP, &m, &changed, &t->err),
			 -ENOENT);
	check_memory(t, "s1", "s1");
	check_memory(t, "s2", "s2");
	assert_int_equal(length_of(t, "s2", 0), 2);
	assert_int_equal(store_delete(&t->s, "base", &t->err), 0);
	assert_int_equal(t_store_use(t, "s2"), 0);
	assert_int_equal(t_store_entries(t, "incoming"), 0);
	char magic[8] = "";
	assert_int_equal(pread(before, magic, 8, 0), 8); // whoever has it open keeps it
	assert_memory_equal(magic, CHUNK_MAGIC, 8);
	close(before);
}

// What is not ours is not removed with the old folder.
static void flatten_leaves_what_is_not_ours(void **state)
{
	struct t_store *t = *state;
	struct manifest m;
	bool changed;
	make_chain(t, 1);
	int fd = open(t_store_path(t, "snapshots/s1/notes"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	close(fd);
	assert_int_equal(store_flatten(&t->s, "s1", NULL, STORE_FORMAT_KEEP, &m, &changed, &t->err),
			 -ENOTEMPTY);
	assert_message(t->err, "notes");
	assert_int_equal(t_store_entries(t, "incoming"), 0);
	assert_int_equal(length_of(t, "s1", 0), 2);
}

#define T(name) cmocka_unit_test_setup_teardown(name, t_store_setup, t_store_teardown)

int main(void)
{
	struct rlimit files;
	if (!getrlimit(RLIMIT_NOFILE, &files)) { // a chain of 1,000 is open at once
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	const struct CMUnitTest tests[] = {
		T(lengths_and_content),
		T(parents_that_are_not_there),
		T(a_parent_of_another_size),
		T(circles_made_by_hand_end),
		T(a_thousand),
		T(flatten_every_way),
		T(flatten_leaves_what_is_not_ours),
	};
	return cmocka_run_group_tests_name("snapshot/store_chain", tests, NULL, NULL);
}
