// SPDX-License-Identifier: Apache-2.0
// Where a snapshot is, step by step, and what a crash leaves there:
//
//   store_begin    incoming/draft-<uuid>/ {state, memory}      removed at the next open
//   store_link     ... + layer-<drive>.<n>                     removed
//   store_commit   ... + manifest, all files and the folder synced      removed
//                  renameat2(NOREPLACE) -> snapshots/<name>/   published
//                  both parents synced                         published
//   store_begin_import, store_draft_file, store_commit_import: the same
//   store_begin_copy, store_link, store_commit_copy: the same, or in the place of another:
//                  renameat2(EXCHANGE) with snapshots/<name>/  published, the old one in incoming/
//                  both parents synced                         published, the old one removed
//                  files of the old one unlinked               removed
//   store_delete   renameat2 -> incoming/gone-<uuid>/          removed
//                  files unlinked, folder removed              removed
//
// So everything in incoming/ is rubbish when a daemon has just taken the lock (store_lock.h); later,
// everything but the folders that its drafts have locked (flock).
#include "snapshot/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "microvm/base/util.h"
#include "snapshot/chunk.h"
#include "snapshot/format.h"
#include "snapshot/store_chain.h"
#include "snapshot/store_dir.h"
#include "snapshot/store_lock.h"
#include "snapshot/working_set.h"

enum {
	MAX_DIR_ENTRIES = 2 * MANIFEST_MAX_FILES, // a folder with more is none of ours
	MAX_LIST = 65536,
	WRITER_WAIT_MS = 1000,
};

#define LAYER_PREFIX "layer-" // see manifest_layer_name()

#define OPEN_DIR (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
// Not blocking: a FIFO in place of a file must not hang the open.
#define OPEN_FILE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)

static void cleanup_dir(DIR **d)
{
	if (*d)
		closedir(*d);
}
#define AUTO_DIR __attribute__((cleanup(cleanup_dir))) DIR

// --- folders ---

// A stream of its own over a folder, whatever other threads read from the same fd.
static DIR *open_stream(int parent_fd, const char *name)
{
	int fd = openat(parent_fd, name, OPEN_DIR);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d && fd >= 0)
		close(fd);
	return d;
}

static bool is_dot(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

static int remove_file(int parent_fd, const char *name, uint64_t *ret_bytes)
{
	struct stat st;
	if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) || unlinkat(parent_fd, name, 0))
		return -errno;
	*ret_bytes += (uint64_t)st.st_blocks * 512;
	return 0;
}

// Removes a flat folder (or a stray file); what is deeper stays and is left alone.
// Adds what it took on disk to *ret_bytes.
static int remove_entry(int parent_fd, const char *name, uint64_t *ret_bytes)
{
	AUTO_DIR *d = open_stream(parent_fd, name);
	if (!d)
		return remove_file(parent_fd, name, ret_bytes);
	struct dirent *e;
	for (int n = 0; n < MAX_DIR_ENTRIES && (e = readdir(d));)
		if (!is_dot(e->d_name)) {
			remove_file(dirfd(d), e->d_name, ret_bytes);
			n++;
		}
	return unlinkat(parent_fd, name, AT_REMOVEDIR) ? -errno : 0;
}

static int open_subdir(struct store *s, const char *name, int *ret_fd, struct mv_err *err)
{
	if (mkdirat(s->root_fd, name, 0700) && errno != EEXIST)
		return mv_fail(err, errno, "cannot make the folder %s: %s", name, strerror(errno));
	int fd = openat(s->root_fd, name, OPEN_DIR);
	if (fd < 0)
		return mv_fail(err, errno, "cannot open the folder %s: %s", name, strerror(errno));
	*ret_fd = fd;
	return 0;
}

// --- open and close ---

static int open_root(struct store *s, const char *root, struct mv_err *err)
{
	struct stat st;

	if (mkdir(root, 0700) && errno != EEXIST)
		return mv_fail(err, errno, "cannot make the folder: %s", strerror(errno));
	s->root_fd = open(root, OPEN_DIR & ~O_NOFOLLOW); // the owner may have put it elsewhere
	if (s->root_fd < 0 || fstat(s->root_fd, &st))
		return mv_fail(err, errno, "cannot open the folder: %s", strerror(errno));
	if (st.st_uid != geteuid() || (st.st_mode & 022))
		return mv_fail(err, EPERM,
			       "the folder must belong to the user who runs this and be "
			       "writable by nobody else (chmod 700)");
	int r = store_lock_take(s->root_fd, &s->held, err);
	r = r ? r : open_subdir(s, "snapshots", &s->snapshots_fd, err);
	return r ? r : open_subdir(s, "incoming", &s->incoming_fd, err);
}

void store_close(struct store *s)
{
	mv_close(&s->snapshots_fd);
	mv_close(&s->incoming_fd);
	store_lock_drop(&s->held);
	mv_close(&s->root_fd);
}

// --- names and files of a snapshot ---

static int check_name(const char *name, struct mv_err *err)
{
	if (vmcfg_name_ok(name))
		return 0;
	return mv_fail(err, EINVAL,
		       "snapshot \"%.80s\": a name is 1 to 64 letters, digits, '_', '.' or '-', and "
		       "starts with a letter or digit",
		       name);
}

int store_dir_open(struct store *s, const char *name, int *ret_dir_fd, struct mv_err *err)
{
	int r = check_name(name, err);
	if (r)
		return r;
	int fd = openat(s->snapshots_fd, name, OPEN_DIR);
	if (fd < 0 && errno == ENOENT)
		return mv_fail(err, ENOENT, "snapshot %s: there is none of that name", name);
	if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
		return mv_fail(err, EINVAL, "snapshot %s: not a folder", name);
	if (fd < 0)
		return mv_fail(err, errno, "snapshot %s: %s", name, strerror(errno));
	*ret_dir_fd = fd;
	return 0;
}

static int open_file(int dir_fd, const char *name, int *ret_fd, struct mv_err *err)
{
	struct stat st;
	MV_FD fd = openat(dir_fd, name, OPEN_FILE);
	if (fd < 0 && errno == ENOENT)
		return mv_fail(err, EINVAL, "%s: missing", name);
	if (fd < 0 && errno == ELOOP)
		return mv_fail(err, EINVAL, "%s: is a symbolic link", name);
	if (fd < 0 || fstat(fd, &st))
		return mv_fail(err, errno, "%s: cannot open: %s", name, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return mv_fail(err, EINVAL, "%s: not a regular file", name);
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static int file_size(int fd, const char *name, uint64_t *ret_bytes, struct mv_err *err)
{
	struct stat st;
	if (fstat(fd, &st))
		return mv_fail(err, errno, "%s: %s", name, strerror(errno));
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

// What a memory file must be, before its bytes are hashed.
static int check_memory(int fd, uint64_t size_bytes, uint32_t format, bool incremental, uint64_t memory_bytes,
			struct mv_err *err)
{
	struct chunk_index x;
	if (format == MANIFEST_LZ4) {
		int r = incremental ? chunk_index_read_incremental(fd, memory_bytes, &x, err)
				    : chunk_index_read(fd, memory_bytes, &x, err);
		if (!r)
			chunk_index_fini(&x);
		return r;
	}
	if (size_bytes != memory_bytes)
		return mv_fail(err, EINVAL, "memory: %llu bytes were written, it should be %llu",
			       (unsigned long long)size_bytes, (unsigned long long)memory_bytes);
	return 0;
}

static int hash_file(int fd, const char *name, uint64_t size_bytes, struct manifest_file *ret_file,
		     struct mv_err *err)
{
	struct manifest_file f = { .size_bytes = size_bytes };
	int r = snap_xxh3_file(fd, size_bytes, &f.xxh3, &f.data_bytes);
	if (r == -ENODATA)
		return mv_fail(err, EINVAL, "%s: truncated while it was read", name);
	if (r)
		return mv_fail(err, -r, "%s: cannot read: %s", name, strerror(-r));
	mv_strcpy(f.name, sizeof f.name, name);
	*ret_file = f;
	return 0;
}

// --- making one ---

static int create_file(int dir_fd, const char *name, int *ret_fd, struct mv_err *err)
{
	*ret_fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return *ret_fd < 0 ? mv_fail(err, errno, "cannot make the file %s: %s", name, strerror(errno)) : 0;
}

// The folder, locked before store_gc() can look at it.
static int make_folder(struct store *s, struct store_draft *d, struct mv_err *err)
{
	int r = 0;
	pthread_mutex_lock(&s->lock);
	if (mkdirat(s->incoming_fd, d->dir, 0700))
		r = mv_fail(err, errno, "cannot make its folder: %s", strerror(errno));
	if (!r)
		d->dir_fd = openat(s->incoming_fd, d->dir, OPEN_DIR);
	if (!r && (d->dir_fd < 0 || flock(d->dir_fd, LOCK_EX | LOCK_NB)))
		r = mv_fail(err, errno, "cannot open its folder: %s", strerror(errno));
	pthread_mutex_unlock(&s->lock);
	return r;
}

int store_begin_copy(struct store *s, const char *name, bool replace, struct store_draft *ret_draft,
		     struct mv_err *err)
{
	struct store_draft d = { .dir_fd = -1, .state_fd = -1, .memory_fd = -1 };
	struct stat st;
	char uuid[MV_UUID_LEN];

	int r = check_name(name, err);
	if (r)
		return r;
	if (!replace && !fstatat(s->snapshots_fd, name, &st, AT_SYMLINK_NOFOLLOW))
		return mv_fail(err, EEXIST,
			       "snapshot %s: there is one of that name already; delete it or "
			       "choose another name",
			       name);
	mv_uuid(uuid);
	snprintf(d.name, sizeof d.name, "%s", name);
	snprintf(d.dir, sizeof d.dir, "draft-%s", uuid);
	r = make_folder(s, &d, err);
	if (r) {
		store_abort(s, &d);
		mv_wrap(err, "snapshot %s", name);
		return r;
	}
	*ret_draft = d;
	return 0;
}

int store_begin_import(struct store *s, const char *name, struct store_draft *ret_draft, struct mv_err *err)
{
	return store_begin_copy(s, name, false, ret_draft, err);
}

int store_begin(struct store *s, const char *name, struct store_draft *ret_draft, struct mv_err *err)
{
	struct store_draft d;
	int r = store_begin_import(s, name, &d, err);
	if (r)
		return r;
	r = create_file(d.dir_fd, "state", &d.state_fd, err);
	if (!r)
		r = create_file(d.dir_fd, "memory", &d.memory_fd, err);
	if (r) {
		store_abort(s, &d);
		mv_wrap(err, "snapshot %s", name);
		return r;
	}
	*ret_draft = d;
	return 0;
}

static void close_draft(struct store_draft *d)
{
	mv_close(&d->state_fd);
	mv_close(&d->memory_fd);
	mv_close(&d->dir_fd);
	d->dir[0] = 0;
}

void store_abort(struct store *s, struct store_draft *d)
{
	if (!d->dir[0])
		return;
	uint64_t freed_bytes = 0;
	remove_entry(s->incoming_fd, d->dir, &freed_bytes);
	close_draft(d);
}

int store_draft_file(struct store_draft *d, const char *file, int *ret_fd, struct mv_err *err)
{
	if (!vmcfg_name_ok(file) || !strcmp(file, "manifest"))
		return mv_fail(err, EINVAL, "\"%.40s\" is no name for a file of a snapshot", file);
	return create_file(d->dir_fd, file, ret_fd, err);
}

// The kernel grants a read lease only on a file that nobody has open for writing
// (fcntl(2), F_SETLEASE). The writer is a VM process: what it can still change must
// not be hashed and published.
static int wait_for_writers(int fd, const char *name, struct mv_err *err)
{
	const struct timespec ms = { .tv_nsec = 1000000 };

	for (int i = 0; i < WRITER_WAIT_MS; i++) {
		if (!fcntl(fd, F_SETLEASE, F_RDLCK)) {
			fcntl(fd, F_SETLEASE, F_UNLCK);
			return 0;
		}
		if (errno != EAGAIN) // no leases here
			return 0;
		nanosleep(&ms, NULL);
	}
	return mv_fail(err, EBUSY, "%s: the VM process still has it open for writing", name);
}

#define ANY_SIZE UINT64_MAX // layers: the VM process checks them

// Is it what restore can read? Sections are not interpreted here, only walked.
static int check_state(int fd, struct mv_err *err)
{
	MV_FREE uint8_t *payload = NULL;
	struct snap_section sec;
	size_t len, pos = 0;
	int r = snap_container_read(fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len, err);
	if (r)
		return r;
	while ((r = snap_section_next(payload, len, &pos, &sec, err)) == 1)
		;
	return r ? mv_wrap(err, "state") : 0;
}

static int finish_file(int fd, const char *name, struct mv_err *err)
{
	if (fchmod(fd, 0400) || fsync(fd))
		return mv_fail(err, errno, "%s: cannot sync: %s", name, strerror(errno));
	return 0;
}

// Everything of one written file: wait, check, hash, sync. memory_bytes 0: the state file,
// ANY_SIZE: a layer. incremental: the memory file may need the parent's.
static int take_file(struct store_draft *d, const char *name, uint64_t memory_bytes, uint32_t format,
		     bool incremental, struct manifest_file *ret_file, struct mv_err *err)
{
	MV_FD fd = -1;
	uint64_t size_bytes = 0;
	int r = open_file(d->dir_fd, name, &fd, err);
	if (!r)
		r = wait_for_writers(fd, name, err);
	if (!r)
		r = file_size(fd, name, &size_bytes, err);
	if (r)
		return r;
	if (!memory_bytes)
		r = check_state(fd, err);
	else if (memory_bytes != ANY_SIZE)
		r = check_memory(fd, size_bytes, format, incremental, memory_bytes, err);
	r = r ? r : hash_file(fd, name, size_bytes, ret_file, err);
	if (r)
		return r;
	ret_file->format = format;
	return finish_file(fd, name, err);
}

int store_link(struct store_draft *d, int src_dir_fd, const char *src_name, const char *name,
	       struct mv_err *err)
{
	if (linkat(src_dir_fd, src_name, d->dir_fd, name, 0))
		return mv_fail(err, errno, "snapshot %s: cannot add %s: %s", d->name, name, strerror(errno));
	return 0;
}

// The layers that were linked: the manifest's check says whether there are enough.
static int take_layers(struct store_draft *d, struct manifest *m, struct mv_err *err)
{
	int r = 0;
	for (uint32_t i = 0; i < m->cfg.n_drives; i++)
		for (uint32_t n = 0; !r && n < VMCFG_MAX_LAYERS; n++) {
			char name[32];
			manifest_layer_name(name, i, n);
			if (faccessat(d->dir_fd, name, F_OK, AT_SYMLINK_NOFOLLOW))
				break;
			r = take_file(d, name, ANY_SIZE, MANIFEST_RAW, false, &m->file[m->n_files++], err);
		}
	return r;
}

static int write_manifest(struct store_draft *d, struct manifest *m, struct mv_err *err)
{
	MV_FD fd = -1;
	int r = create_file(d->dir_fd, "manifest", &fd, err);
	if (!r)
		r = manifest_save(fd, m, err);
	return r ? r : finish_file(fd, "manifest", err);
}

static int check_has_parent(struct store *s, const struct manifest *m, struct mv_err *err)
{
	unsigned n;
	return m->needs_parent ? store_chain_length(s, m, &n, err) : 0;
}

static int publish(struct store *s, struct store_draft *d, struct mv_err *err)
{
	if (fsync(d->dir_fd))
		return mv_fail(err, errno, "cannot sync its folder: %s", strerror(errno));
	if (renameat2(s->incoming_fd, d->dir, s->snapshots_fd, d->name, RENAME_NOREPLACE)) {
		if (errno == EEXIST)
			return mv_fail(err, EEXIST,
				       "there is one of that name already; delete it or choose "
				       "another name");
		return mv_fail(err, errno, "cannot publish: %s", strerror(errno));
	}
	if (fsync(s->snapshots_fd) || fsync(s->incoming_fd)) {
		int e = errno;
		// Not known to be on disk: take it back rather than promise it.
		renameat2(s->snapshots_fd, d->name, s->incoming_fd, d->dir, RENAME_NOREPLACE);
		return mv_fail(err, e, "cannot sync the store: %s", strerror(e));
	}
	return 0;
}

int store_commit(struct store *s, struct store_draft *d, struct manifest *m, struct mv_err *err)
{
	mv_close(&d->state_fd);
	mv_close(&d->memory_fd);
	memcpy(m->name, d->name, sizeof m->name);
	m->n_files = 2;
	uint32_t format = m->file[1].format;
	int r = take_file(d, "state", 0, MANIFEST_RAW, false, &m->file[0], err);
	if (!r)
		r = take_file(d, "memory", (uint64_t)m->cfg.mem_mib << 20, format, m->needs_parent,
			      &m->file[1], err);
	if (!r)
		r = take_layers(d, m, err);
	if (!r)
		r = check_has_parent(s, m, err);
	if (!r)
		r = write_manifest(d, m, err);
	if (!r)
		r = publish(s, d, err);
	if (r) {
		store_abort(s, d);
		mv_wrap(err, "snapshot %s", m->name);
		return r;
	}
	close_draft(d);
	return 0;
}

// A file that was imported must be what the manifest says.
static int take_imported(struct store_draft *d, const struct manifest *m, struct manifest_file *f,
			 struct mv_err *err)
{
	struct manifest_file is;
	MV_FD fd = -1;
	uint64_t size_bytes = 0;
	int r = open_file(d->dir_fd, f->name, &fd, err);
	if (!r)
		r = file_size(fd, f->name, &size_bytes, err);
	if (!r && size_bytes != f->size_bytes)
		r = mv_fail(err, EINVAL, "%s: %llu bytes came, the manifest says %llu", f->name,
			    (unsigned long long)size_bytes, (unsigned long long)f->size_bytes);
	if (!r && !strcmp(f->name, "state"))
		r = check_state(fd, err);
	if (!r && !strcmp(f->name, "memory"))
		r = check_memory(fd, size_bytes, f->format, m->needs_parent, (uint64_t)m->cfg.mem_mib << 20,
				 err);
	if (!r)
		r = hash_file(fd, f->name, size_bytes, &is, err);
	if (!r && is.xxh3 != f->xxh3)
		r = mv_fail(err, EINVAL, "%s: checksum wrong: it was damaged before it was exported",
			    f->name);
	if (r)
		return r;
	f->data_bytes = is.data_bytes;
	return finish_file(fd, f->name, err);
}

// Its own, if no snapshot here has it.
static int choose_id(struct store *s, struct manifest *m, struct mv_err *err)
{
	char name[VMCFG_NAME_LEN];
	int r = store_find_id(s, m->id, name);
	if (!r)
		mv_uuid(m->id);
	return r && r != -ENOENT ? mv_fail(err, -r, "cannot list the store: %s", strerror(-r)) : 0;
}

int store_commit_import(struct store *s, struct store_draft *d, struct manifest *m, struct mv_err *err)
{
	int r = 0;
	memcpy(m->name, d->name, sizeof m->name);
	for (uint32_t i = 0; !r && i < m->n_files; i++)
		r = take_imported(d, m, &m->file[i], err);
	if (!r)
		r = check_has_parent(s, m, err);
	if (!r)
		r = choose_id(s, m, err);
	if (!r)
		r = write_manifest(d, m, err);
	if (!r)
		r = publish(s, d, err);
	if (r) {
		store_abort(s, d);
		mv_wrap(err, "snapshot %s", m->name);
		return r;
	}
	close_draft(d);
	return 0;
}

// --- reading ---

int store_dir_manifest(int dir_fd, const char *name, struct manifest *ret_m, struct mv_err *err)
{
	MV_FD fd = -1;
	int r = open_file(dir_fd, "manifest", &fd, err);
	if (!r)
		r = manifest_load(fd, ret_m, err);
	if (!r && strcmp(ret_m->name, name))
		r = mv_fail(err, EINVAL, "manifest: it belongs to a snapshot named %s", ret_m->name);
	return r;
}

static int show(struct store *s, const char *name, struct manifest *ret_m, int *ret_dir_fd,
		struct mv_err *err)
{
	MV_FD dir_fd = -1;
	int r = store_dir_open(s, name, &dir_fd, err);
	if (r)
		return r;
	r = store_dir_manifest(dir_fd, name, ret_m, err);
	if (r) {
		mv_wrap(err, "snapshot %s", name);
		return r;
	}
	*ret_dir_fd = MV_TAKE_FD(dir_fd);
	return 0;
}

int store_show(struct store *s, const char *name, struct manifest *ret_m, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	MV_FREE struct manifest *m = malloc(sizeof *m);
	if (!m)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = show(s, name, m, &dir_fd, err);
	if (!r)
		*ret_m = *m;
	return r;
}

int store_stamp(struct store *s, const char *name, struct store_stamp *ret_stamp)
{
	char path[VMCFG_NAME_LEN + sizeof "/manifest"];
	struct stat st;
	if (!vmcfg_name_ok(name))
		return -EINVAL;
	snprintf(path, sizeof path, "%s/manifest", name);
	if (fstatat(s->snapshots_fd, path, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	*ret_stamp = (struct store_stamp){
		st.st_dev, st.st_ino, (uint64_t)st.st_ctim.tv_sec * 1000000000u + (uint64_t)st.st_ctim.tv_nsec
	};
	return 0;
}

bool store_stamp_same(const struct store_stamp *a, const struct store_stamp *b)
{
	return a->device == b->device && a->inode == b->inode && a->changed_ns == b->changed_ns;
}

int store_dir_file(int dir_fd, const struct manifest *m, const char *name, bool hash, int *ret_fd,
		   struct mv_err *err)
{
	const struct manifest_file *want = manifest_file_find(m, name);
	struct manifest_file is;
	uint64_t size_bytes = 0;
	MV_FD fd = -1;

	if (!strcmp(name, "manifest"))
		return open_file(dir_fd, name, ret_fd, err);
	if (!want)
		return mv_fail(err, EINVAL, "manifest: no file %s in it", name);
	int r = open_file(dir_fd, name, &fd, err);
	if (!r)
		r = file_size(fd, name, &size_bytes, err);
	if (r)
		return r;
	if (size_bytes != want->size_bytes)
		return mv_fail(err, EINVAL, "%s: %llu bytes long, the manifest says %llu", name,
			       (unsigned long long)size_bytes, (unsigned long long)want->size_bytes);
	if (hash) {
		r = hash_file(fd, name, size_bytes, &is, err);
		if (r)
			return r;
		if (is.xxh3 != want->xxh3)
			return mv_fail(err, EINVAL, "%s: checksum wrong: the file is damaged", name);
		r = want->format == MANIFEST_LZ4
			    ? chunk_verify(fd, (uint64_t)m->cfg.mem_mib << 20, m->needs_parent, err)
			    : 0;
		if (r)
			return r;
	}
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static int verify_chain(struct store *s, const struct manifest *m, struct mv_err *err)
{
	struct store_chain c;
	int r = store_chain_open(s, m->name, m->id, true, &c, err);
	if (!r)
		store_chain_close(&c);
	return r;
}

static int open_files(int dir_fd, const struct manifest *m, bool verify_memory, int *ret_state_fd,
		      int *ret_memory_fd, struct mv_err *err)
{
	MV_FD state_fd = -1;
	MV_FD memory_fd = -1;
	int r = store_dir_file(dir_fd, m, "state", true, &state_fd, err);
	if (!r)
		r = store_dir_file(dir_fd, m, "memory", verify_memory && !m->needs_parent, &memory_fd, err);
	for (uint32_t i = 0; !r && i < m->n_files; i++) {
		MV_FD fd = -1;
		if (!strncmp(m->file[i].name, LAYER_PREFIX, strlen(LAYER_PREFIX)))
			r = store_dir_file(dir_fd, m, m->file[i].name, verify_memory, &fd, err);
	}
	if (r) {
		mv_wrap(err, "snapshot %s", m->name);
		return r;
	}
	*ret_state_fd = MV_TAKE_FD(state_fd);
	*ret_memory_fd = MV_TAKE_FD(memory_fd);
	return 0;
}

int store_files(struct store *s, const struct manifest *m, bool verify_memory, int *ret_state_fd,
		int *ret_memory_fd, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	int r = store_dir_open(s, m->name, &dir_fd, err);
	if (!r && verify_memory && m->needs_parent)
		r = verify_chain(s, m, err);
	return r ? r : open_files(dir_fd, m, verify_memory, ret_state_fd, ret_memory_fd, err);
}

int store_show_files(struct store *s, const char *name, struct manifest *ret_m, int *ret_state_fd,
		     int *ret_memory_fd, struct mv_err *err)
{
	MV_FREE struct manifest *m = malloc(sizeof *m);
	MV_FD dir_fd = -1;
	if (!m)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = show(s, name, m, &dir_fd, err);
	r = r ? r : open_files(dir_fd, m, false, ret_state_fd, ret_memory_fd, err);
	if (!r)
		*ret_m = *m;
	return r;
}

int store_open_file(struct store *s, const struct manifest *m, const char *file, bool verify, int *ret_fd,
		    struct mv_err *err)
{
	MV_FD dir_fd = -1;
	int r = store_dir_open(s, m->name, &dir_fd, err);
	if (r)
		return r;
	r = store_dir_file(dir_fd, m, file, verify, ret_fd, err);
	if (r)
		mv_wrap(err, "snapshot %s", m->name);
	return r;
}

struct store_usage store_usage(struct store *s, const struct manifest *m)
{
	struct store_usage u = { 0 };
	char path[VMCFG_NAME_LEN + sizeof m->file[0].name + 1];
	struct stat st;

	for (uint32_t i = 0; i < m->n_files + 2; i++) {
		snprintf(path, sizeof path, "%s/%s", m->name,
			 i < m->n_files    ? m->file[i].name
			 : i == m->n_files ? "manifest"
					   : WS_FILE);
		if (fstatat(s->snapshots_fd, path, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
			continue;
		u.apparent_bytes += (uint64_t)st.st_size;
		u.disk_bytes += (uint64_t)st.st_blocks * 512;
	}
	return u;
}

int store_copy_layers(struct store *s, const struct manifest *m, uint32_t drive, int dst_dir_fd,
		      struct mv_err *err)
{
	MV_FD dir_fd = -1;
	uint32_t layers = manifest_layers(m, drive);
	int r = store_dir_open(s, m->name, &dir_fd, err);
	for (uint32_t n = 0; !r && n < layers; n++) {
		char from[32], to[16];
		manifest_layer_name(from, drive, n);
		snprintf(to, sizeof to, "%u", n);
		if (linkat(dir_fd, from, dst_dir_fd, to, 0))
			r = mv_fail(err, errno, "snapshot %s: cannot link %s: %s", m->name, from,
				    strerror(errno));
	}
	return r;
}

// --- list ---

struct names {
	char **list;
	size_t n;
};

static void free_names(struct names *v)
{
	for (size_t i = 0; i < v->n; i++)
		free(v->list[i]);
	free(v->list);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int read_names(struct store *s, struct names *v)
{
	AUTO_DIR *d = open_stream(s->snapshots_fd, ".");
	struct dirent *e;
	size_t cap = 0;

	if (!d)
		return -errno;
	while (v->n < MAX_LIST && (e = readdir(d))) {
		if (is_dot(e->d_name))
			continue;
		if (v->n == cap) {
			cap = cap ? cap * 2 : 64;
			char **list = realloc(v->list, cap * sizeof *list);
			if (!list)
				return -ENOMEM;
			v->list = list;
		}
		v->list[v->n] = strdup(e->d_name);
		if (!v->list[v->n])
			return -ENOMEM;
		v->n++;
	}
	if (v->n)
		qsort(v->list, v->n, sizeof *v->list, by_name);
	return 0;
}

static void make_printable(char *name)
{
	for (; *name; name++)
		if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-", *name))
			*name = '?';
}

int store_names(struct store *s, int (*fn)(void *arg, const char *name), void *arg)
{
	__attribute__((cleanup(free_names))) struct names v = { 0 };
	int r = read_names(s, &v);
	for (size_t i = 0; !r && i < v.n; i++)
		r = fn(arg, v.list[i]);
	return r;
}

int store_list(struct store *s,
	       int (*fn)(void *arg, const char *name, const struct manifest *m, const struct mv_err *err),
	       void *arg)
{
	__attribute__((cleanup(free_names))) struct names v = { 0 };
	MV_FREE struct manifest *m = malloc(sizeof *m);
	int r = m ? read_names(s, &v) : -ENOMEM;

	for (size_t i = 0; !r && i < v.n; i++) {
		struct mv_err err = { 0 };
		int bad;
		if (vmcfg_name_ok(v.list[i]))
			bad = store_show(s, v.list[i], m, &err);
		else {
			make_printable(v.list[i]);
			bad = mv_fail(&err, EINVAL, "snapshot %.80s: not a snapshot's name", v.list[i]);
		}
		if (bad != -ENOENT) // deleted meanwhile
			r = fn(arg, v.list[i], bad ? NULL : m, &err);
	}
	return r;
}

// --- delete ---

static bool is_ours(const struct manifest *m, const char *file)
{
	return !strcmp(file, WS_FILE) || !strcmp(file, WS_NEW_FILE) || !strcmp(file, "manifest") ||
	       !strcmp(file, "state") || !strcmp(file, "memory") ||
	       !strncmp(file, LAYER_PREFIX, strlen(LAYER_PREFIX)) || manifest_file_find(m, file);
}

// Only what thaw itself puts there may be removed.
static int check_only_ours(int dir_fd, const char *name, struct mv_err *err)
{
	AUTO_DIR *d = open_stream(dir_fd, ".");
	MV_FREE struct manifest *m = calloc(1, sizeof *m);
	struct dirent *e;

	if (!m)
		return mv_fail(err, ENOMEM, "out of memory");
	store_dir_manifest(dir_fd, name, m, NULL); // may be damaged: then it lists nothing

	if (!d)
		return mv_fail(err, errno, "cannot read its folder: %s", strerror(errno));
	while ((e = readdir(d)))
		if (!is_dot(e->d_name) && !is_ours(m, e->d_name)) {
			make_printable(e->d_name);
			return mv_fail(err, ENOTEMPTY, "its folder holds %.80s as well; remove that by hand",
				       e->d_name);
		}
	return 0;
}

int store_delete(struct store *s, const char *name, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	uint64_t freed_bytes = 0;
	char uuid[MV_UUID_LEN], gone[64];
	int r = store_dir_open(s, name, &dir_fd, err);
	if (r)
		return r;
	r = check_only_ours(dir_fd, name, err);
	if (r) {
		mv_wrap(err, "snapshot %s", name);
		return r;
	}
	mv_uuid(uuid);
	snprintf(gone, sizeof gone, "gone-%s", uuid);
	if (renameat2(s->snapshots_fd, name, s->incoming_fd, gone, RENAME_NOREPLACE))
		return mv_fail(err, errno, "snapshot %s: cannot remove: %s", name, strerror(errno));
	if (fsync(s->snapshots_fd)) {
		int e = errno;
		renameat2(s->incoming_fd, gone, s->snapshots_fd, name, RENAME_NOREPLACE);
		return mv_fail(err, e, "snapshot %s: cannot sync the store: %s", name, strerror(e));
	}
	remove_entry(s->incoming_fd, gone, &freed_bytes);
	return 0;
}

// --- replace ---

// In place of the one of that name, which is then in incoming/ under the draft's.
static int publish_over(struct store *s, struct store_draft *d, struct mv_err *err)
{
	uint64_t freed_bytes = 0;
	MV_FD old_fd = -1;
	int r = store_dir_open(s, d->name, &old_fd, err);
	r = r ? r : check_only_ours(old_fd, d->name, err);
	if (r)
		return r;
	if (fsync(d->dir_fd))
		return mv_fail(err, errno, "cannot sync its folder: %s", strerror(errno));
	if (renameat2(s->incoming_fd, d->dir, s->snapshots_fd, d->name, RENAME_EXCHANGE))
		return mv_fail(err, errno, "cannot put it in the place of the old one: %s", strerror(errno));
	if (fsync(s->snapshots_fd) || fsync(s->incoming_fd)) {
		int e = errno;
		renameat2(s->incoming_fd, d->dir, s->snapshots_fd, d->name, RENAME_EXCHANGE);
		return mv_fail(err, e, "cannot sync the store: %s", strerror(e));
	}
	remove_entry(s->incoming_fd, d->dir, &freed_bytes); // else store_gc() does
	return 0;
}

int store_commit_copy(struct store *s, struct store_draft *d, struct manifest *m, bool new_memory,
		      bool replace, struct mv_err *err)
{
	int r = 0;
	mv_close(&d->memory_fd);
	memcpy(m->name, d->name, sizeof m->name);
	for (uint32_t i = 0; !r && new_memory && i < m->n_files; i++)
		if (!strcmp(m->file[i].name, "memory"))
			r = take_file(d, "memory", (uint64_t)m->cfg.mem_mib << 20, m->file[i].format,
				      m->needs_parent, &m->file[i], err);
	if (!r)
		r = write_manifest(d, m, err);
	if (!r)
		r = replace ? publish_over(s, d, err) : publish(s, d, err);
	if (r) {
		store_abort(s, d);
		mv_wrap(err, "snapshot %s", m->name);
		return r;
	}
	close_draft(d);
	return 0;
}

// --- leftovers ---

// 1: removed; 0: a draft holds it; -errno: stays. opening: there is no draft, but a process that the last
// daemon was starting when it was killed may still have its lock.
static int collect_entry(struct store *s, const char *name, bool opening, uint64_t *ret_bytes)
{
	MV_FD fd = openat(s->incoming_fd, name, OPEN_DIR);
	if (!opening && fd >= 0 && flock(fd, LOCK_EX | LOCK_NB))
		return 0;
	int r = remove_entry(s->incoming_fd, name, ret_bytes);
	return r ? r : 1;
}

static int collect(struct store *s, bool opening, void (*fn)(void *arg, const char *entry, uint64_t bytes),
		   void *arg, struct store_gc *ret_gc, struct mv_err *err)
{
	struct store_gc gc = { 0 };
	struct dirent *e;
	AUTO_DIR *d = open_stream(s->incoming_fd, ".");

	if (!d)
		return mv_fail(err, errno, "cannot read the folder incoming: %s", strerror(errno));
	pthread_mutex_lock(&s->lock);
	while ((e = readdir(d))) {
		uint64_t bytes = 0;
		int r = is_dot(e->d_name) ? 0 : collect_entry(s, e->d_name, opening, &bytes);
		gc.freed_bytes += bytes;
		gc.removed += r > 0;
		gc.kept += r < 0;
		make_printable(e->d_name);
		if (r > 0 && fn)
			fn(arg, e->d_name, bytes);
	}
	pthread_mutex_unlock(&s->lock);
	*ret_gc = gc;
	return 0;
}

int store_gc(struct store *s, void (*fn)(void *arg, const char *entry, uint64_t bytes), void *arg,
	     struct store_gc *ret_gc, struct mv_err *err)
{
	return collect(s, false, fn, arg, ret_gc, err);
}

int store_open(struct store *s, const char *root, struct mv_err *err)
{
	*s = (struct store)STORE_CLOSED;
	int r = open_root(s, root, err);
	if (r) {
		store_close(s);
		mv_wrap(err, "store %s", root);
		return r;
	}
	collect(s, true, NULL, NULL, &s->cleaned, NULL);
	return 0;
}
