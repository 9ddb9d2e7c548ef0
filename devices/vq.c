// SPDX-License-Identifier: Apache-2.0
#include "devices/vq.h"

#include <errno.h>
#include <string.h>

#include "microvm/base/util.h"

static const struct mv_field vq_fields[] = {
	MV_INT(struct vq, size, 1, MV_U16, 0, VQ_SIZE_MAX),
	MV_FLAG(struct vq, ready, 2),
	MV_INT(struct vq, desc_gpa, 3, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vq, driver_gpa, 4, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vq, device_gpa, 5, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vq, next_avail, 6, MV_U16, 0, UINT16_MAX),
	MV_INT(struct vq, next_used, 7, MV_U16, 0, UINT16_MAX),
	MV_INT(struct vq, signalled_used, 8, MV_U16, 0, UINT16_MAX),
};
MV_DEFINE_TABLE(vq_table, struct vq, vq_fields);

// Shared with a driver on another CPU: single accesses that the compiler keeps single.
static uint16_t load16(const le16_t *p, int order)
{
	return le16_get((le16_t){ __atomic_load_n(&p->raw, order) });
}

// Into the used ring.
static void store16(const struct vq *q, le16_t *p, uint16_t v, int order)
{
	__atomic_store_n(&p->raw, le16_make(v).raw, order);
	gmem_wrote(q->mem, p, sizeof *p);
}

static uint16_t slot(const struct vq *q, uint16_t position) { return position & (uint16_t)(q->size - 1); }

static const le16_t *used_event(const struct vq *q) { return &q->avail->ring[q->size]; }

static le16_t *avail_event(const struct vq *q) { return (le16_t *)(void *)&q->used->ring[q->size]; }

int vq_map(struct vq *q, const struct gmem *mem, uint64_t features)
{
	if (!q->size || q->size > VQ_SIZE_MAX || (q->size & (q->size - 1)))
		return -EINVAL;
	// Alignment: section 2.7. Sizes include used_event and avail_event, always there.
	if (q->desc_gpa % 16 || q->driver_gpa % 2 || q->device_gpa % 4)
		return -EINVAL;
	q->desc = gmem_ptr(mem, gpa(q->desc_gpa), q->size * sizeof(struct vq_desc));
	q->avail = gmem_ptr(mem, gpa(q->driver_gpa), sizeof *q->avail + (q->size + 1u) * sizeof(le16_t));
	q->used = gmem_ptr(mem, gpa(q->device_gpa),
			   sizeof *q->used + q->size * sizeof(struct vq_used_elem) + sizeof(le16_t));
	if (!q->desc || !q->avail || !q->used)
		return -EFAULT;
	q->mem = mem;
	q->indirect = features & VIRTIO_F_INDIRECT_DESC;
	q->event_idx = features & VIRTIO_F_EVENT_IDX;
	return 0;
}

static int add_piece(const struct vq *q, struct vq_chain *c, bool *writing, gpa_t addr, uint32_t len,
		     bool writable)
{
	if (*writing && !writable)
		return -EINVAL; // section 2.7.4.2: all readable ones first
	*writing = writable;
	if (!len)
		return 0; // permitted, holds nothing
	unsigned n = c->readable.n + c->writable.n;
	if (n == VQ_MAX_IOV)
		return -E2BIG;
	if (c->readable.bytes + c->writable.bytes + len > UINT32_MAX)
		return -EOVERFLOW;
	void *p = writable ? gmem_ptr(q->mem, addr, len)
			   : (void *)(uintptr_t)gmem_ptr_to_read(q->mem, addr, len);
	if (!p)
		return -EFAULT;
	if (writable)
		gmem_wrote(q->mem, p, len);
	struct vq_span *s = writable ? &c->writable : &c->readable;
	c->iov[n] = (struct iovec){ .iov_base = p, .iov_len = len };
	if (!s->n)
		s->iov = &c->iov[n];
	s->n++;
	s->bytes += len;
	return 0;
}

// Follows a chain: descriptors of the queue's table, the last of which may refer to an
// indirect table (section 2.7.5.3). `left` bounds both parts.
static int walk(const struct vq *q, uint16_t head, struct vq_chain *c)
{
	const void *table = q->desc; // an indirect one may lie at any address
	uint32_t n_table = q->size, left = q->size, i = head;
	bool writing = false;

	for (;;) {
		struct vq_desc d;
		if (i >= n_table)
			return -EPROTO;
		if (!left--)
			return -ELOOP;
		memcpy(&d, (const uint8_t *)table + i * sizeof d, sizeof d);
		__atomic_signal_fence(__ATOMIC_SEQ_CST); // d is a copy from here on, never read again
		unsigned flags = le16_get(d.flags);
		uint32_t len = le32_get(d.len);
		if (flags & VQ_DESC_INDIRECT) {
			n_table = len / (uint32_t)sizeof d;
			if (!q->indirect || table != q->desc || (flags & VQ_DESC_NEXT) || len % sizeof d ||
			    !n_table || n_table > VQ_SIZE_MAX)
				return -EINVAL;
			table = gmem_ptr(q->mem, gpa(le64_get(d.addr)), len);
			if (!table)
				return -EFAULT;
			left = n_table;
			i = 0;
			continue;
		}
		int r = add_piece(q, c, &writing, gpa(le64_get(d.addr)), len, flags & VQ_DESC_WRITE);
		if (r || !(flags & VQ_DESC_NEXT))
			return r;
		i = le16_get(d.next);
	}
}

int vq_pop(struct vq *q, struct vq_chain *ret_chain)
{
	uint16_t idx = load16(&q->avail->idx, __ATOMIC_ACQUIRE); // before the entries it covers
	uint16_t n = (uint16_t)(idx - q->next_avail);
	if (!n)
		return 0;
	if (n > q->size)
		return -EPROTO;
	uint16_t head = load16(&q->avail->ring[slot(q, q->next_avail)], __ATOMIC_RELAXED);
	ret_chain->head = head;
	ret_chain->readable = ret_chain->writable = (struct vq_span){ .iov = ret_chain->iov };
	int r = walk(q, head, ret_chain);
	if (r)
		return r;
	q->next_avail++;
	q->n.popped++;
	return 1;
}

void vq_unpop(struct vq *q)
{
	q->next_avail--;
	q->n.popped--;
}

void vq_push_all(struct vq *q, const struct vq_used_elem *elem, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct vq_used_elem *e = &q->used->ring[slot(q, q->next_used++)];
		*e = elem[i];
		gmem_wrote(q->mem, e, sizeof *e);
	}
	q->n.used += n;
	store16(q, &q->used->idx, q->next_used, __ATOMIC_RELEASE); // after the entries and the data
}

void vq_push(struct vq *q, uint16_t head, uint32_t written)
{
	const struct vq_used_elem e = { .id = le32_make(head), .len = le32_make(written) };
	vq_push_all(q, &e, 1);
}

// Is the driver to hear of the entries from old to new?
static bool wants_signal(const struct vq *q, uint16_t old, uint16_t new)
{
	// The driver sets its wish, then looks at used->idx; we do it the other way round.
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!q->event_idx)
		return !(load16(&q->avail->flags, __ATOMIC_RELAXED) & VQ_AVAIL_NO_INTERRUPT);
	uint16_t event = load16(used_event(q), __ATOMIC_RELAXED);
	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

bool vq_should_signal(struct vq *q)
{
	uint16_t old = q->signalled_used, new = q->next_used;
	if (new == old)
		return false;
	q->signalled_used = new;
	bool wanted = wants_signal(q, old, new);
	++*(wanted ? &q->n.interrupts : &q->n.suppressed);
	return wanted;
}

void vq_disable_notify(struct vq *q)
{
	if (!q->event_idx) // with EVENT_IDX an avail_event left behind is as good
		store16(q, &q->used->flags, VQ_USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool vq_enable_notify(struct vq *q)
{
	if (q->event_idx)
		store16(q, avail_event(q), q->next_avail, __ATOMIC_RELAXED);
	else
		store16(q, &q->used->flags, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); // our wish is visible before we look again
	return load16(&q->avail->idx, __ATOMIC_RELAXED) != q->next_avail;
}

uint16_t vq_driver_index(const struct vq *q) { return load16(&q->avail->idx, __ATOMIC_ACQUIRE); }

uint16_t vq_notify_next(struct vq *q)
{
	vq_enable_notify(q);
	uint16_t idx = vq_driver_index(q);
	if (q->event_idx) {
		store16(q, avail_event(q), idx, __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST); // before the caller looks at the index again
	}
	return idx;
}

enum span_op { SPAN_READ, SPAN_WRITE, SPAN_SKIP };

static size_t consume(struct vq_span *s, enum span_op op, uint8_t *host, size_t len)
{
	size_t done = 0;
	while (done < len && s->n) {
		struct iovec *v = s->iov;
		size_t n = len - done < v->iov_len ? len - done : v->iov_len;
		if (op == SPAN_READ)
			memcpy(host + done, v->iov_base, n);
		else if (op == SPAN_WRITE)
			memcpy(v->iov_base, host + done, n);
		done += n;
		v->iov_base = (uint8_t *)v->iov_base + n;
		v->iov_len -= n;
		if (!v->iov_len) {
			s->iov++;
			s->n--;
		}
	}
	s->bytes -= done;
	return done;
}

size_t vq_span_read(struct vq_span *s, void *dst, size_t len) { return consume(s, SPAN_READ, dst, len); }

size_t vq_span_write(struct vq_span *s, const void *src, size_t len)
{
	return consume(s, SPAN_WRITE, (uint8_t *)(uintptr_t)src, len);
}

size_t vq_span_skip(struct vq_span *s, size_t len) { return consume(s, SPAN_SKIP, NULL, len); }

void vq_span_trim(struct vq_span *s, size_t len)
{
	while (s->bytes > len) {
		struct iovec *last = &s->iov[s->n - 1];
		size_t extra = s->bytes - len, n = extra < last->iov_len ? extra : last->iov_len;
		last->iov_len -= n;
		s->bytes -= n;
		if (!last->iov_len)
			s->n--;
	}
}

uint8_t *vq_span_take_last(struct vq_span *s)
{
	if (!s->n)
		return NULL;
	struct iovec *last = &s->iov[s->n - 1];
	uint8_t *byte = (uint8_t *)last->iov_base + last->iov_len - 1;
	vq_span_trim(s, s->bytes - 1);
	return byte;
}
