// SPDX-License-Identifier: Apache-2.0
// Theory of operation. One epoll set: the daemon's socket and the clones' userfaultfds.
// Faults go first; when there were none for IDLE_MS, templates are filled in the background, a
// chunk at a time. Nothing is allocated but for new templates and clones.
//
// What a clone sends is hostile (its process may be taken over): addresses outside the
// ranges it registered are ignored, its userfaultfd is only read without waiting, and what is
// done to it can hurt none but itself.
#include "snapshot/pager.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "snapshot/chain.h"
#include "snapshot/uffd.h"

enum {
	PAGE = 4096,
	IDLE_MS = 5,
	EVENTS = 64,     // of epoll at a time
	MESSAGES = 16,   // of one clone at a time, so that none keeps the others waiting
	AHEAD = 2,       // chunks filled behind one that was touched in sequence
	ZERO_TRIES = 64, // steps over the pages of one chunk
};

struct template
{
	LIST_ENTRY(template) link;
	uint64_t id;
	struct chain chain; // n_chunks 0: unusable, every fault finds it corrupt
	int *file_fd, memfd;
	unsigned n_files;
	struct pager_status *status;
	size_t status_bytes;
	uint8_t *filled, *bad; // bit maps; filled is in the status memfd
	uint64_t sweep;        // of the background
	uint64_t last;         // chunk that was needed
	bool fill, told;
};

struct clone {
	LIST_ENTRY(clone) link;
	uint64_t id;
	struct template *template;
	struct msg_lazy lazy;
	int uffd;
};

static struct pager {
	int socket, epoll_fd;
	LIST_HEAD(, template) templates;
	LIST_HEAD(, clone) clones;
	uint64_t last_fault_ns;
	uint64_t files_id; // of the template whose files these are
	int *file_fd;
	unsigned n_files;
	uint8_t scratch[CHAIN_SCRATCH_BYTES], chunk[CHUNK_BYTES], message[MSG_MAX_BYTES];
} p;

static bool bit(const uint8_t *map, uint64_t i) { return map[i / 8] & 1u << i % 8; }
static void set_bit(uint8_t *map, uint64_t i) { map[i / 8] |= (uint8_t)(1u << i % 8); }

static void tell(uint16_t type, uint64_t id, const struct mv_table *table, const void *body)
{
	int r = msg_send(p.socket, type, id, table, body, NULL, 0);
	if (r)
		mv_log_limited(MV_ERROR, "can't tell the daemon: %s", strerror(-r));
}

// --- filling ---

static void check_complete(struct template *t)
{
	if (t->told || !t->chain.n_chunks || t->status->filled < t->chain.n_stored)
		return;
	t->told = true;
	tell(PAGER_COMPLETE, t->id, NULL, NULL);
}

// 0: the chunk is in the memfd. -EBADMSG: it is damaged or can't be read. -EAGAIN: no
// memory for it now.
static int fill(struct template *t, uint64_t i, bool background)
{
	if (bit(t->filled, i))
		return 0;
	int r = bit(t->bad, i) ? -EBADMSG : chain_read(&t->chain, i, p.scratch, p.chunk);
	if (r) {
		if (!bit(t->bad, i)) {
			set_bit(t->bad, i);
			t->status->bad++;
			tell(PAGER_DAMAGED, t->id, NULL, NULL);
			mv_log(MV_ERROR, "template %llu: chunk %llu is damaged (%s)",
			       (unsigned long long)t->id, (unsigned long long)i, strerror(-r));
		}
		return -EBADMSG;
	}
	r = mv_pwrite_full(t->memfd, p.chunk, chain_len(&t->chain, i), i * CHUNK_BYTES);
	if (r) {
		mv_log_limited(MV_ERROR, "can't fill memory: %s", strerror(-r));
		return -EAGAIN;
	}
	set_bit(t->filled, i);
	t->status->fills++;
	t->status->background_fills += background;
	t->status->filled++;
	return 0;
}

// --- answering ---

// Pages that are there already stay as they are: the clone may have written them.
static void map_zeros(int uffd, uint64_t start, uint64_t end)
{
	for (int i = 0; i < ZERO_TRIES && start < end; i++) {
		struct uffdio_zeropage z = { .range = { start, end - start } };
		if (!ioctl(uffd, UFFDIO_ZEROPAGE, &z))
			return;
		if (errno == EEXIST)
			start += PAGE;
		else if (errno == EAGAIN && z.zeropage > 0)
			start += (uint64_t)z.zeropage;
		else if (errno != EAGAIN)
			return;
	}
}

static const struct msg_lazy_region *region_of(const struct msg_lazy *l, uint64_t address)
{
	for (uint32_t i = 0; i < l->n_regions; i++)
		if (address >= l->region[i].hva && address - l->region[i].hva < l->region[i].size_bytes)
			return &l->region[i];
	return NULL;
}

static void on_fault(struct clone *c, uint64_t address)
{
	struct template *t = c->template;
	const struct msg_lazy_region *r = region_of(&c->lazy, address);
	if (!r)
		return;
	t->status->faults++;
	uint64_t i = (address - r->hva + r->file_offset) / CHUNK_BYTES;
	// The part of the chunk that lies in this region.
	uint64_t from = i * CHUNK_BYTES, to = from + CHUNK_BYTES, region_end = r->file_offset + r->size_bytes;
	from = r->hva + (from > r->file_offset ? from - r->file_offset : 0);
	to = r->hva + (to < region_end ? to : region_end) - r->file_offset;

	int result = i < t->chain.n_chunks ? 0 : -EBADMSG;
	if (!result && chain_is_zero(&t->chain, i)) {
		t->status->zero_faults++;
		map_zeros(c->uffd, from, to);
	} else if (!result) {
		result = fill(t, i, false);
	}
	if (result == -EBADMSG) { // the thread stays where it is
		struct pager_corrupt body = { i };
		tell(PAGER_CORRUPT, c->id, &pager_corrupt_table, &body);
		return;
	}
	if (result) // the fault comes again
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	uffd_wake(c->uffd, from, to - from);
	// While the thread goes on: what it will want next if it goes in sequence.
	bool sequence = i > t->last && i - t->last <= AHEAD + 1;
	t->last = i;
	for (uint64_t k = i + 1; sequence && k <= i + AHEAD && k < t->chain.n_chunks; k++)
		if (chain_is_zero(&t->chain, k) || fill(t, k, true))
			break;
	check_complete(t);
}

static void serve(struct clone *c, uint32_t events)
{
	struct uffd_msg m[MESSAGES];
	if (events & EPOLLERR) { // made blocking: not by us
		epoll_ctl(p.epoll_fd, EPOLL_CTL_DEL, c->uffd, NULL);
		return;
	}
	ssize_t n = uffd_read(c->uffd, m, sizeof m);
	for (ssize_t k = 0; k < n / (ssize_t)sizeof *m; k++)
		if (m[k].event == UFFD_EVENT_PAGEFAULT)
			on_fault(c, m[k].arg.pagefault.address);
}

// --- templates and clones ---

static struct template *template_find(uint64_t id)
{
	struct template *t;
	LIST_FOREACH (t, &p.templates, link)
		if (t->id == id)
			return t;
	return NULL;
}

static void close_files(int **fd, unsigned *n)
{
	while (*n)
		mv_close(&(*fd)[--*n]);
	free(*fd);
	*fd = NULL;
}

// They come before the template, in as many messages as it takes.
static int on_files(struct msg *m, struct mv_err *err)
{
	if (p.files_id != m->id)
		close_files(&p.file_fd, &p.n_files);
	p.files_id = m->id;
	int *fd = p.n_files + m->n_fds > CHAIN_MAX
			  ? NULL
			  : realloc(p.file_fd, (p.n_files + m->n_fds + 1) * sizeof *fd);
	if (!fd)
		return mv_fail(err, ENOMEM, "no room for the template's files");
	p.file_fd = fd;
	for (unsigned i = 0; i < m->n_fds; i++)
		fd[p.n_files++] = MV_TAKE_FD(m->fds[i]);
	return 0;
}

static void template_free(struct template *t)
{
	if (t->status)
		munmap(t->status, t->status_bytes);
	chain_fini(&t->chain);
	close_files(&t->file_fd, &t->n_files);
	mv_close(&t->memfd);
	free(t->bad);
	free(t);
}

static void recount(struct template *t)
{
	uint64_t filled = 0, i;
	for (i = 0; i < t->chain.n_chunks; i++)
		filled += !chain_is_zero(&t->chain, i) && bit(t->filled, i);
	t->status->filled = filled;
	t->status->stored = t->chain.n_stored;
}

static int template_load(struct template *t, const struct pager_template *body, int status_fd,
			 struct mv_err *err)
{
	uint64_t n = (body->memory_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
	struct stat st;
	t->status_bytes = pager_status_bytes(n);
	if (fstat(status_fd, &st) || (uint64_t)st.st_size != t->status_bytes)
		return mv_fail(err, EINVAL, "status memory of the wrong size");
	void *map = mmap(NULL, t->status_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, status_fd, 0);
	if (map == MAP_FAILED)
		return mv_fail(err, errno, "status memory: %s", strerror(errno));
	t->status = map;
	t->filled = (uint8_t *)map + PAGER_STATUS_HEAD;
	t->bad = calloc(1, (n + 7) / 8);
	if (!t->bad)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = chain_open(t->file_fd, t->n_files, body->raw_base, body->memory_bytes, &t->chain, err);
	if (r == -EINVAL) {
		mv_log(MV_ERROR, "template %llu: %s", (unsigned long long)t->id, err->msg);
		return 0;
	}
	if (!r)
		recount(t);
	return r;
}

static int on_template(struct msg *m, struct mv_err *err)
{
	struct pager_template body;
	int r = mv_state_load(&pager_template_table, m->body, m->body_len, &body, err);
	if (r || m->n_fds != 2 || p.files_id != m->id)
		return mv_fail(err, EPROTO, "malformed template");
	struct template *t = calloc(1, sizeof *t);
	if (!t)
		return mv_fail(err, ENOMEM, "out of memory");
	t->id = m->id;
	t->fill = body.fill;
	t->file_fd = MV_TAKE(p.file_fd);
	t->n_files = MV_TAKE_AS(p.n_files, 0);
	t->memfd = MV_TAKE_FD(m->fds[0]);
	r = template_load(t, &body, m->fds[1], err);
	if (r) {
		template_free(t);
		return r;
	}
	LIST_INSERT_HEAD(&p.templates, t, link);
	check_complete(t);
	return 0;
}

static int on_clone(struct msg *m, struct mv_err *err)
{
	struct pager_clone body;
	int r = mv_state_load(&pager_clone_table, m->body, m->body_len, &body, err);
	struct template *t = r ? NULL : template_find(body.template_id);
	struct clone *c = t && m->n_fds == 1 ? calloc(1, sizeof *c) : NULL;
	if (!c)
		return mv_fail(err, EPROTO, "malformed clone");
	*c = (struct clone){ .id = m->id, .template = t, .lazy = body.lazy };
	c->uffd = MV_TAKE_FD(m->fds[0]);
	fcntl(c->uffd, F_SETFL, O_NONBLOCK);
	LIST_INSERT_HEAD(&p.clones, c, link);
	struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
	if (epoll_ctl(p.epoll_fd, EPOLL_CTL_ADD, c->uffd, &e))
		return mv_fail(err, errno, "epoll: %s", strerror(errno));
	// Faults whose messages another pager had read come again.
	for (uint32_t i = 0; i < c->lazy.n_regions; i++)
		uffd_wake(c->uffd, c->lazy.region[i].hva, c->lazy.region[i].size_bytes);
	return 0;
}

static void end_clone(uint64_t id)
{
	struct clone *c;
	LIST_FOREACH (c, &p.clones, link)
		if (c->id == id)
			break;
	if (!c)
		return;
	LIST_REMOVE(c, link);
	epoll_ctl(p.epoll_fd, EPOLL_CTL_DEL, c->uffd, NULL); // others hold the open file
	mv_close(&c->uffd);
	free(c);
}

static void end_template(uint64_t id)
{
	struct clone *c;
	struct template *t = template_find(id);
	LIST_FOREACH (c, &p.clones, link)
		if (c->template == t)
			return;
	if (!t)
		return;
	LIST_REMOVE(t, link);
	template_free(t);
}

static void start_fill(uint64_t id)
{
	struct template *t = template_find(id);
	if (t)
		t->fill = true;
}

// One message of the daemon; 0, -EAGAIN, -EPIPE: it is gone.
static int on_message(void)
{
	struct msg m;
	struct mv_err err = { 0 };
	int r = msg_recv(p.socket, p.message, &m);
	if (r)
		return r;
	switch (m.type) {
	case PAGER_TEMPLATE: r = on_template(&m, &err); break;
	case PAGER_CLONE: r = on_clone(&m, &err); break;
	case PAGER_END_CLONE: end_clone(m.id); break;
	case PAGER_END_TEMPLATE: end_template(m.id); break;
	case PAGER_FILL: start_fill(m.id); break;
	case PAGER_FILES: r = on_files(&m, &err); break;
	default: r = mv_fail(&err, EPROTO, "unknown message %u", m.type);
	}
	msg_close_fds(&m);
	if (r)
		mv_log(MV_ERROR, "%s", err.msg); // and end: the daemon starts another with all it has
	return r;
}

// --- the loop ---

// The next chunk that the background has to fill, over all templates in turn.
static bool next_chunk(struct template **ret_template, uint64_t *ret_chunk)
{
	struct template *t;
	LIST_FOREACH (t, &p.templates, link)
		for (; t->fill && t->sweep < t->chain.n_chunks; t->sweep++)
			if (!chain_is_zero(&t->chain, t->sweep) && !bit(t->filled, t->sweep) &&
			    !bit(t->bad, t->sweep)) {
				*ret_template = t;
				*ret_chunk = t->sweep;
				return true;
			}
	return false;
}

static int timeout_ms(bool work)
{
	if (!work)
		return -1;
	return mv_now_ns() - p.last_fault_ns < IDLE_MS * 1000000ull ? IDLE_MS : 0;
}

int pager_run(int socket_fd)
{
	struct epoll_event e[EVENTS] = { { .events = EPOLLIN } };
	struct template *t = NULL;
	uint64_t chunk = 0;

	p.socket = socket_fd;
	p.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (p.epoll_fd < 0 || epoll_ctl(p.epoll_fd, EPOLL_CTL_ADD, socket_fd, e))
		return -errno;
	for (;;) {
		bool work = next_chunk(&t, &chunk), message = false;
		int n = epoll_wait(p.epoll_fd, e, EVENTS, timeout_ms(work));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && work) {
			if (fill(t, chunk, true) == -EAGAIN)
				t->fill = false; // the host has no memory for it
			check_complete(t);
		}
		for (int i = 0; i < n; i++) {
			if (!e[i].data.ptr) {
				message = true; // last: it may free a clone that has an event here
				continue;
			}
			serve(e[i].data.ptr, e[i].events);
			p.last_fault_ns = mv_now_ns();
		}
		int r = message ? on_message() : 0;
		if (r && r != -EAGAIN)
			return r == -EPIPE ? 0 : r;
	}
}
