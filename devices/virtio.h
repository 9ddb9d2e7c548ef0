// SPDX-License-Identifier: Apache-2.0
// What is common to all virtio devices (virtio 1.2 section 2) and the virtio-mmio
// version 2 transport (section 4.2). Devices know guest memory, the event loop and
// an interrupt eventfd; they know neither KVM nor each other.
//
// Threads: register accesses come from vCPU threads, queue work from the loop; both
// with the loop's lock held.
// Trust: every register write, ring and buffer is hostile. A driver that breaks the
// rules gets DEVICE_NEEDS_RESET (section 2.1.2) and its device stops until reset;
// nothing else happens to the VM.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "devices/vq.h"
#include "microvm/base/gmem.h"
#include "microvm/base/loop.h"
#include "microvm/base/state.h"

#define VIO_MAX_QUEUES 4
#define VIO_MMIO_BYTES 0x1000u
#define VIO_NOTIFY_OFFSET 0x50u // QueueNotify: the VMM puts one ioeventfd per queue here

struct vio_dev;

struct vio_ops {
	uint32_t device_id;      // virtio 1.2 section 5
	uint32_t config_bytes;   // of the device-specific configuration space
	unsigned n_queues;
	uint16_t queue_size_max; // a power of two
	const struct mv_table *state; // device-specific saved state, NULL: none

	void (*config_read)(struct vio_dev *d, uint32_t offset, void *data, uint32_t len);
	void (*config_write)(struct vio_dev *d, uint32_t offset, const void *data, uint32_t len);
	void (*activate)(struct vio_dev *d);         // DRIVER_OK was set; after restore too
	void (*reset)(struct vio_dev *d);            // back to power-on; drop all requests
	void (*kick)(struct vio_dev *d, unsigned q); // the driver made buffers available
	// Stop touching guest memory and wait for what is in flight; then go on again.
	void (*quiesce)(struct vio_dev *d);
	void (*unquiesce)(struct vio_dev *d);
	// Called on the new VM before unquiesce, e.g. to send a vsock transport reset. Optional.
	void (*restored)(struct vio_dev *d);
	void (*free)(struct vio_dev *d); // closes the device's descriptors and itself
};

// A device: embedded as the first member of struct vio_blk and so on.
struct vio_dev {
	// configuration
	const struct vio_ops *ops;
	const char *name; // for messages, e.g. "drive root"
	struct gmem *mem;
	struct mv_loop *loop;
	uint64_t features_offered;
	// guest-visible, saved (vio_dev_table)
	uint64_t features_acked;
	uint32_t status, isr, config_generation;
	uint32_t features_sel, driver_features_sel, queue_sel;
	struct vq queue[VIO_MAX_QUEUES];
	uint32_t n_queue; // = ops->n_queues
	// runtime
	int irq_fd;                    // eventfd wired to KVM irqfd by the VMM
	int kick_fd[VIO_MAX_QUEUES];   // eventfds wired to KVM ioeventfd by the VMM
	struct mv_watch kick_watch[VIO_MAX_QUEUES];
	bool quiesced;
};

// Called by the devices' own new(): sets up the common part and the eventfds.
int vio_dev_init(struct vio_dev *d, const struct vio_ops *ops, const char *name, struct gmem *mem,
		 struct mv_loop *loop, uint64_t features, struct mv_err *err);
void vio_dev_fini(struct vio_dev *d); // common part only; used by ops->free

// Register access of the transport. len is 1, 2, 4 or 8 as the guest gave it; wrong
// widths and offsets read as zero and are ignored on write.
void vio_mmio_read(struct vio_dev *d, uint64_t offset, void *data, uint32_t len);
void vio_mmio_write(struct vio_dev *d, uint64_t offset, const void *data, uint32_t len);

// Used-buffer interrupt, unless the driver suppressed it (vq decides); config interrupt.
void vio_signal_queue(struct vio_dev *d, unsigned q);
void vio_signal_config(struct vio_dev *d);
void vio_needs_reset(struct vio_dev *d, const char *why);

// What the VMM calls around pause, snapshot and restore.
void vio_quiesce(struct vio_dev *d);
void vio_unquiesce(struct vio_dev *d); // looks at every ready queue once: a kick may have been missed
void vio_save(const struct vio_dev *d, struct mv_buf *out); // quiesced
// Into a fresh device, quiesced; refuses features not offered and rings outside memory.
int vio_load(struct vio_dev *d, const void *bytes, size_t len, struct mv_err *err);
void vio_free(struct vio_dev *d); // NULL allowed
