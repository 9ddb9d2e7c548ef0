// SPDX-License-Identifier: Apache-2.0
// POST /v1/snapshots/{name}/clone: N new VMs of one snapshot.
//
// Theory of operation. The manifest is read and the snapshot's files are opened once per
// request and checked, and the host's CPU compared with the guest's, or that was done before
// (prepare.h). Then clones are started, up to MAX_STARTING at a time so that the loop stays
// free and N is not bounded by descriptors in flight; each that ends its start lets the next
// one begin. The answer goes out when all have either answered or are completely gone: 201
// all there, 207 some, else the first one's error.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/ops.h"
#include "api/ops_snapshot.h"
#include "api/prepare.h"
#include "api/routes.h"
#include "api/templates.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define MAX_STARTING 8

struct clone_job;

struct clone_item {
	struct clone_job *job;
	struct vm *vm; // held until the answer is out
	struct vm_waiter end;
	char name[VMCFG_NAME_LEN];
	const struct api_err *err; // NULL: it is there
	bool running;              // when it was ready
};

struct clone_job {
	struct prepare p;
	struct server *s;
	struct http_req *req;
	struct clone_body body;
	struct clone_item *items; // body.count
	uint32_t next, starting, n_failed;
	unsigned next_number; // of the names chosen with name_prefix
};

static const struct api_err no_memory = { API_OUT_OF_MEMORY, "no memory for the clone" };

static void job_free(struct clone_job *j)
{
	for (uint32_t i = 0; j->items && i < j->body.count; i++) {
		vm_unref(j->items[i].vm);
		if (j->items[i].err != &no_memory)
			free((void *)j->items[i].err);
	}
	free(j->items);
	free(j->body.clones);
	prepare_fini(&j->p);
	free(j);
}

// --- the answer -----------------------------------------------------------------------
static js *item_json(const struct clone_item *it, uint64_t received_ns)
{
	js *o = js_object();
	const struct vm *vm = it->vm;
	if (it->name[0])
		js_put_str(o, "name", it->name);
	if (it->err) {
		js_put(o, "error", err_json(it->err));
		return o;
	}
	js *t = js_object();
	js_put_str(o, "id", vm->cfg.id);
	js_put_str(o, "state", vm_state_name(vm->state));
	if (vm->cfg.vsock.present)
		js_put_str(o, "vsock_path", vm->cfg.vsock.path);
	js_put_uint(t, "accepted", 0);
	put_us(t, "process_ready", vm->times.process_start, received_ns);
	put_us(t, "kvm_ready", vm->times.kvm_ready, received_ns);
	put_us(t, "state_loaded", vm->times.loaded, received_ns);
	put_us(t, "running", vm->times.running, received_ns);
	js_put(o, "timing_us", t);
	return o;
}

static void answer(struct clone_job *j)
{
	js *o = js_object(), *list = js_list();
	unsigned status = j->n_failed ? 207 : 201;
	if (j->n_failed == j->body.count) {
		status = api_code_info(j->items[0].err->code)->status;
		js_put(o, "error", err_json(j->items[0].err));
	}
	for (uint32_t i = 0; i < j->body.count; i++)
		js_add(list, item_json(&j->items[i], j->req->received_ns));
	js_put(o, "clones", list);
	reply_json(j->req, status, o);
	job_free(j);
}

// --- one clone ----------------------------------------------------------------------------
static void advance(struct clone_job *j);

static void item_failed(struct clone_item *it, const struct api_err *err)
{
	struct api_err *copy = malloc(sizeof *copy);
	if (copy)
		*copy = *err;
	it->err = copy ? copy : &no_memory;
	it->job->n_failed++;
}

static void on_undone(void *arg, struct vm *vm)
{
	struct clone_item *it = arg;
	(void)vm;
	it->job->starting--;
	advance(it->job);
}

static void on_restored(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct clone_item *it = arg;
	(void)reply;
	vm->op = NULL;
	if (!err) {
		vm->shown = true;
		on_undone(it, vm);
		return;
	}
	item_failed(it, err);
	vms_remove(vm);
	if (vm_has_process(vm)) { // answered when it is gone, so that nothing is left behind
		vm_wait_end(vm, &it->end, on_undone, it);
		vm_kill(vm);
	} else {
		on_undone(it, vm);
	}
}

// <prefix>-<n>, the first n that is free.
static int choose_name(struct clone_job *j, struct vmcfg *cfg, struct api_err *err)
{
	const char *prefix = j->body.name_prefix[0] ? j->body.name_prefix : j->p.m.name;
	struct known_snapshot *t = j->body.name_prefix[0] ? NULL : template_get(j->s, &j->p.m);
	unsigned *next = t ? &t->next_clone : &j->next_number;
	for (unsigned n = *next;; n++) {
		char name[VMCFG_NAME_LEN + 12];
		snprintf(name, sizeof name, "%s-%u", prefix, n);
		if (mv_strcpy(cfg->name, sizeof cfg->name, name))
			return api_fail(err, API_INVALID_VALUE,
					"name_prefix: \"%s\" is too long for \"-%u\" behind it", prefix, n);
		if (vms_name_taken(j->s, name))
			continue;
		*next = n + 1;
		return 0;
	}
}

static int launch(struct clone_item *it, struct vm *vm, struct api_err *err)
{
	struct clone_job *j = it->job;
	struct vm_fds fds;
	int r = ops_open_files(vm, &j->p.m, &fds, err);
	if (r)
		return r;
	fds.state = fcntl(j->p.state_fd, F_DUPFD_CLOEXEC, 3);
	if (j->p.lazy)
		lazy_clone_begin(j->p.lazy, vm, &fds.memory, &fds.uffd);
	else
		fds.memory = fcntl(j->p.memory_fd, F_DUPFD_CLOEXEC, 3);
	vm->op = "clone";
	if (fds.state >= 0 && fds.memory >= 0)
		return vm_launch(vm, MSG_RESTORE, j->body.run, &fds, on_restored, it, err);
	ops_close_files(vm, &fds);
	return api_fail(err, API_LIMIT_REACHED, "too many open files; raise the daemon's limit");
}

static int start_item(struct clone_item *it, const struct clone_spec *spec, struct api_err *err)
{
	static const struct clone_spec plain;
	static struct vmcfg cfg; // the loop's thread only
	struct clone_job *j = it->job;
	if (j->s->stopping)
		return api_fail(err, API_SHUTTING_DOWN, "the daemon is ending");
	int r = clone_config(&j->p.m.cfg, spec ? spec : &plain, &cfg, err);
	if (!r && !cfg.name[0])
		r = choose_name(j, &cfg, err);
	if (r)
		return r;
	memcpy(it->name, cfg.name, sizeof it->name);
	ops_default_vsock(j->s, &cfg);
	it->vm = vm_new(j->s, &cfg);
	if (!it->vm)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	memcpy(it->vm->from_snapshot, j->p.m.name, sizeof it->vm->from_snapshot);
	memcpy(it->vm->from_snapshot_id, j->p.m.id, sizeof it->vm->from_snapshot_id);
	it->vm->requested_ns = j->req->received_ns;
	r = vms_add(j->s, it->vm, err);
	if (!r && (r = launch(it, it->vm, err)))
		vms_remove(it->vm);
	return r;
}

static void advance(struct clone_job *j)
{
	while (j->next < j->body.count && j->starting < MAX_STARTING) {
		uint32_t i = j->next++;
		struct clone_item *it = &j->items[i];
		struct api_err err;
		it->job = j;
		if (start_item(it, j->body.clones ? &j->body.clones[i] : NULL, &err))
			item_failed(it, &err);
		else
			j->starting++;
	}
	if (j->next == j->body.count && !j->starting)
		answer(j);
}

// --- the job --------------------------------------------------------------------------------
static void fail_job(struct clone_job *j, const struct api_err *err)
{
	reply_err(j->req, err);
	job_free(j);
}

static int job_parse(struct clone_job *j, struct http_req *r, struct api_err *err)
{
	int result = clone_parse(r->body, r->body_len, &j->body, err);
	if (result)
		return result;
	j->items = calloc(j->body.count, sizeof *j->items);
	return j->items ? 0 : api_fail(err, API_OUT_OF_MEMORY, "no memory for %u clones", j->body.count);
}

static void on_prepared(struct prepare *p, const struct api_err *err)
{
	struct clone_job *j = MV_CONTAINER(p, struct clone_job, p);
	if (!err) {
		advance(j);
	} else if (p->cpu.n_missing) {
		reply_json(j->req, api_code_info(err->code)->status, cpu_error_json(p->m.name, &p->cpu));
		job_free(j);
	} else {
		fail_job(j, err);
	}
}

void op_clone(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct clone_job *j = calloc(1, sizeof *j);
	if (!j) {
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
		reply_err(r, &err);
		return;
	}
	j->s = s;
	j->req = r;
	j->next_number = 1;
	j->p.state_fd = j->p.memory_fd = -1;
	j->p.fill = true;
	if (job_parse(j, r, &err))
		fail_job(j, &err);
	else
		prepare_begin(&j->p, s, name, on_prepared);
}
