// SPDX-License-Identifier: Apache-2.0
#include "api/prepare.h"

#include <errno.h>
#include <string.h>

#include "api/ops_snapshot.h"
#include "api/pager.h"
#include "api/templates.h"
#include "microvm/base/util.h"
#include "snapshot/working_set.h"

static bool is_lz4(const struct prepare *p)
{
	const struct manifest_file *f = manifest_file_find(&p->m, "memory");
	return f && f->format == MANIFEST_LZ4;
}

static void fail(struct prepare *p, const struct mv_err *e, enum api_code otherwise)
{
	struct api_err err;
	snap_error(&err, e, otherwise);
	p->done(p, &err);
}

static void on_complete(void *arg, bool complete)
{
	struct prepare *p = arg;
	struct api_err err;
	if (complete) {
		p->done(p, NULL);
		return;
	}
	api_fail(&err, API_SNAPSHOT_CORRUPT,
		 "snapshot %s: its memory can't be loaded as a whole; verify it, or see the daemon's log",
		 p->m.name);
	p->done(p, &err);
}

// As far as it can be loaded; a clone finds out what can't.
static void on_prefilled(void *arg, bool complete)
{
	struct prepare *p = arg;
	(void)complete;
	p->done(p, NULL);
}

// A clone without a userfaultfd must find all of the memory.
static void have_template(struct prepare *p)
{
	struct mv_err e = { 0 };
	if (!lazy_is_complete(p->lazy) && pager_need(p->s, &e)) {
		fail(p, &e, API_INTERNAL);
		return;
	}
	lazy_prefill(p->lazy, p->working_set_fd);
	if (p->start_fill)
		lazy_fill(p->lazy);
	bool copied = p->whole || (p->whole_if_huge && p->m.cfg.huge_pages);
	if (p->wait || copied || lazy_must_be_complete(p->s))
		lazy_wait(p->lazy, &p->waiter, on_complete, p);
	else
		lazy_wait_prefilled(p->lazy, &p->waiter, on_prefilled, p);
}

// The other files were looked at by store_files().
static int check_layer(struct prepare *p, const char *file)
{
	MV_FD fd = -1;
	if (!strcmp(file, "state") || !strcmp(file, "memory"))
		return 0;
	return store_open_file(&p->s->store, &p->m, file, true, &fd, &p->err);
}

static int open_files(struct prepare *p, bool verify_memory)
{
	if (p->no_memory)
		return store_open_file(&p->s->store, &p->m, "state", true, &p->state_fd, &p->err);
	return store_files(&p->s->store, &p->m, verify_memory, &p->state_fd, &p->memory_fd, &p->err);
}

static int open_chain(struct prepare *p)
{
	int r = store_chain_open(&p->s->store, p->m.name, p->m.id, false, &p->files, &p->err);
	if (!r && (r = store_chain_check(&p->files, &p->err)))
		mv_wrap(&p->err, "snapshot %s", p->m.name);
	return r;
}

// Its registers mean nothing here: its architecture is what this host lacks.
static bool of_other_arch(struct prepare *p)
{
	static const char what[] = "the architecture ";
	const char *name = manifest_arch_name(p->m.arch);
	if (p->m.arch == manifest_arch_here())
		return false;
	mv_buf_append(&p->cpu.missing, what, sizeof what - 1);
	mv_buf_append(&p->cpu.missing, name, strlen(name) + 1);
	p->cpu.n_missing = 1;
	return true;
}

static void check_run(struct worker_job *w)
{
	struct prepare *p = (struct prepare *)w;
	mv_close(&p->state_fd);
	mv_close(&p->memory_fd);
	p->result = store_show(&p->s->store, p->m.name, &p->m, &p->err); // may be flattened by now
	if (!p->result && of_other_arch(p)) {
		if (p->cpu.missing.failed)
			p->result = mv_fail(&p->err, ENOMEM, "out of memory");
		return;
	}
	p->result = p->result ? p->result : open_files(p, !is_lz4(p));
	if (!p->result && (p->no_memory || is_lz4(p))) {
		if (!p->no_memory)
			p->result = open_chain(p);
		for (uint32_t i = 0; !p->result && i < p->m.n_files; i++)
			p->result = check_layer(p, p->m.file[i].name);
	}
	if (!p->result)
		p->result = cpu_report(p->state_fd, p->s->kvm_path, &p->m.cfg.cpu, &p->cpu, &p->err);
}

static void check_done(struct worker_job *w)
{
	struct prepare *p = (struct prepare *)w;
	if (p->result) {
		template_drop(p->s, p->m.name);
		fail(p, &p->err, API_SNAPSHOT_CORRUPT);
		return;
	}
	if (p->cpu.n_missing) {
		struct api_err err;
		api_fail(&err, API_CPU_INCOMPATIBLE, "snapshot %s: this host's CPU lacks what its guest uses",
			 p->m.name);
		p->done(p, &err);
		return;
	}
	struct known_snapshot *known = template_get(p->s, &p->m);
	if (known)
		known->state_checked = true;
	if (p->no_memory || !is_lz4(p)) {
		if (known && !p->no_memory)
			template_set_verified(known, p->memory_fd);
		p->done(p, NULL);
		return;
	}
	struct lazy *t = lazy_find(p->s, &p->m); // somebody else's meanwhile?
	if (t)
		p->lazy = lazy_ref(t);
	else if (lazy_new(p->s, &p->m, &p->files, p->fill, &p->lazy, &p->err)) {
		fail(p, &p->err, API_INTERNAL);
		return;
	}
	have_template(p);
}

void prepare_begin(struct prepare *p, struct server *s, const char *name, prepare_fn *done)
{
	p->s = s;
	p->done = done;
	p->state_fd = p->memory_fd = p->working_set_fd = -1;
	struct api_err err;
	if (snap_name_check(name, &err)) {
		done(p, &err);
		return;
	}
	if (p->no_memory ? store_show(&s->store, name, &p->m, &p->err) || open_files(p, false)
			 : store_show_files(&s->store, name, &p->m, &p->state_fd, &p->memory_fd, &p->err)) {
		fail(p, &p->err, API_SNAPSHOT_CORRUPT);
		return;
	}
	if (ws_store_open(&s->store, name, &p->working_set_fd, &p->err) == -ENOENT)
		p->err.msg[0] = 0;
	else if (p->working_set_fd < 0)
		mv_log(MV_WARN, "%s; its clones load memory as they touch it", p->err.msg);
	bool wants_template = is_lz4(p) && !p->no_memory;
	const struct known_snapshot *known = wants_template ? NULL : template_get(s, &p->m);
	struct lazy *t = wants_template ? lazy_find(s, &p->m) : NULL;
	if (p->no_memory && known && known->state_checked) {
		done(p, NULL);
	} else if (t) {
		p->lazy = lazy_ref(t);
		have_template(p);
	} else if (known && !p->no_memory && template_is_verified(known, p->memory_fd)) {
		done(p, NULL);
	} else {
		p->work.run = check_run;
		p->work.done = check_done;
		worker_add(&s->worker, &p->work);
	}
}

void prepare_take(struct prepare *p, struct prepare *to)
{
	*to = *p;
	p->state_fd = p->memory_fd = p->working_set_fd = -1;
	p->files = (struct store_chain){ 0 };
	p->lazy = NULL;
	p->cpu = (struct cpu_report){ 0 };
}

void prepare_fini(struct prepare *p)
{
	mv_close(&p->state_fd);
	mv_close(&p->memory_fd);
	store_chain_close(&p->files);
	mv_close(&p->working_set_fd);
	cpu_report_fini(&p->cpu);
	lazy_unref(p->lazy);
	p->lazy = NULL;
}
