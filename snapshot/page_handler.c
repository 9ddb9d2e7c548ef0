// SPDX-License-Identifier: Apache-2.0
// Theory of operation. A fault is answered with the part of its 64 KiB chunk that lies in the
// region, without pages that were removed or are there already.
//
// While a thread of the VM gives memory back (MADV_DONTNEED), the kernel refuses every other
// ioctl with EAGAIN until the message about it was read and that thread has gone on. So each
// batch of messages is read first for removals and then for faults, and a fault that is refused
// all the same is woken: the thread faults again, which is a new message behind the removal.
#include "snapshot/page_handler.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "snapshot/chunk_head.h"
#include "snapshot/uffd.h"

enum { MESSAGES = 64 }; // of one VM at a time, so that none keeps the others waiting

// --- the memory file ---

static int open_chunked(struct ph_source *s, struct mv_err *err)
{
	struct chunk_head h;
	int r = mv_pread_full(s->fd, &h, sizeof h, 0);
	if (r)
		return mv_fail(err, -r, "cannot read: %s", strerror(-r));
	if (memcmp(h.magic, CHUNK_MAGIC, sizeof h.magic))
		return 0;
	s->memory_bytes = le64_get(h.memory_bytes);
	return chunk_index_read(s->fd, s->memory_bytes, &s->index, err);
}

int ph_source_open(const char *path, struct ph_source *ret_source, struct mv_err *err)
{
	struct ph_source s = { .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) };
	struct stat st = { 0 };
	int r = s.fd < 0 || fstat(s.fd, &st) ? mv_fail(err, errno, "%s", strerror(errno)) : 0;
	if (!r && (!S_ISREG(st.st_mode) || st.st_size < (off_t)CHUNK_HEAD_BYTES))
		r = mv_fail(err, EINVAL, "not a memory file");
	s.memory_bytes = (uint64_t)st.st_size;
	r = r ? r : open_chunked(&s, err);
	if (!r && s.memory_bytes % mv_host_page_bytes())
		r = mv_fail(err, EINVAL, "not a memory file: its size is not one of whole pages");
	s.chunk = malloc(CHUNK_BYTES);
	s.scratch = malloc(CHUNK_BYTES);
	if (!r && (!s.chunk || !s.scratch))
		r = mv_fail(err, ENOMEM, "out of memory");
	if (r) {
		ph_source_fini(&s);
		return mv_wrap(err, "%s", path);
	}
	*ret_source = s;
	return 0;
}

void ph_source_fini(struct ph_source *s)
{
	mv_close(&s->fd);
	chunk_index_fini(&s->index);
	free(s->chunk);
	free(s->scratch);
	s->chunk = s->scratch = NULL;
}

static uint32_t len_of(const struct ph_source *s, uint64_t i)
{
	uint64_t left = s->memory_bytes - i * CHUNK_BYTES;
	return left < CHUNK_BYTES ? (uint32_t)left : CHUNK_BYTES;
}

// Makes s->chunk hold chunk i.
static int load(struct ph_source *s, uint64_t i)
{
	static const uint8_t zeros[CHUNK_BYTES];
	if (s->loaded == i + 1)
		return 0;
	s->loaded = 0;
	int r = s->index.entry ? chunk_read(&s->index, s->fd, i, s->scratch, s->chunk)
			       : mv_pread_full(s->fd, s->chunk, len_of(s, i), i * CHUNK_BYTES);
	if (r)
		return r;
	s->loaded = i + 1;
	s->loaded_zero = !memcmp(s->chunk, zeros, len_of(s, i));
	return 0;
}

// --- a VM ---

static int check_region(const struct ph_source *s, const struct ph_region *all, unsigned i,
			struct mv_err *err)
{
	const struct ph_region *r = &all[i];
	if ((r->hva | r->size_bytes | r->file_offset) % mv_host_page_bytes() || !r->hva || !r->size_bytes ||
	    r->hva > UINT64_MAX - r->size_bytes)
		return mv_fail(err, EINVAL, "region %u: not whole pages", i);
	if (r->file_offset > s->memory_bytes || r->size_bytes > s->memory_bytes - r->file_offset)
		return mv_fail(err, EINVAL, "region %u: beyond the memory file's %llu bytes", i,
			       (unsigned long long)s->memory_bytes);
	for (unsigned k = 0; k < i; k++)
		if (r->hva < all[k].hva + all[k].size_bytes && all[k].hva < r->hva + r->size_bytes)
			return mv_fail(err, EINVAL, "regions %u and %u overlap", k, i);
	return 0;
}

int ph_vm_init(struct ph_vm *v, const struct ph_source *s, const struct ph_region *region, unsigned n_regions,
	       int uffd, struct mv_err *err)
{
	uint64_t pages = 0;
	if (!n_regions || n_regions > PH_MAX_REGIONS)
		return mv_fail(err, EINVAL, "%u regions; 1 to %u are possible", n_regions, PH_MAX_REGIONS);
	if (!mv_is_userfaultfd(uffd))
		return mv_fail(err, EINVAL, "the descriptor is not a userfaultfd");
	for (unsigned i = 0; i < n_regions; i++) {
		int r = check_region(s, region, i, err);
		if (r)
			return r;
		pages += region[i].size_bytes / mv_host_page_bytes();
	}
	*v = (struct ph_vm){ .n_regions = n_regions, .removed = calloc(1, pages / 8 + 1), .uffd = -1 };
	if (!v->removed)
		return mv_fail(err, ENOMEM, "out of memory");
	memcpy(v->region, region, n_regions * sizeof *region);
	v->uffd = uffd;
	return 0;
}

void ph_vm_fini(struct ph_vm *v)
{
	mv_close(&v->uffd);
	free(v->removed);
	v->removed = NULL;
}

// The region of an address and the number of its page in `removed`.
static const struct ph_region *find(const struct ph_vm *v, uint64_t address, uint64_t *ret_page)
{
	uint64_t before = 0;
	for (unsigned i = 0; i < v->n_regions; i++) {
		const struct ph_region *r = &v->region[i];
		if (address >= r->hva && address - r->hva < r->size_bytes) {
			*ret_page = before + (address - r->hva) / mv_host_page_bytes();
			return r;
		}
		before += r->size_bytes / mv_host_page_bytes();
	}
	return NULL;
}

static bool is_removed(const struct ph_vm *v, uint64_t page) { return v->removed[page / 8] & 1u << page % 8; }

// Of the range only what lies in the VM's regions counts.
static void on_remove(struct ph_vm *v, uint64_t start, uint64_t end)
{
	uint64_t before = 0;
	for (unsigned i = 0; i < v->n_regions; i++) {
		uint64_t hva = v->region[i].hva, size = v->region[i].size_bytes;
		uint64_t from = start > hva ? start : hva, to = end < hva + size ? end : hva + size;
		for (uint64_t at = from; at < to; at += mv_host_page_bytes()) {
			uint64_t page = before + (at - hva) / mv_host_page_bytes();
			v->pages_removed += !is_removed(v, page);
			v->removed[page / 8] |= (uint8_t)(1u << page % 8);
		}
		before += size / mv_host_page_bytes();
	}
}

// from NULL: zeros. Pages that are there already stay as they are: the guest may have written
// them. Each turn gets past a page or ends.
static int fill(struct ph_vm *v, uint64_t at, uint64_t end, const uint8_t *from)
{
	while (at < end) {
		struct uffdio_copy c = { .dst = at, .src = (uintptr_t)from, .len = end - at };
		struct uffdio_zeropage z = { .range = { at, end - at } };
		int r = from ? ioctl(v->uffd, UFFDIO_COPY, &c) : ioctl(v->uffd, UFFDIO_ZEROPAGE, &z);
		int64_t done = r ? (from ? c.copy : z.zeropage) : (int64_t)(end - at);
		if (r && errno == EEXIST) {
			uffd_wake(v->uffd, at, mv_host_page_bytes());
			done = mv_host_page_bytes();
		} else if (r && (errno != EAGAIN || done <= 0)) {
			return -errno;
		} else if (from) {
			v->pages_copied += (uint64_t)done / mv_host_page_bytes();
		}
		at += (uint64_t)done;
		from = from ? from + done : NULL;
	}
	return 0;
}

// What of the chunk around the address lies in the region and was not removed.
static int fill_around(struct ph_vm *v, struct ph_source *s, const struct ph_region *r, uint64_t address,
		       uint64_t page)
{
	// All of these are places in the memory file.
	uint64_t at = address - r->hva + r->file_offset, i = at / CHUNK_BYTES;
	uint64_t from = i * CHUNK_BYTES, end = from + len_of(s, i),
		 region_end = r->file_offset + r->size_bytes;
	from = from > r->file_offset ? from : r->file_offset;
	end = end < region_end ? end : region_end;
	page -= (at - from) / mv_host_page_bytes(); // of `from`
	int result = load(s, i);
	for (at = from; !result && at < end;) {
		uint64_t run = at;
		for (; at < end && !is_removed(v, page); page++)
			at += mv_host_page_bytes();
		if (at > run)
			result = fill(v, r->hva + (run - r->file_offset), r->hva + (at - r->file_offset),
				      s->loaded_zero ? NULL : s->chunk + run % CHUNK_BYTES);
		for (; at < end && is_removed(v, page); page++)
			at += mv_host_page_bytes();
	}
	return result;
}

// 0 or -ESRCH.
static int on_fault(struct ph_vm *v, struct ph_source *s, uint64_t address)
{
	uint64_t page;
	address -= address % mv_host_page_bytes();
	const struct ph_region *r = find(v, address, &page);
	if (!r)
		return 0; // none of those that were registered for it
	v->faults++;
	int result = is_removed(v, page) ? fill(v, address, address + mv_host_page_bytes(), NULL)
					 : fill_around(v, s, r, address, page);
	switch (-result) {
	case 0:
	case ESRCH: return result;
	case EAGAIN: // a removal: see the top of the file
	case ENOENT: // the VM has unmapped a part of its memory
		uffd_wake(v->uffd, address, mv_host_page_bytes());
		return 0;
	case ENOMEM: // the thread asks again and again until there is some
		mv_log_limited(MV_ERROR, "no memory for a VM's pages");
		uffd_wake(v->uffd, address, mv_host_page_bytes());
		return 0;
	default: // it waits for ever: anything it could be given would be wrong
		mv_log_limited(MV_ERROR, "can't load byte %llu of the memory: %s; the VM hangs, end it",
			       (unsigned long long)(address - r->hva + r->file_offset),
			       result == -EBADMSG ? "the memory file is damaged" : strerror(-result));
		return 0;
	}
}

int ph_vm_serve(struct ph_vm *v, struct ph_source *s)
{
	struct uffd_msg m[MESSAGES];
	int r = 0;
	ssize_t n = uffd_read(v->uffd, m, sizeof m);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	n /= (ssize_t)sizeof *m;
	for (ssize_t i = 0; i < n; i++)
		if (m[i].event == UFFD_EVENT_REMOVE)
			on_remove(v, m[i].arg.remove.start, m[i].arg.remove.end);
	for (ssize_t i = 0; !r && i < n; i++)
		if (m[i].event == UFFD_EVENT_PAGEFAULT)
			r = on_fault(v, s, m[i].arg.pagefault.address);
	return r;
}
