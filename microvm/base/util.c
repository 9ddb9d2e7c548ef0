// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/util.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

void mv_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

uint64_t mv_now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int mv_pread_full(int fd, void *buf, size_t len, uint64_t offset)
{
	uint8_t *p = buf;
	while (len) {
		ssize_t n = pread(fd, p, len, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		p += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int mv_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset)
{
	const uint8_t *p = buf;
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

static int copy_by_buffer(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len)
{
	enum { BYTES = 1 << 20 };
	MV_FREE uint8_t *buf = malloc(BYTES);
	int r = buf ? 0 : -ENOMEM;
	for (uint64_t done = 0, n; !r && done < len; done += n) {
		n = len - done < BYTES ? len - done : BYTES;
		r = mv_pread_full(from_fd, buf, (size_t)n, from + done);
		r = r ? r : mv_pwrite_full(to_fd, buf, (size_t)n, to + done);
	}
	return r;
}

int mv_copy_range(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len)
{
	while (len) {
		off_t in = (off_t)from, out = (off_t)to;
		ssize_t n = copy_file_range(from_fd, &in, to_fd, &out, (size_t)len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
			return copy_by_buffer(from_fd, from, to_fd, to, len);
		if (n <= 0)
			return n ? -errno : -ENODATA;
		from += (uint64_t)n;
		to += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

int mv_write_full(int fd, const void *buf, size_t len)
{
	const uint8_t *p = buf;
	while (len) {
		ssize_t n = write(fd, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

bool mv_is_userfaultfd(int fd)
{
	char path[40], target[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(path, target, sizeof target - 1);
	target[n > 0 ? n : 0] = 0;
	return !strcmp(target, "anon_inode:[userfaultfd]");
}

int mv_strcpy(char *dst, size_t dst_size, const char *src)
{
	size_t len = strlen(src);
	if (len >= dst_size)
		return -ENAMETOOLONG;
	memcpy(dst, src, len + 1);
	return 0;
}

void mv_random(void *buf, size_t len)
{
	uint8_t *p = buf;
	while (len) {
		ssize_t n = getrandom(p, len, 0);
		if (n < 0)
			continue; // only EINTR is possible here
		p += n;
		len -= (size_t)n;
	}
}

void mv_uuid(char ret_text[MV_UUID_LEN])
{
	uint8_t b[16];
	mv_random(b, sizeof b);
	b[6] = (uint8_t)((b[6] & 0x0f) | 0x40); // RFC 9562 section 5.4
	b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
	snprintf(ret_text, MV_UUID_LEN,
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2],
		 b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

void mv_buf_append(struct mv_buf *b, const void *data, size_t len)
{
	if (b->failed || len == 0)
		return;
	if (b->cap - b->len < len) {
		size_t cap = b->cap ? b->cap : 256;
		while (cap - b->len < len)
			cap *= 2;
		uint8_t *p = realloc(b->p, cap);
		if (!p) {
			b->failed = true;
			return;
		}
		b->p = p;
		b->cap = cap;
	}
	memcpy(b->p + b->len, data, len);
	b->len += len;
}

void mv_buf_fini(struct mv_buf *b)
{
	free(b->p);
	*b = (struct mv_buf){ 0 };
}
