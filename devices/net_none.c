// SPDX-License-Identifier: Apache-2.0
// Nobody: what the guest sends goes nowhere, and nothing comes. For a device whose guest talks to the
// metadata service only (net_mmds.c). No offloads, as those of a stream, so that a snapshot fits any other
// backend.
#include <errno.h>
#include <stdlib.h>

#include "devices/net.h"
#include "microvm/base/util.h"

static ssize_t none_receive(struct net_backend *b, const struct iovec *to, unsigned n)
{
	(void)b, (void)to, (void)n;
	return -EAGAIN;
}

static int none_send(struct net_backend *b, struct vq_span *frame, uint8_t src_mac[NET_MAC_BYTES])
{
	(void)b, (void)frame, (void)src_mac;
	return 0;
}

static void none_free(struct net_backend *b) { free(b); }

static const struct net_backend_ops none_ops = {
	.features_hint = "; the snapshot's guest uses the offloads of a tap: give the clone a tap",
	.receive = none_receive,
	.send = none_send,
	.free = none_free,
};

int net_none_new(struct mv_loop *loop, const char *name, int fd, const struct net_events *events,
		 struct net_backend **ret_b, struct mv_err *err)
{
	struct net_backend *b = calloc(1, sizeof *b);
	(void)loop, (void)name;
	mv_close(&fd);
	if (!b)
		return mv_fail(err, ENOMEM, "out of memory");
	*b = (struct net_backend){ &none_ops, *events, 0 };
	*ret_b = b;
	return 0;
}
