// SPDX-License-Identifier: Apache-2.0
#include "api/ops_device.h"

#include <errno.h>
#include <string.h>

#include "api/etag.h"
#include "api/routes.h"
#include "api/vmjson.h"
#include "api/vms.h"
#include "microvm/base/util.h"

#define TIMEOUT_MS 10000

union body {
	struct drive_body drive;
	struct net_body net;
	struct pmem_body pmem;
};

union set { // both begin with the device's index
	uint32_t index;
	struct msg_drive_set drive;
	struct msg_net_set net;
	struct msg_pmem_set pmem;
};

struct kind {
	const char *noun, *list; // in errors: "drive", "drives"
	const struct js_table *body;
	enum msg_type type;
	const struct mv_table *message;
	const char *(*id)(const struct vm *vm, uint32_t index); // NULL: it has no more
	// The whole set from what the body has and what is; its index is given.
	int (*fill)(const struct vm *vm, const union body *b, union set *set, struct api_err *err);
	void (*take)(struct vm *vm, const union set *set); // as the VM process has taken it
};

struct patch {
	struct http_req *req;
	const struct kind *kind;
	union set set;
};

static int check_rate(const struct vmcfg_rate *rate, const char *noun, const char *id, struct api_err *err)
{
	struct mv_err e = { 0 };
	return vmcfg_check_rate(rate, noun, id, &e) ? api_fail(err, API_INVALID_VALUE, "%s", e.msg) : 0;
}

static const char *drive_id(const struct vm *vm, uint32_t i)
{
	return i < vm->cfg.n_drives ? vm->cfg.drive[i].id : NULL;
}

static int drive_fill(const struct vm *vm, const union body *body, union set *set, struct api_err *err)
{
	const struct drive_body *b = &body->drive;
	const struct vmcfg_drive *d = &vm->cfg.drive[set->index];
	if (b->size_bytes && b->reread_size)
		return api_fail(err, API_INVALID_VALUE,
				"size_bytes, reread_size: give one of them, not both");
	set->drive.size_bytes = b->size_bytes;
	set->drive.reread_size = b->reread_size;
	set->drive.rate = b->has_rate ? b->rate : d->rate;
	return check_rate(&set->drive.rate, "drive", d->id, err);
}

static void drive_take(struct vm *vm, const union set *set)
{
	vm->cfg.drive[set->index].rate = set->drive.rate;
}

static const char *net_id(const struct vm *vm, uint32_t i)
{
	return i < vm->cfg.n_nets ? vm->cfg.net[i].id : NULL;
}

static int net_fill(const struct vm *vm, const union body *body, union set *set, struct api_err *err)
{
	const struct net_body *b = &body->net;
	const struct vmcfg_net *n = &vm->cfg.net[set->index];
	set->net.link_up = b->has_link ? b->link_up : !(vm->links_down & 1u << set->index);
	set->net.rx_rate = b->has_rx ? b->rx_rate : n->rx_rate;
	set->net.tx_rate = b->has_tx ? b->tx_rate : n->tx_rate;
	int r = check_rate(&set->net.rx_rate, "net", n->id, err);
	return r ? r : check_rate(&set->net.tx_rate, "net", n->id, err);
}

static void net_take(struct vm *vm, const union set *set)
{
	const uint32_t bit = 1u << set->index;
	vm->cfg.net[set->index].rx_rate = set->net.rx_rate;
	vm->cfg.net[set->index].tx_rate = set->net.tx_rate;
	vm->links_down = set->net.link_up ? vm->links_down & ~bit : vm->links_down | bit;
}

static const char *pmem_id(const struct vm *vm, uint32_t i)
{
	return i < vm->cfg.n_pmems ? vm->cfg.pmem[i].id : NULL;
}

static int pmem_fill(const struct vm *vm, const union body *body, union set *set, struct api_err *err)
{
	const struct vmcfg_pmem *p = &vm->cfg.pmem[set->index];
	set->pmem.rate = body->pmem.has_rate ? body->pmem.rate : p->rate;
	return check_rate(&set->pmem.rate, "pmem", p->id, err);
}

static void pmem_take(struct vm *vm, const union set *set) { vm->cfg.pmem[set->index].rate = set->pmem.rate; }

static const struct kind drives = {
	"drive",  "drives",   &drive_body_table, MSG_DRIVE_SET, &msg_drive_set_table,
	drive_id, drive_fill, drive_take
};
static const struct kind nets = { "network device",   "nets", &net_body_table, MSG_NET_SET,
				  &msg_net_set_table, net_id, net_fill,        net_take };

static const struct kind pmems = { "pmem device",       "pmems", &pmem_body_table, MSG_PMEM_SET,
				   &msg_pmem_set_table, pmem_id, pmem_fill,        pmem_take };

void devices_adopt(struct vm *vm, const struct msg_reply *reply)
{
	for (uint32_t i = 0; i < reply->n_drives; i++)
		if (drive_id(vm, reply->drive[i].index))
			drive_take(vm, &(union set){ .drive = reply->drive[i] });
	for (uint32_t i = 0; i < reply->n_nets; i++)
		if (net_id(vm, reply->net[i].index))
			net_take(vm, &(union set){ .net = reply->net[i] });
	for (uint32_t i = 0; i < reply->n_pmems; i++)
		if (pmem_id(vm, reply->pmem[i].index))
			pmem_take(vm, &(union set){ .pmem = reply->pmem[i] });
}

static void on_done(void *arg, struct vm *vm, const struct api_err *err, const struct msg_reply *reply)
{
	MV_FREE struct patch *p = arg;
	(void)reply;
	if (err) {
		reply_err(p->req, err);
		return;
	}
	p->kind->take(vm, &p->set);
	vm_changed(vm);
	etag_reply_vm(p->req, 200, vm);
}

static int find(const struct vm *vm, const struct kind *k, const char *path, uint32_t *ret_index,
		struct api_err *err)
{
	const char *wanted = strrchr(path, '/') + 1, *id; // the route has one
	for (uint32_t i = 0; (id = k->id(vm, i)); i++)
		if (!strcmp(id, wanted)) {
			*ret_index = i;
			return 0;
		}
	return api_fail(err, API_NOT_FOUND, "VM %s has no %s \"%.64s\"", vm->cfg.name, k->noun, wanted);
}

static void patch(struct server *s, struct http_req *r, const char *name, const struct kind *k)
{
	union body b;
	struct api_err err;
	struct vm *vm;
	MV_FREE struct patch *p = calloc(1, sizeof *p);
	memset(&b, 0, sizeof b);
	int result = p ? vms_find(s, name, &vm, &err)
		       : api_fail(&err, API_OUT_OF_MEMORY, "no memory for the request");
	result = result ? result : js_decode_body(k->body, body_of(r), &b, &err);
	result = result ? result : find(vm, k, r->path, &p->set.index, &err);
	result = result ? result : k->fill(vm, &b, &p->set, &err);
	if (!result) {
		p->req = r;
		p->kind = k;
		result = vm_call(vm, k->type, k->message, &p->set, NULL, 0, TIMEOUT_MS, k->list, on_done, p,
				 &err);
	}
	if (result)
		reply_err(r, &err);
	else
		(void)MV_TAKE(p);
}

void op_drive_patch(struct server *s, struct http_req *r, const char *name) { patch(s, r, name, &drives); }
void op_net_patch(struct server *s, struct http_req *r, const char *name) { patch(s, r, name, &nets); }
void op_pmem_patch(struct server *s, struct http_req *r, const char *name) { patch(s, r, name, &pmems); }
