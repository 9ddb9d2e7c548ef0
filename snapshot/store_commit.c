// SPDX-License-Identifier: Apache-2.0
// The store's drafts: what store.c shows step by step, up to the rename that publishes.
#include "snapshot/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "microvm/base/progress.h"
#include "microvm/base/scratch.h"
#include "microvm/base/util.h"
#include "snapshot/chunk.h"
#include "snapshot/format.h"
#include "snapshot/store_chain.h"
#include "snapshot/store_dir.h"

enum { WRITER_WAIT_MS = 1000 };

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
		d->dir_fd = openat(s->incoming_fd, d->dir, STORE_OPEN_DIR);
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

	int r = store_check_name(name, err);
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
	store_remove_entry(s->incoming_fd, d->dir, &freed_bytes);
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
static int wait_for_writers(int fd, const char *name, uint64_t *ret_bytes, struct mv_err *err)
{
	const struct timespec ms = { .tv_nsec = 1000000 };
	struct stat st;
	int i = 0;

	while (fcntl(fd, F_SETLEASE, F_RDLCK)) {
		if (errno != EAGAIN) // no leases here
			break;
		if (++i == WRITER_WAIT_MS)
			return mv_fail(err, EBUSY, "%s: the VM process still has it open for writing", name);
		nanosleep(&ms, NULL);
	}
	fcntl(fd, F_SETLEASE, F_UNLCK);
	if (fstat(fd, &st))
		return mv_fail(err, errno, "%s: %s", name, strerror(errno));
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

// Is it what restore can read? Sections are not interpreted here, only walked.
static int check_state(int fd, struct mv_err *err)
{
	MV_SCRATCH uint8_t *payload = NULL;
	struct snap_section sec;
	size_t len, pos = 0;
	int r = snap_container_read(fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len, err);
	if (r)
		return r;
	while ((r = snap_section_next(payload, len, &pos, &sec, err)) == 1)
		;
	return r ? mv_wrap(err, "state") : 0;
}

// What a memory file must be, before its bytes are hashed.
static int check_memory(int fd, const struct manifest *m, const struct manifest_file *f, struct mv_err *err)
{
	const uint64_t memory_bytes = (uint64_t)m->cfg.mem_mib << 20;
	struct chunk_index x;
	if (f->format == MANIFEST_LZ4) {
		int r = m->needs_parent ? chunk_index_read_incremental(fd, memory_bytes, &x, err)
					: chunk_index_read(fd, memory_bytes, &x, err);
		if (!r)
			chunk_index_fini(&x);
		return r;
	}
	if (f->size_bytes != memory_bytes)
		return mv_fail(err, EINVAL, "memory: %llu bytes were written, it should be %llu",
			       (unsigned long long)f->size_bytes, (unsigned long long)memory_bytes);
	return 0;
}

static int finish_file(int fd, const char *name, struct mv_err *err)
{
	if (fchmod(fd, 0400) || fsync(fd))
		return mv_fail(err, errno, "%s: cannot sync: %s", name, strerror(errno));
	return 0;
}

// Everything of one file: wait, check, hash, sync. f has its name and format, and gets the rest; or has all,
// and the file, which was imported, must be as it says.
static int take_file(struct store_draft *d, const struct manifest *m, struct manifest_file *f, bool imported,
		     struct mv_err *err)
{
	struct manifest_file is = *f;
	MV_FD fd = -1;
	int r = store_file_open(d->dir_fd, f->name, &fd, &is.size_bytes, err);
	if (!r && !imported)
		r = wait_for_writers(fd, f->name, &is.size_bytes, err);
	if (!r && imported && is.size_bytes != f->size_bytes)
		r = mv_fail(err, EINVAL, "%s: %llu bytes came, the manifest says %llu", f->name,
			    (unsigned long long)is.size_bytes, (unsigned long long)f->size_bytes);
	if (!r && !strcmp(f->name, "state"))
		r = check_state(fd, err);
	if (!r && !strcmp(f->name, "memory"))
		r = check_memory(fd, m, &is, err);
	if (!r) // layers: the VM process checks them
		r = store_file_hash(fd, &is, err);
	if (!r && imported && is.xxh3 != f->xxh3)
		r = mv_fail(err, EINVAL, "%s: checksum wrong: it was damaged before it was exported",
			    f->name);
	if (r)
		return r;
	*f = is;
	return finish_file(fd, f->name, err);
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
			struct manifest_file f = { .format = MANIFEST_RAW };
			manifest_layer_name(f.name, i, n);
			if (faccessat(d->dir_fd, f.name, F_OK, AT_SYMLINK_NOFOLLOW))
				break;
			r = take_file(d, m, &f, false, err);
			m->file[m->n_files++] = f;
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

// By the draft's name; replace: in place of the one that has it, which is then in incoming/ under the
// draft's.
static int publish(struct store *s, struct store_draft *d, bool replace, struct mv_err *err)
{
	const unsigned how = replace ? RENAME_EXCHANGE : RENAME_NOREPLACE;
	if (fsync(d->dir_fd))
		return mv_fail(err, errno, "cannot sync its folder: %s", strerror(errno));
	if (renameat2(s->incoming_fd, d->dir, s->snapshots_fd, d->name, how)) {
		if (errno == EEXIST)
			return mv_fail(err, EEXIST,
				       "there is one of that name already; delete it or choose "
				       "another name");
		return mv_fail(err, errno, "cannot publish: %s", strerror(errno));
	}
	if (fsync(s->snapshots_fd) || fsync(s->incoming_fd)) {
		int e = errno;
		// Not known to be on disk: take it back rather than promise it.
		renameat2(s->snapshots_fd, d->name, s->incoming_fd, d->dir, how);
		return mv_fail(err, e, "cannot sync the store: %s", strerror(e));
	}
	return 0;
}

static int publish_over(struct store *s, struct store_draft *d, struct mv_err *err)
{
	uint64_t freed_bytes = 0;
	MV_FD old_fd = -1;
	int r = store_dir_open(s, d->name, &old_fd, err);
	r = r ? r : store_check_only_ours(old_fd, d->name, err);
	r = r ? r : publish(s, d, true, err);
	if (!r)
		store_remove_entry(s->incoming_fd, d->dir, &freed_bytes); // else store_gc() does
	return r;
}

// The end of every commit; r: how its beginning went.
static int commit(struct store *s, struct store_draft *d, struct manifest *m, bool replace, int r,
		  struct mv_err *err)
{
	memcpy(m->name, d->name, sizeof m->name);
	r = r ? r : write_manifest(d, m, err);
	if (!r)
		r = replace ? publish_over(s, d, err) : publish(s, d, false, err);
	if (r) {
		store_abort(s, d);
		mv_wrap(err, "snapshot %s", m->name);
		return r;
	}
	close_draft(d);
	return 0;
}

int store_commit(struct store *s, struct store_draft *d, struct manifest *m, struct mv_err *err)
{
	mv_close(&d->state_fd);
	mv_close(&d->memory_fd);
	m->file[0] = (struct manifest_file){ .name = "state", .format = MANIFEST_RAW };
	m->file[1] = (struct manifest_file){ .name = "memory", .format = m->file[1].format };
	m->n_files = 2;
	mv_progress_begin(MV_PROGRESS_CHECKS, 0);
	int r = take_file(d, m, &m->file[0], false, err);
	r = r ? r : take_file(d, m, &m->file[1], false, err);
	r = r ? r : take_layers(d, m, err);
	r = r ? r : check_has_parent(s, m, err);
	return commit(s, d, m, false, r, err);
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
	mv_progress_begin(MV_PROGRESS_CHECKS, 0);
	for (uint32_t i = 0; !r && i < m->n_files; i++)
		r = take_file(d, m, &m->file[i], true, err);
	r = r ? r : check_has_parent(s, m, err);
	r = r ? r : choose_id(s, m, err);
	return commit(s, d, m, false, r, err);
}

int store_commit_copy(struct store *s, struct store_draft *d, struct manifest *m, bool new_memory,
		      bool replace, struct mv_err *err)
{
	int r = 0;
	mv_progress_begin(MV_PROGRESS_CHECKS, 0);
	mv_close(&d->memory_fd);
	for (uint32_t i = 0; !r && new_memory && i < m->n_files; i++)
		if (!strcmp(m->file[i].name, "memory"))
			r = take_file(d, m, &m->file[i], false, err);
	return commit(s, d, m, replace, r, err);
}
