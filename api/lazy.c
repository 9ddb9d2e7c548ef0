// SPDX-License-Identifier: Apache-2.0
#include "api/lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/pager.h"
#include "api/vm.h"
#include "microvm/base/util.h"
#include "snapshot/pager.h"

#define CHUNK_BYTES 65536u // as in snapshot/chunk.h

struct lazy {
	LIST_ENTRY(lazy) link;
	struct server *s;
	unsigned refs; // jobs, clones, and one until it is dropped
	uint64_t id, memory_bytes;
	char name[VMCFG_NAME_LEN], snapshot_id[MV_UUID_LEN];
	struct store_chain files;
	int memfd, clones_fd, status_fd; // clones_fd: the memfd, read-only
	int working_set_fd;              // -1: none
	const struct pager_status *status;
	bool fill, complete, dropped;
	bool served; // the pager has it or is to have it
	unsigned n_clones;
	bool prefilled; // what the working set needs is there
	struct lazy_waiters waiters, prefill_waiters;
};

struct lazy_clone {
	LIST_ENTRY(lazy_clone) link;
	struct lazy *template;
	struct vm *vm;
	uint64_t id;
	int uffd; // -1: not yet given
	bool with_uffd;
	struct msg_lazy map;
};

void lazy_init(struct server *s, bool forbidden)
{
	s->uffd_device_fd = forbidden ? -1 : open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	s->has_uffd = s->uffd_device_fd >= 0;
	if (s->has_uffd || forbidden)
		return;
	MV_FD fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	s->has_uffd = fd >= 0;
}

// --- templates ---

struct lazy *lazy_find(struct server *s, const struct manifest *m)
{
	struct lazy *t;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (!t->dropped && !strcmp(t->name, m->name) && !strcmp(t->snapshot_id, m->id))
			return t;
	return NULL;
}

struct lazy *lazy_ref(struct lazy *t)
{
	t->refs++;
	return t;
}

// What the pager has of it is not needed any more.
static void unserve(struct lazy *t)
{
	if (!t->served)
		return;
	t->served = false;
	pager_tell(t->s, PAGER_END_TEMPLATE, t->id, NULL, NULL, NULL, 0);
	store_chain_close(&t->files);
}

static void count_status(const struct lazy *t, struct lazy_counts *c)
{
	c->faults += t->status->faults;
	c->zero_faults += t->status->zero_faults;
	c->fills += t->status->fills;
	c->background_fills += t->status->background_fills;
}

void lazy_unref(struct lazy *t)
{
	if (!t || --t->refs)
		return;
	unserve(t);
	LIST_REMOVE(t, link);
	if (t->status)
		count_status(t, &t->s->lazy_gone);
	if (t->status)
		munmap((void *)(uintptr_t)t->status, sizeof *t->status);
	store_chain_close(&t->files);
	mv_close(&t->working_set_fd);
	mv_close(&t->memfd);
	mv_close(&t->clones_fd);
	mv_close(&t->status_fd);
	free(t);
}

bool lazy_drop(struct server *s, const char *name)
{
	struct lazy *t;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (!t->dropped && !strcmp(t->name, name))
			break;
	if (!t)
		return false;
	t->dropped = true;
	event_emit(s, EVENT_TEMPLATE_DROPPED,
		   &(struct event_info){ .snapshot = t->name, .snapshot_id = t->snapshot_id });
	lazy_unref(t);
	return true;
}

// Clones get the memory by a descriptor that can't be written through.
static int make_memory(struct lazy *t)
{
	char path[40];
	t->memfd = memfd_create("thaw-template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (t->memfd < 0 || ftruncate(t->memfd, (off_t)t->memory_bytes) || fchmod(t->memfd, 0400))
		return -errno;
	snprintf(path, sizeof path, "/proc/self/fd/%d", t->memfd);
	t->clones_fd = open(path, O_RDONLY | O_CLOEXEC);
	return t->clones_fd < 0 ? -errno : 0;
}

static int make_status(struct lazy *t)
{
	uint64_t n = (t->memory_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
	t->status_fd = memfd_create("thaw-template-status", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (t->status_fd < 0 || ftruncate(t->status_fd, (off_t)pager_status_bytes(n)) ||
	    fcntl(t->status_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		return -errno;
	void *p = mmap(NULL, sizeof *t->status, PROT_READ, MAP_SHARED, t->status_fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	t->status = p;
	return 0;
}

static void give_working_set(const struct lazy *t)
{
	struct pager_working_set body = { { 0 } };
	memcpy(body.snapshot_id, t->snapshot_id, sizeof body.snapshot_id);
	if (t->working_set_fd >= 0)
		pager_tell(t->s, PAGER_WORKING_SET, t->id, &pager_working_set_table, &body,
			   &t->working_set_fd, 1);
}

static void give_template(struct lazy *t)
{
	struct pager_template body = { t->memory_bytes, t->fill, t->files.raw_base };
	int fds[2] = { t->memfd, t->status_fd };
	for (unsigned at = 0, n; at < t->files.n; at += n) {
		n = t->files.n - at < PAGER_FILES_MAX ? t->files.n - at : PAGER_FILES_MAX;
		pager_tell(t->s, PAGER_FILES, t->id, NULL, NULL, t->files.fd + at, n);
	}
	pager_tell(t->s, PAGER_TEMPLATE, t->id, &pager_template_table, &body, fds, 2);
	give_working_set(t);
}

int lazy_new(struct server *s, const struct manifest *m, struct store_chain *files, bool fill,
	     struct lazy **ret_lazy, struct mv_err *err)
{
	int r = pager_need(s, err);
	if (r)
		return r;
	lazy_drop(s, m->name); // of an older snapshot of that name
	struct lazy *t = calloc(1, sizeof *t);
	if (!t)
		return mv_fail(err, ENOMEM, "no memory for a template");
	*t = (struct lazy){ .s = s,
			    .refs = 1,
			    .id = ++s->lazy_last_id,
			    .memory_bytes = (uint64_t)m->cfg.mem_mib << 20,
			    .fill = fill,
			    .prefilled = true,
			    .working_set_fd = -1,
			    .memfd = -1,
			    .clones_fd = -1,
			    .status_fd = -1 };
	memcpy(t->name, m->name, sizeof t->name);
	memcpy(t->snapshot_id, m->id, sizeof t->snapshot_id);
	LIST_INIT(&t->waiters);
	LIST_INIT(&t->prefill_waiters);
	LIST_INSERT_HEAD(&s->lazy_templates, t, link);
	r = make_memory(t);
	r = r ? r : make_status(t);
	if (r) {
		lazy_unref(t);
		return mv_fail(err, -r, "template of %s: %s", m->name, strerror(-r));
	}
	t->files = MV_TAKE_AS(*files, (struct store_chain){ 0 });
	t->served = true;
	give_template(t);
	*ret_lazy = lazy_ref(t);
	return 0;
}

void lazy_prefill(struct lazy *t, int working_set_fd)
{
	if (t->complete || t->working_set_fd >= 0 || working_set_fd < 0)
		return;
	t->working_set_fd = fcntl(working_set_fd, F_DUPFD_CLOEXEC, 3);
	t->prefilled = t->working_set_fd < 0;
	give_working_set(t);
}

void lazy_fill(struct lazy *t)
{
	if (t->fill || t->complete)
		return;
	t->fill = true;
	pager_tell(t->s, PAGER_FILL, t->id, NULL, NULL, NULL, 0);
}

bool lazy_is_complete(const struct lazy *t) { return t->complete; }

bool lazy_must_be_complete(const struct server *s) { return !s->has_uffd; }

static void end_list(struct lazy *t, struct lazy_waiters *list, bool complete)
{
	struct lazy_waiter *w;
	lazy_ref(t);
	while ((w = LIST_FIRST(list))) {
		LIST_REMOVE(w, link);
		w->fn(w->arg, complete);
	}
	lazy_unref(t);
}

static void end_prefill(struct lazy *t)
{
	t->prefilled = true;
	end_list(t, &t->prefill_waiters, t->complete);
}

static void end_waiters(struct lazy *t, bool complete) { end_list(t, &t->waiters, complete); }

void lazy_wait_prefilled(struct lazy *t, struct lazy_waiter *w, void (*fn)(void *arg, bool complete),
			 void *arg)
{
	if (t->prefilled || t->complete) {
		fn(arg, t->complete);
		return;
	}
	*w = (struct lazy_waiter){ .fn = fn, .arg = arg };
	LIST_INSERT_HEAD(&t->prefill_waiters, w, link);
}

void lazy_prefilled(struct server *s, uint64_t template_id)
{
	struct lazy *t;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (t->id == template_id)
			break;
	if (t)
		end_prefill(t);
}

void lazy_wait(struct lazy *t, struct lazy_waiter *w, void (*fn)(void *arg, bool complete), void *arg)
{
	if (t->complete || t->status->bad) {
		fn(arg, t->complete);
		return;
	}
	*w = (struct lazy_waiter){ .fn = fn, .arg = arg };
	LIST_INSERT_HEAD(&t->waiters, w, link);
	lazy_fill(t);
}

void lazy_complete(struct server *s, uint64_t template_id)
{
	struct lazy *t;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (t->id == template_id)
			break;
	if (!t || t->complete)
		return;
	t->complete = true;
	if (fcntl(t->memfd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
		mv_log(MV_WARN, "template of %s: can't seal it: %s", t->name, strerror(errno));
	mv_log(MV_INFO, "template of %s: complete, %llu chunks", t->name,
	       (unsigned long long)t->status->stored);
	event_emit(s, EVENT_TEMPLATE_COMPLETE,
		   &(struct event_info){ .snapshot = t->name, .snapshot_id = t->snapshot_id });
	if (!t->n_clones)
		unserve(t); // so the pager may never come to tell that the working set is there
	lazy_ref(t);
	end_prefill(t);
	end_waiters(t, true);
	lazy_unref(t);
}

js *lazy_json(const struct lazy *t)
{
	const struct pager_status *p = t->status;
	js *o = js_object();
	js_put_bool(o, "complete", t->complete);
	js_put_bool(o, "fill", t->fill);
	js_put_uint(o, "clones", t->n_clones);
	js_put_uint(o, "chunk_bytes", CHUNK_BYTES);
	js_put_uint(o, "chunks", p->stored);
	js_put_uint(o, "filled", p->filled);
	js_put_uint(o, "faults", p->faults);
	js_put_uint(o, "zero_faults", p->zero_faults);
	js_put_uint(o, "fills", p->fills);
	js_put_uint(o, "background_fills", p->background_fills);
	js_put_uint(o, "prefills", p->prefills);
	js_put_uint(o, "damaged", p->bad);
	return o;
}

js *lazy_clone_json(const struct vm *vm) { return vm->lazy ? lazy_json(vm->lazy->template) : NULL; }

// The counters of templates that are gone are kept, so that the sums never go back.
void lazy_metrics(struct server *s)
{
	struct lazy_counts c = s->lazy_gone;
	const struct lazy *t;
	for (unsigned i = 0; i < N_TEMPLATE_STATES; i++)
		metrics_set(M_TEMPLATES, i, 0);
	LIST_FOREACH (t, &s->lazy_templates, link) {
		count_status(t, &c);
		metrics_add(M_TEMPLATES,
			    t->dropped    ? TEMPLATE_DROPPED
			    : t->complete ? TEMPLATE_COMPLETE
					  : TEMPLATE_FILLING,
			    1);
	}
	metrics_set(M_PAGER_FAULTS, 0, c.faults);
	metrics_set(M_PAGER_ZERO_FAULTS, 0, c.zero_faults);
	metrics_set(M_PAGER_FILLS, 0, c.fills);
	metrics_set(M_PAGER_BACKGROUND, 0, c.background_fills);
	metrics_set(M_PAGER_BYTES, 0, c.fills * CHUNK_BYTES);
}

// --- clones ---

int lazy_clone_begin(struct lazy *t, struct vm *vm, int *ret_memory_fd, int *ret_uffd_fd)
{
	MV_FD memory = fcntl(t->clones_fd, F_DUPFD_CLOEXEC, 3);
	MV_FD device = -1;
	if (!t->complete && t->s->uffd_device_fd >= 0)
		device = fcntl(t->s->uffd_device_fd, F_DUPFD_CLOEXEC, 3);
	if (memory < 0 || (!t->complete && t->s->uffd_device_fd >= 0 && device < 0))
		return -errno;
	struct lazy_clone *c = calloc(1, sizeof *c);
	if (!c)
		return -ENOMEM;
	*c = (struct lazy_clone){ .template = lazy_ref(t),
				  .vm = vm,
				  .id = ++t->s->lazy_last_id,
				  .uffd = -1,
				  .with_uffd = !t->complete };
	LIST_INSERT_HEAD(&t->s->lazy_clones, c, link);
	t->n_clones++;
	vm->lazy = c;
	*ret_memory_fd = MV_TAKE_FD(memory);
	*ret_uffd_fd = MV_TAKE_FD(device);
	return 0;
}

bool lazy_clone_waits(const struct vm *vm) { return vm->lazy && vm->lazy->with_uffd; }

static void give_clone(struct lazy_clone *c)
{
	struct pager_clone body = { c->template->id, c->map };
	pager_tell(c->template->s, PAGER_CLONE, c->id, &pager_clone_table, &body, &c->uffd, 1);
}

static bool map_ok(const struct msg_lazy *l, uint64_t memory_bytes)
{
	for (uint32_t i = 0; i < l->n_regions; i++) {
		const struct msg_lazy_region *r = &l->region[i];
		if ((r->hva | r->size_bytes | r->file_offset) & 4095 || r->file_offset > memory_bytes ||
		    r->size_bytes > memory_bytes - r->file_offset)
			return false;
	}
	return l->n_regions > 0;
}

int lazy_clone_take(struct vm *vm, struct msg *m)
{
	struct lazy_clone *c = vm->lazy;
	struct msg_lazy map;
	if (!c || !c->with_uffd || c->uffd >= 0 || m->n_fds != 1 ||
	    mv_state_load(&msg_lazy_table, m->body, m->body_len, &map, NULL) ||
	    !map_ok(&map, c->template->memory_bytes) || !mv_is_userfaultfd(m->fds[0]))
		return -EPROTO;
	c->map = map;
	c->uffd = MV_TAKE_FD(m->fds[0]);
	m->n_fds = 0;
	give_clone(c);
	return 0;
}

void lazy_clone_end(struct vm *vm)
{
	struct lazy_clone *c = vm->lazy;
	if (!c)
		return;
	struct lazy *t = c->template;
	vm->lazy = NULL;
	LIST_REMOVE(c, link);
	if (c->uffd >= 0)
		pager_tell(t->s, PAGER_END_CLONE, c->id, NULL, NULL, NULL, 0);
	mv_close(&c->uffd);
	free(c);
	if (!--t->n_clones && t->complete)
		unserve(t);
	lazy_unref(t);
}

static void end_clone(struct lazy_clone *c, const char *detail)
{
	if (!vm_has_process(c->vm) || c->vm->corrupt)
		return;
	c->vm->corrupt = true;
	snprintf(c->vm->exit_detail, sizeof c->vm->exit_detail, "%s", detail);
	vm_kill(c->vm);
}

void lazy_damaged(struct server *s, uint64_t template_id)
{
	struct lazy *t;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (t->id == template_id)
			break;
	if (!t)
		return;
	event_emit(s, EVENT_TEMPLATE_DAMAGED,
		   &(struct event_info){ .snapshot = t->name, .snapshot_id = t->snapshot_id });
	end_waiters(t, false);
}

void lazy_corrupt(struct server *s, uint64_t clone_id, uint64_t chunk)
{
	struct lazy_clone *c;
	char detail[128];
	LIST_FOREACH (c, &s->lazy_clones, link)
		if (c->id == clone_id)
			break;
	if (!c)
		return;
	snprintf(detail, sizeof detail, "chunk %llu of the memory of snapshot %.64s is damaged",
		 (unsigned long long)chunk, c->template->name);
	end_clone(c, detail);
}

// --- the pager ---

bool lazy_needs_pager(const struct server *s)
{
	const struct lazy *t;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (t->served)
			return true;
	return false;
}

void lazy_give_all(struct server *s)
{
	struct lazy *t;
	struct lazy_clone *c;
	LIST_FOREACH (t, &s->lazy_templates, link)
		if (t->served)
			give_template(t);
	LIST_FOREACH (c, &s->lazy_clones, link)
		if (c->uffd >= 0)
			give_clone(c);
}

void lazy_no_pager(struct server *s)
{
	struct lazy *t, *next;
	struct lazy_clone *c;
	LIST_FOREACH (c, &s->lazy_clones, link)
		if (c->with_uffd)
			end_clone(c, "its memory can't be loaded: there is no pager");
	for (t = LIST_FIRST(&s->lazy_templates); t; t = next) {
		lazy_ref(t);
		end_waiters(t, false);
		end_prefill(t);
		next = LIST_NEXT(t, link);
		lazy_unref(t);
	}
}

void lazy_fini(struct server *s)
{
	struct lazy *t, *next;
	pager_stop(s);
	for (t = LIST_FIRST(&s->lazy_templates); t; t = next) {
		next = LIST_NEXT(t, link);
		if (!t->dropped) {
			t->dropped = true;
			lazy_unref(t);
		}
	}
	mv_close(&s->uffd_device_fd);
}
