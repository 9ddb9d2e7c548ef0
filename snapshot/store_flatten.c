// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "microvm/base/util.h"
#include "snapshot/flatten.h"
#include "snapshot/store_chain.h"
#include "snapshot/store_dir.h"

static int write_memory(struct store *s, const struct manifest *m, struct store_draft *d,
			enum snap_memory_kind kind, struct mv_err *err)
{
	struct store_chain files;
	struct chain chain;
	int r = store_draft_file(d, "memory", &d->memory_fd, err);
	r = r ? r : store_chain_open(s, m->name, m->id, false, &files, err);
	if (r)
		return r;
	r = chain_open(files.fd, files.n, files.raw_base, files.memory_bytes, &chain, err);
	if (!r) {
		r = chain_flatten(&chain, d->memory_fd, kind, 0, err);
		chain_fini(&chain);
	}
	if (r)
		mv_wrap(err, "snapshot %s", m->name);
	store_chain_close(&files);
	return r;
}

static int link_files(struct store_draft *d, int dir_fd, const struct manifest *m, bool memory,
		      struct mv_err *err)
{
	int r = 0;
	for (uint32_t i = 0; !r && i < m->n_files; i++)
		if (memory || strcmp(m->file[i].name, "memory"))
			r = store_link(d, dir_fd, m->file[i].name, m->file[i].name, err);
	return r;
}

static void set_format(struct manifest *m, uint32_t format)
{
	for (uint32_t i = 0; i < m->n_files; i++)
		if (!strcmp(m->file[i].name, "memory"))
			m->file[i].format = format;
	m->needs_parent = false;
}

static int make(struct store *s, int dir_fd, struct manifest *m, const char *new_name, uint32_t kind,
		bool new_memory, struct mv_err *err)
{
	struct store_draft d;
	struct timespec t;
	int r = store_begin_copy(s, new_name ? new_name : m->name, !new_name, &d, err);
	if (r)
		return r;
	r = link_files(&d, dir_fd, m, !new_memory, err);
	if (!r && new_memory)
		r = write_memory(s, m, &d, kind, err);
	if (r) {
		store_abort(s, &d);
		return r;
	}
	set_format(m, kind == SNAP_MEMORY_RAW ? MANIFEST_RAW : MANIFEST_LZ4);
	if (new_name) {
		clock_gettime(CLOCK_REALTIME, &t);
		m->created_unix_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
		mv_uuid(m->id);
	}
	return store_commit_copy(s, &d, m, new_memory, !new_name, err);
}

int store_flatten(struct store *s, const char *name, const char *new_name, uint32_t kind,
		  struct manifest *ret_m, bool *ret_changed, struct mv_err *err)
{
	MV_FREE struct manifest *m = malloc(sizeof *m);
	MV_FD dir_fd = -1;
	if (!m)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = store_dir_open(s, name, &dir_fd, err);
	if (r)
		return r;
	r = store_dir_manifest(dir_fd, name, m, err);
	if (r) {
		mv_wrap(err, "snapshot %s", name);
		return r;
	}
	const struct manifest_file *f = manifest_file_find(m, "memory");
	uint32_t was = f && f->format == MANIFEST_LZ4 ? SNAP_MEMORY_LZ4 : SNAP_MEMORY_RAW;
	if (kind == STORE_FORMAT_KEEP)
		kind = was;
	bool new_memory = m->needs_parent || was != kind; // nobody knows how hard it was compressed
	if (new_memory || new_name)
		r = make(s, dir_fd, m, new_name, kind, new_memory, err);
	if (r)
		return r;
	*ret_changed = new_memory || new_name;
	*ret_m = *m;
	return 0;
}
