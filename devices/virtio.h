// SPDX-License-Identifier: Apache-2.0
// What is common to all virtio devices (virtio 1.2 section 2, virtio.c) and the
// virtio-mmio version 2 transport (section 4.2, virtio_mmio.c). Devices know guest
// memory, the event loop and an interrupt eventfd; they know neither KVM nor each other.
//
// Threads: register accesses come from vCPU threads, queue work from the loop; both
// with the loop's lock held. A device may have a loop of its own for a queue (vio_move_queue()): then that
// queue's work holds that loop's lock only, and what it reads of the device (is it live?) is written with
// both held (vio_ops.exclude), in this order. Trust: every register write, ring and buffer is hostile. A
// driver that breaks the rules gets DEVICE_NEEDS_RESET (section 2.1.2) and its device stops until reset;
// nothing else happens to the VM.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "devices/vq.h"
#include "microvm/base/gmem.h"
#include "microvm/base/loop.h"
#include "microvm/base/state.h"

#define VIO_MAX_QUEUES 17 // eight pairs and a control queue
#define VIO_NAME_BYTES 80
#define VIO_MMIO_BYTES 0x1000u
#define VIO_NOTIFY_OFFSET 0x50u // QueueNotify: the VMM puts one ioeventfd per queue here

#define VIRTIO_F_VERSION_1 (1ULL << 32)
// Offered by every device.
#define VIO_FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

enum { // device status, section 2.1
	VIO_ACKNOWLEDGE = 1,
	VIO_DRIVER = 2,
	VIO_DRIVER_OK = 4,
	VIO_FEATURES_OK = 8,
	VIO_NEEDS_RESET = 64,
	VIO_FAILED = 128,
};
enum { VIO_ISR_QUEUE = 1, VIO_ISR_CONFIG = 2 }; // section 4.2.2

struct vio_dev;

struct vio_ops {
	uint32_t device_id;           // virtio 1.2 section 5
	uint32_t config_bytes;        // of vio_dev.config
	unsigned n_queues;            // of one that does not choose at run time
	uint16_t queue_size_max;      // a power of two
	const struct mv_table *state; // device-specific saved state, NULL: none
	uint32_t state_offset;        // of the struct it describes, within the device

	// All but kick and free are optional.
	void (*activate)(struct vio_dev *d);         // DRIVER_OK was set; after restore too
	void (*reset)(struct vio_dev *d);            // back to power-on; drop all requests
	void (*kick)(struct vio_dev *d, unsigned q); // there may be buffers; the device is live
	// The driver wrote to configuration space, within it; none: ignored, as most of it is.
	void (*write_config)(struct vio_dev *d, uint32_t offset, const void *data, uint32_t len);
	// Finish what is in flight. From here to the kicks of vio_unquiesce() the device is not
	// live: vio_pop() gives nothing.
	void (*quiesce)(struct vio_dev *d);
	// Takes or gives back the locks of all loops of its own. Not from inside queue work there.
	void (*exclude)(struct vio_dev *d, bool on);
	// Does a loaded state (of table `state`) fit this device? Called before it replaces ours.
	int (*check_state)(const struct vio_dev *d, const void *loaded, struct mv_err *err);
	// The first vio_unquiesce() after vio_load(), e.g. to send a vsock transport reset.
	void (*restored)(struct vio_dev *d);
	void (*free)(struct vio_dev *d); // closes the device's descriptors and itself
};

// What the guest can see of any device; saved as it is.
struct vio_state {
	uint32_t device_id; // = ops->device_id
	uint64_t features_acked;
	uint32_t status, isr, config_generation;
	uint32_t features_sel, driver_features_sel, queue_sel;
	struct vq queue[VIO_MAX_QUEUES];
	uint32_t n_queue;    // = vio_dev.n_queues
	uint8_t device[256]; // encoded ops->state; only used while saving and loading
	uint32_t n_device;
};

// A device: embedded as the first member of struct vio_blk and so on.
struct vio_dev {
	// configuration
	const struct vio_ops *ops;
	char name[VIO_NAME_BYTES]; // for messages, e.g. "drive root"
	struct gmem *mem;
	struct mv_loop *loop;
	unsigned n_queues; // ops->n_queues, unless set before vio_dev_init()
	uint64_t features_offered;
	const char *features_hint; // what to do when a saved guest uses others; NULL: nothing
	const void *config;        // configuration space as the guest reads it
	uint32_t by_exit;          // bits of queues without an ioeventfd: seen before who notifies goes on
	// guest-visible, saved
	struct vio_state s;
	// runtime
	int irq_fd;                  // eventfd wired to KVM irqfd by the VMM
	int kick_fd[VIO_MAX_QUEUES]; // eventfds wired to KVM ioeventfd by the VMM
	struct vio_kick {
		struct vio_dev *dev;
		struct mv_watch watch;
		const char *broken; // by its driver, why: found by another loop, ours is yet to hear of it
		// Counted as struct vq_counts: notifications by an exit to user space, turns that ended with
		// work left (vio_again()), and signals of the eventfd, of which `own` (atomic) are not the
		// driver's.
		uint64_t by_exit, again, signals, own;
	} kick[VIO_MAX_QUEUES];
	int broken_fd; // wakes our loop for that; -1: no queue was moved
	struct mv_watch broken_watch;
	uint64_t config_interrupts;
	bool quiesced, active, restored;
};

// Called by the devices' own new(): sets up the common part and the eventfds. On failure
// nothing is left behind.
int vio_dev_init(struct vio_dev *d, const struct vio_ops *ops, const char *name, struct gmem *mem,
		 struct mv_loop *loop, uint64_t features, struct mv_err *err);
void vio_dev_fini(struct vio_dev *d); // common part only; used by ops->free

// This queue is served by that loop from now on: one which runs in a thread of the device's (thread.h), or
// its own again. With the locks of both held. 0 or -errno: then by none, until another call succeeds.
// The thread must be stopped before vio_dev_fini(), and the loop may be freed after it.
int vio_move_queue(struct vio_dev *d, unsigned q, struct mv_loop *loop);

// Register access of the transport. len is 1, 2, 4 or 8 as the guest gave it; wrong
// widths and offsets read as zero and are ignored on write.
void vio_mmio_read(struct vio_dev *d, uint64_t offset, void *data, uint32_t len);
void vio_mmio_write(struct vio_dev *d, uint64_t offset, const void *data, uint32_t len);

// For the transport: the driver's writes to the status field, and to QueueReady and
// QueueNotify of a queue below n_queues.
void vio_set_status(struct vio_dev *d, uint32_t value);
void vio_set_ready(struct vio_dev *d, unsigned q, bool ready);
void vio_notify(struct vio_dev *d, unsigned q);

// For the devices. vio_pop() is false when there is nothing to do: empty, not live, or
// the driver broke a rule. vio_rearm() asks for notifications; true: look again now.
// vio_again() makes the loop kick the device in its next turn.
bool vio_live(const struct vio_dev *d, unsigned q);
bool vio_pop(struct vio_dev *d, unsigned q, struct vq_chain *ret_chain);
bool vio_rearm(struct vio_dev *d, unsigned q);
void vio_again(struct vio_dev *d, unsigned q);
// Has the queue's loop kick the device, from any thread.
void vio_wake(struct vio_dev *d, unsigned q);

// Used-buffer interrupt, if the driver wants one (vq decides); config interrupt.
void vio_signal_queue(struct vio_dev *d, unsigned q);
void vio_signal_config(struct vio_dev *d);
void vio_needs_reset(struct vio_dev *d, const char *why);
// The same in the work of any queue; why stays.
void vio_queue_broken(struct vio_dev *d, unsigned q, const char *why);

// What the VMM calls around pause, snapshot and restore.
void vio_quiesce(struct vio_dev *d);
void vio_unquiesce(struct vio_dev *d); // looks at every ready queue once: a kick may have been missed
void vio_save(const struct vio_dev *d, struct mv_buf *out); // quiesced
// Into a fresh device, guest memory mapped; leaves it quiesced. Refuses features not
// offered, rings outside memory, and more queues than there are; fewer are those of an older version.
int vio_load(struct vio_dev *d, const void *bytes, size_t len, struct mv_err *err);
void vio_free(struct vio_dev *d); // NULL allowed

// Around reading what was counted: holds off the loops of its queues, see vio_ops.exclude.
void vio_exclude(struct vio_dev *d, bool on);
uint64_t vio_kicks_by_event(const struct vio_dev *d, unsigned q); // the driver's, by ioeventfd
