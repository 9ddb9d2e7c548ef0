// SPDX-License-Identifier: Apache-2.0
// virtio-net's control queue (virtio 1.2 section 5.1.6.5): what the driver wants to receive, its MAC
// address, how many pairs of queues it uses, which offloads, and that it announced itself.
//
// A request is a class, a command, its data, and one byte for our answer. What the driver wants to
// receive is the backend's to filter, as well as it can: more addresses than we keep mean all frames,
// which section 5.1.6.5.1 leaves to the device.
#include <errno.h>
#include <string.h>

#include "devices/net.h"
#include "microvm/base/util.h"

enum { OK, ERR }; // the answer
enum { REQUESTS_PER_TURN = 64 };

enum { CLASS_RX, CLASS_MAC, CLASS_VLAN, CLASS_ANNOUNCE, CLASS_MQ, CLASS_GUEST_OFFLOADS };
enum { RX_PROMISC, RX_ALLMULTI };
enum { MAC_TABLE_SET, MAC_ADDR_SET };
enum { ANNOUNCE_ACK };
enum { MQ_PAIRS_SET };
enum { GUEST_OFFLOADS_SET };

static bool read_all(struct vq_span *s, void *to, size_t len)
{
	return s->bytes == len && vq_span_read(s, to, len) == len;
}

static bool set_rx(struct vio_net *n, unsigned command, struct vq_span *s)
{
	uint8_t on;
	uint32_t bit = command == RX_PROMISC ? NET_MODE_PROMISC : NET_MODE_ALLMULTI;
	if (command > RX_ALLMULTI || !read_all(s, &on, sizeof on) || on > 1)
		return false;
	n->state.mode = (on ? n->state.mode | bit : n->state.mode & ~bit) | NET_MODE_FILTER;
	net_apply_filter(n);
	return true;
}

// Two lists, of unicast and of multicast addresses, each behind its length.
static bool set_mac_table(struct vio_net *n, struct vq_span *s)
{
	uint8_t macs[NET_MAX_MACS * NET_MAC_BYTES];
	uint32_t used = 0;
	bool all = false;
	for (int list = 0; list < 2; list++) {
		le32_t raw;
		if (vq_span_read(s, &raw, sizeof raw) < sizeof raw)
			return false;
		uint64_t bytes = le32_get(raw) * (uint64_t)NET_MAC_BYTES;
		if (bytes > s->bytes)
			return false;
		if (bytes > sizeof macs - used) {
			vq_span_skip(s, bytes);
			all = true;
			continue;
		}
		used += (uint32_t)vq_span_read(s, macs + used, bytes);
	}
	if (s->bytes)
		return false;
	n->state.mode =
		(all ? n->state.mode | NET_MODE_ALL : n->state.mode & ~NET_MODE_ALL) | NET_MODE_FILTER;
	memcpy(n->state.macs, macs, used);
	n->state.macs_bytes = used;
	net_apply_filter(n);
	return true;
}

static bool set_mac(struct vio_net *n, struct vq_span *s)
{
	uint8_t mac[NET_MAC_BYTES];
	if (!read_all(s, mac, sizeof mac) || (mac[0] & 1))
		return false;
	memcpy(n->state.mac, mac, sizeof mac);
	memcpy(n->config.mac, mac, sizeof mac);
	net_apply_filter(n);
	return true;
}

static bool set_pairs(struct vio_net *n, struct vq_span *s)
{
	le16_t pairs;
	if (!read_all(s, &pairs, sizeof pairs) || le16_get(pairs) < 1 || le16_get(pairs) > n->n_pairs)
		return false;
	return !net_use_pairs(n, le16_get(pairs));
}

static bool set_guest_offloads(struct vio_net *n, struct vq_span *s)
{
	le64_t raw;
	if (!read_all(s, &raw, sizeof raw) ||
	    (le64_get(raw) & ~(n->dev.s.features_acked & NET_GUEST_OFFLOADS)))
		return false;
	n->state.guest_offloads = le64_get(raw);
	n->state.mode |= NET_MODE_OFFLOADS;
	return !net_apply_offloads(n);
}

// The class's feature has to be acknowledged; its command has to be one that exists.
static bool carry_out(struct vio_net *n, struct vq_span *s)
{
	struct {
		uint8_t class, command;
	} head;
	uint64_t acked = n->dev.s.features_acked;
	if (vq_span_read(s, &head, sizeof head) < sizeof head)
		return false;
	switch (head.class) {
	case CLASS_RX: return (acked & NET_F_CTRL_RX) && set_rx(n, head.command, s);
	case CLASS_MAC:
		if (head.command == MAC_TABLE_SET)
			return (acked & NET_F_CTRL_RX) && set_mac_table(n, s);
		return head.command == MAC_ADDR_SET && (acked & NET_F_CTRL_MAC_ADDR) && set_mac(n, s);
	case CLASS_ANNOUNCE:
		if (!(acked & NET_F_GUEST_ANNOUNCE) || head.command != ANNOUNCE_ACK)
			return false;
		n->announce = false;
		net_update_status(n);
		return true;
	case CLASS_MQ: return (acked & NET_F_MQ) && head.command == MQ_PAIRS_SET && set_pairs(n, s);
	case CLASS_GUEST_OFFLOADS:
		return (acked & NET_F_CTRL_GUEST_OFFLOADS) && head.command == GUEST_OFFLOADS_SET &&
		       set_guest_offloads(n, s);
	default: return false;
	}
}

void net_ctrl_run(struct vio_net *n, unsigned q)
{
	struct vio_dev *d = &n->dev;
	struct vq_chain *c = &n->ctrl_chain;
	unsigned left = REQUESTS_PER_TURN;
	do {
		for (; left && vio_pop(d, q, c); left--) {
			uint8_t *answer = vq_span_take_last(&c->writable);
			if (!answer) {
				vio_needs_reset(d, "a control request without room for the answer");
				return;
			}
			*answer = carry_out(n, &c->readable) ? OK : ERR;
			vq_push(&d->s.queue[q], c->head, 1);
		}
	} while (left && vio_rearm(d, q));
	if (!left)
		vio_again(d, q);
	vio_signal_queue(d, q);
}
