// SPDX-License-Identifier: Apache-2.0
#include "api/listen.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "api/paths.h"
#include "microvm/base/util.h"

#define BACKLOG 1024

// Who listens there may have been killed just now, and a child of it that has not come to its exec yet
// still has the socket.
static bool is_alive(int connected_fd)
{
	struct ucred who;
	socklen_t len = sizeof who;
	return getsockopt(connected_fd, SOL_SOCKET, SO_PEERCRED, &who, &len) || who.pid <= 0 ||
	       !kill(who.pid, 0) || errno != ESRCH;
}

static int check_taken(const struct sockaddr_un *a, struct mv_err *err)
{
	struct stat st;
	if (lstat(a->sun_path, &st))
		return errno == ENOENT ? 0 : mv_fail(err, errno, "%s: %s", a->sun_path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return mv_fail(err, EADDRINUSE,
			       "%s exists and is not a socket; remove it or give another path for the socket",
			       a->sun_path);
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return mv_fail(err, errno, "socket: %s", strerror(errno));
	bool connected = !connect(fd, (const struct sockaddr *)a, sizeof *a);
	if (connected ? is_alive(fd) : errno != ECONNREFUSED)
		return mv_fail(
			err, EADDRINUSE,
			"%s: another daemon listens there; stop it or give another path for the socket",
			a->sun_path);
	if (unlink(a->sun_path))
		return mv_fail(err, errno, "can't remove the stale socket %s: %s", a->sun_path,
			       strerror(errno));
	return 0;
}

static int make_parent(const char *path, struct mv_err *err)
{
	char dir[PATH_MAX];
	const char *slash = strrchr(path, '/');
	if (!slash || slash == path)
		return 0;
	memcpy(dir, path, (size_t)(slash - path));
	dir[slash - path] = 0;
	return paths_make_dirs(dir, 0755, err);
}

int listen_unix(const char *path, int *ret_fd, struct mv_err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (mv_strcpy(a.sun_path, sizeof a.sun_path, path))
		return mv_fail(err, ENAMETOOLONG, "socket %s: longer than %zu bytes", path,
			       sizeof a.sun_path - 1);
	int r = make_parent(path, err);
	if (!r)
		r = check_taken(&a, err);
	if (r)
		return r;
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return mv_fail(err, errno, "socket: %s", strerror(errno));
	mode_t before = umask(0117); // 0660 from the first moment; no other thread makes files now
	r = bind(fd, (struct sockaddr *)&a, sizeof a) ? errno : 0;
	umask(before);
	if (r)
		return mv_fail(err, r, "%s: %s", path, strerror(r));
	if (listen(fd, BACKLOG)) {
		r = errno;
		unlink(path);
		return mv_fail(err, r, "%s: %s", path, strerror(r));
	}
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}
