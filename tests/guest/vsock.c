// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-vsock driver, virtio 1.2 section 5.10: one stream to the host (CID 2) at
// a time, read to its end. The event queue stays empty: after a restore this driver has no streams
// to end.
#include "tests/guest/tiny.h"

enum { RX, TX, EVENT, QUEUES };
enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE };
enum { STREAM = 1, SHUT_ALL = 3, ROOM = 4096, FIRST_PORT = 2000, MAX_PACKETS = 10000 };
#define HOST_CID 2
#define WAIT_ROUNDS 30000000ull

static struct virtio vsock[QUEUES];
static volatile struct packet {
	u64 src_cid, dst_cid;
	u32 src_port, dst_port, len;
	u16 type, op;
	u32 flags, buf_alloc, fwd_cnt;
	u8 data[ROOM];
} __attribute__((packed)) in, out;
#define HEADER 44
static bool waiting; // `in` is with the device
static u32 our_port = FIRST_PORT;

bool vsock_init(void) { return virtio_init(vsock, QUEUES, VIRTIO_VSOCK); }

static bool send(u32 port, u16 op, u32 flags, u32 received)
{
	const struct virtio_buf tx = { &out, HEADER, false };
	u32 n;
	out.src_cid = mmio_read(vsock->base + VIRTIO_CONFIG);
	out.dst_cid = HOST_CID;
	out.src_port = our_port;
	out.dst_port = port;
	out.len = 0;
	out.type = STREAM;
	out.op = op;
	out.flags = flags;
	out.buf_alloc = 4 * ROOM;
	out.fwd_cnt = received;
	return virtio_request(&vsock[TX], &tx, 1, &n);
}

// The next packet of our stream; what belongs to others is dropped.
static bool receive(void)
{
	const struct virtio_buf rx = { &in, sizeof in, true };
	u32 n;
	for (int i = 0; i < MAX_PACKETS; i++) {
		if (!waiting)
			virtio_submit(&vsock[RX], &rx, 1);
		waiting = true;
		if (!virtio_wait(&vsock[RX], WAIT_ROUNDS, &n))
			return false;
		waiting = false;
		if (n >= HEADER && in.len <= ROOM && in.dst_port == our_port)
			return true;
	}
	return false;
}

bool vsock_read(u32 port, char *to, u32 size, u32 *ret_len)
{
	u32 have = 0, received = 0;
	our_port++;
	if (!send(port, OP_REQUEST, 0, 0) || !receive() || in.op != OP_RESPONSE)
		return false;
	while (receive() && in.op != OP_RST && in.op != OP_SHUTDOWN) {
		for (u32 i = 0; in.op == OP_RW && i < in.len; i++, received++)
			if (have < size - 1)
				to[have++] = (char)in.data[i];
		if (!send(port, OP_CREDIT_UPDATE, 0, received))
			return false;
	}
	to[have] = 0;
	*ret_len = have;
	return in.op == OP_RST || send(port, OP_RST, SHUT_ALL, received);
}
