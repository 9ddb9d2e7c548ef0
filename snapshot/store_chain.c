// SPDX-License-Identifier: Apache-2.0
#include "snapshot/store_chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/util.h"
#include "snapshot/chain.h"
#include "snapshot/store_dir.h"

struct search {
	const char *id;
	char *name;
};

static int is_it(void *arg, const char *name, const struct manifest *m, const struct mv_err *err)
{
	struct search *v = arg;
	(void)err;
	if (!m || strcmp(m->id, v->id))
		return 0;
	mv_strcpy(v->name, VMCFG_NAME_LEN, name);
	return 1;
}

int store_find_id(struct store *s, const char *id, char ret_name[VMCFG_NAME_LEN])
{
	char name[VMCFG_NAME_LEN] = "";
	struct search v = { id, name };
	int r = store_list(s, is_it, &v);
	if (r < 0)
		return r;
	if (!r)
		return -ENOENT;
	memcpy(ret_name, name, sizeof name);
	return 0;
}

static int not_here(const struct manifest *m, bool other, struct mv_err *err)
{
	return mv_fail(err, ENOENT, "it needs its parent snapshot %s (id %s), which is not here%s",
		       m->parent_snapshot, m->parent_snapshot_id,
		       other ? "; the one of that name is another" : "");
}

static int wrap(int r, struct mv_err *err, const char *what, const char *name)
{
	mv_wrap(err, "%s %s", what, name);
	return r;
}

// The parent's folder, and its manifest in place of m, the child's.
static int open_parent(struct store *s, struct manifest *m, int *ret_dir_fd, struct mv_err *err)
{
	MV_FREE struct manifest *parent = malloc(sizeof *parent);
	MV_FD dir_fd = -1;
	char name[VMCFG_NAME_LEN];
	if (!parent)
		return mv_fail(err, ENOMEM, "out of memory");
	struct mv_err at_name = { 0 };
	int r = store_dir_open(s, m->parent_snapshot, &dir_fd, &at_name);
	bool there = !r;
	if (!r)
		r = store_dir_manifest(dir_fd, m->parent_snapshot, parent, &at_name);
	if (r && r != -ENOENT)
		return mv_fail(err, -r, "parent snapshot %s: %s", m->parent_snapshot, at_name.msg);
	if (r || strcmp(parent->id, m->parent_snapshot_id)) {
		mv_close(&dir_fd);
		r = store_find_id(s, m->parent_snapshot_id, name);
		if (r == -ENOENT)
			return not_here(m, there, err);
		if (r)
			return mv_fail(err, -r, "cannot list the store: %s", strerror(-r));
		r = store_dir_open(s, name, &dir_fd, err);
		r = r ? r : store_dir_manifest(dir_fd, name, parent, err);
		if (r)
			return r;
		if (strcmp(parent->id, m->parent_snapshot_id))
			return not_here(m, there, err); // another one meanwhile
	}
	if (parent->cfg.mem_mib != m->cfg.mem_mib)
		return mv_fail(err, EINVAL, "its parent snapshot %s has %u MiB of memory, it has %u",
			       parent->name, parent->cfg.mem_mib, m->cfg.mem_mib);
	*m = *parent;
	*ret_dir_fd = MV_TAKE_FD(dir_fd);
	return 0;
}

// A circle can't be made by this store; one made by hand ends here, too.
static int too_long(struct mv_err *err)
{
	return mv_fail(err, E2BIG,
		       "it is the last of more than %u snapshots that need each other; flatten one",
		       CHAIN_MAX);
}

int store_chain_length(struct store *s, const struct manifest *m, unsigned *ret_n, struct mv_err *err)
{
	MV_FREE struct manifest *level = malloc(sizeof *level);
	unsigned n = 1;
	if (!level)
		return mv_fail(err, ENOMEM, "out of memory");
	*level = *m;
	for (; level->needs_parent; n++) {
		MV_FD dir_fd = -1;
		if (n == CHAIN_MAX)
			return too_long(err);
		int r = open_parent(s, level, &dir_fd, err);
		if (r)
			return r;
	}
	*ret_n = n;
	return 0;
}

static int add_level(struct store_chain *c, int dir_fd, const struct manifest *m, bool verify,
		     struct mv_err *err)
{
	const struct manifest_file *f = manifest_file_find(m, "memory");
	bool raw = f && f->format == MANIFEST_RAW;
	if (c->n == CHAIN_MAX)
		return too_long(err);
	int *fd = realloc(c->fd, (c->n + 1) * sizeof *fd);
	if (!fd)
		return mv_fail(err, ENOMEM, "out of memory");
	c->fd = fd;
	c->raw_base = raw;
	int r = store_dir_file(dir_fd, m, "memory", verify || raw, &c->fd[c->n], err);
	if (r)
		return c->n ? wrap(r, err, "parent snapshot", m->name) : r;
	c->n++;
	return 0;
}

static int add_levels(struct store *s, int dir_fd, struct manifest *m, bool verify, struct store_chain *c,
		      struct mv_err *err)
{
	int r = add_level(c, dir_fd, m, verify, err);
	while (!r && m->needs_parent) {
		MV_FD parent_fd = -1;
		r = open_parent(s, m, &parent_fd, err);
		r = r ? r : add_level(c, parent_fd, m, verify, err);
	}
	if (r != -ENOENT && r != -E2BIG)
		return r;
	if (err)
		err->code = EINVAL; // the snapshot itself is there, but of no use
	return -EINVAL;
}

int store_chain_open(struct store *s, const char *name, const char *id, bool verify,
		     struct store_chain *ret_chain, struct mv_err *err)
{
	MV_FREE struct manifest *m = malloc(sizeof *m);
	struct store_chain c = { 0 };
	MV_FD dir_fd = -1;
	if (!m)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = store_dir_open(s, name, &dir_fd, err);
	if (r)
		return r;
	r = store_dir_manifest(dir_fd, name, m, err);
	if (!r && strcmp(m->id, id))
		r = mv_fail(err, EINVAL, "another one has that name now");
	c.memory_bytes = r ? 0 : (uint64_t)m->cfg.mem_mib << 20;
	r = r ? r : add_levels(s, dir_fd, m, verify, &c, err);
	if (r) {
		store_chain_close(&c);
		return wrap(r, err, "snapshot", name);
	}
	*ret_chain = c;
	return 0;
}

void store_chain_close(struct store_chain *c)
{
	while (c->n)
		mv_close(&c->fd[--c->n]);
	free(c->fd);
	c->fd = NULL;
}

int store_chain_check(const struct store_chain *c, struct mv_err *err)
{
	struct chain chain;
	int r = chain_open(c->fd, c->n, c->raw_base, c->memory_bytes, &chain, err);
	if (!r)
		chain_fini(&chain);
	return r;
}
