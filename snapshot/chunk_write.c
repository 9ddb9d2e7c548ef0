// SPDX-License-Identifier: Apache-2.0
// Theory of operation. One walk over the page tables (pages.h) marks the pages that may
// hold something: a mask of 16 bits per chunk. Then all threads take spans of chunks,
// compress those with a mark, and append what they made in pieces of about 1 MiB at an offset
// that an atomic counter gives; the index is filled in as they go. The header comes last, so
// a file whose writer died is not taken for a good one.
//
// For an incremental file the marks are the pages that changed, and no page is left out for
// being zeros: the parent may have held something else there.
#include "snapshot/chunk_head.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/progress.h"
#include "microvm/base/util.h"
#include "snapshot/codec.h"
#include "snapshot/format.h"
#include "snapshot/pages.h"

enum {
	PAGE = SNAP_PAGE_BYTES,
	PAGES = CHUNK_BYTES / PAGE,
	SPAN_CHUNKS = 64,    // taken by a thread at a time
	OUT_BYTES = 1 << 20, // collected before they are written
	MAX_THREADS = 64,
};
_Static_assert(PAGES == 16, "a mask has a bit per page");

struct writer {
	int fd;
	const struct gmem *mem;
	bool high;         // codec.h
	bool changed_only; // incremental: mask says what changed
	uint64_t n_chunks;
	uint16_t *mask;
	struct chunk_entry *entry;
	atomic_uint_fast64_t next_span, end; // end: of the file so far
	atomic_int failed;                   // -errno of the first failure
	struct mv_progress *progress;        // of the thread that began it
};

struct scratch {
	uint64_t out_len, n_pending;
	uint64_t pending[OUT_BYTES / 64]; // chunks in `out`, their offsets relative to it
	uint8_t chunk[CHUNK_BYTES];
	uint8_t out[OUT_BYTES + 2 * CHUNK_BYTES];
	_Alignas(8) uint8_t state[];
};

// Pages come in ascending order of file offsets.
static int mark(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to)
{
	struct writer *w = arg;
	for (; from < to; from += PAGE) {
		uint64_t page = (r->file_offset + (uint64_t)(from - r->hva)) / PAGE;
		w->mask[page / PAGES] |= (uint16_t)(1u << page % PAGES);
	}
	return 0;
}

static uint32_t chunk_bytes(const struct writer *w, uint64_t i)
{
	uint64_t left = w->mem->total_bytes - i * CHUNK_BYTES;
	return left < CHUNK_BYTES ? (uint32_t)left : CHUNK_BYTES;
}

static uint16_t all_pages(uint32_t len) { return (uint16_t)((1u << len / PAGE) - 1); }

static const uint8_t *page_at(const struct gmem *m, uint64_t file_offset)
{
	for (unsigned i = 0; i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		if (file_offset >= r->file_offset && file_offset - r->file_offset < r->size_bytes)
			return r->hva + (file_offset - r->file_offset);
	}
	return NULL; // not within the memory
}

// The chunk's bytes: in place when every page is marked, else a copy in which the unmarked
// ones, which would be faulted in by reading them, are zeros.
static const uint8_t *gather(const struct writer *w, struct scratch *s, uint64_t i, uint32_t len)
{
	const uint8_t *first = page_at(w->mem, i * CHUNK_BYTES);
	const uint8_t *last = page_at(w->mem, i * CHUNK_BYTES + len - PAGE);
	if (w->mask[i] == UINT16_MAX && last - first == (ptrdiff_t)(len - PAGE))
		return first;
	for (uint32_t k = 0; k < len / PAGE; k++) {
		if (w->mask[i] & 1u << k)
			memcpy(s->chunk + k * PAGE, page_at(w->mem, i * CHUNK_BYTES + k * PAGE), PAGE);
		else
			memset(s->chunk + k * PAGE, 0, PAGE);
	}
	return s->chunk;
}

// The marked pages one behind the other; returns their bytes.
static uint32_t gather_changed(const struct writer *w, struct scratch *s, uint64_t i)
{
	uint32_t len = 0;
	for (uint32_t k = 0; k < PAGES; k++)
		if (w->mask[i] & 1u << k) {
			memcpy(s->chunk + len, page_at(w->mem, i * CHUNK_BYTES + k * PAGE), PAGE);
			len += PAGE;
		}
	return len;
}

static bool all_zero(const uint8_t *p, uint32_t len) { return !p[0] && !memcmp(p, p + 1, len - 1); }

static int flush(struct writer *w, struct scratch *s)
{
	if (!s->out_len)
		return 0;
	uint64_t at = atomic_fetch_add(&w->end, s->out_len);
	for (uint64_t k = 0; k < s->n_pending; k++) {
		struct chunk_entry *e = &w->entry[s->pending[k]];
		e->offset = le64_make(le64_get(e->offset) + at);
	}
	int r = mv_pwrite_full(w->fd, s->out, s->out_len, at);
	s->out_len = s->n_pending = 0;
	return r;
}

static int add_chunk(struct writer *w, struct scratch *s, uint64_t i)
{
	uint32_t len = chunk_bytes(w, i), head = 0, kind = CHUNK_LZ4;
	uint8_t *to = s->out + s->out_len;
	const uint8_t *from = s->chunk;

	if (w->changed_only && w->mask[i] != all_pages(len)) {
		le16_t mask = le16_make(w->mask[i]);
		head = sizeof mask;
		memcpy(to, &mask, head);
		len = gather_changed(w, s, i);
		kind = CHUNK_PATCH;
	} else if (all_zero(from = gather(w, s, i, len), len)) {
		return 0;
	}
	// Less than a sixteenth saved is not worth the time to decompress.
	uint32_t n = (uint32_t)codec_compress(s->state, w->high, from, len, to + head, len - len / 16);
	if (!n) {
		memcpy(to + head, from, n = len);
		kind = kind == CHUNK_LZ4 ? CHUNK_RAW : kind;
	}
	n += head;
	w->entry[i] = (struct chunk_entry){ .offset = le64_make(s->out_len),
					    .stored_bytes = le32_make(n),
					    .kind = le32_make(kind),
					    .xxh3 = le64_make(snap_xxh3(to, n)) };
	s->out_len += n;
	s->pending[s->n_pending++] = i;
	return s->out_len >= OUT_BYTES || s->n_pending == MV_ARRAY_LEN(s->pending) ? flush(w, s) : 0;
}

static void *work(void *arg)
{
	struct writer *w = arg;
	mv_progress_set(w->progress);
	MV_FREE struct scratch *s = malloc(sizeof *s + codec_state_bytes());
	int r = s ? 0 : -ENOMEM, none = 0;
	if (s)
		s->out_len = s->n_pending = 0;
	while (!r && !atomic_load(&w->failed)) {
		uint64_t i = atomic_fetch_add(&w->next_span, SPAN_CHUNKS), end = i + SPAN_CHUNKS;
		if (i >= w->n_chunks)
			break;
		for (; !r && i < end && i < w->n_chunks; i++)
			if (w->mask[i])
				r = add_chunk(w, s, i);
			else if (w->changed_only)
				w->entry[i].kind = le32_make(CHUNK_PARENT);
		mv_progress_add(SPAN_CHUNKS * (uint64_t)CHUNK_BYTES);
	}
	r = r ? r : flush(w, s);
	if (r)
		atomic_compare_exchange_strong(&w->failed, &none, r);
	return NULL;
}

// This thread works too; a thread that can't be had is done without.
static int run_threads(struct writer *w, unsigned n)
{
	pthread_t thread[MAX_THREADS];
	unsigned started = 0;
	while (started + 1 < n && !pthread_create(&thread[started], NULL, work, w))
		started++;
	work(w);
	while (started)
		pthread_join(thread[--started], NULL);
	return atomic_load(&w->failed);
}

static unsigned count_threads(unsigned wanted)
{
	cpu_set_t set;
	if (!wanted)
		wanted = sched_getaffinity(0, sizeof set, &set) ? 1 : (unsigned)CPU_COUNT(&set);
	return wanted > MAX_THREADS ? MAX_THREADS : wanted;
}

static bool needs_parent(const struct writer *w)
{
	for (uint64_t i = 0; i < w->n_chunks; i++)
		if (le32_get(w->entry[i].kind) >= CHUNK_PARENT)
			return true;
	return false;
}

static int finish(struct writer *w, uint64_t *ret_file_bytes)
{
	size_t index_bytes = w->n_chunks * sizeof *w->entry;
	uint64_t at = atomic_load(&w->end);
	int r = chunk_finish(w->fd, w->mem->total_bytes, needs_parent(w), w->entry, at);
	*ret_file_bytes = at + index_bytes;
	return r;
}

// Sets w->mask.
static int choose_pages(struct writer *w, const uint64_t *changed)
{
	if (!w->changed_only)
		return snap_pages_walk(SNAP_MEMORY_AUTO, w->mem, mark, w);
	if (!changed)
		return snap_private_walk(SNAP_MEMORY_AUTO, w->mem, mark, w);
	for (uint64_t i = 0; i < w->n_chunks; i++)
		w->mask[i] = (uint16_t)(changed[i / 4] >> i % 4 * PAGES) & all_pages(chunk_bytes(w, i));
	return 0;
}

static int write_file(int fd, const struct gmem *m, bool high, bool changed_only, const uint64_t *changed,
		      unsigned n_threads, uint64_t *ret_file_bytes, struct mv_err *err)
{
	uint64_t n = (m->total_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES, file_bytes = 0;
	MV_FREE uint16_t *mask = calloc(n, sizeof *mask);
	MV_FREE struct chunk_entry *entry = calloc(n, sizeof *entry);
	struct writer w = { .fd = fd,
			    .mem = m,
			    .high = high,
			    .changed_only = changed_only,
			    .n_chunks = n,
			    .mask = mask,
			    .entry = entry,
			    .progress = mv_progress_get() };
	struct stat st;

	if (fstat(fd, &st))
		return mv_fail(err, errno, "memory: %s", strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size)
		return mv_fail(err, EINVAL, "memory: not an empty file");
	if (!mask || !entry)
		return mv_fail(err, ENOMEM, "memory: out of memory");
	atomic_init(&w.end, sizeof(struct chunk_head));
	int r = choose_pages(&w, changed);
	if (r == -ENOTSUP)
		return mv_fail(err, -r,
			       "memory: this system cannot tell which pages changed: is /proc there?");
	mv_progress_begin(MV_PROGRESS_WRITES, m->total_bytes);
	r = r ? r : run_threads(&w, count_threads(n_threads));
	r = r ? r : finish(&w, &file_bytes);
	if (r == -ENOSPC || r == -EDQUOT)
		return mv_fail(err, -r, "memory: the file system is full after %llu MiB of compressed data",
			       (unsigned long long)(atomic_load(&w.end) >> 20));
	if (r)
		return mv_fail(err, -r, "memory: cannot write: %s", strerror(-r));
	*ret_file_bytes = file_bytes;
	return 0;
}

int chunk_write(int fd, const struct gmem *m, bool high, unsigned n_threads, uint64_t *ret_file_bytes,
		struct mv_err *err)
{
	return write_file(fd, m, high, false, NULL, n_threads, ret_file_bytes, err);
}

int chunk_write_changed(int fd, const struct gmem *m, const uint64_t *changed, bool high, unsigned n_threads,
			uint64_t *ret_file_bytes, struct mv_err *err)
{
	return write_file(fd, m, high, true, changed, n_threads, ret_file_bytes, err);
}
