// SPDX-License-Identifier: Apache-2.0
// One IPv4 address and one TCP port on a link whose only other station is the guest: frames in, frames out,
// and in between requests and their answers. As much of ARP (RFC 826), IPv4 (RFC 791) and TCP (RFC 9293) as a
// server of short requests needs; what the bytes mean is the application's business.
//
// Trust: every frame is hostile. Lengths, checksums and sequence numbers are checked before anything is
// believed; fragments, other protocols and what arrives out of order are dropped (the guest sends it again),
// other ports and unknown connections are answered by a reset. All is bounded: connections, bytes that wait,
// answers to those who are no connection, and the time without progress, after which a connection ends.
//
// Nothing waits here but the connections: mmds_tcp_output() makes each frame when there is room for it, so a
// guest without receive buffers costs nothing. Nothing is ever saved: after a restore all connections are
// unknown ones. Threads: one at a time, the caller's lock.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/util.h"

enum {
	MMDS_TCP_CONNS = 30,    // the next one has to try again
	MMDS_TCP_ROOM = 4096,   // bytes of requests per connection: its receive window
	MMDS_TCP_CONTROLS = 16, // ARP answers and resets that wait
	MMDS_TCP_HEADERS = 14 + 20 + 20,
	MMDS_TCP_FRAME_MAX = 14 + 1500,
};
#define MMDS_TCP_RETRY_NS 250000000ull // doubled with each one, up to 32 times
#define MMDS_TCP_IDLE_NS 60000000000ull

struct mmds_tcp_app {
	// The bytes that came and are not consumed: how many of them a whole request has, 0: more are needed.
	// A request that can't be, or fills all of MMDS_TCP_ROOM, is to be consumed and answered, too. The
	// answer is appended; *ret_last: nothing follows it.
	size_t (*request)(void *arg, const uint8_t *bytes, size_t len, struct mv_buf *answer, bool *ret_last);
	void *arg;
};

struct mmds_tcp_conn;
struct mmds_tcp_control { // a reset, or an ARP answer
	bool arp;
	uint8_t mac[6], ip[4], flags;
	uint16_t port, our_port;
	uint32_t seq, ack;
};

struct mmds_tcp {
	uint8_t address[4];
	uint16_t port, mtu;
	struct mmds_tcp_app app;
	struct mmds_tcp_conn *conn[MMDS_TCP_CONNS];
	unsigned turn; // whose frame is next
	struct mmds_tcp_control control[MMDS_TCP_CONTROLS];
	unsigned control_at, n_controls;
	uint64_t dropped;
};

extern const uint8_t mmds_tcp_mac[6];

void mmds_tcp_init(struct mmds_tcp *t, const uint8_t address[4], uint16_t port, uint16_t mtu,
		   const struct mmds_tcp_app *app);
void mmds_tcp_reset(struct mmds_tcp *t); // forgets all connections; also the end

// Is this frame for the address? bytes: its beginning, as far as there, up to MMDS_TCP_HEADERS of it.
static inline bool mmds_tcp_is_ours(const uint8_t address[4], const uint8_t *bytes, size_t len)
{
	enum { TYPE_AT = 12, IP_TO_AT = 14 + 16, ARP_TO_AT = 14 + 24, ADDRESS_BYTES = 4 };
	if (len < ARP_TO_AT + ADDRESS_BYTES || bytes[TYPE_AT] != 8)
		return false;
	const uint8_t *to = bytes + (bytes[TYPE_AT + 1] == 0 ? IP_TO_AT : ARP_TO_AT);
	return (bytes[TYPE_AT + 1] == 0 || bytes[TYPE_AT + 1] == 6) && to[0] == address[0] &&
	       to[1] == address[1] && to[2] == address[2] && to[3] == address[3];
}

// A frame of the guest's. unsummed: its TCP checksum was left to us (virtio 1.2 section 5.1.6.2).
void mmds_tcp_input(struct mmds_tcp *t, const uint8_t *frame, size_t len, bool unsummed, uint64_t now_ns);

// The next frame for the guest: its bytes; 0: there is none before the next input or timer.
size_t mmds_tcp_output(struct mmds_tcp *t, uint8_t ret_frame[MMDS_TCP_FRAME_MAX], uint64_t now_ns);

// What time brings: then there may be output. When to call it next; 0: not before there was input or output.
uint64_t mmds_tcp_tick(struct mmds_tcp *t, uint64_t now_ns);
uint64_t mmds_tcp_next_tick(const struct mmds_tcp *t); // the same, without anything done
