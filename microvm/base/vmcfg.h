// SPDX-License-Identifier: Apache-2.0
// The configuration of one VM: what the API accepts, what travels to the VM process,
// and what a snapshot's manifest stores. Declared once, in the tables of vmcfg.c.
// Paths are opened by whoever starts the VM process; the VM gets descriptors
// (struct vm_fds) in a fixed order, so that it needs no file system.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/state.h"

#define VMCFG_NAME_LEN 65 // names and ids: 1-64 of [A-Za-z0-9_.-], first one alphanumeric
#define VMCFG_PATH_LEN 1024
#define VMCFG_CMDLINE_LEN 2048 // Linux x86 COMMAND_LINE_SIZE
#define VMCFG_MAX_DRIVES 8
#define VMCFG_MAX_BLK_QUEUES 8
#define VMCFG_MAX_LAYERS 16 // over the base of one drive
#define VMCFG_MAX_NETS 4
#define VMCFG_MAX_FORWARDS 16 // of one net
#define VMCFG_MAX_PAIRS 8     // of queues of one net
#define VMCFG_MIN_MTU 68
#define VMCFG_MAX_CONSOLES 4
#define VMCFG_MAX_PMEMS 4
#define VMCFG_MAX_VCPUS 32
#define VMCFG_MIN_MEM_MIB 4
#define VMCFG_MAX_MEM_MIB (1024u * 1024)
#define VMCFG_SERIAL_LEN 21  // virtio 1.2 section 5.2.6: 20 bytes
#define VMCFG_SOCKET_LEN 108 // sun_path

// How the guest finds virtio-mmio devices. Both: a kernel that knows both ways says of the second that it
// is taken, and goes on; for clients that do not say which kernel they have.
enum vmcfg_discovery { VMCFG_ACPI, VMCFG_CMDLINE, VMCFG_ACPI_AND_CMDLINE };

// How the kernel is entered: auto = PVH when an ELF image has the note, else the Linux
// 64-bit protocol.
enum vmcfg_boot { VMCFG_BOOT_AUTO, VMCFG_BOOT_PVH, VMCFG_BOOT_LINUX64 };

// A rate limit of a device, by microvm/base/token_bucket.h; all zero: none.
#define VMCFG_MAX_TOKENS (1ULL << 50)
#define VMCFG_MAX_REFILL_MS (24u * 3600 * 1000)
struct vmcfg_bucket {
	uint64_t size, burst; // bytes or operations; size 0: no limit
	uint64_t refill_ms;   // in which an empty one becomes full
};
struct vmcfg_rate {
	struct vmcfg_bucket bandwidth, ops;
};

// A drive's copy-on-write layer: none, gone with the VM, or kept in layer_path.
enum vmcfg_layer { VMCFG_LAYER_NONE, VMCFG_LAYER_EPHEMERAL, VMCFG_LAYER_KEPT };

// What a guest's flush does: makes durable; nothing, so that a crash of the host loses data.
enum vmcfg_cache { VMCFG_CACHE_WRITEBACK, VMCFG_CACHE_UNSAFE };

struct vmcfg_drive {
	char id[VMCFG_NAME_LEN];
	char path[VMCFG_PATH_LEN];
	char serial[VMCFG_SERIAL_LEN]; // empty: the id, cut to 20
	bool read_only;
	uint32_t layer;                  // enum vmcfg_layer
	char layer_path[VMCFG_PATH_LEN]; // kept: a folder
	struct vmcfg_rate rate;
	uint32_t block_size; // of a logical block, in bytes: 512, 4096 or 0: 512, or what `direct` needs
	uint32_t cache;      // enum vmcfg_cache
	uint32_t queues;     // 0: 1; without a layer, all but the first have a thread each
	bool direct;         // past the host's page cache; without a layer only
};

enum vmcfg_protocol { VMCFG_TCP, VMCFG_UDP };
struct vmcfg_forward {
	uint32_t host_port, guest_port; // 1 to 65535
	uint32_t protocol;              // enum vmcfg_protocol
	char host_address[16];          // IPv4; empty: 127.0.0.1
};

// A network by passt, a process that the daemon starts for this net and that ends with the VM.
struct vmcfg_user {
	bool present;
	bool host_loopback; // the gateway's address is the host's 127.0.0.1
	struct vmcfg_forward forward[VMCFG_MAX_FORWARDS];
	uint32_t n_forwards;
};

struct vmcfg_net { // exactly one of tap, socket and user; or none, if it has the metadata service
	char id[VMCFG_NAME_LEN];
	char tap[16];                  // IFNAMSIZ
	char socket[VMCFG_SOCKET_LEN]; // Unix stream socket of a running passt
	struct vmcfg_user user;
	uint8_t mac[6];
	uint32_t mtu;                       // 0: 1500
	uint32_t queues;                    // pairs, with a tap; 0: 1
	struct vmcfg_rate rx_rate, tx_rate; // to and from the guest
};
static inline unsigned vmcfg_net_pairs(const struct vmcfg_net *n) { return n->queues ? n->queues : 1; }
// Nobody is behind it but the metadata service.
static inline bool vmcfg_net_alone(const struct vmcfg_net *n)
{
	return !n->tap[0] && !n->socket[0] && !n->user.present;
}

// The guest's document by HTTP, at a link-local address that is answered inside its network devices.
enum vmcfg_metadata_version { VMCFG_METADATA_V2, VMCFG_METADATA_V1 }; // V2: with session tokens only
#define VMCFG_METADATA_ADDRESS "169.254.169.254"
struct vmcfg_metadata {
	bool present;
	char address[16];                         // IPv4, 169.254.1.0 to 169.254.254.255; empty: the above
	uint32_t version;                         // enum vmcfg_metadata_version
	bool imds_compat;                         // plain text also for who accepts JSON
	char net[VMCFG_MAX_NETS][VMCFG_NAME_LEN]; // ids of those that have it; none: all
	uint32_t n_nets;
};
extern const char *const vmcfg_metadata_versions[]; // words for them, ended by NULL

struct vmcfg_vsock {
	bool present;
	uint32_t cid;
	char path[VMCFG_SOCKET_LEN]; // host side; guest-initiated streams go to <path>_<port>
};

// What the guest sees of the host's CPU. A template is a fixed set of features, so that a
// snapshot fits every host that has them; `disable` takes more away, by name.
#define VMCFG_MAX_DISABLE 64
#define VMCFG_FEATURE_LEN 24
// Bits of registers that are 0 or 1 whatever KVM would have them be: of CPUID before the machine's topology,
// the template and `disable`, in all vCPUs; of MSRs just before the boot. What is set to 1 here is not
// compared with what a host has. x86-64 only.
#define VMCFG_MAX_CPUID 64
#define VMCFG_MAX_MSRS 16
enum vmcfg_cpu_register { VMCFG_EAX, VMCFG_EBX, VMCFG_ECX, VMCFG_EDX };
struct vmcfg_cpuid {
	uint32_t leaf, subleaf;
	uint32_t reg; // enum vmcfg_cpu_register
	uint32_t clear, set;
};
struct vmcfg_msr {
	uint32_t index;
	uint64_t clear, set;
};
enum vmcfg_cpu_template { VMCFG_CPU_HOST, VMCFG_CPU_V2, VMCFG_CPU_V3, VMCFG_CPU_ARM8, VMCFG_CPU_ARM8_2 };
struct vmcfg_cpu {
	bool present;      // asked for; only for showing it
	uint32_t template; // enum vmcfg_cpu_template
	char disable[VMCFG_MAX_DISABLE][VMCFG_FEATURE_LEN];
	uint32_t n_disable;
	struct vmcfg_cpuid cpuid[VMCFG_MAX_CPUID];
	struct vmcfg_msr msr[VMCFG_MAX_MSRS];
	uint32_t n_cpuid, n_msrs;
};
extern const char *const vmcfg_cpu_templates[]; // their names, ended by NULL
extern const char *const vmcfg_cpu_registers[]; // likewise, of enum vmcfg_cpu_register

// How a guest says that it is ready for work: a text on its console, a vsock stream that it
// opens to a port of the host, or whichever comes first.
#define VMCFG_MARKER_LEN 129
struct vmcfg_ready {
	bool present;
	char console[VMCFG_MARKER_LEN]; // empty: not by the console
	uint32_t vsock_port;            // 0: not by vsock
};

struct vmcfg_balloon {
	bool present, deflate_on_oom, free_page_reporting, free_page_hinting;
	uint32_t target_mib;
	uint32_t stats_interval_s; // 0: no statistics
};
#define VMCFG_MAX_INTERVAL_S 3600

struct vmcfg_console { // a port of the virtio-console device
	char id[VMCFG_NAME_LEN];
	char path[VMCFG_SOCKET_LEN]; // host side
	bool tty;
};

struct vmcfg_pmem {
	char id[VMCFG_NAME_LEN];
	char path[VMCFG_PATH_LEN];
	bool read_only;
	bool other_file;        // of a clone: the path is not the snapshot's
	struct vmcfg_rate rate; // of flushes: one costs as many bytes as the file has
};

struct vmcfg {
	char name[VMCFG_NAME_LEN];
	char id[MV_UUID_LEN];
	uint32_t vcpus;
	uint32_t mem_mib;
	uint32_t discovery; // enum vmcfg_discovery
	uint32_t boot;      // enum vmcfg_boot
	char kernel[VMCFG_PATH_LEN];
	char initrd[VMCFG_PATH_LEN]; // empty: none
	char cmdline[VMCFG_CMDLINE_LEN];
	struct vmcfg_drive drive[VMCFG_MAX_DRIVES];
	uint32_t n_drives;
	struct vmcfg_net net[VMCFG_MAX_NETS];
	uint32_t n_nets;
	struct vmcfg_metadata metadata;
	struct vmcfg_vsock vsock;
	bool rng;
	struct vmcfg_rate rng_rate;
	bool track_dirty;    // note what the guest writes, for incremental snapshots
	uint32_t huge_pages; // enum gmem_pages
	struct vmcfg_cpu cpu;
	struct vmcfg_ready ready;
	struct vmcfg_balloon balloon;
	struct vmcfg_console console[VMCFG_MAX_CONSOLES];
	uint32_t n_consoles;
	struct vmcfg_pmem pmem[VMCFG_MAX_PMEMS];
	uint32_t n_pmems;
};

// Of a kernel command line: the length of what is the kernel's. Behind it comes nothing, or a space (not at
// the very beginning), "--" and what is init's, as Linux takes it apart (kernel/params.c): a word "--"
// outside of quotes.
size_t vmcfg_kernel_args_len(const char *cmdline);

extern const char *const vmcfg_huge_pages[]; // words for enum gmem_pages, ended by NULL

extern const struct mv_table vmcfg_table, vmcfg_vsock_table, vmcfg_net_table, vmcfg_rate_table;

// Everything a table's ranges can't say: names, duplicate ids, multicast MACs, CIDs.
// 0 or -EINVAL with a sentence.
int vmcfg_check(const struct vmcfg *c, struct mv_err *err);

// The same of one rate limit. what: e.g. "drive", id: of the device.
int vmcfg_check_rate(const struct vmcfg_rate *r, const char *what, const char *id, struct mv_err *err);

bool vmcfg_name_ok(const char *name);

// Does this net have the metadata service? And its address, of a configuration that was checked.
bool vmcfg_net_metadata(const struct vmcfg *c, uint32_t net);
void vmcfg_metadata_address(const struct vmcfg *c, uint8_t ret_address[4]);

// A copy into zeros that leaves alone what stays zeros. Most of a configuration is room for drives, nets and
// paths that are not there; in fresh memory that room costs no pages.
void vmcfg_copy(struct vmcfg *ret_zeroed, const struct vmcfg *from);

// The descriptors that go with a configuration; -1 = none. All owned by the holder.
struct vm_fds {
	int kvm;    // /dev/kvm
	int kernel; // boot only
	int initrd; // boot only, optional
	int state;  // restore only: the snapshot's state file
	int memory; // restore only: the snapshot's memory file
	int drive[VMCFG_MAX_DRIVES];
	int tap[VMCFG_MAX_NETS][VMCFG_MAX_PAIRS]; // one for each pair; or the connected socket as the first
	int vsock;                                // listening Unix socket at vsock.path
	int layer[VMCFG_MAX_DRIVES][VMCFG_MAX_LAYERS]; // oldest first; the last is open for writing
	int uffd;        // restore only, optional: /dev/userfaultfd, for lazy memory or an exact record
	int handler;     // restore only, instead of memory: the page handler's socket, opened with O_PATH
	int record;      // restore only, optional: an empty file for the working set
	int working_set; // restore only, optional: one to populate memory by
	int orphan;      // optional: Unix socket to listen for the next daemon (microvm/orphan.h)
	int console[VMCFG_MAX_CONSOLES]; // listening Unix sockets
	int pmem[VMCFG_MAX_PMEMS];
};
#define VM_FDS_MAX                                                                                           \
	(11 + VMCFG_MAX_CONSOLES + VMCFG_MAX_PMEMS + VMCFG_MAX_DRIVES * (1 + VMCFG_MAX_LAYERS) +             \
	 VMCFG_MAX_NETS * VMCFG_MAX_PAIRS)

void vm_fds_init(struct vm_fds *f);  // all -1
void vm_fds_close(struct vm_fds *f); // closes all, sets -1

// To and from the order used in messages: a bit mask says which are there.
typedef struct {
	uint8_t bits[(VM_FDS_MAX + 7) / 8];
} vm_fd_mask;
unsigned vm_fds_pack(const struct vm_fds *f, int ret_list[VM_FDS_MAX], vm_fd_mask *ret_mask);
int vm_fds_unpack(const int *list, unsigned n, vm_fd_mask mask, struct vm_fds *ret_fds);
