// SPDX-License-Identifier: Apache-2.0
#include "api/vms.h"

#include <errno.h>
#include <search.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "api/balloon.h"
#include "api/events.h"
#include "api/lifetime.h"
#include "api/park.h"
#include "api/record.h"
#include "api/vmjson.h"

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct vm *)a)->cfg.name, ((const struct vm *)b)->cfg.name);
}

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct vm *)a)->cfg.id, ((const struct vm *)b)->cfg.id);
}

// Looks up without a whole struct vm as the key: the comparison sees only a name.
static int key_name(const void *key, const void *vm)
{
	return strcmp(key, ((const struct vm *)vm)->cfg.name);
}

static int key_id(const void *key, const void *vm) { return strcmp(key, ((const struct vm *)vm)->cfg.id); }

static struct vm *find(void *const *root, const char *key, int (*cmp)(const void *, const void *))
{
	struct vm **node = tfind(key, root, cmp);
	return node ? *node : NULL;
}

bool vms_name_taken(struct server *s, const char *name) { return find(&s->by_name, name, key_name) != NULL; }

int vms_add(struct server *s, struct vm *vm, struct api_err *err)
{
	if (vms_name_taken(s, vm->cfg.name))
		return api_fail(err, API_VM_EXISTS,
				"there is a VM named %s already; choose another name or delete it",
				vm->cfg.name);
	if (!tsearch(vm, &s->by_name, by_name))
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	if (!tsearch(vm, &s->by_id, by_id)) {
		tdelete(vm, &s->by_name, by_name);
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for another VM");
	}
	vm->listed = true;
	s->n_vms++;
	vm_ref(vm);
	return 0;
}

void vms_remove(struct vm *vm)
{
	if (!vm->listed)
		return;
	vm->listed = false;
	vm->srv->n_vms--;
	if (vm->shown)
		event_emit(vm->srv, EVENT_VM_DELETED,
			   &(struct event_info){ .vm = vm, .reason = vm_exit_name(vm->exit_reason) });
	tdelete(vm, &vm->srv->by_name, by_name);
	tdelete(vm, &vm->srv->by_id, by_id);
	vm_unref(vm);
}

int vms_find(struct server *s, const char *name_or_id, struct vm **ret_vm, struct api_err *err)
{
	struct vm *vm = find(&s->by_name, name_or_id, key_name);
	if (!vm)
		vm = find(&s->by_id, name_or_id, key_id);
	if (!vm || !vm->shown)
		return api_fail(err, API_VM_NOT_FOUND,
				"no VM has the name or id \"%.64s\"; GET /v1/vms lists them", name_or_id);
	*ret_vm = vm;
	return 0;
}

struct each {
	void (*fn)(void *arg, struct vm *vm);
	void *arg;
};

static void visit(const void *node, VISIT which, void *closure)
{
	const struct each *e = closure;
	if (which == postorder || which == leaf)
		e->fn(e->arg, *(struct vm *const *)node);
}

void vms_each(struct server *s, void (*fn)(void *arg, struct vm *vm), void *arg)
{
	struct each e = { fn, arg };
	twalk_r(s->by_name, visit, &e);
}

struct behind {
	const char *name;
	struct vm *vm;
};

// On the way down to where the name would be, what is greater comes in falling order.
static int key_behind(const void *key, const void *vm)
{
	struct behind *b = *(struct behind *const *)key;
	if (strcmp(b->name, ((const struct vm *)vm)->cfg.name) >= 0)
		return 1;
	b->vm = (struct vm *)(uintptr_t)vm;
	return -1;
}

struct vm *vms_next(struct server *s, const char *name)
{
	struct behind b = { .name = name };
	struct behind *key = &b;
	tfind(&key, &s->by_name, key_behind);
	return b.vm;
}

void put_us(js *o, const char *key, uint64_t t_ns, uint64_t t0_ns)
{
	if (t_ns >= t0_ns)
		js_put_uint(o, key, (t_ns - t0_ns) / 1000);
}

void put_time(js *o, const char *key, uint64_t unix_ns)
{
	char text[40];
	time_t s = (time_t)(unix_ns / 1000000000u);
	struct tm tm;
	gmtime_r(&s, &tm);
	size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + n, sizeof text - n, ".%03uZ", (unsigned)(unix_ns / 1000000u % 1000u));
	js_put_str(o, key, text);
}

static js *lifetime_json(const struct vm *vm)
{
	js *o = js_encode(&lifetime_table, &vm->policy);
	uint64_t left_ns = lifetime_left_ns(vm);
	if (left_ns != UINT64_MAX && vm->state != VM_EXITED)
		js_put_uint(o, "ttl_left_ms", left_ns / 1000000);
	return o;
}

js *vm_json(const struct vm *vm)
{
	js *o = js_object(), *t = js_object();
	js_put_str(o, "name", vm->cfg.name);
	js_put_str(o, "id", vm->cfg.id);
	js_put_str(o, "state", vm_state_name(vm->state));
	if (vm->state == VM_EXITED) {
		js *x = js_object();
		js_put_str(x, "reason", vm_exit_name(vm->exit_reason));
		if (vm->exit_detail[0])
			js_put_str(x, "detail", vm->exit_detail);
		if (vm->exit_signal)
			js_put_uint(x, "signal", (uint64_t)vm->exit_signal);
		js_put(o, "exit", x);
	}
	if (vm->pid)
		js_put_uint(o, "pid", (uint64_t)vm->pid);
	if (vm->from_snapshot[0])
		js_put_str(o, "from_snapshot", vm->from_snapshot);
	if (vm->forked_from[0])
		js_put_str(o, "forked_from", vm->forked_from);
	if (vm->page_handler[0])
		js_put_str(o, "page_handler", vm->page_handler);
	if (vm->base_snapshot[0])
		js_put_str(o, "base_snapshot", vm->base_snapshot);
	put_time(o, "created", vm->created_unix_ns);
	put_us(t, "process_ready", vm->times.process_start, vm->requested_ns);
	put_us(t, "kvm_ready", vm->times.kvm_ready, vm->requested_ns);
	put_us(t, "loaded", vm->times.loaded, vm->requested_ns);
	put_us(t, "ordered", vm->times.request, vm->requested_ns);
	put_us(t, "running", vm->times.running, vm->requested_ns);
	put_us(t, "first_exit", vm->times.first_exit, vm->requested_ns);
	put_us(t, "first_io", vm->times.first_io, vm->requested_ns);
	put_us(t, "ready", vm->times.ready, vm->requested_ns);
	js_put(o, "timing_us", t);
	if (vm->cfg.ready.present)
		js_put_bool(o, "ready", vm->times.ready);
	record_json(o, vm);
	// Where timing_us counts from, for clients that compare it with a clock of their own.
	js_put_uint(o, "timing_zero_ns", vm->requested_ns);
	if (vm->links_down) {
		js *down = js_list();
		for (uint32_t i = 0; i < vm->cfg.n_nets; i++)
			if (vm->links_down & 1u << i)
				js_add(down, js_string(vm->cfg.net[i].id));
		js_put(o, "links_down", down);
	}
	js_put(o, "lifetime", lifetime_json(vm));
	js *parking = park_json(vm);
	if (parking)
		js_put(o, "parking", parking);
	if (vm->policy.has_limits)
		js_put(o, "limits", js_encode(&limits_table, &vm->policy.limits));
	js *balloon = balloon_json(vm);
	if (balloon)
		js_put(o, "balloon", balloon);
	js_put(o, "config", js_encode(&config_table, &vm->cfg));
	return o;
}

void vm_text(struct vm *vm, struct mv_buf *out)
{
	bool moves = lifetime_left_ns(vm) != UINT64_MAX; // ttl_left_ms
	if (!vm->text || vm->text_version != vm->version || moves) {
		free(vm->text);
		vm->text = js_text(vm_json(vm), false);
		vm->text_version = vm->version;
	}
	if (vm->text)
		mv_buf_append(out, vm->text, strlen(vm->text) - 1); // without its newline
	else
		out->failed = true;
}
