// SPDX-License-Identifier: Apache-2.0
#include "api/park.h"

#include <errno.h>

#include "api/metrics.h"
#include "microvm/base/util.h"

#define TIMEOUT_MS 30000
#define MAX_TOLD 100 // in 10 s: the VM process tells once a second at most
#define NS_PER_US 1000u
#define NS_PER_MS 1000000u

static void on_ordered(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	(void)arg;
	(void)reply;
	if (!err || !vm_has_process(vm) || vm->kill_sent)
		return;
	mv_strcpy(vm->park.error, sizeof vm->park.error, err->msg);
	vm_changed(vm);
	mv_log(MV_WARN, "vm %s: will not be parked: %s", vm->cfg.name, err->msg);
}

void park_state(struct vm *vm)
{
	const struct msg_park order = { .idle_ms = (uint32_t)vm->policy.idle_park_ms };
	struct api_err err;
	if (!order.idle_ms || vm->park.ordered || vm->state != VM_RUNNING)
		return;
	vm->park.ordered = true;
	if (vm_call(vm, MSG_PARK, &msg_park_table, &order, NULL, 0, TIMEOUT_MS, "park", on_ordered, NULL,
		    &err))
		on_ordered(NULL, vm, &err, NULL);
}

int park_told(struct vm *vm, const struct msg *m)
{
	struct msg_parking now, *last = &vm->park.told;
	if (!mv_ratelimit_ok(&vm->park.limit, MAX_TOLD) ||
	    mv_state_load(&msg_parking_table, m->body, m->body_len, &now, NULL))
		return -EPROTO;
	if (now.parks > last->parks)
		metrics_add(M_PARKS, 0, now.parks - last->parks);
	if (now.wake_ns != last->wake_ns)
		metrics_observe(M_WAKE_SECONDS, now.wake_last_ns);
	*last = now;
	vm_changed(vm);
	return 0;
}

js *park_json(const struct vm *vm)
{
	const struct msg_parking *p = &vm->park.told;
	if (!vm->policy.idle_park_ms)
		return NULL;
	js *o = js_object(), *w = js_object();
	js_put_bool(o, "parked", p->parked && vm_has_process(vm));
	js_put_uint(o, "parks", p->parks);
	js_put_uint(w, "timer", p->wakes[PARK_WOKEN_BY_TIMER]);
	js_put_uint(w, "device", p->wakes[PARK_WOKEN_BY_DEVICE]);
	js_put_uint(w, "request", p->wakes[PARK_WOKEN_BY_REQUEST]);
	js_put(o, "wakes", w);
	js_put_uint(o, "parked_ms", p->parked_ns / NS_PER_MS);
	js_put_uint(o, "wake_last_us", p->wake_last_ns / NS_PER_US);
	js_put_uint(o, "wake_max_us", p->wake_max_ns / NS_PER_US);
	if (vm->park.error[0])
		js_put_str(o, "error", vm->park.error);
	return o;
}
