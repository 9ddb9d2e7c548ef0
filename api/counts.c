// SPDX-License-Identifier: Apache-2.0
#include "api/counts.h"

#include <sys/stat.h>

static void look(struct worker_job *job)
{
	struct counts_job *j = (struct counts_job *)job;
	struct store_index *x = &j->s->index;
	if (j->anew)
		store_index_forget(x, NULL);
	store_index_refresh(x, &j->s->store); // failed: the last numbers
	j->found = (struct store_counts){ .n = x->n, .total = x->total, .folder_ns = x->folder_ns };
}

static void looked(struct worker_job *job)
{
	struct counts_job *j = (struct counts_job *)job;
	j->s->counts = j->found;
	j->fn(j->arg);
}

void counts_get(struct server *s, struct counts_job *j, void (*fn)(void *arg), void *arg)
{
	if (!s->counts_stale && store_index_holds(s->counts.folder_ns, &s->store)) {
		fn(arg);
		return;
	}
	*j = (struct counts_job){ .job = { .run = look, .done = looked }, .s = s, .anew = s->counts_stale };
	j->fn = fn;
	j->arg = arg;
	s->counts_stale = false;
	worker_add(&s->reader, &j->job);
}

void counts_stale(struct server *s) { s->counts_stale = true; }
