// SPDX-License-Identifier: Apache-2.0
#include "api/vmjson.h"

#include <stdlib.h>
#include <string.h>

#include "api/json_fields.h"
#include "microvm/base/msg.h"
#include "microvm/base/util.h"

#define METADATA_MAX (MSG_METADATA_BYTES - 1) // and a final newline

// clang-format off
static const char *const discovery_words[] = { "acpi", "cmdline", NULL };
static const char *const protocol_words[] = { "tcp", "udp", NULL }; // enum vmcfg_protocol
static const char *const layer_words[] = { "none", "ephemeral", "kept", NULL };
static const char *const cache_words[] = { "writeback", "unsafe", NULL }; // enum vmcfg_cache
static const char *const boot_words[] = { "auto", "pvh", "linux64", NULL };
static const char *const stop_words[] = { "power-button", "ctrl-alt-del", "kill", NULL };
static const char *const format_words[] = { "raw", "lz4", "lz4-high", NULL }; // enum snap_memory_kind

// --- rate limits of devices -----------------------------------------------------------
static const struct js_field bucket_fields[] = {
	F_UINT(struct vmcfg_bucket, size, "size", JS_REQUIRED, 1, VMCFG_MAX_TOKENS,
	       "bytes or operations in refill_time_ms, and at once"),
	F_UINT(struct vmcfg_bucket, burst, "one_time_burst", JS_OMIT_EMPTY, 0, VMCFG_MAX_TOKENS,
	       "more at the start, once; default 0"),
	F_UINT(struct vmcfg_bucket, refill_ms, "refill_time_ms", JS_REQUIRED, 1, VMCFG_MAX_REFILL_MS, "ms"),
};
static DEFINE_JS(bucket_table, bucket_fields);

#define F_SUB(s, member, name_, table_, doc_)                                                      \
	{ .name = (name_), .type = JS_OBJ, .flags = JS_OMIT_EMPTY, .offset = MV_OFF(s, member),      \
	  .size = MV_SIZEOF(s, member), .sub = &(table_), .doc = (doc_) }
static const struct js_field rate_fields[] = {
	F_SUB(struct vmcfg_rate, bandwidth, "bandwidth", bucket_table, "bytes; default: no limit"),
	F_SUB(struct vmcfg_rate, ops, "ops", bucket_table, "operations; default: no limit"),
};
static DEFINE_JS(rate_table, rate_fields);
#define F_RATE(s, member, has_, name_, doc_)                                                       \
	{ .name = (name_), .type = JS_OBJ, .offset = MV_OFF(s, member), .size = MV_SIZEOF(s, member), \
	  .sub = &rate_table, PRESENT(s, has_), .doc = (doc_) }

// --- a VM's configuration ------------------------------------------------------------
static const struct js_field drive_fields[] = {
	F_TEXT(struct vmcfg_drive, id, "id", JS_NAME, JS_REQUIRED, "name of the drive"),
	F_TEXT(struct vmcfg_drive, path, "path", JS_PATH, JS_REQUIRED,
	       "absolute path of a file or block device, in 512-byte sectors"),
	F_TEXT(struct vmcfg_drive, serial, "serial", JS_STR, JS_OMIT_EMPTY,
	       "up to 20 bytes, shown to the guest; default: the id"),
	F_BOOL(struct vmcfg_drive, read_only, "read_only", "default false"),
	F_WORD(struct vmcfg_drive, layer, "layer", layer_words,
	       "where writes go: none (the file itself; default), ephemeral, kept"),
	F_TEXT(struct vmcfg_drive, layer_path, "layer_path", JS_PATH, JS_OMIT_EMPTY,
	       "kept: absolute path of the layer's folder, made when it is not there"),
	F_SUB(struct vmcfg_drive, rate, "rate_limit", rate_table, "default: none"),
	F_UINT(struct vmcfg_drive, block_size, "block_size", JS_OMIT_EMPTY, 512, 4096,
	       "bytes of a logical block, 512 (default) or 4096"),
	F_WORD(struct vmcfg_drive, cache, "cache", cache_words,
	       "what a flush of the guest does: writeback makes durable (default), unsafe nothing"),
	F_UINT(struct vmcfg_drive, queues, "queues", JS_OMIT_EMPTY, 1, VMCFG_MAX_BLK_QUEUES,
	       "of requests, at most one per vCPU; default 1"),
	F_BOOL(struct vmcfg_drive, direct, "direct", "past the host's page cache (O_DIRECT); default false"),
};
static DEFINE_JS(drive_table, drive_fields);

static const struct js_field forward_fields[] = {
	F_UINT(struct vmcfg_forward, host_port, "host_port", JS_REQUIRED, 1, UINT16_MAX, "1 to 65535"),
	F_UINT(struct vmcfg_forward, guest_port, "guest_port", JS_REQUIRED, 1, UINT16_MAX, "1 to 65535"),
	F_WORD(struct vmcfg_forward, protocol, "protocol", protocol_words, "default tcp"),
	F_TEXT(struct vmcfg_forward, host_address, "host_address", JS_STR, JS_OMIT_EMPTY,
	       "IPv4 address of the host; default 127.0.0.1"),
};
static DEFINE_JS(forward_table, forward_fields);

static const struct js_field user_fields[] = {
	F_LIST(struct vmcfg_user, forward, n_forwards, "forward", 0, forward_table, "default: none"),
	F_BOOL(struct vmcfg_user, host_loopback, "host_loopback",
	       "the gateway's address is the host's 127.0.0.1; default false"),
};
static DEFINE_JS(user_table, user_fields);

static const struct js_field net_fields[] = {
	F_TEXT(struct vmcfg_net, id, "id", JS_NAME, JS_REQUIRED, "name of the interface"),
	F_TEXT(struct vmcfg_net, tap, "tap", JS_STR, JS_OMIT_EMPTY, "name of an existing tap"),
	F_TEXT(struct vmcfg_net, socket, "socket", JS_PATH, JS_OMIT_EMPTY,
	       "instead of tap: absolute path of the socket of a running passt"),
	{ .name = "user", .type = JS_OBJ, .offset = MV_OFF(struct vmcfg_net, user), .sub = &user_table,
	  .size = sizeof(struct vmcfg_user), PRESENT(struct vmcfg_net, user.present),
	  .doc = "instead of tap: a passt that the daemon starts" },
	{ .name = "mac", .type = JS_MAC, .offset = MV_OFF(struct vmcfg_net, mac), .size = 6,
	  .doc = "default: random, locally administered" },
	F_UINT(struct vmcfg_net, mtu, "mtu", JS_OMIT_EMPTY, VMCFG_MIN_MTU, UINT16_MAX,
	       "that the guest is told; default: the tap's, else 1500"),
	F_UINT(struct vmcfg_net, queues, "queues", JS_OMIT_EMPTY, 1, VMCFG_MAX_PAIRS,
	       "pairs of queues, with a tap that has multi_queue; default 1"),
	F_SUB(struct vmcfg_net, rx_rate, "rx_rate_limit", rate_table, "to the guest; default: none"),
	F_SUB(struct vmcfg_net, tx_rate, "tx_rate_limit", rate_table, "from the guest; default: none"),
};
static DEFINE_JS(net_table, net_fields);

static const struct js_field metadata_fields[] = {
	F_TEXT(struct vmcfg_metadata, address, "address", JS_STR, 0,
	       "IPv4, 169.254.1.0 to 169.254.254.255; default " VMCFG_METADATA_ADDRESS),
	F_WORD(struct vmcfg_metadata, version, "version", vmcfg_metadata_versions,
	       "v2: with session tokens only (default); v1: also without"),
	F_BOOL(struct vmcfg_metadata, imds_compat, "imds_compat",
	       "plain text also to requests that accept JSON; default false"),
	{ .name = "nets", .type = JS_STRS, .offset = MV_OFF(struct vmcfg_metadata, net),
	  .size = VMCFG_NAME_LEN, .max_count = VMCFG_MAX_NETS,
	  .count_offset = MV_OFF(struct vmcfg_metadata, n_nets),
	  .doc = "ids of the nets that have it; default: all" },
};
static DEFINE_JS(metadata_table, metadata_fields);

static const struct js_field vsock_fields[] = {
	F_UINT(struct vmcfg_vsock, cid, "cid", JS_REQUIRED, 3, UINT32_MAX - 1,
	       "the guest's context id, 3 or more"),
	{ .name = "path", .type = JS_PATH, .flags = JS_OMIT_EMPTY,
	  .offset = MV_OFF(struct vmcfg_vsock, path), .size = API_VSOCK_PATH_LEN,
	  .doc = "absolute path of the Unix socket; default: chosen by the daemon" },
};
static DEFINE_JS(vsock_table, vsock_fields);

#define F_HEX(s, member, name_, flags_, doc_)                                                       \
	{ .name = (name_), .type = JS_HEX, .flags = (flags_), .offset = MV_OFF(s, member),           \
	  .size = MV_SIZEOF(s, member), .doc = (doc_) }
static const struct js_field cpuid_fields[] = {
	F_HEX(struct vmcfg_cpuid, leaf, "leaf", JS_REQUIRED, "a leaf that the host's KVM has"),
	F_HEX(struct vmcfg_cpuid, subleaf, "subleaf", 0, "default 0x0"),
	F_WORD(struct vmcfg_cpuid, reg, "register", vmcfg_cpu_registers, "default eax"),
	F_HEX(struct vmcfg_cpuid, clear, "clear", 0, "bits to be 0; default 0x0"),
	F_HEX(struct vmcfg_cpuid, set, "set", 0, "bits to be 1, had the host them or not; default 0x0"),
};
static DEFINE_JS(cpuid_table, cpuid_fields);

static const struct js_field msr_fields[] = {
	F_HEX(struct vmcfg_msr, index, "index", JS_REQUIRED, "an MSR that the host's KVM has"),
	F_HEX(struct vmcfg_msr, clear, "clear", 0, "bits to be 0; default 0x0"),
	F_HEX(struct vmcfg_msr, set, "set", 0, "bits to be 1; default 0x0"),
};
static DEFINE_JS(msr_table, msr_fields);

static const struct js_field cpu_fields[] = {
	F_WORD(struct vmcfg_cpu, template, "template", vmcfg_cpu_templates, "default host"),
	{ .name = "disable", .type = JS_STRS, .flags = JS_OMIT_EMPTY,
	  .offset = MV_OFF(struct vmcfg_cpu, disable), .size = VMCFG_FEATURE_LEN,
	  .max_count = VMCFG_MAX_DISABLE, .count_offset = MV_OFF(struct vmcfg_cpu, n_disable),
	  .doc = "names of CPU features that the guest is not to see; default: none" },
	F_LIST(struct vmcfg_cpu, cpuid, n_cpuid, "cpuid", JS_OMIT_EMPTY, cpuid_table,
	       "bits of CPUID by number, over what the host's KVM has; x86-64; default: none"),
	F_LIST(struct vmcfg_cpu, msr, n_msrs, "msrs", JS_OMIT_EMPTY, msr_table,
	       "bits of model-specific registers at the boot; x86-64; default: none"),
};
static DEFINE_JS(cpu_table, cpu_fields);

static const struct js_field ready_fields[] = {
	F_TEXT(struct vmcfg_ready, console, "console", JS_STR, JS_OMIT_EMPTY,
	       "a text of up to 128 bytes that the guest writes to its serial port"),
	F_UINT(struct vmcfg_ready, vsock_port, "vsock_port", JS_OMIT_EMPTY, 1, UINT32_MAX - 1,
	       "a port of the host (CID 2) that the guest opens a stream to"),
};
static DEFINE_JS(ready_table, ready_fields);

static const struct js_field console_fields[] = {
	F_TEXT(struct vmcfg_console, id, "id", JS_NAME, JS_REQUIRED, "the port's name in the guest"),
	F_TEXT(struct vmcfg_console, path, "path", JS_PATH, JS_OMIT_EMPTY,
	       "absolute path of the Unix socket; default: chosen by the daemon"),
	F_BOOL(struct vmcfg_console, tty, "tty", "a terminal of the guest's (hvc); default false"),
};
static DEFINE_JS(console_table, console_fields);

static const struct js_field pmem_fields[] = {
	F_TEXT(struct vmcfg_pmem, id, "id", JS_NAME, JS_REQUIRED, "its name"),
	F_TEXT(struct vmcfg_pmem, path, "path", JS_PATH, JS_REQUIRED,
	       "absolute path of a file, of a size that is a multiple of 2 MiB"),
	F_BOOL(struct vmcfg_pmem, read_only, "read_only", "default false"),
	F_SUB(struct vmcfg_pmem, rate, "rate_limit", rate_table, "of its flushes; default: none"),
};
static DEFINE_JS(pmem_table, pmem_fields);

static const struct js_field balloon_fields[] = {
	F_UINT(struct vmcfg_balloon, target_mib, "target_mib", 0, 0, VMCFG_MAX_MEM_MIB,
	       "MiB that the guest is to do without; default 0"),
	F_UINT(struct vmcfg_balloon, stats_interval_s, "stats_interval_s", 0, 0, VMCFG_MAX_INTERVAL_S,
	       "s between the guest's statistics; default 0: none"),
	F_BOOL(struct vmcfg_balloon, deflate_on_oom, "deflate_on_oom",
	       "a guest short of memory takes it back by itself; default false"),
	F_BOOL(struct vmcfg_balloon, free_page_reporting, "free_page_reporting",
	       "what the guest has free goes back to the host; default false"),
	F_BOOL(struct vmcfg_balloon, free_page_hinting, "free_page_hinting",
	       "the guest can be asked for all that it has free; default false"),
};
static DEFINE_JS(balloon_table, balloon_fields);

static const struct js_field balloon_set_fields[] = {
	{ .name = "target_mib", .type = JS_UINT, .offset = MV_OFF(struct msg_balloon_set, target_mib),
	  .size = 4, .max = VMCFG_MAX_MEM_MIB, PRESENT(struct msg_balloon_set, has_target),
	  .doc = "MiB; default: unchanged" },
	{ .name = "stats_interval_s", .type = JS_UINT, .size = 4, .max = VMCFG_MAX_INTERVAL_S,
	  .offset = MV_OFF(struct msg_balloon_set, stats_interval_s),
	  PRESENT(struct msg_balloon_set, has_interval), .doc = "s, 0: none; default: unchanged" },
};
DEFINE_JS(balloon_set_table, balloon_set_fields);

static const struct js_field balloon_hint_fields[] = {
	F_UINT(struct msg_balloon_hint, wait_ms, "timeout_ms", 0, 1, MSG_HINT_MAX_MS,
	       "ms that the guest may take; default 30000"),
};
DEFINE_JS(balloon_hint_table, balloon_hint_fields);

#define CONFIG_FIELDS(s, cfg)                                                                      \
	F_TEXT(s, cfg name, "name", JS_NAME, JS_REQUIRED, "1 to 64 of A-Z a-z 0-9 _ . -"),         \
	F_UINT(s, cfg vcpus, "vcpus", 0, 1, VMCFG_MAX_VCPUS, "default 1"),                         \
	F_UINT(s, cfg mem_mib, "memory_mib", 0, VMCFG_MIN_MEM_MIB, VMCFG_MAX_MEM_MIB,              \
	       "MiB; default 128"),                                                                \
	F_TEXT(s, cfg kernel, "kernel", JS_PATH, JS_REQUIRED, "absolute path of vmlinux or bzImage"), \
	F_TEXT(s, cfg initrd, "initrd", JS_PATH, JS_OMIT_EMPTY, "absolute path; default: none"),   \
	F_TEXT(s, cfg cmdline, "cmdline", JS_STR, 0, "default: empty"),                            \
	F_WORD(s, cfg discovery, "discovery", discovery_words, "default acpi"),                    \
	F_WORD(s, cfg boot, "boot", boot_words, "default auto"),                                   \
	F_LIST(s, cfg drive, cfg n_drives, "drives", 0, drive_table, "default: none"),                \
	F_LIST(s, cfg net, cfg n_nets, "nets", 0, net_table, "default: none"),                        \
	{ .name = "metadata_service", .type = JS_OBJ, .offset = MV_OFF(s, cfg metadata),            \
	  .sub = &metadata_table, .size = sizeof(struct vmcfg_metadata),                           \
	  PRESENT(s, cfg metadata.present), .doc = "default: none" },                               \
	{ .name = "vsock", .type = JS_OBJ, .offset = MV_OFF(s, cfg vsock), .sub = &vsock_table,     \
	  .size = sizeof(struct vmcfg_vsock), PRESENT(s, cfg vsock.present), .doc = "default: none" }, \
	{ .name = "cpu", .type = JS_OBJ, .offset = MV_OFF(s, cfg cpu), .sub = &cpu_table,           \
	  .size = sizeof(struct vmcfg_cpu), PRESENT(s, cfg cpu.present), .doc = "default: as the host's" }, \
	F_BOOL(s, cfg track_dirty, "track_dirty",                                                  \
	       "note what the guest writes, for incremental snapshots; default false"),            \
	F_WORD(s, cfg huge_pages, "huge_pages", vmcfg_huge_pages,                                   \
	       "the host's pages under the memory; default none"),                                 \
	{ .name = "ready", .type = JS_OBJ, .offset = MV_OFF(s, cfg ready), .sub = &ready_table,     \
	  .size = sizeof(struct vmcfg_ready), PRESENT(s, cfg ready.present), .doc = "default: none" }, \
	F_LIST(s, cfg console, cfg n_consoles, "consoles", 0, console_table, "default: none"),        \
	F_LIST(s, cfg pmem, cfg n_pmems, "pmems", 0, pmem_table, "default: none"),                    \
	{ .name = "balloon", .type = JS_OBJ, .offset = MV_OFF(s, cfg balloon), .sub = &balloon_table, \
	  .size = sizeof(struct vmcfg_balloon), PRESENT(s, cfg balloon.present), .doc = "default: none" }, \
	F_BOOL(s, cfg rng, "rng", "virtio-rng; default true"),                                      \
	F_SUB(s, cfg rng_rate, "rng_rate_limit", rate_table, "of its bytes and buffers; default: none")

// --- a VM's life and limits -------------------------------------------------------------
static const struct js_field limits_fields[] = {
	F_UINT(struct vm_limits, memory_mib, "memory_mib", JS_OMIT_EMPTY, 1, VMCFG_MAX_MEM_MIB,
	       "MiB of host memory for all of the VM process; default: none"),
	F_UINT(struct vm_limits, cpu_percent, "cpu_percent", JS_OMIT_EMPTY, 1, 100 * VMCFG_MAX_VCPUS,
	       "100 is one CPU; default: none"),
	F_UINT(struct vm_limits, pids, "pids", JS_OMIT_EMPTY, 1, 1000000,
	       "threads and processes; default: none"),
};
DEFINE_JS(limits_table, limits_fields);

#define LIFETIME_FIELDS(s, p)                                                                      \
	{ .name = "ttl_ms", .type = JS_UINT, .offset = MV_OFF(s, p ttl_ms), .size = 8, .min = 1,     \
	  .max = POLICY_MAX_MS, PRESENT(s, p has_ttl),                                               \
	  .doc = "ms from its first run to its end; default: none" },                                \
	{ .name = "idle_timeout_ms", .type = JS_UINT, .offset = MV_OFF(s, p idle_timeout_ms), .size = 8, \
	  .min = POLICY_MIN_IDLE_MS, .max = POLICY_MAX_MS, PRESENT(s, p has_idle_timeout),           \
	  .doc = "ms without anything to do; default: none" },                                       \
	{ .name = "idle_park_ms", .type = JS_UINT, .offset = MV_OFF(s, p idle_park_ms), .size = 8,    \
	  .min = POLICY_MIN_PARK_MS, .max = MSG_MAX_PARK_MS, PRESENT(s, p has_idle_park),            \
	  .doc = "ms without running until it is parked; default: never" },                          \
	{ .name = "auto_delete", .type = JS_BOOL, .offset = MV_OFF(s, p auto_delete), .size = 1,      \
	  PRESENT(s, p has_auto_delete), .doc = "not listed any more when it has ended; default false" }

#define POLICY_FIELDS(s, p)                                                                        \
	LIFETIME_FIELDS(s, p),                                                                     \
	{ .name = "limits", .type = JS_OBJ, .offset = MV_OFF(s, p limits), .sub = &limits_table,      \
	  .size = sizeof(struct vm_limits), PRESENT(s, p has_limits), .doc = "default: none" }

#define NOTHING
static const struct js_field lifetime_fields[] = { LIFETIME_FIELDS(struct vm_policy, NOTHING) };
DEFINE_JS(lifetime_table, lifetime_fields);

static const struct js_field config_fields[] = { CONFIG_FIELDS(struct vmcfg, NOTHING) };
DEFINE_JS(config_table, config_fields);

static const struct js_field create_fields[] = {
	CONFIG_FIELDS(struct create_body, cfg.),
	POLICY_FIELDS(struct create_body, policy.),
	F_BOOL(struct create_body, start, "start", "default false"),
	{ .name = "metadata", .type = JS_ANY, .offset = MV_OFF(struct create_body, metadata),
	  .size = sizeof(char *), .max = METADATA_MAX, .doc = "any object; default: empty" },
};
DEFINE_JS(create_table, create_fields);

// --- a clone -------------------------------------------------------------------------
static const struct js_field clone_net_fields[] = {
	F_TEXT(struct clone_net, id, "id", JS_NAME, JS_REQUIRED, "of the snapshot's interface"),
	{ .name = "tap", .type = JS_STR, .offset = MV_OFF(struct clone_net, tap),
	  .size = MV_SIZEOF(struct clone_net, tap), PRESENT(struct clone_net, has_tap),
	  .doc = "default: the snapshot's" },
	{ .name = "socket", .type = JS_PATH, .offset = MV_OFF(struct clone_net, socket),
	  .size = MV_SIZEOF(struct clone_net, socket), PRESENT(struct clone_net, has_socket),
	  .doc = "default: the snapshot's" },
	{ .name = "user", .type = JS_OBJ, .offset = MV_OFF(struct clone_net, user), .sub = &user_table,
	  .size = sizeof(struct vmcfg_user), PRESENT(struct clone_net, user.present),
	  .doc = "default: the snapshot's without its forwarded ports" },
	{ .name = "mac", .type = JS_MAC, .offset = MV_OFF(struct clone_net, mac), .size = 6,
	  PRESENT(struct clone_net, has_mac), .doc = "default: the snapshot's" },
	F_RATE(struct clone_net, rx_rate, has_rx, "rx_rate_limit", "{}: none; default: the snapshot's"),
	F_RATE(struct clone_net, tx_rate, has_tx, "tx_rate_limit", "{}: none; default: the snapshot's"),
};
static DEFINE_JS(clone_net_table, clone_net_fields);

static const struct js_field clone_drive_fields[] = {
	F_TEXT(struct clone_drive, id, "id", JS_NAME, JS_REQUIRED, "of the snapshot's drive"),
	{ .name = "path", .type = JS_PATH, .offset = MV_OFF(struct clone_drive, path),
	  .size = VMCFG_PATH_LEN, PRESENT(struct clone_drive, has_path),
	  .doc = "default: the snapshot's" },
	{ .name = "read_only", .type = JS_BOOL, .offset = MV_OFF(struct clone_drive, read_only),
	  .size = 1, PRESENT(struct clone_drive, has_read_only), .doc = "default: the snapshot's" },
	{ .name = "layer", .type = JS_WORD, .offset = MV_OFF(struct clone_drive, layer), .size = 4,
	  .words = layer_words, PRESENT(struct clone_drive, has_layer),
	  .doc = "default: ephemeral where the snapshot has a layer, else none" },
	F_TEXT(struct clone_drive, layer_path, "layer_path", JS_PATH, 0, "kept: an empty folder"),
	F_RATE(struct clone_drive, rate, has_rate, "rate_limit", "{}: none; default: the snapshot's"),
};
static DEFINE_JS(clone_drive_table, clone_drive_fields);

static const struct js_field clone_vsock_fields[] = {
	{ .name = "path", .type = JS_PATH, .offset = MV_OFF(struct clone_vsock, path),
	  .size = API_VSOCK_PATH_LEN, PRESENT(struct clone_vsock, has_path),
	  .doc = "default: chosen by the daemon" },
	{ .name = "cid", .type = JS_UINT, .offset = MV_OFF(struct clone_vsock, cid), .size = 4,
	  .min = 3, .max = UINT32_MAX - 1, PRESENT(struct clone_vsock, has_cid),
	  .doc = "default: the snapshot's" },
};
static DEFINE_JS(clone_vsock_table, clone_vsock_fields);

static const struct js_field clone_record_fields[] = {
	F_UINT(struct clone_record, limit_ms, "limit_ms", 0, 1, MSG_RECORD_MAX_MS,
	       "ms of running after which the set is recorded, ready or not; default 10000"),
};
static DEFINE_JS(clone_record_table, clone_record_fields);

static const struct js_field clone_console_fields[] = {
	F_TEXT(struct clone_console, id, "id", JS_NAME, JS_REQUIRED, "of the snapshot's port"),
	F_TEXT(struct clone_console, path, "path", JS_PATH, JS_REQUIRED, "of the Unix socket"),
};
static DEFINE_JS(clone_console_table, clone_console_fields);

static const struct js_field clone_pmem_fields[] = {
	F_TEXT(struct clone_pmem, id, "id", JS_NAME, JS_REQUIRED, "of the snapshot's"),
	F_TEXT(struct clone_pmem, path, "path", JS_PATH, JS_REQUIRED, "of a file with the same content"),
};
static DEFINE_JS(clone_pmem_table, clone_pmem_fields);

#define F_HUGE_PAGES(s, doc_)                                                                      \
	{ .name = "huge_pages", .type = JS_WORD, .offset = MV_OFF(s, huge_pages), .size = 4,        \
	  .words = vmcfg_huge_pages, PRESENT(s, has_huge_pages), .doc = (doc_) }

static const struct js_field clone_spec_fields[] = {
	F_TEXT(struct clone_spec, name, "name", JS_NAME, 0, "default: chosen by the daemon"),
	F_TEXT(struct clone_spec, page_handler, "page_handler", JS_PATH, 0, "default: the request's"),
	F_HUGE_PAGES(struct clone_spec, "default: the request's"),
	F_LIST(struct clone_spec, net, n_nets, "nets", 0, clone_net_table, "default: none"),
	F_LIST(struct clone_spec, drive, n_drives, "drives", 0, clone_drive_table, "default: none"),
	F_LIST(struct clone_spec, pmem, n_pmems, "pmems", 0, clone_pmem_table, "default: the snapshot's"),
	F_LIST(struct clone_spec, console, n_consoles, "consoles", 0, clone_console_table,
	       "default: sockets chosen by the daemon"),
	{ .name = "vsock", .type = JS_OBJ, .offset = MV_OFF(struct clone_spec, vsock),
	  .size = sizeof(struct clone_vsock), .sub = &clone_vsock_table,
	  PRESENT(struct clone_spec, has_vsock), .doc = "default: none" },
	POLICY_FIELDS(struct clone_spec, policy.),
	{ .name = "metadata", .type = JS_ANY, .offset = MV_OFF(struct clone_spec, metadata),
	  .size = sizeof(char *), .max = METADATA_MAX, .doc = "any object; default: empty" },
	{ .name = "ready", .type = JS_OBJ, .offset = MV_OFF(struct clone_spec, ready),
	  .size = sizeof(struct vmcfg_ready), .sub = &ready_table,
	  PRESENT(struct clone_spec, ready.present),
	  .doc = "instead of the snapshot's; {}: none; default: the snapshot's" },
	{ .name = "record", .type = JS_OBJ, .offset = MV_OFF(struct clone_spec, record),
	  .size = sizeof(struct clone_record), .sub = &clone_record_table,
	  PRESENT(struct clone_spec, has_record), .doc = "record the working set; default: no" },
	{ .name = "populate", .type = JS_BOOL, .offset = MV_OFF(struct clone_spec, populate), .size = 1,
	  PRESENT(struct clone_spec, has_populate),
	  .doc = "load the working set's pages before it runs; default true, when there is one" },
};
static DEFINE_JS(clone_spec_table, clone_spec_fields);

static const struct js_field clone_fields[] = {
	{ .name = "count", .type = JS_UINT, .offset = MV_OFF(struct clone_body, count), .size = 4,
	  .min = 1, .max = API_MAX_CLONES, PRESENT(struct clone_body, has_count), .doc = "default 1" },
	{ .name = "clones", .type = JS_LISTP, .offset = MV_OFF(struct clone_body, clones),
	  .size = sizeof(struct clone_spec), .max_count = API_MAX_CLONES,
	  .count_offset = MV_OFF(struct clone_body, n_clones), .sub = &clone_spec_table,
	  PRESENT(struct clone_body, has_clones), .doc = "instead of count: one object per clone" },
	F_TEXT(struct clone_body, name_prefix, "name_prefix", JS_NAME, 0,
	       "default: the snapshot's name"),
	POLICY_FIELDS(struct clone_body, policy.),
	F_BOOL(struct clone_body, run, "run", "default true"),
	F_TEXT(struct clone_body, page_handler, "page_handler", JS_PATH, 0,
	       "Unix socket of a page handler that has the memory; default: none"),
	F_HUGE_PAGES(struct clone_body, "default: the snapshot's"),
};
DEFINE_JS(clone_table, clone_fields);

// --- the small ones --------------------------------------------------------------------
static const struct js_field stop_fields[] = {
	F_WORD(struct stop_body, mode, "mode", stop_words, "default power-button"),
	F_UINT(struct stop_body, wait_ms, "wait_ms", 0, 0, 600000, "ms to wait for the end; default 0"),
};
DEFINE_JS(stop_table, stop_fields);

static const struct js_field net_body_fields[] = {
	{ .name = "link_up", .type = JS_BOOL, .offset = MV_OFF(struct net_body, link_up), .size = 1,
	  PRESENT(struct net_body, has_link), .doc = "default: as it is" },
	F_RATE(struct net_body, rx_rate, has_rx, "rx_rate_limit", "{}: none; default: as it is"),
	F_RATE(struct net_body, tx_rate, has_tx, "tx_rate_limit", "{}: none; default: as it is"),
};
DEFINE_JS(net_body_table, net_body_fields);
static const struct js_field drive_body_fields[] = {
	F_UINT(struct drive_body, size_bytes, "size_bytes", 0, 512, INT64_MAX,
	       "of the file, at least what it has; default: as it is"),
	F_BOOL(struct drive_body, reread_size, "reread_size", "the file has another size; default false"),
	F_RATE(struct drive_body, rate, has_rate, "rate_limit", "{}: none; default: as it is"),
};
DEFINE_JS(drive_body_table, drive_body_fields);
static const struct js_field pmem_body_fields[] = {
	F_RATE(struct pmem_body, rate, has_rate, "rate_limit", "{}: none; default: as it is"),
};
DEFINE_JS(pmem_body_table, pmem_body_fields);

static const struct js_field snapshot_fields[] = {
	F_TEXT(struct snapshot_body, name, "name", JS_NAME, JS_REQUIRED, "of the snapshot"),
	F_TEXT(struct snapshot_body, vm, "vm", JS_NAME, JS_REQUIRED, "name or id of the VM"),
	F_WORD(struct snapshot_body, format, "format", format_words,
	       "of the memory; default raw, incremental: lz4"),
	F_BOOL(struct snapshot_body, incremental, "incremental",
	       "only what changed since the VM's last snapshot, or since it was cloned; default false"),
};
DEFINE_JS(snapshot_table, snapshot_fields);

#define F_POOL(member, has_, name_, min_, max_, doc_)                                              \
	{ .name = (name_), .type = JS_UINT, .offset = MV_OFF(struct prepare_pool, member), .size = 4, \
	  .min = (min_), .max = (max_), PRESENT(struct prepare_pool, has_), .doc = (doc_) }

static const struct js_field pool_fields[] = {
	F_POOL(size, has_size, "size", 0, API_MAX_POOL, "clones kept ready; 0: no pool"),
	F_UINT(struct prepare_pool, min, "min", 0, 0, API_MAX_POOL, "by rate: never fewer; default 0"),
	F_POOL(max, has_max, "max", 1, API_MAX_POOL,
	       "instead of size: as many as were claimed in a second lately, at most this"),
	F_POOL(idle_s, has_idle, "idle_s", 0, 1000000,
	       "s without a claim until it drains; 0: never; default 0, by rate 60"),
};
static DEFINE_JS(pool_table, pool_fields);

static const struct js_field flatten_fields[] = {
	F_WORD(struct flatten_body, format, "format", format_words, "of the memory; default: as it is"),
	F_TEXT(struct flatten_body, name, "name", JS_NAME, 0, "of a new snapshot; default: in place"),
};
DEFINE_JS(flatten_table, flatten_fields);

static const struct js_field prepare_fields[] = {
	F_BOOL(struct prepare_body, fill, "fill", "load memory in the background too; default true"),
	F_BOOL(struct prepare_body, wait, "wait",
	       "answer when all of it is loaded, and the pool is full; default false"),
	{ .name = "pool", .type = JS_OBJ, .offset = MV_OFF(struct prepare_body, pool),
	  .size = sizeof(struct prepare_pool), .sub = &pool_table,
	  PRESENT(struct prepare_body, has_pool), .doc = "clones restored in advance; default: unchanged" },
};
DEFINE_JS(prepare_table, prepare_fields);

const struct js_table empty_table = { .fields = NULL, .n_fields = 0 };

// clang-format on

static void random_mac(uint8_t mac[6])
{
	mv_random(mac, 6);
	mac[0] = (uint8_t)((mac[0] & 0xfc) | 0x02); // locally administered, unicast
}

static int check(const struct vmcfg *cfg, struct api_err *err)
{
	struct mv_err e = { 0 };
	return vmcfg_check(cfg, &e) ? api_fail(err, API_INVALID_VALUE, "%s", e.msg) : 0;
}

int create_parse(struct js_body in, struct create_body *ret_b, struct api_err *err)
{
	static const uint8_t zero[6];
	struct vmcfg *c = &ret_b->cfg;
	memset(ret_b, 0, sizeof *ret_b);
	c->vcpus = 1;
	c->mem_mib = 128;
	c->rng = true;
	int r = js_decode_body(&create_table, in, ret_b, err);
	if (r)
		return r;
	if (c->metadata.present && !c->metadata.address[0])
		mv_strcpy(c->metadata.address, sizeof c->metadata.address, VMCFG_METADATA_ADDRESS);
	for (uint32_t i = 0; i < c->n_nets; i++)
		if (!memcmp(c->net[i].mac, zero, 6)) // the decoder refuses zero, so: not given
			random_mac(c->net[i].mac);
	mv_uuid(c->id);
	r = check(c, err);
	return r ? r : metadata_check(c, ret_b->metadata, err);
}

int metadata_check(const struct vmcfg *cfg, const char *text, struct api_err *err)
{
	if (!text || cfg->vsock.present || cfg->metadata.present)
		return 0;
	return api_fail(err, API_INVALID_VALUE,
			"metadata: the VM has neither a vsock device nor a metadata_service, by which its "
			"guest would read it");
}

int metadata_parse(struct js_body in, char **ret_text, struct api_err *err)
{
	return js_decode_any(in, METADATA_MAX, ret_text, err);
}

void clone_body_fini(struct clone_body *b)
{
	for (uint32_t i = 0; b->clones && i < b->n_clones; i++)
		free(b->clones[i].metadata);
	free(MV_TAKE(b->clones));
}

int clone_parse(const char *bytes, size_t len, struct clone_body *ret_b, struct api_err *err)
{
	*ret_b = (struct clone_body){ .count = 1, .run = true };
	int r = js_decode(&clone_table, bytes, len, ret_b, err);
	if (r)
		return r;
	if (ret_b->has_count && ret_b->has_clones)
		return api_fail(err, API_INVALID_VALUE, "count, clones: give one of them, not both");
	if (ret_b->has_clones && !ret_b->n_clones)
		return api_fail(err, API_INVALID_VALUE, "clones: is empty; give at least one object");
	if (ret_b->has_clones)
		ret_b->count = ret_b->n_clones;
	return 0;
}

int prepare_parse(struct js_body in, struct prepare_body *ret_b, struct api_err *err)
{
	struct prepare_pool *p = &ret_b->pool;
	*ret_b = (struct prepare_body){ .fill = true };
	int r = js_decode_body(&prepare_table, in, ret_b, err);
	if (r || !ret_b->has_pool)
		return r;
	if (p->has_size == p->has_max || (p->has_size && p->min))
		return api_fail(err, API_INVALID_VALUE, "pool: give either size, or max and perhaps min");
	if (p->has_max && p->min > p->max)
		return api_fail(err, API_INVALID_VALUE, "pool: min is more than max");
	if (p->has_max && !p->has_idle)
		p->idle_s = API_POOL_IDLE_S;
	return 0;
}

struct vm_policy clone_policy(const struct clone_body *b, const struct clone_spec *spec)
{
	struct vm_policy p = b->policy;
	const struct vm_policy *o = spec ? &spec->policy : &p;
	if (o->has_ttl)
		p.ttl_ms = o->ttl_ms;
	if (o->has_idle_timeout)
		p.idle_timeout_ms = o->idle_timeout_ms;
	if (o->has_idle_park)
		p.idle_park_ms = o->idle_park_ms;
	if (o->has_auto_delete)
		p.auto_delete = o->auto_delete;
	if (o->has_limits)
		p.limits = o->limits;
	p.has_ttl |= o->has_ttl;
	p.has_idle_timeout |= o->has_idle_timeout;
	p.has_idle_park |= o->has_idle_park;
	p.has_auto_delete |= o->has_auto_delete;
	p.has_limits |= o->has_limits;
	return p;
}

static int override_net(struct vmcfg *c, const struct clone_net *o, struct api_err *err)
{
	for (uint32_t i = 0; i < c->n_nets; i++) {
		if (strcmp(c->net[i].id, o->id))
			continue;
		if (o->has_tap || o->has_socket || o->user.present) { // check() finds two of them
			memcpy(c->net[i].tap, o->tap, sizeof o->tap);
			memcpy(c->net[i].socket, o->socket, sizeof o->socket);
			c->net[i].user = o->user;
		}
		if (o->has_mac)
			memcpy(c->net[i].mac, o->mac, sizeof o->mac);
		if (o->has_rx)
			c->net[i].rx_rate = o->rx_rate;
		if (o->has_tx)
			c->net[i].tx_rate = o->tx_rate;
		return 0;
	}
	return api_fail(err, API_INVALID_VALUE, "nets: the snapshot has no interface \"%s\"", o->id);
}

static int override_drive(struct vmcfg *c, const struct clone_drive *o, struct api_err *err)
{
	for (uint32_t i = 0; i < c->n_drives; i++) {
		if (strcmp(c->drive[i].id, o->id))
			continue;
		if (o->has_path)
			memcpy(c->drive[i].path, o->path, sizeof o->path);
		if (o->has_read_only)
			c->drive[i].read_only = o->read_only;
		if (o->has_rate)
			c->drive[i].rate = o->rate;
		if (o->has_layer && o->layer == VMCFG_LAYER_NONE && c->drive[i].layer && !o->has_path)
			return api_fail(
				err, API_INVALID_VALUE,
				"drives: layer none leaves out what drive \"%s\" has in the snapshot's "
				"layers; give path, a file with all of it",
				o->id);
		if (o->has_layer)
			c->drive[i].layer = o->layer;
		memcpy(c->drive[i].layer_path, o->layer_path, sizeof o->layer_path);
		return 0;
	}
	return api_fail(err, API_INVALID_VALUE, "drives: the snapshot has no drive \"%s\"", o->id);
}

static int override_vsock(struct vmcfg *c, const struct clone_vsock *o, struct api_err *err)
{
	if (!c->vsock.present)
		return api_fail(err, API_INVALID_VALUE, "vsock: the snapshot has no vsock device");
	if (o->has_path)
		memcpy(c->vsock.path, o->path, sizeof o->path);
	if (o->has_cid)
		c->vsock.cid = o->cid;
	return 0;
}

static int override_console(struct vmcfg *c, const struct clone_console *o, struct api_err *err)
{
	for (uint32_t i = 0; i < c->n_consoles; i++)
		if (!strcmp(c->console[i].id, o->id)) {
			memcpy(c->console[i].path, o->path, sizeof o->path);
			return 0;
		}
	return api_fail(err, API_INVALID_VALUE, "consoles: the snapshot has no port \"%s\"", o->id);
}

static int override_pmem(struct vmcfg *c, const struct clone_pmem *o, struct api_err *err)
{
	for (uint32_t i = 0; i < c->n_pmems; i++)
		if (!strcmp(c->pmem[i].id, o->id)) {
			memcpy(c->pmem[i].path, o->path, sizeof o->path);
			c->pmem[i].other_file = true;
			return 0;
		}
	return api_fail(err, API_INVALID_VALUE, "pmems: the snapshot has no pmem \"%s\"", o->id);
}

uint32_t clone_huge_pages(uint32_t base, const struct clone_body *b, const struct clone_spec *s)
{
	if (s->has_huge_pages)
		return s->huge_pages;
	return b && b->has_huge_pages ? b->huge_pages : base;
}

int clone_config(const struct vmcfg *base, const struct clone_body *b, const struct clone_spec *s,
		 struct vmcfg *ret_cfg, struct api_err *err)
{
	struct vmcfg *c = ret_cfg;
	int r = 0;
	*c = *base;
	memset(c->vsock.path, 0, sizeof c->vsock.path);
	mv_uuid(c->id);
	c->huge_pages = clone_huge_pages(base->huge_pages, b, s);
	for (uint32_t i = 0; i < c->n_drives; i++) {
		if (c->drive[i].layer)
			c->drive[i].layer = VMCFG_LAYER_EPHEMERAL;
		memset(c->drive[i].layer_path, 0, sizeof c->drive[i].layer_path);
	}
	for (uint32_t i = 0; i < c->n_nets; i++) // a port of the host is one VM's, like a vsock path
		c->net[i].user.n_forwards = 0;
	for (uint32_t i = 0; i < c->n_consoles; i++)
		memset(c->console[i].path, 0, sizeof c->console[i].path);
	if (s->name[0])
		memcpy(c->name, s->name, sizeof c->name);
	for (uint32_t i = 0; i < c->n_pmems; i++)
		c->pmem[i].other_file = false;
	for (uint32_t i = 0; !r && i < s->n_pmems; i++)
		r = override_pmem(c, &s->pmem[i], err);
	for (uint32_t i = 0; !r && i < s->n_consoles; i++)
		r = override_console(c, &s->console[i], err);
	for (uint32_t i = 0; !r && i < s->n_nets; i++)
		r = override_net(c, &s->net[i], err);
	for (uint32_t i = 0; !r && i < s->n_drives; i++)
		r = override_drive(c, &s->drive[i], err);
	if (!r && s->has_vsock)
		r = override_vsock(c, &s->vsock, err);
	if (s->ready.present) {
		c->ready = s->ready;
		c->ready.present = s->ready.console[0] || s->ready.vsock_port;
	}
	if (!r)
		r = check(c, err); // the snapshot's own name is a good one, too
	if (!r && !s->name[0])
		c->name[0] = 0;
	return r;
}
