// SPDX-License-Identifier: Apache-2.0
#include "snapshot/store_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/chunk.h"
#include "snapshot/format.h"

// Not blocking: a FIFO in place of a file must not hang the open.
#define OPEN_FILE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)

void store_cleanup_dir(DIR **d)
{
	if (*d)
		closedir(*d);
}

DIR *store_dir_stream(int parent_fd, const char *name)
{
	int fd = openat(parent_fd, name, STORE_OPEN_DIR);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d && fd >= 0)
		close(fd);
	return d;
}

bool store_is_dot(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

void store_make_printable(char *name)
{
	for (; *name; name++)
		if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-", *name))
			*name = '?';
}

int store_check_name(const char *name, struct mv_err *err)
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
	int r = store_check_name(name, err);
	if (r)
		return r;
	int fd = openat(s->snapshots_fd, name, STORE_OPEN_DIR);
	if (fd < 0 && errno == ENOENT)
		return mv_fail(err, ENOENT, "snapshot %s: there is none of that name", name);
	if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
		return mv_fail(err, EINVAL, "snapshot %s: not a folder", name);
	if (fd < 0)
		return mv_fail(err, errno, "snapshot %s: %s", name, strerror(errno));
	*ret_dir_fd = fd;
	return 0;
}

int store_file_open(int dir_fd, const char *name, int *ret_fd, uint64_t *ret_bytes, struct mv_err *err)
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
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

int store_dir_manifest(int dir_fd, const char *name, struct manifest *ret_m, struct mv_err *err)
{
	MV_FD fd = -1;
	uint64_t size_bytes;
	int r = store_file_open(dir_fd, "manifest", &fd, &size_bytes, err);
	if (!r)
		r = manifest_load(fd, ret_m, err);
	if (!r && strcmp(ret_m->name, name))
		r = mv_fail(err, EINVAL, "manifest: it belongs to a snapshot named %s", ret_m->name);
	return r;
}

int store_file_hash(int fd, struct manifest_file *f, struct mv_err *err)
{
	int r = snap_xxh3_file(fd, f->size_bytes, &f->xxh3, &f->data_bytes);
	if (r == -ENODATA)
		return mv_fail(err, EINVAL, "%s: truncated while it was read", f->name);
	return r ? mv_fail(err, -r, "%s: cannot read: %s", f->name, strerror(-r)) : 0;
}

int store_dir_file(int dir_fd, const struct manifest *m, const char *name, bool verify, int *ret_fd,
		   struct mv_err *err)
{
	const struct manifest_file *want = manifest_file_find(m, name);
	uint64_t size_bytes = 0;
	MV_FD fd = -1;

	if (!strcmp(name, "manifest"))
		return store_file_open(dir_fd, name, ret_fd, &size_bytes, err);
	if (!want)
		return mv_fail(err, EINVAL, "manifest: no file %s in it", name);
	int r = store_file_open(dir_fd, name, &fd, &size_bytes, err);
	if (r)
		return r;
	if (size_bytes != want->size_bytes)
		return mv_fail(err, EINVAL, "%s: %llu bytes long, the manifest says %llu", name,
			       (unsigned long long)size_bytes, (unsigned long long)want->size_bytes);
	if (verify) {
		struct manifest_file is = *want;
		r = store_file_hash(fd, &is, err);
		if (!r && is.xxh3 != want->xxh3)
			r = mv_fail(err, EINVAL, "%s: checksum wrong: the file is damaged", name);
		if (!r && want->format == MANIFEST_LZ4)
			r = chunk_verify(fd, (uint64_t)m->cfg.mem_mib << 20, m->needs_parent, err);
		if (r)
			return r;
	}
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}
