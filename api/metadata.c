// SPDX-License-Identifier: Apache-2.0
#include "api/metadata.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/routes.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define TIMEOUT_MS 10000

struct metadata_op {
	struct http_req *req;
	char *text;
};

// The document with a final newline, so that shells can read it.
static int send_text(struct vm *vm, const char *text, vm_done_fn *done, void *arg, struct api_err *err)
{
	static struct msg_metadata m; // the loop's thread only
	size_t len = strlen(text);
	if (len >= sizeof m.data)
		return api_fail(err, API_INTERNAL, "metadata: %zu bytes", len); // was checked
	memcpy(m.data, text, len);
	m.data[len] = '\n';
	m.n_data = (uint32_t)len + 1;
	return vm_call(vm, MSG_METADATA, &msg_metadata_table, &m, NULL, 0, TIMEOUT_MS, "metadata", done, arg,
		       err);
}

// A VM that would run without what it was given must not run.
static void on_first(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	(void)arg, (void)reply;
	if (!err || !vm_has_process(vm))
		return;
	mv_log(MV_WARN, "vm %s: ended: %s", vm->cfg.name, err->msg);
	vm_kill(vm);
}

int metadata_send_first(struct vm *vm, struct api_err *err)
{
	return vm->metadata ? send_text(vm, vm->metadata, on_first, NULL, err) : 0;
}

static void on_sent(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	struct metadata_op *o = arg;
	(void)reply;
	if (err) {
		reply_err(o->req, err);
		free(o->text);
	} else {
		free(vm->metadata);
		vm->metadata = o->text;
		reply_empty(o->req);
	}
	free(o);
}

void op_metadata_put(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct vm *vm;
	MV_FREE struct metadata_op *o = calloc(1, sizeof *o);
	if (!o) {
		api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
		reply_err(r, &err);
		return;
	}
	o->req = r;
	int result = vms_find(s, name, &vm, &err);
	if (!result)
		result = metadata_parse(body_of(r), &o->text, &err);
	if (!result)
		result = metadata_check(&vm->cfg, o->text, &err);
	if (!result)
		result = send_text(vm, o->text, on_sent, o, &err);
	if (!result) {
		(void)MV_TAKE(o);
		return;
	}
	reply_err(r, &err);
	free(o->text);
}

void op_metadata_get(struct server *s, struct http_req *r, const char *name)
{
	struct api_err err;
	struct vm *vm;
	int result = vms_find(s, name, &vm, &err);
	char *text = result ? NULL : strdup(vm->metadata ? vm->metadata : "{}");
	if (!result && !text)
		result = api_fail(&err, API_OUT_OF_MEMORY, "no memory for the answer");
	if (result)
		reply_err(r, &err);
	else
		http_reply(r, 200, "application/json", text, strlen(text), NULL, 0);
}
