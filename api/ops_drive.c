// SPDX-License-Identifier: Apache-2.0
#include "api/ops_drive.h"

#include <errno.h>
#include <string.h>

#include "api/routes.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define TIMEOUT_MS 10000

struct drive_op {
	struct http_req *req;
	struct msg_drive_set set;
};

void drive_adopt(struct vm *vm, const struct msg_drive_set *drives, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (drives[i].index < vm->cfg.n_drives)
			vm->cfg.drive[drives[i].index].rate = drives[i].rate;
}

static void on_done(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	MV_FREE struct drive_op *o = arg;
	(void)reply;
	if (err) {
		reply_err(o->req, err);
		return;
	}
	drive_adopt(vm, &o->set, 1);
	reply_json(o->req, 200, vm_json(vm));
}

static int find_drive(const struct vm *vm, const char *path, uint32_t *ret_index, struct api_err *err)
{
	const char *id = strrchr(path, '/') + 1; // the route has one
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		if (!strcmp(vm->cfg.drive[i].id, id)) {
			*ret_index = i;
			return 0;
		}
	return api_fail(err, API_NOT_FOUND, "VM %s has no drive \"%.64s\"", vm->cfg.name, id);
}

static int begin(struct drive_op *o, struct vm *vm, const struct drive_body *b, struct api_err *err)
{
	struct mv_err e = { 0 };
	int r = find_drive(vm, o->req->path, &o->set.index, err);
	if (r)
		return r;
	const struct vmcfg_drive *d = &vm->cfg.drive[o->set.index];
	if (b->size_bytes && b->reread_size)
		return api_fail(err, API_INVALID_VALUE,
				"size_bytes, reread_size: give one of them, not both");
	o->set.size_bytes = b->size_bytes;
	o->set.reread_size = b->reread_size;
	o->set.rate = b->has_rate ? b->rate : d->rate;
	if (vmcfg_check_rate(&o->set.rate, "drive", d->id, &e))
		return api_fail(err, API_INVALID_VALUE, "%s", e.msg);
	return vm_call(vm, MSG_DRIVE_SET, &msg_drive_set_table, &o->set, NULL, 0, TIMEOUT_MS, "drives",
		       on_done, o, err);
}

void op_drive_patch(struct server *s, struct http_req *r, const char *name)
{
	struct drive_body b = { 0 };
	struct api_err err;
	struct vm *vm;
	MV_FREE struct drive_op *o = calloc(1, sizeof *o);
	int result = o ? vms_find(s, name, &vm, &err)
		       : api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (!result)
		result = js_decode(&drive_body_table, r->body, r->body_len, &b, &err);
	if (!result) {
		o->req = r;
		result = begin(o, vm, &b, &err);
	}
	if (result)
		reply_err(r, &err);
	else
		(void)MV_TAKE(o);
}
