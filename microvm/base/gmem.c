// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/gmem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "microvm/base/util.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

int gmem_add(struct gmem *m, uint64_t start, uint64_t size_bytes)
{
	if (m->n_regions == GMEM_MAX_REGIONS)
		return -ENOSPC;
	m->region[m->n_regions++] =
		(struct gmem_region){ .gpa = start, .size_bytes = size_bytes, .file_offset = m->total_bytes };
	m->total_bytes += size_bytes;
	return 0;
}

static const struct {
	uint64_t bytes;
	int flags; // of mmap(2)
	const char *name;
} kinds[] = {
	[GMEM_4K] = { GMEM_PAGE_BYTES, MAP_NORESERVE, "4 KiB" },
	[GMEM_THP] = { 2ull << 20, MAP_NORESERVE, "transparent" },
	[GMEM_2M] = { 2ull << 20, MAP_HUGETLB | 21 << MAP_HUGE_SHIFT, "2 MiB" },
	[GMEM_1G] = { 1ull << 30, MAP_HUGETLB | 30 << MAP_HUGE_SHIFT, "1 GiB" },
};

uint64_t gmem_pages_bytes(enum gmem_pages p) { return kinds[p].bytes; }

static void *map_anonymous(size_t len, int flags)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

// Addresses here and in the guest are alike: else neither the kernel nor KVM could use huge pages. They are
// as large as what a page of page table entries of 8 bytes covers.
static uint8_t *map_thp(uint64_t gpa_, size_t len)
{
	size_t align = (size_t)mv_host_page_bytes() * mv_host_page_bytes() / 8;
	uint8_t *room = map_anonymous(len + align, kinds[GMEM_THP].flags);
	if (room == MAP_FAILED)
		return MAP_FAILED;
	uint8_t *p = room + ((gpa_ - (uintptr_t)room) & (align - 1));
	if (p > room)
		munmap(room, (size_t)(p - room));
	munmap(p + len, (size_t)(room + align - p)); // a page of it at least is left
	if (!madvise(p, len, MADV_HUGEPAGE))
		return p;
	int e = errno;
	munmap(p, len);
	errno = e;
	return MAP_FAILED;
}

// mmap() reserves the pages; that they are there as well is known when they have been touched, since a
// cgroup's limit or a cpuset may stand between (Documentation/admin-guide/mm/hugetlbpage.rst). The guest's
// touch would be a SIGBUS, this one is an error.
static uint8_t *map_pooled(size_t len, enum gmem_pages pages)
{
	uint8_t *p = map_anonymous(len, kinds[pages].flags);
	if (p == MAP_FAILED)
		return p;
	while (madvise(p, len, MADV_POPULATE_WRITE)) {
		int e = errno;
		if (e == EINTR || e == EAGAIN)
			continue;
		munmap(p, len);
		errno = e == EFAULT ? ENOMEM : e; // what would be a SIGBUS
		return MAP_FAILED;
	}
	return p;
}

static uint8_t *map_region(const struct gmem *m, const struct gmem_region *r, int file_fd)
{
	if (gmem_pages_pooled(m->pages))
		return map_pooled(r->size_bytes, m->pages);
	if (m->pages == GMEM_THP)
		return map_thp(r->gpa, r->size_bytes);
	if (file_fd < 0)
		return map_anonymous(r->size_bytes, kinds[GMEM_4K].flags);
	return mmap(NULL, r->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | kinds[GMEM_4K].flags, file_fd,
		    (off_t)r->file_offset);
}

static int cannot_map(const struct gmem *m, const struct gmem_region *r, int e, struct mv_err *err)
{
	const char *name = kinds[m->pages].name;
	unsigned long long mib = r->size_bytes >> 20;
	if (gmem_pages_pooled(m->pages) && e == ENOMEM)
		return mv_fail(
			err, ENOBUFS,
			"the host has too few free huge pages of %s for %llu MiB of guest memory: raise "
			"vm.nr_hugepages, end VMs that have some, or use others (huge_pages)",
			name, mib);
	if (m->pages == GMEM_4K)
		return mv_fail(err, e, "cannot map %llu MiB of guest memory: %s", mib, strerror(e));
	return mv_fail(err, e == EINVAL ? ENOBUFS : e,
		       "cannot map %llu MiB of guest memory with huge pages (%s): %s%s", mib, name,
		       strerror(e), e == EINVAL ? "; this host's kernel has none of these" : "");
}

// Holes are zeros already. (SEEK_DATA does not depend on where the descriptor stands, which others share.)
static int copy_file(const struct gmem_region *r, int fd)
{
	off_t at = (off_t)r->file_offset, stop = at + (off_t)r->size_bytes, hole;
	for (; at < stop; at = hole) {
		at = lseek(fd, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		hole = lseek(fd, at, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		hole = hole < stop ? hole : stop;
		int e = at < hole ? mv_pread_full(fd, r->hva + (at - (off_t)r->file_offset),
						  (size_t)(hole - at), (uint64_t)at)
				  : 0;
		if (e)
			return e;
	}
	return 0;
}

int gmem_map(struct gmem *m, int file_fd, struct mv_err *err)
{
	struct stat st;
	// Touching a mapping beyond the end of its file would kill the process.
	if (file_fd >= 0 && (fstat(file_fd, &st) || (uint64_t)st.st_size != m->total_bytes))
		return mv_fail(err, EINVAL, "the memory file is not as large as the VM's memory (%llu MiB)",
			       (unsigned long long)(m->total_bytes >> 20));
	m->from_file = file_fd >= 0 && m->pages == GMEM_4K;
	for (unsigned i = 0; i < m->n_regions; i++)
		if ((m->region[i].gpa | m->region[i].size_bytes | m->region[i].file_offset) %
		    mv_host_page_bytes())
			return mv_fail(
				err, ENOTSUP,
				"guest memory at 0x%llx is not in whole pages of this host, of %u bytes",
				(unsigned long long)m->region[i].gpa, mv_host_page_bytes());
	for (unsigned i = 0; i < m->n_regions; i++) {
		struct gmem_region *r = &m->region[i];
		uint8_t *p = map_region(m, r, file_fd);
		if (p == MAP_FAILED) {
			int e = errno;
			gmem_fini(m);
			return cannot_map(m, r, e, err);
		}
		r->hva = p;
		// Not in a core dump: it is large, and the guest's.
		madvise(p, r->size_bytes, MADV_DONTDUMP);
		int e = file_fd >= 0 && !m->from_file ? copy_file(r, file_fd) : 0;
		if (e) {
			gmem_fini(m);
			return mv_fail(err, -e, "cannot read the memory file: %s", strerror(-e));
		}
	}
	return 0;
}

int gmem_map_file(struct gmem *m, uint64_t start, uint64_t size_bytes, int fd, enum gmem_access access,
		  struct mv_err *err)
{
	if (m->n_files == GMEM_MAX_FILES)
		return mv_fail(err, E2BIG, "more than %d files as memory", GMEM_MAX_FILES);
	int prot = PROT_READ | (access == GMEM_READ_ONLY ? 0 : PROT_WRITE);
	int flags = access == GMEM_OWN_COPY ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
	void *p = mmap(NULL, size_bytes, prot, flags, fd, 0);
	if (p == MAP_FAILED)
		return mv_fail(err, errno, "cannot map the file: %s", strerror(errno));
	// A frozen copy of the VM has no use for it, and a forked VM maps it for itself.
	madvise(p, size_bytes, MADV_DONTFORK);
	madvise(p, size_bytes, MADV_DONTDUMP);
	m->file[m->n_files++] = (struct gmem_file){ start, size_bytes, p, access };
	return 0;
}

void gmem_fini(struct gmem *m)
{
	for (; m->n_files; m->n_files--)
		munmap(m->file[m->n_files - 1].hva, m->file[m->n_files - 1].size_bytes);
	for (unsigned i = 0; i < m->n_regions; i++) {
		if (m->region[i].hva)
			munmap(m->region[i].hva, m->region[i].size_bytes);
		m->region[i].hva = NULL;
	}
	free(MV_TAKE(m->replaced));
	m->n_pieces = 0;
}

// The region that holds `a`, and how many bytes from there to its end.
static const struct gmem_region *gmem_find(const struct gmem *m, uint64_t a, uint64_t *ret_left)
{
	for (unsigned i = 0; i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		if (a >= r->gpa && a - r->gpa < r->size_bytes) {
			*ret_left = r->size_bytes - (a - r->gpa);
			return r;
		}
	}
	return NULL;
}

static void *find_file(const struct gmem *m, uint64_t a, size_t len, bool to_write)
{
	for (unsigned i = 0; i < m->n_files; i++) {
		const struct gmem_file *f = &m->file[i];
		if (a >= f->gpa && a - f->gpa < f->size_bytes && len <= f->size_bytes - (a - f->gpa))
			return f->access == GMEM_WRITABLE || !to_write ? f->hva + (a - f->gpa) : NULL;
	}
	return NULL;
}

static void *find_ptr(const struct gmem *m, uint64_t a, size_t len, bool to_write)
{
	uint64_t left;
	const struct gmem_region *r = gmem_find(m, a, &left);
	if (!r)
		return find_file(m, a, len, to_write);
	return len > left ? NULL : r->hva + (a - r->gpa);
}

void *gmem_ptr(const struct gmem *m, gpa_t a, size_t len) { return find_ptr(m, a.v, len, true); }

const void *gmem_ptr_to_read(const struct gmem *m, gpa_t a, size_t len)
{
	return find_ptr(m, a.v, len, false);
}

// Devices mark the same few pages over and over: an atomic access only for what is new.
void gmem_mark(const struct gmem *m, const void *p, size_t len)
{
	for (unsigned i = 0; len && i < m->n_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		uint64_t at = (uintptr_t)p - (uintptr_t)r->hva; // wraps to a huge number below it
		if (at >= r->size_bytes)
			continue;
		uint64_t page = (r->file_offset + at) / GMEM_PAGE_BYTES;
		uint64_t end = (r->file_offset + at + len - 1) / GMEM_PAGE_BYTES + 1;
		while (page < end) {
			uint64_t first = page % 64, n = end - page < 64 - first ? end - page : 64 - first;
			uint64_t bits = (n == 64 ? UINT64_MAX : (1ULL << n) - 1) << first;
			uint64_t *word = &m->written[page / 64];
			if ((__atomic_load_n(word, __ATOMIC_RELAXED) & bits) != bits)
				__atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
			page += n;
		}
		return;
	}
}

// Visits the pieces of a range; checks all of it before the first copy.
static int gmem_copy(const struct gmem *m, gpa_t a, void *host, size_t len, bool to_guest)
{
	for (int pass = 0; pass < 2; pass++) {
		uint64_t at = a.v, left;
		size_t done = 0;
		while (done < len) {
			const struct gmem_region *r = gmem_find(m, at, &left);
			if (!r)
				return -EFAULT;
			size_t n = len - done < left ? len - done : (size_t)left;
			uint8_t *guest = r->hva + (at - r->gpa);
			if (pass && to_guest) {
				memcpy(guest, (uint8_t *)host + done, n);
				gmem_wrote(m, guest, n);
			} else if (pass) {
				memcpy((uint8_t *)host + done, guest, n);
			}
			done += n;
			if (__builtin_add_overflow(at, n, &at) && done < len)
				return -EFAULT;
		}
	}
	return 0;
}

int gmem_read(const struct gmem *m, gpa_t a, void *dst, size_t len)
{
	return gmem_copy(m, a, dst, len, false);
}

int gmem_write(const struct gmem *m, gpa_t a, const void *src, size_t len)
{
	return gmem_copy(m, a, (void *)(uintptr_t)src, len, true);
}
