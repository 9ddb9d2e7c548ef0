// SPDX-License-Identifier: Apache-2.0
#include "api/layers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/vmrec.h"
#include "microvm/base/util.h"

#define OPEN_DIR (O_RDONLY | O_DIRECTORY | O_CLOEXEC)

struct number {
	char text[12];
};

static struct number number(uint32_t n)
{
	struct number t;
	snprintf(t.text, sizeof t.text, "%u", n);
	return t;
}

static int fail(const struct vmcfg_drive *d, const char *what, int code, struct api_err *err)
{
	enum api_code c = API_FILE_INVALID;
	if (code == ENOSPC || code == EDQUOT)
		c = API_NO_SPACE;
	else if (code == EMFILE || code == ENFILE)
		c = API_LIMIT_REACHED;
	else if (code == EACCES || code == EPERM || code == EROFS)
		c = API_FILE_DENIED;
	else if (code == ENOENT)
		c = API_FILE_NOT_FOUND;
	return api_fail(err, c, "drive %s: layer: %s%s%s: %s", d->id, what, d->layer_path[0] ? " " : "",
			d->layer_path, strerror(code));
}

// --- folders ------------------------------------------------------------------------------
struct place {
	int at_fd; // what name is relative to
	char name[VMCFG_PATH_LEN];
};

static struct place place_of(const struct vm *vm, uint32_t drive)
{
	const struct vmcfg_drive *d = &vm->cfg.drive[drive];
	struct place p = { .at_fd = vm->srv->layers_fd };
	if (d->layer == VMCFG_LAYER_KEPT)
		memcpy(p.name, d->layer_path, sizeof p.name); // absolute
	else
		snprintf(p.name, sizeof p.name, "%s.%u", vm->cfg.id, drive);
	return p;
}

static int open_folder(const struct vm *vm, uint32_t drive)
{
	struct place p = place_of(vm, drive);
	return openat(p.at_fd, p.name, OPEN_DIR);
}

static void remove_folder(int at_fd, const char *name)
{
	MV_FD fd = openat(at_fd, name, OPEN_DIR | O_NOFOLLOW);
	for (uint32_t n = 0; fd >= 0 && n <= VMCFG_MAX_LAYERS; n++)
		unlinkat(fd, number(n).text, 0);
	unlinkat(at_fd, name, AT_REMOVEDIR);
}

int layers_init(struct server *s, const char *state_dir, struct mv_err *err)
{
	char path[PATH_MAX];
	struct dirent *e;
	int n = snprintf(path, sizeof path, "%s/layers", state_dir);
	if (n < 0 || (size_t)n >= sizeof path)
		return mv_fail(err, ENAMETOOLONG, "--state-dir: too long");
	if (mkdir(path, 0700) && errno != EEXIST)
		return mv_fail(err, errno, "%s: %s", path, strerror(errno));
	s->layers_fd = open(path, OPEN_DIR | O_NOFOLLOW);
	DIR *d = s->layers_fd < 0 ? NULL : opendir(path);
	if (!d)
		return mv_fail(err, errno, "%s: %s", path, strerror(errno));
	while ((e = readdir(d)))
		if (e->d_name[0] != '.' && !vmrec_owns(s, e->d_name))
			remove_folder(s->layers_fd, e->d_name);
	closedir(d);
	return 0;
}

void layers_remove(struct vm *vm)
{
	if (!vm->owns_layers)
		return;
	vm->owns_layers = false;
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_EPHEMERAL)
			remove_folder(vm->srv->layers_fd, place_of(vm, i).name);
}

// --- the start of a VM ----------------------------------------------------------------------
// Snapshots share the layers' files, so they have to be where the store is.
static int check_kept(const struct vm *vm, const struct vmcfg_drive *d, int dir_fd, struct api_err *err)
{
	struct stat here, store;
	if (fstat(dir_fd, &here) || fstat(vm->srv->store.root_fd, &store))
		return fail(d, "cannot look at", errno, err);
	if (here.st_dev != store.st_dev)
		return api_fail(err, API_FILE_INVALID,
				"drive %s: %s is not on the file system of the daemon's state directory; "
				"choose a folder there",
				d->id, d->layer_path);
	return 0;
}

static uint32_t count_files(int dir_fd)
{
	uint32_t n = 0;
	while (n <= VMCFG_MAX_LAYERS && !faccessat(dir_fd, number(n).text, F_OK, AT_SYMLINK_NOFOLLOW))
		n++;
	return n;
}

static uint32_t layers_below(const struct layer_source *from, uint32_t drive)
{
	return from->snapshot ? manifest_layers(from->snapshot, drive) : from->vm ? from->n_layers[drive] : 0;
}

static int link_vm(const struct layer_source *from, uint32_t drive, int dir_fd, struct api_err *err)
{
	const struct vmcfg_drive *d = &from->vm->cfg.drive[drive];
	MV_FD src_fd = open_folder(from->vm, drive);
	if (src_fd < 0)
		return fail(d, "cannot open the folder", errno, err);
	for (uint32_t n = 0; n < from->n_layers[drive]; n++)
		if (linkat(src_fd, number(n).text, dir_fd, number(n).text, 0))
			return fail(d, "cannot share a file", errno, err);
	return 0;
}

static int link_below(const struct vm *vm, uint32_t drive, const struct layer_source *from, int dir_fd,
		      struct api_err *err)
{
	struct mv_err e = { 0 };
	if (count_files(dir_fd))
		return api_fail(err, API_IN_USE, "drive %s: %s has layers already; give an empty folder",
				vm->cfg.drive[drive].id, vm->cfg.drive[drive].layer_path);
	if (layers_below(from, drive) == VMCFG_MAX_LAYERS)
		return api_fail(err, API_LIMIT_REACHED,
				"drive %s: there are %d layers, a clone would have one too many; copy the "
				"disk in a guest and give it as path with layer none",
				vm->cfg.drive[drive].id, VMCFG_MAX_LAYERS);
	if (from->vm)
		return link_vm(from, drive, dir_fd, err);
	if (!store_copy_layers(&vm->srv->store, from->snapshot, drive, dir_fd, &e))
		return 0;
	return api_from(err, &e, e.code == ENOENT ? API_SNAPSHOT_NOT_FOUND : API_SNAPSHOT_CORRUPT);
}

// An empty file at the end of the folder, there to stay if it is a kept one.
static int add_file(const struct vmcfg_drive *d, int dir_fd, uint32_t n, int *ret_fd, struct api_err *err)
{
	*ret_fd = openat(dir_fd, number(n).text, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (*ret_fd < 0 || (d->layer == VMCFG_LAYER_KEPT && fsync(dir_fd)))
		return fail(d, "cannot make a file", errno, err);
	return 0;
}

static int open_files(struct vm *vm, uint32_t drive, int dir_fd, struct vm_fds *fds, struct api_err *err)
{
	const struct vmcfg_drive *d = &vm->cfg.drive[drive];
	uint32_t n = count_files(dir_fd);
	if (n > VMCFG_MAX_LAYERS)
		return api_fail(err, API_LIMIT_REACHED, "drive %s: %s has more than %d layers", d->id,
				d->layer_path, VMCFG_MAX_LAYERS);
	for (uint32_t i = 0; i < n; i++) {
		int mode = i + 1 < n ? O_RDONLY : O_RDWR;
		fds->layer[drive][i] =
			openat(dir_fd, number(i).text, mode | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		if (fds->layer[drive][i] < 0)
			return fail(d, "cannot open a file", errno, err);
	}
	vm->n_layers[drive] = n;
	return 0;
}

static int open_drive(struct vm *vm, uint32_t drive, const struct layer_source *from, struct vm_fds *fds,
		      struct api_err *err)
{
	const struct vmcfg_drive *d = &vm->cfg.drive[drive];
	struct place p = place_of(vm, drive);
	bool kept = d->layer == VMCFG_LAYER_KEPT;
	uint32_t below = layers_below(from, drive);
	MV_FD fresh_fd = -1;
	if (mkdirat(p.at_fd, p.name, 0700) && (!kept || errno != EEXIST))
		return fail(d, "cannot make the folder", errno, err);
	MV_FD dir_fd = openat(p.at_fd, p.name, OPEN_DIR);
	if (dir_fd < 0)
		return fail(d, "cannot open the folder", errno, err);
	int r = kept ? check_kept(vm, d, dir_fd, err) : 0;
	if (!r && below)
		r = link_below(vm, drive, from, dir_fd, err);
	if (!r && (below || !count_files(dir_fd)))
		r = add_file(d, dir_fd, below, &fresh_fd, err);
	return r ? r : open_files(vm, drive, dir_fd, fds, err);
}

int layers_open(struct vm *vm, const struct layer_source *from, struct vm_fds *fds, struct api_err *err)
{
	int r = 0;
	for (uint32_t i = 0; !r && i < vm->cfg.n_drives; i++) {
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_NONE)
			continue;
		vm->owns_layers = true;
		r = open_drive(vm, i, from, fds, err);
	}
	if (r)
		layers_remove(vm);
	return r;
}

// --- a snapshot ----------------------------------------------------------------------------
static int freeze_drive(struct vm *vm, uint32_t drive, struct layer_fds *f, struct api_err *err)
{
	const struct vmcfg_drive *d = &vm->cfg.drive[drive];
	uint32_t n = vm->n_layers[drive];
	if (n == VMCFG_MAX_LAYERS)
		return api_fail(err, API_LIMIT_REACHED,
				"drive %s has %u layers, which is the most: a snapshot would add one", d->id,
				n);
	MV_FD dir_fd = open_folder(vm, drive);
	if (dir_fd < 0)
		return fail(d, "cannot open the folder", errno, err);
	f->fd[f->n] = openat(dir_fd, number(n - 1).text, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (f->fd[f->n++] < 0)
		return fail(d, "cannot open a file", errno, err);
	return add_file(d, dir_fd, n, &f->fd[f->n++], err);
}

int layers_freeze(struct vm *vm, struct layer_fds *ret_fds, struct api_err *err)
{
	struct layer_fds f = { .n = 0 };
	int r = 0;
	for (uint32_t i = 0; !r && i < vm->cfg.n_drives; i++) {
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_NONE)
			continue;
		vm->freezing = true;
		r = freeze_drive(vm, i, &f, err);
	}
	if (r) {
		layer_fds_close(&f);
		layers_freeze_end(vm, false);
	} else {
		*ret_fds = f;
	}
	return r;
}

void layer_fds_close(struct layer_fds *f)
{
	while (f->n)
		mv_close(&f->fd[--f->n]);
}

void layers_freeze_end(struct vm *vm, bool frozen)
{
	if (!vm->freezing)
		return;
	vm->freezing = false;
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++) {
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_NONE)
			continue;
		MV_FD dir_fd = open_folder(vm, i);
		if (frozen)
			vm->n_layers[i]++;
		else if (dir_fd >= 0)
			unlinkat(dir_fd, number(vm->n_layers[i]).text, 0);
	}
}

int layers_link(struct vm *vm, struct store_draft *d, struct mv_err *err)
{
	int r = 0;
	for (uint32_t i = 0; !r && i < vm->cfg.n_drives; i++) {
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_NONE)
			continue;
		MV_FD dir_fd = open_folder(vm, i);
		for (uint32_t n = 0; !r && n + 1 < vm->n_layers[i]; n++) {
			char name[32];
			manifest_layer_name(name, i, n);
			r = store_link(d, dir_fd, number(n).text, name, err);
		}
	}
	return r;
}

// --- after a restart of the daemon -----------------------------------------------------------
// The earlier daemon may have ended between making a fresh file and hearing that the VM took it.
int layers_adopt(struct vm *vm, const uint8_t n_layers[VMCFG_MAX_DRIVES])
{
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++) {
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_NONE)
			continue;
		vm->owns_layers = true;
		MV_FD dir_fd = open_folder(vm, i);
		if (dir_fd < 0)
			return -errno;
		uint32_t n = n_layers[i];
		if (!n || n > VMCFG_MAX_LAYERS || n > count_files(dir_fd))
			return -EINVAL;
		unlinkat(dir_fd, number(n).text, 0);
		vm->n_layers[i] = n;
	}
	return 0;
}
