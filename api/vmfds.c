// SPDX-License-Identifier: Apache-2.0
#include "api/vmfds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "api/tap.h"
#include "microvm/base/util.h"

static int open_error(const char *what, const char *path, int code, bool writing, struct api_err *err)
{
	switch (code) {
	case ENOENT:
	case ENOTDIR:
		return api_fail(err, API_FILE_NOT_FOUND,
				"%s: %s does not exist; give the absolute path of a file on the "
				"daemon's host",
				what, path);
	case EACCES:
	case EPERM:
	case EROFS:
		return api_fail(err, API_FILE_DENIED, "%s: the daemon may not %s %s (%s); %s", what,
				writing ? "write" : "read", path, strerror(code),
				writing ? "change its rights or set read_only" : "change its rights");
	case EMFILE:
	case ENFILE:
		return api_fail(err, API_LIMIT_REACHED,
				"%s: too many open files; raise the daemon's limit (ulimit -n)", what);
	default:
		return api_fail(err, API_FILE_INVALID, "%s: %s: %s; give a regular file", what, path,
				strerror(code));
	}
}

// O_NONBLOCK: a FIFO must not block the daemon before it is recognised.
int vmfds_file(const char *what, const char *path, bool writing, bool block_ok, int *ret_fd,
	       struct api_err *err)
{
	struct stat st;
	MV_FD fd = open(path, (writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 || fstat(fd, &st))
		return open_error(what, path, errno, writing, err);
	if (!S_ISREG(st.st_mode) && !(block_ok && S_ISBLK(st.st_mode)))
		return api_fail(err, API_FILE_INVALID, "%s: %s is not a regular file%s", what, path,
				block_ok ? " or block device" : "");
	if (S_ISREG(st.st_mode) && st.st_size == 0)
		return api_fail(err, API_FILE_INVALID, "%s: %s is empty", what, path);
	fcntl(fd, F_SETFL, 0);
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static int open_drive(const struct vmcfg_drive *d, int *ret_fd, struct api_err *err)
{
	char what[VMCFG_NAME_LEN + 8];
	snprintf(what, sizeof what, "drive %s", d->id);
	bool writing = !d->read_only && d->layer == VMCFG_LAYER_NONE;
	return vmfds_file(what, d->path, writing, true, ret_fd, err);
}

int vmfds_kvm(const char *path, int *ret_fd, struct api_err *err)
{
	struct stat st;
	MV_FD fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 && (errno == EACCES || errno == EPERM))
		return api_fail(err, API_KVM_DENIED,
				"the daemon may not use %s; add its user to the group kvm (thaw doctor "
				"tells more)",
				path);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE))
		return open_error("kvm", path, errno, true, err);
	if (fd < 0 || fstat(fd, &st) || !S_ISCHR(st.st_mode))
		return api_fail(err, API_NO_KVM,
				"%s is not there; load kvm_intel or kvm_amd, or enable virtualisation "
				"in the firmware (thaw doctor tells more)",
				path);
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static int open_socket(const struct vmcfg_net *n, int *ret_fd, struct api_err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	_Static_assert(sizeof a.sun_path == sizeof n->socket, "VMCFG_SOCKET_LEN is that of sun_path");
	memcpy(a.sun_path, n->socket, sizeof a.sun_path);
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&a, sizeof a)) {
		*ret_fd = MV_TAKE_FD(fd);
		return 0;
	}
	switch (errno) {
	case ENOENT:
	case ENOTDIR:
		return api_fail(err, API_FILE_NOT_FOUND,
				"net %s: socket %s does not exist; start passt first: passt --socket %s",
				n->id, n->socket, n->socket);
	case ECONNREFUSED: // also: not a socket
		return api_fail(err, API_FILE_INVALID,
				"net %s: socket %s: nobody listens there, or it is no socket; start passt: "
				"passt --socket %s",
				n->id, n->socket, n->socket);
	case EPROTOTYPE:
		return api_fail(err, API_FILE_INVALID, "net %s: socket %s is not a stream socket", n->id,
				n->socket);
	case EAGAIN:
		return api_fail(
			err, API_IN_USE,
			"net %s: socket %s accepts no connection now; give this VM a passt of its own", n->id,
			n->socket);
	case EACCES:
	case EPERM:
		return api_fail(err, API_FILE_DENIED,
				"net %s: the daemon may not connect to socket %s; change its rights", n->id,
				n->socket);
	default: return open_error("net", n->socket, errno, true, err);
	}
}

// A socket file nobody listens on is a leftover and is replaced; anything else is kept.
bool vmfds_remove_stale(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct stat st;
	if (mv_strcpy(a.sun_path, sizeof a.sun_path, path) || lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&a, sizeof a) == 0 || errno != ECONNREFUSED)
		return false;
	return unlink(path) == 0;
}

// A listening socket with a file of its own.
static int open_listener(const char *what, const char path[VMCFG_SOCKET_LEN], int *ret_fd,
			 struct api_err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	_Static_assert(sizeof a.sun_path == VMCFG_SOCKET_LEN, "VMCFG_SOCKET_LEN is that of sun_path");
	memcpy(a.sun_path, path, sizeof a.sun_path);
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return open_error(what, path, errno, true, err);
	int r = bind(fd, (struct sockaddr *)&a, sizeof a);
	if (r && errno == EADDRINUSE && vmfds_remove_stale(path))
		r = bind(fd, (struct sockaddr *)&a, sizeof a);
	if (r && errno == EADDRINUSE)
		return api_fail(err, API_IN_USE, "%s: %s exists and is in use; give another path", what,
				path);
	if (r)
		return open_error(what, path, errno, true, err);
	// Nobody can connect before listen(2), so the mode is right from the start.
	if (chmod(path, 0660) || listen(fd, 128)) {
		r = errno;
		unlink(path);
		return open_error(what, path, r, true, err);
	}
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

int vmfds_vsock(const struct vmcfg_vsock *v, int *ret_fd, struct api_err *err)
{
	return open_listener("vsock", v->path, ret_fd, err);
}

void vmfds_unlink(const struct vmcfg *cfg)
{
	if (cfg->vsock.present)
		unlink(cfg->vsock.path);
	for (uint32_t i = 0; i < cfg->n_consoles; i++)
		unlink(cfg->console[i].path);
}

void vmfds_unlink_stale(const struct vmcfg *cfg)
{
	if (cfg->vsock.present)
		vmfds_remove_stale(cfg->vsock.path);
	for (uint32_t i = 0; i < cfg->n_consoles; i++)
		vmfds_remove_stale(cfg->console[i].path);
}

// All of them, or none is left behind.
static int open_consoles(const struct vmcfg *cfg, struct vm_fds *f, struct api_err *err)
{
	int r = 0;
	for (uint32_t i = 0; !r && i < cfg->n_consoles; i++) {
		char what[VMCFG_NAME_LEN + 10];
		snprintf(what, sizeof what, "console %s", cfg->console[i].id);
		r = open_listener(what, cfg->console[i].path, &f->console[i], err);
	}
	for (uint32_t i = 0; r && i < cfg->n_consoles; i++)
		if (f->console[i] >= 0)
			unlink(cfg->console[i].path);
	return r;
}

int vmfds_open_handler(const char *path, int *ret_fd, struct api_err *err)
{
	struct stat st;
	MV_FD fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
		return api_fail(err, API_FILE_NOT_FOUND,
				"page_handler: %s does not exist; start the page handler first", path);
	if (fd < 0 || fstat(fd, &st))
		return open_error("page_handler", path, errno, false, err);
	if (!S_ISSOCK(st.st_mode))
		return api_fail(err, API_FILE_INVALID, "page_handler: %s is not a Unix socket", path);
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

int vmfds_net(const struct vmcfg_net *n, int *fds, struct api_err *err)
{
	if (n->user.present || vmcfg_net_alone(n))
		return 0;
	return n->socket[0] ? open_socket(n, fds, err) : tap_open(n, fds, err);
}

static int open_all(const struct vmcfg *cfg, const char *kvm_path, enum vmfds_for what, struct vm_fds *f,
		    struct api_err *err)
{
	int r = vmfds_kvm(kvm_path, &f->kvm, err);
	if (!r && what == VMFDS_BOOT)
		r = vmfds_file("kernel", cfg->kernel, false, false, &f->kernel, err);
	if (!r && what == VMFDS_BOOT && cfg->initrd[0])
		r = vmfds_file("initrd", cfg->initrd, false, false, &f->initrd, err);
	for (uint32_t i = 0; !r && i < cfg->n_drives; i++)
		r = open_drive(&cfg->drive[i], &f->drive[i], err);
	for (uint32_t i = 0; !r && i < cfg->n_pmems; i++) {
		char name[VMCFG_NAME_LEN + 8];
		snprintf(name, sizeof name, "pmem %s", cfg->pmem[i].id);
		r = vmfds_file(name, cfg->pmem[i].path, !cfg->pmem[i].read_only, false, &f->pmem[i], err);
	}
	for (uint32_t i = 0; !r && i < cfg->n_nets; i++)
		if (what != VMFDS_SHELL || !cfg->net[i].tap[0])
			r = vmfds_net(&cfg->net[i], f->tap[i], err);
	// Last, since they leave files behind.
	if (!r && (r = open_consoles(cfg, f, err)))
		return r;
	if (!r && cfg->vsock.present && (r = vmfds_vsock(&cfg->vsock, &f->vsock, err)))
		for (uint32_t i = 0; i < cfg->n_consoles; i++)
			unlink(cfg->console[i].path);
	return r;
}

int vmfds_open(const struct vmcfg *cfg, const char *kvm_path, enum vmfds_for what, struct vm_fds *ret_fds,
	       struct api_err *err)
{
	struct vm_fds f;
	vm_fds_init(&f);
	int r = open_all(cfg, kvm_path, what, &f, err);
	if (r)
		vm_fds_close(&f);
	else
		*ret_fds = f;
	return r;
}
