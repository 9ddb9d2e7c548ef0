// SPDX-License-Identifier: Apache-2.0
#include "api/operation.h"

#include <sys/mman.h>
#include <unistd.h>

#include "api/routes.h"
#include "microvm/base/util.h"

#define MAX_SHOWN 100 // requests may wait by the hundred, and each takes some us to show

const char *const operation_kinds[] = { "snapshot", "verify", "flatten", "export", "import", NULL };
const char *const operation_steps[] = { "waiting", "writing", "checking", NULL };

void operation_begin(struct server *s, struct operation *o, enum operation_kind kind, const char *snapshot,
		     const char *vm, const struct http_req *r)
{
	*o = (struct operation){
		.listed = true, .kind = kind, .request = r->id, .began_ns = r->received_ns, .vm_fd = -1
	};
	mv_strcpy(o->snapshot, sizeof o->snapshot, snapshot);
	mv_strcpy(o->vm, sizeof o->vm, vm ? vm : "");
	LIST_INSERT_HEAD(&s->operations, o, link);
}

int operation_by_vm(struct operation *o, uint64_t memory_bytes)
{
	MV_FD fd = memfd_create("progress", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, sizeof o->progress))
		return -1;
	o->vm_bytes = memory_bytes;
	return o->vm_fd = MV_TAKE_FD(fd);
}

void operation_by_us(struct operation *o) { mv_close(&o->vm_fd); }

void operation_end(struct operation *o)
{
	if (!o->listed)
		return;
	LIST_REMOVE(o, link);
	o->listed = false;
	mv_close(&o->vm_fd);
}

static js *operation_json(const struct operation *o, uint64_t now_ns)
{
	uint64_t v[] = { atomic_load(&o->progress.step), atomic_load(&o->progress.done_bytes),
			 atomic_load(&o->progress.total_bytes) };
	_Static_assert(sizeof v == sizeof o->progress, "its fields, in order");
	uint64_t most = UINT64_MAX;
	if (o->vm_fd >= 0) { // by read(2): whatever the process does to the file
		most = o->vm_bytes;
		if (pread(o->vm_fd, v, sizeof v, 0) != sizeof v)
			v[0] = v[1] = v[2] = 0;
	}
	v[0] = v[0] < MV_PROGRESS_N_STEPS ? v[0] : MV_PROGRESS_WAITS;
	v[2] = v[2] < most ? v[2] : most;
	js *j = js_object();
	js_put_str(j, "kind", operation_kinds[o->kind]);
	js_put_str(j, "snapshot", o->snapshot);
	if (o->vm[0])
		js_put_str(j, "vm", o->vm);
	js_put_str(j, "step", operation_steps[v[0]]);
	js_put_uint(j, "done_bytes", v[2] && v[1] > v[2] ? v[2] : v[1]);
	js_put_uint(j, "total_bytes", v[2]);
	js_put_uint(j, "elapsed_ms", (now_ns - o->began_ns) / 1000000u);
	js_put_str(j, "request_id", o->request.text);
	return j;
}

void op_operations(struct server *s, struct http_req *r, const char *name)
{
	js *o = js_object(), *list = js_list();
	const struct operation *i;
	uint64_t now_ns = mv_now_ns();
	unsigned n = 0;
	(void)name;
	LIST_FOREACH (i, &s->operations, link)
		if (n++ < MAX_SHOWN)
			js_add(list, operation_json(i, now_ns));
	js_put(o, "operations", list);
	reply_json(r, 200, o);
}
