// SPDX-License-Identifier: Apache-2.0
// The objects of Firecracker's API as structs, and the tables that decode and encode them (api/json.h). Names
// of members are those of the JSON, so that a reader of either knows the other. What may be missing has a
// has_... beside it. Data only; any thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "api/json.h"
#include "microvm/base/vmcfg.h"

// Flags of fields, beside those of json.h: what docs/firecracker.md says of them.
enum {
	FC_EXTENDED = 16, // thaw has it, Firecracker not
	FC_REFUSED = 32,  // known, and answered with 400 unless it says "no"
	FC_IGNORED = 64,  // taken and without effect here
};

struct fc_bucket {
	uint64_t size, refill_time, one_time_burst; // 0 of the first two: no limit
	bool has_one_time_burst;
};
struct fc_limiter {
	struct fc_bucket bandwidth, ops;
	bool has_bandwidth, has_ops;
};

struct fc_machine {
	uint32_t vcpu_count, mem_size_mib;
	bool smt, track_dirty_pages;
	uint32_t huge_pages;   // enum gmem_pages
	uint32_t cpu_template; // enum fc_template
	bool has_vcpu_count, has_mem_size_mib, has_smt, has_track_dirty_pages, has_huge_pages,
		has_cpu_template;
};

// Firecracker's own, then thaw's in the order of enum vmcfg_cpu_template.
enum fc_template {
	FC_TEMPLATE_NONE,
	FC_TEMPLATE_C3,
	FC_TEMPLATE_T2,
	FC_TEMPLATE_T2S,
	FC_TEMPLATE_T2CL,
	FC_TEMPLATE_T2A,
	FC_TEMPLATE_V1N1,
	FC_TEMPLATE_V2,
	FC_TEMPLATE_V3,
	FC_TEMPLATE_ARM8,
	FC_TEMPLATE_ARM8_2
};

struct fc_boot {
	char kernel_image_path[VMCFG_PATH_LEN], initrd_path[VMCFG_PATH_LEN], boot_args[VMCFG_CMDLINE_LEN];
	bool has_initrd_path, has_boot_args;
};

struct fc_drive {
	char drive_id[VMCFG_NAME_LEN], partuuid[64], path_on_host[VMCFG_PATH_LEN], socket[VMCFG_PATH_LEN];
	bool is_root_device, is_read_only;
	uint32_t cache_type; // enum fc_cache
	uint32_t io_engine;
	uint32_t layer; // enum vmcfg_layer, without kept
	struct fc_limiter rate_limiter;
	bool has_partuuid, has_path_on_host, has_socket, has_is_read_only, has_cache_type, has_io_engine,
		has_rate_limiter, has_layer;
};
enum fc_cache { FC_UNSAFE, FC_WRITEBACK };

struct fc_net {
	char iface_id[VMCFG_NAME_LEN], host_dev_name[16];
	uint8_t guest_mac[6];
	uint32_t mtu;
	struct fc_limiter rx_rate_limiter, tx_rate_limiter;
	bool has_guest_mac, has_mtu, has_rx_rate_limiter, has_tx_rate_limiter;
};

struct fc_pmem {
	char id[VMCFG_NAME_LEN], path_on_host[VMCFG_PATH_LEN];
	bool root_device, read_only;
	struct fc_limiter rate_limiter;
	bool has_rate_limiter;
};

struct fc_vsock {
	uint32_t guest_cid;
	char uds_path[VMCFG_SOCKET_LEN], vsock_id[VMCFG_NAME_LEN];
	bool has_vsock_id;
};

struct fc_entropy {
	struct fc_limiter rate_limiter;
	bool has_rate_limiter;
};

struct fc_serial {
	char serial_out_path[VMCFG_PATH_LEN];
	struct fc_limiter rate_limiter;
	bool has_serial_out_path, has_rate_limiter;
};

struct fc_balloon {
	uint32_t amount_mib, stats_polling_interval_s;
	bool deflate_on_oom, free_page_hinting, free_page_reporting;
};
struct fc_hinting {
	bool acknowledge_on_stop;
};

struct fc_logger {
	char log_path[VMCFG_PATH_LEN], level[16], module[128];
	bool show_level, show_log_origin;
	bool has_log_path, has_level, has_show_level, has_show_log_origin, has_module;
};

struct fc_metrics {
	char metrics_path[VMCFG_PATH_LEN];
};

struct fc_mmds_config {
	char network_interfaces[VMCFG_MAX_NETS][VMCFG_NAME_LEN];
	uint32_t n_network_interfaces;
	uint32_t version; // enum fc_mmds_version
	char ipv4_address[16];
	bool imds_compat;
	bool has_ipv4_address;
};
enum fc_mmds_version { FC_MMDS_V1, FC_MMDS_V2 };

enum fc_action_type { FC_INSTANCE_START, FC_SEND_CTRL_ALT_DEL, FC_FLUSH_METRICS };
struct fc_action {
	uint32_t action_type;
};

struct fc_vm_state {
	uint32_t state; // 0: Paused, 1: Resumed
};

struct fc_create {
	char snapshot_path[VMCFG_PATH_LEN], mem_file_path[VMCFG_PATH_LEN];
	uint32_t snapshot_type; // 0: Full, 1: Diff
};

struct fc_backend {
	uint32_t backend_type; // 0: File, 1: Uffd
	char backend_path[VMCFG_PATH_LEN];
};
struct fc_load_net {
	char iface_id[VMCFG_NAME_LEN], host_dev_name[16];
	uint8_t guest_mac[6];
	bool has_guest_mac;
};
struct fc_load_vsock {
	char uds_path[VMCFG_SOCKET_LEN];
	uint32_t guest_cid;
	bool has_guest_cid;
};
struct fc_load_drive {
	char drive_id[VMCFG_NAME_LEN], path_on_host[VMCFG_PATH_LEN];
	uint32_t layer; // enum vmcfg_layer, without kept
	bool has_path_on_host, has_layer;
};
struct fc_load {
	char snapshot_path[VMCFG_PATH_LEN], mem_file_path[VMCFG_PATH_LEN];
	struct fc_backend mem_backend;
	bool track_dirty_pages, enable_diff_snapshots, resume_vm, clock_realtime;
	uint32_t huge_pages; // enum gmem_pages
	struct fc_load_net network_overrides[VMCFG_MAX_NETS];
	struct fc_load_drive drive_overrides[VMCFG_MAX_DRIVES];
	struct fc_load_vsock vsock_override;
	uint32_t n_network_overrides, n_drive_overrides;
	bool has_mem_file_path, has_mem_backend, has_vsock_override, has_huge_pages, has_network_overrides,
		has_drive_overrides, has_track_dirty_pages, has_enable_diff_snapshots;
};

extern const struct js_table fc_machine_table, fc_machine_patch_table, fc_boot_table, fc_drive_table,
	fc_drive_patch_table, fc_net_table, fc_net_patch_table, fc_pmem_table, fc_pmem_patch_table,
	fc_vsock_table, fc_entropy_table, fc_serial_table, fc_balloon_table, fc_balloon_patch_table,
	fc_balloon_stats_table, fc_hinting_table, fc_logger_table, fc_metrics_table, fc_mmds_config_table,
	fc_action_table, fc_vm_state_table, fc_create_table, fc_load_table;

// Words of action_type, for the log; of cpu_template.
extern const char *const fc_action_words[], *const fc_template_words[];

// Of a limiter, what it says; what it leaves out stays in *to.
void fc_limiter_apply(const struct fc_limiter *l, struct vmcfg_rate *to);
// The same of a PATCH, for what GET /vm/config shows.
void fc_limiter_merge(const struct fc_limiter *l, struct fc_limiter *to, bool *to_has);
bool fc_limiter_from(const struct vmcfg_rate *r, struct fc_limiter *ret_l); // false: there is none
