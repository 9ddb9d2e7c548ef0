// SPDX-License-Identifier: Apache-2.0
#include "api/fc/objects.h"

#include <string.h>

#include "api/json_fields.h"

// clang-format off
// One line per field; S is the struct. FIELD: there by default, or JS_REQUIRED. MAYBE: has a has_....
#define FIELD(m, type_, flags_, doc_, ...)                                                          \
	{ .name = #m, .type = (type_), .flags = (flags_), .offset = MV_OFF(S, m),                    \
	  .size = MV_SIZEOF(S, m), .doc = (doc_), __VA_ARGS__ }
#define MAYBE(m, type_, flags_, doc_, ...)                                                          \
	FIELD(m, type_, flags_, doc_, .present = 1 + MV_OFF(S, has_##m), __VA_ARGS__)
#define LIST(m, flags_, doc_, table_)                                                               \
	{ .name = #m, .type = JS_LIST, .flags = (flags_), .offset = MV_OFF(S, m),                    \
	  .size = MV_SIZEOF(S, m[0]), .max_count = MV_SIZEOF(S, m) / MV_SIZEOF(S, m[0]),             \
	  .count_offset = MV_OFF(S, n_##m), .present = 1 + MV_OFF(S, has_##m), .sub = &(table_), \
	  .doc = (doc_) }
#define RANGE(min_, max_) .min = (min_), .max = (max_)
#define LIMITER(m, doc_) MAYBE(m, JS_OBJ, 0, doc_, .sub = &limiter_table)
#define TABLE(var, array) \
	const struct js_table var = { .fields = (array), .n_fields = MV_ARRAY_LEN(array), .nulls = true }
#define LENIENT(var, array) \
	const struct js_table var = { .fields = (array), .n_fields = MV_ARRAY_LEN(array), .nulls = true, \
				      .lenient = true }

static const char *const huge_pages_words[] = { "None", "Transparent", "2M", NULL }; // enum gmem_pages
const char *const fc_template_words[] = { "None", "C3", "T2", "T2S", "T2CL", "T2A", "V1N1",
					   "x86-64-v2", "x86-64-v3", "armv8-a",
					   "armv8.2-a", NULL }; // enum fc_template
static const char *const cache_words[] = { "Unsafe", "Writeback", NULL };    // enum fc_cache
static const char *const engine_words[] = { "Sync", "Async", NULL };
static const char *const layer_words[] = { "None", "Ephemeral", NULL };      // enum vmcfg_layer
static const char *const version_words[] = { "V1", "V2", NULL };             // enum fc_mmds_version
static const char *const state_words[] = { "Paused", "Resumed", NULL };
static const char *const type_words[] = { "Full", "Diff", NULL };
static const char *const backend_words[] = { "File", "Uffd", NULL };
const char *const fc_action_words[] = { "InstanceStart", "SendCtrlAltDel", "FlushMetrics", NULL };

#define S struct fc_bucket
static const struct js_field bucket_fields[] = {
	FIELD(size, JS_UINT, JS_REQUIRED, "bytes or operations; 0: no limit", RANGE(0, VMCFG_MAX_TOKENS)),
	MAYBE(one_time_burst, JS_UINT, 0, "more at the start, once", RANGE(0, VMCFG_MAX_TOKENS)),
	FIELD(refill_time, JS_UINT, JS_REQUIRED, "ms; 0: no limit; at most a day",
	      RANGE(0, VMCFG_MAX_REFILL_MS)),
};
static LENIENT(bucket_table, bucket_fields);
#undef S

#define S struct fc_limiter
static const struct js_field limiter_fields[] = {
	MAYBE(bandwidth, JS_OBJ, 0, "bytes", .sub = &bucket_table),
	MAYBE(ops, JS_OBJ, 0, "operations", .sub = &bucket_table),
};
static TABLE(limiter_table, limiter_fields);
#undef S

#define S struct fc_machine
#define MACHINE(kind, required)                                                                       \
	kind(vcpu_count, JS_UINT, required, "1 to 32", RANGE(1, VMCFG_MAX_VCPUS)),                     \
	kind(mem_size_mib, JS_UINT, required, "MiB, 4 or more", RANGE(VMCFG_MIN_MEM_MIB, \
	VMCFG_MAX_MEM_MIB)), \
	kind(smt, JS_BOOL, FC_IGNORED, "the guest has one thread per core in any case"),             \
	kind(track_dirty_pages, JS_BOOL, 0, "for Diff snapshots by what was written"),               \
	kind(huge_pages, JS_WORD, 0, "None, Transparent or 2M", .words = huge_pages_words)
#define TEMPLATE                                                                                     \
	MAYBE(cpu_template, JS_WORD, FC_EXTENDED, \
	      "None; C3, T2, T2S, T2CL or T2A, if the CPU is one of theirs when it starts; " \
	      "thaw's x86-64-v2, x86-64-v3, armv8-a and armv8.2-a", \
	      .words = fc_template_words)
static const struct js_field machine_fields[] = {
	MACHINE(FIELD, JS_REQUIRED),
	TEMPLATE,
};
static const struct js_field machine_patch_fields[] = {
	MACHINE(MAYBE, 0),
	TEMPLATE,
};
TABLE(fc_machine_table, machine_fields);
TABLE(fc_machine_patch_table, machine_patch_fields);
#undef S

#define S struct fc_boot
static const struct js_field boot_fields[] = {
	FIELD(kernel_image_path, JS_STR, JS_REQUIRED, "vmlinux or bzImage; opened at once"),
	MAYBE(initrd_path, JS_STR, 0, "opened at once"),
	MAYBE(boot_args, JS_STR, 0, "pci=off and the root device are appended"),
};
TABLE(fc_boot_table, boot_fields);
#undef S

#define S struct fc_drive
static const struct js_field drive_fields[] = {
	FIELD(drive_id, JS_STR, JS_REQUIRED, "that of the path"),
	MAYBE(partuuid, JS_STR, 0, "of the root partition"),
	FIELD(is_root_device, JS_BOOL, JS_REQUIRED, "one at most; it is the first"),
	MAYBE(cache_type, JS_WORD, 0, "Unsafe or Writeback", .words = cache_words),
	MAYBE(is_read_only, JS_BOOL, 0, "default false"),
	MAYBE(path_on_host, JS_STR, 0, "file or block device; opened at once"),
	LIMITER(rate_limiter, "default: none"),
	MAYBE(io_engine, JS_WORD, FC_IGNORED, "Sync or Async; it is io_uring in any case",
		.words = engine_words),
	MAYBE(socket, JS_STR, FC_REFUSED, "vhost-user"),
	MAYBE(layer, JS_WORD, FC_EXTENDED,
		"Ephemeral: writes go to a layer, and end with the VM or are in its snapshots; default None",
	      .words = layer_words),
};
static const struct js_field drive_patch_fields[] = {
	FIELD(drive_id, JS_STR, JS_REQUIRED, "that of the path"),
	MAYBE(path_on_host, JS_STR, 0, "another file, or the same with another size"),
	LIMITER(rate_limiter, "buckets that are left out stay"),
};
TABLE(fc_drive_table, drive_fields);
TABLE(fc_drive_patch_table, drive_patch_fields);
#undef S

#define S struct fc_net
static const struct js_field net_fields[] = {
	FIELD(iface_id, JS_STR, JS_REQUIRED, "that of the path"),
	FIELD(host_dev_name, JS_STR, JS_REQUIRED, "an existing tap; opened at once"),
	MAYBE(guest_mac, JS_MAC, 0, "default: chosen"),
	MAYBE(mtu, JS_UINT, 0, "default: 1500", RANGE(VMCFG_MIN_MTU, UINT16_MAX)),
	LIMITER(rx_rate_limiter, "default: none"),
	LIMITER(tx_rate_limiter, "default: none"),
};
static const struct js_field net_patch_fields[] = {
	FIELD(iface_id, JS_STR, JS_REQUIRED, "that of the path"),
	LIMITER(rx_rate_limiter, "buckets that are left out stay"),
	LIMITER(tx_rate_limiter, "buckets that are left out stay"),
};
TABLE(fc_net_table, net_fields);
TABLE(fc_net_patch_table, net_patch_fields);
#undef S

#define S struct fc_pmem
static const struct js_field pmem_fields[] = {
	FIELD(id, JS_STR, JS_REQUIRED, "that of the path"),
	FIELD(path_on_host, JS_STR, JS_REQUIRED, "a file of a multiple of 2 MiB; opened at once"),
	FIELD(root_device, JS_BOOL, 0, "default false"),
	FIELD(read_only, JS_BOOL, 0, "default false"),
	LIMITER(rate_limiter, "of flushes; one costs as many bytes as the file has. Default: none"),
};
static const struct js_field pmem_patch_fields[] = {
	FIELD(id, JS_STR, JS_REQUIRED, "that of the path"),
	LIMITER(rate_limiter, "buckets that are left out stay"),
};
TABLE(fc_pmem_table, pmem_fields);
TABLE(fc_pmem_patch_table, pmem_patch_fields);
#undef S

#define S struct fc_vsock
static const struct js_field vsock_fields[] = {
	FIELD(guest_cid, JS_UINT, JS_REQUIRED, "3 or more", RANGE(3, UINT32_MAX - 1)),
	FIELD(uds_path, JS_STR, JS_REQUIRED, "of the listening socket, made at once"),
	MAYBE(vsock_id, JS_STR, FC_IGNORED, "deprecated"),
};
LENIENT(fc_vsock_table, vsock_fields);
#undef S

#define S struct fc_entropy
static const struct js_field entropy_fields[] = {
	LIMITER(rate_limiter, "default: none"),
};
TABLE(fc_entropy_table, entropy_fields);
#undef S

#define S struct fc_serial
static const struct js_field serial_fields[] = {
	MAYBE(serial_out_path, JS_STR, 0, "file or FIFO for the guest's output; default: standard output"),
	LIMITER(rate_limiter, "output beyond it is dropped"),
};
TABLE(fc_serial_table, serial_fields);
#undef S

#define S struct fc_balloon
#define AMOUNT FIELD(amount_mib, JS_UINT, JS_REQUIRED, "MiB", RANGE(0, VMCFG_MAX_MEM_MIB))
#define INTERVAL(flags_)                                                                            \
	FIELD(stats_polling_interval_s, JS_UINT, flags_, "s; 0: none", RANGE(0, VMCFG_MAX_INTERVAL_S))
static const struct js_field balloon_fields[] = {
	AMOUNT,
	FIELD(deflate_on_oom, JS_BOOL, JS_REQUIRED, "a guest short of memory takes it back"),
	INTERVAL(0),
	FIELD(free_page_hinting, JS_BOOL, 0, "default false"),
	FIELD(free_page_reporting, JS_BOOL, 0, "default false"),
};
static const struct js_field balloon_patch_fields[] = { AMOUNT };
static const struct js_field balloon_stats_fields[] = { INTERVAL(JS_REQUIRED) };
TABLE(fc_balloon_table, balloon_fields);
TABLE(fc_balloon_patch_table, balloon_patch_fields);
TABLE(fc_balloon_stats_table, balloon_stats_fields);
#undef S

#define S struct fc_hinting
static const struct js_field hinting_fields[] = {
	FIELD(acknowledge_on_stop, JS_BOOL, 0, "tell the guest of the round's end; default true"),
};
TABLE(fc_hinting_table, hinting_fields);
#undef S

#define S struct fc_logger
static const struct js_field logger_fields[] = {
	MAYBE(log_path, JS_STR, 0, "file or FIFO; made if it is not there; default: standard output"),
	MAYBE(level, JS_STR, 0, "Off, Trace, Debug, Info, Warn, Warning or Error, in any case; default Info"),
	MAYBE(show_level, JS_BOOL, 0, "default false"),
	MAYBE(show_log_origin, JS_BOOL, 0, "default false"),
	MAYBE(module, JS_STR, FC_IGNORED, "of Firecracker's sources"),
};
TABLE(fc_logger_table, logger_fields);
#undef S

#define S struct fc_metrics
static const struct js_field metrics_fields[] = {
	FIELD(metrics_path, JS_STR, JS_REQUIRED, "file or FIFO; made if it is not there"),
};
LENIENT(fc_metrics_table, metrics_fields);
#undef S

#define S struct fc_mmds_config
static const struct js_field mmds_config_fields[] = {
	{ .name = "network_interfaces", .type = JS_STRS, .flags = JS_REQUIRED,
	  .offset = MV_OFF(S, network_interfaces), .size = VMCFG_NAME_LEN, .max_count = VMCFG_MAX_NETS,
	  .count_offset = MV_OFF(S, n_network_interfaces), .doc = "ids of those that answer" },
	FIELD(version, JS_WORD, 0, "V1 or V2", .words = version_words),
	MAYBE(ipv4_address, JS_STR, 0, "link-local; default 169.254.169.254"),
	FIELD(imds_compat, JS_BOOL, 0, "default false"),
};
TABLE(fc_mmds_config_table, mmds_config_fields);
#undef S

#define S struct fc_action
static const struct js_field action_fields[] = {
	FIELD(action_type, JS_WORD, JS_REQUIRED, "InstanceStart, SendCtrlAltDel or FlushMetrics",
	      .words = fc_action_words),
};
TABLE(fc_action_table, action_fields);
#undef S

#define S struct fc_vm_state
static const struct js_field vm_state_fields[] = {
	FIELD(state, JS_WORD, JS_REQUIRED, "Paused or Resumed", .words = state_words),
};
TABLE(fc_vm_state_table, vm_state_fields);
#undef S

#define S struct fc_create
static const struct js_field create_fields[] = {
	FIELD(snapshot_type, JS_WORD, 0, "Full or Diff; default Full", .words = type_words),
	FIELD(snapshot_path, JS_STR, JS_REQUIRED, "file for the state"),
	FIELD(mem_file_path, JS_STR, JS_REQUIRED, "file for the memory"),
};
TABLE(fc_create_table, create_fields);
#undef S

#define S struct fc_backend
static const struct js_field backend_fields[] = {
	FIELD(backend_type, JS_WORD, JS_REQUIRED, "File or Uffd", .words = backend_words),
	FIELD(backend_path, JS_STR, JS_REQUIRED, "the memory file, or the page handler's socket"),
};
static TABLE(backend_table, backend_fields);
#undef S

#define S struct fc_load_net
static const struct js_field load_net_fields[] = {
	FIELD(iface_id, JS_STR, JS_REQUIRED, "of the snapshot's"),
	FIELD(host_dev_name, JS_STR, JS_REQUIRED, "another tap"),
	MAYBE(guest_mac, JS_MAC, FC_EXTENDED, "default: the snapshot's"),
};
static LENIENT(load_net_table, load_net_fields);
#undef S

#define S struct fc_load_vsock
static const struct js_field load_vsock_fields[] = {
	FIELD(uds_path, JS_STR, JS_REQUIRED, "another socket"),
	MAYBE(guest_cid, JS_UINT, FC_EXTENDED, "default: the snapshot's", RANGE(3, UINT32_MAX - 1)),
};
static LENIENT(load_vsock_table, load_vsock_fields);
#undef S

#define S struct fc_load_drive
static const struct js_field load_drive_fields[] = {
	FIELD(drive_id, JS_STR, JS_REQUIRED, "of the snapshot's"),
	MAYBE(path_on_host, JS_STR, FC_EXTENDED, "another file with the same content"),
	MAYBE(layer, JS_WORD, FC_EXTENDED, "Ephemeral: the file stays as it is", .words = layer_words),
};
static TABLE(load_drive_table, load_drive_fields);
#undef S

#define S struct fc_load
static const struct js_field load_fields[] = {
	FIELD(snapshot_path, JS_STR, JS_REQUIRED, "what /snapshot/create wrote"),
	MAYBE(mem_file_path, JS_STR, 0, "deprecated; instead of mem_backend"),
	MAYBE(mem_backend, JS_OBJ, 0, "a file, or a page handler", .sub = &backend_table),
	MAYBE(enable_diff_snapshots, JS_BOOL, 0, "deprecated; as track_dirty_pages"),
	MAYBE(track_dirty_pages, JS_BOOL, 0, "default false"),
	FIELD(resume_vm, JS_BOOL, 0, "run it; default false"),
	LIST(network_overrides, 0, "default: none", load_net_table),
	MAYBE(vsock_override, JS_OBJ, 0, "default: none", .sub = &load_vsock_table),
	FIELD(clock_realtime, JS_BOOL, FC_IGNORED, "the guest's clock is always put right"),
	MAYBE(huge_pages, JS_WORD, 0, "default: the snapshot's", .words = huge_pages_words),
	LIST(drive_overrides, FC_EXTENDED, "default: none", load_drive_table),
};
TABLE(fc_load_table, load_fields);
#undef S
// clang-format on

static void apply_bucket(bool has, const struct fc_bucket *b, struct vmcfg_bucket *to)
{
	if (!has)
		return;
	*to = (struct vmcfg_bucket){ 0 };
	if (b->size && b->refill_time)
		*to = (struct vmcfg_bucket){ .size = b->size,
					     .burst = b->one_time_burst,
					     .refill_ms = b->refill_time };
}

void fc_limiter_apply(const struct fc_limiter *l, struct vmcfg_rate *to)
{
	apply_bucket(l->has_bandwidth, &l->bandwidth, &to->bandwidth);
	apply_bucket(l->has_ops, &l->ops, &to->ops);
}

void fc_limiter_merge(const struct fc_limiter *l, struct fc_limiter *to, bool *to_has)
{
	*to_has = true;
	if (l->has_bandwidth)
		to->bandwidth = l->bandwidth;
	if (l->has_ops)
		to->ops = l->ops;
	to->has_bandwidth |= l->has_bandwidth;
	to->has_ops |= l->has_ops;
}

static bool bucket_from(const struct vmcfg_bucket *b, struct fc_bucket *to)
{
	*to = (struct fc_bucket){ .size = b->size,
				  .refill_time = b->refill_ms,
				  .one_time_burst = b->burst,
				  .has_one_time_burst = b->burst };
	return b->size;
}

bool fc_limiter_from(const struct vmcfg_rate *r, struct fc_limiter *ret_l)
{
	ret_l->has_bandwidth = bucket_from(&r->bandwidth, &ret_l->bandwidth);
	ret_l->has_ops = bucket_from(&r->ops, &ret_l->ops);
	return ret_l->has_bandwidth || ret_l->has_ops;
}
