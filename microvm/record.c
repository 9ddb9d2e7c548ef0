// SPDX-License-Identifier: Apache-2.0
#include "microvm/record.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "microvm/lazy.h"
#include "snapshot/touched.h"
#include "snapshot/working_set.h"

void record_prepare(struct record *r, int fd, const struct gmem *m, bool watched, int device_fd)
{
	r->fd = fd;
	int result = fd < 0 || watched ? 0 : lazy_exact(m, device_fd, &r->uffd_fd);
	if (result)
		mv_log(MV_INFO, "record: pages beside those that are read count too: %s", strerror(-result));
}

void record_start(struct record *r, struct mv_loop *loop, void (*on_limit)(void *arg), void *arg)
{
	if (r->fd < 0 || r->started)
		return;
	r->started = true;
	int result = mv_timer_init(loop, &r->timer, on_limit, arg);
	if (!result)
		mv_timer_arm(&r->timer, r->limit_ms * 1000000ull);
	else // only ready ends it
		mv_log(MV_WARN, "record: no timer: %s", strerror(-result));
}

static int add(void *arg, const struct gmem_region *r, const uint8_t *from, const uint8_t *to, bool written)
{
	struct working_set *w = arg;
	uint64_t at = r->file_offset + (uint64_t)(from - r->hva);
	return ws_add(w, at / WS_PAGE_BYTES, (uint64_t)(to - from) / WS_PAGE_BYTES, written);
}

static int take(int fd, const struct gmem *m, struct mv_err *err)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	struct working_set w = { .memory_bytes = m->total_bytes,
				 .recorded_unix_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec };
	int r = snap_touched_walk(SNAP_MEMORY_AUTO, m, add, &w);
	if (r == -E2BIG)
		mv_fail(err, E2BIG, "the guest touched its memory in more than %u places", WS_MAX_EXTENTS);
	else if (r)
		mv_fail(err, -r, "cannot read the page tables: %s", strerror(-r));
	else
		r = ws_write(fd, &w, err);
	ws_fini(&w);
	return r;
}

bool record_take(struct record *r, const struct gmem *m, struct msg_recorded *ret_done)
{
	struct mv_err err = { 0 };
	if (r->fd < 0)
		return false;
	*ret_done = (struct msg_recorded){ .code = (uint32_t)-take(r->fd, m, &err) };
	memcpy(ret_done->text, err.msg, sizeof err.msg);
	record_fini(r);
	return true;
}

void record_fini(struct record *r)
{
	mv_timer_fini(&r->timer);
	mv_close(&r->fd);
	mv_close(&r->uffd_fd); // neighbours are mapped again
}
