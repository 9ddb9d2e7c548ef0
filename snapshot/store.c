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

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/store_dir.h"
#include "snapshot/store_lock.h"
#include "snapshot/working_set.h"

enum { MAX_DIR_ENTRIES = 2 * MANIFEST_MAX_FILES }; // a folder with more is none of ours

// --- folders ---

static int remove_file(int parent_fd, const char *name, uint64_t *ret_bytes)
{
	struct stat st;
	if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) || unlinkat(parent_fd, name, 0))
		return -errno;
	*ret_bytes += (uint64_t)st.st_blocks * 512;
	return 0;
}

int store_remove_entry(int parent_fd, const char *name, uint64_t *ret_bytes)
{
	STORE_AUTO_DIR *d = store_dir_stream(parent_fd, name);
	if (!d)
		return remove_file(parent_fd, name, ret_bytes);
	struct dirent *e;
	for (int n = 0; n < MAX_DIR_ENTRIES && (e = readdir(d));)
		if (!store_is_dot(e->d_name)) {
			remove_file(dirfd(d), e->d_name, ret_bytes);
			n++;
		}
	return unlinkat(parent_fd, name, AT_REMOVEDIR) ? -errno : 0;
}

static bool is_ours(const struct manifest *m, const char *file)
{
	return !strcmp(file, WS_FILE) || !strcmp(file, WS_NEW_FILE) || !strcmp(file, "manifest") ||
	       !strcmp(file, "state") || !strcmp(file, "memory") ||
	       !strncmp(file, STORE_LAYER_PREFIX, strlen(STORE_LAYER_PREFIX)) || manifest_file_find(m, file);
}

int store_check_only_ours(int dir_fd, const char *name, struct mv_err *err)
{
	STORE_AUTO_DIR *d = store_dir_stream(dir_fd, ".");
	MV_FREE struct manifest *m = calloc(1, sizeof *m);
	struct dirent *e;

	if (!m)
		return mv_fail(err, ENOMEM, "out of memory");
	store_dir_manifest(dir_fd, name, m, NULL); // may be damaged: then it lists nothing

	if (!d)
		return mv_fail(err, errno, "cannot read its folder: %s", strerror(errno));
	while ((e = readdir(d)))
		if (!store_is_dot(e->d_name) && !is_ours(m, e->d_name)) {
			store_make_printable(e->d_name);
			return mv_fail(err, ENOTEMPTY, "its folder holds %.80s as well; remove that by hand",
				       e->d_name);
		}
	return 0;
}

// --- delete ---

int store_delete(struct store *s, const char *name, struct mv_err *err)
{
	MV_FD dir_fd = -1;
	uint64_t freed_bytes = 0;
	char uuid[MV_UUID_LEN], gone[64];
	int r = store_dir_open(s, name, &dir_fd, err);
	if (r)
		return r;
	r = store_check_only_ours(dir_fd, name, err);
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
	store_remove_entry(s->incoming_fd, gone, &freed_bytes);
	return 0;
}

// --- leftovers ---

// 1: removed; 0: a draft holds it; -errno: stays. opening: there is no draft, but a process that the last
// daemon was starting when it was killed may still have its lock.
static int collect_entry(struct store *s, const char *name, bool opening, uint64_t *ret_bytes)
{
	MV_FD fd = openat(s->incoming_fd, name, STORE_OPEN_DIR);
	if (!opening && fd >= 0 && flock(fd, LOCK_EX | LOCK_NB))
		return 0;
	int r = store_remove_entry(s->incoming_fd, name, ret_bytes);
	return r ? r : 1;
}

static int collect(struct store *s, bool opening, void (*fn)(void *arg, const char *entry, uint64_t bytes),
		   void *arg, struct store_gc *ret_gc, struct mv_err *err)
{
	struct store_gc gc = { 0 };
	struct dirent *e;
	STORE_AUTO_DIR *d = store_dir_stream(s->incoming_fd, ".");

	if (!d)
		return mv_fail(err, errno, "cannot read the folder incoming: %s", strerror(errno));
	pthread_mutex_lock(&s->lock);
	while ((e = readdir(d))) {
		uint64_t bytes = 0;
		int r = store_is_dot(e->d_name) ? 0 : collect_entry(s, e->d_name, opening, &bytes);
		gc.freed_bytes += bytes;
		gc.removed += r > 0;
		gc.kept += r < 0;
		store_make_printable(e->d_name);
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

// --- open and close ---

static int open_subdir(struct store *s, const char *name, int *ret_fd, struct mv_err *err)
{
	if (mkdirat(s->root_fd, name, 0700) && errno != EEXIST)
		return mv_fail(err, errno, "cannot make the folder %s: %s", name, strerror(errno));
	int fd = openat(s->root_fd, name, STORE_OPEN_DIR);
	if (fd < 0)
		return mv_fail(err, errno, "cannot open the folder %s: %s", name, strerror(errno));
	*ret_fd = fd;
	return 0;
}

static int open_root(struct store *s, const char *root, struct mv_err *err)
{
	struct stat st;

	if (mkdir(root, 0700) && errno != EEXIST)
		return mv_fail(err, errno, "cannot make the folder: %s", strerror(errno));
	s->root_fd = open(root, STORE_OPEN_DIR & ~O_NOFOLLOW); // the owner may have put it elsewhere
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

void store_close(struct store *s)
{
	mv_close(&s->snapshots_fd);
	mv_close(&s->incoming_fd);
	store_lock_drop(&s->held);
	mv_close(&s->root_fd);
}
