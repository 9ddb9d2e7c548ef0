// SPDX-License-Identifier: Apache-2.0
// Theory of operation. Threads take chunks by an atomic counter, decode each, and write it: raw to
// its place, or compressed at an offset that another atomic counter gives. Index and header of a
// compressed file come last. The first failure ends all.
#include "snapshot/flatten.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/base/progress.h"
#include "microvm/base/util.h"
#include "snapshot/chunk_head.h"
#include "snapshot/codec.h"
#include "snapshot/format.h"

enum { PAGE = CHUNK_PAGE_BYTES, MAX_THREADS = 64 };

struct job {
	const struct chain *chain;
	int fd;
	enum snap_memory_kind kind;
	struct chunk_entry *entry;
	atomic_uint_fast64_t next, end; // end: of the compressed file so far
	atomic_int failed;              // -errno of the first failure
	atomic_uint_fast64_t damaged;   // chunk + 1
	struct mv_progress *progress;   // of the thread that began it
};

struct scratch {
	uint8_t chunk[CHUNK_BYTES], out[CHUNK_BYTES], chain[CHAIN_SCRATCH_BYTES];
	_Alignas(8) uint8_t codec[];
};

static bool is_zero(const uint8_t *p, uint32_t len) { return !p[0] && !memcmp(p, p + 1, len - 1); }

static int put_lz4(struct job *j, struct scratch *s, uint64_t i, uint32_t len)
{
	if (is_zero(s->chunk, len))
		return 0;
	// Less than a sixteenth saved is not worth the time to decompress.
	size_t n = codec_compress(s->codec, j->kind == SNAP_MEMORY_LZ4_HIGH, s->chunk, len, s->out,
				  len - len / 16);
	const uint8_t *from = n ? s->out : s->chunk;
	uint32_t stored = n ? (uint32_t)n : len;
	uint64_t at = atomic_fetch_add(&j->end, stored);
	j->entry[i] = (struct chunk_entry){ .offset = le64_make(at),
					    .stored_bytes = le32_make(stored),
					    .kind = le32_make(n ? CHUNK_LZ4 : CHUNK_RAW),
					    .xxh3 = le64_make(snap_xxh3(from, stored)) };
	return mv_pwrite_full(j->fd, from, stored, at);
}

static int put_raw(struct job *j, struct scratch *s, uint64_t i, uint32_t len)
{
	for (uint32_t from = 0, to; from < len; from = to) {
		bool zero = is_zero(s->chunk + from, PAGE);
		for (to = from + PAGE; to < len && is_zero(s->chunk + to, PAGE) == zero; to += PAGE)
			;
		int r = zero ? 0 : mv_pwrite_full(j->fd, s->chunk + from, to - from, i * CHUNK_BYTES + from);
		if (r)
			return r;
	}
	return 0;
}

static int put_chunk(struct job *j, struct scratch *s, uint64_t i)
{
	uint32_t len = chain_len(j->chain, i);
	int r = chain_read(j->chain, i, s->chain, s->chunk);
	if (r)
		atomic_store(&j->damaged, i + 1);
	if (r)
		return r;
	return j->kind != SNAP_MEMORY_RAW ? put_lz4(j, s, i, len) : put_raw(j, s, i, len);
}

static void *work(void *arg)
{
	struct job *j = arg;
	mv_progress_set(j->progress);
	MV_FREE struct scratch *s = malloc(sizeof *s + codec_state_bytes());
	int r = s ? 0 : -ENOMEM, none = 0;
	while (!r && !atomic_load(&j->failed)) {
		uint64_t i = atomic_fetch_add(&j->next, 1);
		if (i >= j->chain->n_chunks)
			break;
		r = chain_is_zero(j->chain, i) ? 0 : put_chunk(j, s, i);
		mv_progress_add(chain_len(j->chain, i));
	}
	if (r)
		atomic_compare_exchange_strong(&j->failed, &none, r);
	return NULL;
}

// This thread works too; a thread that can't be had is done without.
static int run_threads(struct job *j, unsigned n)
{
	pthread_t thread[MAX_THREADS];
	unsigned started = 0;
	cpu_set_t set;
	if (!n)
		n = sched_getaffinity(0, sizeof set, &set) ? 1 : (unsigned)CPU_COUNT(&set);
	while (started + 1 < n && started < MAX_THREADS && !pthread_create(&thread[started], NULL, work, j))
		started++;
	work(j);
	while (started)
		pthread_join(thread[--started], NULL);
	return atomic_load(&j->failed);
}

int chain_flatten(const struct chain *c, int fd, enum snap_memory_kind kind, unsigned n_threads,
		  struct mv_err *err)
{
	MV_FREE struct chunk_entry *entry = calloc(c->n_chunks + 1, sizeof *entry);
	struct job j = { .chain = c, .fd = fd, .kind = kind, .entry = entry, .progress = mv_progress_get() };
	struct stat st;

	if (!entry)
		return mv_fail(err, ENOMEM, "memory: out of memory");
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size)
		return mv_fail(err, EINVAL, "memory: not an empty file");
	atomic_init(&j.end, CHUNK_HEAD_BYTES);
	int r = kind == SNAP_MEMORY_RAW && ftruncate(fd, (off_t)c->memory_bytes) ? -errno : 0;
	mv_progress_begin(MV_PROGRESS_WRITES, c->memory_bytes);
	r = r ? r : run_threads(&j, n_threads);
	if (!r && kind != SNAP_MEMORY_RAW)
		r = chunk_finish(fd, c->memory_bytes, false, entry, atomic_load(&j.end));
	uint64_t damaged = atomic_load(&j.damaged);
	if (damaged && (r == -EBADMSG || r == -ENODATA))
		return mv_fail(err, EINVAL, "memory: chunk %llu (from byte %llu of the memory) is damaged",
			       (unsigned long long)damaged - 1,
			       (unsigned long long)(damaged - 1) * CHUNK_BYTES);
	if (r == -ENOSPC || r == -EDQUOT)
		return mv_fail(err, -r, "memory: the file system is full");
	return r ? mv_fail(err, -r, "memory: cannot %s: %s", damaged ? "read" : "write", strerror(-r)) : 0;
}
