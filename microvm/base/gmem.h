// SPDX-License-Identifier: Apache-2.0
// Guest memory: the only maker of host pointers into the guest. A pointer always
// comes with a length and lies wholly inside one region. What it points to can
// change at any moment (the guest runs): copy once, check the copy, use the copy.
// Read-only after setup, but for the marks of written pages; any thread.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "microvm/base/bytes.h"
#include "microvm/base/err.h"

#define GMEM_MAX_REGIONS 4
#define GMEM_MAX_FILES 4
#define GMEM_PAGE_BYTES 4096u // what sets of pages count in, on every host; at most mv_host_page_bytes()

// What the host's pages under guest memory are. THP: anonymous memory that the kernel may give transparent
// huge pages; 2M, 1G: pages of the host's pool (hugetlb), all of which are taken when the memory is mapped.
enum gmem_pages { GMEM_4K, GMEM_THP, GMEM_2M, GMEM_1G };
uint64_t gmem_pages_bytes(enum gmem_pages p); // of one; THP: as large as they may become
static inline bool gmem_pages_pooled(enum gmem_pages p) { return p >= GMEM_2M; }

struct gmem_region {
	uint64_t gpa, size_bytes; // not overlapping, ascending
	uint64_t file_offset;     // place in a snapshot's memory file
	uint8_t *hva;
};

struct gmem {
	struct gmem_region region[GMEM_MAX_REGIONS];
	unsigned n_regions;
	uint64_t total_bytes;
	enum gmem_pages pages; // set before gmem_map()
	// Pages that this process wrote, a bit each by their place in the memory file. NULL: nobody
	// asks. Its owner (microvm/dirty.h) sets it before the first write and keeps it till the last.
	uint64_t *written;
	// Files of the host that the guest has as memory (virtio-pmem). Devices may use it as well, but it is
	// in no snapshot, and no page of it is ever marked.
	struct gmem_file {
		uint64_t gpa, size_bytes;
		uint8_t *hva;
		uint32_t access; // enum gmem_access
	} file[GMEM_MAX_FILES];
	unsigned n_files;
	// Of discard.c: mapped from a memory file; the host's pages that were put in that mapping's place, a
	// bit each (NULL: none yet), and in how many pieces they lie.
	bool from_file;
	bool discarded; // anonymous pages that held something may be gone, and nobody marked which
	uint64_t *replaced;
	uint64_t discarded_bytes; // ever
	uint32_t n_pieces;
};

// Adds a region (its memory not yet mapped, hva NULL); file offsets follow each other.
int gmem_add(struct gmem *m, uint64_t gpa, uint64_t size_bytes);

// Maps all regions: anonymous zero memory (file_fd < 0) or MAP_PRIVATE over the
// memory file of a snapshot, so that clean pages stay shared between clones. Huge pages
// are never a file's: then the memory is anonymous and the file, which must be all there, is
// copied into it. -ENOTSUP: a region does not lie in whole pages of this host. -ENOBUFS: the host's pool has
// too few of them; later there is no SIGBUS for that.
int gmem_map(struct gmem *m, int file_fd, struct mv_err *err);

// Maps a whole file, shared, for the guest to have at gpa. Not inherited by forks.
enum gmem_access {
	GMEM_READ_ONLY,
	GMEM_WRITABLE,
	GMEM_OWN_COPY, // read-only for devices; what the guest writes goes to pages of its own, and is lost
		       // with them
};
int gmem_map_file(struct gmem *m, uint64_t gpa, uint64_t size_bytes, int fd, enum gmem_access access,
		  struct mv_err *err);

// Unmaps; idempotent.
void gmem_fini(struct gmem *m);

// Host pointer for [gpa, gpa+len), NULL unless it lies inside one region, or one file. len > 0. The second
// one also finds what can't be written.
const void *gmem_ptr_to_read(const struct gmem *m, gpa_t gpa, size_t len);
void *gmem_ptr(const struct gmem *m, gpa_t gpa, size_t len);

// Whoever writes guest memory through a pointer says so: before or after, but not with a pause of
// the VM in between, since a snapshot may take the marks then. [p, p + len) lies in one region.
void gmem_mark(const struct gmem *m, const void *p, size_t len);
static inline void gmem_wrote(const struct gmem *m, const void *p, size_t len)
{
	if (__builtin_expect(m->written != NULL, false))
		gmem_mark(m, p, len);
}

// Gives the host's pages that [p, p + len) has wholly back: they are zeros from now on, take no memory until
// they are touched, and are marked as written; m->discarded_bytes counts them. The range lies in one region;
// the loop's thread only. -ENOSPC: a clone's memory is in too many pieces already, so some pages stay as they
// are.
int gmem_discard(struct gmem *m, void *p, size_t len);

// Copies; gmem_write() marks by itself. 0 or -EFAULT with nothing copied. May cross from one region into the
// next.
int gmem_read(const struct gmem *m, gpa_t gpa, void *dst, size_t len);
int gmem_write(const struct gmem *m, gpa_t gpa, const void *src, size_t len);
