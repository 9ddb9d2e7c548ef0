// SPDX-License-Identifier: Apache-2.0
#include "api/fc/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "microvm/base/util.h"
#include "snapshot/format.h"

enum { TRIES = 100 };

void fc_outfile_drop(struct fc_outfile *f)
{
	if (f->tmp[0])
		unlink(f->tmp);
	f->tmp[0] = 0;
	mv_close(&f->fd);
}

// --- copying ---

// What is data in `from`, into the same places.
static int copy_data(int from, int to, uint64_t size_bytes)
{
	uint64_t at = 0, start, end;
	int r = 0;
	for (; !r && at < size_bytes; at = end) {
		r = snap_next_data(from, at, size_bytes, &start, &end);
		r = r ? r : mv_copy_range(from, start, to, start, end - start);
	}
	return r;
}

// --- making the file ---

static int open_regular(const char *path, int *ret_fd, struct stat *ret_st, struct mv_err *err)
{
	MV_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not hold us up
	if (fd < 0 || fstat(fd, ret_st))
		return mv_fail(err, errno, "cannot open %s: %s", path, strerror(errno));
	if (!S_ISREG(ret_st->st_mode))
		return mv_fail(err, EINVAL, "%s is not a regular file", path);
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

// Beside `path`, under a name that nobody has.
static int make_tmp(struct fc_outfile *f, struct mv_err *err)
{
	const char *slash = strrchr(f->path, '/');
	int folder = slash ? (int)(slash - f->path) + 1 : 0;
	for (int i = 0; i < TRIES; i++) {
		uint32_t random;
		mv_random(&random, sizeof random);
		int n = snprintf(f->tmp, sizeof f->tmp, "%.*s.%s.%08x", folder, f->path, f->path + folder,
				 random);
		if (n >= (int)sizeof f->tmp)
			errno = ENAMETOOLONG;
		else
			f->fd = open(f->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
		if (f->fd >= 0)
			return 0;
		if (errno != EEXIST)
			break;
	}
	int e = errno;
	f->tmp[0] = 0;
	return mv_fail(err, e, "cannot make a file beside %s: %s", f->path, strerror(e));
}

static int take_over(struct fc_outfile *f, int old_fd, const struct stat *st, uint64_t base_bytes,
		     struct mv_err *err)
{
	int r = fchmod(f->fd, st->st_mode & 0777) ? -errno : 0;
	if (!r && base_bytes && (uint64_t)st->st_size == base_bytes) {
		r = ftruncate(f->fd, (off_t)base_bytes) ? -errno : copy_data(old_fd, f->fd, base_bytes);
	}
	return r ? mv_fail(err, -r, "cannot copy %s: %s", f->path, strerror(-r)) : 0;
}

int fc_outfile_open(const char *path, uint64_t base_bytes, struct fc_outfile *ret_file, struct mv_err *err)
{
	FC_OUTFILE f = FC_OUTFILE_NONE;
	struct stat st;
	MV_FD old_fd = -1;
	int r = 0;
	bool exists = !lstat(path, &st);
	// A link stays one, and what it points to is replaced.
	if (exists && !realpath(path, f.path))
		return mv_fail(err, errno, "%s: %s", path, strerror(errno));
	if (!exists && mv_strcpy(f.path, sizeof f.path, path))
		return mv_fail(err, ENAMETOOLONG, "the path %.60s... is too long", path);
	if (exists)
		r = open_regular(f.path, &old_fd, &st, err);
	r = r ? r : make_tmp(&f, err);
	if (!r && exists)
		r = take_over(&f, old_fd, &st, base_bytes, err);
	if (r)
		return r;
	*ret_file = f;
	f = (struct fc_outfile)FC_OUTFILE_NONE;
	return 0;
}

// --- publishing ---

static int sync_folder(const char *path)
{
	char folder[PATH_MAX];
	const char *slash = strrchr(path, '/');
	snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
	MV_FD fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) ? -errno : 0;
}

static int swap_in(struct fc_outfile *f, struct mv_err *err)
{
	if (rename(f->tmp, f->path))
		return mv_fail(err, errno, "cannot replace %s: %s", f->path, strerror(errno));
	f->tmp[0] = 0;
	return 0;
}

// Keeps the old file beside, and puts the new one in its place. A file system that has no links keeps none.
static int exchange(struct fc_outfile *f, struct mv_err *err)
{
	if (snprintf(f->old, sizeof f->old, "%s.old", f->tmp) >= (int)sizeof f->old)
		return mv_fail(err, ENAMETOOLONG, "the path of %s is too long", f->path);
	int e = link(f->path, f->old) ? errno : 0;
	f->kept = !e;
	f->lost = e && e != ENOENT;
	int r = swap_in(f, err);
	if (r && f->kept)
		unlink(f->old);
	return r;
}

static bool take_back(struct fc_outfile *f)
{
	return !f->lost && !(f->kept ? rename(f->old, f->path) : unlink(f->path));
}

static int swap_all(struct fc_outfile *state, struct fc_outfile *other, unsigned n, struct mv_err *err)
{
	unsigned done = 0;
	int r = 0;
	while (!r && done < n)
		if (!(r = exchange(&other[done], err)))
			done++;
	r = r ? r : swap_in(state, err);
	bool back = true;
	for (unsigned i = 0; i < done; i++)
		if (r)
			back &= take_back(&other[i]);
		else if (other[i].kept)
			unlink(other[i].old);
	if (r && state->kept && back)
		rename(state->old, state->path);
	else if (state->kept)
		unlink(state->old);
	return r;
}

int fc_outfile_publish(struct fc_outfile *state, struct fc_outfile *other, unsigned n, struct mv_err *err)
{
	for (unsigned i = 0; i < n; i++) {
		const char *twice = strcmp(state->path, other[i].path) ? NULL : state->path;
		for (unsigned k = 0; !twice && k < i; k++)
			twice = strcmp(other[k].path, other[i].path) ? NULL : other[k].path;
		if (twice)
			return mv_fail(err, EINVAL, "%s can't be two files of a snapshot", twice);
		if (fsync(other[i].fd))
			return mv_fail(err, errno, "cannot sync %s: %s", other[i].path, strerror(errno));
	}
	if (fsync(state->fd))
		return mv_fail(err, errno, "cannot sync %s: %s", state->path, strerror(errno));
	if (snprintf(state->old, sizeof state->old, "%s.old", state->tmp) >= (int)sizeof state->old)
		return mv_fail(err, ENAMETOOLONG, "the path of %s is too long", state->path);
	state->kept = !rename(state->path, state->old);
	if (!state->kept && errno != ENOENT)
		return mv_fail(err, errno, "cannot replace %s: %s", state->path, strerror(errno));
	int r = state->kept ? sync_folder(state->old) : 0; // before the others change, for sure
	if (r) {
		mv_fail(err, -r, "cannot sync the folder of %s: %s", state->path, strerror(-r));
		rename(state->old, state->path);
		return r;
	}
	r = swap_all(state, other, n, err);
	for (unsigned i = 0; !r && i <= n; i++) {
		const char *path = i < n ? other[i].path : state->path;
		if ((r = sync_folder(path)))
			mv_fail(err, -r, "cannot sync the folder of %s: %s", path, strerror(-r));
	}
	return r;
}

int fc_memory_rebase(const char *memory_path, const char *diff_path, struct mv_err *err)
{
	FC_OUTFILE f = FC_OUTFILE_NONE;
	MV_FD diff_fd = -1;
	struct stat diff, copy;
	int r = open_regular(diff_path, &diff_fd, &diff, err);
	r = r ? r : fc_outfile_open(memory_path, (uint64_t)diff.st_size, &f, err);
	if (!r && (!diff.st_size || fstat(f.fd, &copy) || copy.st_size != diff.st_size))
		r = mv_fail(err, EINVAL, "%s is no memory file of %lld bytes, as %s needs it", memory_path,
			    (long long)diff.st_size, diff_path);
	if (r)
		return r;
	r = copy_data(diff_fd, f.fd, (uint64_t)diff.st_size);
	if (r || fsync(f.fd))
		return mv_fail(err, r ? -r : errno, "cannot lay %s over %s: %s", diff_path, memory_path,
			       strerror(r ? -r : errno));
	r = swap_in(&f, err);
	if (!r && (r = sync_folder(f.path)))
		mv_fail(err, -r, "cannot sync the folder of %s: %s", memory_path, strerror(-r));
	return r;
}

int fc_memory_open(const char *path, uint32_t mem_mib, int *ret_fd, struct mv_err *err)
{
	MV_FD fd = -1;
	struct stat st;
	int r = open_regular(path, &fd, &st, err);
	if (!r && (uint64_t)st.st_size != (uint64_t)mem_mib << 20)
		r = mv_fail(err, EINVAL, "%s has %lld bytes, but the snapshot's VM has %u MiB of memory",
			    path, (long long)st.st_size, mem_mib);
	if (!r)
		*ret_fd = MV_TAKE_FD(fd);
	return r;
}
