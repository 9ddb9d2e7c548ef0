// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/scratch.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "microvm/base/util.h"

// A stack of blocks, each behind its head. One that is given back out of turn is free when those above it
// are.
struct block {
	_Alignas(16) size_t below; // where the head of the one below is; its own place: it is the first
	bool free;
};

static __thread struct {
	uint8_t *base;
	size_t size, used, top; // top: the head of the uppermost
} own;

void mv_scratch_make(size_t bytes, bool touched)
{
	if (own.base)
		return;
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | (touched ? MAP_POPULATE : 0), -1, 0);
	if (p == MAP_FAILED)
		return;
	own.base = p;
	own.size = bytes;
	own.used = own.top = 0;
}

void mv_scratch_drop(void)
{
	if (own.base)
		munmap(own.base, own.size);
	own.base = NULL;
}

void *mv_scratch(size_t bytes)
{
	size_t need = mv_align_up(bytes, sizeof(struct block)) + sizeof(struct block);
	if (!own.base || bytes > own.size || need > own.size - own.used)
		return calloc(1, bytes);
	struct block *b = (void *)(own.base + own.used);
	*b = (struct block){ .below = own.top };
	own.top = own.used;
	own.used += need;
	return memset(b + 1, 0, bytes);
}

void mv_scratch_free(void *p)
{
	if (!own.base || (uint8_t *)p < own.base || (uint8_t *)p >= own.base + own.size) {
		free(p);
		return;
	}
	((struct block *)p - 1)->free = true;
	for (struct block *b; own.used && (b = (void *)(own.base + own.top))->free; own.top = b->below)
		own.used = own.top;
}
