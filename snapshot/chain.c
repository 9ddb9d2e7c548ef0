// SPDX-License-Identifier: Apache-2.0
#include "snapshot/chain.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/util.h"
#include "snapshot/format.h"

enum { PAGE = CHUNK_PAGE_BYTES };

// While it is made, per chunk: the last part of its list, whose `next` is still open.
#define NOTHING_YET UINT32_MAX
#define CLOSED (UINT32_MAX - 1u)

// --- opening ---

static void set_next(struct chain *c, uint32_t *last, uint64_t i, uint32_t next)
{
	if (last[i] == NOTHING_YET)
		c->first[i] = next;
	else
		c->part[last[i]].next = next;
}

static int add_part(struct chain *c, uint32_t *last, uint64_t i, const struct chunk_entry *e, uint32_t file)
{
	if (c->n_parts == c->cap) {
		uint64_t cap = c->cap ? (uint64_t)c->cap * 2 : 1024;
		struct chain_part *part = cap < CHAIN_RAW_BASE ? realloc(c->part, cap * sizeof *part) : NULL;
		if (!part)
			return -ENOMEM;
		c->part = part;
		c->cap = (uint32_t)cap;
	}
	set_next(c, last, i, c->n_parts);
	c->part[c->n_parts] = (struct chain_part){ .entry = *e, .next = CHAIN_ZEROS, .file = file };
	last[i] = c->n_parts++;
	return 0;
}

static int add_index(struct chain *c, uint32_t *last, const struct chunk_index *x, uint32_t file)
{
	for (uint64_t i = 0; i < x->n_chunks; i++) {
		uint32_t kind = chunk_kind(x, i);
		if (last[i] == CLOSED || kind == CHUNK_PARENT)
			continue;
		int r = 0;
		if (kind == CHUNK_ZERO)
			set_next(c, last, i, CHAIN_ZEROS);
		else
			r = add_part(c, last, i, &x->entry[i], file);
		if (r)
			return r;
		if (kind != CHUNK_PATCH)
			last[i] = CLOSED;
	}
	return 0;
}

// Chunks that lie in holes stay zeros.
static int add_raw(struct chain *c, uint32_t *last, int fd, struct mv_err *err)
{
	uint64_t start, end;
	struct stat st;
	if (fstat(fd, &st))
		return mv_fail(err, errno, "memory: %s", strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != c->memory_bytes)
		return mv_fail(err, EINVAL, "memory: %llu bytes, %llu are wanted",
			       (unsigned long long)st.st_size, (unsigned long long)c->memory_bytes);
	for (uint64_t i = 0; i < c->n_chunks; i++)
		if (last[i] != CLOSED)
			set_next(c, last, i, CHAIN_ZEROS);
	for (uint64_t at = 0; at < c->memory_bytes; at = end) {
		int r = snap_next_data(fd, at, c->memory_bytes, &start, &end);
		if (r)
			return mv_fail(err, -r, "memory: cannot read: %s", strerror(-r));
		for (uint64_t i = start / CHUNK_BYTES; start < end && i * CHUNK_BYTES < end; i++)
			if (last[i] != CLOSED)
				set_next(c, last, i, CHAIN_RAW_BASE);
	}
	return 0;
}

static int add_file(struct chain *c, uint32_t *last, unsigned k, struct mv_err *err)
{
	bool base = k + 1 == c->n_files;
	struct chunk_index x;
	if (base && c->raw_base)
		return add_raw(c, last, c->fd[k], err);
	int r = base ? chunk_index_read(c->fd[k], c->memory_bytes, &x, err)
		     : chunk_index_read_incremental(c->fd[k], c->memory_bytes, &x, err);
	if (r)
		return r;
	r = add_index(c, last, &x, k);
	chunk_index_fini(&x);
	return r ? mv_fail(err, -r, "memory: no memory for its index") : 0;
}

int chain_open(const int *fd, unsigned n, bool raw_base, uint64_t memory_bytes, struct chain *ret_chain,
	       struct mv_err *err)
{
	struct chain c = { .memory_bytes = memory_bytes,
			   .n_chunks = (memory_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES,
			   .fd = fd,
			   .n_files = n,
			   .raw_base = raw_base };
	if (!n || memory_bytes % PAGE)
		return mv_fail(err, EINVAL, "memory: no files, or not of whole pages");
	if (n > CHAIN_MAX)
		return mv_fail(err, E2BIG, "memory: in %u files, %u are the most; flatten the snapshot", n,
			       CHAIN_MAX);
	MV_FREE uint32_t *last = malloc((c.n_chunks + 1) * sizeof *last);
	c.first = malloc((c.n_chunks + 1) * sizeof *c.first);
	int r = last && c.first ? 0 : mv_fail(err, ENOMEM, "memory: no memory for its index");
	for (uint64_t i = 0; !r && i < c.n_chunks; i++)
		last[i] = NOTHING_YET;
	for (unsigned k = 0; !r && k < n; k++) {
		r = add_file(&c, last, k, err);
		if (r && n > 1)
			mv_wrap(err, "file %u of %u, from the newest", k + 1, n);
	}
	if (r) {
		chain_fini(&c);
		return r;
	}
	for (uint64_t i = 0; i < c.n_chunks; i++)
		c.n_stored += !chain_is_zero(&c, i);
	*ret_chain = c;
	return 0;
}

void chain_fini(struct chain *c)
{
	free(c->first);
	free(c->part);
	*c = (struct chain){ 0 };
}

// --- reading ---

// Calls for each run of pages in the mask: n pages from page k on.
static unsigned next_run(unsigned mask, unsigned *ret_first)
{
	*ret_first = (unsigned)__builtin_ctz(mask);
	return (unsigned)__builtin_ctz(~(mask >> *ret_first));
}

static int read_raw(const struct chain *c, uint64_t i, unsigned wanted, uint8_t *to)
{
	while (wanted) {
		unsigned k, n = next_run(wanted, &k);
		int r = mv_pread_full(c->fd[c->n_files - 1], to + k * PAGE, (size_t)n * PAGE,
				      i * CHUNK_BYTES + k * PAGE);
		if (r)
			return r;
		wanted &= ~(((1u << n) - 1) << k);
	}
	return 0;
}

static void put_pages(unsigned wanted, const uint8_t *from, uint8_t *to)
{
	while (wanted) {
		unsigned k, n = next_run(wanted, &k);
		if (from)
			memcpy(to + k * PAGE, from + k * PAGE, (size_t)n * PAGE);
		else
			memset(to + k * PAGE, 0, (size_t)n * PAGE);
		wanted &= ~(((1u << n) - 1) << k);
	}
}

static int read_whole(const struct chain *c, const struct chain_part *p, uint32_t len, unsigned wanted,
		      uint8_t *scratch, uint8_t *to)
{
	bool all = wanted == (1u << len / PAGE) - 1;
	uint8_t *whole = all ? to : scratch + CHUNK_BYTES;
	int r = chunk_entry_read(&p->entry, len, c->fd[p->file], scratch, whole);
	if (!r && !all)
		put_pages(wanted, whole, to);
	return r;
}

// From the newest part down, until every page was found. Parts follow each other in the
// array, so it ends.
int chain_read(const struct chain *c, uint64_t i, uint8_t *scratch, uint8_t *to)
{
	uint32_t len = chain_len(c, i), k = c->first[i];
	unsigned wanted = (1u << len / PAGE) - 1, has;

	while (wanted && k != CHAIN_ZEROS && k != CHAIN_RAW_BASE) {
		const struct chain_part *p = &c->part[k];
		if (le32_get(p->entry.kind) != CHUNK_PATCH)
			return read_whole(c, p, len, wanted, scratch, to);
		int r = chunk_patch_read(&p->entry, len, c->fd[p->file], wanted, scratch, to, &has);
		if (r)
			return r;
		wanted &= ~has;
		k = p->next;
	}
	if (k == CHAIN_RAW_BASE)
		return read_raw(c, i, wanted, to);
	put_pages(wanted, NULL, to);
	return 0;
}
