// SPDX-License-Identifier: Apache-2.0
// Snapshots that can't be restored without another one go with it or keep it.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot/store.h"

struct link {
	char name[VMCFG_NAME_LEN], id[MV_UUID_LEN], needs_id[MV_UUID_LEN]; // needs_id: empty: none
	bool goes;
};

struct links {
	struct link *list;
	size_t n, cap;
};

static void free_links(struct links *v) { free(v->list); }

static int add_link(void *arg, const char *name, const struct manifest *m, const struct mv_err *err)
{
	struct links *v = arg;
	(void)err;
	if (v->n == v->cap) {
		size_t cap = v->cap ? v->cap * 2 : 64;
		struct link *list = realloc(v->list, cap * sizeof *list);
		if (!list)
			return -ENOMEM;
		v->list = list;
		v->cap = cap;
	}
	struct link *l = &v->list[v->n];
	*l = (struct link){ 0 };
	if (!m || mv_strcpy(l->name, sizeof l->name, name))
		return 0; // damaged: needs nothing that it could still use
	memcpy(l->id, m->id, sizeof l->id);
	if (m->needs_parent)
		memcpy(l->needs_id, m->parent_snapshot_id, sizeof l->needs_id);
	v->n++;
	return 0;
}

// Deletes the children that need `id`, theirs first. A chain of n calls itself n times, but
// each level is found in the list once, as it is marked.
static int delete_children(struct store *s, struct links *v, const char *id,
			   void (*fn)(void *arg, const char *name), void *arg, struct mv_err *err)
{
	for (size_t i = 0; i < v->n; i++) {
		struct link *l = &v->list[i];
		if (l->goes || strcmp(l->needs_id, id))
			continue;
		l->goes = true;
		int r = delete_children(s, v, l->id, fn, arg, err);
		if (!r)
			r = store_delete(s, l->name, err);
		if (r && r != -ENOENT)
			return r;
		fn(arg, l->name);
	}
	return 0;
}

int store_delete_tree(struct store *s, const char *name, bool force, void (*fn)(void *arg, const char *name),
		      void *arg, struct mv_err *err)
{
	__attribute__((cleanup(free_links))) struct links v = { 0 };
	const char *id = NULL;
	int r = store_list(s, add_link, &v);

	if (r)
		return mv_fail(err, -r, "cannot list the store: %s", strerror(-r));
	for (size_t i = 0; i < v.n; i++)
		if (!strcmp(v.list[i].name, name)) {
			v.list[i].goes = true;
			id = v.list[i].id;
		}
	for (size_t i = 0; id && !force && i < v.n; i++)
		if (!strcmp(v.list[i].needs_id, id))
			return mv_fail(err, EBUSY, "snapshot %s: snapshot %s can't be restored without it",
				       name, v.list[i].name);
	r = id ? delete_children(s, &v, id, fn, arg, err) : 0;
	if (!r)
		r = store_delete(s, name, err);
	if (!r)
		fn(arg, name);
	return r;
}
