// SPDX-License-Identifier: Apache-2.0
// Private to vsock.c (queues and packets) and vsock_conn.c (streams and their sockets).
// Loop lock held for everything. A function that may free its stream says so.
#pragma once
#include <sys/queue.h>

#include "devices/devices.h"

// What a guest may send on one stream before we forward it: also the most we ever hold.
#define VSOCK_BUF_BYTES (256u * 1024)

enum {
	VSOCK_MAX_CONNS = 1024,
	VSOCK_HASH = 256,
	VSOCK_MAX_RST = 256,
	VSOCK_MAX_METADATA = 8, // streams: each holds a copy in the kernel
	VSOCK_HOST_CID = 2,
	VSOCK_HEADER_BYTES = 44,
	VSOCK_BATCH = 32,     // receive buffers that one read of a socket may fill
	VSOCK_BATCH_IOV = 64, // pieces after which it takes no more
};

enum { VSOCK_RX, VSOCK_TX, VSOCK_EVENT, VSOCK_QUEUES }; // virtio 1.2 section 5.10.2
enum { VSOCK_STREAM = 1 };
enum vsock_op { // section 5.10.6
	OP_REQUEST = 1,
	OP_RESPONSE,
	OP_RST,
	OP_SHUTDOWN,
	OP_RW,
	OP_CREDIT_UPDATE,
	OP_CREDIT_REQUEST,
};
enum { SHUT_RECEIVE = 1, SHUT_SEND = 2, SHUT_ALL = 3 }; // flags of OP_SHUTDOWN

struct vsock_header {
	le64_t src_cid, dst_cid;
	le32_t src_port, dst_port, len;
	le16_t type, op;
	le32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct vsock_header) == VSOCK_HEADER_BYTES, "section 5.10.6");

// HELLO -> REQUESTED -> OPEN   from the host: CONNECT line read; guest answered
//                       OPEN   from the guest: our connect(2) worked
// OPEN -> CLOSING              the host program closed; fd gone, SHUTDOWN sent, waiting for RST
// OPEN -> LINGER               the guest closed and was sent RST; the host still gets our buffer
enum vsock_conn_state { CONN_HELLO, CONN_REQUESTED, CONN_OPEN, CONN_CLOSING, CONN_LINGER };

struct vsock_conn {
	struct vio_vsock *v;
	TAILQ_ENTRY(vsock_conn)
	all, sending;
	LIST_ENTRY(vsock_conn) hashed;
	bool is_sending, is_hashed;
	enum vsock_conn_state state;
	uint32_t host_port, guest_port;
	int fd;
	bool is_metadata;
	struct mv_watch watch;         // edge-triggered
	bool watches_room;             // EPOLLOUT, too
	bool readable, ended, hung_up; // ended: the host writes no more, or less
	uint8_t want;                  // bit per enum vsock_op: packets to send
	uint8_t host_shut, guest_shut; // what each side will no longer do
	// credit, section 5.10.6.3; counters wrap
	uint32_t peer_buf_alloc, peer_fwd_cnt, sent_cnt;
	uint32_t received_cnt, fwd_cnt, told_fwd_cnt;
	bool asked_credit;
	// How many buffers a read is given: each that it does not need costs time, too few cost another read.
	// So as much as was read until the socket was empty last time; when that fills up, twice as much; and
	// after a read that was not filled, as there is hardly more, any buffer.
	uint32_t room, burst; // bytes for the next read; that were read since the socket was empty
	// received from the guest, not yet taken by the host: a ring of VSOCK_BUF_BYTES or NULL
	uint8_t *buf;
	uint32_t buf_at, buf_len; // received_cnt - fwd_cnt == buf_len
};

// Receive buffers taken from the queue for one read. All are used or given back before vsock_pump() goes on,
// so neither a pause nor a reset finds any.
struct vsock_batch {
	unsigned n;
	struct vq_span payload; // of all of them, in their order
	struct vsock_buf {
		uint16_t head;
		struct vq_span header;
		size_t bytes; // of payload
	} buf[VSOCK_BATCH];
	unsigned n_header_iov; // room for one more header and one more chain is always left
	struct iovec header_iov[VSOCK_BATCH_IOV + VSOCK_HEADER_BYTES];
	struct iovec payload_iov[VSOCK_BATCH_IOV + VQ_MAX_IOV];
};

struct vio_vsock {
	struct vio_dev dev;
	struct {
		le64_t guest_cid;
	} config;
	uint32_t guest_cid;
	char path[108];
	int listen_fd;
	struct mv_watch listen_watch;
	bool accept_paused; // out of descriptors; goes on when a stream ends
	// After a restore the guest ends all its streams when it handles TRANSPORT_RESET, new ones
	// too. So host programs wait in listen_fd's queue until it has given the event's buffer
	// back (its queue's index moved on from event_index); at most 30 s, or 2 s for a buffer to put it in.
	bool transport_changed; // TRANSPORT_RESET not yet delivered
	bool settling;          // delivered, not yet seen to be handled
	uint16_t event_index;
	struct mv_timer settle_timer;
	uint32_t next_host_port;
	const void *metadata;
	uint32_t n_metadata; // bytes
	unsigned n_metadata_conns;
	uint32_t watched_port; // of the host; on_watched is called when the guest asks for it
	void (*on_watched)(void *arg);
	void *on_watched_arg;
	unsigned n_conns, n_sending;
	TAILQ_HEAD(, vsock_conn)
	all, sending; // sending: may have a packet for the guest
	LIST_HEAD(, vsock_conn) hash[VSOCK_HASH];
	struct {
		uint32_t host_port, guest_port;
	} rst[VSOCK_MAX_RST]; // a ring of resets to send; one too many is dropped
	unsigned rst_at, n_rst;
	struct vq_chain chain;
	struct vsock_batch batch;
};

// vsock.c: sends what is to be sent while there are receive buffers.
void vsock_pump(struct vio_vsock *v);

// vsock_conn.c
struct vsock_conn *vsock_conn_find(struct vio_vsock *v, uint32_t host_port, uint32_t guest_port);
void vsock_accept(struct vio_vsock *v); // takes waiting host programs from listen_fd
// The guest asks for a stream: connects to "<path>_<host_port>", or resets.
void vsock_connect(struct vio_vsock *v, const struct vsock_header *h);
// A packet of the guest for this stream, payload trimmed to h->len. May free it.
void vsock_conn_receive(struct vsock_conn *c, const struct vsock_header *h, struct vq_span *payload);
// Is there a packet to send, and for how much payload should it have room? If so make it: true with op,
// flags and len of *h set and the payload read from the socket. False: there was none after all.
bool vsock_conn_has_work(const struct vsock_conn *c);
uint32_t vsock_conn_room(const struct vsock_conn *c);
bool vsock_conn_fill(struct vsock_conn *c, struct vsock_header *h, struct vq_span *payload);
void vsock_stop_sending(struct vsock_conn *c);
void vsock_rst(struct vio_vsock *v, uint32_t host_port, uint32_t guest_port);
void vsock_conn_kill(struct vsock_conn *c); // resets the guest's side and frees
void vsock_drop_all(struct vio_vsock *v);   // without a word to the guest
