// SPDX-License-Identifier: Apache-2.0
#include "devices/layer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "microvm/base/bytes.h"
#include "microvm/base/util.h"

#define MAGIC "THAWLAYR"
enum { MAJOR = 1, MINOR = 0 };
#define DATA_ALIGN (64u << 10)
#define MAX_SECTORS (1ULL << 43) // 4 PiB: offsets stay far from overflow

struct layer_header {
	char magic[8];
	le16_t major, minor;
	le32_t zero;
	le64_t n_sectors;
	uint8_t id[LAYER_ID_BYTES], below[LAYER_ID_BYTES];
	le64_t checksum; // FNV-1a of what is before it: against damage, not against malice
};
_Static_assert(sizeof(struct layer_header) == 64, "the file's format");

static uint64_t checksum(const struct layer_header *h)
{
	const uint8_t *p = (const uint8_t *)h;
	uint64_t v = 0xcbf29ce484222325;
	for (size_t i = 0; i < offsetof(struct layer_header, checksum); i++)
		v = (v ^ p[i]) * 0x100000001b3;
	return v;
}

static size_t map_bytes(uint64_t n_sectors) { return mv_align_up((n_sectors + 7) / 8, LAYER_MAP_PAGE); }

static uint64_t data_offset(uint64_t n_sectors)
{
	return mv_align_up(LAYER_MAP_OFFSET + map_bytes(n_sectors), DATA_ALIGN);
}

uint64_t layer_offset(const struct layer *l, uint64_t sector)
{
	return data_offset(l->n_sectors) + sector * LAYER_SECTOR;
}

static int lock(int fd, bool writable, struct mv_err *err)
{
	struct flock f = { .l_type = writable ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
	if (!fcntl(fd, F_OFD_SETLK, &f))
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return mv_fail(err, EBUSY, "another VM uses it; give each VM a layer of its own");
	return mv_fail(err, errno, "cannot lock it: %s", strerror(errno));
}

static bool has_no_data(int fd, uint64_t file_bytes)
{
	return !file_bytes || (lseek(fd, 0, SEEK_DATA) < 0 && errno == ENXIO);
}

static int format(struct layer *l, const uint8_t below[LAYER_ID_BYTES], struct mv_err *err)
{
	struct layer_header h = { .magic = MAGIC,
				  .major = le16_make(MAJOR),
				  .minor = le16_make(MINOR),
				  .n_sectors = le64_make(l->n_sectors) };
	mv_random(l->id, sizeof l->id);
	memcpy(h.id, l->id, sizeof h.id);
	memcpy(h.below, below, sizeof h.below);
	h.checksum = le64_make(checksum(&h));
	// Size first: a file with a header is complete, one without is a new one still.
	int r = ftruncate(l->fd, (off_t)layer_offset(l, l->n_sectors)) ? -errno : 0;
	if (!r)
		r = mv_pwrite_full(l->fd, &h, sizeof h, 0);
	return r ? mv_fail(err, -r, "cannot make it: %s", strerror(-r)) : 0;
}

static int check(struct layer *l, uint64_t file_bytes, const uint8_t below[LAYER_ID_BYTES],
		 struct mv_err *err)
{
	struct layer_header h;
	int r = mv_pread_full(l->fd, &h, sizeof h, 0);
	if (r && r != -ENODATA)
		return mv_fail(err, -r, "cannot read it: %s", strerror(-r));
	if (r || memcmp(h.magic, MAGIC, sizeof h.magic))
		return mv_fail(err, EINVAL, "not a layer file");
	if (le64_get(h.checksum) != checksum(&h) || le32_get(h.zero))
		return mv_fail(err, EINVAL, "its header is damaged");
	if (le16_get(h.major) != MAJOR)
		return mv_fail(err, ENOTSUP, "format %u, this program reads %d: use a newer one",
			       le16_get(h.major), MAJOR);
	if (le64_get(h.n_sectors) != l->n_sectors)
		return mv_fail(err, EINVAL, "it is of a disk of %llu sectors, the base has %llu",
			       (unsigned long long)le64_get(h.n_sectors), (unsigned long long)l->n_sectors);
	if (file_bytes != layer_offset(l, l->n_sectors))
		return mv_fail(err, EINVAL, "%llu bytes long, it should be %llu: it was truncated",
			       (unsigned long long)file_bytes,
			       (unsigned long long)layer_offset(l, l->n_sectors));
	if (memcmp(h.below, below, sizeof h.below))
		return mv_fail(err, EINVAL, "it was made on another layer than the one below it here");
	memcpy(l->id, h.id, sizeof l->id);
	return 0;
}

static int map_file(struct layer *l, struct mv_err *err)
{
	size_t bytes = map_bytes(l->n_sectors);
	int prot = PROT_READ | (l->writable ? PROT_WRITE : 0);
	void *map = mmap(NULL, bytes, prot, MAP_PRIVATE, l->fd, LAYER_MAP_OFFSET);
	if (map == MAP_FAILED)
		return mv_fail(err, errno, "cannot map it: %s", strerror(errno));
	l->map = map;
	l->map_bytes = bytes;
	return 0;
}

static int open_fd(struct layer *l, const uint8_t below[LAYER_ID_BYTES], struct mv_err *err)
{
	struct stat st;
	int mode = fcntl(l->fd, F_GETFL);
	if (mode < 0 || fstat(l->fd, &st) || !S_ISREG(st.st_mode))
		return mv_fail(err, EINVAL, "not a regular file");
	if (l->writable && (mode & O_ACCMODE) != O_RDWR)
		return mv_fail(err, EACCES, "the file is not open for writing");
	if (!l->n_sectors || l->n_sectors > MAX_SECTORS)
		return mv_fail(err, EFBIG, "disks with a layer are at most 4 PiB");
	int r = lock(l->fd, l->writable, err);
	if (r)
		return r;
	uint64_t bytes = (uint64_t)st.st_size;
	r = l->writable && has_no_data(l->fd, bytes) ? format(l, below, err) : check(l, bytes, below, err);
	if (r)
		return r;
	r = map_file(l, err);
	if (r)
		return r;
	if (l->writable && !(l->dirty = calloc(l->map_bytes / LAYER_MAP_PAGE, 1)))
		return mv_fail(err, ENOMEM, "out of memory");
	return 0;
}

int layer_open(struct layer *l, int fd, uint64_t n_sectors, const uint8_t below[LAYER_ID_BYTES],
	       bool writable, struct mv_err *err)
{
	*l = (struct layer){ .fd = fd, .writable = writable, .n_sectors = n_sectors };
	int r = open_fd(l, below, err);
	if (r)
		layer_close(l);
	return r;
}

void layer_close(struct layer *l)
{
	if (l->map)
		munmap(l->map, l->map_bytes);
	free(l->dirty);
	mv_close(&l->fd);
	*l = (struct layer){ .fd = -1 };
}

// --- the map ----------------------------------------------------------------------------
static uint64_t word_at(const struct layer *l, uint64_t sector)
{
	le64_t w;
	memcpy(&w, l->map + sector / 64 * 8, sizeof w);
	return le64_get(w) >> sector % 64;
}

uint64_t layer_run(const struct layer *l, uint64_t sector, uint64_t n, bool *ret_has)
{
	bool has = word_at(l, sector) & 1;
	uint64_t got = 0;
	*ret_has = has;
	while (got < n) {
		uint64_t word = word_at(l, sector + got), left = 64 - (sector + got) % 64;
		uint64_t end = has ? ~word : word; // its lowest 1 ends the run
		uint64_t same = end ? (uint64_t)__builtin_ctzll(end) : 64;
		got += same < left ? same : left;
		if (same < left)
			break;
	}
	return got < n ? got : n;
}

void layer_mark(struct layer *l, uint64_t sector, uint64_t n)
{
	while (n) {
		uint64_t bit = sector % 64, count = 64 - bit < n ? 64 - bit : n;
		uint64_t mask = (count == 64 ? UINT64_MAX : (1ULL << count) - 1) << bit;
		uint8_t *at = l->map + sector / 64 * 8;
		le64_t w;
		memcpy(&w, at, sizeof w);
		if ((le64_get(w) & mask) != mask) {
			size_t page = (size_t)(at - l->map) / LAYER_MAP_PAGE;
			w = le64_make(le64_get(w) | mask);
			memcpy(at, &w, sizeof w);
			l->n_dirty += !l->dirty[page];
			l->dirty[page] = 1;
		}
		sector += count;
		n -= count;
	}
}

int layer_take_pages(struct layer *l, struct layer_pages *ret_p)
{
	struct layer_pages p = { 0 };
	if (l->n_dirty) {
		p.page = calloc(l->n_dirty, sizeof *p.page);
		p.bytes = malloc((size_t)l->n_dirty * LAYER_MAP_PAGE);
		if (!p.page || !p.bytes) {
			layer_pages_free(&p);
			return -ENOMEM;
		}
	}
	for (uint32_t i = 0; p.n < l->n_dirty; i++) {
		if (!l->dirty[i])
			continue;
		l->dirty[i] = 0;
		memcpy(p.bytes + (size_t)p.n * LAYER_MAP_PAGE, l->map + (size_t)i * LAYER_MAP_PAGE,
		       LAYER_MAP_PAGE);
		p.page[p.n++] = i;
	}
	l->n_dirty = 0;
	*ret_p = p;
	return 0;
}

void layer_undo_pages(struct layer *l, const struct layer_pages *p)
{
	for (uint32_t i = 0; i < p->n; i++) {
		l->n_dirty += !l->dirty[p->page[i]];
		l->dirty[p->page[i]] = 1;
	}
}

void layer_pages_free(struct layer_pages *p)
{
	free(p->page);
	free(p->bytes);
	*p = (struct layer_pages){ 0 };
}

int layer_write_map(struct layer *l, bool sync)
{
	if (sync && fdatasync(l->fd))
		return -errno;
	for (uint32_t i = 0; l->n_dirty; i++) {
		size_t at = (size_t)i * LAYER_MAP_PAGE;
		if (!l->dirty[i])
			continue;
		int r = mv_pwrite_full(l->fd, l->map + at, LAYER_MAP_PAGE, LAYER_MAP_OFFSET + at);
		if (r)
			return r;
		l->dirty[i] = 0;
		l->n_dirty--;
	}
	return 0;
}

static bool same_file(int a, int b)
{
	struct stat x, y;
	return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int layer_reader(const struct layer *l, int fd, struct layer *ret_reader, struct mv_err *err)
{
	struct layer r = { .fd = fd, .n_sectors = l->n_sectors };
	int mode = fcntl(fd, F_GETFL);
	int e = mode >= 0 && (mode & O_ACCMODE) == O_RDONLY && same_file(l->fd, fd)
			? map_file(&r, err)
			: mv_fail(err, EINVAL, "the descriptor is not of the newest layer");
	memcpy(r.id, l->id, sizeof r.id);
	if (e)
		layer_close(&r);
	else
		*ret_reader = r;
	return e;
}

void layer_freeze(struct layer *l, struct layer *reader)
{
	layer_close(l); // with its exclusive lock; a mapping counts as open for writing, too
	*l = *reader;
	*reader = (struct layer){ .fd = -1 };
	lock(l->fd, false, NULL); // nobody else could have had it for writing
}
