// SPDX-License-Identifier: Apache-2.0
#include "api/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "microvm/base/util.h"

#define TAP_HEADER_BYTES 12 // struct virtio_net_hdr_v1, virtio 1.2 section 5.1.6
#define ANSWER_BYTES 32768  // as ip(8) has for one interface

struct link {
	unsigned index;
	uint32_t mtu, n_queues; // n_queues: with multi_queue: those in use
	bool tap, multi_queue;
};

static const struct rtattr *find(const struct rtattr *a, size_t bytes, unsigned type)
{
	int left = (int)bytes;
	for (; RTA_OK(a, left); a = RTA_NEXT(a, left))
		if ((a->rta_type & NLA_TYPE_MASK) == type)
			return a;
	return NULL;
}

static const struct rtattr *find_in(const struct rtattr *a, unsigned type)
{
	return a ? find(RTA_DATA(a), RTA_PAYLOAD(a), type) : NULL;
}

static uint32_t number(const struct rtattr *a) // a little-endian host's u8 or u32; not there: 0
{
	uint32_t v = 0;
	if (a)
		memcpy(&v, RTA_DATA(a), RTA_PAYLOAD(a) < sizeof v ? RTA_PAYLOAD(a) : sizeof v);
	return v;
}

static int ask(const char *name, uint8_t *answer, size_t *ret_bytes)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg i;
		struct rtattr a;
		char name[IFNAMSIZ];
	} q = { .h = { .nlmsg_len = sizeof q, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST },
		.a = { .rta_len = sizeof q.a + sizeof q.name, .rta_type = IFLA_IFNAME } };
	MV_FD fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	mv_strcpy(q.name, sizeof q.name, name);
	if (fd < 0 || send(fd, &q, sizeof q, 0) < 0)
		return -errno;
	ssize_t n = recv(fd, answer, ANSWER_BYTES, MSG_TRUNC); // the kernel has answered already
	if (n < 0 || n > ANSWER_BYTES)
		return n < 0 ? -errno : -EMSGSIZE;
	*ret_bytes = (size_t)n;
	return 0;
}

// -ENODEV: there is none of that name.
static int find_link(const char *name, struct link *ret_link)
{
	static _Alignas(struct nlmsghdr) uint8_t answer[ANSWER_BYTES]; // the loop's thread only
	const struct nlmsghdr *h = (struct nlmsghdr *)answer;
	const struct ifinfomsg *i = NLMSG_DATA(h);
	size_t bytes = 0;
	int r = ask(name, answer, &bytes);
	if (r)
		return r;
	if (!NLMSG_OK(h, bytes))
		return -EPROTO;
	if (h->nlmsg_type == NLMSG_ERROR && h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct nlmsgerr)))
		return ((const struct nlmsgerr *)NLMSG_DATA(h))->error;
	if (h->nlmsg_type != RTM_NEWLINK || h->nlmsg_len < NLMSG_LENGTH(sizeof *i))
		return -EPROTO;
	bytes = h->nlmsg_len - NLMSG_LENGTH(sizeof *i);
	const struct rtattr *info = find(IFLA_RTA(i), bytes, IFLA_LINKINFO);
	const struct rtattr *kind = find_in(info, IFLA_INFO_KIND), *data = find_in(info, IFLA_INFO_DATA);
	bool tun = kind && RTA_PAYLOAD(kind) >= 4 && !memcmp(RTA_DATA(kind), "tun", 4);
	*ret_link = (struct link){ .index = (unsigned)i->ifi_index,
				   .mtu = number(find(IFLA_RTA(i), bytes, IFLA_MTU)),
				   .tap = tun && number(find_in(data, IFLA_TUN_TYPE)) == IFF_TAP,
				   .multi_queue = number(find_in(data, IFLA_TUN_MULTI_QUEUE)),
				   .n_queues = number(find_in(data, IFLA_TUN_NUM_QUEUES)) };
	return 0;
}

void tap_default_mtu(struct vmcfg *cfg)
{
	for (uint32_t i = 0; i < cfg->n_nets; i++) {
		struct vmcfg_net *n = &cfg->net[i];
		struct link l;
		if (n->tap[0] && !n->mtu && !find_link(n->tap, &l) && l.mtu >= VMCFG_MIN_MTU &&
		    l.mtu <= UINT16_MAX && l.mtu != 1500)
			n->mtu = l.mtu;
	}
}

static int tap_in_use(const struct vmcfg_net *n, struct api_err *err)
{
	return api_fail(err, API_IN_USE,
			"net %s: tap %s is used by another VM or program; give this VM its own tap", n->id,
			n->tap);
}

// TUNSETIFF creates what does not exist: so look first, and afterwards check that it is
// the interface that was seen.
static int open_queue(const struct vmcfg_net *n, const struct link *seen, int *ret_fd, struct api_err *err)
{
	const int multi_queue = seen->multi_queue ? IFF_MULTI_QUEUE : 0;
	struct ifreq ifr = { .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multi_queue) };
	int header = TAP_HEADER_BYTES;

	MV_FD fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return api_fail(err, API_TAP_DENIED,
				"net %s: /dev/net/tun: %s; load the module tun or "
				"change the device's rights",
				n->id, strerror(errno));
	memcpy(ifr.ifr_name, n->tap, sizeof ifr.ifr_name);
	if (ioctl(fd, TUNSETIFF, &ifr)) {
		switch (errno) {
		case EBUSY: return tap_in_use(n, err);
		case EPERM:
			return api_fail(err, API_TAP_DENIED,
					"net %s: the daemon may not use tap %s; create it with: ip tuntap "
					"add %s mode tap vnet_hdr user USER",
					n->id, n->tap, n->tap);
		default:
			return api_fail(err, API_TAP_INVALID,
					"net %s: %s: %s; create it with: ip tuntap add %s mode tap "
					"vnet_hdr",
					n->id, n->tap, strerror(errno), n->tap);
		}
	}
	if (if_nametoindex(n->tap) != seen->index)
		return api_fail(err, API_TAP_NOT_FOUND, "net %s: tap %s vanished; try again", n->id, n->tap);
	if (ioctl(fd, TUNSETVNETHDRSZ, &header))
		return api_fail(err, API_TAP_INVALID, "net %s: tap %s: no virtio headers: %s", n->id, n->tap,
				strerror(errno));
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

int tap_open(const struct vmcfg_net *n, int *fds, struct api_err *err)
{
	struct link l;
	int r = find_link(n->tap, &l);
	if (r == -ENODEV)
		return api_fail(err, API_TAP_NOT_FOUND,
				"net %s: there is no interface %s; create it: ip tuntap add %s mode tap "
				"vnet_hdr",
				n->id, n->tap, n->tap);
	if (r)
		return api_fail(err, API_INTERNAL, "net %s: %s: rtnetlink: %s", n->id, n->tap, strerror(-r));
	if (!l.tap)
		return api_fail(err, API_TAP_INVALID, "net %s: %s is not a tap interface", n->id, n->tap);
	if (vmcfg_net_pairs(n) > 1 && !l.multi_queue)
		return api_fail(
			err, API_TAP_INVALID,
			"net %s: %s has one queue; create it with: ip tuntap add %s mode tap vnet_hdr "
			"multi_queue",
			n->id, n->tap, n->tap);
	for (unsigned q = 0; !r && q < vmcfg_net_pairs(n); q++)
		r = open_queue(n, &l, &fds[q], err);
	// The kernel gives out queues of such a tap to anybody, but counts those in use.
	if (!r && l.multi_queue && !find_link(n->tap, &l) && l.n_queues > vmcfg_net_pairs(n))
		return tap_in_use(n, err);
	return r;
}
