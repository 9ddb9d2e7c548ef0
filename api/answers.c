// SPDX-License-Identifier: Apache-2.0
#include "api/answers.h"

#include "api/operation.h"
#include "api/vmjson.h"
#include "microvm/base/util.h"
#include "snapshot/manifest.h"

// clang-format off
#define F(type_, flags_, name_, doc_) { .name = (name_), .type = (type_), .flags = (flags_), .doc = (doc_) }
#define SUB(type_, flags_, name_, table_, doc_)                                                    \
	{ .name = (name_), .type = (type_), .flags = (flags_), .sub = &(table_), .doc = (doc_) }
#define WORD(flags_, name_, words_, doc_)                                                          \
	{ .name = (name_), .type = JS_WORD, .flags = (flags_), .words = (words_), .doc = (doc_) }
#define TABLE(var, array) const struct js_table var = { .fields = (array), .n_fields = MV_ARRAY_LEN(array) }
#define R JS_REQUIRED

static const char *const states[] = { "unknown", "created", "running", "paused", "exited", NULL };
static const char *const exits[] = { "none", "shutdown", "reset", "triple-fault", "kvm-error", "killed",
				     "crashed", "snapshot-corrupt", "ttl", "idle", "out-of-memory", NULL };
static const char *const formats[] = { "raw", "lz4", NULL };
static const char *const apis[] = { "v1", NULL };
static const char *const leftovers[] = { "unfinished snapshot", "deleted snapshot", "foreign", NULL };
const struct js_table any_answer = { .any = true };

// --- errors ----------------------------------------------------------------------------
static const struct js_field error_fields[] = {
	F(JS_CODE, R, "code", "stable: never renamed or reused"),
	F(JS_STR, R, "message", "for people: what was wrong, where, and what to do"),
	F(JS_STRS, 0, "missing", "with cpu_incompatible: what the host's CPU or KVM lacks"),
};
static TABLE(error_table, error_fields);
static const struct js_field error_answer_fields[] = { SUB(JS_OBJ, R, "error", error_table, "why") };
TABLE(error_answer, error_answer_fields);

// --- the daemon --------------------------------------------------------------------------
static const struct js_field storage_fields[] = {
	F(JS_UINT, R, "apparent_bytes", "of the files as they look"),
	F(JS_UINT, R, "disk_bytes", "that they take, without holes"),
};
static TABLE(storage_table, storage_fields);
static const struct js_field counts_fields[] = {
	F(JS_UINT, R, "total", "of all states"),
	F(JS_UINT, R, "created", "loaded, never ran"),
	F(JS_UINT, R, "running", ""),
	F(JS_UINT, R, "paused", ""),
	F(JS_UINT, R, "exited", "listed until they are deleted"),
};
static TABLE(counts_table, counts_fields);
static const struct js_field info_fields[] = {
	F(JS_STR, R, "version", "of thaw"),
	WORD(R, "api", apis, "version of the interface"),
	F(JS_UINT, R, "pid", "of the daemon"),
	F(JS_STR, R, "vmm", "path of thaw-vmm"),
	SUB(JS_OBJ, R, "vms", counts_table, "by state"),
	F(JS_UINT, R, "snapshots", "in the store"),
	SUB(JS_OBJ, R, "storage", storage_table, "of all of them"),
	F(JS_UINTS, R, "spare_pids", "processes started in advance"),
	F(JS_UINT, R, "connections", "to the API, this one among them"),
};
TABLE(info_answer, info_fields);

static const struct js_field removed_fields[] = {
	F(JS_STR, R, "entry", "name in the store's folder"),
	WORD(R, "was", leftovers, "what it was"),
	F(JS_UINT, R, "disk_bytes", "freed by it"),
};
static TABLE(removed_table, removed_fields);
static const struct js_field gc_fields[] = {
	SUB(JS_LIST, R, "removed", removed_table, "what went"),
	F(JS_UINT, R, "freed_bytes", "in all"),
	F(JS_UINT, R, "kept", "entries that are in use"),
};
TABLE(gc_answer, gc_fields);

static const struct js_field operation_fields[] = {
	WORD(R, "kind", operation_kinds, "the request: POST /v1/snapshots, .../verify and so on"),
	F(JS_NAME, R, "snapshot", "its name; of flatten the one that is read"),
	F(JS_NAME, 0, "vm", "of which it is taken"),
	WORD(R, "step", operation_steps, "each counts from 0; waiting: for other work, or a client"),
	F(JS_UINT, R, "done_bytes", "of this step, holes included"),
	F(JS_UINT, R, "total_bytes", "0: not known yet; checking: of the files so far"),
	F(JS_UINT, R, "elapsed_ms", "since the request came"),
	F(JS_STR, R, "request_id", "of the request"),
};
static TABLE(operation_table, operation_fields);
static const struct js_field operation_list_fields[] = {
	SUB(JS_LIST, R, "operations", operation_table, "the last 100 that began"),
};
TABLE(operation_list_answer, operation_list_fields);

static const struct js_field event_fields[] = {
	F(JS_UINT, R, "seq", "rises by one; ask for what is behind it with ?since="),
	F(JS_TIME, R, "time", "when"),
	F(JS_STR, R, "type", "what happened"),
	F(JS_STR, 0, "vm", "name of the VM"),
	F(JS_STR, 0, "vm_id", "its id"),
	F(JS_STR, 0, "snapshot", "name of the snapshot"),
	F(JS_STR, 0, "snapshot_id", "its id"),
	F(JS_STR, 0, "reason", "why"),
	F(JS_STR, 0, "detail", "more, for people"),
	F(JS_UINT, 0, "count", "of what the type counts"),
	F(JS_UINT, 0, "after", "type lost: the last number before the gap"),
};
TABLE(event_answer, event_fields);

// --- VMs -----------------------------------------------------------------------------------
static const struct js_field exit_fields[] = {
	WORD(R, "reason", exits, "why it ended"),
	F(JS_STR, 0, "detail", "more, for people"),
	F(JS_UINT, 0, "signal", "crashed: the signal that ended its process"),
};
static TABLE(exit_table, exit_fields);

static const struct js_field vm_timing_fields[] = {
	F(JS_UINT, 0, "process_ready", "us; absent: the process was there before"),
	F(JS_UINT, 0, "ordered", "us until the process had its order"),
	F(JS_UINT, 0, "kvm_ready", "us until VM, vCPUs and memory were there"),
	F(JS_UINT, 0, "loaded", "us until kernel or state was loaded"),
	F(JS_UINT, 0, "running", "us until just before the guest ran"),
	F(JS_UINT, 0, "first_exit", "us until KVM first came back"),
	F(JS_UINT, 0, "first_io", "us until the guest's first port or MMIO access"),
	F(JS_UINT, 0, "ready", "us until the guest was ready"),
};
static TABLE(vm_timing_table, vm_timing_fields);

static const struct js_field vm_lifetime_fields[] = {
	F(JS_UINT, 0, "ttl_ms", "as given"),
	F(JS_UINT, 0, "idle_timeout_ms", "as given"),
	F(JS_UINT, 0, "idle_park_ms", "as given"),
	F(JS_BOOL, 0, "auto_delete", "as given"),
	F(JS_UINT, 0, "ttl_left_ms", "ms to live, once it has run"),
};
static TABLE(vm_lifetime_table, vm_lifetime_fields);

static const struct js_field stat_fields[] = {
	F(JS_UINT, 0, "swap_in_bytes", ""), F(JS_UINT, 0, "swap_out_bytes", ""),
	F(JS_UINT, 0, "major_faults", ""), F(JS_UINT, 0, "minor_faults", ""),
	F(JS_UINT, 0, "free_bytes", ""), F(JS_UINT, 0, "total_bytes", ""),
	F(JS_UINT, 0, "available_bytes", ""), F(JS_UINT, 0, "cache_bytes", ""),
	F(JS_UINT, 0, "hugetlb_allocations", ""), F(JS_UINT, 0, "hugetlb_failures", ""),
};
static TABLE(stat_table, stat_fields);
static const struct js_field balloon_fields[] = {
	F(JS_UINT, R, "target_mib", "MiB that the guest is to do without"),
	F(JS_UINT, R, "actual_mib", "MiB that it does without"),
	F(JS_UINT, R, "freed_mib", "MiB given back to the host, ever"),
	F(JS_UINT, R, "hinted_mib", "MiB of them by the last round of free page hints"),
	F(JS_UINT, R, "stats_interval_s", "s between statistics; 0: none"),
	SUB(JS_OBJ, R, "stats", stat_table, "of the guest, those that it tells"),
};
TABLE(balloon_answer, balloon_fields);

static const struct js_field wakes_fields[] = {
	F(JS_UINT, R, "timer", "its own timer was due"),
	F(JS_UINT, R, "device", "a device had an interrupt for it"),
	F(JS_UINT, R, "request", "a request needed it"),
};
static TABLE(wakes_table, wakes_fields);
static const struct js_field parking_fields[] = {
	F(JS_BOOL, R, "parked", "its process has given its KVM VM back"),
	F(JS_UINT, R, "parks", "times that it was parked"),
	SUB(JS_OBJ, R, "wakes", wakes_table, "times that it was woken, by what"),
	F(JS_UINT, R, "parked_ms", "ms that it was parked, up to the last wake"),
	F(JS_UINT, R, "wake_last_us", "us that the last wake took"),
	F(JS_UINT, R, "wake_max_us", "us that the longest one took"),
	F(JS_STR, 0, "error", "why it is not parked"),
};
static TABLE(parking_table, parking_fields);

static const struct js_field vm_fields[] = {
	F(JS_STR, R, "name", "of the VM"),
	F(JS_STR, R, "id", "a UUID"),
	WORD(R, "state", states, "where it is in its life"),
	SUB(JS_OBJ, 0, "exit", exit_table, "of an exited VM"),
	F(JS_UINT, 0, "pid", "of the VM process; absent when it has exited"),
	F(JS_STR, 0, "from_snapshot", "of a clone: the snapshot's name"),
	F(JS_STR, 0, "forked_from", "of a fork: the parent's name"),
	F(JS_STR, 0, "page_handler", "of a clone with one: its socket"),
	F(JS_STR, 0, "base_snapshot",
	  "with track_dirty: the snapshot that the next incremental one will need"),
	F(JS_TIME, R, "created", "when"),
	SUB(JS_OBJ, R, "timing_us", vm_timing_table,
	    "us since the request that made the VM arrived; what has not happened (yet) is absent"),
	F(JS_BOOL, 0, "ready", "with a ready marker: the guest said so"),
	F(JS_BOOL, 0, "recording", "of a clone that records: its working set is being recorded"),
	F(JS_STR, 0, "record_error", "why there is no working set"),
	F(JS_UINT, R, "timing_zero_ns", "that arrival on the host's CLOCK_MONOTONIC"),
	F(JS_STRS, 0, "links_down", "ids of nets whose link is cut"),
	SUB(JS_OBJ, R, "lifetime", vm_lifetime_table, "how long it is to live"),
	SUB(JS_OBJ, 0, "parking", parking_table, "with idle_park_ms; at most a second old"),
	SUB(JS_OBJ, 0, "limits", limits_table, "as given"),
	SUB(JS_OBJ, 0, "balloon", balloon_answer, "if it has one"),
	SUB(JS_OBJ, R, "config", config_table, "what it was made with, defaults filled in"),
};
TABLE(vm_answer, vm_fields);
#define NEXT F(JS_STR, 0, "next", "there are more: give it as `after`")
static const struct js_field vm_list_fields[] = { SUB(JS_LIST, R, "vms", vm_answer, "all"), NEXT };
TABLE(vm_list_answer, vm_list_fields);

static const struct js_field queue_fields[] = {
	F(JS_UINT, R, "index", "of the queue"),
	F(JS_UINT, R, "size", "in descriptors; 0: the driver has not set it up"),
	F(JS_UINT, R, "max_size", "in descriptors"),
	F(JS_BOOL, R, "ready", "QueueReady"),
	F(JS_UINT, R, "next_avail", "index in the available ring"),
	F(JS_UINT, R, "next_used", "index in the used ring"),
	F(JS_UINT, R, "kicks_by_event", "notifications without an exit to user space"),
	F(JS_UINT, R, "kicks_by_exit", "notifications by one"),
	F(JS_UINT, R, "continued", "times that the device went on by itself"),
	F(JS_UINT, R, "popped", "chains taken"),
	F(JS_UINT, R, "used", "chains given back"),
	F(JS_UINT, R, "interrupts", "sent"),
	F(JS_UINT, R, "interrupts_suppressed", "that the driver did not want"),
};
static TABLE(queue_table, queue_fields);
static const struct js_field features_fields[] = {
	F(JS_STRS, R, "offered", "names of the feature bits"),
	F(JS_STRS, R, "acked", "those that the driver took"),
	F(JS_STR, R, "offered_mask", "64 bits, 0x and 16 hexadecimal digits"),
	F(JS_STR, R, "acked_mask", "likewise"),
};
static TABLE(features_table, features_fields);
static const struct js_field device_fields[] = {
	F(JS_UINT, R, "slot", "of virtio-mmio"),
	F(JS_STR, R, "name", "the id in the configuration, or the type"),
	F(JS_STR, R, "type", "of the device"),
	F(JS_UINT, R, "device_id", "virtio 1.2 section 5"),
	F(JS_STRS, R, "status", "bits of the device status, virtio 1.2 section 2.1"),
	SUB(JS_OBJ, R, "features", features_table, "virtio 1.2 section 2.2"),
	F(JS_UINT, R, "config_interrupts", "for a changed configuration"),
	SUB(JS_LIST, R, "queues", queue_table, "in order"),
};
static TABLE(device_table, device_fields);
static const struct js_field exits_fields[] = {
	F(JS_UINT, R, "mmio", ""), F(JS_UINT, R, "io", ""),
	F(JS_UINT, R, "hlt", ""), F(JS_UINT, R, "other", ""),
};
static TABLE(exits_table, exits_fields);
static const struct js_field vcpu_fields[] = {
	F(JS_UINT, R, "index", "of the vCPU"),
	SUB(JS_OBJ, R, "exits", exits_table, "to user space, by reason"),
};
static TABLE(vcpu_table, vcpu_fields);
static const struct js_field devices_fields[] = {
	SUB(JS_LIST, R, "devices", device_table, "by slot"),
	SUB(JS_LIST, R, "vcpus", vcpu_table, "in order"),
};
TABLE(devices_answer, devices_fields);

// --- snapshots -----------------------------------------------------------------------------
static const struct js_field cpu_fields[] = {
	F(JS_STR, R, "vendor", "CPUID leaf 0"),
	F(JS_STR, 0, "model_name", "the brand string"),
	F(JS_UINT, R, "family", ""),
	F(JS_UINT, R, "model", ""),
	F(JS_UINT, R, "stepping", ""),
	F(JS_STRS, R, "features", "that the guest was promised"),
	F(JS_STRS, 0, "missing", "of these here; empty: it can run here"),
};
static TABLE(cpu_table, cpu_fields);
static const struct js_field file_fields[] = {
	F(JS_UINT, R, "size_bytes", "as it looks"),
	F(JS_UINT, R, "data_bytes", "without holes and zeros"),
	WORD(0, "format", formats, "of the memory file"),
};
static TABLE(file_table, file_fields);
static const struct js_field set_fields[] = {
	F(JS_UINT, R, "read_pages", "that the guest reads until it is ready"),
	F(JS_UINT, R, "written_pages", "that it writes"),
	F(JS_TIME, R, "recorded", "when"),
};
static TABLE(set_table, set_fields);
static const struct js_field template_fields[] = {
	F(JS_BOOL, R, "complete", "all memory is loaded: clones need no userfaultfd"),
	F(JS_BOOL, R, "fill", "it fills in the background"),
	F(JS_UINT, R, "clones", "that use it"),
	F(JS_UINT, R, "chunk_bytes", "of a chunk"),
	F(JS_UINT, R, "chunks", "that hold data"),
	F(JS_UINT, R, "filled", "of these"),
	F(JS_UINT, R, "faults", "answered"),
	F(JS_UINT, R, "zero_faults", "answered with zeros"),
	F(JS_UINT, R, "fills", "chunks decoded"),
	F(JS_UINT, R, "background_fills", "of these by background fill"),
	F(JS_UINT, R, "prefills", "of these for a working set"),
	F(JS_UINT, R, "damaged", "chunks"),
};
static TABLE(template_table, template_fields);
static const struct js_field pool_fields[] = {
	F(JS_UINT, 0, "size", "as given"),
	F(JS_UINT, 0, "min", "by rate: as given"),
	F(JS_UINT, 0, "max", "by rate: as given"),
	F(JS_UINT, R, "idle_s", "s without a claim until it drains; 0: never"),
	F(JS_UINT, R, "target", "how many are to be ready"),
	F(JS_UINT, R, "ready", "how many are"),
	F(JS_UINT, R, "starting", "how many are being made"),
	F(JS_UINT, R, "hits", "clones out of the pool"),
	F(JS_UINT, R, "misses", "clones that found it empty"),
	F(JS_UINT, R, "failed", "that could not be made"),
	F(JS_UINT, R, "shell_bytes", "of memory that each is counted with"),
	F(JS_STR, 0, "error", "why the last one could not"),
};
static TABLE(pool_table, pool_fields);

#define SNAPSHOT_FIELDS                                                                            \
	F(JS_STR, R, "id", "a UUID"),                                                              \
	F(JS_STR, R, "vm", "name of the VM it was taken of"),                                      \
	F(JS_STR, 0, "parent_snapshot", "of an incremental one: name of what it builds on"),      \
	F(JS_STR, 0, "parent_snapshot_id", "its id"),                                              \
	F(JS_BOOL, 0, "needs_parent", "false: it was flattened"),                                  \
	F(JS_UINT, 0, "chain_length", "snapshots that its memory is in; absent: one is missing"),  \
	F(JS_TIME, R, "created", "when"),                                                          \
	F(JS_STR, R, "thaw_version", "that took it"),                                              \
	WORD(R, "arch", manifest_archs, "of the guest"),                                                    \
	SUB(JS_MAP, R, "files", file_table, "by name"),                                            \
	SUB(JS_OBJ, R, "storage", storage_table, "what it takes"),                                 \
	SUB(JS_OBJ, R, "config", config_table, "of the VM")

static const struct js_field snapshot_fields[] = {
	F(JS_STR, R, "name", "of the snapshot"),
	SNAPSHOT_FIELDS,
	SUB(JS_OBJ, 0, "cpu", cpu_table, "of the host it was taken on; absent: damaged"),
	SUB(JS_OBJ, 0, "working_set", set_table, "if one was recorded"),
	SUB(JS_OBJ, 0, "template", template_table, "if it is prepared"),
	SUB(JS_OBJ, 0, "pool", pool_table, "if it has one"),
};
TABLE(snapshot_answer, snapshot_fields);
static const struct js_field created_fields[] = {
	F(JS_STR, R, "name", "of the snapshot"),
	SNAPSHOT_FIELDS,
	F(JS_UINT, 0, "pause_us", "us that the VM stood still"),
};
TABLE(snapshot_created_answer, created_fields);
static const struct js_field imported_fields[] = { F(JS_STR, R, "name", "of the snapshot"), SNAPSHOT_FIELDS };
TABLE(imported_answer, imported_fields);
static const struct js_field verify_fields[] = {
	F(JS_STR, R, "name", "of the snapshot"),
	SNAPSHOT_FIELDS,
	F(JS_BOOL, R, "verified", "all files are what was written"),
};
TABLE(verify_answer, verify_fields);
static const struct js_field flatten_fields[] = {
	F(JS_STR, R, "name", "of the snapshot"),
	SNAPSHOT_FIELDS,
	F(JS_BOOL, R, "changed", "false: it needed no parent before"),
};
TABLE(flatten_answer, flatten_fields);
static const struct js_field prepare_fields[] = {
	F(JS_STR, R, "name", "of the snapshot"),
	SNAPSHOT_FIELDS,
	SUB(JS_OBJ, 0, "template", template_table, "of compressed memory"),
	SUB(JS_OBJ, 0, "pool", pool_table, "if it has one"),
};
TABLE(prepare_answer, prepare_fields);
static const struct js_field listed_fields[] = {
	F(JS_STR, R, "name", "of the snapshot"),
	F(JS_STR, 0, "damaged", "why it can't be read; then nothing else is there"),
	F(JS_STR, 0, "id", "a UUID"),
	F(JS_STR, 0, "vm", "name of the VM it was taken of"),
	F(JS_STR, 0, "parent_snapshot", "of an incremental one: name of what it builds on"),
	F(JS_STR, 0, "parent_snapshot_id", "its id"),
	F(JS_BOOL, 0, "needs_parent", "false: it was flattened"),
	F(JS_UINT, 0, "chain_length", "snapshots that its memory is in; absent: one is missing"),
	F(JS_TIME, 0, "created", "when"),
	F(JS_STR, 0, "thaw_version", "that took it"),
	WORD(0, "arch", manifest_archs, "of the guest"),
	SUB(JS_MAP, 0, "files", file_table, "by name"),
	SUB(JS_OBJ, 0, "storage", storage_table, "what it takes"),
	SUB(JS_OBJ, 0, "config", config_table, "of the VM"),
};
static TABLE(listed_table, listed_fields);
static const struct js_field list_fields[] = {
	SUB(JS_LIST, R, "snapshots", listed_table, "all"),
	SUB(JS_OBJ, R, "storage", storage_table, "of all of them"),
	NEXT,
};
TABLE(snapshot_list_answer, list_fields);

// --- clones -----------------------------------------------------------------------------------
static const struct js_field clone_timing_fields[] = {
	F(JS_UINT, R, "accepted", "0: when the request's first line arrived"),
	F(JS_UINT, 0, "process_ready", "us; absent: the process was there before"),
	F(JS_UINT, 0, "kvm_ready", "us"),
	F(JS_UINT, 0, "state_loaded", "us"),
	F(JS_UINT, 0, "ordered", "us"),
	F(JS_UINT, 0, "running", "us until it was told to run"),
};
static TABLE(clone_timing_table, clone_timing_fields);
static const struct js_field cloned_fields[] = {
	F(JS_STR, 0, "name", "of the clone"),
	SUB(JS_OBJ, 0, "error", error_table, "why it is not there; then nothing but a name is"),
	F(JS_STR, 0, "id", "a UUID"),
	WORD(0, "state", states, "now"),
	F(JS_BOOL, 0, "prepared", "out of a pool"),
	F(JS_STR, 0, "vsock_path", "of its Unix socket"),
	SUB(JS_OBJ, 0, "timing_us", clone_timing_table, "us since the request arrived"),
	F(JS_BOOL, 0, "recording", "its working set is being recorded"),
	F(JS_STR, 0, "record_error", "why there is no working set"),
};
static TABLE(cloned_table, cloned_fields);
static const struct js_field clone_fields[] = {
	SUB(JS_LIST, R, "clones", cloned_table, "in the order asked for"),
	SUB(JS_OBJ, 0, "error", error_table, "none is there: the first one's"),
};
TABLE(clone_answer, clone_fields);
static const struct js_field fork_fields[] = {
	SUB(JS_LIST, R, "clones", cloned_table, "in the order asked for"),
	SUB(JS_OBJ, 0, "error", error_table, "none is there: the first one's"),
	F(JS_UINT, R, "pause_us", "us that the parent stood still"),
};
TABLE(fork_answer, fork_fields);

// --- what a VM uses ---------------------------------------------------------------------------
static const struct js_field usage_fields[] = {
	F(JS_STR, R, "name", "of the VM"),
	F(JS_STR, R, "id", "a UUID"),
	WORD(R, "state", states, "now"),
	F(JS_BOOL, R, "measured", "false: it has no process now"),
	F(JS_UINT, 0, "resident_bytes", "memory of the VM process, shared pages in full"),
	F(JS_UINT, 0, "proportional_bytes", "the same, shared pages divided among their users"),
	F(JS_UINT, 0, "private_bytes", "pages that it alone has: what its end would free"),
	F(JS_UINT, 0, "huge_bytes", "memory in huge pages; those of the host's pool are in no other figure"),
	F(JS_UINT, 0, "cpu_us", "us of CPU time, guest and monitor"),
	F(JS_UINT, 0, "minor_faults", "page faults without disk access"),
	F(JS_UINT, 0, "major_faults", "page faults with disk access"),
	F(JS_UINT, 0, "threads", "of the process"),
	F(JS_UINT, 0, "kicks", "notifications of its virtio drivers, by ioeventfd"),
	F(JS_UINT, 0, "kicks_by_exit", "those that took an exit to user space"),
	F(JS_UINT, 0, "requests", "that its virtio devices returned"),
	F(JS_UINT, 0, "interrupts", "for batches of them, and for changed configurations"),
	F(JS_UINT, 0, "interrupts_suppressed", "batches that the driver wanted no interrupt for"),
	F(JS_UINT, 0, "mmio_exits", "exits to user space for memory-mapped I/O"),
	F(JS_UINT, 0, "io_exits", "exits to user space for port I/O"),
	F(JS_UINT, 0, "other_exits", "other exits to user space"),
	SUB(JS_OBJ, 0, "template", template_table, "of a lazy clone: its template"),
};
TABLE(usage_answer, usage_fields);
// clang-format on
