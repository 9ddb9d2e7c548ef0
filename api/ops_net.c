// SPDX-License-Identifier: Apache-2.0
#include "api/ops_net.h"

#include <errno.h>
#include <string.h>

#include "api/routes.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define TIMEOUT_MS 10000

struct net_op {
	struct http_req *req;
	struct msg_net_set set;
};

static void take(struct vm *vm, const struct msg_net_set *set)
{
	const uint32_t bit = 1u << set->index;
	vm->cfg.net[set->index].rx_rate = set->rx_rate;
	vm->cfg.net[set->index].tx_rate = set->tx_rate;
	vm->links_down = set->link_up ? vm->links_down & ~bit : vm->links_down | bit;
}

void net_adopt(struct vm *vm, const struct msg_net_set *nets, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (nets[i].index < vm->cfg.n_nets)
			take(vm, &nets[i]);
}

static void on_done(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	MV_FREE struct net_op *o = arg;
	(void)reply;
	if (err) {
		reply_err(o->req, err);
		return;
	}
	take(vm, &o->set);
	reply_json(o->req, 200, vm_json(vm));
}

static int find_net(const struct vm *vm, const char *path, uint32_t *ret_index, struct api_err *err)
{
	const char *id = strrchr(path, '/') + 1; // the route has one
	for (uint32_t i = 0; i < vm->cfg.n_nets; i++)
		if (!strcmp(vm->cfg.net[i].id, id)) {
			*ret_index = i;
			return 0;
		}
	return api_fail(err, API_NOT_FOUND, "VM %s has no network device \"%.64s\"", vm->cfg.name, id);
}

static int begin(struct net_op *o, struct vm *vm, const struct net_body *b, struct api_err *err)
{
	struct mv_err e = { 0 };
	int r = find_net(vm, o->req->path, &o->set.index, err);
	if (r)
		return r;
	const struct vmcfg_net *n = &vm->cfg.net[o->set.index];
	o->set.link_up = b->has_link ? b->link_up : !(vm->links_down & 1u << o->set.index);
	o->set.rx_rate = b->has_rx ? b->rx_rate : n->rx_rate;
	o->set.tx_rate = b->has_tx ? b->tx_rate : n->tx_rate;
	if (vmcfg_check_rate(&o->set.rx_rate, "net", n->id, &e) ||
	    vmcfg_check_rate(&o->set.tx_rate, "net", n->id, &e))
		return api_fail(err, API_INVALID_VALUE, "%s", e.msg);
	return vm_call(vm, MSG_NET_SET, &msg_net_set_table, &o->set, NULL, 0, TIMEOUT_MS, "nets", on_done, o,
		       err);
}

void op_net_patch(struct server *s, struct http_req *r, const char *name)
{
	struct net_body b = { 0 };
	struct api_err err;
	struct vm *vm;
	MV_FREE struct net_op *o = calloc(1, sizeof *o);
	int result = o ? vms_find(s, name, &vm, &err)
		       : api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	if (!result)
		result = js_decode(&net_body_table, r->body, r->body_len, &b, &err);
	if (!result) {
		o->req = r;
		result = begin(o, vm, &b, &err);
	}
	if (result)
		reply_err(r, &err);
	else
		(void)MV_TAKE(o);
}
