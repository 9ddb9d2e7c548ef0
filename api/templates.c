// SPDX-License-Identifier: Apache-2.0
#include "api/templates.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct known_snapshot *template_get(struct server *s, const struct manifest *m)
{
	struct known_snapshot *t;
	for (t = s->templates; t; t = t->next)
		if (!strcmp(t->name, m->name))
			break;
	if (!t) {
		t = calloc(1, sizeof *t);
		if (!t)
			return NULL;
		t->next_clone = 1;
		memcpy(t->name, m->name, sizeof t->name);
		t->next = s->templates;
		s->templates = t;
	}
	if (strcmp(t->id, m->id)) { // another snapshot of the same name
		memcpy(t->id, m->id, sizeof t->id);
		t->verified = false;
	}
	return t;
}

static bool identify(struct known_snapshot *t, int fd)
{
	struct stat st;
	if (fstat(fd, &st))
		return false;
	t->device = st.st_dev;
	t->inode = st.st_ino;
	t->size_bytes = (uint64_t)st.st_size;
	t->modified_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
	t->changed_ns = (uint64_t)st.st_ctim.tv_sec * 1000000000u + (uint64_t)st.st_ctim.tv_nsec;
	return true;
}

bool template_is_verified(const struct known_snapshot *t, int memory_fd)
{
	struct known_snapshot now = { 0 };
	return t->verified && identify(&now, memory_fd) && now.device == t->device && now.inode == t->inode &&
	       now.size_bytes == t->size_bytes && now.modified_ns == t->modified_ns &&
	       now.changed_ns == t->changed_ns;
}

void template_set_verified(struct known_snapshot *t, int memory_fd) { t->verified = identify(t, memory_fd); }

void template_drop(struct server *s, const char *name)
{
	for (struct known_snapshot **p = &s->templates; *p; p = &(*p)->next) {
		if (strcmp((*p)->name, name))
			continue;
		struct known_snapshot *t = *p;
		*p = t->next;
		free(t);
		return;
	}
}

void templates_free(struct server *s)
{
	while (s->templates)
		template_drop(s, s->templates->name);
}
