// SPDX-License-Identifier: Apache-2.0
// fsync and renameat2 are defined here, in front of the C library's: the Nth call of
// either can end the process (a crash at that step) or fail.
#include "tests/t.h"

#include <errno.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "microvm/base/bytes.h"
#include "snapshot/format.h"
#include "snapshot/store.h"

enum { MEM_MIB = 4, HEADER = 32 };

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

// --- a store in a folder of its own ---

struct fixture {
	char dir[64];
	struct store s;
	struct mv_err err;
	struct manifest m; // large: not on the stack
	int fds;
};

static void *zalloc(size_t n)
{
	void *p = calloc(1, n);
	assert_non_null(p);
	return p;
}

static int setup(void **state)
{
	struct fixture *f = zalloc(sizeof *f);
	f->fds = t_count_fds();
	t_tmpdir(f->dir);
	*state = f;
	calls_left = -1;
	return store_open(&f->s, f->dir, &f->err);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	calls_left = -1;
	store_close(&f->s);
	t_remove_tree(f->dir);
	bool leaked = t_count_fds() != f->fds;
	free(f);
	return leaked;
}

static char *path_of(const struct fixture *f, const char *below)
{
	static char path[256];
	snprintf(path, sizeof path, "%s/%s", f->dir, below);
	return path;
}

static unsigned entries(const struct fixture *f, const char *below)
{
	DIR *d = opendir(path_of(f, below));
	unsigned n = 0;
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

static void fill_manifest(struct manifest *m)
{
	*m = (struct manifest){ .created_unix_ns = 1, .arch = MANIFEST_X86_64 };
	strcpy(m->parent, "vm1");
	strcpy(m->thaw_version, "0.1.0");
	mv_uuid(m->id);
	strcpy(m->cfg.name, "vm1");
	m->cfg.vcpus = 1;
	m->cfg.mem_mib = MEM_MIB;
	strcpy(m->cfg.kernel, "/boot/vmlinux");
	m->cfg.n_drives = 1;
	strcpy(m->cfg.drive[0].id, "root");
	strcpy(m->cfg.drive[0].path, "/disk");
}

static void write_state(int fd)
{
	MV_BUF b = { 0 };
	snap_section_append(&b, 1, 0, "vcpu", 4);
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, b.p, b.len, NULL), 0);
}

static void write_memory(int fd)
{
	assert_int_equal(ftruncate(fd, MEM_MIB << 20), 0);
	assert_int_equal(mv_pwrite_full(fd, "guest memory", 12, 1 << 20), 0);
}

static int begin(struct fixture *f, const char *name, struct store_draft *d)
{
	int r = store_begin(&f->s, name, d, &f->err);
	if (!r) {
		write_state(d->state_fd);
		write_memory(d->memory_fd);
		fill_manifest(&f->m);
	}
	return r;
}

static int make(struct fixture *f, const char *name)
{
	struct store_draft d;
	int r = begin(f, name, &d);
	return r ? r : store_commit(&f->s, &d, &f->m, &f->err);
}

static void must_make(struct fixture *f, const char *name)
{
	if (make(f, name))
		fail_msg("%s", f->err.msg);
}

// Loads it completely, as a restore with verification does.
static int use(struct fixture *f, const char *name)
{
	struct manifest *m = zalloc(sizeof *m);
	int state_fd = -1, memory_fd = -1;
	f->err = (struct mv_err){ 0 };
	int r = store_show(&f->s, name, m, &f->err);
	if (!r)
		r = store_files(&f->s, m, true, &state_fd, &memory_fd, &f->err);
	assert_true(r ? state_fd == -1 && memory_fd == -1 : state_fd >= 0 && memory_fd >= 0);
	assert_int_equal(f->err.code, -r);
	mv_close(&state_fd);
	mv_close(&memory_fd);
	free(m);
	return r;
}

static void must_refuse(struct fixture *f, const char *name, const char *why)
{
	assert_int_equal(use(f, name), -EINVAL);
	assert_message(f->err, name);
	assert_message(f->err, why);
}

static int open_rw(struct fixture *f, const char *below)
{
	int fd = open(path_of(f, below), O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno == EACCES) { // not root: published files are read-only
		chmod(path_of(f, below), 0600);
		fd = open(path_of(f, below), O_RDWR | O_CLOEXEC);
	}
	assert_true(fd >= 0);
	return fd;
}

static void cut(struct fixture *f, const char *below, off_t size)
{
	int fd = open_rw(f, below);
	assert_int_equal(ftruncate(fd, size), 0);
	close(fd);
}

static void flip(int fd, off_t at)
{
	uint8_t b;
	assert_int_equal(pread(fd, &b, 1, at), 1);
	b ^= 0xff;
	assert_int_equal(pwrite(fd, &b, 1, at), 1);
}

// --- tests ---

static void publish_show_use_delete(void **state)
{
	struct fixture *f = *state;
	struct manifest *m = zalloc(sizeof *m);
	must_make(f, "a.b-C_1");
	assert_int_equal(entries(f, "incoming"), 0);
	assert_int_equal(entries(f, "snapshots"), 1);
	assert_int_equal(store_show(&f->s, "a.b-C_1", m, &f->err), 0);
	assert_string_equal(m->name, "a.b-C_1");
	assert_string_equal(m->cfg.drive[0].path, "/disk");
	assert_memory_equal(&m->cfg, &f->m.cfg, sizeof m->cfg);
	assert_int_equal(m->n_files, 2);
	const struct manifest_file *memory = manifest_file_find(m, "memory");
	assert_int_equal(memory->size_bytes, MEM_MIB << 20);
	assert_true(memory->data_bytes >= 4096 && memory->data_bytes < 1 << 20);
	assert_null(manifest_file_find(m, "disk"));
	assert_int_equal(use(f, "a.b-C_1"), 0);

	int state_fd, memory_fd;
	char text[12];
	assert_int_equal(store_files(&f->s, m, false, &state_fd, &memory_fd, &f->err), 0);
	assert_int_equal(store_delete(&f->s, "a.b-C_1", &f->err), 0);
	assert_int_equal(pread(memory_fd, text, 12, 1 << 20), 12); // still good for who has it open
	assert_memory_equal(text, "guest memory", 12);
	close(state_fd);
	close(memory_fd);
	assert_int_equal(entries(f, "incoming") + entries(f, "snapshots"), 0);
	assert_int_equal(use(f, "a.b-C_1"), -ENOENT);
	assert_int_equal(store_delete(&f->s, "a.b-C_1", &f->err), -ENOENT);
	free(m);
}

#define A16 "aaaaaaaaaaaaaaaa"
#define A64 A16 A16 A16 A16 // as long as a name may be

static void names(void **state)
{
	static const char *const bad[] = { "",        ".",  "..",  "../x", "a/b",      "/etc",
					   ".hidden", "-x", "a b", "a\n",  "\xc3\xa4", A64 "a" };
	struct fixture *f = *state;
	struct store_draft d;
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++) {
		assert_int_equal(store_begin(&f->s, bad[i], &d, &f->err), -EINVAL);
		assert_message(f->err, "a name is 1 to 64");
		assert_int_equal(store_show(&f->s, bad[i], &f->m, &f->err), -EINVAL);
		assert_int_equal(store_delete(&f->s, bad[i], &f->err), -EINVAL);
	}
	assert_int_equal(entries(f, "incoming"), 0);
}

static void name_taken(void **state)
{
	struct fixture *f = *state;
	struct store_draft d1, d2;
	assert_int_equal(begin(f, "x", &d1), 0);
	assert_int_equal(begin(f, "x", &d2), 0); // nobody has it yet
	assert_int_equal(store_commit(&f->s, &d1, &f->m, &f->err), 0);
	fill_manifest(&f->m);
	assert_int_equal(store_commit(&f->s, &d2, &f->m, &f->err), -EEXIST);
	assert_message(f->err, "snapshot x: there is one of that name already");
	assert_int_equal(make(f, "x"), -EEXIST);
	assert_int_equal(entries(f, "incoming"), 0);
	assert_int_equal(use(f, "x"), 0);
}

static void abort_leaves_nothing(void **state)
{
	struct fixture *f = *state;
	struct store_draft d;
	assert_int_equal(begin(f, "x", &d), 0);
	assert_int_equal(entries(f, "incoming"), 1);
	store_abort(&f->s, &d);
	store_abort(&f->s, &d);
	assert_int_equal(entries(f, "incoming") + entries(f, "snapshots"), 0);
	must_make(f, "x");
}

static void bad_writers(void **state)
{
	struct fixture *f = *state;
	struct store_draft d;

	assert_int_equal(begin(f, "x", &d), 0); // memory of the wrong size
	assert_int_equal(ftruncate(d.memory_fd, (MEM_MIB << 20) - 1), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "memory: 4194303 bytes were written, it should be 4194304");

	assert_int_equal(begin(f, "x", &d), 0); // nothing in state
	assert_int_equal(ftruncate(d.state_fd, 0), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "state: too short");

	assert_int_equal(begin(f, "x", &d), 0); // a good container with bad sections
	assert_int_equal(ftruncate(d.state_fd, 0), 0);
	assert_int_equal(snap_container_write(d.state_fd, SNAP_MAGIC_STATE, "12345", 5, NULL), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "state: section at byte 0: cut off");

	assert_int_equal(begin(f, "x", &d), 0); // a huge state
	assert_int_equal(ftruncate(d.state_fd, 1LL << 40), 0);
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "too many at its end");

	assert_int_equal(begin(f, "x", &d), 0); // a manifest that could not be loaded again
	f->m.arch = 99;
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), -EINVAL);
	assert_message(f->err, "arch");
	assert_int_equal(entries(f, "incoming") + entries(f, "snapshots"), 0);
}

// A VM process that keeps its descriptor could change the files after they were hashed.
static void writer_must_be_gone(void **state)
{
	struct fixture *f = *state;
	struct store_draft d;
	assert_int_equal(begin(f, "x", &d), 0);
	int kept = dup(d.memory_fd);
	int r = store_commit(&f->s, &d, &f->m, &f->err);
	close(kept);
	if (!r) {
		print_message("# SKIP this file system has no leases\n");
		skip();
	}
	assert_int_equal(r, -EBUSY);
	assert_message(f->err, "still has it open for writing");

	assert_int_equal(begin(f, "x", &d), 0); // closed a little later: waited for
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		usleep(50000);
		_exit(0);
	}
	assert_int_equal(store_commit(&f->s, &d, &f->m, &f->err), 0);
	waitpid(pid, NULL, 0);
}

static void every_flipped_byte_is_found(void **state)
{
	static const char *const files[] = { "snapshots/x/manifest", "snapshots/x/state" };
	struct fixture *f = *state;
	must_make(f, "x");
	for (int k = 0; k < 2; k++) {
		int fd = open_rw(f, files[k]);
		off_t size = lseek(fd, 0, SEEK_END);
		assert_true(size > HEADER);
		for (off_t at = 0; at < size; at++) {
			flip(fd, at);
			int r = use(f, "x");
			assert_true(r == -EINVAL || r == -EFBIG);
			assert_message(f->err, k ? "state: " : "manifest: ");
			flip(fd, at);
		}
		close(fd);
	}
	int fd = open_rw(f, "snapshots/x/memory");
	for (off_t at = 0; at < MEM_MIB << 20; at += 262139) {
		flip(fd, at);
		must_refuse(f, "x", "memory: checksum wrong");
		flip(fd, at);
	}
	close(fd);
	assert_int_equal(use(f, "x"), 0);
}

static void truncation_and_growth(void **state)
{
	static const char *const files[] = { "manifest", "state", "memory" };
	struct fixture *f = *state;
	char below[64];
	must_make(f, "x");
	for (int k = 0; k < 3; k++) {
		snprintf(below, sizeof below, "snapshots/x/%s", files[k]);
		int fd = open_rw(f, below);
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
		assert_int_equal(use(f, "x"), 0);
		free(copy);
		close(fd);
	}
}

// Puts a manifest there with a header and bytes of our choice.
static void forge_manifest(struct fixture *f, unsigned major, unsigned minor, const void *tail,
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
	int fd = open_rw(f, "snapshots/x/manifest");
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
	struct fixture *f = *state;
	must_make(f, "x");
	forge_manifest(f, SNAP_FORMAT_MAJOR, SNAP_FORMAT_MINOR, NULL, 0);
	assert_int_equal(use(f, "x"), 0);
	forge_manifest(f, SNAP_FORMAT_MAJOR, SNAP_FORMAT_MINOR + 1, skippable, sizeof skippable);
	assert_int_equal(use(f, "x"), 0);
	forge_manifest(f, SNAP_FORMAT_MAJOR, SNAP_FORMAT_MINOR + 1, unknown, sizeof unknown);
	must_refuse(f, "x", "unknown field 28673 (made by a newer version?)");
	forge_manifest(f, SNAP_FORMAT_MAJOR + 1, 0, NULL, 0);
	must_refuse(f, "x", "made by a newer thaw: format 2, this one reads up to 1");
}

// Good containers with contents that must not be believed.
static void forged_contents(void **state)
{
	struct fixture *f = *state;
	must_make(f, "x");
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
	struct fixture *f = *state;
	char below[64];

	assert_int_equal(mkdir(path_of(f, "snapshots/dir"), 0700), 0);
	must_refuse(f, "dir", "manifest: missing");
	int fd = open(path_of(f, "snapshots/file"), O_CREAT | O_WRONLY, 0600);
	close(fd);
	must_refuse(f, "file", "not a folder");
	assert_int_equal(symlink("dir", path_of(f, "snapshots/link")), 0);
	must_refuse(f, "link", "not a folder");

	must_make(f, "x"); // each file in turn a link to itself elsewhere, a FIFO, a folder
	for (int k = 0; k < 3; k++) {
		snprintf(below, sizeof below, "snapshots/x/%s", files[k]);
		char *path = strdup(path_of(f, below));
		assert_int_equal(rename(path, path_of(f, "aside")), 0);
		must_refuse(f, "x", "missing");
		assert_int_equal(symlink(path_of(f, "aside"), path), 0);
		must_refuse(f, "x", "is a symbolic link");
		assert_int_equal(unlink(path), 0);
		assert_int_equal(mkfifo(path, 0600), 0);
		must_refuse(f, "x", "not a regular file");
		assert_int_equal(unlink(path), 0);
		assert_int_equal(mkdir(path, 0700), 0);
		must_refuse(f, "x", "not a regular file");
		assert_int_equal(rmdir(path), 0);
		assert_int_equal(rename(path_of(f, "aside"), path), 0);
		free(path);
	}
	assert_int_equal(use(f, "x"), 0);

	// A folder with something else in it is not removed, one of ours that is damaged is.
	assert_int_equal(mkdir(path_of(f, "snapshots/x/mine"), 0700), 0);
	assert_int_equal(store_delete(&f->s, "x", &f->err), -ENOTEMPTY);
	assert_message(f->err, "its folder holds mine as well");
	assert_int_equal(use(f, "x"), 0);
	assert_int_equal(rmdir(path_of(f, "snapshots/x/mine")), 0);
	cut(f, "snapshots/x/manifest", 3);
	assert_int_equal(store_delete(&f->s, "x", &f->err), 0);
	assert_int_equal(entries(f, "incoming"), 0);
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
	struct fixture *f = *state;
	char text[256] = "";
	assert_int_equal(store_list(&f->s, collect, text), 0);
	assert_string_equal(text, "");
	must_make(f, "b");
	must_make(f, "a");
	must_make(f, "c");
	cut(f, "snapshots/b/manifest", 40);
	assert_int_equal(mkdir(path_of(f, "snapshots/\xff\n x"), 0700), 0);
	assert_int_equal(store_list(&f->s, collect, text), 0);
	assert_string_equal(text, "a b(bad) c ???x(bad) ");
	must_make(f, "stop");
	must_make(f, "t");
	text[0] = 0;
	assert_int_equal(store_list(&f->s, collect, text), 7);
	assert_string_equal(text, "a b(bad) c stop ");
}

static void one_daemon_per_root(void **state)
{
	struct fixture *f = *state;
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
	struct fixture *f = *state;
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
		if (store_open(&f->s, f->dir, &f->err) || begin(f, "x", &d))
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
	assert_int_equal(entries(f, "incoming"), 0);
	close(up[0]);
	close(stay[0]);
	close(stay[1]);
}

static void bad_roots(void **state)
{
	struct fixture *f = *state;
	struct store s;
	assert_int_equal(store_open(&s, "/nonexistent/store", &f->err), -ENOENT);
	assert_message(f->err, "store /nonexistent/store: cannot make the folder");
	assert_int_equal(store_open(&s, "/dev/null", &f->err), -ENOTDIR);
	assert_int_equal(mkdir(path_of(f, "open"), 0700), 0);
	assert_int_equal(chmod(path_of(f, "open"), 0777), 0);
	assert_int_equal(store_open(&s, path_of(f, "open"), &f->err), -EPERM);
	assert_message(f->err, "writable by nobody else");
	assert_int_equal(mkdir(path_of(f, "linked"), 0700), 0);
	assert_int_equal(symlink("/tmp", path_of(f, "linked/snapshots")), 0);
	assert_true(store_open(&s, path_of(f, "linked"), &f->err) < 0);
	assert_message(f->err, "cannot open the folder snapshots");
}

// What begin, commit and delete do until the Nth fsync or rename ends the process.
static bool crash_at(struct fixture *f, int nth, bool delete)
{
	int status;
	store_close(&f->s); // the child takes the lock
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct fixture *c = zalloc(sizeof *c);
		memcpy(c->dir, f->dir, sizeof c->dir);
		if (store_open(&c->s, c->dir, &c->err))
			_exit(1);
		fault_is_crash = true;
		calls_left = nth;
		_exit(delete ? store_delete(&c->s, "x", &c->err) : make(c, "x"));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 42 || WEXITSTATUS(status) == 0));
	assert_int_equal(store_open(&f->s, f->dir, &f->err), 0);
	return WEXITSTATUS(status) == 42;
}

static void crash_at_each_step(void **state)
{
	struct fixture *f = *state;
	int nth = 0, published = 0;
	for (; crash_at(f, nth, false); nth++) {
		assert_int_equal(entries(f, "incoming"), 0);
		int r = use(f, "x");
		assert_true(r == 0 || r == -ENOENT); // whole or not at all
		if (!r) {
			published++;
			assert_int_equal(store_delete(&f->s, "x", &f->err), 0);
		}
		assert_int_equal(entries(f, "snapshots"), 0);
	}
	assert_int_equal(nth, 7); // state, memory, manifest, folder, rename, two parents
	assert_int_equal(published, 2);

	assert_int_equal(use(f, "x"), 0);
	assert_true(crash_at(f, 0, true)); // before the rename
	assert_int_equal(use(f, "x"), 0);
	assert_true(crash_at(f, 1, true)); // after it
	assert_int_equal(use(f, "x"), -ENOENT);
	assert_int_equal(entries(f, "incoming"), 0);
}

static void failure_at_each_step(void **state)
{
	struct fixture *f = *state;
	fault_is_crash = false;
	for (int nth = 0; nth < 7; nth++) {
		calls_left = nth;
		assert_int_equal(make(f, "x"), -EIO);
		calls_left = -1;
		assert_message(f->err, "snapshot x: ");
		assert_int_equal(entries(f, "incoming") + entries(f, "snapshots"), 0);
	}
}

static void leftovers(void **state)
{
	struct fixture *f = *state;
	char below[64];
	store_close(&f->s);
	for (int i = 0; i < 50; i++) { // half-made, half-deleted, stray files
		snprintf(below, sizeof below, "incoming/%s-%d", i & 1 ? "draft" : "gone", i);
		assert_int_equal(mkdir(path_of(f, below), 0700), 0);
		snprintf(below, sizeof below, "incoming/%s-%d/memory", i & 1 ? "draft" : "gone", i);
		close(open(path_of(f, below), O_CREAT | O_WRONLY, 0400));
		snprintf(below, sizeof below, "incoming/stray%d", i);
		close(open(path_of(f, below), O_CREAT | O_WRONLY, 0400));
	}
	assert_int_equal(mkdir(path_of(f, "keep"), 0700), 0);
	close(open(path_of(f, "keep/me"), O_CREAT | O_WRONLY, 0600));
	assert_int_equal(symlink("../keep", path_of(f, "incoming/link")), 0);
	assert_int_equal(store_open(&f->s, f->dir, &f->err), 0);
	assert_int_equal(entries(f, "incoming"), 0);
	assert_int_equal(entries(f, "keep"), 1);
}

static void full_file_system(void **state)
{
	struct fixture *f = *state;
	struct store_draft d;
	store_close(&f->s);
	if (mount("none", f->dir, "tmpfs", 0, "size=64k,nr_inodes=6,mode=700")) {
		print_message("# SKIP mounting a small tmpfs: %s\n", strerror(errno));
		skip();
	}
	// Inodes: the root, lock, snapshots, incoming, the draft's folder, state; not memory.
	int opened = store_open(&f->s, f->dir, &f->err);
	int begun = opened ? 0 : store_begin(&f->s, "x", &d, &f->err);
	unsigned left = entries(f, "incoming");
	mount("none", f->dir, "tmpfs", MS_REMOUNT, "size=16k,nr_inodes=100");
	int begun2 = opened ? 0 : store_begin(&f->s, "x", &d, &f->err), committed = 0;
	if (!begun2) {
		write_state(d.state_fd);
		committed = ftruncate(d.memory_fd, MEM_MIB << 20);
		mv_pwrite_full(d.memory_fd, f->dir, 64, 0);
		mv_pwrite_full(d.memory_fd, f->dir, 64, 8192);
		mv_pwrite_full(d.memory_fd, f->dir, 64, 16384); // full now
		fill_manifest(&f->m);
		committed = store_commit(&f->s, &d, &f->m, &f->err);
	}
	unsigned left2 = entries(f, "incoming") + entries(f, "snapshots");
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

static void random_manifests(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 3;
	MV_BUF b = { 0 };
	struct manifest *m = zalloc(sizeof *m);
	must_make(f, "x");
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

// A layered drive's files: linked, listed, hashed, shared, and gone only with the last link.
static int make_layered(struct fixture *f, const char *name, unsigned n)
{
	struct store_draft d;
	assert_int_equal(begin(f, name, &d), 0);
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
	struct fixture *f = *state;
	for (unsigned i = 0; i < 2; i++) {
		char name[16];
		snprintf(name, sizeof name, "%u", i);
		int fd = openat(f->s.root_fd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		assert_int_equal(write(fd, "layer", 5), 5);
		close(fd);
	}
	assert_int_equal(make_layered(f, "none", 0), -EINVAL);
	assert_message(f->err, "layers do not fit");
	assert_int_equal(entries(f, "incoming"), 0);
	int fd = openat(f->s.root_fd, "1", O_RDWR | O_CLOEXEC);
	assert_int_equal(make_layered(f, "open", 2), -EBUSY); // somebody can write to it
	assert_message(f->err, "layer-0.1");
	close(fd);
	assert_int_equal(make_layered(f, "a", 2), 0);
	assert_int_equal(manifest_layers(&f->m, 0), 2);
	assert_int_equal(manifest_layers(&f->m, 1), 0);
	assert_int_equal(make_layered(f, "b", 1), 0);
	assert_int_equal(use(f, "a"), 0);
	struct manifest *m = zalloc(sizeof *m);
	assert_int_equal(store_show(&f->s, "a", m, &f->err), 0);
	assert_int_equal(mkdir(path_of(f, "vm"), 0700), 0);
	int dir = open(path_of(f, "vm"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(store_copy_layers(&f->s, m, 0, dir, &f->err), 0);
	assert_int_equal(entries(f, "vm"), 2);
	assert_int_equal(store_copy_layers(&f->s, m, 0, dir, &f->err), -EEXIST);
	close(dir);
	assert_int_equal(store_delete(&f->s, "a", &f->err), 0);
	assert_int_equal(entries(f, "incoming"), 0);
	assert_int_equal(use(f, "b"), 0);
	assert_int_equal(chmod(path_of(f, "snapshots/b/layer-0.0"), 0600), 0);
	fd = open_rw(f, "snapshots/b/layer-0.0");
	assert_int_equal(pwrite(fd, "X", 1, 2), 1);
	close(fd);
	must_refuse(f, "b", "layer-0.0: checksum wrong");
	assert_int_equal(unlink(path_of(f, "snapshots/b/layer-0.0")), 0);
	must_refuse(f, "b", "layer-0.0: missing");
	assert_int_equal(store_delete(&f->s, "b", &f->err), 0);
	free(m);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(publish_show_use_delete),
		T(names),
		T(name_taken),
		T(abort_leaves_nothing),
		T(bad_writers),
		T(writer_must_be_gone),
		T(every_flipped_byte_is_found),
		T(truncation_and_growth),
		T(other_versions),
		T(forged_contents),
		T(foreign_things),
		T(list_in_order),
		T(one_daemon_per_root),
		T(killed_while_it_starts_a_process),
		T(bad_roots),
		T(crash_at_each_step),
		T(failure_at_each_step),
		T(leftovers),
		T(full_file_system),
		T(random_manifests),
		T(layers),
	};
	return cmocka_run_group_tests_name("snapshot/store", tests, NULL, NULL);
}
