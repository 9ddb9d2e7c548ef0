// SPDX-License-Identifier: Apache-2.0
// A vsock device whose guest's side is played: packets built and read by hand. Fails the running test on any
// surprise.
#pragma once
#include "tests/devices/t_driver.h"

#include "devices/vsock.h"

enum { T_VSOCK_CID = 3, T_VSOCK_N_RX = 64, T_VSOCK_RX_BYTES = 4096, T_VSOCK_GUEST_BUF = 65536 };

struct t_vsock_packet {
	struct vsock_header h;
	uint8_t data[T_VSOCK_RX_BYTES];
};

struct t_vsock {
	struct t_vm vm;
	struct t_queue q[3];
	struct vio_dev *d;
	char dir[64], path[90];
	uint64_t rx_gpa, tx_gpa;
	unsigned n_rx_given;
};

int t_vsock_set_up(void **state); // *state: a struct t_vsock, its driver started
int t_vsock_tear_down(void **state);
struct vio_vsock *t_vsock_of(struct t_vsock *f);
int t_listen_at(const char *path); // a Unix socket

// The next `n` receive buffers; they are used again after T_VSOCK_N_RX.
void t_give_rx(struct t_vsock *f, unsigned n);
// Takes the next packet for the guest and gives its buffer back; expect: it is such a one.
struct t_vsock_packet t_vsock_receive(struct t_vsock *f);
struct t_vsock_packet t_vsock_expect(struct t_vsock *f, enum vsock_op op);
void t_vsock_expect_nothing(struct t_vsock *f);

// A packet of the guest: header and payload of `len` bytes from tx_gpa + 64.
struct vsock_header t_vsock_packet(uint32_t guest_port, uint32_t host_port, uint16_t op, uint32_t len);
void t_vsock_transmit(struct t_vsock *f, const struct vsock_header *h, uint32_t payload_bytes);
void t_send_op(struct t_vsock *f, uint32_t guest_port, uint32_t host_port, uint16_t op, uint32_t flags,
	       uint32_t fwd_cnt);
void t_send_data(struct t_vsock *f, uint32_t guest_port, uint32_t host_port, const void *data, uint32_t len);

int t_host_connect(struct t_vsock *f, const char *hello);
void t_host_reads(struct t_vsock *f, int fd, void *buf, size_t len);
void t_host_reads_eof(struct t_vsock *f, int fd);
// A stream opened by the host; its port, and the socket.
uint32_t t_open_from_host(struct t_vsock *f, uint32_t guest_port, int *ret_fd);
// A stream opened by the guest to a listener at <path>_52.
int t_open_from_guest(struct t_vsock *f, uint32_t guest_port);
