// SPDX-License-Identifier: Apache-2.0
#include "tests/microvm/t_vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

extern char **environ;

int t_vmm_start(struct t_vmm *v, const char *program)
{
	int sv[2];
	char *argv[] = { (char *)(uintptr_t)program, NULL };
	posix_spawn_file_actions_t fa;

	memset(v, 0, sizeof *v);
	v->fd = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -errno;
	posix_spawn_file_actions_init(&fa);
	// dup2 clears close-on-exec, unless both are the same descriptor.
	int child = sv[1] == VMM_CONTROL_FD ? fcntl(sv[1], F_DUPFD_CLOEXEC, 10) : sv[1];
	posix_spawn_file_actions_adddup2(&fa, child, VMM_CONTROL_FD);
	v->spawned_ns = mv_now_ns();
	int r = posix_spawn(&v->pid, program, &fa, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	close(sv[1]);
	if (child != sv[1])
		close(child);
	v->fd = sv[0];
	if (r)
		printf("# cannot start %s: %s\n", program, strerror(r));
	return -r;
}

int t_vmm_end(struct t_vmm *v)
{
	int status = 0;
	mv_close(&v->fd);
	if (v->pid <= 0)
		return 0;
	for (int i = 0; i < 500; i++) {
		if (waitpid(v->pid, &status, WNOHANG) == v->pid) {
			v->pid = 0;
			return status;
		}
		poll(NULL, 0, 10);
	}
	printf("# VM process %d did not end by itself\n", (int)v->pid);
	kill(v->pid, SIGKILL);
	waitpid(v->pid, &status, 0);
	v->pid = 0;
	return status;
}

// Receives one message; events are kept. Returns its type or -errno.
static int receive(struct t_vmm *v, struct msg *m, int timeout_ms)
{
	struct pollfd p = { .fd = v->fd, .events = POLLIN };
	int r = poll(&p, 1, timeout_ms);
	if (r <= 0)
		return r ? -errno : -ETIMEDOUT;
	if ((r = msg_recv(v->fd, v->buf, m)))
		return r;
	struct mv_err err = { 0 };
	if (m->type == MSG_EVENT) {
		r = mv_state_load(&msg_event_table, m->body, m->body_len, &v->event, &err);
		v->got_event = true;
	} else if (m->type == MSG_LAZY && v->on_lazy && m->n_fds == 1) {
		struct msg_lazy lazy;
		r = mv_state_load(&msg_lazy_table, m->body, m->body_len, &lazy, &err);
		if (!r)
			v->on_lazy(v, &lazy, m->fds[0]);
	} else if (m->type != MSG_BALLOON_STATS) // which no test of a VM process looks at
		r = mv_state_load(&msg_reply_table, m->body, m->body_len, &v->reply, &err);
	if (r)
		printf("# bad message: %s\n", err.msg);
	return r ? r : m->type;
}

int t_vmm_call(struct t_vmm *v, uint16_t type, const struct mv_table *table, const void *body, const int *fds,
	       unsigned n_fds, int timeout_ms)
{
	struct msg m;
	uint64_t id = ++v->next_id;
	int r = msg_send(v->fd, type, id, table, body, fds, n_fds);
	while (!r) {
		r = receive(v, &m, timeout_ms);
		if (r == MSG_REPLY && m.id == id) {
			if (v->reply.code)
				printf("# %s\n", v->reply.text);
			return (int)v->reply.code;
		}
		if (r == MSG_REPLY) {
			v->late = v->reply;
			v->late_id = m.id;
		}
		r = r < 0 ? r : 0;
	}
	return r;
}

uint64_t t_vmm_send(struct t_vmm *v, uint16_t type, const int *fds, unsigned n_fds)
{
	return msg_send(v->fd, type, ++v->next_id, NULL, NULL, fds, n_fds) ? 0 : v->next_id;
}

int t_vmm_wait(struct t_vmm *v, uint64_t id, int timeout_ms)
{
	struct msg m;
	while (v->late_id != id) {
		int r = receive(v, &m, timeout_ms);
		if (r < 0)
			return r;
		if (r == MSG_REPLY) {
			v->late = v->reply;
			v->late_id = m.id;
		}
	}
	return (int)v->late.code;
}

int t_vmm_setup(struct t_vmm *v, uint16_t type, const struct vmcfg *cfg, struct vm_fds *fds, bool run)
{
	static struct msg_setup s; // large
	int list[VM_FDS_MAX];
	memset(&s, 0, sizeof s);
	s.cfg = *cfg;
	s.run = run;
	s.lazy = v->lazy;
	unsigned n = vm_fds_pack(fds, list, &s.fd_mask);
	int r = t_vmm_call(v, type, &msg_setup_table, &s, list, n, 10000);
	vm_fds_close(fds);
	return r;
}

static int read_console(struct t_vmm *v, uint64_t offset, uint32_t wait_ms)
{
	struct msg_console_read q = { .offset = offset, .max_bytes = 4096, .wait_ms = wait_ms };
	return t_vmm_call(v, MSG_CONSOLE_READ, &msg_console_read_table, &q, NULL, 0, (int)wait_ms + 5000);
}

int t_vmm_expect(struct t_vmm *v, const char *text, int timeout_ms)
{
	uint64_t deadline = mv_now_ns() + (uint64_t)timeout_ms * 1000000u;
	uint32_t wait_ms = 0;
	do {
		int r = read_console(v, v->console_at, wait_ms);
		if (r)
			return r;
		char *at = memmem(v->reply.data, v->reply.n_data, text, strlen(text));
		if (at) {
			v->console_at = v->reply.console_offset + (uint64_t)(at - (char *)v->reply.data) +
					strlen(text);
			return 0;
		}
		// Ask for more than what is there; the text may come in parts.
		uint64_t seen = v->reply.console_offset + v->reply.n_data;
		if ((r = read_console(v, seen, 100)))
			return r;
	} while (mv_now_ns() < deadline);
	printf("# \"%s\" did not come\n", text);
	return -ETIMEDOUT;
}

int t_vmm_line(struct t_vmm *v, char *ret_line, size_t size, int timeout_ms)
{
	uint64_t from = v->console_at;
	int r = t_vmm_expect(v, "\n", timeout_ms);
	if (r || (r = read_console(v, from, 0)))
		return r;
	size_t n = (size_t)(v->console_at - from) - 1;
	if (n >= size)
		return -ENOSPC;
	memcpy(ret_line, v->reply.data, n);
	ret_line[n] = 0;
	return 0;
}

int t_vmm_type(struct t_vmm *v, const char *text)
{
	static struct msg_bytes b;
	b.n_data = (uint32_t)strlen(text);
	memcpy(b.data, text, b.n_data);
	return t_vmm_call(v, MSG_CONSOLE_WRITE, &msg_bytes_table, &b, NULL, 0, 5000);
}

int t_vmm_ask(struct t_vmm *v, const char *command, char *ret_line, size_t size)
{
	char text[300];
	snprintf(text, sizeof text, "%s\n", command);
	int r = t_vmm_type(v, text);
	return r ? r : t_vmm_line(v, ret_line, size, 10000);
}

int t_vmm_wait_state(struct t_vmm *v, enum vm_state state, int timeout_ms)
{
	struct msg m;
	uint64_t deadline = mv_now_ns() + (uint64_t)timeout_ms * 1000000u;
	while (!(v->got_event && v->event.state == state)) {
		int r = mv_now_ns() > deadline ? -ETIMEDOUT : receive(v, &m, 1000);
		if (r < 0 && r != -ETIMEDOUT)
			return r;
		if (r < 0 && mv_now_ns() > deadline)
			return r;
	}
	return 0;
}

void t_tiny_config(struct vmcfg *c)
{
	memset(c, 0, sizeof *c);
	snprintf(c->name, sizeof c->name, "tiny");
	mv_uuid(c->id);
	c->vcpus = 1;
	c->mem_mib = 128;
	c->rng = true;
	snprintf(c->cmdline, sizeof c->cmdline, "thaw.genid=0xfe000");
}
