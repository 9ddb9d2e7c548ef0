// SPDX-License-Identifier: Apache-2.0
// snapshot/tree.c, and store_gc() of snapshot/store.c.
#include <errno.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "tests/snapshot/t_store.h"

static void note(void *arg, const char *name)
{
	char *text = arg;
	sprintf(text + strlen(text), "%s ", name);
}

// base <- a <- b; base <- c; base <- free, which only remembers it; alone
static void make_tree(struct t_store *t)
{
	struct manifest base, a;
	t_store_make(t, "base", NULL, false);
	base = t->m;
	t_store_make(t, "a", &base, true);
	a = t->m;
	t_store_make(t, "b", &a, true);
	t_store_make(t, "c", &base, true);
	t_store_make(t, "free", &base, false);
	t_store_make(t, "alone", NULL, false);
}

static void children_keep_it(void **state)
{
	struct t_store *t = *state;
	char gone[64] = "";
	make_tree(t);
	assert_int_equal(store_delete_tree(&t->s, "base", false, note, gone, &t->err), -EBUSY);
	assert_message(t->err, "snapshot base: snapshot a can't be restored without it");
	assert_int_equal(store_delete_tree(&t->s, "a", false, note, gone, &t->err), -EBUSY);
	assert_string_equal(gone, "");
	assert_int_equal(t_store_entries(t, "snapshots"), 6);
	assert_int_equal(store_delete_tree(&t->s, "none", false, note, gone, &t->err), -ENOENT);
	assert_int_equal(store_delete_tree(&t->s, "b", false, note, gone, &t->err), 0);
	assert_int_equal(store_delete_tree(&t->s, "a", false, note, gone, &t->err), 0);
	assert_string_equal(gone, "b a ");
}

static void force_takes_them(void **state)
{
	struct t_store *t = *state;
	char gone[64] = "";
	make_tree(t);
	assert_int_equal(store_delete_tree(&t->s, "base", true, note, gone, &t->err), 0);
	assert_string_equal(gone, "b a c base "); // no child ever without its parent
	assert_int_equal(t_store_use(t, "free"), 0);
	assert_int_equal(t_store_use(t, "alone"), 0);
	assert_int_equal(t_store_entries(t, "snapshots"), 2);
	assert_int_equal(t_store_entries(t, "incoming"), 0);
}

static void damaged_ones_do_not_matter(void **state)
{
	struct t_store *t = *state;
	char gone[64] = "";
	make_tree(t);
	assert_int_equal(truncate(t_store_path(t, "snapshots/a/manifest"), 10), 0);
	assert_int_equal(store_delete_tree(&t->s, "c", false, note, gone, &t->err), 0);
	assert_int_equal(store_delete_tree(&t->s, "base", false, note, gone, &t->err), 0);
	assert_int_equal(store_delete_tree(&t->s, "a", false, note, gone, &t->err), 0);
	assert_string_equal(gone, "c base a ");
}

static void parent_links_are_checked(void **state)
{
	struct t_store *t = *state;
	struct mv_err err;
	t_store_make(t, "x", NULL, false);
	struct manifest m = t->m;
	m.needs_parent = true;
	assert_int_equal(manifest_check(&m, &err), -EINVAL);
	strcpy(m.parent_snapshot, "base");
	assert_int_equal(manifest_check(&m, &err), -EINVAL);
	mv_uuid(m.parent_snapshot_id);
	assert_int_equal(manifest_check(&m, &err), -EINVAL);
	assert_message(err, "raw memory file");
	m.file[1].format = MANIFEST_LZ4;
	assert_int_equal(manifest_check(&m, &err), 0);
	strcpy(m.parent_snapshot_id, m.id);
	assert_int_equal(manifest_check(&m, &err), -EINVAL);
	assert_message(err, "its own parent");
	mv_uuid(m.parent_snapshot_id);
	strcpy(m.parent_snapshot, "../base");
	assert_int_equal(manifest_check(&m, &err), -EINVAL);
}

static void count_entry(void *arg, const char *entry, uint64_t bytes)
{
	(void)entry, (void)bytes;
	++*(unsigned *)arg;
}

static void leftovers_but_no_drafts(void **state)
{
	struct t_store *t = *state;
	struct store_draft d, e;
	struct store_gc gc;
	unsigned told = 0;
	assert_int_equal(store_begin(&t->s, "x", &d, &t->err), 0);
	assert_int_equal(store_begin_import(&t->s, "y", &e, &t->err), 0);
	assert_int_equal(mkdir(t_store_path(t, "incoming/draft-1"), 0700), 0);
	int fd = open(t_store_path(t, "incoming/draft-1/memory"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_equal(mv_pwrite_full(fd, "some", 4, 0), 0);
	assert_int_equal(fsync(fd), 0); // it has blocks now
	close(fd);
	assert_int_equal(mkdir(t_store_path(t, "incoming/gone-1"), 0700), 0);
	assert_int_equal(mkdir(t_store_path(t, "incoming/deep"), 0700), 0);
	assert_int_equal(mkdir(t_store_path(t, "incoming/deep/er"), 0700), 0);
	assert_int_equal(store_gc(&t->s, count_entry, &told, &gc, &t->err), 0);
	assert_int_equal(told, 2);
	assert_int_equal(gc.removed, 2);
	assert_int_equal(gc.kept, 1);
	assert_true(gc.freed_bytes > 0 && gc.freed_bytes <= 65536);
	assert_int_equal(t_store_entries(t, "incoming"), 3); // two drafts, and what is not ours
	assert_int_equal(store_gc(&t->s, NULL, NULL, &gc, &t->err), 0);
	assert_int_equal(gc.removed, 0);
	store_abort(&t->s, &d);
	store_abort(&t->s, &e);
	assert_int_equal(t_store_entries(t, "incoming"), 1);
}

#define T(name) cmocka_unit_test_setup_teardown(name, t_store_setup, t_store_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(children_keep_it),         T(force_takes_them),        T(damaged_ones_do_not_matter),
		T(parent_links_are_checked), T(leftovers_but_no_drafts),
	};
	return cmocka_run_group_tests_name("snapshot/tree", tests, NULL, NULL);
}
