// SPDX-License-Identifier: Apache-2.0
#include "api/balloon.h"

#include <errno.h>
#include <string.h>

#include "api/routes.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define TIMEOUT_MS 10000
#define HINT_DEFAULT_MS 30000
#define MAX_TOLD 1000 // in 10 s: the VM process has something new once a second at most
#define PAGE_BYTES 4096u
#define PAGES_PER_MIB 256u

enum { TARGET, ACTUAL, FREED };
const struct balloon_metric balloon_metrics[] = {
	[TARGET] = { "thaw_vm_balloon_target_bytes", "size that its balloon is to have", METRIC_GAUGE,
		     METRIC_BYTES, -1 },
	[ACTUAL] = { "thaw_vm_balloon_actual_bytes", "size that the guest says it has", METRIC_GAUGE,
		     METRIC_BYTES, -1 },
	[FREED] = { "thaw_vm_balloon_freed_bytes_total", "guest memory given back to the host",
		    METRIC_COUNTER, METRIC_BYTES, -1 },
	{ "thaw_vm_guest_free_bytes", "unused memory, as the guest says", METRIC_GAUGE, METRIC_BYTES, 4 },
	{ "thaw_vm_guest_total_bytes", "all its memory, as the guest says", METRIC_GAUGE, METRIC_BYTES, 5 },
	{ "thaw_vm_guest_available_bytes", "available without swapping, as the guest says", METRIC_GAUGE,
	  METRIC_BYTES, 6 },
	{ "thaw_vm_guest_cache_bytes", "its page cache, as the guest says", METRIC_GAUGE, METRIC_BYTES, 7 },
	{ "thaw_vm_guest_major_faults_total", "its major faults, as the guest says", METRIC_COUNTER,
	  METRIC_ONE, 2 },
};
const unsigned balloon_n_metrics = MV_ARRAY_LEN(balloon_metrics);

bool balloon_value(const struct vm *vm, unsigned i, uint64_t *ret_v)
{
	const struct msg_balloon *b = &vm->balloon;
	const uint64_t pages[] = {
		[TARGET] = b->target_pages, [ACTUAL] = b->actual_pages, [FREED] = b->freed_pages
	};
	int stat = balloon_metrics[i].stat;
	if (!b->present || (stat >= 0 && ((uint32_t)stat >= b->n_stats || b->stat[stat] == UINT64_MAX)))
		return false;
	*ret_v = stat < 0 ? pages[i] * PAGE_BYTES : b->stat[stat];
	return true;
}

void balloon_note(struct vm *vm, const struct msg_balloon *b)
{
	if (!b->present || !vm->cfg.balloon.present)
		return;
	if (memcmp(&vm->balloon, b, sizeof *b) != 0)
		vm_changed(vm);
	vm->balloon = *b;
	// The configuration goes into snapshots, and is what their clones begin with.
	vm->cfg.balloon.stats_interval_s = b->stats_interval_s;
	if (b->target_pages / PAGES_PER_MIB <= vm->cfg.mem_mib)
		vm->cfg.balloon.target_mib = b->target_pages / PAGES_PER_MIB;
}

int balloon_told(struct vm *vm, const struct msg *m)
{
	struct msg_balloon b;
	if (!vm->cfg.balloon.present || !mv_ratelimit_ok(&vm->balloon_told, MAX_TOLD) ||
	    mv_state_load(&msg_balloon_table, m->body, m->body_len, &b, NULL))
		return -EPROTO;
	balloon_note(vm, &b);
	return 0;
}

js *balloon_json(const struct vm *vm)
{
	const struct msg_balloon *b = &vm->balloon;
	if (!b->present)
		return NULL;
	js *o = js_object(), *s = js_object();
	js_put_uint(o, "target_mib", b->target_pages / PAGES_PER_MIB);
	js_put_uint(o, "actual_mib", b->actual_pages / PAGES_PER_MIB);
	js_put_uint(o, "freed_mib", b->freed_pages / PAGES_PER_MIB);
	js_put_uint(o, "hinted_mib", b->hinted_pages / PAGES_PER_MIB);
	js_put_uint(o, "stats_interval_s", b->stats_interval_s);
	for (uint32_t i = 0; i < b->n_stats; i++)
		if (b->stat[i] != UINT64_MAX)
			js_put_uint(s, msg_balloon_stat_names[i], b->stat[i]);
	js_put(o, "stats", s);
	return o;
}

static void on_answer(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct http_req *r = arg;
	struct api_err none;
	if (!err)
		balloon_note(vm, &reply->balloon);
	js *o = err ? NULL : balloon_json(vm);
	if (!err && !o) {
		api_fail(&none, API_VM_FAILED, "VM %s: it tells nothing of its balloon", vm->cfg.name);
		err = &none;
	}
	if (err)
		reply_err(r, err);
	else
		reply_json(r, 200, o);
}

static int find(struct server *s, const char *name, struct vm **ret_vm, struct api_err *err)
{
	int r = vms_find(s, name, ret_vm, err);
	if (!r && !(*ret_vm)->cfg.balloon.present)
		r = api_fail(err, API_INVALID_VALUE, "VM %s has no balloon; give it one when it is created",
			     (*ret_vm)->cfg.name);
	return r;
}

void op_balloon_get(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct vm *vm;
	int result = find(s, name, &vm, &err);
	if (!result)
		result = vm_call(vm, MSG_BALLOON_STATS, NULL, NULL, NULL, 0, TIMEOUT_MS, "balloon", on_answer,
				 r, &err);
	if (result)
		reply_err(r, &err);
}

void op_balloon_patch(struct server *s, struct http_req *r, const char *name)
{
	struct msg_balloon_set set = { 0 };
	struct api_err err;
	struct vm *vm;
	int result = find(s, name, &vm, &err);
	if (!result)
		result = js_decode_body(&balloon_set_table, body_of(r), &set, &err);
	if (!result && !set.has_target && !set.has_interval)
		result = api_fail(&err, API_INVALID_VALUE, "give target_mib, stats_interval_s, or both");
	if (!result && set.target_mib > vm->cfg.mem_mib)
		result = api_fail(&err, API_INVALID_VALUE, "target_mib: %u is more than the memory of %u MiB",
				  set.target_mib, vm->cfg.mem_mib);
	if (!result)
		result = vm_call(vm, MSG_BALLOON_SET, &msg_balloon_set_table, &set, NULL, 0, TIMEOUT_MS,
				 "balloon", on_answer, r, &err);
	if (result)
		reply_err(r, &err);
}

void op_balloon_hint(struct server *s, struct http_req *r, const char *name)
{
	struct msg_balloon_hint hint = { .wait_ms = HINT_DEFAULT_MS };
	struct api_err err;
	struct vm *vm;
	int result = find(s, name, &vm, &err);
	if (!result)
		result = js_decode_body(&balloon_hint_table, body_of(r), &hint, &err);
	if (!result && !vm->cfg.balloon.free_page_hinting)
		result = api_fail(&err, API_INVALID_VALUE,
				  "the balloon of VM %s has no free_page_hinting; give it when it is created",
				  vm->cfg.name);
	if (!result && vm->state != VM_RUNNING)
		result = api_fail(&err, API_WRONG_STATE, "VM %s is %s; only a running guest gives hints",
				  vm->cfg.name, vm_state_name(vm->state));
	if (!result)
		result = vm_call(vm, MSG_BALLOON_HINT, &msg_balloon_hint_table, &hint, NULL, 0,
				 hint.wait_ms + TIMEOUT_MS, "balloon", on_answer, r, &err);
	if (result)
		reply_err(r, &err);
}
