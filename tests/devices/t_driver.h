// SPDX-License-Identifier: Apache-2.0
// A driver for tests: guest memory, an event loop, and the driver's side of split
// virtqueues and of the virtio-mmio registers. Fails the running test on any surprise.
#pragma once
#include "tests/t.h"

#include "devices/devices.h"
#include "devices/virtio.h"

#define T_LOW_BYTES (16u << 20) // region at 0
#define T_HIGH_GPA (4ULL << 30) // and a second one
#define T_HIGH_BYTES (1u << 20)

struct t_vm {
	struct gmem mem;
	struct mv_loop loop;
	uint64_t next_gpa;
};
void t_vm_init(struct t_vm *vm); // a page before and behind each region that nobody may touch
void t_vm_fini(struct t_vm *vm);
uint64_t t_alloc(struct t_vm *vm, uint64_t bytes, uint64_t align); // zeroed guest memory
void *t_ptr(struct t_vm *vm, uint64_t gpa, size_t len);
// Runs the loop until cond(arg) holds, or fails the test after two seconds.
void t_run_until(struct t_vm *vm, bool (*cond)(void *arg), void *arg);
// Runs the loop for a while, for things that must not happen.
void t_run_ms(struct t_vm *vm, unsigned ms);

struct t_buf {
	uint64_t gpa;
	uint32_t len;
	bool writable;
};

struct t_queue {
	struct t_vm *vm;
	uint16_t size, next_desc, avail_idx, seen;
	uint64_t desc_gpa, driver_gpa, device_gpa;
	struct vq_desc *desc;
	struct vq_avail *avail;
	struct vq_used *used;
	le16_t *used_event, *avail_event;
};
void t_queue_init(struct t_queue *q, struct t_vm *vm, uint16_t size);
void t_desc(struct vq_desc *d, uint64_t gpa, uint32_t len, unsigned flags, uint16_t next);
void t_publish(struct t_queue *q, uint16_t head);                        // one more available entry
uint16_t t_add(struct t_queue *q, const struct t_buf *bufs, unsigned n); // a chain; its head
uint16_t t_add_indirect(struct t_queue *q, const struct t_buf *bufs, unsigned n);
bool t_used(struct t_queue *q, uint16_t *ret_head, uint32_t *ret_len); // takes one if there is one
bool t_has_used(void *queue);                                          // for t_run_until()

uint32_t t_get(struct vio_dev *d, uint64_t reg);
void t_set(struct vio_dev *d, uint64_t reg, uint32_t value);
// Up to FEATURES_OK with what is offered & features; then the queues and DRIVER_OK.
void t_negotiate(struct vio_dev *d, uint64_t features);
void t_start(struct vio_dev *d, uint64_t features, struct t_queue *queues, unsigned n);
void t_kick(struct vio_dev *d, unsigned q);
void t_event(struct vio_dev *d, unsigned q); // a kick as KVM's ioeventfd gives it: for the loop
unsigned t_irqs(struct vio_dev *d);          // interrupts since the last call
