// SPDX-License-Identifier: Apache-2.0
#include "api/devices.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "api/routes.h"
#include "api/vms.h"
#include "microvm/base/features.h"
#include "microvm/base/util.h"

#define ASK_TIMEOUT_MS 30000

struct walk {
	uint32_t slot;
	devices_each_fn *each;
	devices_done_fn *done;
	void *arg;
};

static int ask(struct walk *w, struct vm *vm, struct api_err *err);

static void on_device(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	static struct msg_device d;
	struct walk *w = arg;
	struct api_err e;
	struct mv_err bad = { 0 };
	if (!err && mv_state_load(&msg_device_table, reply->data, reply->n_data, &d, &bad)) {
		api_fail(&e, API_VM_FAILED, "VM %s: its devices: %s", vm->cfg.name, bad.msg);
		err = &e;
	}
	if (!err) {
		w->each(w->arg, w->slot, &d);
		// n_devices is the process's word each time; slots are bounded by the query's range.
		if (++w->slot < d.n_devices && !ask(w, vm, &e))
			return;
		if (w->slot < d.n_devices)
			err = &e;
	}
	w->done(w->arg, vm, err);
	free(w);
}

static int ask(struct walk *w, struct vm *vm, struct api_err *err)
{
	struct msg_device_query q = { .slot = w->slot };
	return vm_call(vm, MSG_DEVICES, &msg_device_query_table, &q, NULL, 0, ASK_TIMEOUT_MS, "devices",
		       on_device, w, err);
}

int devices_walk(struct vm *vm, devices_each_fn *each, devices_done_fn *done, void *arg, struct api_err *err)
{
	struct walk *w = calloc(1, sizeof *w);
	if (!w)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	*w = (struct walk){ .each = each, .done = done, .arg = arg };
	int r = ask(w, vm, err);
	if (r)
		free(w);
	return r;
}

// --- GET /v1/vms/{name}/devices -----------------------------------------------------------------
static js *feature_list(uint32_t device_id, uint64_t bits)
{
	char name[FEATURE_NAME_LEN];
	js *list = js_list();
	for (unsigned bit = 0; bit < 64; bit++)
		if (bits >> bit & 1) {
			feature_name(device_id, bit, name);
			js_add(list, js_string(name));
		}
	return list;
}

static js *status_list(uint32_t status) // virtio 1.2 section 2.1
{
	static const char *const words[8] = { "acknowledge", "driver", "driver_ok",   "features_ok",
					      "bit-4",       "bit-5",  "needs_reset", "failed" };
	js *list = js_list();
	for (unsigned i = 0; i < MV_ARRAY_LEN(words); i++)
		if (status >> i & 1)
			js_add(list, js_string(words[i]));
	return list;
}

static js *queue_json(const struct msg_queue *q, unsigned index)
{
	js *o = js_object();
	js_put_uint(o, "index", index);
	js_put_uint(o, "size", q->size);
	js_put_uint(o, "max_size", q->max_size);
	js_put_bool(o, "ready", q->ready);
	js_put_uint(o, "next_avail", q->next_avail);
	js_put_uint(o, "next_used", q->next_used);
	js_put_uint(o, "kicks_by_event", q->kicks_by_event);
	js_put_uint(o, "kicks_by_exit", q->kicks_by_exit);
	js_put_uint(o, "continued", q->again);
	js_put_uint(o, "popped", q->popped);
	js_put_uint(o, "used", q->used);
	js_put_uint(o, "interrupts", q->interrupts);
	js_put_uint(o, "interrupts_suppressed", q->suppressed);
	return o;
}

static js *device_json(const struct msg_device *d, uint32_t slot)
{
	char type[FEATURE_NAME_LEN], mask[24];
	js *o = js_object(), *f = js_object(), *queues = js_list();
	feature_device_name(d->device_id, type);
	js_put_uint(o, "slot", slot);
	js_put_str(o, "name", d->name);
	js_put_str(o, "type", type);
	js_put_uint(o, "device_id", d->device_id);
	js_put(o, "status", status_list(d->status));
	js_put(f, "offered", feature_list(d->device_id, d->features_offered));
	js_put(f, "acked", feature_list(d->device_id, d->features_acked));
	snprintf(mask, sizeof mask, "0x%016" PRIx64, d->features_offered);
	js_put_str(f, "offered_mask", mask);
	snprintf(mask, sizeof mask, "0x%016" PRIx64, d->features_acked);
	js_put_str(f, "acked_mask", mask);
	js_put(o, "features", f);
	js_put_uint(o, "config_interrupts", d->config_interrupts);
	for (uint32_t i = 0; i < d->n_queues; i++)
		js_add(queues, queue_json(&d->queue[i], i));
	js_put(o, "queues", queues);
	return o;
}

struct devices_op {
	struct http_req *req;
	js *devices, *vcpus;
};

static void add_device(void *arg, uint32_t slot, const struct msg_device *d)
{
	struct devices_op *o = arg;
	for (uint32_t i = 0; i < d->n_vcpus && !slot; i++) {
		js *v = js_object(), *exits = js_object();
		js_put_uint(v, "index", i);
		js_put_uint(exits, "mmio", d->vcpu[i].mmio);
		js_put_uint(exits, "io", d->vcpu[i].io);
		js_put_uint(exits, "hlt", d->vcpu[i].hlt);
		js_put_uint(exits, "other", d->vcpu[i].other);
		js_put(v, "exits", exits);
		js_add(o->vcpus, v);
	}
	if (slot < d->n_devices)
		js_add(o->devices, device_json(d, slot));
}

static void devices_told(void *arg, struct vm *vm, const struct api_err *err)
{
	struct devices_op *o = arg;
	(void)vm;
	if (err) {
		js_free(o->devices);
		js_free(o->vcpus);
		reply_err(o->req, err);
	} else {
		js *v = js_object();
		js_put(v, "devices", o->devices);
		js_put(v, "vcpus", o->vcpus);
		reply_json(o->req, 200, v);
	}
	free(o);
}

void op_vm_devices(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct vm *vm;
	struct devices_op *o = NULL;
	int result = vms_find(s, name, &vm, &err);
	if (!result && vm->state == VM_EXITED)
		result = api_fail(&err, API_WRONG_STATE, "VM %s has exited", vm->cfg.name);
	if (!result && !(o = calloc(1, sizeof *o)))
		result = api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (!result) {
		*o = (struct devices_op){ r, js_list(), js_list() };
		result = devices_walk(vm, add_device, devices_told, o, &err);
	}
	if (!result)
		return;
	if (o) {
		js_free(o->devices);
		js_free(o->vcpus);
	}
	free(o);
	reply_err(r, &err);
}
