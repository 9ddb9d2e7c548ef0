// SPDX-License-Identifier: Apache-2.0
#include "api/adopt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "api/layers.h"
#include "api/lifetime.h"
#include "api/ops_device.h"
#include "api/spawn.h"
#include "api/vmfds.h"
#include "api/vmrec.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define WAIT_NS (2ull * 1000 * 1000 * 1000)
#define ENDING_MS 2000
#define ID_LEN (MV_UUID_LEN - 1)

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

// An upgrade replaces the program's file while VMs run it.
static bool is_vmm(const struct server *s, pid_t pid)
{
	static const char deleted[] = " (deleted)";
	char link[32], path[PATH_MAX];
	snprintf(link, sizeof link, "/proc/%d/exe", (int)pid);
	ssize_t n = readlink(link, path, sizeof path - 1);
	if (n <= 0)
		return false;
	path[n] = 0;
	size_t tail = sizeof deleted - 1;
	if ((size_t)n > tail && !strcmp(path + n - tail, deleted))
		path[(size_t)n - tail] = 0;
	return !strcmp(base_name(path), "thaw-vmm") || !strcmp(base_name(path), base_name(s->vmm_path));
}

// The pidfd comes first: while what it refers to has not ended, the number is its own. -1: gone.
static int open_process(const struct server *s, const struct vmrec *rec)
{
	uint64_t start_ticks;
	pid_t parent;
	MV_FD pidfd = rec->pid > 1 ? (int)syscall(SYS_pidfd_open, rec->pid, 0) : -1;
	if (pidfd < 0 || spawn_stat(rec->pid, &parent, &start_ticks) || start_ticks != rec->start_ticks)
		return -1;
	// One whose first thread has ended has no program any more, but its sockets until the last one has.
	bool lives = is_vmm(s, rec->pid);
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	return poll(&ended, 1, lives ? 0 : ENDING_MS) == 0 && lives ? MV_TAKE_FD(pidfd) : -1;
}

// --- VMs with a record ------------------------------------------------------------------------
static void on_adopted(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct server *s = arg;
	vm->op = NULL;
	if (s->stopping)
		return;
	if (!--s->n_adopting && s->adopt_waits)
		mv_loop_stop(&s->loop);
	if (!err && vm->state && !layers_adopt(vm, reply->layers)) {
		devices_adopt(vm, reply);
		mv_log(MV_INFO, "vm %s: found again, %s", vm->cfg.name, vm_state_name(vm->state));
		return;
	}
	mv_log(MV_WARN, "vm %s: can't be taken over, killed%s%s", vm->cfg.name, err ? ": " : "",
	       err ? err->msg : "");
	snprintf(vm->exit_detail, sizeof vm->exit_detail, "could not be taken over by this daemon");
	vm_kill(vm);
}

static struct vm *new_vm(struct server *s, const struct vmrec *rec)
{
	struct vm *vm = vm_new(s, &rec->cfg);
	if (!vm)
		return NULL;
	memcpy(vm->from_snapshot, rec->from_snapshot, sizeof vm->from_snapshot);
	memcpy(vm->from_snapshot_id, rec->from_snapshot_id, sizeof vm->from_snapshot_id);
	memcpy(vm->forked_from, rec->forked_from, sizeof vm->forked_from);
	memcpy(vm->forked_from_id, rec->forked_from_id, sizeof vm->forked_from_id);
	vm->created_unix_ns = rec->created_unix_ns;
	vm->requested_ns = rec->requested_ns;
	vm->owns_sockets = rec->owns_sockets;
	vm->policy.ttl_ms = rec->ttl_ms;
	vm->policy.idle_timeout_ms = rec->idle_timeout_ms;
	vm->policy.idle_park_ms = rec->idle_park_ms;
	vm->policy.auto_delete = rec->auto_delete;
	vm->policy.has_ttl = rec->ttl_ms;
	vm->policy.has_idle_timeout = rec->idle_timeout_ms;
	vm->policy.has_idle_park = rec->idle_park_ms;
	vm->policy.has_auto_delete = rec->auto_delete;
	vm->life.first_ran_ns = rec->first_ran_ns;
	vm->outlives = vm->shown = true;
	vm->op = "adopt";
	return vm;
}

static int adopt(struct server *s, const struct vmrec *rec, int pidfd, struct api_err *err)
{
	struct vm_process p = { .pidfd = pidfd, .pid = rec->pid, .socket = vmrec_connect(s, rec->cfg.id) };
	struct vm *vm = p.socket < 0 ? NULL : new_vm(s, rec);
	if (!vm) {
		mv_close(&p.socket);
		mv_close(&p.pidfd);
		return api_fail(err, API_VM_FAILED, "its process can't be reached");
	}
	int r = vms_add(s, vm, err);
	if (!r && lifetime_reserve(s, vm)) {
		vms_remove(vm);
		r = api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	}
	if (r) {
		mv_close(&p.socket);
		mv_close(&p.pidfd);
	} else if ((r = vm_attach(vm, &p, on_adopted, s, err))) {
		vms_remove(vm);
	} else {
		s->n_adopting++;
	}
	vm_unref(vm);
	return r;
}

// It can't be kept. It takes the message when it looks for a daemon; nobody waits for that.
static void end_unknown(struct server *s, const char *id)
{
	static struct msg_adopt body; // the loop's thread only
	MV_FD fd = vmrec_connect(s, id);
	body = (struct msg_adopt){ .end = true };
	memcpy(body.id, id, ID_LEN);
	if (fd >= 0 && !msg_send(fd, MSG_ADOPT, 1, &msg_adopt_table, &body, NULL, 0))
		mv_log(MV_WARN, "vm %s: nothing is known of it: told to end", id);
	vmrec_unlink(s, id);
}

static void take_record(struct server *s, const char *id)
{
	static struct vmrec rec; // the loop's thread only
	struct mv_err err = { 0 };
	struct api_err e;
	rec = (struct vmrec){ 0 };
	int r = vmrec_read(s, id, &rec, &err);
	if (r && r != -EPROTO) {
		mv_log(MV_ERROR, "vm %s: %s; it ends", id, err.msg);
		unlinkat(s->vms_fd, id, 0); // the socket is next
		return;
	}
	int pidfd = open_process(s, &rec);
	if (pidfd >= 0 && r) {
		mv_log(MV_ERROR,
		       "vm %s: process %d is of another version of thaw (messages %u, not %u): left alone; "
		       "use that version's daemon, or kill it",
		       id, (int)rec.pid, rec.version, MSG_VERSION);
		close(pidfd);
		return;
	}
	if (pidfd >= 0 && !adopt(s, &rec, pidfd, &e))
		return;
	mv_log(MV_WARN, "vm %s (%s): %s", rec.cfg.name, id,
	       pidfd < 0 ? "ended while there was no daemon" : e.msg);
	end_unknown(s, id);
	if (rec.owns_sockets)
		vmfds_unlink_stale(&rec.cfg);
}

static void each_file(struct server *s, bool records)
{
	int fd = openat(s->vms_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	char id[MV_UUID_LEN];
	for (struct dirent *e; d && (e = readdir(d));) {
		size_t len = strlen(e->d_name);
		if (len < ID_LEN)
			continue;
		memcpy(id, e->d_name, ID_LEN);
		id[ID_LEN] = 0;
		if (records && len == ID_LEN)
			take_record(s, id);
		else if (!records && !vmrec_owns(s, id))
			end_unknown(s, id);
	}
	if (d)
		closedir(d);
}

void adopt_begin(struct server *s)
{
	each_file(s, true);
	each_file(s, false);
}

// --- the answers --------------------------------------------------------------------------------
static void on_late(void *arg)
{
	struct server *s = arg;
	mv_log(MV_WARN, "%u VMs do not answer yet", s->n_adopting);
	mv_loop_stop(&s->loop);
}

int adopt_wait(struct server *s)
{
	struct mv_timer timer = { .fd = -1 };
	if (!s->n_adopting)
		return 0;
	int r = mv_timer_init(&s->loop, &timer, on_late, s);
	r = r ? r : mv_timer_arm(&timer, WAIT_NS);
	s->adopt_waits = true;
	r = r ? r : mv_loop_run(&s->loop);
	s->adopt_waits = false;
	if (!s->stopping || s->n_live)
		mv_loop_again(&s->loop);
	mv_timer_fini(&timer);
	return r;
}
