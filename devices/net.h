// SPDX-License-Identifier: Apache-2.0
// Private to virtio-net: the device (net.c) and what frames go to, its backend: a tap
// (net_tap.c) or a stream socket (net_stream.c). Loop lock held for everything.
#pragma once
#include "devices/devices.h"

enum { NET_HEADER_BYTES = 12, NET_NUM_BUFFERS_AT = 10, NET_ETH_BYTES = 14, NET_MAC_BYTES = 6 };

#define NET_F_CSUM (1ULL << 0) // virtio 1.2 section 5.1.3
#define NET_F_GUEST_CSUM (1ULL << 1)
#define NET_F_MAC (1ULL << 5)
#define NET_F_HOST_TSO4 (1ULL << 11)
#define NET_F_HOST_TSO6 (1ULL << 12)
#define NET_F_STATUS (1ULL << 16)

struct net_counts {
	uint64_t sent, received; // frames
	uint64_t dropped;        // in either direction: no room, too large, or not well-formed
};

struct net_backend;

// What a backend tells its device, from the loop.
struct net_events {
	void (*readable)(void *arg);              // receive() may find a frame
	void (*writable)(void *arg);              // send() may work again
	void (*down)(void *arg, const char *why); // once, when the other side is gone for good
	void *arg;
};

struct net_backend_ops {
	uint64_t features;         // that it can fulfil
	const char *features_hint; // ends the sentence "the guest uses features ... not available here"
	// One frame and its header into `to`: their bytes; -EAGAIN: none (`readable` follows);
	// -EMSGSIZE: one that does not fit was dropped; -EINTR: try again.
	ssize_t (*receive)(struct net_backend *b, struct vq_span *to);
	// A header and a frame of at least NET_ETH_BYTES. 0: taken; -EAGAIN: not now (`writable`
	// follows); another error: dropped. src_mac: the frame's sender, untouched when dropped.
	int (*send)(struct net_backend *b, struct vq_span *frame, uint8_t src_mac[NET_MAC_BYTES]);
	int (*activate)(struct net_backend *b, uint64_t features); // the driver is ready
	// A backend made without a descriptor gets one (taken, also on failure). NULL: can't.
	int (*attach)(struct net_backend *b, const char *name, int fd, struct mv_err *err);
	// Optional: a restored guest, last seen with this MAC, goes on behind a new connection.
	void (*announce)(struct net_backend *b, const uint8_t mac[NET_MAC_BYTES]);
	void (*free)(struct net_backend *b); // and its descriptor
};

struct net_backend { // the first member of a backend's own struct
	const struct net_backend_ops *ops;
	struct net_events events;
};

// Both take fd, also on failure; name is for messages. A tap may come later (fd < 0):
// by attach(), before the guest runs.
int net_tap_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		struct net_backend **ret_b, struct mv_err *err);
int net_stream_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		   struct net_backend **ret_b, struct mv_err *err);
