// SPDX-License-Identifier: Apache-2.0
// A guest's side of ARP and TCP, frame by frame, for the tests of the metadata service.
#pragma once
#include "tests/t.h"

#include "devices/mmds_tcp.h"

enum { T_FIN = 1, T_SYN = 2, T_RST = 4, T_PSH = 8, T_ACK = 16 };
enum { T_FRAME = 70000 };

extern const uint8_t t_tcp_address[4], t_tcp_guest[4], t_tcp_guest_mac[6];

struct t_tcp { // the guest's end of a connection
	uint16_t port, to, window;
	uint32_t seq, ack; // its next byte; the next one that it expects
	uint16_t mss;      // its SYN says; 0: nothing
};

// A segment; its bytes. Sequence numbers stay, but for what the flags say.
size_t t_tcp_frame(const struct t_tcp *c, unsigned flags, const void *data, size_t n, uint8_t *ret_frame);
size_t t_tcp_arp(uint8_t *ret_frame); // a request for the address
void t_tcp_sum(uint8_t *frame);       // both checksums, of what somebody changed

struct t_reply { // a frame from the service
	bool arp;
	unsigned flags;
	uint16_t from, port, window, mss;
	uint32_t seq, ack;
	size_t n;
	uint8_t data[2048];
};
// Fails the test when anything in it is wrong.
void t_tcp_reply(const uint8_t *frame, size_t len, struct t_reply *ret_r);
