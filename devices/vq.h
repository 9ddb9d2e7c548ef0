// SPDX-License-Identifier: Apache-2.0
// One split virtqueue, device side (virtio 1.2 section 2.7), with indirect descriptors
// and EVENT_IDX.
//
// Trust: everything in the rings is hostile and may change at any moment. vq_pop() is
// the only reader of descriptors; it copies each one once and hands out host iovecs that
// lie inside guest memory, those to be written already marked as written (gmem_wrote()): so a
// device must not keep a request beyond a pause, and none does (vio_ops.quiesce). Ring positions are our own
// counters, never read back. Threads: one at a time (the loop's lock). Errors are -errno; after one the queue
// must not be used before it is set up anew (the caller sets DEVICE_NEEDS_RESET).
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "microvm/base/bytes.h"
#include "microvm/base/gmem.h"
#include "microvm/base/state.h"

#define VIRTIO_F_INDIRECT_DESC (1ULL << 28) // section 6
#define VIRTIO_F_EVENT_IDX (1ULL << 29)

#define VQ_SIZE_MAX 1024u
#define VQ_MAX_DATA 254u             // pieces of data a driver may send at once, e.g. blk seg_max
#define VQ_MAX_IOV (VQ_MAX_DATA + 2) // and a header and a status

// The rings as they lie in guest memory (sections 2.7.5, 2.7.6, 2.7.8).
#define VQ_DESC_NEXT 1u
#define VQ_DESC_WRITE 2u
#define VQ_DESC_INDIRECT 4u
#define VQ_AVAIL_NO_INTERRUPT 1u
#define VQ_USED_NO_NOTIFY 1u

struct vq_desc {
	le64_t addr;
	le32_t len;
	le16_t flags, next;
};

struct vq_avail {
	le16_t flags, idx, ring[]; // then used_event
};

struct vq_used_elem {
	le32_t id, len;
};

struct vq_used {
	le16_t flags, idx;
	struct vq_used_elem ring[]; // then le16 avail_event
};

// Since the device was made: no reset and no restore takes them back. With the lock of the queue's loop.
struct vq_counts {
	uint64_t popped, used; // requests taken and returned
	uint64_t interrupts;   // batches of returned requests that the driver wanted to hear of
	uint64_t suppressed;   // those that it did not (EVENT_IDX, NO_INTERRUPT)
};

struct vq {
	// guest-visible, saved (vq_table)
	uint16_t size; // a power of two once ready
	bool ready;
	uint64_t desc_gpa, driver_gpa, device_gpa;
	uint16_t next_avail;     // the next entry of the available ring to take
	uint16_t next_used;      // the next entry of the used ring to fill
	uint16_t signalled_used; // next_used when the driver was last considered for an interrupt
	// runtime, made by vq_map()
	const struct gmem *mem;
	const struct vq_desc *desc;
	const struct vq_avail *avail;
	struct vq_used *used;
	bool indirect, event_idx;
	struct vq_counts n;
};

extern const struct mv_table vq_table;

// Checks size, alignment and place of the three areas and makes the queue usable.
// -EINVAL: size or alignment; -EFAULT: not inside one region of guest memory.
int vq_map(struct vq *q, const struct gmem *mem, uint64_t features);

// A consumable sequence of bytes in guest memory.
struct vq_span {
	struct iovec *iov;
	unsigned n;
	size_t bytes;
};

// One request: what the device may read, then what it may write. Not copyable.
struct vq_chain {
	uint16_t head;
	struct vq_span readable, writable;
	struct iovec iov[VQ_MAX_IOV];
};

// Takes the next request: 1, or 0 when there is none, or the rule that was broken:
// -EPROTO ring or descriptor index out of range, -ELOOP longer than the queue or its
// table, -E2BIG too many pieces, -EINVAL flags, order or indirect table, -EFAULT outside
// memory, -EOVERFLOW more than 4 GiB.
int vq_pop(struct vq *q, struct vq_chain *ret_chain);
// Gives the last popped request back untouched; it will be popped again.
void vq_unpop(struct vq *q);

// Returns a request to the driver. written: bytes from the start of its writable part.
void vq_push(struct vq *q, uint16_t head, uint32_t written);
// Several at once: the driver sees all of them or none.
void vq_push_all(struct vq *q, const struct vq_used_elem *e, unsigned n);

// After pushes: does the driver want an interrupt for them? (section 2.7.7)
bool vq_should_signal(struct vq *q);

// Ask for no notifications while working on the queue; then ask for them again: true
// when buffers came meanwhile, for which there may be no notification (section 2.7.10).
void vq_disable_notify(struct vq *q);
bool vq_enable_notify(struct vq *q);

// Asks for a notification of the next buffer that is added, though buffers are there.
// Returns the driver's index, which differs once one was added.
uint16_t vq_notify_next(struct vq *q);
uint16_t vq_driver_index(const struct vq *q);

// All consume from the front and return how many bytes that was (at most span->bytes).
size_t vq_span_read(struct vq_span *s, void *dst, size_t len);
size_t vq_span_write(struct vq_span *s, const void *src, size_t len);
size_t vq_span_skip(struct vq_span *s, size_t len);
void vq_span_trim(struct vq_span *s, size_t len); // keep at most the first len bytes
uint8_t *vq_span_take_last(struct vq_span *s);    // the last byte, no longer in s; NULL: empty
