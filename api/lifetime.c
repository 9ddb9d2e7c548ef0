// SPDX-License-Identifier: Apache-2.0
#include "api/lifetime.h"

#include <errno.h>
#include <stdlib.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define NS_PER_MS 1000000ull
#define CHECKS 4 // per idle timeout
#define ASK_TIMEOUT_MS 30000

// --- a binary heap of VMs by due time: at[1] is the next one, vm->life.at its place -----------
static void place(struct lifetimes *l, struct vm *vm, uint32_t i)
{
	l->at[i] = vm;
	vm->life.at = i;
}

static void sift(struct lifetimes *l, struct vm *vm, uint32_t i)
{
	for (; i > 1 && l->at[i / 2]->life.due_ns > vm->life.due_ns; i /= 2)
		place(l, l->at[i / 2], i);
	for (uint32_t k; (k = 2 * i) <= l->n; i = k) {
		if (k < l->n && l->at[k + 1]->life.due_ns < l->at[k]->life.due_ns)
			k++;
		if (l->at[k]->life.due_ns >= vm->life.due_ns)
			break;
		place(l, l->at[k], i);
	}
	place(l, vm, i);
}

static void arm(struct lifetimes *l)
{
	uint64_t due = l->n ? l->at[1]->life.due_ns : 0, now = mv_now_ns();
	if (due == l->armed_ns)
		return;
	l->armed_ns = due;
	if (due)
		mv_timer_arm(&l->timer, due > now ? due - now : 0);
	else
		mv_timer_disarm(&l->timer);
}

static void set_due(struct vm *vm, uint64_t due_ns) // UINT64_MAX: never
{
	struct lifetimes *l = &vm->srv->lifetimes;
	uint32_t i = vm->life.at;
	vm->life.due_ns = due_ns;
	if (due_ns != UINT64_MAX) {
		sift(l, vm, i ? i : ++l->n);
	} else if (i) {
		struct vm *last = l->at[l->n--];
		vm->life.at = 0;
		if (last != vm)
			sift(l, last, i);
	}
	arm(l);
}

// --- one VM -----------------------------------------------------------------------------
static uint64_t idle_ns(const struct vm *vm) { return vm->policy.idle_timeout_ms * NS_PER_MS; }

static uint64_t ttl_due_ns(const struct vm *vm)
{
	if (!vm->life.first_ran_ns || !vm->policy.ttl_ms)
		return UINT64_MAX;
	return vm->life.first_ran_ns + vm->policy.ttl_ms * NS_PER_MS;
}

uint64_t lifetime_left_ns(const struct vm *vm)
{
	uint64_t due = ttl_due_ns(vm), now = mv_now_ns();
	if (due == UINT64_MAX)
		return due;
	return due > now ? due - now : 0;
}

// At the next check of its activity, or the end of its ttl.
static void plan(struct vm *vm)
{
	uint64_t due = ttl_due_ns(vm);
	if (!vm_has_process(vm)) {
		due = UINT64_MAX;
	} else if (vm->state == VM_RUNNING && vm->policy.idle_timeout_ms && !vm->life.asking) {
		uint64_t next = mv_now_ns() + idle_ns(vm) / CHECKS;
		due = next < due ? next : due;
	}
	set_due(vm, due);
}

static void end(struct vm *vm, enum vm_exit why)
{
	set_due(vm, UINT64_MAX);
	vm->end_reason = why;
	vm_kill(vm);
}

static void on_activity(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	(void)arg;
	vm->life.asking = false;
	if (!vm_has_process(vm) || vm->kill_sent)
		return; // it has ended: nothing to plan
	if (err || reply->activity != vm->life.activity || vm->op)
		lifetime_touch(vm);
	if (!err)
		vm->life.activity = reply->activity;
	if (vm->state == VM_RUNNING && mv_now_ns() - vm->life.active_ns >= idle_ns(vm))
		end(vm, VM_EXIT_IDLE);
	else
		plan(vm);
}

static void check(struct vm *vm)
{
	struct api_err err;
	if (ttl_due_ns(vm) <= mv_now_ns()) {
		end(vm, VM_EXIT_TTL);
		return;
	}
	vm->life.asking = !vm_call(vm, MSG_ACTIVITY, NULL, NULL, NULL, 0, ASK_TIMEOUT_MS, "activity",
				   on_activity, NULL, &err);
	if (!vm->life.asking) // too many requests wait for it
		lifetime_touch(vm);
	plan(vm);
}

static void on_timer(void *arg)
{
	struct server *s = arg;
	struct lifetimes *l = &s->lifetimes;
	uint64_t now = mv_now_ns();
	l->armed_ns = 0;
	while (l->n && l->at[1]->life.due_ns <= now)
		check(l->at[1]); // moves its time on, or takes it out
	arm(l);
}

void lifetime_touch(struct vm *vm) { vm->life.active_ns = mv_now_ns(); }

void lifetime_state(struct vm *vm)
{
	if (!vm->policy.ttl_ms && !vm->policy.idle_timeout_ms)
		return;
	if (vm->state == VM_RUNNING && !vm->life.first_ran_ns)
		vm->life.first_ran_ns = mv_now_ns();
	lifetime_touch(vm); // a pause is not idleness
	plan(vm);
}

// --- all -----------------------------------------------------------------------------------
int lifetime_init(struct server *s) { return mv_timer_init(&s->loop, &s->lifetimes.timer, on_timer, s); }

void lifetime_free(struct server *s)
{
	mv_timer_fini(&s->lifetimes.timer);
	free(s->lifetimes.at);
	s->lifetimes.at = NULL;
}

int lifetime_reserve(struct server *s, const struct vm *vm)
{
	struct lifetimes *l = &s->lifetimes;
	if (!vm->policy.ttl_ms && !vm->policy.idle_timeout_ms)
		return 0;
	uint32_t need = s->n_live + 2; // each process at most once; at[0] is not used
	if (need <= l->room)
		return 0;
	struct vm **at = realloc(l->at, 2 * need * sizeof(struct vm *));
	if (!at)
		return -ENOMEM;
	l->at = at;
	l->room = 2 * need;
	return 0;
}
