// SPDX-License-Identifier: Apache-2.0
#include "api/vmrec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "api/lazy.h"
#include "api/spawn.h"
#include "microvm/base/bytes.h"
#include "microvm/base/scratch.h"
#include "microvm/base/util.h"
#include "snapshot/format.h"

#define MAGIC "THAWVMRC"
#define MAX_BYTES (128u << 10)
#define DELAY_NS (2ull * 1000 * 1000) // after the first that is due: its answer goes first
#define BACKLOG 16                    // daemons that came and went before the VM looked

static const struct mv_field fields[] = {
	MV_SUB(struct vmrec, cfg, 1, vmcfg_table),
	MV_STRING(struct vmrec, from_snapshot, 2),
	MV_STRING(struct vmrec, from_snapshot_id, 3),
	MV_STRING(struct vmrec, forked_from, 4),
	MV_STRING(struct vmrec, forked_from_id, 5),
	MV_INT(struct vmrec, created_unix_ns, 6, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vmrec, requested_ns, 7, MV_U64, 0, UINT64_MAX),
	MV_FLAG(struct vmrec, owns_sockets, 8),
	MV_INT(struct vmrec, ttl_ms, 9, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vmrec, idle_timeout_ms, 10, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vmrec, first_ran_ns, 11, MV_U64, 0, UINT64_MAX),
	MV_FLAG(struct vmrec, auto_delete, 12),
	MV_INT(struct vmrec, idle_park_ms, 13, MV_U64, 0, MSG_MAX_PARK_MS),
};
static MV_DEFINE_TABLE(vmrec_table, struct vmrec, fields);

struct head {
	le32_t version, pid;
	le64_t start_ticks;
};

static struct sockaddr_un address_of(const struct server *s, const char *id)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	snprintf(a.sun_path, sizeof a.sun_path, "%s/%.36s.sock", s->vms_dir, id);
	return a;
}

int vmrec_connect(const struct server *s, const char *id)
{
	const struct sockaddr_un a = address_of(s, id);
	const int room = 4 * (int)MSG_MAX_BYTES; // as spawn_socket() gives it
	MV_FD fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&a, sizeof a))
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	return MV_TAKE_FD(fd);
}

// --- removing ---------------------------------------------------------------------------------
void vmrec_unlink(struct server *s, const char *id)
{
	unlinkat(s->vms_fd, id, 0);
	unlink(address_of(s, id).sun_path);
}

struct unlink_job {
	struct worker_job job;
	int dir_fd;
	char id[MV_UUID_LEN];
	struct sockaddr_un address;
};

static void unlink_run(struct worker_job *job)
{
	struct unlink_job *j = (struct unlink_job *)job;
	unlinkat(j->dir_fd, j->id, 0);
	unlink(j->address.sun_path);
}

static void unlink_done(struct worker_job *job) { free(job); }

// Behind whatever the recorder still has to write of it.
static void unlink_later(struct server *s, const char *id)
{
	struct unlink_job *j = malloc(sizeof *j);
	if (!j) {
		vmrec_unlink(s, id);
		return;
	}
	*j = (struct unlink_job){ .job = { .run = unlink_run, .done = unlink_done }, .dir_fd = s->vms_fd };
	mv_strcpy(j->id, sizeof j->id, id);
	j->address = address_of(s, id);
	worker_add(&s->recorder, &j->job);
}

// --- writing ----------------------------------------------------------------------------------
struct vmrec_job {
	struct worker_job job;
	struct vm *vm; // a reference; the loop's
	int dir_fd, listen_fd;
	pid_t pid;
	char id[MV_UUID_LEN];
	struct sockaddr_un address;
	struct mv_buf payload;
	struct mv_err err;
};

static int write_file(struct vmrec_job *j)
{
	struct head head = { .version = le32_make(MSG_VERSION), .pid = le32_make((uint32_t)j->pid) };
	uint64_t start_ticks;
	pid_t parent;
	MV_FD fd = openat(j->dir_fd, j->id, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return mv_fail(&j->err, errno, "%s", strerror(errno));
	if (spawn_stat(j->pid, &parent, &start_ticks))
		return mv_fail(&j->err, ESRCH, "its process has ended");
	head.start_ticks = le64_make(start_ticks);
	memcpy(j->payload.p, &head, sizeof head);
	return snap_container_write(fd, MAGIC, j->payload.p, j->payload.len, &j->err);
}

// The worker's thread. From listen(2) on the VM would outlive this daemon, so that comes last.
static void job_run(struct worker_job *job)
{
	struct vmrec_job *j = (struct vmrec_job *)job;
	if (write_file(j))
		return;
	// The file that bind(2) makes gets the socket's mode.
	if (fchmod(j->listen_fd, 0600) ||
	    bind(j->listen_fd, (struct sockaddr *)&j->address, sizeof j->address) ||
	    listen(j->listen_fd, BACKLOG))
		mv_fail(&j->err, errno, "%s: %s", j->address.sun_path, strerror(errno));
}

static void job_free(struct vmrec_job *j)
{
	mv_close(&j->listen_fd);
	mv_buf_fini(&j->payload);
	vm_unref(j->vm);
	free(j);
}

static void job_done(struct worker_job *job)
{
	struct vmrec_job *j = (struct vmrec_job *)job;
	struct vm *vm = j->vm;
	vm->outlives = vm->pid && !j->err.code;
	if (!vm->outlives)
		unlink_later(vm->srv, j->id);
	if (vm->pid && j->err.code)
		mv_log(MV_ERROR, "vm %s: will end with this daemon: %s", vm->cfg.name, j->err.msg);
	job_free(j);
}

static void start_job(struct vm *vm)
{
	static struct vmrec rec; // the loop's thread only
	static const struct head no_head;
	struct server *s = vm->srv;
	struct vmrec_job *j = calloc(1, sizeof *j);
	if (!j) {
		mv_log(MV_ERROR, "vm %s: will end with this daemon: out of memory", vm->cfg.name);
		return;
	}
	j->job = (struct worker_job){ .run = job_run, .done = job_done };
	j->vm = vm_ref(vm);
	j->dir_fd = s->vms_fd;
	j->listen_fd = MV_TAKE_FD(vm->orphan_fd);
	j->pid = vm->pid;
	memcpy(j->id, vm->cfg.id, sizeof j->id);
	j->address = address_of(s, vm->cfg.id);
	rec = (struct vmrec){ .cfg = vm->cfg,
			      .created_unix_ns = vm->created_unix_ns,
			      .requested_ns = vm->requested_ns,
			      .ttl_ms = vm->policy.ttl_ms,
			      .idle_timeout_ms = vm->policy.idle_timeout_ms,
			      .idle_park_ms = vm->policy.idle_park_ms,
			      .first_ran_ns = vm->life.first_ran_ns,
			      .auto_delete = vm->policy.auto_delete,
			      .owns_sockets = vm->owns_sockets };
	memcpy(rec.from_snapshot, vm->from_snapshot, sizeof rec.from_snapshot);
	memcpy(rec.from_snapshot_id, vm->from_snapshot_id, sizeof rec.from_snapshot_id);
	memcpy(rec.forked_from, vm->forked_from, sizeof rec.forked_from);
	memcpy(rec.forked_from_id, vm->forked_from_id, sizeof rec.forked_from_id);
	mv_buf_append(&j->payload, &no_head, sizeof no_head);
	mv_state_save(&vmrec_table, &rec, &j->payload);
	if (!j->payload.failed) {
		worker_add(&s->recorder, &j->job);
		return;
	}
	mv_log(MV_ERROR, "vm %s: will end with this daemon: out of memory", vm->cfg.name);
	job_free(j);
}

static enum mv_work_more write_next(void *arg)
{
	struct server *s = arg;
	struct vm *vm = LIST_FIRST(&s->vmrecs_due);
	if (!vm)
		return MV_WORK_OVER;
	LIST_REMOVE(vm, vmrec_link);
	vm->vmrec_due = false;
	start_job(vm);
	return MV_WORK_MORE;
}

static void on_due(void *arg)
{
	struct server *s = arg;
	mv_work_start(&s->loop, &s->vmrecs_work, write_next, s);
}

// --- a VM's life ------------------------------------------------------------------------------
int vmrec_listen(struct vm *vm, struct vm_fds *fds, struct api_err *err)
{
	fds->orphan = -1;
	if (!vm->srv->orphan_s || lazy_clone_waits(vm) || fds->handler >= 0 || vm->cgroup.fd >= 0 ||
	    !LIST_EMPTY(&vm->user_nets))
		return 0;
	vm->orphan_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	fds->orphan = vm->orphan_fd < 0 ? -1 : fcntl(vm->orphan_fd, F_DUPFD_CLOEXEC, 3);
	return fds->orphan < 0 ? api_fail(err, API_LIMIT_REACHED, "a socket for the VM: %s", strerror(errno))
			       : 0;
}

void vmrec_keep(struct vm *vm)
{
	struct server *s = vm->srv;
	if (vm->orphan_fd < 0 || vm->vmrec_due || !vm->pid || s->stopping)
		return;
	if (LIST_EMPTY(&s->vmrecs_due))
		mv_timer_arm(&s->vmrecs_timer, DELAY_NS);
	LIST_INSERT_HEAD(&s->vmrecs_due, vm, vmrec_link);
	vm->vmrec_due = true;
}

void vmrec_remove(struct vm *vm)
{
	if (vm->vmrec_due)
		LIST_REMOVE(vm, vmrec_link);
	vm->vmrec_due = false;
	mv_close(&vm->orphan_fd);
	if (vm->outlives)
		unlink_later(vm->srv, vm->cfg.id);
	vm->outlives = false; // a job in progress sees that there is no process
}

int vmrec_read(struct server *s, const char *id, struct vmrec *ret_record, struct mv_err *err)
{
	MV_SCRATCH uint8_t *bytes = NULL;
	size_t len;
	struct head head;
	MV_FD fd = openat(s->vms_fd, id, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return mv_fail(err, errno, "%s", strerror(errno));
	int r = snap_container_read(fd, MAGIC, "record", MAX_BYTES, &bytes, &len, err);
	if (r)
		return r;
	if (len < sizeof head)
		return mv_fail(err, EINVAL, "record: too short");
	memcpy(&head, bytes, sizeof head);
	if (le32_get(head.version) != MSG_VERSION)
		r = mv_fail(err, EPROTO, "record: of another version, %u", le32_get(head.version));
	else
		r = mv_state_load(&vmrec_table, bytes + sizeof head, len - sizeof head, ret_record, err);
	ret_record->version = le32_get(head.version);
	ret_record->pid = (pid_t)le32_get(head.pid);
	ret_record->start_ticks = le64_get(head.start_ticks);
	r = r ? r : vmcfg_check(&ret_record->cfg, err);
	if (!r && strcmp(ret_record->cfg.id, id))
		r = mv_fail(err, EINVAL, "record: of another VM, %s", ret_record->cfg.id);
	return r;
}

bool vmrec_owns(const struct server *s, const char *name)
{
	char id[MV_UUID_LEN];
	snprintf(id, sizeof id, "%.36s", name);
	return strlen(id) == MV_UUID_LEN - 1 && !faccessat(s->vms_fd, id, F_OK, 0);
}

int vmrecs_init(struct server *s, const char *state_dir, struct mv_err *err)
{
	int n = snprintf(s->vms_dir, sizeof s->vms_dir, "%s/vms", state_dir);
	if (n < 0 || (size_t)n >= sizeof s->vms_dir)
		return mv_fail(err, ENAMETOOLONG, "--state-dir %s: too long for Unix sockets in it",
			       state_dir);
	if (mkdir(s->vms_dir, 0700) && errno != EEXIST)
		return mv_fail(err, errno, "%s: %s", s->vms_dir, strerror(errno));
	s->vms_fd = open(s->vms_dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (s->vms_fd < 0)
		return mv_fail(err, errno, "%s: %s", s->vms_dir, strerror(errno));
	LIST_INIT(&s->vmrecs_due);
	int r = mv_timer_init(&s->loop, &s->vmrecs_timer, on_due, s);
	return r ? mv_fail(err, -r, "no timer: %s", strerror(-r)) : worker_init(&s->recorder, &s->loop, err);
}

void vmrecs_flush(struct server *s)
{
	while (write_next(s) == MV_WORK_MORE)
		;
	worker_fini(&s->recorder);
}

void vmrecs_fini(struct server *s)
{
	worker_fini(&s->recorder);
	mv_work_cancel(&s->vmrecs_work);
	mv_timer_fini(&s->vmrecs_timer);
	mv_close(&s->vms_fd);
}
