// SPDX-License-Identifier: Apache-2.0
#include "devices/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "microvm/base/util.h"

#define DISK_MAX_PHYSICAL (64 << 10)

static int lock_base(const struct disk *d, bool writing, struct mv_err *err)
{
	int mode = fcntl(d->base_fd, F_GETFL);
	if (mode < 0 || (writing && (mode & O_ACCMODE) != O_RDWR))
		return mv_fail(err, EACCES, "the file is not open for writing");
	struct flock lock = { .l_type = writing ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
	if (!fcntl(d->base_fd, F_OFD_SETLK, &lock))
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return mv_fail(err, EBUSY,
			       "another VM uses the file%s; "
			       "give each VM its own copy, a layer, or make it read-only",
			       writing ? "" : " and writes to it");
	return mv_fail(err, errno, "cannot lock the file: %s", strerror(errno));
}

static struct disk_topology topology(int fd)
{
	struct disk_topology t = { .physical_bytes = LAYER_SECTOR };
	struct stat st;
	unsigned physical = 0, min = 0, opt = 0;
	int offset = 0;
	if (fstat(fd, &st))
		return t;
	if (S_ISBLK(st.st_mode)) {
		if (!ioctl(fd, BLKPBSZGET, &physical) && !ioctl(fd, BLKIOMIN, &min) &&
		    !ioctl(fd, BLKIOOPT, &opt) && !ioctl(fd, BLKALIGNOFF, &offset))
			t.offset_bytes = offset > 0 ? (uint32_t)offset : 0;
		t.min_io_bytes = min;
		t.opt_io_bytes = opt;
	} else if (st.st_blksize > 0 && st.st_blksize <= DISK_MAX_PHYSICAL) { // the file system's block
		physical = (unsigned)st.st_blksize;
		t.min_io_bytes = physical;
	}
	if (physical > LAYER_SECTOR && physical <= DISK_MAX_PHYSICAL && !(physical & (physical - 1)))
		t.physical_bytes = physical;
	return t;
}

// Kernels before 6.1 don't tell what they need.
#define DIRECT_UNKNOWN 4096

static int make_direct(struct disk *d, struct mv_err *err)
{
	struct statx st;
	int flags = fcntl(d->base_fd, F_GETFL);
	if (flags < 0 || fcntl(d->base_fd, F_SETFL, flags | O_DIRECT))
		return mv_fail(err, EINVAL, "its file system has no direct I/O; leave out direct");
	d->memory_align = d->offset_align = DIRECT_UNKNOWN;
	if (statx(d->base_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) || !(st.stx_mask & STATX_DIOALIGN))
		return 0;
	if (!st.stx_dio_offset_align || st.stx_dio_offset_align > DISK_MAX_ALIGN ||
	    st.stx_dio_mem_align > DISK_MAX_ALIGN)
		return mv_fail(err, EINVAL, "the file can't be read directly; leave out direct");
	d->offset_align = st.stx_dio_offset_align;
	d->memory_align = st.stx_dio_mem_align;
	// Lengths count as offsets do.
	if (d->memory_align < d->offset_align)
		d->memory_align = d->offset_align;
	return 0;
}

static int check_writable_device(int fd, struct mv_err *err)
{
	struct stat st;
	int read_only = 0;
	if (fstat(fd, &st) || !S_ISBLK(st.st_mode) || ioctl(fd, BLKROGET, &read_only) || !read_only)
		return 0;
	return mv_fail(err, EINVAL, "the block device is read-only; make the drive read-only, too");
}

static int open_layers(struct disk *d, int *layer_fd, unsigned n, struct mv_err *err)
{
	static const uint8_t base_id[LAYER_ID_BYTES];
	const uint8_t *below = base_id;
	for (unsigned i = 0; i < n; i++) {
		int r = layer_open(&d->layer[i], MV_TAKE_FD(layer_fd[i]), d->n_sectors, below, i + 1 == n,
				   err);
		if (r)
			return mv_wrap(err, "layer %u", i + 1);
		below = d->layer[i].id;
		d->n_layers++;
	}
	return 0;
}

int disk_open(struct disk *d, const struct disk_files *f, struct mv_ring *ring, struct mv_err *err)
{
	int layer_fd[VMCFG_MAX_LAYERS];
	unsigned n = f->n_layers;
	memcpy(layer_fd, f->layer_fd, sizeof layer_fd);
	*d = (struct disk){ .base_fd = f->base_fd,
			    .read_only = f->read_only,
			    .keep = f->keep,
			    .ring = ring,
			    .next = { .fd = -1 },
			    .reader = { .fd = -1 } };
	off_t bytes = lseek(d->base_fd, 0, SEEK_END);
	d->n_sectors = bytes > 0 ? (uint64_t)bytes / LAYER_SECTOR : 0;
	d->topology = topology(d->base_fd);
	int r = d->n_sectors ? 0 : mv_fail(err, EINVAL, "not a file or block device of at least 512 bytes");
	if (!r)
		r = lock_base(d, !n && !d->read_only, err);
	if (!r && !n && !d->read_only)
		r = check_writable_device(d->base_fd, err);
	if (!r && f->direct)
		r = make_direct(d, err);
	if (!r)
		r = open_layers(d, layer_fd, n, err);
	for (unsigned i = 0; i < n; i++)
		mv_close(&layer_fd[i]);
	if (r)
		disk_close(d);
	return r;
}

int disk_resize(struct disk *d, uint64_t bytes, struct mv_err *err)
{
	struct stat st;
	if (d->n_layers)
		return mv_fail(err, EINVAL, "a drive with a layer can't change its size");
	if (bytes && d->read_only)
		return mv_fail(err, EINVAL,
			       "a read-only drive can't grow; enlarge the file, then reread_size");
	if (bytes && (fstat(d->base_fd, &st) || !S_ISREG(st.st_mode)))
		return mv_fail(err, EINVAL, "not a regular file; enlarge the device, then reread_size");
	if (bytes && (uint64_t)st.st_size > bytes)
		return mv_fail(err, EINVAL,
			       "size_bytes: the file has %llu bytes already; nothing is cut off: shorten it "
			       "yourself, then reread_size",
			       (unsigned long long)st.st_size);
	if (bytes && ftruncate(d->base_fd, (off_t)bytes))
		return mv_fail(err, errno, "cannot enlarge the file: %s", strerror(errno));
	off_t end = lseek(d->base_fd, 0, SEEK_END);
	if (end < LAYER_SECTOR)
		return mv_fail(err, EINVAL, "the file is smaller than 512 bytes now");
	d->n_sectors = (uint64_t)end / LAYER_SECTOR;
	return 0;
}

// The number of the descriptor stays: requests that are prepared but not yet handed in have it.
int disk_replace(struct disk *d, int fd, struct mv_err *err)
{
	MV_FD owned = fd;
	struct disk other = { .base_fd = owned };
	off_t bytes = lseek(owned, 0, SEEK_END);
	if (d->n_layers || d->memory_align)
		return mv_fail(err, EINVAL, "a drive with %s keeps its file",
			       d->n_layers ? "a layer" : "direct I/O");
	if (bytes < LAYER_SECTOR)
		return mv_fail(err, EINVAL, "not a file or block device of at least 512 bytes");
	int r = d->read_only ? 0 : check_writable_device(owned, err);
	if (r)
		return r;
	struct flock none = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
	fcntl(d->base_fd, F_OFD_SETLK, &none); // it may be the same file again
	if ((r = lock_base(&other, !d->read_only, err))) {
		lock_base(d, !d->read_only, NULL);
		return r;
	}
	if (dup3(owned, d->base_fd, O_CLOEXEC) < 0)
		return mv_fail(err, errno, "cannot take the file: %s", strerror(errno));
	d->n_sectors = (uint64_t)bytes / LAYER_SECTOR;
	return 0;
}

void disk_close(struct disk *d)
{
	disk_freeze_end(d, false);
	while (d->n_layers)
		layer_close(&d->layer[--d->n_layers]);
	mv_close(&d->base_fd);
}

// --- reads and writes -----------------------------------------------------------------
uint64_t disk_read_place(const struct disk *d, uint64_t pos, uint64_t n, int *ret_fd, uint64_t *ret_offset)
{
	uint64_t sector = pos / LAYER_SECTOR, in_sector = pos % LAYER_SECTOR;
	uint64_t run = (in_sector + n + LAYER_SECTOR - 1) / LAYER_SECTOR;
	bool has = false;
	*ret_fd = d->base_fd;
	*ret_offset = pos;
	for (unsigned i = d->n_layers; i-- && !has;) {
		run = layer_run(&d->layer[i], sector, run, &has);
		if (has) {
			*ret_fd = d->layer[i].fd;
			*ret_offset = layer_offset(&d->layer[i], sector) + in_sector;
		}
	}
	uint64_t bytes = run * LAYER_SECTOR - in_sector;
	return bytes < n ? bytes : n;
}

void disk_write_place(const struct disk *d, uint64_t pos, int *ret_fd, uint64_t *ret_offset)
{
	const struct layer *top = d->n_layers ? &d->layer[d->n_layers - 1] : NULL;
	*ret_fd = top ? top->fd : d->base_fd;
	*ret_offset = top ? layer_offset(top, 0) + pos : pos;
}

void disk_wrote(struct disk *d, uint64_t sector, uint64_t n)
{
	if (d->n_layers)
		layer_mark(&d->layer[d->n_layers - 1], sector, n);
}

// --- flush ------------------------------------------------------------------------------
// IDLE -> DATA: map pages are copied, then the data is synced. So each bit in the copies
//         belongs to data that is durable when they are written.
// DATA -> MAP: one write per run of neighbouring pages.    DATA -> IDLE: no page changed
// MAP -> MAP_SYNC -> IDLE. An error ends it anywhere; its pages count as not written.
static void start_flush(struct disk *d);

static struct layer *top_kept(struct disk *d)
{
	return d->n_layers && d->keep ? &d->layer[d->n_layers - 1] : NULL;
}

static void end_flush(struct disk *d, int result)
{
	struct disk_wait *w = MV_TAKE(d->running), *next;
	if (result < 0 && d->pages.n)
		layer_undo_pages(top_kept(d), &d->pages);
	layer_pages_free(&d->pages);
	d->step = DISK_IDLE;
	for (; w; w = next) {
		next = w->next;
		w->done(w, result < 0 ? result : 0); // may come back with another flush
	}
	if (d->waiting && d->step == DISK_IDLE)
		start_flush(d);
}

static void queue_step(struct disk *d, enum mv_io_op op)
{
	d->io.op = op;
	mv_ring_queue(d->ring, &d->io);
}

static void queue_map_run(struct disk *d)
{
	uint32_t from = d->pages_done, n = 1;
	while (from + n < d->pages.n && d->pages.page[from + n] == d->pages.page[from] + n)
		n++;
	d->pages_done = from + n;
	d->iov = (struct iovec){ d->pages.bytes + (size_t)from * LAYER_MAP_PAGE, (size_t)n * LAYER_MAP_PAGE };
	d->io.iov = &d->iov;
	d->io.n_iov = 1;
	d->io.offset = LAYER_MAP_OFFSET + (uint64_t)d->pages.page[from] * LAYER_MAP_PAGE;
	queue_step(d, MV_IO_WRITEV);
}

static void on_step(struct mv_io *io, int result)
{
	struct disk *d = MV_CONTAINER(io, struct disk, io);
	if (d->step == DISK_MAP && result > 0 && (size_t)result < d->iov.iov_len) { // short
		d->iov.iov_base = (uint8_t *)d->iov.iov_base + result;
		d->iov.iov_len -= (size_t)result;
		io->offset += (uint64_t)result;
		queue_step(d, MV_IO_WRITEV);
	} else if (result < 0 || (d->step == DISK_MAP && !result)) {
		end_flush(d, result < 0 ? result : -EIO);
	} else if (d->step == DISK_MAP_SYNC || !d->pages.n) {
		end_flush(d, 0);
	} else if (d->pages_done < d->pages.n) {
		d->step = DISK_MAP;
		queue_map_run(d);
	} else {
		d->step = DISK_MAP_SYNC;
		queue_step(d, MV_IO_FDATASYNC);
	}
	mv_ring_submit(d->ring);
}

static void start_flush(struct disk *d)
{
	struct layer *top = top_kept(d);
	d->running = MV_TAKE(d->waiting);
	d->pages_done = 0;
	if (d->n_layers && !top) {
		end_flush(d, 0);
	} else if (top && layer_take_pages(top, &d->pages)) {
		end_flush(d, -ENOMEM);
	} else {
		d->step = DISK_DATA;
		d->io.fd = top ? top->fd : d->base_fd;
		d->io.done = on_step;
		queue_step(d, MV_IO_FDATASYNC);
	}
}

void disk_flush(struct disk *d, struct disk_wait *w)
{
	w->next = d->waiting;
	d->waiting = w;
	if (d->step == DISK_IDLE)
		start_flush(d);
}

// --- freeze -----------------------------------------------------------------------------
int disk_copy_layers(const struct disk *d, int fd, struct mv_err *err)
{
	static const uint8_t base_id[LAYER_ID_BYTES];
	struct layer out;
	uint64_t run, offset;
	int from_fd, r = layer_open(&out, fd, d->n_sectors, base_id, true, err);
	if (r)
		return r;
	for (uint64_t sector = 0; !r && sector < d->n_sectors; sector += run) {
		run = disk_read_place(d, sector * LAYER_SECTOR, (d->n_sectors - sector) * LAYER_SECTOR,
				      &from_fd, &offset) /
		      LAYER_SECTOR;
		if (from_fd == d->base_fd)
			continue;
		r = mv_copy_range(from_fd, offset, out.fd, layer_offset(&out, sector), run * LAYER_SECTOR);
		layer_mark(&out, sector, run);
	}
	r = r ? r : layer_write_map(&out, false);
	layer_close(&out);
	return r ? mv_fail(err, -r, "cannot copy its layers: %s", strerror(-r)) : 0;
}

int disk_freeze(struct disk *d, int reader_fd_, int fresh_fd_, struct mv_err *err)
{
	MV_FD reader_fd = reader_fd_;
	MV_FD fresh_fd = fresh_fd_;
	if (!d->n_layers)
		return mv_fail(err, EINVAL, "the drive has no layer");
	if (d->n_layers == VMCFG_MAX_LAYERS)
		return mv_fail(err, E2BIG, "the drive has %u layers, which is the most; copy it",
			       d->n_layers);
	struct layer *top = &d->layer[d->n_layers - 1];
	disk_freeze_end(d, false);
	int r = layer_write_map(top, d->keep);
	if (r)
		return mv_fail(err, -r, "cannot write the layer's map: %s", strerror(-r));
	r = layer_reader(top, MV_TAKE_FD(reader_fd), &d->reader, err);
	if (r)
		return r;
	r = layer_open(&d->next, MV_TAKE_FD(fresh_fd), d->n_sectors, top->id, true, err);
	if (r) {
		layer_close(&d->reader);
		return mv_wrap(err, "the fresh layer");
	}
	return 0;
}

void disk_freeze_end(struct disk *d, bool commit)
{
	if (d->reader.fd < 0)
		return;
	if (commit) {
		layer_freeze(&d->layer[d->n_layers - 1], &d->reader);
		d->layer[d->n_layers++] = d->next;
		d->next = (struct layer){ .fd = -1 };
	} else {
		layer_close(&d->next);
		layer_close(&d->reader);
	}
}
