// SPDX-License-Identifier: Apache-2.0
#include "api/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "microvm/base/util.h"

// dir + tail, or -1 when it does not fit.
static int join(char path[PATH_MAX], const char *dir, size_t dir_len, const char *tail)
{
	int n = snprintf(path, PATH_MAX, "%.*s%s", (int)dir_len, dir, tail);
	return n < 0 || n >= PATH_MAX ? -1 : 0;
}

int paths_default_socket(char path[PATH_MAX], struct mv_err *err)
{
	const char *env = getenv("THAW_SOCKET"), *run = getenv("XDG_RUNTIME_DIR");
	if (path[0])
		return 0;
	if (env && env[0])
		return mv_strcpy(path, PATH_MAX, env) ? mv_fail(err, ENAMETOOLONG, "THAW_SOCKET is too long")
						      : 0;
	if (geteuid() == 0)
		return join(path, "/run/thaw", 9, "/thaw.sock");
	if (!run || join(path, run, strlen(run), "/thaw.sock"))
		return mv_fail(err, ENOENT,
			       "no place for the socket: XDG_RUNTIME_DIR is not set; give --socket PATH");
	return 0;
}

int paths_default_state(char path[PATH_MAX], struct mv_err *err)
{
	const char *home = getenv("HOME");
	if (path[0])
		return 0;
	if (geteuid() == 0)
		return join(path, "/var/lib/thaw", 13, "");
	if (!home || join(path, home, strlen(home), "/.local/share/thaw"))
		return mv_fail(err, ENOENT, "no state directory: HOME is not set; give --state-dir DIR");
	return 0;
}

static int search_path(char path[PATH_MAX], const char *program)
{
	const char *p = getenv("PATH");
	while (p && *p) {
		size_t n = strcspn(p, ":");
		if (n && !join(path, p, n, program) && !access(path, X_OK))
			return 0;
		p += n + (p[n] == ':');
	}
	return -1;
}

// Beside this program, else in PATH.
static int find_program(char path[PATH_MAX], const char *program)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n > 0) {
		self[n] = 0;
		size_t dir = (size_t)(strrchr(self, '/') - self);
		if (!join(path, self, dir, program) && !access(path, X_OK))
			return 0;
	}
	return search_path(path, program);
}

int paths_find_passt(char path[PATH_MAX]) { return search_path(path, "/passt"); }

int paths_default_pager(char path[PATH_MAX])
{
	int r = find_program(path, "/thaw-pager");
	if (r)
		path[0] = 0;
	return r;
}

int paths_default_vmm(char path[PATH_MAX], struct mv_err *err)
{
	if (path[0]) {
		if (access(path, X_OK))
			return mv_fail(err, errno, "--vmm %s: %s", path, strerror(errno));
		return 0;
	}
	if (!find_program(path, "/thaw-vmm"))
		return 0;
	path[0] = 0;
	return mv_fail(err, ENOENT, "thaw-vmm is neither beside thawd nor in PATH; give --vmm PATH");
}

int paths_make_dirs(const char *path, mode_t mode, struct mv_err *err)
{
	char part[PATH_MAX];
	if (mv_strcpy(part, sizeof part, path))
		return mv_fail(err, ENAMETOOLONG, "%.100s...: too long", path);
	for (char *p = part + 1; *part; p++) {
		char end = *p;
		if (end != '/' && end)
			continue;
		*p = 0;
		if (mkdir(part, end ? 0755 : mode) && errno != EEXIST)
			return mv_fail(err, errno, "can't make the folder %s: %s", part, strerror(errno));
		if (!end)
			break;
		*p = end;
	}
	return 0;
}

void paths_remove_sockets(const char *dir, bool (*keep)(const void *arg, const char *name), const void *arg)
{
	DIR *d = opendir(dir);
	struct stat st;
	for (struct dirent *e; d && (e = readdir(d));)
		if (!keep(arg, e->d_name) && !fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) &&
		    S_ISSOCK(st.st_mode))
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
}
