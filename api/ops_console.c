// SPDX-License-Identifier: Apache-2.0
// The serial console over HTTP: raw bytes, addressed by their offset since the VM's start.
// A reader asks for what is behind the offset it has (Thaw-Console-Next of the last
// answer) and may wait for it. Of an exited VM the last 32 KiB remain.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/routes.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define GRACE_MS 30000
// A long wait is many short ones of the VM process: a client that went away frees its
// place among the readers soon.
#define TURN_MS 1000

struct console_op {
	struct http_req *req;
	uint64_t offset, until_ns;
	struct vm_waiter end;
};

static void reply_bytes(struct http_req *r, const uint8_t *data, uint32_t n, uint64_t offset)
{
	struct http_header h[2] = { { .name = "Thaw-Console-Offset" }, { .name = "Thaw-Console-Next" } };
	void *copy = malloc(n ? n : 1);
	snprintf(h[0].value, sizeof h[0].value, "%" PRIu64, offset);
	snprintf(h[1].value, sizeof h[1].value, "%" PRIu64, offset + n);
	if (copy)
		memcpy(copy, data, n);
	http_reply(r, copy ? 200 : 503, "application/octet-stream", copy, copy ? n : 0, h, 2);
}

static void reply_tail(const struct vm *vm, struct http_req *r, uint64_t offset)
{
	static const uint8_t none[1];
	uint64_t first = vm->console_end - vm->n_console_tail;
	if (offset < first)
		offset = first;
	if (offset >= vm->console_end)
		reply_bytes(r, none, 0, vm->console_end);
	else
		reply_bytes(r, vm->console_tail + (offset - first), (uint32_t)(vm->console_end - offset),
			    offset);
}

static int read_turn(struct console_op *o, struct vm *vm, struct api_err *err);

static void on_read(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct console_op *o = arg;
	struct api_err e;
	if (!err && !reply->n_data && mv_now_ns() < o->until_ns && !http_client_gone(o->req)) {
		if (!read_turn(o, vm, &e))
			return;
		err = &e;
	}
	if (!err)
		reply_bytes(o->req, reply->data, reply->n_data, reply->console_offset);
	else if (vm->state == VM_EXITED)
		reply_tail(vm, o->req, o->offset);
	else
		reply_err(o->req, err);
	free(o);
}

static void on_end(void *arg, struct vm *vm)
{
	struct console_op *o = arg;
	reply_tail(vm, o->req, o->offset);
	free(o);
}

static int read_turn(struct console_op *o, struct vm *vm, struct api_err *err)
{
	struct msg_console_read q = { .offset = o->offset, .max_bytes = MSG_CONSOLE_BYTES };
	uint64_t now = mv_now_ns();
	uint64_t left_ms = now < o->until_ns ? (o->until_ns - now) / 1000000 + 1 : 0;
	q.wait_ms = (uint32_t)(left_ms < TURN_MS ? left_ms : TURN_MS);
	int r = vm_call(vm, MSG_CONSOLE_READ, &msg_console_read_table, &q, NULL, 0, TURN_MS + GRACE_MS,
			"console read", on_read, o, err);
	if (!r || err->code != API_VM_GONE || !vm_has_process(vm))
		return r;
	vm_wait_end(vm, &o->end, on_end, o); // it is ending: its last words come with that
	return 0;
}

static void on_written(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct console_op *o = arg;
	(void)vm, (void)reply;
	if (err)
		reply_err(o->req, err);
	else
		reply_empty(o->req);
	free(o);
}

static struct console_op *op_new(struct http_req *r, uint64_t offset, uint64_t wait_ms, struct api_err *err)
{
	struct console_op *o = calloc(1, sizeof *o);
	if (!o) {
		api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
		return NULL;
	}
	*o = (struct console_op){ .req = r,
				  .offset = offset,
				  .until_ns = wait_ms ? mv_now_ns() + wait_ms * 1000000u : 0 };
	return o;
}

void op_console_read(struct server *s, struct http_req *r, const char *name)
{
	struct console_op *o = NULL;
	struct api_err err;
	struct vm *vm;
	uint64_t offset = 0, wait_ms = 0;
	int result = vms_find(s, name, &vm, &err);
	if (!result)
		result = query_uint(r, "offset", UINT64_MAX >> 1, 0, &offset, &err);
	if (!result)
		result = query_uint(r, "wait_ms", API_CONSOLE_MAX_WAIT_MS, 0, &wait_ms, &err);
	if (!result && vm->state == VM_EXITED) {
		reply_tail(vm, r, offset);
		return;
	}
	if (!result && !(o = op_new(r, offset, wait_ms, &err)))
		result = -ENOMEM;
	if (!result)
		result = read_turn(o, vm, &err);
	if (result) {
		reply_err(r, &err);
		free(o);
	}
}

void op_console_write(struct server *s, struct http_req *r, const char *name)
{
	static struct msg_bytes b; // the loop's thread only
	struct console_op *o = NULL;
	struct api_err err;
	struct vm *vm;
	int result = vms_find(s, name, &vm, &err);
	if (!result && r->body_len > sizeof b.data)
		result = api_fail(&err, API_INVALID_VALUE, "body: %zu bytes; send at most %zu at once",
				  r->body_len, sizeof b.data);
	if (!result && vm->state == VM_EXITED)
		result = api_fail(&err, API_WRONG_STATE, "VM %s has exited", vm->cfg.name);
	if (!result && !(o = op_new(r, 0, 0, &err)))
		result = -ENOMEM;
	if (!result) {
		if (r->body_len)
			memcpy(b.data, r->body, r->body_len);
		b.n_data = (uint32_t)r->body_len;
		result = vm_call(vm, MSG_CONSOLE_WRITE, &msg_bytes_table, &b, NULL, 0, GRACE_MS,
				 "console write", on_written, o, &err);
	}
	if (result) {
		reply_err(r, &err);
		free(o);
	}
}
