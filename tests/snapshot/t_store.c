// SPDX-License-Identifier: Apache-2.0
#include "tests/snapshot/t_store.h"

#include <errno.h>
#include <sys/stat.h>

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

void t_store_manifest(struct manifest *m)
{
	*m = (struct manifest){ .created_unix_ns = 1, .arch = MANIFEST_X86_64 };
	strcpy(m->parent, "vm1");
	strcpy(m->thaw_version, "0.1.0");
	mv_uuid(m->id);
	strcpy(m->cfg.name, "vm1");
	m->cfg.vcpus = 1;
	m->cfg.mem_mib = T_MEM_MIB;
	strcpy(m->cfg.kernel, "/boot/vmlinux");
	m->cfg.n_drives = 1;
	strcpy(m->cfg.drive[0].id, "root");
	strcpy(m->cfg.drive[0].path, "/disk");
}

void t_store_write_state(int fd)
{
	MV_BUF b = { 0 };
	snap_section_append(&b, 1, 0, "vcpu", 4);
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, b.p, b.len, NULL), 0);
}

void t_store_write_memory(int fd)
{
	assert_int_equal(ftruncate(fd, T_MEM_MIB << 20), 0);
	assert_int_equal(mv_pwrite_full(fd, "guest memory", 12, 1 << 20), 0);
}

int t_store_begin(struct t_store *t, const char *name, struct store_draft *d)
{
	int r = store_begin(&t->s, name, d, &t->err);
	if (!r) {
		t_store_write_state(d->state_fd);
		t_store_write_memory(d->memory_fd);
		t_store_manifest(&t->m);
	}
	return r;
}

int t_store_publish(struct t_store *t, const char *name)
{
	struct store_draft d;
	int r = t_store_begin(t, name, &d);
	return r ? r : store_commit(&t->s, &d, &t->m, &t->err);
}

void t_store_must_make(struct t_store *t, const char *name) { t_store_make(t, name, NULL, false); }

void t_store_make(struct t_store *t, const char *name, const struct manifest *parent, bool needs_parent)
{
	struct store_draft d;
	if (t_store_begin(t, name, &d))
		fail_msg("%s", t->err.msg);
	if (needs_parent) {
		assert_int_equal(ftruncate(d.memory_fd, 0), 0);
		write_changed(d.memory_fd, name);
	}
	t->m.file[1].format = needs_parent ? MANIFEST_LZ4 : MANIFEST_RAW;
	t->m.needs_parent = needs_parent;
	if (parent) {
		strcpy(t->m.parent_snapshot, parent->name);
		strcpy(t->m.parent_snapshot_id, parent->id);
	}
	if (store_commit(&t->s, &d, &t->m, &t->err))
		fail_msg("%s", t->err.msg);
}

int t_store_use(struct t_store *t, const char *name)
{
	struct manifest *m = malloc(sizeof *m);
	int state_fd = -1, memory_fd = -1;
	assert_non_null(m);
	t->err = (struct mv_err){ 0 };
	int r = store_show(&t->s, name, m, &t->err);
	if (!r)
		r = store_files(&t->s, m, true, &state_fd, &memory_fd, &t->err);
	assert_true(r ? state_fd == -1 && memory_fd == -1 : state_fd >= 0 && memory_fd >= 0);
	assert_int_equal(t->err.code, -r);
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

int t_store_open_rw(struct t_store *t, const char *below)
{
	int fd = open(t_store_path(t, below), O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno == EACCES) { // not root: published files are read-only
		chmod(t_store_path(t, below), 0600);
		fd = open(t_store_path(t, below), O_RDWR | O_CLOEXEC);
	}
	assert_true(fd >= 0);
	return fd;
}

void t_store_cut(struct t_store *t, const char *below, off_t size)
{
	int fd = t_store_open_rw(t, below);
	assert_int_equal(ftruncate(fd, size), 0);
	close(fd);
}
