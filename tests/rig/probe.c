// SPDX-License-Identifier: Apache-2.0
/*
 * What busybox cannot ask of an interface or a block device; the same program in the guest and beside it.
 *
 *   probe tap NAME                  makes a tap of that name with several queues, which stays
 *   probe features IF               one line each, "NAME on" or "NAME off", as ethtool -k
 *   probe feature IF NAME on|off    as ethtool -K
 *   probe queues IF [N]             "USED of MAX", as ethtool -l; N: that many from now on, as ethtool -L
 *   probe announced IF SECONDS      "listening", then the first gratuitous ARP, "ADDRESS MAC"
 *   probe punch DEVICE OFFSET BYTES zeros by WRITE_ZEROES with leave to unmap, for which Linux has no
 * substitute
 *
 * 0: done; 1: not, with the reason; 2: wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FEATURES = 256, BLOCKS = MAX_FEATURES / 32 };

static int die(const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
	return 1;
}

static struct ifreq named(const char *name)
{
	struct ifreq r = { 0 };
	snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
	return r;
}

static int ethtool(const char *name, void *command)
{
	struct ifreq r = named(name);
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	r.ifr_data = command;
	int e = s < 0 ? -1 : ioctl(s, SIOCETHTOOL, &r);
	close(s);
	return e;
}

static int make_tap(const char *name)
{
	struct ifreq r = named(name);
	r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	return fd < 0 || ioctl(fd, TUNSETIFF, &r) || ioctl(fd, TUNSETPERSIST, 1) ? die(name) : 0;
}

// Shows all features, or switches the one called wanted.
static int features(const char *name, const char *wanted, int on)
{
	static struct {
		struct ethtool_sset_info head;
		uint32_t n;
	} count = { .head = { .cmd = ETHTOOL_GSSET_INFO, .sset_mask = 1ull << ETH_SS_FEATURES } };
	static struct {
		struct ethtool_gstrings head;
		char names[MAX_FEATURES][ETH_GSTRING_LEN];
	} text = { .head = { .cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_FEATURES } };
	static struct {
		struct ethtool_gfeatures head;
		struct ethtool_get_features_block of[BLOCKS];
	} get = { .head = { .cmd = ETHTOOL_GFEATURES, .size = BLOCKS } };
	static struct {
		struct ethtool_sfeatures head;
		struct ethtool_set_features_block of[BLOCKS];
	} set = { .head = { .cmd = ETHTOOL_SFEATURES } };
	if (ethtool(name, &count) || count.n > MAX_FEATURES)
		return die("number of features");
	text.head.len = count.n;
	if (ethtool(name, &text) || ethtool(name, &get))
		return die("features");
	set.head.size = (count.n + 31) / 32;
	for (uint32_t i = 0; i < count.n; i++) {
		uint32_t bit = 1u << i % 32;
		if (!wanted && *text.names[i])
			printf("%.*s %s\n", ETH_GSTRING_LEN, text.names[i],
			       get.of[i / 32].active & bit ? "on" : "off");
		if (!wanted || strncmp(wanted, text.names[i], ETH_GSTRING_LEN))
			continue;
		set.of[i / 32].valid = bit;
		set.of[i / 32].requested = on ? bit : 0;
		return ethtool(name, &set) ? die(wanted) : 0; // more than 0: not just as requested
	}
	errno = ENOENT;
	return wanted ? die(wanted) : 0;
}

static int queues(const char *name, uint32_t n)
{
	struct ethtool_channels c = { .cmd = ETHTOOL_GCHANNELS };
	if (ethtool(name, &c))
		return die(name);
	if (n) {
		c.cmd = ETHTOOL_SCHANNELS;
		c.combined_count = n;
		return ethtool(name, &c) ? die("number of queues") : 0;
	}
	printf("%u of %u\n", c.combined_count, c.max_combined);
	return 0;
}

static int announced(const char *name, unsigned seconds)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET,
				 .sll_protocol = htons(ETH_P_ARP),
				 .sll_ifindex = (int)if_nametoindex(name) };
	struct timeval turn = { .tv_sec = 1 };
	struct ether_arp arp;
	int s = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s < 0 || !a.sll_ifindex || bind(s, (struct sockaddr *)&a, sizeof a) ||
	    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &turn, sizeof turn))
		return die(name);
	puts("listening");
	fflush(stdout);
	for (time_t end = time(NULL) + seconds; time(NULL) < end;) {
		ssize_t n = recv(s, &arp, sizeof arp, 0);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return die(name);
		if (n != sizeof arp || memcmp(arp.arp_spa, arp.arp_tpa, sizeof arp.arp_spa))
			continue;
		printf("%u.%u.%u.%u ", arp.arp_spa[0], arp.arp_spa[1], arp.arp_spa[2], arp.arp_spa[3]);
		for (unsigned i = 0; i < ETH_ALEN; i++)
			printf("%02x%c", arp.arp_sha[i], i < ETH_ALEN - 1 ? ':' : '\n');
		return 0;
	}
	errno = ETIMEDOUT;
	return die("announcement");
}

static int punch(const char *path, off_t offset, off_t bytes)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int r = fd < 0 ? -1 : fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
	return r ? die(path) : 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	if (!strcmp(what, "tap") && argc == 3)
		return make_tap(argv[2]);
	if (!strcmp(what, "features") && argc == 3)
		return features(argv[2], NULL, 0);
	if (!strcmp(what, "feature") && argc == 5)
		return features(argv[2], argv[3], !strcmp(argv[4], "on"));
	if (!strcmp(what, "queues") && argc <= 4)
		return queues(argv[2], argc == 4 ? (uint32_t)atoi(argv[3]) : 0);
	if (!strcmp(what, "announced") && argc == 4)
		return announced(argv[2], (unsigned)atoi(argv[3]));
	if (!strcmp(what, "punch") && argc == 5)
		return punch(argv[2], atoll(argv[3]), atoll(argv[4]));
	fputs("usage: probe tap|features|feature|queues|announced|punch NAME [ARGUMENT]...\n", stderr);
	return 2;
}
