// SPDX-License-Identifier: Apache-2.0
#include "api/passt.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/paths.h"
#include "api/spawn.h"
#include "microvm/base/msg.h"
#include "microvm/base/util.h"

#define MAX_ARGS 64
_Static_assert(VMM_CONTROL_FD == 3, "--fd 3");

// It writes its pid when it is ready; /dev/stdout is the pipe it prints on. From lo it takes
// what is not given here, so that nothing depends on the host's routes.
static const char *const fixed_args[] = {
	"passt",
	"--foreground",
	"--quiet",
	"--fd",
	"3",
	"--pid",
	"/dev/stdout",
	"--ipv4-only",
	"--address",
	PASST_ADDRESS,
	"--netmask",
	"24",
	"--gateway",
	PASST_GATEWAY,
	"--mac-addr",
	PASST_MAC,
	"--dns-forward",
	PASST_DNS,
	"--interface",
	"lo",
	"--mtu",
	"1500",
};

struct args {
	const char *v[MAX_ARGS];
	char forward[VMCFG_MAX_FORWARDS][40];
};
_Static_assert(MV_ARRAY_LEN(fixed_args) + 1 + 2 * VMCFG_MAX_FORWARDS < MAX_ARGS, "all fit");

static void make_args(const struct vmcfg_user *u, struct args *a)
{
	unsigned n = MV_ARRAY_LEN(fixed_args);
	memcpy(a->v, fixed_args, sizeof fixed_args);
	if (!u->host_loopback)
		a->v[n++] = "--no-map-gw";
	for (uint32_t i = 0; i < u->n_forwards; i++) {
		const struct vmcfg_forward *f = &u->forward[i];
		snprintf(a->forward[i], sizeof a->forward[i], "%s/%u:%u",
			 f->host_address[0] ? f->host_address : "127.0.0.1", f->host_port, f->guest_port);
		a->v[n++] = f->protocol == VMCFG_UDP ? "--udp-ports" : "--tcp-ports";
		a->v[n++] = a->forward[i];
	}
	a->v[n] = NULL;
}

int passt_start(const struct vmcfg_user *u, int theirs, struct passt *ret_p, struct mv_err *err)
{
	char path[PATH_MAX];
	struct args a;
	int pipe_fds[2];
	if (paths_find_passt(path))
		return mv_fail(err, ENOENT, "passt is not in the daemon's PATH; install the package passt");
	if (pipe2(pipe_fds, O_CLOEXEC))
		return mv_fail(err, errno, "pipe: %s", strerror(errno));
	MV_FD out = pipe_fds[0];
	MV_FD in = pipe_fds[1];
	// As root it changes its user first, and opens /dev/stdout then.
	fchmod(in, 0622);
	fcntl(out, F_SETFL, O_NONBLOCK);
	make_args(u, &a);
	struct passt p = { .pidfd = -1, .out_fd = -1 };
	int r = spawn_helper(path, (char *const *)(uintptr_t)a.v, theirs, in, &p.pidfd, &p.pid, err);
	if (r)
		return r;
	p.out_fd = MV_TAKE_FD(out);
	*ret_p = p;
	return 0;
}

// What the logging of passt says about itself is no message.
static void end_line(struct passt *p)
{
	char pid[24];
	snprintf(pid, sizeof pid, "%ld", (long)p->pid);
	p->line[p->n_line] = 0;
	p->n_line = 0;
	if (!strcmp(p->line, pid))
		p->ready = true;
	else if (p->line[0] && strncmp(p->line, "Failed to send ", 15) != 0)
		memcpy(p->message, p->line, sizeof p->message);
}

int passt_read(struct passt *p)
{
	char text[512];
	ssize_t n = read(p->out_fd, text, sizeof text);
	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR) ? -EAGAIN : -EPIPE;
	for (ssize_t i = 0; i < n; i++) {
		if (text[i] == '\n')
			end_line(p);
		else if (p->n_line < sizeof p->line - 1)
			p->line[p->n_line++] = text[i] < ' ' || text[i] > '~' ? '?' : text[i];
	}
	return 0;
}

void passt_fini(struct passt *p)
{
	mv_close(&p->out_fd);
	mv_close(&p->pidfd);
	p->pid = 0;
}
