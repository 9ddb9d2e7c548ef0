// SPDX-License-Identifier: Apache-2.0
// Small things everybody needs: time, sizes, cleanup helpers, checked arithmetic.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define MV_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MV_CONTAINER(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

// Ownership leaves the variable: returns its value and leaves `empty` behind.
#define MV_TAKE_AS(x, empty)                                                                                 \
	__extension__({                                                                                      \
		__typeof__(x) taken_ = (x);                                                                  \
		(x) = (empty);                                                                               \
		taken_;                                                                                      \
	})
#define MV_TAKE(p) MV_TAKE_AS(p, NULL)
#define MV_TAKE_FD(fd) MV_TAKE_AS(fd, -1)

static inline void mv_cleanup_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
static inline void mv_cleanup_free(void *p) { free(*(void **)p); }
#define MV_FD __attribute__((cleanup(mv_cleanup_fd))) int
#define MV_FREE __attribute__((cleanup(mv_cleanup_free)))

// Closes and marks as closed; safe on -1.
void mv_close(int *fd);

uint64_t mv_now_ns(void); // CLOCK_MONOTONIC: comparable between processes of one host

// A page of this host's kernel: 4 KiB, on arm64 also 16 or 64. What mmap(2), madvise(2), userfaultfd, pagemap
// and KVM's slots and logs go by; pages of virtio, of memory files and of sets of pages are 4 KiB on every
// host.
static inline uint32_t mv_host_page_bytes(void) { return (uint32_t)getpagesize(); }

static inline uint64_t mv_align_down(uint64_t v, uint64_t align) { return v & ~(align - 1); }
static inline uint64_t mv_align_up(uint64_t v, uint64_t align) // align: a power of two
{
	return (v + align - 1) & ~(align - 1);
}

// Whole transfers: 0, -errno, or -ENODATA when the file ended before `len` bytes.
int mv_pread_full(int fd, void *buf, size_t len, uint64_t offset);
int mv_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset);
// From file to file; the kernel shares blocks where the file system can, and copies by itself elsewhere. 0 or
// -errno; -ENODATA: the source ends before.
int mv_copy_range(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len);
int mv_write_full(int fd, const void *buf, size_t len);

// Whoever takes one from a process that is not trusted looks first: another kind of file could
// make its reader wait.
bool mv_is_userfaultfd(int fd);

// Copies with truncation refused: -ENAMETOOLONG and an untouched dst.
int mv_strcpy(char *dst, size_t dst_size, const char *src);

// Fills from the kernel's random source; cannot fail after boot (getrandom(2)).
void mv_random(void *buf, size_t len);

// A random (version 4) UUID as 36 characters and NUL.
#define MV_UUID_LEN 37
void mv_uuid(char ret_text[MV_UUID_LEN]);

// A growable byte buffer. On allocation failure `failed` stays set and appends do
// nothing, so a sequence of appends needs one check at its end.
struct mv_buf {
	uint8_t *p;
	size_t len, cap;
	bool failed;
};
void mv_buf_append(struct mv_buf *b, const void *data, size_t len);
void mv_buf_fini(struct mv_buf *b);
#define MV_BUF __attribute__((cleanup(mv_buf_fini))) struct mv_buf
