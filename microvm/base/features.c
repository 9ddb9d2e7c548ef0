// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/features.h"

#include <ctype.h>
#include <stdio.h>

#include "microvm/base/util.h"

enum {
	ANY = 0,
	NET = 1,
	BLK = 2,
	CONSOLE = 3,
	RNG = 4,
	BALLOON = 5,
	VSOCK = 19,
	PMEM = 27
}; // virtio 1.2 section 5
enum { NO = FEATURE_NOT, IF = FEATURE_WHEN, YES = FEATURE_ALWAYS };

// clang-format off
const struct feature_device feature_devices[] = {
	{ BLK,   "blk",   "BLK",   "5.2" },
	{ NET,   "net",   "NET",   "5.1" },
	{ VSOCK, "vsock", "VSOCK", "5.10" },
	{ RNG,   "rng",   "RNG",   "5.4" },
	{ CONSOLE, "console", "CONSOLE", "5.3" },
	{ BALLOON, "balloon", "BALLOON", "5.5" },
	{ PMEM,  "pmem",  "PMEM",  "5.19" },
};

// As documented: all devices, then by type, by bit. To offer one more, change its word here.
const struct feature features[] = {
	{ ANY, 24, NO,  "NOTIFY_ON_EMPTY", "legacy devices only" },
	{ ANY, 27, NO,  "ANY_LAYOUT", "legacy; with VERSION_1 every layout is allowed anyway" },
	{ ANY, 28, YES, "RING_INDIRECT_DESC", "" },
	{ ANY, 29, YES, "RING_EVENT_IDX", "" },
	{ ANY, 32, YES, "VERSION_1", "refused without it: there are no legacy devices" },
	{ ANY, 33, NO,  "ACCESS_PLATFORM", "no IOMMU, no encrypted guests" },
	{ ANY, 34, NO,  "RING_PACKED", "one ring format is saved and tested; no exit per kick with either" },
	{ ANY, 35, NO,  "IN_ORDER", "disks complete out of order" },
	{ ANY, 36, NO,  "ORDER_PLATFORM", "memory is coherent, ordinary barriers do" },
	{ ANY, 37, NO,  "SR_IOV", "PCI only" },
	{ ANY, 38, NO,  "NOTIFICATION_DATA", "ioeventfd compares all of the value: kicks would be exits" },
	{ ANY, 39, NO,  "NOTIF_CONFIG_DATA", "PCI only" },
	{ ANY, 40, NO,  "RING_RESET", "a device reset does; Linux asks for it with ethtool -G and XDP" },
	{ ANY, 41, NO,  "ADMIN_VQ", "for device groups, PCI only" },

	{ BLK,  0, NO,  "BARRIER", "legacy" },
	{ BLK,  1, YES, "SIZE_MAX", "" },
	{ BLK,  2, YES, "SEG_MAX", "" },
	{ BLK,  4, NO,  "GEOMETRY", "disks have had no cylinders for long" },
	{ BLK,  5, IF,  "RO", "the drive is read-only" },
	{ BLK,  6, YES, "BLK_SIZE", "" },
	{ BLK,  7, NO,  "SCSI", "legacy pass-through" },
	{ BLK,  9, YES, "FLUSH", "" },
	{ BLK, 10, YES, "TOPOLOGY", "" },
	{ BLK, 11, IF,  "CONFIG_WCE", "the drive is not read-only" },
	{ BLK, 12, IF,  "MQ", "more than one queue is asked for" },
	{ BLK, 13, IF,  "DISCARD", "the drive is not read-only" },
	{ BLK, 14, IF,  "WRITE_ZEROES", "the drive is not read-only" },
	{ BLK, 15, NO,  "LIFETIME", "of eMMC; a file has none" },
	{ BLK, 16, NO,  "SECURE_ERASE", "can't be promised of a file" },
	{ BLK, 17, NO,  "ZONED", "no zoned backing" },

	{ NET,  0, IF,  "CSUM", "behind a tap" },
	{ NET,  1, IF,  "GUEST_CSUM", "behind a tap" },
	{ NET,  2, IF,  "CTRL_GUEST_OFFLOADS", "behind a tap" },
	{ NET,  3, YES, "MTU", "" },
	{ NET,  5, YES, "MAC", "" },
	{ NET,  6, NO,  "GSO", "legacy" },
	{ NET,  7, IF,  "GUEST_TSO4", "behind a tap" },
	{ NET,  8, IF,  "GUEST_TSO6", "behind a tap" },
	{ NET,  9, IF,  "GUEST_ECN", "behind a tap" },
	{ NET, 10, NO,  "GUEST_UFO", "deprecated in Linux" },
	{ NET, 11, IF,  "HOST_TSO4", "behind a tap" },
	{ NET, 12, IF,  "HOST_TSO6", "behind a tap" },
	{ NET, 13, IF,  "HOST_ECN", "behind a tap" },
	{ NET, 14, NO,  "HOST_UFO", "deprecated in Linux" },
	{ NET, 15, YES, "MRG_RXBUF", "" },
	{ NET, 16, YES, "STATUS", "" },
	{ NET, 17, YES, "CTRL_VQ", "" },
	{ NET, 18, YES, "CTRL_RX", "" },
	{ NET, 19, NO,  "CTRL_VLAN", "no VLAN filter" },
	{ NET, 20, NO,  "CTRL_RX_EXTRA", "Linux has no use for it" },
	{ NET, 21, YES, "GUEST_ANNOUNCE", "asked for after a restore; streams announce by themselves, too" },
	{ NET, 22, IF,  "MQ", "with `queues`" },
	{ NET, 23, YES, "CTRL_MAC_ADDR", "" },
	{ NET, 50, NO,  "DEVICE_STATS", "the host counts" },
	{ NET, 51, NO,  "HASH_TUNNEL", "no hash is computed" },
	{ NET, 52, NO,  "VQ_NOTF_COAL", "EVENT_IDX coalesces" },
	{ NET, 53, NO,  "NOTF_COAL", "EVENT_IDX coalesces" },
	{ NET, 54, IF,  "GUEST_USO4", "behind a tap, Linux 6.2" },
	{ NET, 55, IF,  "GUEST_USO6", "behind a tap, Linux 6.2" },
	{ NET, 56, IF,  "HOST_USO", "behind a tap, Linux 6.2" },
	{ NET, 57, NO,  "HASH_REPORT", "no hash is computed" },
	{ NET, 59, NO,  "GUEST_HDRLEN", "nothing here needs the hint" },
	{ NET, 60, NO,  "RSS", "the tap spreads by flow, in the kernel" },
	{ NET, 61, NO,  "RSC_EXT", "for Windows" },
	{ NET, 62, NO,  "STANDBY", "for passed-through devices" },
	{ NET, 63, YES, "SPEED_DUPLEX", "10 Gbit/s, nominal" },
	{ NET, 65, NO,  "GUEST_UDP_TUNNEL_GSO", "beyond bit 63, Linux 6.17" },
	{ NET, 66, NO,  "GUEST_UDP_TUNNEL_GSO_CSUM", "beyond bit 63, Linux 6.17" },
	{ NET, 67, NO,  "HOST_UDP_TUNNEL_GSO", "beyond bit 63, Linux 6.17" },
	{ NET, 68, NO,  "HOST_UDP_TUNNEL_GSO_CSUM", "beyond bit 63, Linux 6.17" },

	{ VSOCK, 0, YES, "STREAM", "" },
	{ VSOCK, 1, NO, "SEQPACKET", "Unix stream sockets are at the other end" },
	{ VSOCK, 2, NO, "NO_IMPLIED_STREAM", "there are streams" },

	{ CONSOLE, 0, NO,  "SIZE", "a Unix socket has no size" },
	{ CONSOLE, 1, YES, "MULTIPORT", "" },
	{ CONSOLE, 2, YES, "EMERG_WRITE", "" },

	{ BALLOON, 0, NO,  "MUST_TELL_HOST", "pages may be used again at once" },
	{ BALLOON, 1, YES, "STATS_VQ", "" },
	{ BALLOON, 2, IF,  "DEFLATE_ON_OOM", "with `deflate_on_oom`" },
	{ BALLOON, 3, IF,  "FREE_PAGE_HINT", "with `free_page_hinting`; its notifications are exits" },
	{ BALLOON, 4, IF,  "PAGE_POISON", "with `free_page_reporting`" },
	{ BALLOON, 5, IF,  "PAGE_REPORTING", "with `free_page_reporting`" },

	{ PMEM, 0, NO, "SHMEM_REGION", "the region is in the configuration" },
};
// clang-format on
const unsigned n_features = MV_ARRAY_LEN(features), n_feature_devices = MV_ARRAY_LEN(feature_devices);

void feature_name(uint32_t device_id, unsigned bit, char ret_name[FEATURE_NAME_LEN])
{
	snprintf(ret_name, FEATURE_NAME_LEN, "bit-%u", bit);
	for (unsigned i = 0; i < n_features; i++) {
		const struct feature *f = &features[i];
		if ((f->device_id && f->device_id != device_id) || f->bit != bit)
			continue;
		unsigned n = 0;
		for (; f->name[n] && n + 1 < FEATURE_NAME_LEN; n++)
			ret_name[n] = (char)tolower((unsigned char)f->name[n]);
		ret_name[n] = 0;
		return;
	}
}

void feature_device_name(uint32_t device_id, char ret_name[FEATURE_NAME_LEN])
{
	snprintf(ret_name, FEATURE_NAME_LEN, "device-%u", device_id);
	for (unsigned i = 0; i < n_feature_devices; i++)
		if (feature_devices[i].device_id == device_id)
			snprintf(ret_name, FEATURE_NAME_LEN, "%s", feature_devices[i].name);
}
