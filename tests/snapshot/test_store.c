// SPDX-License-Identifier: Apache-2.0
// fsync and renameat2 are defined here, in front of the C library's: the Nth call of
// either can end the process (a crash at that step) or fail.
#include "tests/snapshot/t_store.h"

#include <errno.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "snapshot/format.h"

// --- fault injection ---

static int calls_left = -1; // -1: no fault; at 0 the fault happens
static bool fault_is_crash;

static bool fault_now(void)
{
	if (calls_left < 0 || calls_left-- > 0)
		return false;
	if (fault_is_crash)
		_exit(42);
	errno = EIO;
	return true;
}

int fsync(int fd) { return fault_now() ? -1 : (int)syscall(SYS_fsync, fd); }

int renameat2(int old_dir, const char *old, int new_dir, const char *new, unsigned flags)
{
	return fault_now() ? -1 : (int)syscall(SYS_renameat2, old_dir, old, new_dir, new, flags);
}

static void *zalloc(size_t n)
{
	void *p = calloc(1, n);
	assert_non_null(p);
	return p;
}

static int setup(void **state)
{
	calls_left = -1;
	return t_store_setup(state);
}

static int teardown(void **state)
{
	calls_left = -1;
	return t_store_teardown(state);
}

static void must_refuse(struct t_store *f, const char *name, const char *why)
{
	assert_int_equal(t_store_use(f, name), -EINVAL);
	assert_message(f->err, name);
	assert_message(f->err, why);
}

// --- tests ---

static void publish_show_use_delete(void **state)
{
	struct t_store *f = *state;
	struct manifest *m = zalloc(sizeof *m);
	t_store_must_make(f, "a.b-C_1");
	assert_int_equal(t_store_entries(f, "incoming"), 0);
	assert_int_equal(t_store_entries(f, "snapshots"), 1);
	assert_int_equal(store_show(&f->s, "a.b-C_1", m, &f->err), 0);
	assert_string_equal(m->name, "a.b-C_1");
	assert_string_equal(m->cfg.drive[0].path, "/disk");
	assert_memory_equal(&m->cfg, &f->m.cfg, sizeof m->cfg);
	assert_int_equal(m->n_files, 2);
	const struct manifest_file *memory = manifest_file_find(m, "memory");
	assert_int_equal(memory->size_bytes, T_MEM_MIB << 20);
	assert_true(memory->data_bytes >= 4096 && memory->data_bytes < 1 << 20);
	assert_null(manifest_file_find(m, "disk"));
	assert_int_equal(t_store_use(f, "a.b-C_1"), 0);

	int state_fd, memory_fd;
	char text[12];
	assert_int_equal(store_files(&f->s, m, false, &state_fd, &memory_fd, &f->err), 0);
	assert_int_equal(store_delete(&f->s, "a.b-C_1", &f->err), 0);
	assert_int_equal(pread(memory_fd, text, 12, 1 << 20), 12); // still good for who has it open
	assert_memory_equal(text, "guest memory", 12);
	close(state_fd);
	close(memory_fd);
	assert_int_equal(t_store_entries(f, "incoming") + t_store_entries(f, "snapshots"), 0);
	assert_int_equal(t_store_use(f, "a.b-C_1"), -ENOENT);
	assert_int_equal(store_delete(&f->s, "a.b-C_1", &f->err), -ENOENT);
	free(m);
}

#define A16 "aaaaaaaaaaaaaaaa"
#define A64 A16 A16 A16 A16 // as long as a name may be

static void names(void **state)
{
	static const char *const bad[] = { "",        ".",  "..",  "../x", "a/b",      "/etc",
					   ".hidden", "-x", "a b", "a\n",  "\xc3\xa4", A64 "a" };
	struct t_store *f = *state;
	struct store_draft d;
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++) {
		assert_int_equal(store_begin(&f->s, bad[i], &d, &f->err), -EINVAL);
		assert_message(f->err, "a name is 1 to 64");
		assert_int_equal(store_show(&f->s, bad[i], &f->m, &f->err), -EINVAL);
		assert_int_equal(store_delete(&f->s, bad[i], &f->err), -EINVAL);
	}
	assert_int_equal(t_store_entries(f, "incoming"), 0);
}

static void name_taken(void **state)
{
	struct t_store *f = *state;
	struct store_draft d1, d2;
	assert_int_equal(t_store_begin(f, "x", &d1), 0);
	assert_int_equal(t_store_begin(f, "x", &d2), 0); // nobody has it yet
	assert_int_equal(store_commit(&f->s, &d1, &f->m, &f->err), 0);
	t_store_manifest(&f->m);
	assert_int_equal(store_commit(&f->s, &d2, &f->m, &f->err), -EEXIST);
	assert_message(f->err, "snapshot x: there is one of that name already");
	assert_int_equal(t_store_publish(f, "x"), -EEXIST);
	assert_int_equal(t_store_entries(f, "incoming"), 0);
	assert_int_equal(t_store_use(f, "x"), 0);
}

static void abort_leaves_nothing(void **state)
{
	struct t_store *f = *state;
	struct store_draft d;
	assert_int_equal(t_store_begin(f, "x", &d), 0);
	assert_int_equal(t_store_entries(f, "incoming"), 1);
	store_abort(&f->s, &d);
	store_abort(&f->s, &d);
	assert_int_equal(t_store_entries(f, "incoming") + t_store_entries(f, "snapshots"), 0);
	t_store_must_make(f, "x");
}

static void bad_writers(void **state)
{
	struct t_store *f = *state;
	struct store_draft d;

	assert_int_equal(t_store_begin(f, "x", &d), 0); // memory of the wrong size
	assert_int_equal(ftruncate(d.memory_fd, (T_MEM_MIB << 20) - 1), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "memory: 4194303 bytes were written, it should be 4194304");

	assert_int_equal(t_store_begin(f, "x", &d), 0); // nothing in state
	assert_int_equal(ftruncate(d.state_fd, 0), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "state: too short");

	assert_int_equal(t_store_begin(f, "x", &d), 0); // a good container with bad sections
	assert_int_equal(ftruncate(d.state_fd, 0), 0);
	assert_int_equal(snap_container_write(d.state_fd, SNAP_MAGIC_STATE, "12345", 5, NULL), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "state: section at byte 0: cut off");

	assert_int_equal(t_store_begin(f, "x", &d), 0); // a huge state
	assert_int_equal(ftruncate(d.state_fd, 1LL << 40), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "too many at its end");

	assert_int_equal(t_store_begin(f, "x", &d), 0); // a manifest that could not be loaded again
	f->m.arch = 99;
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "arch");
	assert_int_equal(t_store_entries(f, "incoming") + t_store_entries(f, "snapshots"), 0);
}

// A VM process that keeps its descriptor could change the files after they were hashed.
static void writer_must_be_gone(void **state)
{
	struct t_store *f = *state;
	struct store_draft d;
	assert_int_equal(t_store_begin(f, "x", &d), 0);
	int kept = dup(d.memory_fd);
	int r = store_commit(&f->s, &d, &f->m, &f->err);
	close(kept);
	if (!r) {
		print_message("# SKIP this file system has no leases\n");
		skip();
	}
	assert_int_equal(r, -EBUSY);
	assert_message(f->err, "still has it open for writing");

	assert_int_equal(t_store_begin(f, "x", &d), 0); // closed a little later: waited for
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		usleep(50000);
		_exit(0);
	}
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), 0);
	waitpid(pid, NULL, 0);
}

static void one_daemon_per_root(void **state)
{
	struct t_store *f = *state;
	struct store other;
	assert_int_equal(store_open(&other, f->dir, &f->err), -EBUSY);
	assert_message(f->err, "another daemon uses it");
	store_close(&other);
	store_close(&f->s);
	assert_int_equal(store_open(&f->s, f->dir, &f->err), 0);
}

// A daemon that is killed while it starts a process: that one has all its descriptors until its exec, which
// is late here. The next daemon has the store at once, and what the killed one was making is gone.
static void killed_while_it_starts_a_process(void **state)
{
	struct t_store *f = *state;
	struct store_draft d;
	struct store other;
	int up[2], stay[2];
	char c;
	assert_true(!pipe(up) && !pipe(stay));
	store_close(&f->s);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		close(stay[1]);
		if (store_open(&f->s, f->dir, &f->err) || t_store_begin(f, "x", &d))
			_exit(1);
		if (fork()) { // the daemon
			pause();
			_exit(1);
		}
		c = write(up[1], "u", 1) != 1;
		_exit(read(stay[0], &c, 1) != 0); // ends with the test, if not before
	}
	close(up[1]);
	assert_int_equal(read(up[0], &c, 1), 1);
	assert_int_equal(store_open(&other, f->dir, &f->err), -EBUSY);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(store_open(&f->s, f->dir, &f->err), 0);
	assert_int_equal(t_store_entries(f, "incoming"), 0);
	close(up[0]);
	close(stay[0]);
	close(stay[1]);
}

static void bad_roots(void **state)
{
	struct t_store *f = *state;
	struct store s;
	assert_int_equal(store_open(&s, "/nonexistent/store", &f->err), -ENOENT);
	assert_message(f->err, "store /nonexistent/store: cannot make the folder");
	assert_int_equal(store_open(&s, "/dev/null", &f->err), -ENOTDIR);
	assert_int_equal(mkdir(t_store_path(f, "open"), 0700), 0);
	assert_int_equal(chmod(t_store_path(f, "open"), 0777), 0);
	assert_int_equal(store_open(&s, t_store_path(f, "open"), &f->err), -EPERM);
	assert_message(f->err, "writable by nobody else");
	assert_int_equal(mkdir(t_store_path(f, "linked"), 0700), 0);
	assert_int_equal(symlink("/tmp", t_store_path(f, "linked/snapshots")), 0);
	assert_true(store_open(&s, t_store_path(f, "linked"), &f->err) < 0);
	assert_message(f->err, "cannot open the folder snapshots");
}

// What begin, commit and delete do until the Nth fsync or rename ends the process.
static bool crash_at(struct t_store *f, int nth, bool delete)
{
	int status;
	store_close(&f->s); // the child takes the lock
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct t_store *c = zalloc(sizeof *c);
		memcpy(c->dir, f->dir, sizeof c->dir);
		if (store_open(&c->s, c->dir, &c->err))
			_exit(1);
		fault_is_crash = true;
		calls_left = nth;
		_exit(delete ? store_delete(&c->s, "x", &c->err) : t_store_publish(c, "x"));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 42 || WEXITSTATUS(status) == 0));
	assert_int_equal(store_open(&f->s, f->dir, &f->err), 0);
	return WEXITSTATUS(status) == 42;
}

static void crash_at_each_step(void **state)
{
	struct t_store *f = *state;
	int nth = 0, published = 0;
	for (; crash_at(f, nth, false); nth++) {
		assert_int_equal(t_store_entries(f, "incoming"), 0);
		int r = t_store_use(f, "x");
		assert_true(r == 0 || r == -ENOENT); // whole or not at all
		if (!r) {
			published++;
			assert_int_equal(store_delete(&f->s, "x", &f->err), 0);
		}
		assert_int_equal(t_store_entries(f, "snapshots"), 0);
	}
	assert_int_equal(nth, 7); // state, memory, manifest, folder, rename, two parents
	assert_int_equal(published, 2);

	assert_int_equal(t_store_use(f, "x"), 0);
	assert_true(crash_at(f, 0, true)); // before the rename
	assert_int_equal(t_store_use(f, "x"), 0);
	assert_true(crash_at(f, 1, true)); // after it
	assert_int_equal(t_store_use(f, "x"), -ENOENT);
	assert_int_equal(t_store_entries(f, "incoming"), 0);
}

static void failure_at_each_step(void **state)
{
	struct t_store *f = *state;
	fault_is_crash = false;
	for (int nth = 0; nth < 7; nth++) {
		calls_left = nth;
		assert_int_equal(t_store_publish(f, "x"), -EIO);
		calls_left = -1;
		assert_message(f->err, "snapshot x: ");
		assert_int_equal(t_store_entries(f, "incoming") + t_store_entries(f, "snapshots"), 0);
	}
}

static void leftovers(void **state)
{
	struct t_store *f = *state;
	char below[64];
	store_close(&f->s);
	for (int i = 0; i < 50; i++) { // half-made, half-deleted, stray files
		snprintf(below, sizeof below, "incoming/%s-%d", i & 1 ? "draft" : "gone", i);
		assert_int_equal(mkdir(t_store_path(f, below), 0700), 0);
		snprintf(below, sizeof below, "incoming/%s-%d/memory", i & 1 ? "draft" : "gone", i);
		close(open(t_store_path(f, below), O_CREAT | O_WRONLY, 0400));
		snprintf(below, sizeof below, "incoming/stray%d", i);
		close(open(t_store_path(f, below), O_CREAT | O_WRONLY, 0400));
	}
	assert_int_equal(mkdir(t_store_path(f, "keep"), 0700), 0);
	close(open(t_store_path(f, "keep/me"), O_CREAT | O_WRONLY, 0600));
	assert_int_equal(symlink("../keep", t_store_path(f, "incoming/link")), 0);
	assert_int_equal(store_open(&f->s, f->dir, &f->err), 0);
	assert_int_equal(t_store_entries(f, "incoming"), 0);
	assert_int_equal(t_store_entries(f, "keep"), 1);
}

static void full_file_system(void **state)
{
	struct t_store *f = *state;
	struct store_draft d;
	store_close(&f->s);
	if (mount("none", f->dir, "tmpfs", 0, "size=64k,nr_inodes=6,mode=700")) {
		print_message("# SKIP mounting a small tmpfs: %s\n", strerror(errno));
		skip();
	}
	// Inodes: the root, lock, snapshots, incoming, the draft's folder, state; not memory.
	int opened = store_open(&f->s, f->dir, &f->err);
	int begun = opened ? 0 : store_begin(&f->s, "x", &d, &f->err);
	unsigned left = t_store_entries(f, "incoming");
	mount("none", f->dir, "tmpfs", MS_REMOUNT, "size=16k,nr_inodes=100");
	int begun2 = opened ? 0 : store_begin(&f->s, "x", &d, &f->err), committed = 0;
	if (!begun2) {
		t_store_write_state(d.state_fd);
		committed = ftruncate(d.memory_fd, T_MEM_MIB << 20);
		mv_pwrite_full(d.memory_fd, f->dir, 64, 0);
		mv_pwrite_full(d.memory_fd, f->dir, 64, 8192);
		mv_pwrite_full(d.memory_fd, f->dir, 64, 16384); // full now
		t_store_manifest(&f->m);
		committed = store_commit(&f->s, &d, &f->m, &f->err);
	}
	unsigned left2 = t_store_entries(f, "incoming") + t_store_entries(f, "snapshots");
	store_close(&f->s);
	umount(f->dir);
	assert_int_equal(opened, 0);
	assert_int_equal(begun, -ENOSPC);
	assert_int_equal(left, 0);
	assert_int_equal(begun2, 0);
	assert_int_equal(committed, -ENOSPC);
	assert_message(f->err, "snapshot x: ");
	assert_int_equal(left2, 0);
}

// A layered drive's files: linked, listed, hashed, shared, and gone only with the last link.
static int make_layered(struct t_store *f, const char *name, unsigned n)
{
	struct store_draft d;
	assert_int_equal(t_store_begin(f, name, &d), 0);
	f->m.cfg.drive[0].layer = VMCFG_LAYER_EPHEMERAL;
	for (unsigned i = 0; i < n; i++) {
		char from[16], to[32];
		snprintf(from, sizeof from, "%u", i);
		manifest_layer_name(to, 0, i);
		assert_int_equal(store_link(&d, f->s.root_fd, from, to, &f->err), 0);
	}
	return store_commit(&f->s, &d, &f->m, &f->err);
}

static void layers(void **state)
{
	struct t_store *f = *state;
	for (unsigned i = 0; i < 2; i++) {
		char name[16];
		snprintf(name, sizeof name, "%u", i);
		int fd = openat(f->s.root_fd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		assert_int_equal(write(fd, "layer", 5), 5);
		close(fd);
	}
	assert_int_equal(make_layered(f, "none", 0), -EINVAL);
	assert_message(f->err, "layers do not fit");
	assert_int_equal(t_store_entries(f, "incoming"), 0);
	int fd = openat(f->s.root_fd, "1", O_RDWR | O_CLOEXEC);
	assert_int_equal(make_layered(f, "open", 2), -EBUSY); // somebody can write to it
	assert_message(f->err, "layer-0.1");
	close(fd);
	assert_int_equal(make_layered(f, "a", 2), 0);
	assert_int_equal(manifest_layers(&f->m, 0), 2);
	assert_int_equal(manifest_layers(&f->m, 1), 0);
	assert_int_equal(make_layered(f, "b", 1), 0);
	assert_int_equal(t_store_use(f, "a"), 0);
	struct manifest *m = zalloc(sizeof *m);
	assert_int_equal(store_show(&f->s, "a", m, &f->err), 0);
	assert_int_equal(mkdir(t_store_path(f, "vm"), 0700), 0);
	int dir = open(t_store_path(f, "vm"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(store_copy_layers(&f->s, m, 0, dir, &f->err), 0);
	assert_int_equal(t_store_entries(f, "vm"), 2);
	assert_int_equal(store_copy_layers(&f->s, m, 0, dir, &f->err), -EEXIST);
	close(dir);
	assert_int_equal(store_delete(&f->s, "a", &f->err), 0);
	assert_int_equal(t_store_entries(f, "incoming"), 0);
	assert_int_equal(t_store_use(f, "b"), 0);
	assert_int_equal(chmod(t_store_path(f, "snapshots/b/layer-0.0"), 0600), 0);
	fd = t_store_open_rw(f, "snapshots/b/layer-0.0");
	assert_int_equal(pwrite(fd, "X", 1, 2), 1);
	close(fd);
	must_refuse(f, "b", "layer-0.0: checksum wrong");
	assert_int_equal(unlink(t_store_path(f, "snapshots/b/layer-0.0")), 0);
	must_refuse(f, "b", "layer-0.0: missing");
	assert_int_equal(store_delete(&f->s, "b", &f->err), 0);
	free(m);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

static void architectures(void **state)
{
	(void)state;
	assert_string_equal(manifest_arch_name(MANIFEST_X86_64), "x86_64");
	assert_string_equal(manifest_arch_name(MANIFEST_AARCH64), "aarch64");
	assert_string_equal(manifest_arch_name(0), "unknown");
	assert_string_equal(manifest_arch_name(MANIFEST_AARCH64 + 1), "unknown");
	assert_true(manifest_arch_here() == MANIFEST_X86_64 || manifest_arch_here() == MANIFEST_AARCH64);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(publish_show_use_delete),
		T(names),
		T(architectures),
		T(name_taken),
		T(abort_leaves_nothing),
		T(bad_writers),
		T(writer_must_be_gone),
		T(one_daemon_per_root),
		T(killed_while_it_starts_a_process),
		T(bad_roots),
		T(crash_at_each_step),
		T(failure_at_each_step),
		T(leftovers),
		T(full_file_system),
		T(layers),
	};
	return cmocka_run_group_tests_name("snapshot/store", tests, NULL, NULL);
}
