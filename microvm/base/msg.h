// SPDX-License-Identifier: Apache-2.0
// Messages between the daemon and a VM process: one SOCK_SEQPACKET datagram each,
// a header, a TLV body by a field table, and descriptors by SCM_RIGHTS. Both sides
// treat what they receive as hostile. The socket is descriptor 3 of a VM process.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/bytes.h"
#include "microvm/base/err.h"
#include "microvm/base/state.h"
#include "microvm/base/vmcfg.h"

#define VMM_CONTROL_FD 3
#define MSG_MAX_BYTES (128u * 1024)
#define MSG_CONSOLE_BYTES (32u * 1024)
#define MSG_RECORD_MAX_MS 600000u
// Of all that is said here. VM processes outlive their daemon: raise it with every change that an
// older VM process or daemon would not understand. A daemon leaves VMs of another version alone.
#define MSG_VERSION 9
#define MSG_MAX_ORPHAN_S (30u * 24 * 3600)

enum msg_type {
	// daemon -> VM; each is answered by one MSG_REPLY with the same id
	MSG_BOOT = 1, // struct msg_setup + kvm, kernel, initrd, drive, tap, vsock, layer: load, do not run
	MSG_RESTORE,  // struct msg_setup + kvm, state, memory or handler, drive, tap, vsock, layer; runs if
		      // run is set
	MSG_WARM,     // fd: kvm; makes in advance what the BOOT or RESTORE that is to come needs
	MSG_RUN,      // empty: first start, or resume
	MSG_PAUSE,    // empty
	MSG_SNAPSHOT, // struct msg_snapshot; fds state, memory (both empty files open for writing; memory
		      // may be a complete raw one for a raw incremental one to go over), with progress: a
		      // file for that, and per drive with a layer: the newest one, read-only; an empty file
		      // for a fresh one. copy_layers: per drive with a layer one empty file
	MSG_FORK,     // empty; fds: a socket for the zygote, and per drive with a layer as MSG_SNAPSHOT
	MSG_STOP,     // struct msg_stop: ask the guest; MSG_EVENT tells when it ended
	MSG_CONSOLE_READ,   // struct msg_console_read; answered when there is output or after wait_ms
	MSG_CONSOLE_WRITE,  // struct msg_bytes
	MSG_CLAIM,          // struct msg_claim; fds vsock: a shell becomes a clone
	MSG_ACTIVITY,       // empty
	MSG_METADATA,       // struct msg_metadata: at any time, also before the VM is made
	MSG_ADOPT = 50,     // struct msg_adopt: the first one of a new daemon
	MSG_DRIVE_SET = 60, // struct msg_drive_set; fd: another file, if new_file is set
	MSG_NET_SET,        // struct msg_net_set
	MSG_BALLOON_SET,    // struct msg_balloon_set; the answer has a struct msg_balloon
	MSG_BALLOON_STATS, // empty; likewise. VM -> daemon: struct msg_balloon, id 0, when there are new ones
	MSG_DEVICES,       // struct msg_device_query; answered by struct msg_device in data
	MSG_BALLOON_HINT,  // struct msg_balloon_hint; answered when the round has ended, with a struct
			   // msg_balloon
	MSG_BALLOON_STOP_HINT, // empty: a round that goes on ends now; its request fails with ECANCELED
	MSG_PMEM_SET = 70,     // struct msg_pmem_set
	MSG_MAKE_KVM = 71,     // fd: kvm; makes an empty KVM VM for the BOOT or RESTORE that may come at once
	MSG_PARK = 80,         // struct msg_park
	// VM -> daemon
	MSG_REPLY = 100,   // struct msg_reply
	MSG_EVENT,         // struct msg_event, id 0
	MSG_RECORDED,      // struct msg_recorded, id 0, once, after MSG_RESTORE with a file for the record
	MSG_LAZY,          // struct msg_lazy, id 0, once, after MSG_RESTORE with lazy set; fd: userfaultfd
	MSG_PARKING = 110, // struct msg_parking, id 0, once a second at most
};

enum vm_state {         // as the VM process tells it; the API's words are in vm_state_name()
	VM_CREATED = 1, // loaded, never run
	VM_RUNNING,
	VM_PAUSED,
	VM_EXITED,
};

enum vm_exit { // why a VM ended
	VM_EXIT_NONE,
	VM_EXIT_SHUTDOWN,         // the guest powered off (ACPI S5)
	VM_EXIT_RESET,            // the guest asked for a reset (i8042, ACPI reset register)
	VM_EXIT_TRIPLE_FAULT,     // KVM_EXIT_SHUTDOWN
	VM_EXIT_KVM_ERROR,        // KVM_EXIT_INTERNAL_ERROR, FAIL_ENTRY or a failed ioctl
	VM_EXIT_KILLED,           // ended by the API
	VM_EXIT_CRASHED,          // the VM process died by itself (only the daemon says this)
	VM_EXIT_SNAPSHOT_CORRUPT, // needs a damaged chunk of its snapshot (likewise)
	VM_EXIT_TTL,              // lived as long as it was to live (likewise)
	VM_EXIT_IDLE,             // had nothing to do (likewise)
	VM_EXIT_OUT_OF_MEMORY,    // went over its memory limit (likewise)
	VM_N_EXITS,
};

enum vm_stop { VM_STOP_POWER_BUTTON, VM_STOP_CTRL_ALT_DEL };

const char *vm_state_name(unsigned state); // "created", "running", "paused", "exited"
// "shutdown", "reset", "triple-fault", "kvm-error", "killed", "crashed",
// "snapshot-corrupt", "ttl", "idle", "out-of-memory"
const char *vm_exit_name(unsigned exit);

struct msg_setup {
	struct vmcfg cfg;
	vm_fd_mask fd_mask; // see vm_fds_pack()
	bool run;
	bool lazy;  // restore: the memory file fills up on demand, by userfaultfd
	bool shell; // restore, but do not run: who it is comes by MSG_CLAIM
	// restore, with descriptors record and working_set
	uint32_t record_limit_ms;      // not ready by then: recorded anyway
	char snapshot_id[MV_UUID_LEN]; // of the snapshot that the working set must be of
	uint32_t orphan_s;             // how long it goes on without a daemon; 0: not at all
};

// What makes a shell, a VM that was restored in advance, somebody's clone.
struct msg_claim {
	char name[VMCFG_NAME_LEN];
	vm_fd_mask fd_mask;       // taps; vsock: only with another path than that of the setup
	struct vmcfg_vsock vsock; // if there is one
	struct vmcfg_net net[VMCFG_MAX_NETS];
	uint32_t n_nets;
	bool run;
};

// A document that the guest reads over vsock, or from the metadata service of its nets: a JSON object and a
// newline (devices/devices.h). Replaces the one before.
#define MSG_METADATA_BYTES (64u * 1024)
struct msg_metadata {
	uint32_t n_data;
	uint8_t data[MSG_METADATA_BYTES];
};

struct msg_adopt {
	char id[MV_UUID_LEN]; // of the VM that should be there
	bool end;             // it is unknown to the daemon: the process ends, without an answer
	uint32_t orphan_s;    // as in struct msg_setup
};

// Of one network device: what it is to be from now on.
struct msg_net_set {
	uint32_t index; // in struct vmcfg
	bool link_up;
	struct vmcfg_rate rx_rate, tx_rate;
};

// Of one drive: what it is to be from now on.
struct msg_drive_set {
	uint32_t index;      // in struct vmcfg
	bool reread_size;    // the file has another size
	uint64_t size_bytes; // or is to get this one; 0: no
	bool new_file;       // another one takes its place; in a message, not in an answer
	struct vmcfg_rate rate;
};

// Of one pmem device: what it is to be from now on.
struct msg_pmem_set {
	uint32_t index; // in struct vmcfg
	struct vmcfg_rate rate;
};

struct msg_snapshot {
	uint32_t lz4;         // enum snap_memory_kind of snapshot/manifest.h
	uint32_t incremental; // 1: only what changed, see live.h
	uint32_t confirmed;   // 1: the snapshot before this one was published
	uint32_t copy_layers; // 1: of a paused VM, whose layers stay as they are and are copied into files
	uint32_t progress;    // 1: with a file for a struct mv_progress (progress.h)
};

// Guest memory that is registered with a userfaultfd.
struct msg_lazy_region {
	uint64_t hva, size_bytes; // in the VM process, page-aligned
	uint64_t file_offset;     // in the memory file
};
struct msg_lazy {
	struct msg_lazy_region region[4];
	uint32_t n_regions;
};

// The working set is in its file (snapshot/working_set.h), or why not.
struct msg_recorded {
	uint32_t code; // 0 or a positive errno
	char text[360];
};

// Devices are asked for one by one, so that the largest fits an answer.
struct msg_device_query {
	uint32_t slot; // 0 is answered even if there is no device
};

#define MSG_MAX_QUEUES 80

struct msg_queue {
	uint32_t size, max_size; // size 0: the driver has not set it up
	bool ready;
	uint32_t next_avail, next_used; // indexes of the rings
	// Since the VM's process made it, as devices/vq.h and devices/virtio.h have them
	uint64_t kicks_by_event, kicks_by_exit, again, popped, used, interrupts, suppressed;
};

struct msg_exits { // of a vCPU to user space, by reason
	uint64_t mmio, io, hlt, other;
};

struct msg_device {
	uint32_t n_devices; // of the VM; 0: all else but the vCPUs is zero
	char name[80];
	uint32_t device_id, status; // virtio 1.2 sections 5, 2.1
	uint64_t features_offered, features_acked;
	uint64_t config_interrupts;
	struct msg_queue queue[MSG_MAX_QUEUES];
	uint32_t n_queues;
	struct msg_exits vcpu[VMCFG_MAX_VCPUS]; // with slot 0
	uint32_t n_vcpus;
};

struct msg_balloon_set {
	bool has_target, has_interval;
	uint32_t target_mib, stats_interval_s;
};

#define MSG_HINT_MAX_MS 600000u
struct msg_balloon_hint {
	uint32_t wait_ms; // then it ends
};

#define MSG_BALLOON_N_STATS 10 // VIO_BALLOON_N_STATS
struct msg_balloon {
	bool present;
	uint32_t target_pages, actual_pages, stats_interval_s;
	uint64_t freed_pages;               // given back to the host, ever
	uint64_t hinted_pages;              // of them: by the last round of hints
	uint64_t stat[MSG_BALLOON_N_STATS]; // UINT64_MAX: the guest does not say
	uint32_t n_stats;                   // all, or none
};
extern const char *const msg_balloon_stat_names[MSG_BALLOON_N_STATS];

#define MSG_MAX_PARK_MS (24u * 3600 * 1000)
struct msg_park {         // microvm/park.h
	uint32_t idle_ms; // 0: never
};
enum park_cause { PARK_WOKEN_BY_TIMER, PARK_WOKEN_BY_DEVICE, PARK_WOKEN_BY_REQUEST, PARK_N_CAUSES };
struct msg_parking { // since the VM's process made it
	bool parked;
	uint64_t parks, wakes[PARK_N_CAUSES];
	uint64_t parked_ns;                          // up to the last wake
	uint64_t wake_ns, wake_last_ns, wake_max_ns; // that waking took: in all, the last time, at most
};

struct msg_stop {
	uint32_t mode; // enum vm_stop
};

struct msg_console_read {
	uint64_t offset; // bytes since the console's start
	uint32_t max_bytes;
	uint32_t wait_ms; // 0: answer at once
};

struct msg_bytes {
	uint32_t n_data;
	uint8_t data[MSG_CONSOLE_BYTES];
};

// Times of CLOCK_MONOTONIC in ns; 0: has not happened.
struct msg_times {
	uint64_t process_start; // first line of main()
	uint64_t request;       // BOOT or RESTORE received
	uint64_t kvm_ready;     // VM, vCPUs, memory slots, irqchip there
	uint64_t loaded;        // kernel or state loaded
	uint64_t running;       // told to run; in later messages: just before the first KVM_RUN
	uint64_t first_exit;    // first return of KVM_RUN to user space
	uint64_t first_io;      // guest's first port or MMIO access
	uint64_t ready;         // it said that it is ready for work (struct vmcfg_ready)
};

struct msg_reply {
	uint32_t code; // 0 or a positive errno
	char text[360];
	uint32_t state; // enum vm_state
	struct msg_times times;
	uint32_t pid;                                 // MSG_FORK: the zygote's
	uint8_t layers[VMCFG_MAX_DRIVES];             // MSG_ADOPT: of each drive, in use
	struct msg_drive_set drive[VMCFG_MAX_DRIVES]; // MSG_ADOPT: of each, as it is
	struct msg_net_set net[VMCFG_MAX_NETS];       // likewise
	struct msg_pmem_set pmem[VMCFG_MAX_PMEMS];    // likewise
	uint32_t n_drives, n_nets, n_pmems;
	// MSG_SNAPSHOT
	uint64_t state_bytes, memory_bytes, memory_data_bytes; // the last: without holes
	uint64_t pause_ns;                                     // how long the vCPUs stood still; MSG_FORK too
	bool layers_frozen; // the drives go on with their fresh layers, also if the rest failed
	// MSG_CONSOLE_READ
	uint64_t console_offset; // of data[0]; larger than asked when older output was overwritten
	uint64_t console_end;    // total bytes the guest ever wrote
	uint32_t n_data;         // MSG_DEVICES too
	uint8_t data[MSG_CONSOLE_BYTES];
	// MSG_ACTIVITY: a number that changes when the guest said something on its console, or
	// something went over its net or vsock devices, either way
	uint64_t activity;
	struct msg_balloon
		balloon; // MSG_ADOPT, MSG_BALLOON_SET, MSG_BALLOON_STATS, MSG_BALLOON_HINT; if there is one
};

// On a zygote's socket (microvm/zygote.h).
enum zygote_msg {
	ZYGOTE_FORK = 200, // empty; fd: the control socket of a VM process
	ZYGOTE_FORKED,     // struct msg_forked, the same id
};
struct msg_forked {
	uint32_t code; // 0 or a positive errno
	uint32_t pid;
};

struct msg_event {
	uint32_t state;   // enum vm_state
	uint32_t reason;  // enum vm_exit
	char detail[128]; // e.g. which KVM error
	struct msg_times times;
	// VM_EXITED: the last of the console, kept by the daemon when the process is gone
	uint64_t console_end; // total bytes the guest ever wrote; data ends there
	uint32_t n_data;
	uint8_t data[MSG_CONSOLE_BYTES];
};

extern const struct mv_table msg_setup_table, msg_snapshot_table, msg_lazy_table, msg_recorded_table,
	msg_stop_table, msg_console_read_table, msg_bytes_table, msg_claim_table, msg_metadata_table,
	msg_adopt_table, msg_net_set_table, msg_drive_set_table, msg_pmem_set_table, msg_device_query_table,
	msg_device_table, msg_balloon_set_table, msg_balloon_hint_table, msg_balloon_table, msg_park_table,
	msg_parking_table, msg_reply_table, msg_event_table, msg_forked_table;

struct msg {
	uint16_t type;
	uint64_t id;
	const uint8_t *body;
	uint32_t body_len;
	int fds[VM_FDS_MAX];
	unsigned n_fds;
};

// Sends one message; table may be NULL for an empty body. Descriptors stay the
// caller's. -EAGAIN: the peer does not read (non-blocking socket); -EPIPE: it is gone.
int msg_send(int socket_fd, uint16_t type, uint64_t id, const struct mv_table *table, const void *obj,
	     const int *fds, unsigned n_fds);

// Receives one into buf (MSG_MAX_BYTES); ret_msg->body points into it. The receiver
// owns ret_msg->fds. -EAGAIN: none there; -EPIPE: peer gone; -EPROTO: malformed (fds closed).
int msg_recv(int socket_fd, uint8_t *buf, struct msg *ret_msg);
void msg_close_fds(struct msg *m);
