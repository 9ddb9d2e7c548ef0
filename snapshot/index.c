// SPDX-License-Identifier: Apache-2.0
#include "snapshot/index.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

// A change this short ago may be followed by one with the same time stamp.
#define SETTLE_NS 100000000ull

struct look {
	struct store *s;
	struct store_index *old, new;
	struct manifest *m;
	size_t cap;
};

static uint64_t ns_of(struct timespec t) { return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec; }

static void free_entries(struct store_index *x)
{
	for (size_t i = 0; i < x->n; i++)
		free(x->list[i].name);
	free(x->list);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct index_entry *)a)->name, ((const struct index_entry *)b)->name);
}

static const struct index_entry *find(const struct store_index *x, const struct index_entry *key)
{
	return x->n ? bsearch(key, x->list, x->n, sizeof *key, by_name) : NULL;
}

static void measure(struct look *l, struct index_entry *e)
{
	char path[NAME_MAX + sizeof "/manifest"];
	struct stat st;

	snprintf(path, sizeof path, "%s/manifest", e->name);
	if (fstatat(l->s->snapshots_fd, path, &st, AT_SYMLINK_NOFOLLOW))
		return;
	e->inode = st.st_ino;
	e->changed_ns = ns_of(st.st_ctim);
	const struct index_entry *was = find(l->old, e);
	if (was && was->inode == e->inode && was->changed_ns == e->changed_ns) {
		e->usage = was->usage;
		return;
	}
	l->new.n_reads++;
	if (!store_show(l->s, e->name, l->m, NULL))
		e->usage = store_usage(l->s, l->m);
}

static int add(void *arg, const char *name)
{
	struct look *l = arg;
	struct store_index *x = &l->new;
	if (x->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		struct index_entry *list = realloc(x->list, cap * sizeof *list);
		if (!list)
			return -ENOMEM;
		x->list = list;
		l->cap = cap;
	}
	struct index_entry *e = &x->list[x->n];
	*e = (struct index_entry){ .name = strdup(name) };
	if (!e->name)
		return -ENOMEM;
	measure(l, e);
	x->total.apparent_bytes += e->usage.apparent_bytes;
	x->total.disk_bytes += e->usage.disk_bytes;
	x->n++;
	return 0;
}

bool store_index_holds(uint64_t folder_ns, const struct store *s)
{
	struct stat st;
	return folder_ns && !fstat(s->snapshots_fd, &st) && ns_of(st.st_mtim) == folder_ns;
}

int store_index_refresh(struct store_index *x, struct store *s)
{
	struct look l = { .s = s, .old = x, .new.n_reads = x->n_reads };
	struct timespec now;
	struct stat st;

	if (fstat(s->snapshots_fd, &st) || clock_gettime(CLOCK_REALTIME, &now))
		return -errno;
	uint64_t folder_ns = ns_of(st.st_mtim);
	if (x->folder_ns && x->folder_ns == folder_ns)
		return 0;
	l.m = malloc(sizeof *l.m);
	int r = l.m ? store_names(s, add, &l) : -ENOMEM;
	free(l.m);
	free_entries(r ? &l.new : x);
	if (r)
		return r;
	bool settled = ns_of(now) > folder_ns + SETTLE_NS;
	l.new.folder_ns = settled ? folder_ns : 0;
	*x = l.new;
	return 0;
}

void store_index_free(struct store_index *x)
{
	free_entries(x);
	*x = (struct store_index){ 0 };
}

void store_index_forget(struct store_index *x, const char *name)
{
	for (size_t i = 0; i < x->n; i++)
		if (!name || !strcmp(x->list[i].name, name))
			x->list[i].inode = 0;
	x->folder_ns = 0;
}
