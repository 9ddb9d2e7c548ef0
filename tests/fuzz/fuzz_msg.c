// SPDX-License-Identifier: Apache-2.0
// Messages between daemon and VM (microvm/base/msg.h): the bytes arrive as one datagram,
// with as many descriptors as the first byte says. What is accepted is decoded as its type
// says, and its descriptors are unpacked.
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "microvm/base/msg.h"
#include "microvm/base/util.h"

static int sock[2] = { -1, -1 };
static uint8_t buf[MSG_MAX_BYTES];

static const struct mv_table *table_of(uint16_t type)
{
	switch (type) {
	case MSG_BOOT:
	case MSG_RESTORE: return &msg_setup_table;
	case MSG_STOP: return &msg_stop_table;
	case MSG_CONSOLE_READ: return &msg_console_read_table;
	case MSG_CONSOLE_WRITE: return &msg_bytes_table;
	case MSG_DEVICES: return &msg_device_table; // what the daemon reads from the answer's data
	case MSG_PARK: return &msg_park_table;
	case MSG_PARKING: return &msg_parking_table;
	case MSG_REPLY: return &msg_reply_table;
	case MSG_EVENT: return &msg_event_table;
	default: return NULL;
	}
}

static void decode(const struct msg *m)
{
	const struct mv_table *t = table_of(m->type);
	MV_FREE void *obj = t ? malloc(t->size) : NULL;
	struct vm_fds fds;
	if (m->body < buf || m->body + m->body_len > buf + sizeof buf || m->n_fds > VM_FDS_MAX)
		abort();
	if (t && !mv_state_load(t, m->body, m->body_len, obj, NULL) && t == &msg_setup_table)
		vm_fds_unpack(m->fds, m->n_fds, ((struct msg_setup *)obj)->fd_mask, &fds);
}

static void send_raw(const uint8_t *data, size_t size, unsigned n_fds)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 32)] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)data, size };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (n_fds) {
		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
				       .cmsg_type = SCM_RIGHTS,
				       .cmsg_len = CMSG_LEN(sizeof(int) * n_fds) };
		for (unsigned i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &sock[0], sizeof(int));
	}
	if (sendmsg(sock[0], &m, 0) < 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct msg m;

	if (!size || size > 4096)
		return 0;
	if (sock[0] < 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sock))
		abort();
	send_raw(data + 1, size - 1, data[0] % 32);
	if (!msg_recv(sock[1], buf, &m)) {
		decode(&m);
		msg_close_fds(&m);
	}
	int fd = dup(0); // the lowest free descriptor: it grows when some are left open
	if (fd > 64)
		abort();
	close(fd);
	return 0;
}
