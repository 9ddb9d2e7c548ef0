// SPDX-License-Identifier: Apache-2.0
#include "snapshot/pager_helper.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include "microvm/base/util.h"
#include "snapshot/pages.h"

enum { PAGE = SNAP_PAGE_BYTES, CHUNK_PAGES = CHUNK_BYTES / PAGE };

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum { NONE, FREE, OUT, BACK } state; // NONE: there is no thread
	struct helper_job job;
	int event_fd;
	uint8_t scratch[CHAIN_SCRATCH_BYTES], chunk[CHUNK_BYTES];
} h = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

void helper_run(struct helper_job *j, uint8_t *scratch, uint8_t *to)
{
	uint32_t n = chain_len(j->chain, j->chunk) / PAGE, from, end;
	int r = chain_read(j->chain, j->chunk, scratch, to);
	j->error = -r;
	j->result = r ? -EBADMSG : 0;
	for (from = 0; !j->result && from < n; from = end + 1) {
		for (end = from; end < n && j->pages >> end & 1; end++)
			;
		if (end > from)
			r = mv_pwrite_full(j->memfd, to + from * PAGE, (end - from) * PAGE,
					   j->chunk * CHUNK_BYTES + from * PAGE);
		j->error = -r;
		j->result = r ? -EAGAIN : 0;
	}
}

static void *helper_main(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&h.lock);
	h.state = FREE;
	pthread_cond_broadcast(&h.changed);
	for (;;) {
		while (h.state != OUT)
			pthread_cond_wait(&h.changed, &h.lock);
		pthread_mutex_unlock(&h.lock);
		helper_run(&h.job, h.scratch, h.chunk);
		pthread_mutex_lock(&h.lock);
		h.state = BACK;
		pthread_cond_broadcast(&h.changed);
		eventfd_write(h.event_fd, 1);
	}
	return NULL;
}

int helper_start(int event_fd)
{
	cpu_set_t set;
	pthread_t thread;
	if (!sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) < 2)
		return -ENOTSUP;
	h.event_fd = event_fd;
	int r = pthread_create(&thread, NULL, helper_main, NULL);
	pthread_mutex_lock(&h.lock);
	while (!r && h.state == NONE)
		pthread_cond_wait(&h.changed, &h.lock);
	pthread_mutex_unlock(&h.lock);
	return -r;
}

bool helper_free(void)
{
	pthread_mutex_lock(&h.lock);
	bool is_free = h.state == FREE;
	pthread_mutex_unlock(&h.lock);
	return is_free;
}

void helper_give(const struct helper_job *job)
{
	pthread_mutex_lock(&h.lock);
	h.job = *job;
	h.state = OUT;
	pthread_cond_broadcast(&h.changed);
	pthread_mutex_unlock(&h.lock);
}

static bool take(struct helper_job *ret_job, bool wait)
{
	pthread_mutex_lock(&h.lock);
	while (wait && h.state == OUT)
		pthread_cond_wait(&h.changed, &h.lock);
	bool is_back = h.state == BACK;
	if (is_back) {
		eventfd_t ignored;
		eventfd_read(h.event_fd, &ignored);
		*ret_job = h.job;
		h.state = FREE;
	}
	pthread_mutex_unlock(&h.lock);
	return is_back;
}

bool helper_take(struct helper_job *ret_job) { return take(ret_job, false); }

bool helper_wait(struct helper_job *ret_job) { return take(ret_job, true); }
