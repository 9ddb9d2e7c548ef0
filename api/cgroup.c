// SPDX-License-Identifier: Apache-2.0
#include "api/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define CPU_PERIOD_US 100000u

static const struct controller {
	const char *name;
	unsigned bit;
} controllers[] = { { "memory", CGROUP_MEMORY }, { "cpu", CGROUP_CPU }, { "pids", CGROUP_PIDS } };

// --- files ------------------------------------------------------------------------------
static int write_file(int dir_fd, const char *name, const char *text)
{
	MV_FD fd = openat(dir_fd, name, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0; // one write: the kernel takes it whole
}

static bool read_file(int dir_fd, const char *name, char *text, size_t size)
{
	MV_FD fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	text[n > 0 ? n : 0] = 0;
	return n >= 0;
}

static bool has_word(const char *text, const char *word)
{
	size_t len = strlen(word);
	for (const char *p = text; (p = strstr(p, word)); p += len)
		if ((p == text || strchr(" \n", p[-1])) && strchr(" \n", p[len]))
			return true;
	return false;
}

static unsigned list_controllers(int dir_fd, const char *file)
{
	char text[400];
	unsigned found = 0;
	read_file(dir_fd, file, text, sizeof text);
	for (size_t i = 0; i < MV_ARRAY_LEN(controllers); i++)
		if (has_word(text, controllers[i].name))
			found |= controllers[i].bit;
	return found;
}

// The count behind a word of a file of "word count" lines.
static unsigned long long count_of(int dir_fd, const char *file, const char *word)
{
	char text[1024];
	size_t len = strlen(word);
	read_file(dir_fd, file, text, sizeof text);
	for (char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL)
		if (!strncmp(p, word, len) && p[len] == ' ')
			return strtoull(p + len, NULL, 10);
	return 0;
}

// --- the daemon's ---------------------------------------------------------------------------
bool cgroup_parse_self(const char *text, char ret_path[PATH_MAX])
{
	for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
		size_t n = strcspn(p, "\n");
		if (strncmp(p, "0::/", 4) || n - 3 >= PATH_MAX)
			continue;
		memcpy(ret_path, p + 3, n - 3);
		ret_path[n - 3] = 0;
		return true;
	}
	return false;
}

// Where cgroup v2 is mounted: /sys/fs/cgroup, or below it beside v1.
static int find_own(char path[PATH_MAX])
{
	static const char *const mounts[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	char text[8192], own[PATH_MAX];
	struct statfs fs;
	if (!read_file(AT_FDCWD, "/proc/self/cgroup", text, sizeof text) || !cgroup_parse_self(text, own))
		return -ENOENT;
	for (size_t i = 0; i < MV_ARRAY_LEN(mounts); i++)
		if (!statfs(mounts[i], &fs) && fs.f_type == CGROUP2_SUPER_MAGIC)
			return snprintf(path, PATH_MAX, "%s%s", mounts[i], own) < PATH_MAX ? 0 : -ENOENT;
	return -ENOENT;
}

static bool is_delegated(int dir_fd)
{
	char one;
	return (fgetxattr(dir_fd, "user.delegate", &one, 1) == 1 && one == '1') ||
	       (fgetxattr(dir_fd, "trusted.delegate", &one, 1) == 1 && one == '1');
}

static int enable(int dir_fd, unsigned wanted)
{
	for (size_t i = 0; i < MV_ARRAY_LEN(controllers); i++) {
		char text[16];
		snprintf(text, sizeof text, "+%s", controllers[i].name);
		int r = wanted & controllers[i].bit ? write_file(dir_fd, "cgroup.subtree_control", text) : 0;
		if (r)
			return r;
	}
	return 0;
}

static int join_child(int dir_fd)
{
	if (mkdirat(dir_fd, "thawd", 0755) && errno != EEXIST)
		return -errno;
	return write_file(dir_fd, "thawd/cgroup.procs", "0"); // 0: this process
}

// Those that are not empty are somebody's.
static void remove_leftovers(int dir_fd)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d) {
		mv_close(&fd);
		return;
	}
	for (struct dirent *e; (e = readdir(d));)
		if (!strncmp(e->d_name, "vm-", 3))
			unlinkat(dir_fd, e->d_name, AT_REMOVEDIR);
	closedir(d);
}

static int set_up(struct cgroup_base *b, bool own, bool join)
{
	unsigned wanted = list_controllers(b->fd, "cgroup.controllers");
	struct statfs fs;
	if (fstatfs(b->fd, &fs) || fs.f_type != CGROUP2_SUPER_MAGIC) {
		snprintf(b->why, sizeof b->why, "it is no cgroup v2");
		return -EINVAL;
	}
	if (!wanted) {
		snprintf(b->why, sizeof b->why,
			 "it has none of the controllers memory, cpu and pids (those of cgroup v1 are no "
			 "help)");
		return -ENOTSUP;
	}
	if (faccessat(b->fd, "cgroup.subtree_control", W_OK, AT_EACCESS)) {
		snprintf(b->why, sizeof b->why, "it can't be written: %s", strerror(errno));
		return -EACCES;
	}
	if (!join) { // only asked
		b->controllers = wanted;
		return 0;
	}
	int r = own ? join_child(b->fd) : 0;
	r = r ? r : enable(b->fd, wanted);
	if (r)
		snprintf(b->why, sizeof b->why, "its controllers can't be enabled: %s%s", strerror(-r),
			 r == -EBUSY ? "; there are processes in it" : "");
	b->controllers = list_controllers(b->fd, "cgroup.subtree_control");
	remove_leftovers(b->fd);
	return r;
}

int cgroup_base_open(struct cgroup_base *b, const char *path, bool join, struct mv_err *err)
{
	int r = 0;
	*b = (struct cgroup_base){ .fd = -1 };
	if (path ? mv_strcpy(b->path, sizeof b->path, path) : find_own(b->path)) {
		snprintf(b->why, sizeof b->why, "there is no cgroup v2 here");
		r = -ENOENT;
	} else if ((b->fd = open(b->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
		r = -errno;
		snprintf(b->why, sizeof b->why, "%s", strerror(-r));
	} else if (!path && !is_delegated(b->fd)) {
		snprintf(b->why, sizeof b->why, "it is not delegated to the daemon");
		r = -EACCES;
	} else {
		r = set_up(b, !path, join);
	}
	if (!r)
		return 0;
	mv_close(&b->fd);
	b->controllers = 0;
	return path ? mv_fail(err, -r, "--cgroup %.400s: %s", path, b->why) : 0;
}

void cgroup_base_close(struct cgroup_base *b)
{
	mv_close(&b->fd);
	b->controllers = 0;
}

// --- a VM's -----------------------------------------------------------------------------------
int cgroup_write_limits(int dir_fd, const struct vm_limits *l, struct mv_err *err)
{
	const char *file = NULL;
	char text[48];
	int r = 0;
	if (l->memory_mib) {
		snprintf(text, sizeof text, "%llu", (unsigned long long)l->memory_mib << 20);
		r = write_file(dir_fd, file = "memory.max", text);
		// A VM that is half dead helps nobody. Swap would only make it slow.
		if (!r)
			r = write_file(dir_fd, file = "memory.oom.group", "1");
		if (!r && (r = write_file(dir_fd, file = "memory.swap.max", "0")) == -ENOENT)
			r = 0; // a kernel without swap
	}
	if (!r && l->cpu_percent) {
		snprintf(text, sizeof text, "%u %u", l->cpu_percent * (CPU_PERIOD_US / 100), CPU_PERIOD_US);
		r = write_file(dir_fd, file = "cpu.max", text);
	}
	if (!r && l->pids) {
		snprintf(text, sizeof text, "%u", l->pids);
		r = write_file(dir_fd, file = "pids.max", text);
	}
	return r ? mv_fail(err, -r, "limits: %s: %s", file, strerror(-r)) : 0;
}

bool cgroup_was_out_of_memory(int dir_fd) { return count_of(dir_fd, "memory.events", "oom_kill") > 0; }

static int check(const struct cgroup_base *b, const struct vm_limits *l, struct mv_err *err)
{
	unsigned lacks = ~b->controllers & ((l->memory_mib ? CGROUP_MEMORY : 0) |
					    (l->cpu_percent ? CGROUP_CPU : 0) | (l->pids ? CGROUP_PIDS : 0));
	if (b->fd < 0)
		return mv_fail(err, ENOTSUP, "limits: the daemon has no cgroup to set them in%s%.300s: %s",
			       b->path[0] ? "; " : "", b->path, b->why);
	for (size_t i = 0; i < MV_ARRAY_LEN(controllers); i++)
		if (lacks & controllers[i].bit)
			return mv_fail(err, ENOTSUP,
				       "limits: the daemon's cgroup %.300s has no %s controller", b->path,
				       controllers[i].name);
	return 0;
}

int cgroup_make(const struct cgroup_base *b, const char *id, const struct vm_limits *limits,
		struct cgroup *ret_c, struct mv_err *err)
{
	struct cgroup c = { .base = b, .fd = -1 };
	int r = check(b, limits, err);
	if (r)
		return r;
	snprintf(c.name, sizeof c.name, "vm-%s", id);
	if (mkdirat(b->fd, c.name, 0755))
		return mv_fail(err, errno, "limits: %.300s/%s: %s", b->path, c.name, strerror(errno));
	c.fd = openat(b->fd, c.name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = c.fd < 0 ? mv_fail(err, errno, "limits: %.300s/%s: %s", b->path, c.name, strerror(errno))
		     : cgroup_write_limits(c.fd, limits, err);
	if (r) {
		mv_close(&c.fd);
		unlinkat(b->fd, c.name, AT_REMOVEDIR);
		return r;
	}
	*ret_c = c;
	return 0;
}

// --- its end ------------------------------------------------------------------------------------
// One that is not empty yet: what was forked off for a snapshot is still dying.
struct dying {
	struct cgroup c;
	struct mv_watch watch;
	int events_fd;
};

static bool remove_it(const struct cgroup *c)
{
	return !unlinkat(c->base->fd, c->name, AT_REMOVEDIR) || errno != EBUSY;
}

static void on_change(void *arg, uint32_t events)
{
	struct dying *d = arg;
	char text[200];
	(void)events;
	lseek(d->events_fd, 0, SEEK_SET);
	ssize_t n = read(d->events_fd, text, sizeof text); // or it stays "changed"
	if (n > 0 && !remove_it(&d->c))
		return;
	mv_watch_del(&d->watch);
	mv_close(&d->events_fd);
	mv_close(&d->c.fd);
	free(d);
}

static bool remove_later(const struct cgroup *c, struct mv_loop *loop)
{
	struct dying *d = calloc(1, sizeof *d);
	if (!d)
		return false;
	d->c = *c;
	d->events_fd = openat(c->fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (d->events_fd < 0 || mv_watch_add(loop, &d->watch, d->events_fd, EPOLLPRI, on_change, d)) {
		mv_close(&d->events_fd);
		free(d);
		return false;
	}
	on_change(d, 0); // the change may have come before the watch
	return true;
}

void cgroup_leave(struct cgroup *c, struct mv_loop *loop)
{
	if (c->fd < 0)
		return;
	c->out_of_memory = cgroup_was_out_of_memory(c->fd);
	if (!remove_it(c)) {
		write_file(c->fd, "cgroup.kill", "1"); // Linux 5.14; older: they die with their parent
		if (remove_later(c, loop)) {
			c->fd = -1; // its own now
			return;
		}
		mv_log(MV_WARN, "%s/%s: can't be removed", c->base->path, c->name);
	}
	mv_close(&c->fd);
}
