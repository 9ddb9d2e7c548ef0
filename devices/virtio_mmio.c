// SPDX-License-Identifier: Apache-2.0
// virtio-mmio version 2 registers (virtio 1.2 section 4.2.2).
#include <string.h>

#include "devices/virtio.h"

enum {
	MAGIC_VALUE = 0x000,
	VERSION = 0x004,
	DEVICE_ID = 0x008,
	VENDOR_ID = 0x00c,
	DEVICE_FEATURES = 0x010,
	DEVICE_FEATURES_SEL = 0x014,
	DRIVER_FEATURES = 0x020,
	DRIVER_FEATURES_SEL = 0x024,
	QUEUE_SEL = 0x030,
	QUEUE_NUM_MAX = 0x034,
	QUEUE_NUM = 0x038,
	QUEUE_READY = 0x044,
	QUEUE_NOTIFY = VIO_NOTIFY_OFFSET,
	INTERRUPT_STATUS = 0x060,
	INTERRUPT_ACK = 0x064,
	STATUS = 0x070,
	QUEUE_DESC_LOW = 0x080,
	QUEUE_DESC_HIGH = 0x084,
	QUEUE_DRIVER_LOW = 0x090,
	QUEUE_DRIVER_HIGH = 0x094,
	QUEUE_DEVICE_LOW = 0x0a0,
	QUEUE_DEVICE_HIGH = 0x0a4,
	SHM_LEN_LOW = 0x0b0, // and LEN_HIGH, BASE_LOW, BASE_HIGH: all ones, there are none
	SHM_BASE_HIGH = 0x0bc,
	CONFIG_GENERATION = 0x0fc,
	CONFIG = 0x100,
};

#define MAGIC 0x74726976u  // "virt"
#define VENDOR 0x77616874u // "thaw"

// The selected queue, NULL: there is no such queue.
static struct vq *selected(struct vio_dev *d)
{
	return d->s.queue_sel < d->n_queues ? &d->s.queue[d->s.queue_sel] : NULL;
}

static uint32_t read_register(struct vio_dev *d, uint64_t offset)
{
	const struct vq *q = selected(d);
	switch (offset) {
	case MAGIC_VALUE: return MAGIC;
	case VERSION: return 2;
	case DEVICE_ID: return d->ops->device_id;
	case VENDOR_ID: return VENDOR;
	case DEVICE_FEATURES:
		return d->s.features_sel < 2 ? (uint32_t)(d->features_offered >> 32 * d->s.features_sel) : 0;
	case QUEUE_NUM_MAX: return q ? d->ops->queue_size_max : 0;
	case QUEUE_READY: return q && q->ready;
	case INTERRUPT_STATUS: return __atomic_load_n(&d->s.isr, __ATOMIC_SEQ_CST);
	case STATUS: return d->s.status;
	case SHM_LEN_LOW ... SHM_BASE_HIGH: return UINT32_MAX;
	case CONFIG_GENERATION: return d->s.config_generation;
	default: return 0;
	}
}

void vio_mmio_read(struct vio_dev *d, uint64_t offset, void *data, uint32_t len)
{
	memset(data, 0, len);
	if (offset >= CONFIG) {
		if (offset - CONFIG < d->ops->config_bytes && len <= d->ops->config_bytes - (offset - CONFIG))
			memcpy(data, (const uint8_t *)d->config + (offset - CONFIG), len);
	} else if (len == 4 && offset % 4 == 0) {
		le32_t v = le32_make(read_register(d, offset));
		memcpy(data, &v, sizeof v);
	}
}

static void set_half(uint64_t *v, bool high, uint32_t half)
{
	*v = high ? (*v & UINT32_MAX) | (uint64_t)half << 32 : (*v & ~(uint64_t)UINT32_MAX) | half;
}

static void write_queue(struct vio_dev *d, uint64_t offset, uint32_t v)
{
	struct vq *q = selected(d);
	// Section 3.1.1: queues are set up between FEATURES_OK and DRIVER_OK. So a queue in use
	// never changes.
	if (!q || (d->s.status & (VIO_FEATURES_OK | VIO_DRIVER_OK)) != VIO_FEATURES_OK)
		return;
	if (offset == QUEUE_READY) {
		vio_set_ready(d, d->s.queue_sel, v & 1);
		return;
	}
	if (q->ready)
		return;
	switch (offset) {
	case QUEUE_NUM: q->size = v <= d->ops->queue_size_max ? (uint16_t)v : 0; break;
	case QUEUE_DESC_LOW:
	case QUEUE_DESC_HIGH: set_half(&q->desc_gpa, offset == QUEUE_DESC_HIGH, v); break;
	case QUEUE_DRIVER_LOW:
	case QUEUE_DRIVER_HIGH: set_half(&q->driver_gpa, offset == QUEUE_DRIVER_HIGH, v); break;
	case QUEUE_DEVICE_LOW:
	case QUEUE_DEVICE_HIGH: set_half(&q->device_gpa, offset == QUEUE_DEVICE_HIGH, v); break;
	}
}

void vio_mmio_write(struct vio_dev *d, uint64_t offset, const void *data, uint32_t len)
{
	le32_t raw;
	if (offset >= CONFIG && d->ops->write_config && offset - CONFIG < d->ops->config_bytes &&
	    len <= d->ops->config_bytes - (offset - CONFIG))
		d->ops->write_config(d, (uint32_t)(offset - CONFIG), data, len);
	if (len != sizeof raw || offset % 4)
		return;
	memcpy(&raw, data, sizeof raw);
	uint32_t v = le32_get(raw);
	switch (offset) {
	case DEVICE_FEATURES_SEL: d->s.features_sel = v; break;
	case DRIVER_FEATURES_SEL: d->s.driver_features_sel = v; break;
	case DRIVER_FEATURES:
		// Section 2.2.1: between DRIVER and FEATURES_OK.
		if ((d->s.status & (VIO_DRIVER | VIO_FEATURES_OK)) == VIO_DRIVER &&
		    d->s.driver_features_sel < 2)
			set_half(&d->s.features_acked, d->s.driver_features_sel == 1, v);
		break;
	case QUEUE_SEL: d->s.queue_sel = v; break;
	case QUEUE_NOTIFY:
		if (v < d->n_queues) {
			d->kick[v].by_exit++;
			vio_notify(d, v);
		}
		break;
	case INTERRUPT_ACK: __atomic_fetch_and(&d->s.isr, ~v, __ATOMIC_SEQ_CST); break;
	case STATUS: vio_set_status(d, v); break;
	default: write_queue(d, offset, v); // ignores what is no queue register
	}
}
