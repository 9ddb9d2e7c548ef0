// SPDX-License-Identifier: Apache-2.0
// The devices a VM can have: how each is made. Descriptors given become the
// device's (closed on free), also when making it fails.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "devices/virtio.h"
#include "microvm/base/ring.h"
#include "microvm/base/vmcfg.h"

// virtio-blk (virtio 1.2 section 5.2) on io_uring: a regular file or block device, or copy-on-write
// layers over one (disk.h). Takes all descriptors of files, also on failure.
// The capacity is the file's size in whole blocks; -EINVAL when it has none,
// -EACCES when it is to be written and not open for that.
// Of several queues the first is served by loop and ring, each other one by a loop, ring and thread of the
// device's own; with layers, whose maps they would share, all by loop.
// Another VM's writable use of the file is refused (-EBUSY) by an OFD lock: exclusive
// for writable, shared for read-only.
struct disk_files;
struct vio_blk_options {
	const char *serial;   // up to 20 bytes
	uint32_t block_bytes; // of a logical block: 512 or 4096; 0: 512, or what direct I/O needs
	bool unsafe;          // a flush does nothing
	unsigned n_queues;    // 1 to VMCFG_MAX_BLK_QUEUES; 0: 1
	struct vmcfg_rate rate;
};
int vio_blk_new(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring, const char *name,
		const struct vio_blk_options *o, const struct disk_files *files, struct vio_dev **ret_dev,
		struct mv_err *err);

// Another size of the file (disk_resize()), which the guest is told; loop's lock held.
int vio_blk_resize(struct vio_dev *d, uint64_t bytes, struct mv_err *err);
uint64_t vio_blk_bytes(const struct vio_dev *d); // as the guest sees it

// Another rate limit, from now on; loop's lock held.
int vio_blk_set_rate(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err);

// For a snapshot, quiesced: the newest layer becomes read-only, the guest goes on with a
// fresh one. Prepared first (disk_freeze() in disk.h has the errors), then carried out or dropped.
int vio_blk_freeze(struct vio_dev *d, int reader_fd, int fresh_fd, struct mv_err *err);
void vio_blk_freeze_end(struct vio_dev *d, bool commit); // nothing prepared: nothing happens
// Quiesced: what its layers have, as one layer in an empty file; disk_copy_layers() in disk.h.
int vio_blk_copy_layers(const struct vio_dev *d, int fd, struct mv_err *err);
// Another file takes the place of the drive's, from the next request on; the guest is told of its size. Takes
// fd, also on failure. -EINVAL: layers, direct I/O, no file for a drive; -EBUSY: another VM uses it.
int vio_blk_replace(struct vio_dev *d, int fd, struct mv_err *err);
unsigned vio_blk_layers(const struct vio_dev *d); // in use

// virtio-net (section 5.1). fd: a tap opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, or a
// connected Unix stream socket on which each frame has its length in front (passt's protocol);
// anything else: -EINVAL. A stream has no offloads, so a state saved with a tap, whose guest uses
// them, can't be loaded with one; the reverse works.
enum vio_net_backend { VIO_NET_TAP, VIO_NET_STREAM, VIO_NET_NONE }; // the last: nobody, without a descriptor
#define VIO_NET_MAX_PAIRS 8
struct vio_net_options {
	const char *name;
	const uint8_t *mac; // 6 bytes
	enum vio_net_backend kind;
	unsigned n_pairs; // of queues, each with a descriptor of the same tap (IFF_MULTI_QUEUE); 0: 1
	uint16_t mtu;     // that the guest is told; 0: 1500
};
int vio_net_new_with(struct gmem *mem, struct mv_loop *loop, const struct vio_net_options *o, int *fds,
		     struct vio_dev **ret_dev, struct mv_err *err); // takes fds, also on failure
int vio_net_new(struct gmem *mem, struct mv_loop *loop, const char *name, const uint8_t mac[6],
		enum vio_net_backend kind, int fd, struct vio_dev **ret_dev, struct mv_err *err);

// Before the first run of a restored guest: another MAC, and the tap (those taken are set to -1) of a
// device made without one (fds -1), as many as it has pairs of queues.
int vio_net_claim(struct vio_dev *d, const uint8_t mac[6], int *fds, struct mv_err *err);

// Bytes and frames per direction, seen from the guest; all zero: no limit. What is too much waits, in the
// guest's queue or in the backend. Not saved. -errno: no timer.
int vio_net_set_limits(struct vio_dev *d, const struct vmcfg_rate *rx, const struct vmcfg_rate *tx,
		       struct mv_err *err);

// The link goes down or up again, as by hand; while it is down frames are dropped. Not saved.
void vio_net_set_link(struct vio_dev *d, bool up);
bool vio_net_link_up(const struct vio_dev *d); // the last of these wishes

// Before the guest runs: its frames for the metadata service's address are the service's (mmds.h), which
// stays the caller's and is freed after the device.
struct mmds;
int vio_net_set_mmds(struct vio_dev *d, struct mmds *m, struct mv_err *err);

// virtio-vsock (section 5.10), streams to Unix sockets: a host program connects to
// listen_fd, sends "CONNECT <port>\n" and reads "OK <host port>\n"; a stream of the guest to
// host port P goes to the Unix socket at "<path>_P". -EINVAL: a path of more than 96
// characters, or no listening socket. Up to 1,024 streams, a descriptor each.
int vio_vsock_new(struct gmem *mem, struct mv_loop *loop, uint32_t guest_cid, int listen_fd, const char *path,
		  struct vio_dev **ret_dev, struct mv_err *err);

// What a guest gets that connects to VSOCK_METADATA_PORT of the host: these bytes, then the end of the
// stream. They stay the caller's, who gives others before they go; none at first. Runs
// without anybody who listens on the host.
#define VSOCK_METADATA_PORT 0x7468u // "th"
#define VSOCK_METADATA_MAX_BYTES (64u * 1024)
void vio_vsock_set_metadata(struct vio_dev *d, const void *bytes, uint32_t len);

// Before the first run of a restored guest: another CID, and with listen_fd >= 0 (taken) another path.
int vio_vsock_claim(struct vio_dev *d, uint32_t guest_cid, int listen_fd, const char *path,
		    struct mv_err *err);

// Calls fn when the guest asks for a stream to this port of the host, and goes on as always:
// served by who listens at "<path>_<port>", else reset. One port per device; loop's lock held.
void vio_vsock_watch_port(struct vio_dev *d, uint32_t port, void (*fn)(void *arg), void *arg);

// virtio-balloon (section 5.5). Pages are of 4 KiB. What the guest puts into the balloon, or reports as free,
// goes back to the host by gmem_discard(). -EINVAL: a target that is larger than the memory.
#define VIO_BALLOON_N_STATS 10
struct vio_balloon_config {
	uint32_t target_pages;
	uint32_t stats_interval_s; // 0: the guest is not asked
	bool deflate_on_oom, reporting, hinting;
};
struct vio_balloon_info {
	uint32_t target_pages, actual_pages, stats_interval_s;
	uint64_t freed_pages;               // given back to the host, ever; not saved
	uint64_t hinted_pages;              // of them: by the last round of hints
	uint64_t stat[VIO_BALLOON_N_STATS]; // by tag, section 5.5.6.4, as the guest says; UINT64_MAX: it did
					    // not
};
int vio_balloon_new(struct gmem *mem, struct mv_loop *loop, const struct vio_balloon_config *config,
		    struct vio_dev **ret_dev, struct mv_err *err);
int vio_balloon_set_target(struct vio_dev *d, uint32_t pages, struct mv_err *err);
int vio_balloon_set_interval(struct vio_dev *d, uint32_t seconds, struct mv_err *err);
// A round of hints: the guest gives all pages that it has free. done is called once, when it has, or with
// what came between; loop's lock held, in any thread. -ENOTSUP: not offered, or no driver for it; -EBUSY: one
// is under way.
typedef void vio_balloon_hinted_fn(void *arg, const struct mv_err *err);
int vio_balloon_hint(struct vio_dev *d, uint32_t wait_ms, vio_balloon_hinted_fn *done, void *arg,
		     struct mv_err *err);
void vio_balloon_stop_hint(struct vio_dev *d); // done is called with -ECANCELED; no round: nothing
void vio_balloon_info(const struct vio_dev *d, struct vio_balloon_info *ret_info);
// Called when statistics came that the interval asked for; loop's lock held.
void vio_balloon_on_stats(struct vio_dev *d, void (*fn)(void *arg), void *arg);

// virtio-console (section 5.3) with 1 to 4 ports; each takes its listening Unix socket, also on failure. A
// port is a character device of the guest with that name, or a terminal (hvc) of its.
#define VIO_CONSOLE_MAX_PORTS 4
#define VIO_CONSOLE_NAME_BYTES 65
struct vio_console_port {
	const char *name;
	int listen_fd;
	bool tty;
};
int vio_console_new(struct gmem *mem, struct mv_loop *loop, const struct vio_console_port *ports, unsigned n,
		    struct vio_dev **ret_dev, struct mv_err *err);

// virtio-pmem (section 5.19): the guest-visible side of a file that gmem_map_file() has mapped. fd is taken,
// also on failure; -EBUSY: another VM writes it, or uses it when it is to be written. Flushes go through the
// ring.
#define VIO_PMEM_ALIGN (2u << 20)
struct vio_pmem_config {
	const char *name;
	int fd;
	bool read_only;
	bool other_file; // another file than the snapshot's was given: only its size is compared
	uint64_t gpa, size_bytes;
};
int vio_pmem_new(struct gmem *mem, struct mv_loop *loop, struct mv_ring *ring,
		 const struct vio_pmem_config *config, struct vio_dev **ret_dev, struct mv_err *err);
// Another limit of its flushes, from now on; loop's lock held.
int vio_pmem_set_rate(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err);
// Can this file be one? -EINVAL: no regular file, or of a size that is not a multiple of 2 MiB.
int vio_pmem_check(int fd, uint64_t *ret_bytes, struct mv_err *err);

// virtio-rng (section 5.4), from getrandom(2).
int vio_rng_new(struct gmem *mem, struct mv_loop *loop, struct vio_dev **ret_dev, struct mv_err *err);
// Once, before the guest runs: an operation is a buffer of the driver's.
int vio_rng_set_limit(struct vio_dev *d, const struct vmcfg_rate *rate, struct mv_err *err);
