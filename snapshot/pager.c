// SPDX-License-Identifier: Apache-2.0
// Theory of operation. One epoll set: the daemon's socket and the clones' userfaultfds.
// Faults go first. Between two looks at the descriptors one piece of other work is done, in
// this order: the working set of a new template; zeros of the working set for a new clone; what
// lies ahead of a clone that goes in sequence; and, when there were no faults for IDLE_MS,
// the rest of a template. Nothing is allocated but for new templates and clones.
//
// A second thread decodes, too (pager_helper.h), one chunk at a time of what is wanted ahead.
//
// Of a chunk that the working set needs in part only those pages of the host are written: what costs is
// mostly the memory. It does not count as filled, so a fault writes it again as a whole, with
// the same bytes.
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
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"
#include "snapshot/chain.h"
#include "snapshot/pager_helper.h"
#include "snapshot/pages.h"
#include "snapshot/uffd.h"
#include "snapshot/working_set.h"

enum {
	PAGE = SNAP_PAGE_BYTES,
	IDLE_MS = 5,
	EVENTS = 64,   // of epoll at a time
	MESSAGES = 16, // of one clone at a time, so that none keeps the others waiting
	MIN_AHEAD = 2, // chunks filled behind one that was touched in sequence; doubled each time
	MAX_AHEAD = 32,
	ZERO_TRIES = 64, // steps over the pages of one chunk
	CHUNK_PAGES = CHUNK_BYTES / PAGE,
	WS_STEPS = 1024, // chunks of a working set looked at between two looks at the descriptors
	WS_ZEROS = 64,   // of them, mapped as zeros
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
	uint8_t *filled, *bad;     // bit maps; filled is in the status memfd
	uint64_t sweep;            // of the background
	uint64_t ahead, ahead_end; // chunks that a clone will probably want
	bool fill, told;
	struct working_set set;
	struct ws_position {
		uint32_t extent;
		uint32_t page; // of the extent
	} prefill;
	bool prefilling;
};

struct clone {
	LIST_ENTRY(clone) link;
	uint64_t id;
	struct template *template;
	struct msg_lazy lazy;
	int uffd;
	uint64_t last;            // chunk that was needed
	unsigned n_ahead;         // chunks that were filled behind it
	struct ws_position zeros; // of the template's set; what comes before it is mapped
	bool zeroing;
	bool waits; // for the chunk that the helper has; woken when it is back
};

static struct pager {
	int socket, epoll_fd;
	unsigned n_zeroing;     // clones
	struct template *ahead; // has chunks to fill ahead, or had
	struct template *out;   // the helper has a chunk of it; NULL: none
	uint64_t out_chunk;
	int helper_fd;
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

static uint32_t all_pages(const struct template *t, uint64_t i)
{
	return (1u << chain_len(&t->chain, i) / PAGE) - 1;
}

static void check_complete(struct template *t)
{
	if (t->told || !t->chain.n_chunks || t->status->filled < t->chain.n_stored)
		return;
	t->told = true;
	tell(PAGER_COMPLETE, t->id, NULL, NULL);
}

// A chunk that was decoded and written, by either thread, as far as that worked.
static int settle(const struct helper_job *j, bool background)
{
	struct template *t = j->owner;
	uint64_t i = j->chunk;
	if (j->result == -EBADMSG && !bit(t->bad, i)) {
		set_bit(t->bad, i);
		t->status->bad++;
		tell(PAGER_DAMAGED, t->id, NULL, NULL);
		mv_log(MV_ERROR, "template %llu: chunk %llu is damaged (%s)", (unsigned long long)t->id,
		       (unsigned long long)i, strerror(j->error));
	} else if (j->result == -EAGAIN) {
		mv_log_limited(MV_ERROR, "can't fill memory: %s", strerror(j->error));
	} else if (!j->result && j->pages != all_pages(t, i)) {
		t->status->prefills++;
	} else if (!j->result && !bit(t->filled, i)) {
		set_bit(t->filled, i);
		t->status->fills++;
		t->status->background_fills += background;
		t->status->filled++;
		check_complete(t);
	}
	return j->result;
}

static struct helper_job job_of(struct template *t, uint64_t i, uint32_t pages)
{
	return (struct helper_job){ &t->chain, t->memfd, i, pages, t, 0, 0 };
}

static void wake_chunk(const struct clone *c, uint64_t i)
{
	uint64_t from = i * CHUNK_BYTES, to = from + CHUNK_BYTES;
	for (uint32_t k = 0; k < c->lazy.n_regions; k++) {
		const struct msg_lazy_region *r = &c->lazy.region[k];
		uint64_t end = r->file_offset + r->size_bytes;
		uint64_t a = from > r->file_offset ? from : r->file_offset, b = to < end ? to : end;
		if (a < b)
			uffd_wake(c->uffd, r->hva + (a - r->file_offset), b - a);
	}
}

// What the helper has out, or brings back, is settled.
static void collect(bool wait)
{
	struct helper_job j;
	struct clone *c;
	if (!(wait ? helper_wait(&j) : helper_take(&j)))
		return;
	settle(&j, true);
	LIST_FOREACH (c, &p.clones, link)
		if (MV_TAKE_AS(c->waits, false)) // what is still missing faults again
			wake_chunk(c, j.chunk);
	p.out = NULL;
}

// Of a chunk, some pages: 0: they are in the memfd. -EBADMSG: it is damaged or can't be read.
// -EAGAIN: no memory for it now.
static int fill_pages(struct template *t, uint64_t i, uint32_t pages, bool background)
{
	if (p.out == t && p.out_chunk == i)
		collect(true);
	if (bit(t->filled, i))
		return 0;
	if (bit(t->bad, i))
		return -EBADMSG;
	struct helper_job j = job_of(t, i, pages);
	helper_run(&j, p.scratch, p.chunk);
	return settle(&j, background);
}

static int fill(struct template *t, uint64_t i, bool background)
{
	return fill_pages(t, i, all_pages(t, i), background);
}

// The same, later, by the helper. False: it is busy, or there is none.
static bool fill_elsewhere(struct template *t, uint64_t i, uint32_t pages)
{
	struct helper_job j = job_of(t, i, pages);
	collect(false);
	if (bit(t->bad, i) || !helper_free())
		return false;
	p.out = t;
	p.out_chunk = i;
	helper_give(&j);
	return true;
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
			start += mv_host_page_bytes();
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

static const struct msg_lazy_region *region_at(const struct msg_lazy *l, uint64_t file_offset)
{
	for (uint32_t i = 0; i < l->n_regions; i++)
		if (file_offset >= l->region[i].file_offset &&
		    file_offset - l->region[i].file_offset < l->region[i].size_bytes)
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

	bool later = false;
	int result = i < t->chain.n_chunks ? 0 : -EBADMSG;
	if (!result && chain_is_zero(&t->chain, i)) {
		t->status->zero_faults++;
		map_zeros(c->uffd, from, to);
	} else if (!result && p.out == t && p.out_chunk == i) {
		later = c->waits = true; // not we: there is something to decode meanwhile
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
	if (!later)
		uffd_wake(c->uffd, from, to - from);
	// While the thread goes on: what it will want next if it goes in sequence.
	bool sequence = i > c->last && i - c->last <= c->n_ahead + 1;
	c->n_ahead = !sequence ? 0 : c->n_ahead ? 2 * c->n_ahead : MIN_AHEAD;
	if (c->n_ahead > MAX_AHEAD)
		c->n_ahead = MAX_AHEAD;
	c->last = i;
	if (sequence) {
		p.ahead = t;
		t->ahead = i + 1;
		t->ahead_end =
			i + 1 + c->n_ahead < t->chain.n_chunks ? i + 1 + c->n_ahead : t->chain.n_chunks;
	}
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

// --- ahead of faults ---

uint32_t pager_whole_pages(uint32_t pages, unsigned n_each)
{
	uint32_t all = (1u << n_each) - 1, whole = 0;
	for (unsigned k = 0; k < CHUNK_PAGES; k += n_each)
		whole |= pages >> k & all ? all << k : 0;
	return whole;
}

// The next chunk that the set has pages of, and which (bit per page); moves the position behind
// them. False: there is none (more).
static bool next_of_set(const struct working_set *w, struct ws_position *at, uint64_t *ret_chunk,
			uint32_t *ret_pages)
{
	uint64_t chunk = UINT64_MAX;
	uint32_t pages = 0;
	while (at->extent < w->n_extents) {
		const struct ws_extent *e = &w->extent[at->extent];
		uint64_t page = (uint64_t)e->page + at->page;
		if (chunk == UINT64_MAX)
			chunk = page / CHUNK_PAGES;
		if (page / CHUNK_PAGES != chunk)
			break;
		pages |= 1u << page % CHUNK_PAGES;
		if (++at->page == e->n_pages)
			*at = (struct ws_position){ at->extent + 1, 0 };
	}
	*ret_chunk = chunk;
	*ret_pages = pager_whole_pages(pages, mv_host_page_bytes() / PAGE);
	return pages;
}

// The next run of set bits at or behind *from; *ret_to is behind it. False: there is none.
static bool next_run(uint32_t pages, uint32_t *from, uint32_t *ret_to)
{
	while (*from < CHUNK_PAGES && !(pages >> *from & 1))
		++*from;
	for (*ret_to = *from; *ret_to < CHUNK_PAGES && pages >> *ret_to & 1;)
		++*ret_to;
	return *ret_to > *from;
}

// A chunk of the working set, or two at a time.
static void prefill(struct template *t)
{
	uint64_t i;
	uint32_t pages;
	for (int n = 0; n < WS_STEPS; n++) {
		bool more = next_of_set(&t->set, &t->prefill, &i, &pages);
		if (more && (chain_is_zero(&t->chain, i) || bit(t->filled, i)))
			continue;
		if (more && fill_elsewhere(t, i, pages))
			continue;
		if (more && fill_pages(t, i, pages, true) != -EAGAIN)
			return;
		collect(true);
		t->prefilling = false;
		tell(PAGER_PREFILLED, t->id, NULL, NULL);
		return;
	}
}

// Maps zeros where the set has pages in chunks of zeros, so that a clone that populates its
// memory does not come with a fault for each.
static void map_set_zeros(struct clone *c)
{
	const struct template *t = c->template;
	uint64_t i;
	uint32_t pages;
	for (int n = 0; n < WS_ZEROS; n++) {
		if (!next_of_set(&t->set, &c->zeros, &i, &pages)) {
			c->zeroing = false;
			p.n_zeroing--;
			return;
		}
		if (!chain_is_zero(&t->chain, i))
			continue;
		for (uint32_t from = 0, to; next_run(pages, &from, &to); from = to) {
			uint64_t at = i * CHUNK_BYTES + from * PAGE, len = (to - from) * PAGE;
			const struct msg_lazy_region *r = region_at(&c->lazy, at);
			if (r && at + len <= r->file_offset + r->size_bytes)
				map_zeros(c->uffd, r->hva + (at - r->file_offset),
					  r->hva + (at - r->file_offset) + len);
		}
	}
}

// The next chunk that lies ahead of a sequence and is not there.
static bool next_ahead(uint64_t *ret_chunk)
{
	struct template *t = p.ahead;
	for (; t && t->ahead < t->ahead_end; t->ahead++)
		if (!chain_is_zero(&t->chain, t->ahead) && !bit(t->filled, t->ahead) &&
		    !bit(t->bad, t->ahead) && (p.out != t || p.out_chunk != t->ahead)) {
			*ret_chunk = t->ahead;
			return true;
		}
	p.ahead = NULL;
	return false;
}

static struct template *next_prefill(void)
{
	struct template *t;
	LIST_FOREACH (t, &p.templates, link)
		if (t->prefilling)
			return t;
	return NULL;
}

static bool has_urgent(void)
{
	uint64_t chunk;
	return next_prefill() || p.n_zeroing || next_ahead(&chunk);
}

static void urgent_step(void)
{
	struct template *t = next_prefill();
	struct clone *c;
	uint64_t chunk;
	if (t) {
		prefill(t);
	} else if (p.n_zeroing) {
		LIST_FOREACH (c, &p.clones, link)
			if (c->zeroing)
				break;
		map_set_zeros(c);
	} else if (next_ahead(&chunk)) {
		t = p.ahead;
		if (fill_elsewhere(t, chunk, all_pages(t, chunk)))
			return;
		if (fill(t, chunk, true) == -EAGAIN)
			t->ahead_end = t->ahead;
	}
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
	ws_fini(&t->set);
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

// One that can't be used is as none.
static int on_working_set(struct msg *m, struct mv_err *err)
{
	struct pager_working_set body;
	struct mv_err why;
	int r = mv_state_load(&pager_working_set_table, m->body, m->body_len, &body, err);
	struct template *t = r ? NULL : template_find(m->id);
	if (!t || m->n_fds != 1 || t->set.n_extents)
		return mv_fail(err, EPROTO, "malformed working set");
	if (t->chain.n_chunks && ws_read(m->fds[0], body.snapshot_id, t->chain.memory_bytes, &t->set, &why))
		mv_log(MV_WARN, "template %llu: %s", (unsigned long long)t->id, why.msg);
	t->prefilling = true; // of none: done at once
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
	c->zeroing = t->set.n_extents;
	p.n_zeroing += c->zeroing;
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
	p.n_zeroing -= c->zeroing;
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
	if (p.out == t)
		collect(true);
	LIST_REMOVE(t, link);
	p.ahead = p.ahead == t ? NULL : p.ahead;
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
	case PAGER_WORKING_SET: r = on_working_set(&m, &err); break;
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

static int timeout_ms(bool urgent, bool work)
{
	if (urgent)
		return 0;
	if (!work)
		return -1;
	return mv_now_ns() - p.last_fault_ns < IDLE_MS * 1000000ull ? IDLE_MS : 0;
}

int pager_init(int socket_fd, struct mv_err *err)
{
	struct epoll_event e = { .events = EPOLLIN };

	p.socket = socket_fd;
	p.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (p.epoll_fd < 0 || epoll_ctl(p.epoll_fd, EPOLL_CTL_ADD, socket_fd, &e))
		return mv_fail(err, errno, "epoll: %s", strerror(errno));
	p.helper_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e.data.ptr = &p.helper_fd;
	if (p.helper_fd < 0 || epoll_ctl(p.epoll_fd, EPOLL_CTL_ADD, p.helper_fd, &e))
		return mv_fail(err, errno, "eventfd: %s", strerror(errno));
	int r = helper_start(p.helper_fd);
	if (r)
		mv_log(MV_INFO, "one thread: %s", strerror(-r));
	return 0;
}

int pager_run(void)
{
	struct epoll_event e[EVENTS];
	struct template *t = NULL;
	uint64_t chunk = 0;

	for (;;) {
		bool urgent = has_urgent(), work = !urgent && next_chunk(&t, &chunk), message = false;
		int n = epoll_wait(p.epoll_fd, e, EVENTS, timeout_ms(urgent, work));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && urgent)
			urgent_step();
		if (n == 0 && work) {
			if (fill(t, chunk, true) == -EAGAIN)
				t->fill = false; // the host has no memory for it
		}
		for (int i = 0; i < n; i++) {
			if (!e[i].data.ptr) {
				message = true; // last: it may free a clone that has an event here
				continue;
			}
			if (e[i].data.ptr == &p.helper_fd) {
				collect(false);
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
