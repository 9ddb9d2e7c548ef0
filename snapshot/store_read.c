// SPDX-License-Identifier: Apache-2.0
// The store's read side: what a published snapshot says and has, and the list of all.
#include "snapshot/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/store_chain.h"
#include "snapshot/store_dir.h"
#include "snapshot/working_set.h"

enum { MAX_LIST = 65536 };

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
		if (!strncmp(m->file[i].name, STORE_LAYER_PREFIX, strlen(STORE_LAYER_PREFIX)))
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
	STORE_AUTO_DIR *d = store_dir_stream(s->snapshots_fd, ".");
	struct dirent *e;
	size_t cap = 0;

	if (!d)
		return -errno;
	while (v->n < MAX_LIST && (e = readdir(d))) {
		if (store_is_dot(e->d_name))
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
			store_make_printable(v.list[i]);
			bad = mv_fail(&err, EINVAL, "snapshot %.80s: not a snapshot's name", v.list[i]);
		}
		if (bad != -ENOENT) // deleted meanwhile
			r = fn(arg, v.list[i], bad ? NULL : m, &err);
	}
	return r;
}
