// SPDX-License-Identifier: Apache-2.0
// virtio-balloon (virtio 1.2 section 5.5): inflate, deflate, statistics, free page reporting and hints.
//
// Theory of operation. Inflate: pages by number; reporting: pages by address, which the guest does not use
// before they come back. Both go to gmem_discard(), and hold zeros when they are touched again, so deflating
// is nothing but an answer. Which page is in the balloon is the guest's business: nothing here depends on it.
// A guest whose free pages must hold something else (poison_val) keeps what it reports. Of larger pages of
// the host only those go back of which all is given at once.
//
// Statistics are the other way round: the driver leaves a buffer, the device returns it when it wants new
// ones.
//
// Free page hints (section 5.5.6.5) come in rounds that the host begins, by a new command ID in configuration
// space: the driver says the ID, then gives free pages, then says STOP; with DONE in configuration space it
// has all of them back. But it may take a page back (Linux: when memory is short) without waiting for
// anything, so a page whose hint is seen late may be in use again. Linux makes a page available to itself
// only after the notification of its hint, and notifies of each. So these notifications are exits
// (vio_dev.by_exit): hints are looked at before the vCPU that notifies goes on. Two buffers at a time are not
// of such a driver, which ends the round: neither is believed.
//
// Behind the first two, older Linux numbers its queues without gaps, by the features it negotiated; the
// standard, and newer Linux, has fixed numbers. So hints come by the third queue when a driver without
// statistics has it, else by the fourth, and reports by any other.
#include <errno.h>
#include <string.h>

#include "devices/devices.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define F_STATS_VQ (1ULL << 1)
#define F_DEFLATE_ON_OOM (1ULL << 2)
#define F_HINT (1ULL << 3)
#define F_PAGE_POISON (1ULL << 4)
#define F_REPORTING (1ULL << 5)

// Of a turn of the loop. A longer list of pages is handled up to PAGES_PER_REQUEST; what follows stays.
enum { QUEUE_SIZE = 128, POPS_PER_KICK = 8, PAGES_PER_REQUEST = 4096, PAGES_AT_ONCE = 512 };
enum { STATS_PER_REQUEST = 64 };
enum { CMD_STOP, CMD_DONE, CMD_FIRST }; // section 5.5.6.5; from the last on they are IDs of rounds

struct balloon_config { // section 5.5.4
	le32_t num_pages, actual, free_page_hint_cmd_id, poison_val;
};

struct balloon_state {
	uint32_t target_pages, actual_pages, poison;
	bool has_buffer; // for statistics: held until new ones are wanted
	uint16_t buffer;
	uint32_t round; // command ID of the last round of hints; 0: there was none
	bool hinting;   // it goes on
};

static const struct mv_field state_fields[] = {
	MV_INT(struct balloon_state, target_pages, 1, MV_U32, 0, UINT32_MAX),
	MV_INT(struct balloon_state, actual_pages, 2, MV_U32, 0, UINT32_MAX),
	MV_INT(struct balloon_state, poison, 3, MV_U32, 0, UINT32_MAX),
	MV_FLAG(struct balloon_state, has_buffer, 4),
	MV_INT(struct balloon_state, buffer, 5, MV_U16, 0, QUEUE_SIZE - 1),
	MV_OPT_INT(struct balloon_state, round, MV_TAG_SKIP + 6, MV_U32, 0, UINT32_MAX),
	MV_OPT_FLAG(struct balloon_state, hinting, MV_TAG_SKIP + 7),
};
static MV_DEFINE_TABLE(balloon_table, struct balloon_state, state_fields);

struct vio_balloon {
	struct vio_dev dev;
	struct balloon_state s;
	struct balloon_config config; // of s, as the guest reads it
	uint32_t interval_s;
	struct mv_timer timer; // wants new statistics; made with the first interval
	bool has_timer, armed, asked;
	uint64_t freed_pages, stat[VIO_BALLOON_N_STATS];
	void (*on_stats)(void *arg);
	void *on_stats_arg;
	struct {
		bool taken; // the driver has said the ID of the round that goes on
		bool has_timer;
		struct mv_timer timer; // ends it; made with the first one
		uint32_t wait_ms;
		uint64_t pages; // given back by it, or by the last one
		vio_balloon_hinted_fn *done;
		void *arg;
	} hint;
	struct vq_chain chain;
};

static struct vio_balloon *of(const struct vio_dev *d)
{
	return MV_CONTAINER((struct vio_dev *)(uintptr_t)d, struct vio_balloon, dev);
}

static void show_config(struct vio_balloon *b)
{
	b->config.num_pages = le32_make(b->s.target_pages);
	b->config.actual = le32_make(b->s.actual_pages);
	b->config.poison_val = le32_make(b->s.poison);
	b->config.free_page_hint_cmd_id = le32_make(b->s.hinting ? b->s.round
						    : b->s.round ? CMD_DONE
								 : CMD_STOP);
}

// --- pages ---
static void discard(struct vio_balloon *b, void *p, size_t len)
{
	uint64_t before = b->dev.mem->discarded_bytes;
	int r = p ? gmem_discard(b->dev.mem, p, len) : -EFAULT;
	b->freed_pages += (b->dev.mem->discarded_bytes - before) / GMEM_PAGE_BYTES;
	if (r)
		mv_log_limited(MV_WARN, "%s: %zu KiB stay with the guest: %s", b->dev.name, len / 1024,
			       r == -ENOSPC ? "its memory is in too many pieces" : strerror(-r));
}

static int by_number(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

// Neighbours go together: a call for each page would cost more than the pages.
static void discard_numbers(struct vio_balloon *b, uint32_t *page, unsigned n)
{
	qsort(page, n, sizeof *page, by_number);
	for (unsigned i = 0, k; i < n; i = k) {
		for (k = i + 1; k < n && page[k] - page[k - 1] <= 1; k++)
			;
		size_t len = ((size_t)page[k - 1] - page[i] + 1) * GMEM_PAGE_BYTES;
		discard(b, gmem_ptr(b->dev.mem, gpa((uint64_t)page[i] * GMEM_PAGE_BYTES), len), len);
	}
}

static void inflate(struct vio_balloon *b)
{
	struct vq_span *in = &b->chain.readable;
	for (unsigned left = PAGES_PER_REQUEST, n; left; left -= n) {
		uint32_t page[PAGES_AT_ONCE];
		le32_t raw[PAGES_AT_ONCE];
		n = (unsigned)(vq_span_read(in, raw, sizeof raw) / sizeof *raw);
		if (!n)
			return;
		for (unsigned i = 0; i < n; i++)
			page[i] = le32_get(raw[i]);
		discard_numbers(b, page, n);
	}
}

static void report(struct vio_balloon *b)
{
	const struct vq_span *out = &b->chain.writable;
	if ((b->dev.s.features_acked & F_PAGE_POISON) && b->s.poison)
		return;
	for (unsigned i = 0; i < out->n; i++)
		discard(b, out->iov[i].iov_base, out->iov[i].iov_len);
}

// --- hints ---
static const struct mv_err batch = { .code = EPROTO,
				     .msg = "the guest's driver gives several pages at once, which may be in "
					    "use again" };

// err NULL: the driver has given all.
static void end_round(struct vio_balloon *b, const struct mv_err *err)
{
	vio_balloon_hinted_fn *done = b->hint.done;
	if (!b->s.hinting)
		return;
	b->s.hinting = b->hint.taken = false;
	b->hint.done = NULL;
	if (b->hint.has_timer)
		mv_timer_disarm(&b->hint.timer);
	show_config(b);
	if (b->dev.s.status & VIO_DRIVER_OK)
		vio_signal_config(&b->dev);
	if (done)
		done(b->hint.arg, err);
}

static void on_round_late(void *arg)
{
	struct vio_balloon *b = arg;
	struct mv_err err;
	mv_fail(&err, ETIMEDOUT, "the guest has not given all its free pages within %u ms", b->hint.wait_ms);
	end_round(b, &err);
}

// One buffer: a command to read, or free pages to write.
static void hint(struct vio_balloon *b, bool alone)
{
	struct vq_span *in = &b->chain.readable;
	uint64_t before = b->freed_pages;
	le32_t raw;
	if (!alone)
		end_round(b, &batch);
	if (!b->s.hinting)
		return;
	if (in->bytes) {
		uint32_t id = vq_span_read(in, &raw, sizeof raw) == sizeof raw ? le32_get(raw) : CMD_DONE;
		if (id == CMD_STOP && b->hint.taken) // else of a round that ended before
			end_round(b, NULL);
		else
			b->hint.taken = id == b->s.round;
		return;
	}
	if (!b->hint.taken)
		return;
	report(b);
	b->hint.pages += b->freed_pages - before;
}

// --- statistics ---
static void arm(struct vio_balloon *b)
{
	if (!b->has_timer || !b->interval_s || !b->s.has_buffer || b->armed)
		return;
	b->armed = true;
	mv_timer_arm(&b->timer, b->interval_s * 1000000000ull);
}

// The queue of statistics, if the driver has it.
static bool has_stats(const struct vio_dev *d) { return d->s.features_acked & F_STATS_VQ; }

static void on_timer(void *arg)
{
	struct vio_balloon *b = arg;
	b->armed = false;
	if (!b->s.has_buffer || !has_stats(&b->dev) || !vio_live(&b->dev, 2))
		return; // armed again by the next kick
	b->s.has_buffer = false;
	b->asked = true;
	vq_push(&b->dev.s.queue[2], b->s.buffer, 0);
	vio_signal_queue(&b->dev, 2);
}

static void take_stats(struct vio_balloon *b)
{
	struct {
		le16_t tag;
		le64_t value;
	} __attribute__((packed)) one;
	memset(b->stat, 0xff, sizeof b->stat);
	for (unsigned i = 0; i < STATS_PER_REQUEST; i++) {
		if (vq_span_read(&b->chain.readable, &one, sizeof one) != sizeof one)
			return;
		if (le16_get(one.tag) < VIO_BALLOON_N_STATS)
			b->stat[le16_get(one.tag)] = le64_get(one.value);
	}
}

static void stats(struct vio_balloon *b)
{
	struct vio_dev *d = &b->dev;
	if (b->s.has_buffer) // a driver has one; who gives two gets the older one back
		vq_push(&d->s.queue[2], b->s.buffer, 0);
	b->s.has_buffer = true;
	b->s.buffer = b->chain.head;
	take_stats(b);
	if (b->asked && b->on_stats)
		b->on_stats(b->on_stats_arg);
	b->asked = false;
}

// --- the device ---
enum { INFLATE, DEFLATE, STATS, REPORT, HINT };

static unsigned role_of(const struct vio_dev *d, unsigned q)
{
	unsigned hints = !has_stats(d) && d->s.queue[2].ready ? 2 : 3;
	if (q == 2 && has_stats(d))
		return STATS;
	return q < 2 ? q : q == hints && (d->s.features_acked & F_HINT) ? HINT : REPORT;
}

static void balloon_kick(struct vio_dev *d, unsigned q)
{
	struct vio_balloon *b = of(d);
	unsigned left = POPS_PER_KICK, role = role_of(d, q);
	if (role == REPORT && !(d->s.features_acked & F_REPORTING))
		return; // no such queue
	do {
		for (; left && vio_pop(d, q, &b->chain); left--) {
			if (role == STATS) {
				stats(b);
				continue;
			}
			if (role == INFLATE)
				inflate(b);
			else if (role == REPORT)
				report(b);
			else if (role == HINT)
				hint(b, !vio_rearm(d, q));
			vq_push(&d->s.queue[q], b->chain.head, 0);
		}
	} while (left && vio_rearm(d, q));
	if (!left && role == HINT)
		end_round(b, &batch); // what follows would be seen late
	if (!left)
		vio_again(d, q);
	vio_signal_queue(d, q);
	arm(b);
}

static void balloon_write_config(struct vio_dev *d, uint32_t offset, const void *data, uint32_t len)
{
	struct vio_balloon *b = of(d);
	le32_t v;
	if (len != sizeof v)
		return;
	memcpy(&v, data, sizeof v);
	if (offset == offsetof(struct balloon_config, actual))
		b->s.actual_pages = le32_get(v);
	else if (offset == offsetof(struct balloon_config, poison_val) &&
		 (d->s.features_acked & F_PAGE_POISON))
		b->s.poison = le32_get(v);
	show_config(b);
}

// The target is the host's, and stays.
static void balloon_reset(struct vio_dev *d)
{
	struct vio_balloon *b = of(d);
	static const struct mv_err gone = { .code = ECANCELED, .msg = "the guest has reset its balloon" };
	end_round(b, &gone);
	// No ID comes twice.
	b->s = (struct balloon_state){ .target_pages = b->s.target_pages, .round = b->s.round };
	b->asked = false;
	memset(b->stat, 0xff, sizeof b->stat);
	show_config(b);
}

static int balloon_check(const struct vio_dev *d, const void *loaded, struct mv_err *err)
{
	const struct balloon_state *s = loaded;
	if (s->target_pages > d->mem->total_bytes / GMEM_PAGE_BYTES)
		return mv_fail(err, EINVAL, "a target of %u pages is more than the memory", s->target_pages);
	if (s->hinting && s->round < CMD_FIRST)
		return mv_fail(err, EINVAL, "a round of hints with the ID %u", s->round);
	return 0;
}

// Nobody waits here for a round that was under way.
static void balloon_restored(struct vio_dev *d)
{
	struct vio_balloon *b = of(d);
	end_round(b, NULL);
	show_config(b);
}

static void balloon_free(struct vio_dev *d)
{
	struct vio_balloon *b = of(d);
	if (b->has_timer)
		mv_timer_fini(&b->timer);
	if (b->hint.has_timer)
		mv_timer_fini(&b->hint.timer);
	vio_dev_fini(d);
	free(b);
}

static const struct vio_ops balloon_ops = {
	.device_id = 5,
	.config_bytes = sizeof(struct balloon_config),
	.n_queues = 5,
	.queue_size_max = QUEUE_SIZE,
	.state = &balloon_table,
	.state_offset = offsetof(struct vio_balloon, s),
	.kick = balloon_kick,
	.write_config = balloon_write_config,
	.reset = balloon_reset,
	.check_state = balloon_check,
	.restored = balloon_restored,
	.free = balloon_free,
};

int vio_balloon_set_target(struct vio_dev *d, uint32_t pages, struct mv_err *err)
{
	struct vio_balloon *b = of(d);
	if (pages > d->mem->total_bytes / GMEM_PAGE_BYTES)
		return mv_fail(err, EINVAL, "a balloon of %u MiB is more than the memory", pages / 256);
	b->s.target_pages = pages;
	show_config(b);
	if (d->s.status & VIO_DRIVER_OK)
		vio_signal_config(d);
	return 0;
}

int vio_balloon_set_interval(struct vio_dev *d, uint32_t seconds, struct mv_err *err)
{
	struct vio_balloon *b = of(d);
	int r = seconds && !b->has_timer ? mv_timer_init(d->loop, &b->timer, on_timer, b) : 0;
	if (r)
		return mv_fail(err, -r, "no timer for the statistics: %s", strerror(-r));
	b->has_timer |= seconds > 0;
	if (b->has_timer)
		mv_timer_disarm(&b->timer);
	b->armed = false;
	b->interval_s = seconds;
	arm(b);
	return 0;
}

int vio_balloon_hint(struct vio_dev *d, uint32_t wait_ms, vio_balloon_hinted_fn *done, void *arg,
		     struct mv_err *err)
{
	struct vio_balloon *b = of(d);
	if (!(d->features_offered & F_HINT))
		return mv_fail(err, ENOTSUP, "its balloon has no free_page_hinting");
	if (!(d->s.status & VIO_DRIVER_OK) || !(d->s.features_acked & F_HINT))
		return mv_fail(err, ENOTSUP, "the guest has no driver for free page hints, or not yet");
	if (b->s.hinting)
		return mv_fail(err, EBUSY, "a round of free page hints is under way");
	int r = b->hint.has_timer ? 0 : mv_timer_init(d->loop, &b->hint.timer, on_round_late, b);
	if (r)
		return mv_fail(err, -r, "no timer for free page hints: %s", strerror(-r));
	b->hint.has_timer = true;
	b->hint.wait_ms = wait_ms;
	b->hint.pages = 0;
	b->hint.done = done;
	b->hint.arg = arg;
	b->s.hinting = true;
	b->s.round = b->s.round < CMD_FIRST || b->s.round == UINT32_MAX ? CMD_FIRST : b->s.round + 1;
	mv_timer_arm(&b->hint.timer, wait_ms * 1000000ull);
	show_config(b);
	vio_signal_config(d);
	return 0;
}

void vio_balloon_stop_hint(struct vio_dev *d)
{
	struct mv_err err;
	mv_fail(&err, ECANCELED, "the round of free page hints was stopped");
	end_round(of(d), &err);
}

void vio_balloon_info(const struct vio_dev *d, struct vio_balloon_info *ret_info)
{
	const struct vio_balloon *b = of(d);
	*ret_info = (struct vio_balloon_info){ .target_pages = b->s.target_pages,
					       .actual_pages = b->s.actual_pages,
					       .stats_interval_s = b->interval_s,
					       .freed_pages = b->freed_pages,
					       .hinted_pages = b->hint.pages };
	memcpy(ret_info->stat, b->stat, sizeof b->stat);
}

void vio_balloon_on_stats(struct vio_dev *d, void (*fn)(void *arg), void *arg)
{
	of(d)->on_stats = fn;
	of(d)->on_stats_arg = arg;
}

int vio_balloon_new(struct gmem *mem, struct mv_loop *loop, const struct vio_balloon_config *config,
		    struct vio_dev **ret_dev, struct mv_err *err)
{
	MV_FREE struct vio_balloon *b = calloc(1, sizeof *b);
	if (!b)
		return mv_fail(err, ENOMEM, "out of memory");
	uint64_t features = VIO_FEATURES | F_STATS_VQ | (config->deflate_on_oom ? F_DEFLATE_ON_OOM : 0) |
			    (config->hinting ? F_HINT : 0) |
			    (config->reporting ? F_REPORTING | F_PAGE_POISON : 0);
	int r = vio_dev_init(&b->dev, &balloon_ops, "balloon", mem, loop, features, err);
	if (r)
		return r;
	b->dev.config = &b->config;
	b->dev.by_exit = config->hinting ? 1 << 2 | 1 << 3 : 0;
	memset(b->stat, 0xff, sizeof b->stat);
	struct vio_dev *d = &MV_TAKE(b)->dev;
	r = vio_balloon_set_target(d, config->target_pages, err);
	r = r ? r : vio_balloon_set_interval(d, config->stats_interval_s, err);
	if (r)
		balloon_free(d);
	else
		*ret_dev = d;
	return r;
}
