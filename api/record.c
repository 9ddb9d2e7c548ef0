// SPDX-License-Identifier: Apache-2.0
#include "api/record.h"
#include "api/counts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "api/vms.h"
#include "microvm/base/util.h"
#include "snapshot/manifest.h"
#include "snapshot/working_set.h"

struct record_job {
	struct worker_job work;
	struct vm *vm;
	int fd;
	uint64_t read_pages, written_pages;
	int result;
	struct mv_err err;
};

int record_begin(struct vm *vm, int *ret_fd, struct api_err *err)
{
	MV_FD fd = memfd_create("thaw-record", MFD_CLOEXEC);
	MV_FD theirs = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (theirs < 0)
		return api_fail(err, API_LIMIT_REACHED, "no file for the record: %s", strerror(errno));
	vm->record.fd = MV_TAKE_FD(fd);
	vm->record.state = RECORD_RUNNING;
	*ret_fd = MV_TAKE_FD(theirs);
	return 0;
}

static void end(struct vm *vm, const char *error)
{
	mv_close(&vm->record.fd);
	vm->record.state = error ? RECORD_FAILED : RECORD_DONE;
	vm_changed(vm);
	if (!error)
		return;
	snprintf(vm->record.error, sizeof vm->record.error, "%s", error);
	mv_log(MV_WARN, "vm %s: working set not recorded: %s", vm->cfg.name, error);
}

// The file is hostile: it is read once, and what is stored is written anew.
static void save_run(struct worker_job *w)
{
	struct record_job *j = (struct record_job *)w;
	const struct vm *vm = j->vm; // what is read here does not change
	struct working_set set = { 0 };
	j->result = ws_read(j->fd, "", (uint64_t)vm->cfg.mem_mib << 20, &set, &j->err);
	if (!j->result) {
		memcpy(set.snapshot_id, vm->from_snapshot_id, sizeof set.snapshot_id);
		j->read_pages = set.read_pages;
		j->written_pages = set.written_pages;
		j->result = ws_store_save(&vm->srv->store, vm->from_snapshot, &set, &j->err);
	}
	ws_fini(&set);
}

static void save_done(struct worker_job *w)
{
	struct record_job *j = (struct record_job *)w;
	struct vm *vm = j->vm;
	end(vm, j->result ? j->err.msg : NULL);
	if (!j->result) {
		mv_log(MV_INFO, "snapshot %s: working set of %llu read and %llu written pages",
		       vm->from_snapshot, (unsigned long long)j->read_pages,
		       (unsigned long long)j->written_pages);
		counts_stale(vm->srv);
	}
	mv_close(&j->fd);
	vm_unref(vm);
	free(j);
}

int record_told(struct vm *vm, const struct msg *m)
{
	struct msg_recorded done;
	if (vm->record.fd < 0 || mv_state_load(&msg_recorded_table, m->body, m->body_len, &done, NULL))
		return -EPROTO;
	struct record_job *j = done.code ? NULL : calloc(1, sizeof *j);
	if (!j) {
		end(vm, done.code ? done.text : "no memory for the record");
		return 0;
	}
	*j = (struct record_job){ .work = { .run = save_run, .done = save_done }, .vm = vm_ref(vm) };
	j->fd = MV_TAKE_FD(vm->record.fd);
	worker_add(&vm->srv->worker, &j->work);
	return 0;
}

void record_drop(struct vm *vm)
{
	if (vm->record.fd >= 0)
		end(vm, "the VM ended before it was ready");
}

void record_json(js *o, const struct vm *vm)
{
	if (vm->record.state == RECORD_NONE)
		return;
	js_put_bool(o, "recording", vm->record.state == RECORD_RUNNING);
	if (vm->record.state == RECORD_FAILED)
		js_put_str(o, "record_error", vm->record.error);
}

js *working_set_json(struct server *s, const struct manifest *m)
{
	struct working_set w;
	MV_FD fd = -1;
	if (ws_store_open(&s->store, m->name, &fd, NULL) ||
	    ws_read(fd, m->id, (uint64_t)m->cfg.mem_mib << 20, &w, NULL))
		return NULL;
	js *o = js_object();
	js_put_uint(o, "read_pages", w.read_pages);
	js_put_uint(o, "written_pages", w.written_pages);
	put_time(o, "recorded", w.recorded_unix_ns);
	ws_fini(&w);
	return o;
}
