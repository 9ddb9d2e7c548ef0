// SPDX-License-Identifier: Apache-2.0
// The daemon's counters, declared once: name, type, unit, label and meaning. What is counted
// is added where it happens; gauges are set when somebody asks (ops_metrics.c). metrics_text()
// shows all of the table in the Prometheus text format 0.0.4, so none can be forgotten, and a
// test compares the table with docs/api.md. One set per process; loop's thread only; no allocation
// but in metrics_text().
//
// Times are held in ns and shown in seconds.
#pragma once
#include <stdint.h>

#include "api/error.h"
#include "microvm/base/msg.h"
#include "microvm/base/util.h"

// The values of a label are fixed words: see metrics_label(). NONE: one value.
// X(symbol, type, unit, label, name, meaning)
// clang-format off
#define METRICS(X)                                                                                   \
	X(CLONES, COUNTER, ONE, NONE, "thaw_clones_total",                                           \
	  "clones that were started")                                                                \
	X(CLONE_FAILURES, COUNTER, ONE, CODE, "thaw_clone_failures_total",                           \
	  "clones that failed, by error code")                                                       \
	X(BOOTS, COUNTER, ONE, NONE, "thaw_boots_total",                                             \
	  "VMs that were created from a kernel")                                                     \
	X(BOOT_FAILURES, COUNTER, ONE, CODE, "thaw_boot_failures_total",                             \
	  "VMs that could not be created, by error code")                                            \
	X(VM_EXITS, COUNTER, ONE, REASON, "thaw_vm_exits_total",                                     \
	  "ends of VMs, by exit reason")                                                             \
	X(CLONE_STAGE, COUNTER, NS, STAGE, "thaw_clone_stage_seconds_total",                         \
	  "sum over clones: from the request's arrival to a stage")                                  \
	X(CLONE_COLD, HISTOGRAM, NS, NONE, "thaw_clone_cold_seconds",                                \
	  "request to running, of a clone that had to start a process")                              \
	X(CLONE_CLAIM, HISTOGRAM, NS, NONE, "thaw_clone_claim_seconds",                              \
	  "request to running, of a clone from a pool")                                              \
	X(CLONE_FIRST_IO, HISTOGRAM, NS, NONE, "thaw_clone_first_io_seconds",                        \
	  "request to the guest's first port or MMIO access")                                        \
	X(SNAPSHOTS_WRITTEN, COUNTER, ONE, NONE, "thaw_snapshots_written_total",                     \
	  "snapshots that were taken and published")                                                 \
	X(SNAPSHOT_FAILURES, COUNTER, ONE, CODE, "thaw_snapshot_failures_total",                     \
	  "snapshots that failed, by error code")                                                    \
	X(SNAPSHOT_BYTES, COUNTER, BYTES, NONE, "thaw_snapshot_written_bytes_total",                 \
	  "state and memory written for them, without holes")                                        \
	X(SNAPSHOT_SECONDS, HISTOGRAM, NS, NONE, "thaw_snapshot_write_seconds",                      \
	  "request of a snapshot to its publication")                                                \
	X(PAUSE_SECONDS, HISTOGRAM, NS, NONE, "thaw_snapshot_pause_seconds",                         \
	  "how long the vCPUs stood still for a snapshot")                                           \
	X(PAGER_FAULTS, COUNTER, ONE, NONE, "thaw_pager_faults_total",                               \
	  "touches of guest memory that was not loaded yet")                                         \
	X(PAGER_ZERO_FAULTS, COUNTER, ONE, NONE, "thaw_pager_zero_faults_total",                     \
	  "of them, in memory that is zeros")                                                        \
	X(PAGER_FILLS, COUNTER, ONE, NONE, "thaw_pager_fills_total",                                 \
	  "chunks of memory that were decoded")                                                      \
	X(PAGER_BACKGROUND, COUNTER, ONE, NONE, "thaw_pager_background_fills_total",                 \
	  "of them, without being asked for")                                                        \
	X(PAGER_BYTES, COUNTER, BYTES, NONE, "thaw_pager_filled_bytes_total",                        \
	  "guest memory in these chunks")                                                            \
	X(PAGER_RESTARTS, COUNTER, ONE, NONE, "thaw_pager_restarts_total",                           \
	  "times that thaw-pager was replaced")                                                      \
	X(TEMPLATES, GAUGE, ONE, TEMPLATE, "thaw_templates",                                         \
	  "templates in memory, by state")                                                           \
	X(VMS, GAUGE, ONE, STATE, "thaw_vms",                                                        \
	  "listed VMs, by state")                                                                    \
	X(VM_PROCESSES, GAUGE, ONE, NONE, "thaw_vm_processes",                                       \
	  "VM processes, also of VMs that load and of pools")                                        \
	X(VMS_PARKED, GAUGE, ONE, NONE, "thaw_vms_parked",                                           \
	  "listed VMs whose process has given its KVM VM back")                                      \
	X(PARKS, COUNTER, ONE, NONE, "thaw_vm_parks_total",                                          \
	  "times that VMs were parked")                                                              \
	X(WAKE_SECONDS, HISTOGRAM, NS, NONE, "thaw_vm_wake_seconds",                                 \
	  "what waking a parked VM took; of each VM at most once a second")                          \
	X(SNAPSHOTS, GAUGE, ONE, NONE, "thaw_snapshots",                                             \
	  "snapshots in the store")                                                                  \
	X(SNAPSHOT_DISK, GAUGE, BYTES, NONE, "thaw_snapshot_disk_bytes",                             \
	  "space they take on disk")                                                                 \
	X(POOL_HITS, COUNTER, ONE, NONE, "thaw_pool_hits_total",                                     \
	  "clones that a pool had ready")                                                            \
	X(POOL_MISSES, COUNTER, ONE, NONE, "thaw_pool_misses_total",                                 \
	  "clones of a pooled snapshot that found its pool empty")                                   \
	X(POOL_SIZE, GAUGE, ONE, NONE, "thaw_pool_size",                                             \
	  "VMs that wait in pools")                                                                  \
	X(HTTP_SECONDS, HISTOGRAM, NS, NONE, "thaw_http_request_seconds",                            \
	  "arrival of a request to its answer")                                                      \
	X(LOOP_SECONDS, HISTOGRAM, NS, NONE, "thaw_loop_busy_seconds",                               \
	  "how long the daemon's loop took for what it woke for; so long nothing else is looked at") \
	X(LOOP_HELD, HISTOGRAM, NS, NONE, "thaw_loop_held_seconds",                                  \
	  "that without the wait for a CPU: the CPU time, or all of it when the loop slept meanwhile")  \
	X(HTTP_PENDING, GAUGE, ONE, NONE, "thaw_http_requests_in_flight",                            \
	  "requests that wait for their answer")                                                     \
	X(HTTP_CONNECTIONS, GAUGE, ONE, NONE, "thaw_http_connections",                               \
	  "open connections")                                                                        \
	X(EVENT_STREAMS, GAUGE, ONE, NONE, "thaw_event_streams",                                     \
	  "clients that follow the events")                                                          \
	X(WORKER_QUEUE, GAUGE, ONE, NONE, "thaw_worker_jobs",                                        \
	  "jobs that the worker has, the one in progress included")                                  \
	X(OPEN_FDS, GAUGE, ONE, NONE, "process_open_fds",                                            \
	  "open descriptors of the daemon")                                                          \
	X(RSS, GAUGE, BYTES, NONE, "process_resident_memory_bytes",                                  \
	  "resident memory of the daemon")                                                           \
	X(CPU, COUNTER, NS, NONE, "process_cpu_seconds_total",                                       \
	  "CPU time of the daemon")
// clang-format on

enum metric_type { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };
enum metric_unit { METRIC_ONE, METRIC_BYTES, METRIC_NS };
enum metric_label {
	METRIC_NONE,
	METRIC_CODE,     // enum api_code
	METRIC_REASON,   // enum vm_exit
	METRIC_STATE,    // enum vm_state
	METRIC_STAGE,    // enum metric_stage
	METRIC_TEMPLATE, // enum metric_template
};
enum metric_stage { STAGE_PROCESS_READY, STAGE_KVM_READY, STAGE_STATE_LOADED, STAGE_RUNNING, N_STAGES };
enum metric_template { TEMPLATE_FILLING, TEMPLATE_COMPLETE, TEMPLATE_DROPPED, N_TEMPLATE_STATES };

enum metric {
#define X(sym, ...) M_##sym,
	METRICS(X)
#undef X
		N_METRICS
};

struct metric_info {
	enum metric_type type;
	enum metric_unit unit;
	enum metric_label label;
	const char *name, *help;
};
const struct metric_info *metric_info(enum metric m);
// The word of a label's value; NULL behind the last one.
const char *metrics_label(enum metric_label label, unsigned value);

// label: 0 where there is none.
void metrics_add(enum metric m, unsigned label, uint64_t n);
void metrics_set(enum metric m, unsigned label, uint64_t v);
void metrics_observe(enum metric histogram, uint64_t v);
uint64_t metrics_value(enum metric m, unsigned label); // of a histogram: how many

// A clone runs, or stands ready paused: all that is counted of it. requested_ns: as in its times.
void metrics_clone(const struct msg_times *t, uint64_t requested_ns, bool from_pool);

// An answer to a request of this route (an index into api_routes; n_routes: of none).
void metrics_http(unsigned route, unsigned status, uint64_t ns);

// All of it. Check out->failed.
void metrics_text(struct mv_buf *out);

// One sample: name{labels} value. labels: NULL or as shown, without the braces.
void metrics_sample(struct mv_buf *out, const char *name, const char *suffix, const char *labels, uint64_t v,
		    enum metric_unit unit);
void metrics_head(struct mv_buf *out, const char *name, enum metric_type type, const char *help);
