// SPDX-License-Identifier: Apache-2.0
// Private to virtio-net: the device (net.c), the data queues of a pair (net_pair.c), the rate limits
// (net_limit.c), the control queue (net_ctrl.c), the metadata service (net_mmds.c), and what frames go to, a
// pair's backend: a tap (net_tap.c), a stream socket (net_stream.c) or nobody (net_none.c).
//
// Threads: the first pair and the control queue are the VM's loop's. Each further pair has a loop of its
// own, and a thread from when a driver first uses it until the device's end; while it is used, its queues
// are moved there. A pair is touched with its loop's lock held, the device with the VM's loop's. What pairs
// read of the device (status, features, state.pairs, off, limits) is written with all these locks held,
// see vio_ops.exclude.
#pragma once
#include "devices/devices.h"
#include "devices/thread.h"
#include "microvm/base/token_bucket.h"

enum {
	NET_HEADER_BYTES = 12, // virtio 1.2 section 5.1.6
	NET_NUM_BUFFERS_AT = 10,
	NET_ETH_BYTES = 14,
	NET_MAC_BYTES = 6,
	NET_FRAME_MAX = 65536 + NET_ETH_BYTES + 4, // the largest IP packet, Ethernet header, VLAN tag
	NET_QUEUE_SIZE = 256,
	NET_MAX_MACS = 20,
};

#define NET_F_CSUM (1ULL << 0) // virtio 1.2 section 5.1.3
#define NET_F_GUEST_CSUM (1ULL << 1)
#define NET_F_CTRL_GUEST_OFFLOADS (1ULL << 2)
#define NET_F_MTU (1ULL << 3)
#define NET_F_MAC (1ULL << 5)
#define NET_F_GUEST_TSO4 (1ULL << 7)
#define NET_F_GUEST_TSO6 (1ULL << 8)
#define NET_F_GUEST_ECN (1ULL << 9)
#define NET_F_HOST_TSO4 (1ULL << 11)
#define NET_F_HOST_TSO6 (1ULL << 12)
#define NET_F_HOST_ECN (1ULL << 13)
#define NET_F_MRG_RXBUF (1ULL << 15)
#define NET_F_STATUS (1ULL << 16)
#define NET_F_CTRL_VQ (1ULL << 17)
#define NET_F_CTRL_RX (1ULL << 18)
#define NET_F_GUEST_ANNOUNCE (1ULL << 21)
#define NET_F_MQ (1ULL << 22)
#define NET_F_CTRL_MAC_ADDR (1ULL << 23)
#define NET_F_GUEST_USO4 (1ULL << 54)
#define NET_F_GUEST_USO6 (1ULL << 55)
#define NET_F_HOST_USO (1ULL << 56)
#define NET_F_SPEED_DUPLEX (1ULL << 63)

// What the host may leave for the guest to do with a frame.
#define NET_GUEST_SEGMENTS                                                                                   \
	(NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN | NET_F_GUEST_USO4 | NET_F_GUEST_USO6)
#define NET_GUEST_OFFLOADS (NET_F_GUEST_CSUM | NET_GUEST_SEGMENTS)
#define NET_HOST_OFFLOADS (NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN | NET_F_HOST_USO)

struct net_counts {
	uint64_t sent, received; // frames
	uint64_t dropped;        // in either direction: no room, too large, or not well-formed
};

struct net_backend;

// What a backend tells its pair, from the loop.
struct net_events {
	void (*readable)(void *arg);              // receive() may find a frame
	void (*writable)(void *arg);              // send() may work again
	void (*down)(void *arg, const char *why); // once, when the other side is gone for good
	void *arg;
};

struct net_backend_ops {
	const char *features_hint; // ends the sentence "the guest uses features ... not available here"
	// One frame and its header: their bytes; -EAGAIN: none (`readable` follows); -EINTR: try again.
	// `to` has room for NET_HEADER_BYTES + NET_FRAME_MAX. num_buffers is the caller's to fill in.
	ssize_t (*receive)(struct net_backend *b, const struct iovec *to, unsigned n);
	// A header and a frame of NET_ETH_BYTES to NET_FRAME_MAX. 0: taken; -EAGAIN: not now (`writable`
	// follows); another error: dropped. src_mac: the frame's sender, untouched when dropped.
	int (*send)(struct net_backend *b, struct vq_span *frame, uint8_t src_mac[NET_MAC_BYTES]);
	// Optional: received frames may have these of NET_GUEST_OFFLOADS, from now on.
	int (*offload)(struct net_backend *b, uint64_t guest_offloads);
	// Optional: which frames for whom are wanted, of `n` addresses; all: every one.
	void (*filter)(struct net_backend *b, bool all, bool allmulti, const uint8_t *macs, unsigned n);
	// Optional: tells the host's side whether the link is up.
	void (*carrier)(struct net_backend *b, bool up);
	// Optional: this pair takes part, or not. A pair without it is the only one (so `down` comes from the
	// VM's loop).
	int (*enable)(struct net_backend *b, bool on);
	// A backend made without a descriptor gets one (taken, also on failure). NULL: can't.
	int (*attach)(struct net_backend *b, const char *name, int fd, struct mv_err *err);
	// Optional: a restored guest, last seen with this MAC, goes on behind a new connection.
	void (*announce)(struct net_backend *b, const uint8_t mac[NET_MAC_BYTES]);
	void (*free)(struct net_backend *b); // and its descriptor
};

struct net_backend { // the first member of a backend's own struct
	const struct net_backend_ops *ops;
	struct net_events events;
	uint64_t features; // that it can fulfil; without a descriptor: that it may be able to
};

// Both take fd, also on failure; name is for messages. A tap may come later (fd < 0):
// by attach(), before the guest runs.
int net_tap_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		struct net_backend **ret_b, struct mv_err *err);
int net_stream_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		   struct net_backend **ret_b, struct mv_err *err);

int net_none_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		 struct net_backend **ret_b, struct mv_err *err); // fd: none

// Writes into a row of buffers, `at` bytes behind its start; what does not fit is left out.
void net_scatter(const struct iovec *to, unsigned n, size_t at, const void *src, size_t len);

// Receive buffers taken from the queue in advance, so that one readv(2) takes a frame of any size:
// buf[at..at+n) with the pieces iov[iov_at..iov_at+n_iov). They are given back before a pause.
enum { NET_POOL_BUFS = 2 * NET_QUEUE_SIZE, NET_POOL_IOV = 1024 - 1 }; // and the spill: UIO_MAXIOV
struct net_pool {
	unsigned at, n, iov_at, n_iov;
	size_t bytes; // in all of them
	struct {
		uint16_t head, n_iov;
		uint32_t bytes;
	} buf[NET_POOL_BUFS];
	struct iovec iov[NET_POOL_IOV + 1];
};

enum { NET_RX, NET_TX };

// A rate limit of one direction, all pairs together. A frame's size is known only when it was read, so
// each goes at once, and the next one when it is paid for: nothing is held back half-way. A pair that can't
// pay waits, and so does whoever comes after it; the timer, the VM's loop's, pays for them in turn.
struct net_limit {
	struct vio_net *n;
	struct mv_timer timer; // made with the first limit
	pthread_mutex_t lock;  // innermost; for what follows, but whether there is a limit at all
	struct mv_rate rate;
	uint32_t waiting, paid; // pairs, as bits: waiting, the timer is armed; paid for, yet to be told
	unsigned first;         // the pair to pay for first
};

// net_mmds.c, see there for its threads. Is this frame of the guest's for it? Then it is not for the backend.
struct net_mmds;
bool net_mmds_takes(const struct net_mmds *s, const struct vq_span *frame);
void net_mmds_input(struct net_mmds *s, struct vq_span *frame);
// May there be a frame for the guest? As receive() of a backend, first pair only.
bool net_mmds_pending(const struct net_mmds *s);
ssize_t net_mmds_receive(struct net_mmds *s, const struct iovec *to, unsigned n);
void net_mmds_reset(struct net_mmds *s); // its connections are forgotten
void net_mmds_free(struct net_mmds *s);  // NULL allowed

// A receive and a transmit queue, and their backend. A frame that is larger than the guest's
// buffers goes on in `spill`, until there are more of them or it is known that it never fits.
struct net_pair {
	struct vio_net *n;
	unsigned index, rx, tx; // its number, and those of the queues
	struct mv_loop *loop;   // the VM's, or own.loop; NULL: not made yet
	struct vio_thread own;
	struct net_backend *b;
	bool readable, writable;
	size_t frame, spilled; // bytes of a frame that waits for buffers, header included; of it in spill
	size_t room;           // for a frame: bytes that one read is given
	size_t owed[2]; // NET_RX, NET_TX: bytes of the last frame, until paid for; constant while waiting
	struct net_counts counts;
	struct net_pool pool;
	struct vq_chain chain;
	uint8_t spill[NET_HEADER_BYTES + NET_FRAME_MAX];
};

struct net_config { // section 5.1.4
	uint8_t mac[NET_MAC_BYTES];
	le16_t status, max_pairs, mtu;
	le32_t speed; // Mbit/s
	uint8_t duplex;
} __attribute__((packed));

// What the driver said by the control queue.
enum {
	NET_MODE_PROMISC = 1,
	NET_MODE_ALLMULTI = 2,
	NET_MODE_ALL = 4,      // more addresses than we keep
	NET_MODE_FILTER = 8,   // it said something of these
	NET_MODE_OFFLOADS = 16 // guest_offloads counts, and not the features
};

struct net_state {
	bool link_down;                    // as the guest was told
	uint8_t source_mac[NET_MAC_BYTES]; // of the last frame that a stream took; zero: none yet
	uint8_t mac[NET_MAC_BYTES];        // that the driver goes by; zero: there was no driver
	uint32_t mode;
	uint8_t macs[NET_MAX_MACS * NET_MAC_BYTES]; // further ones that it wants frames for
	uint32_t macs_bytes;
	uint32_t pairs; // in use
	uint64_t guest_offloads;
};

struct vio_net {
	struct vio_dev dev;
	struct net_config config;
	struct net_state state;
	uint8_t mac[NET_MAC_BYTES]; // after a reset
	unsigned n_pairs;
	struct net_pair *pair;
	bool down;                 // the other side is gone
	bool off;                  // the host's wish
	bool announce;             // the guest is asked to tell its network where it is
	struct net_limit limit[2]; // NET_RX, NET_TX
	struct net_mmds *mmds;     // NULL: none
	struct vq_chain ctrl_chain;
};

// net.c: puts into effect what the state says.
void net_update_status(struct vio_net *n); // in the configuration space; tells nobody
void net_apply_filter(struct vio_net *n);
int net_apply_offloads(struct vio_net *n);
int net_use_pairs(struct vio_net *n, unsigned pairs); // and the state; -errno: as many as before

// True: the pair takes part and its queue q is live.
bool net_queue_live(const struct net_pair *p, unsigned q);

// net_limit.c: may the next frame go? If not, the queue is kicked when it may.
bool net_may_go(struct net_pair *p, unsigned direction);

// net_ctrl.c: carries out what is in the control queue, which is queue q.
void net_ctrl_run(struct vio_net *n, unsigned q);

// net_pair.c. Frames are moved until there are no more, or it is others' turn.
void net_pair_receive(struct net_pair *p);
void net_pair_transmit(struct net_pair *p);
void net_pair_put_back(struct net_pair *p); // buffers that were taken in advance; a frame that waited is lost
void net_pair_forget(struct net_pair *p);   // the same, of a queue that is no more
