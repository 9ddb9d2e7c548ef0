// SPDX-License-Identifier: Apache-2.0
// Limits of VM processes by cgroup v2. A VM with limits has a cgroup of its own, vm-<id>, below
// one that belongs to the daemon, and is started inside it (spawn.h): moving a process later
// costs 15 to 24 ms. No limits asked for: no cgroup is made.
//
// The daemon's cgroup is --cgroup, or its own if systemd has delegated it (Delegate=yes; the mark
// is an extended attribute). In the latter the daemon moves itself into a child "thawd" at its start,
// because controllers can't be enabled where processes are.
// Loop's thread only, but for cgroup_base_open().
#pragma once
#include <limits.h>
#include <stdbool.h>

#include "api/policy.h"
#include "microvm/base/err.h"
#include "microvm/base/loop.h"

enum { CGROUP_MEMORY = 1, CGROUP_CPU = 2, CGROUP_PIDS = 4 }; // controllers

struct cgroup_base {
	int fd;               // -1: there is none
	unsigned controllers; // enabled for children
	char path[PATH_MAX];
	char why[200]; // there is none, or it lacks a controller
};

struct cgroup { // of a VM
	const struct cgroup_base *base;
	int fd; // -1: none
	char name[48];
	bool out_of_memory; // after cgroup_leave(): a process in it was killed for that
};

// path NULL: finds the daemon's own; that there is none is no error, and base->why says why.
// join: also takes it into use: moves this process where it has to be, enables the controllers, removes
// empty cgroups that a crashed daemon left.
int cgroup_base_open(struct cgroup_base *base, const char *path, bool join, struct mv_err *err);
void cgroup_base_close(struct cgroup_base *base);

// Makes the VM's cgroup with its limits. ret_c->fd is for spawn_vmm(). The error tells
// what is missing.
int cgroup_make(const struct cgroup_base *base, const char *id, const struct vm_limits *limits,
		struct cgroup *ret_c, struct mv_err *err);

// The VM process is gone: notes why, ends what it left behind and removes the cgroup, as soon as
// it is empty. Idempotent.
void cgroup_leave(struct cgroup *c, struct mv_loop *loop);

// For tests: into and from the files of one cgroup's folder.
int cgroup_write_limits(int dir_fd, const struct vm_limits *limits, struct mv_err *err);
bool cgroup_was_out_of_memory(int dir_fd);
// "0::PATH" of a text like /proc/self/cgroup. False: there is no cgroup v2.
bool cgroup_parse_self(const char *text, char ret_path[PATH_MAX]);
