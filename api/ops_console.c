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
#include "api/vms.h"
#include "microvm/base/util.h"

#define MAX_WAIT_MS 60000
#define GRACE_MS 30000

struct console_op {
	struct http_req *req;
	uint64_t offset;
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

static void on_read(void *arg, struct vm *vm, const struct api_err *err,
		    const struct msg_reply *reply)
{
	struct console_op *o = arg;
	if (!err)
		reply_bytes(o->req, reply->data, reply->n_data, reply->console_offset);
	else if (vm->state == VM_EXITED)
		reply_tail(vm, o->req, o->offset);
	else
		reply_err(o->req, err);
	free(o);
}

static void on_written(void *arg, struct vm *vm, const struct api_err *err,
		       const struct msg_reply *reply)
{
	struct console_op *o = arg;
	(void)vm, (void)reply;
	if (err)
		reply_err(o->req, err);
	else
		reply_empty(o->req);
	free(o);
}

static int start(struct vm *vm, struct http_req *r, uint64_t offset, enum msg_type type,
		 const struct mv_table *table, const void *body, uint64_t wait_ms, struct api_err *err)
{
	struct console_op *o = calloc(1, sizeof *o);
	if (!o)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	*o = (struct console_op){ r, offset };
	const bool read = type == MSG_CONSOLE_READ;
	int result = vm_call(vm, type, table, body, NULL, 0, wait_ms + GRACE_MS,
			     read ? "console read" : "console write", read ? on_read : on_written, o,
			     err);
	if (result)
		free(o);
	return result;
}

void op_console_read(struct server *s, struct http_req *r, const char *name)
{
	struct msg_console_read q = { .max_bytes = MSG_CONSOLE_BYTES };
	struct api_err err;
	struct vm *vm;
	uint64_t wait_ms = 0;
	int result = vms_find(s, name, &vm, &err);
	if (!result)
		result = query_uint(r, "offset", UINT64_MAX >> 1, 0, &q.offset, &err);
	if (!result)
		result = query_uint(r, "wait_ms", MAX_WAIT_MS, 0, &wait_ms, &err);
	q.wait_ms = (uint32_t)wait_ms;
	if (!result && vm->state == VM_EXITED) {
		reply_tail(vm, r, q.offset);
		return;
	}
	if (!result)
		result = start(vm, r, q.offset, MSG_CONSOLE_READ, &msg_console_read_table, &q, wait_ms,
			       &err);
	if (result)
		reply_err(r, &err);
}

void op_console_write(struct server *s, struct http_req *r, const char *name)
{
	static struct msg_bytes b; // the loop's thread only
	struct api_err err;
	struct vm *vm;
	int result = vms_find(s, name, &vm, &err);
	if (!result && r->body_len > sizeof b.data)
		result = api_fail(&err, API_INVALID_VALUE, "body: %zu bytes; send at most %zu at once",
				  r->body_len, sizeof b.data);
	if (!result && vm->state == VM_EXITED)
		result = api_fail(&err, API_WRONG_STATE, "VM %s has exited", vm->cfg.name);
	if (!result) {
		if (r->body_len)
			memcpy(b.data, r->body, r->body_len);
		b.n_data = (uint32_t)r->body_len;
		result = start(vm, r, 0, MSG_CONSOLE_WRITE, &msg_bytes_table, &b, 0, &err);
	}
	if (result)
		reply_err(r, &err);
}
