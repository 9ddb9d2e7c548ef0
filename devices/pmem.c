// SPDX-License-Identifier: Apache-2.0
// virtio-pmem (virtio 1.2 section 5.19): a file of the host as memory of the guest, which maps it without
// copies (DAX), so all guests of a host share its pages in the page cache. The VMM maps the file and gives it
// a memory slot; here is what is left: where it is, and flushes, which are an fdatasync(2) on io_uring.
//
// Flushes are all that a rate limit can hold back. Those that are found together cost one operation and as
// many bytes as the file has, since one of them does the work of all.
//
// The memory is in no snapshot, so the file has to be the one that it was: its size, time stamp and inode are
// saved. Of a file that guests write only the size is: writes to a mapping change no time stamp that could be
// relied on.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "devices/devices.h"
#include "microvm/base/token_bucket.h"
#include "microvm/base/util.h"

enum { QUEUE_SIZE = 64, POPS_PER_KICK = 64, REQUEST_FLUSH = 0 };

struct pmem_config { // section 5.19.4
	le64_t start, size;
};

struct pmem_state {
	uint64_t size_bytes, mtime_ns, inode; // the last two: 0 when it is writable
};

static const struct mv_field state_fields[] = {
	MV_INT(struct pmem_state, size_bytes, 1, MV_U64, 1, INT64_MAX),
	MV_INT(struct pmem_state, mtime_ns, 2, MV_U64, 0, UINT64_MAX),
	MV_INT(struct pmem_state, inode, 3, MV_U64, 0, UINT64_MAX),
};
static MV_DEFINE_TABLE(pmem_table, struct pmem_state, state_fields);

struct request {
	struct mv_io io;
	struct vio_pmem *p;
	uint16_t head;
	struct vq_span answer;
	struct iovec iov;
	bool busy;
};

struct vio_pmem {
	struct vio_dev dev;
	struct pmem_state s;
	struct pmem_config config;
	struct mv_ring *ring;
	int fd;
	bool read_only, other_file;
	unsigned n_inflight;
	struct mv_rate rate;
	struct mv_timer timer; // of the rate; made with the first limit
	bool waits;            // the timer runs
	struct request request[QUEUE_SIZE];
	struct vq_chain chain;
};

static struct vio_pmem *of(const struct vio_dev *d)
{
	return MV_CONTAINER((struct vio_dev *)(uintptr_t)d, struct vio_pmem, dev);
}

int vio_pmem_check(int fd, uint64_t *ret_bytes, struct mv_err *err)
{
	struct stat st;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return mv_fail(err, EINVAL, "not a regular file");
	if (!st.st_size || st.st_size % VIO_PMEM_ALIGN)
		return mv_fail(err, EINVAL,
			       "its size of %lld bytes is not a multiple of 2 MiB; truncate -s %%2M FILE "
			       "makes it one",
			       (long long)st.st_size);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

static void answer(struct vio_pmem *p, uint16_t head, struct vq_span *to, int result)
{
	le32_t ret = le32_make(result < 0 ? (uint32_t)-1 : 0);
	vq_push(&p->dev.s.queue[0], head, (uint32_t)vq_span_write(to, &ret, sizeof ret));
}

static void on_synced(struct mv_io *io, int result)
{
	struct request *r = MV_CONTAINER(io, struct request, io);
	struct vio_pmem *p = r->p;
	r->busy = false;
	if (p->n_inflight-- == QUEUE_SIZE)
		vio_again(&p->dev, 0);
	answer(p, r->head, &r->answer, result);
	vio_signal_queue(&p->dev, 0);
}

static struct request *free_request(struct vio_pmem *p)
{
	for (unsigned i = 0; i < QUEUE_SIZE; i++)
		if (!p->request[i].busy)
			return &p->request[i];
	return NULL;
}

// A flush; of a file that nobody writes there is nothing to wait for.
static void request(struct vio_pmem *p)
{
	le32_t type = { UINT32_MAX };
	vq_span_read(&p->chain.readable, &type, sizeof type);
	struct request *r = p->read_only || le32_get(type) != REQUEST_FLUSH ? NULL : free_request(p);
	if (!r || !p->chain.writable.n) {
		answer(p, p->chain.head, &p->chain.writable, le32_get(type) == REQUEST_FLUSH ? 0 : -1);
		return;
	}
	*r = (struct request){ .p = p, .head = p->chain.head, .iov = p->chain.writable.iov[0], .busy = true };
	r->answer = (struct vq_span){ .iov = &r->iov, .n = 1, .bytes = r->iov.iov_len };
	r->io = (struct mv_io){ .done = on_synced, .op = MV_IO_FDATASYNC, .fd = p->fd };
	p->n_inflight++;
	mv_ring_queue(p->ring, &r->io);
}

// A request was taken. Beyond the rate limit it goes back into the queue, and the timer looks again.
static bool throttle(struct vio_pmem *p)
{
	uint64_t wait_ns =
		mv_rate_limited(&p->rate) ? mv_rate_take(&p->rate, p->s.size_bytes, mv_now_ns()) : 0;
	if (!wait_ns)
		return false;
	vq_unpop(&p->dev.s.queue[0]);
	p->waits = true;
	mv_timer_arm(&p->timer, wait_ns);
	return true;
}

static void on_timer(void *arg)
{
	struct vio_pmem *p = arg;
	p->waits = false;
	vio_notify(&p->dev, 0);
}

static void pmem_kick(struct vio_dev *d, unsigned q)
{
	struct vio_pmem *p = of(d);
	unsigned left = POPS_PER_KICK;
	if (p->waits)
		return;
	do {
		for (; left && p->n_inflight < QUEUE_SIZE && vio_pop(d, q, &p->chain); left--) {
			if (left == POPS_PER_KICK && throttle(p))
				return;
			request(p);
		}
	} while (left && p->n_inflight < QUEUE_SIZE && vio_rearm(d, q));
	if (!left)
		vio_again(d, q);
	mv_ring_submit(p->ring);
	vio_signal_queue(d, q);
}

static void pmem_quiesce(struct vio_dev *d)
{
	struct vio_pmem *p = of(d);
	while (p->n_inflight)
		mv_ring_wait(p->ring);
}

static void pmem_reset(struct vio_dev *d)
{
	bool quiesced = d->quiesced;
	d->quiesced = true; // no new requests while the old ones finish
	pmem_quiesce(d);
	d->quiesced = quiesced;
}

static int pmem_check(const struct vio_dev *d, const void *loaded, struct mv_err *err)
{
	const struct vio_pmem *p = of(d);
	const struct pmem_state *s = loaded;
	if (s->size_bytes != p->s.size_bytes)
		return mv_fail(err, EINVAL, "the file has %llu bytes, that of the snapshot had %llu",
			       (unsigned long long)p->s.size_bytes, (unsigned long long)s->size_bytes);
	if (!p->read_only || p->other_file || (s->mtime_ns == p->s.mtime_ns && s->inode == p->s.inode))
		return 0;
	return mv_fail(err, EINVAL,
		       "the file was changed or replaced since the snapshot, whose guest knows the old one; "
		       "give the path of a file with the same content");
}

// Of this file from now on, which a copy under another path may be.
static void pmem_restored(struct vio_dev *d)
{
	struct vio_pmem *p = of(d);
	struct stat st;
	if (p->read_only && !fstat(p->fd, &st)) {
		p->s.mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
		p->s.inode = st.st_ino;
	}
}

static void pmem_free(struct vio_dev *d)
{
	struct vio_pmem *p = of(d);
	pmem_quiesce(d);
	mv_timer_fini(&p->timer);
	mv_close(&p->fd);
	vio_dev_fini(d);
	free(p);
}

static const struct vio_ops pmem_ops = {
	.device_id = 27,
	.config_bytes = sizeof(struct pmem_config),
	.n_queues = 1,
	.queue_size_max = QUEUE_SIZE,
	.state = &pmem_table,
	.state_offset = offsetof(struct vio_pmem, s),
	.kick = pmem_kick,
	.reset = pmem_reset,
	.quiesce = pmem_quiesce,
	.check_state = pmem_check,
	.restored = pmem_restored,
	.free = pmem_free,
};

// Two guests that write one file's pages would be one guest to its file system.
static int lock_file(int fd, bool writing, struct mv_err *err)
{
	struct flock lock = { .l_type = writing ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
	if (!fcntl(fd, F_OFD_SETLK, &lock))
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return mv_fail(err, EBUSY,
			       "another VM uses the file%s; give each VM its own copy, or make it read-only",
			       writing ? "" : " and writes to it");
	return mv_fail(err, errno, "cannot lock the file: %s", strerror(errno));
}

int vio_pmem_new(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring,
		 const struct vio_pmem_config *config, struct vio_dev **ret_dev, struct mv_err *err)
{
	char label[VIO_NAME_BYTES];
	struct stat st;
	snprintf(label, sizeof label, "pmem %s", config->name);
	MV_FD fd = config->fd;
	MV_FREE struct vio_pmem *p = calloc(1, sizeof *p);
	if (!p || fstat(fd, &st))
		return mv_fail(err, ENOMEM, "out of memory");
	int r = lock_file(fd, !config->read_only, err);
	r = r ? r : vio_dev_init(&p->dev, &pmem_ops, label, mem, loop, VIO_FEATURES, err);
	if (r)
		return r;
	p->ring = ring;
	p->read_only = config->read_only;
	p->other_file = config->other_file;
	p->s.size_bytes = config->size_bytes;
	p->config = (struct pmem_config){ le64_make(config->gpa), le64_make(config->size_bytes) };
	p->dev.config = &p->config;
	p->fd = MV_TAKE_FD(fd);
	pmem_restored(&p->dev);
	*ret_dev = &MV_TAKE(p)->dev;
	return 0;
}

int vio_pmem_set_rate(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err)
{
	struct vio_pmem *p = of(d);
	bool limited = rate->bandwidth.size || rate->ops.size;
	int r = limited && !p->timer.watch.loop ? mv_timer_init(d->loop, &p->timer, on_timer, p) : 0;
	if (r)
		return mv_fail(err, -r, "%s: no timer for its rate limit: %s", d->name, strerror(-r));
	mv_rate_set(&p->rate, rate, mv_now_ns());
	if (p->waits)
		mv_timer_arm(&p->timer, 0); // by the new limit
	return 0;
}
