// SPDX-License-Identifier: Apache-2.0
#include "tests/snapshot/t_store.h"

#include "snapshot/chunk.h"
#include "snapshot/format.h"

int t_store_setup(void **state)
{
	struct t_store *t = calloc(1, sizeof *t);
	assert_non_null(t);
	t->fds = t_count_fds();
	t_tmpdir(t->dir);
	*state = t;
	return store_open(&t->s, t->dir, &t->err);
}

int t_store_teardown(void **state)
{
	struct t_store *t = *state;
	store_close(&t->s);
	t_remove_tree(t->dir);
	bool leaked = t_count_fds() != t->fds;
	free(t);
	return leaked;
}

// Page 3 is new, and holds the name.
static void write_changed(int fd, const char *name)
{
	static uint64_t changed[(T_MEM_MIB << 20) / 4096 / 64] = { 1u << 3 };
	struct gmem mem = { 0 };
	uint64_t bytes;
	assert_int_equal(gmem_add(&mem, 0, T_MEM_MIB << 20), 0);
	assert_int_equal(gmem_map(&mem, -1, NULL), 0);
	strcpy((char *)mem.region[0].hva + 3 * 4096, name);
	assert_int_equal(chunk_write_changed(fd, &mem, changed, false, 1, &bytes, NULL), 0);
	gmem_fini(&mem);
}

void t_store_make(struct t_store *t, const char *name, const struct manifest *parent, bool needs_parent)
{
	struct store_draft d;
	struct manifest m = { .created_unix_ns = 1, .arch = MANIFEST_X86_64, .needs_parent = needs_parent };
	MV_BUF b = { 0 };

	strcpy(m.parent, "vm1");
	strcpy(m.thaw_version, "0.1.0");
	mv_uuid(m.id);
	strcpy(m.cfg.name, "vm1");
	strcpy(m.cfg.kernel, "/boot/vmlinux");
	m.cfg.vcpus = 1;
	m.cfg.mem_mib = T_MEM_MIB;
	if (parent) {
		strcpy(m.parent_snapshot, parent->name);
		strcpy(m.parent_snapshot_id, parent->id);
	}
	if (store_begin(&t->s, name, &d, &t->err))
		fail_msg("%s", t->err.msg);
	snap_section_append(&b, 1, 0, "vcpu", 4);
	assert_int_equal(snap_container_write(d.state_fd, SNAP_MAGIC_STATE, b.p, b.len, NULL), 0);
	m.file[1].format = needs_parent ? MANIFEST_LZ4 : MANIFEST_RAW;
	if (needs_parent) {
		write_changed(d.memory_fd, name);
	} else {
		assert_int_equal(ftruncate(d.memory_fd, T_MEM_MIB << 20), 0);
		assert_int_equal(mv_pwrite_full(d.memory_fd, "guest memory", 12, 1 << 20), 0);
	}
	if (store_commit(&t->s, &d, &m, &t->err))
		fail_msg("%s", t->err.msg);
	t->m = m;
}

int t_store_use(struct t_store *t, const char *name)
{
	struct manifest *m = malloc(sizeof *m);
	int state_fd = -1, memory_fd = -1;
	assert_non_null(m);
	int r = store_show(&t->s, name, m, &t->err);
	if (!r)
		r = store_files(&t->s, m, true, &state_fd, &memory_fd, &t->err);
	mv_close(&state_fd);
	mv_close(&memory_fd);
	free(m);
	return r;
}

char *t_store_path(const struct t_store *t, const char *below)
{
	static char path[256];
	snprintf(path, sizeof path, "%s/%s", t->dir, below);
	return path;
}

unsigned t_store_entries(const struct t_store *t, const char *below)
{
	DIR *d = opendir(t_store_path(t, below));
	unsigned n = 0;
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}
