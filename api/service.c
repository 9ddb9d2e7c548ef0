// SPDX-License-Identifier: Apache-2.0
#include "api/service.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define FIRST_FD 3 // SD_LISTEN_FDS_START

static struct sockaddr_un manager;
static socklen_t manager_len; // 0: nobody

static bool is(const char *text, long v)
{
	char expected[24];
	snprintf(expected, sizeof expected, "%ld", v);
	return !strcmp(text, expected);
}

static int int_option(int fd, int option)
{
	int v = -1;
	socklen_t len = sizeof v;
	return getsockopt(fd, SOL_SOCKET, option, &v, &len) ? -1 : v;
}

static int check(int fd, char path[PATH_MAX], struct mv_err *err)
{
	struct sockaddr_un a = { 0 };
	socklen_t len = sizeof a;
	if (int_option(fd, SO_DOMAIN) != AF_UNIX || int_option(fd, SO_TYPE) != SOCK_STREAM ||
	    int_option(fd, SO_ACCEPTCONN) != 1)
		return mv_fail(err, EINVAL,
			       "LISTEN_FDS: descriptor %d is no listening Unix stream socket; "
			       "use ListenStream=/PATH in the socket unit",
			       fd);
	if (getsockname(fd, (struct sockaddr *)&a, &len) || len <= offsetof(struct sockaddr_un, sun_path) ||
	    a.sun_path[0] != '/')
		return mv_fail(err, EINVAL, "LISTEN_FDS: the socket has no path; use ListenStream=/PATH");
	snprintf(path, PATH_MAX, "%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path)), a.sun_path);
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC))
		return mv_fail(err, errno, "LISTEN_FDS: %s", strerror(errno));
	return 0;
}

int service_socket(int *ret_fd, char path[PATH_MAX], struct mv_err *err)
{
	const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
	int r = 0, fd = -1;
	if (pid && is(pid, getpid())) { // else it is for an ancestor
		if (!fds || strcmp(fds, "1"))
			r = mv_fail(err, EINVAL, "LISTEN_FDS is \"%.20s\"; thawd takes exactly one socket",
				    fds ? fds : "");
		else if (!(r = check(FIRST_FD, path, err)))
			fd = FIRST_FD;
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	if (!r)
		*ret_fd = fd;
	return r;
}

int service_init(struct mv_err *err)
{
	const char *path = getenv("NOTIFY_SOCKET");
	size_t len = path ? strlen(path) : 0;
	if (len && (len >= sizeof manager.sun_path || (path[0] != '/' && path[0] != '@')))
		return mv_fail(err, EINVAL, "NOTIFY_SOCKET=%.120s: neither a path nor an abstract socket",
			       path);
	if (len) {
		manager.sun_family = AF_UNIX;
		memcpy(manager.sun_path, path, len);
		if (path[0] == '@')
			manager.sun_path[0] = 0;
		manager_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
	}
	unsetenv("NOTIFY_SOCKET");
	return 0;
}

void service_tell(const char *what)
{
	if (!manager_len)
		return;
	MV_FD fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || sendto(fd, what, strlen(what), MSG_NOSIGNAL | MSG_DONTWAIT,
			     (const struct sockaddr *)&manager, manager_len) < 0)
		mv_log(MV_WARN, "can't tell the service manager %s: %s", what, strerror(errno));
}
