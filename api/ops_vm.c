// SPDX-License-Identifier: Apache-2.0
// Handlers of /v1/vms. One operation at a time per VM: a second one is told 409 busy.
// Reading, console traffic, kill and delete are always allowed.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "api/counts.h"
#include "api/etag.h"
#include "api/hugepages.h"
#include "api/layers.h"
#include "api/metrics.h"
#include "api/ops.h"
#include "api/ops_snapshot.h"
#include "api/page.h"
#include "api/routes.h"
#include "api/tap.h"
#include "api/usernet.h"
#include "api/vmfds.h"
#include "api/vmjson.h"
#include "api/vmrec.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define RUN_TIMEOUT_MS 30000
#define READY_DEFAULT_MS 30000

// A request that waits for a VM.
struct op {
	struct server *s;
	struct http_req *req;
	struct vm *vm;
	struct vm_waiter end, ready;
	struct mv_timer timer; // stop with wait_ms, wait for ready
	struct api_err err;
	bool start; // create: also start
	uint32_t wait_ms;
};

static struct op *op_new(struct server *s, struct http_req *r, struct vm *vm, struct api_err *err)
{
	struct op *o = calloc(1, sizeof *o);
	if (!o) {
		api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
		return NULL;
	}
	*o = (struct op){ .s = s, .req = r, .vm = vm_ref(vm) };
	return o;
}

static void op_free(struct op *o)
{
	mv_timer_fini(&o->timer);
	vm_wait_cancel(&o->end);
	vm_wait_cancel(&o->ready);
	vm_unref(o->vm);
	free(o);
}

static void op_reply_vm(struct op *o, unsigned status)
{
	etag_reply_vm(o->req, status, o->vm);
	op_free(o);
}

static void op_reply_err(struct op *o, const struct api_err *err)
{
	reply_err(o->req, err);
	op_free(o);
}

// --- shared with ops_clone.c ----------------------------------------------------------
void ops_default_sockets(struct server *s, struct vmcfg *cfg)
{
	for (uint32_t i = 0; i < cfg->n_consoles; i++)
		if (!cfg->console[i].path[0])
			snprintf(cfg->console[i].path, sizeof cfg->console[i].path, "%s/%s.con%u",
				 s->vsock_dir, cfg->id, i);
	if (cfg->vsock.present && !cfg->vsock.path[0])
		snprintf(cfg->vsock.path, sizeof cfg->vsock.path, "%s/%s.vsock", s->vsock_dir, cfg->id);
}

int ops_open_files(struct vm *vm, const struct layer_source *from, struct vm_fds *ret_fds,
		   struct api_err *err)
{
	struct vm_fds f;
	bool clone = from->snapshot || from->vm;
	enum vmfds_for what = vm->shell ? VMFDS_SHELL : clone ? VMFDS_CLONE : VMFDS_BOOT;
	int r = vmfds_open(&vm->cfg, vm->srv->kvm_path, what, &f, err);
	if (r)
		return r;
	if ((r = layers_open(vm, from, &f, err)) || (r = usernet_open(vm, &f, err)))
		ops_close_files(vm, &f);
	else
		*ret_fds = f;
	return r;
}

void ops_close_files(struct vm *vm, struct vm_fds *fds)
{
	if (fds->vsock >= 0 || fds->console[0] >= 0)
		vmfds_unlink(&vm->cfg);
	layers_remove(vm);
	usernet_end(vm);
	vm_fds_close(fds);
}

int ops_begin(struct vm *vm, const char *what, struct api_err *err)
{
	if (vm->op)
		return api_fail(err, API_BUSY, "VM %s: %s is in progress; try again when it is done",
				vm->cfg.name, vm->op);
	vm->op = what;
	return 0;
}

// --- create ---------------------------------------------------------------------------
static void create_undone(void *arg, struct vm *vm)
{
	struct op *o = arg;
	(void)vm;
	op_reply_err(o, &o->err);
}

// Answers when the process is gone, so that an error leaves nothing behind.
static void create_failed(struct op *o, const struct api_err *err)
{
	o->err = *err;
	metrics_add(M_BOOT_FAILURES, err->code, 1);
	vms_remove(o->vm);
	if (!vm_has_process(o->vm)) {
		create_undone(o, o->vm);
		return;
	}
	vm_wait_end(o->vm, &o->end, create_undone, o);
	vm_kill(o->vm);
}

static void on_create_done(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct op *o = arg;
	struct api_err e;
	(void)reply;
	if (err) {
		create_failed(o, err);
	} else if (o->start) {
		o->start = false;
		if (vm_call(vm, MSG_RUN, NULL, NULL, NULL, 0, RUN_TIMEOUT_MS, "start", on_create_done, o, &e))
			create_failed(o, &e);
	} else {
		metrics_add(M_BOOTS, 0, 1);
		vm_show(vm);
		vmrec_keep(vm);
		vm->op = NULL;
		op_reply_vm(o, 201);
	}
}

static int check_host(const struct vmcfg *cfg, struct api_err *err)
{
	struct sysinfo si;
	if (sysinfo(&si))
		return hugepages_check(cfg, err);
	uint64_t mib = ((uint64_t)si.totalram + si.totalswap) * si.mem_unit >> 20;
	if (cfg->mem_mib > mib)
		return api_fail(err, API_HOST_TOO_SMALL,
				"memory_mib: %u is more than the %llu MiB of this host", cfg->mem_mib,
				(unsigned long long)mib);
	return hugepages_check(cfg, err);
}

static int create_begin(struct server *s, struct http_req *r, struct vm *vm, bool start, struct api_err *err)
{
	struct vm_fds fds;
	int result;
	struct op *o = op_new(s, r, vm, err);
	if (!o)
		return -ENOMEM;
	result = ops_open_files(vm, &(struct layer_source){ 0 }, &fds, err);
	if (!result) {
		o->start = start;
		vm->op = "create";
		result = vm_launch(vm, MSG_BOOT, false, &fds, on_create_done, o, err);
	}
	if (result)
		op_free(o);
	return result;
}

void op_vm_create(struct server *s, struct http_req *r, const char *name)
{
	static struct create_body b; // the loop's thread only
	struct api_err err;
	(void)name;
	int result = create_parse(body_of(r), &b, &err);
	if (!result)
		result = check_host(&b.cfg, &err);
	if (result) {
		free(MV_TAKE(b.metadata));
		reply_err(r, &err);
		return;
	}
	ops_default_sockets(s, &b.cfg);
	tap_default_mtu(&b.cfg);
	struct vm *vm = vm_new(s, &b.cfg);
	if (!vm)
		result = api_fail(&err, API_OUT_OF_MEMORY, "no memory for another VM");
	else {
		vm->requested_ns = r->received_ns;
		vm->policy = b.policy;
		vm->metadata = MV_TAKE(b.metadata);
		result = vms_add(s, vm, &err);
		if (!result && (result = create_begin(s, r, vm, b.start, &err)))
			vms_remove(vm);
		vm_unref(vm);
	}
	free(MV_TAKE(b.metadata));
	if (result) {
		metrics_add(M_BOOT_FAILURES, err.code, 1);
		reply_err(r, &err);
	}
}

// --- read -------------------------------------------------------------------------------
struct counts {
	unsigned total, by_state[VM_EXITED + 1];
};

static void count(void *arg, struct vm *vm)
{
	struct counts *c = arg;
	if (!vm->shown)
		return;
	c->total++;
	c->by_state[vm->state <= VM_EXITED ? vm->state : 0]++;
}

struct info_op {
	struct counts_job counts;
	struct server *s;
	struct http_req *req;
};

static void info_counted(void *arg)
{
	struct info_op *op = arg;
	struct server *s = op->s;
	struct counts c = { 0 };
	vms_each(s, count, &c);
	js *o = js_object(), *v = js_object();
	js_put_str(o, "version", THAW_VERSION);
	js_put_str(o, "api", "v1");
	js_put_uint(o, "pid", (uint64_t)getpid());
	js_put_str(o, "vmm", s->vmm_path);
	js_put_uint(v, "total", c.total);
	for (unsigned i = VM_CREATED; i <= VM_EXITED; i++)
		js_put_uint(v, vm_state_name(i), c.by_state[i]);
	js_put(o, "vms", v);
	js_put_uint(o, "snapshots", s->counts.n);
	put_usage(o, "storage", &s->counts.total);
	js *spares = js_list();
	for (unsigned i = 0; i < s->n_spares; i++)
		js_add(spares, js_uint((uint64_t)s->spare[i].pid));
	js_put(o, "spare_pids", spares);
	js_put_uint(o, "connections", http_connections(s->http));
	reply_json(op->req, 200, o);
	free(op);
}

void op_info(struct server *s, struct http_req *r, const char *name)
{
	struct info_op *o = malloc(sizeof *o);
	struct api_err err;
	(void)name;
	if (!o) {
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
		reply_err(r, &err);
		return;
	}
	o->s = s;
	o->req = r;
	counts_get(s, &o->counts, info_counted, o);
}

struct vm_listing {
	struct mv_work work;
	struct server *s;
	struct http_req *req;
	struct mv_buf text;
	struct page page;
	char at[VMCFG_NAME_LEN]; // the last one that was looked at
};

static void list_end(struct vm_listing *l)
{
	char end[ROUTE_NAME_LEN + 16] = "]}\n";
	if (l->page.more)
		snprintf(end, sizeof end, "],\"next\":\"%s\"}\n", l->page.last); // a name: nothing to escape
	mv_buf_append(&l->text, end, strlen(end));
	reply_text(l->req, 200, &l->text);
	free(l);
}

static enum mv_work_more list_next(void *arg)
{
	struct vm_listing *l = arg;
	struct vm *vm = l->page.more ? NULL : vms_next(l->s, l->at);
	if (!vm) {
		list_end(l);
		return MV_WORK_GONE;
	}
	memcpy(l->at, vm->cfg.name, sizeof l->at);
	if (!vm->shown || !page_has(&l->page, vm->cfg.name))
		return MV_WORK_MORE;
	if (l->page.n > 1)
		mv_buf_append(&l->text, ",", 1);
	vm_text(vm, &l->text);
	return MV_WORK_MORE;
}

void op_vm_list(struct server *s, struct http_req *r, const char *name)
{
	struct vm_listing *l = calloc(1, sizeof *l);
	struct api_err err;
	(void)name;
	if (!l)
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
	if (!l || page_query(r, &l->page, &err)) {
		free(l);
		reply_err(r, &err);
		return;
	}
	l->s = s;
	l->req = r;
	if (l->page.after)
		mv_strcpy(l->at, sizeof l->at, l->page.after);
	mv_buf_append(&l->text, "{\"vms\":[", 8);
	mv_work_start(&s->loop, &l->work, list_next, l);
}

static void show(struct http_req *r, const struct vm *vm)
{
	const struct etag tag = etag_of_vm(vm);
	if (!etag_reply_unchanged(r, &tag))
		etag_reply(r, 200, &tag, vm_json(vm));
}

static void on_ready(void *arg, struct vm *vm)
{
	struct op *o = arg;
	show(o->req, vm);
	op_free(o);
}

static int never_ready(const struct vm *vm, struct api_err *err)
{
	return api_fail(err, API_VM_GONE, "VM %s ended (%s) before it was ready", vm->cfg.name,
			vm_exit_name(vm->exit_reason));
}

static void on_never_ready(void *arg, struct vm *vm)
{
	struct op *o = arg;
	never_ready(vm, &o->err);
	reply_err(o->req, &o->err);
	op_free(o);
}

static void on_ready_late(void *arg)
{
	struct op *o = arg;
	api_fail(&o->err, API_WAIT_TIMEOUT, "VM %s was not ready within %u ms", o->vm->cfg.name, o->wait_ms);
	reply_err(o->req, &o->err);
	op_free(o);
}

static int wait_ready(struct server *s, struct http_req *r, struct vm *vm, uint32_t wait_ms,
		      struct api_err *err)
{
	if (!vm->cfg.ready.present)
		return api_fail(err, API_INVALID_VALUE,
				"wait: VM %s has no marker for being ready; configure \"ready\"",
				vm->cfg.name);
	if (!vm_has_process(vm))
		return never_ready(vm, err);
	struct op *o = op_new(s, r, vm, err);
	if (!o)
		return -ENOMEM;
	o->wait_ms = wait_ms;
	if (mv_timer_init(&s->loop, &o->timer, on_ready_late, o)) {
		op_free(o);
		return api_fail(err, API_LIMIT_REACHED, "no timer for the request");
	}
	mv_timer_arm(&o->timer, wait_ms * 1000000ull);
	vm_wait_end(vm, &o->end, on_never_ready, o);
	vm_wait_ready(vm, &o->ready, on_ready, o);
	return 0;
}

void op_vm_show(struct server *s, struct http_req *r, const char *name)
{
	const char *wait = http_query(r, "wait");
	struct api_err err;
	struct vm *vm;
	uint64_t wait_ms;
	int result = vms_find(s, name, &vm, &err);
	if (!result)
		result = query_uint(r, "timeout_ms", API_READY_MAX_MS, READY_DEFAULT_MS, &wait_ms, &err);
	if (!result && wait && strcmp(wait, "ready"))
		result = api_fail(&err, API_INVALID_VALUE, "wait: \"%.32s\" is not ready", wait);
	if (!result && wait && !vm->times.ready) {
		result = wait_ready(s, r, vm, (uint32_t)wait_ms, &err);
		if (!result)
			return;
	}
	if (result)
		reply_err(r, &err);
	else
		show(r, vm);
}

// --- start, pause, resume -----------------------------------------------------------------
static void on_simple_done(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct op *o = arg;
	(void)reply;
	vm->op = NULL;
	if (err)
		op_reply_err(o, err);
	else
		op_reply_vm(o, 200);
}

// Like js_decode() for a route without a body.
static int no_body(struct http_req *r, struct api_err *err)
{
	return js_decode_body(&empty_table, body_of(r), NULL, err);
}

static int need_state(const struct vm *vm, unsigned state, const char *what, struct api_err *err)
{
	if (vm->state == state)
		return 0;
	const char *hint = "";
	if (vm->state == VM_PAUSED)
		hint = state == VM_CREATED ? "; use resume" : "; resume it first";
	else if (vm->state == VM_CREATED)
		hint = state == VM_PAUSED ? "; use start" : "; start it first";
	return api_fail(err, API_WRONG_STATE, "VM %s is %s; %s needs one that is %s%s", vm->cfg.name,
			vm_state_name(vm->state), what, vm_state_name(state), hint);
}

static void simple_op(struct server *s, struct http_req *r, const char *name, const char *what,
		      unsigned state, enum msg_type type)
{
	struct api_err err;
	struct vm *vm;
	struct op *o = NULL;
	int result = vms_find(s, name, &vm, &err);
	if (!result)
		result = no_body(r, &err);
	if (!result && !vm->op)
		result = need_state(vm, state, what, &err);
	if (!result)
		result = ops_begin(vm, what, &err);
	if (!result) {
		o = op_new(s, r, vm, &err);
		result = -ENOMEM;
		if (o)
			result = vm_call(vm, type, NULL, NULL, NULL, 0, RUN_TIMEOUT_MS, what, on_simple_done,
					 o, &err);
		if (result)
			vm->op = NULL;
	}
	if (result) {
		reply_err(r, &err);
		if (o)
			op_free(o);
	}
}

void op_vm_start(struct server *s, struct http_req *r, const char *name)
{
	simple_op(s, r, name, "start", VM_CREATED, MSG_RUN);
}
void op_vm_pause(struct server *s, struct http_req *r, const char *name)
{
	simple_op(s, r, name, "pause", VM_RUNNING, MSG_PAUSE);
}
void op_vm_resume(struct server *s, struct http_req *r, const char *name)
{
	simple_op(s, r, name, "resume", VM_PAUSED, MSG_RUN);
}

// --- stop, delete ---------------------------------------------------------------------------
static void on_stopped(void *arg, struct vm *vm)
{
	op_reply_vm(arg, vm->state == VM_EXITED ? 200 : 202); // 202: the daemon leaves it
}

static void on_stop_late(void *arg) { op_reply_vm(arg, 202); }

static void on_stop_asked(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct op *o = arg;
	(void)reply;
	vm->op = NULL;
	if (err && vm->state != VM_EXITED) {
		op_reply_err(o, err);
	} else if (vm->state == VM_EXITED) {
		op_reply_vm(o, 200);
	} else if (!o->wait_ms || mv_timer_init(&o->s->loop, &o->timer, on_stop_late, o)) {
		op_reply_vm(o, 202);
	} else {
		mv_timer_arm(&o->timer, o->wait_ms * 1000000ull);
		vm_wait_end(vm, &o->end, on_stopped, o);
	}
}

static int stop_begin(struct op *o, const struct stop_body *b, struct api_err *err)
{
	struct vm *vm = o->vm;
	if (b->mode == STOP_KILL) {
		vm_wait_end(vm, &o->end, on_stopped, o);
		vm_kill(vm);
		return 0;
	}
	int result = vm->op ? 0 : need_state(vm, VM_RUNNING, "stop", err);
	if (!result)
		result = ops_begin(vm, "stop", err);
	if (result)
		return result;
	struct msg_stop m = { .mode = VM_STOP_POWER_BUTTON };
	if (b->mode == STOP_CTRL_ALT_DEL)
		m.mode = VM_STOP_CTRL_ALT_DEL;
	result = vm_call(vm, MSG_STOP, &msg_stop_table, &m, NULL, 0, RUN_TIMEOUT_MS, "stop", on_stop_asked, o,
			 err);
	if (result)
		vm->op = NULL;
	return result;
}

void op_vm_stop(struct server *s, struct http_req *r, const char *name)
{
	struct stop_body b = { 0 };
	struct api_err err;
	struct vm *vm;
	struct op *o = NULL;
	int result = vms_find(s, name, &vm, &err);
	if (!result)
		result = js_decode_body(&stop_table, body_of(r), &b, &err);
	if (!result && !vm_has_process(vm))
		result = api_fail(&err, API_WRONG_STATE, "VM %s has exited already", vm->cfg.name);
	if (!result && !(o = op_new(s, r, vm, &err)))
		result = -ENOMEM;
	if (!result) {
		o->wait_ms = b.wait_ms;
		result = stop_begin(o, &b, &err);
	}
	if (result) {
		reply_err(r, &err);
		if (o)
			op_free(o);
	}
}

static void on_deleted(void *arg, struct vm *vm)
{
	struct op *o = arg;
	vms_remove(vm);
	reply_empty(o->req);
	op_free(o);
}

void op_vm_delete(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct vm *vm;
	if (vms_find(s, name, &vm, &err)) {
		reply_err(r, &err);
		return;
	}
	struct op *o = op_new(s, r, vm, &err);
	if (!o) {
		reply_err(r, &err);
	} else if (!vm_has_process(vm)) {
		on_deleted(o, vm);
	} else {
		vm_wait_end(vm, &o->end, on_deleted, o);
		vm_kill(vm);
	}
}
