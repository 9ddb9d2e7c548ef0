// SPDX-License-Identifier: Apache-2.0
// A network device over a stream, with the test at its other end.
#pragma once
#include "devices/net.h"
#include "tests/devices/t_driver.h"

extern const uint8_t t_mac[6];

// peer: never blocks, which the device's end does. mtu 0: none.
struct vio_dev *t_net_new(struct t_vm *vm, uint16_t mtu, int *ret_peer);

// What the fixtures of these tests begin with.
#define T_NET_FIELDS                                                                                         \
	struct t_vm vm;                                                                                      \
	struct vio_dev *d;                                                                                   \
	int peer

// Such a fixture of so many bytes, with a new device.
void *t_net_set_up(size_t bytes);
int t_net_tear_down(void **state); // a cmocka teardown; *state is one, of any device
