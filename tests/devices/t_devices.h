// SPDX-License-Identifier: Apache-2.0
// All devices that thaw has, each in the configurations that differ in what the guest is offered: a table
// for the tests of what they have in common. A new device is one row here (and in microvm/base/features.c).
#pragma once
#include "tests/devices/t_driver.h"

struct t_dev {
	struct vio_dev *d;
	struct mv_ring *ring; // under a blk device
	int peer_fd;          // the other end of what is behind it; -1: none
};

struct t_device {
	const char *name;
	uint32_t device_id;
	void (*make)(struct t_vm *vm, struct t_dev *ret_dev);
	// A request that the device answers at once, or from the loop: its queue, the bytes that the driver
	// gives (the first of them in `head`, then zeros) and those that it takes. Both zero: it can't be
	// driven here.
	unsigned queue;
	uint32_t n_readable, n_writable;
	uint8_t head[44];
	// What makes the device fill a buffer of queue `in`, besides that request; NULL: nothing, or that
	// does it.
	int in; // -1: none
	void (*stir)(struct t_dev *t);
};
extern const struct t_device t_devices[];
extern const unsigned t_n_devices;

void t_dev_free(struct t_dev *t);
