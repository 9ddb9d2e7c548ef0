// SPDX-License-Identifier: Apache-2.0
// The request bodies of the API, each declared once as a table, and what follows from
// them: a checked struct vmcfg for a new VM, and one for a clone (the snapshot's
// configuration with overrides). No files are touched here.
#pragma once
#include "api/error.h"
#include "api/json.h"
#include "api/policy.h"
#include "microvm/base/vmcfg.h"

#define API_MAX_CLONES 4096
#define API_MAX_POOL 4096
#define API_READY_MAX_MS 600000 // of a wait
#define API_CONSOLE_MAX_WAIT_MS 60000
#define API_POOL_IDLE_S 60 // of a pool that goes by rate
// With <path>_<port>, where a guest's own connections go, it must fit into sun_path.
#define API_VSOCK_PATH_LEN (VMCFG_SOCKET_LEN - (sizeof "_4294967295" - 1))

struct create_body {
	struct vmcfg cfg;
	struct vm_policy policy;
	char *metadata; // compact text; NULL: not given
	bool start;
};

struct clone_net {
	char id[VMCFG_NAME_LEN], tap[16], socket[VMCFG_SOCKET_LEN];
	struct vmcfg_user user;
	uint8_t mac[6];
	struct vmcfg_rate rx_rate, tx_rate;
	bool has_tap, has_socket, has_mac, has_rx, has_tx;
};
struct clone_drive {
	char id[VMCFG_NAME_LEN], path[VMCFG_PATH_LEN], layer_path[VMCFG_PATH_LEN];
	uint32_t layer; // enum vmcfg_layer
	struct vmcfg_rate rate;
	bool read_only, has_path, has_read_only, has_layer, has_rate;
};
struct clone_vsock {
	char path[VMCFG_SOCKET_LEN];
	uint32_t cid;
	bool has_path, has_cid;
};
struct clone_console {
	char id[VMCFG_NAME_LEN], path[VMCFG_SOCKET_LEN];
};
struct clone_pmem {
	char id[VMCFG_NAME_LEN], path[VMCFG_PATH_LEN];
};
struct clone_spec {                        // all zero: a plain clone
	char name[VMCFG_NAME_LEN];         // empty: chosen by the daemon
	char page_handler[VMCFG_PATH_LEN]; // empty: that of the body
	struct clone_net net[VMCFG_MAX_NETS];
	struct clone_drive drive[VMCFG_MAX_DRIVES];
	struct clone_vsock vsock;
	char *metadata;           // likewise
	struct vmcfg_ready ready; // both empty: none
	struct clone_record {
		uint32_t limit_ms; // 0: the default
	} record;
	struct clone_console console[VMCFG_MAX_CONSOLES];
	struct clone_pmem pmem[VMCFG_MAX_PMEMS];
	uint32_t huge_pages; // enum gmem_pages
	uint32_t n_nets, n_drives, n_consoles, n_pmems;
	bool has_vsock, has_record, populate, has_populate, has_huge_pages;
	struct vm_policy policy; // what it has goes before the body's
};
struct clone_body {
	uint32_t count;            // at least 1
	struct clone_spec *clones; // NULL, or count of them
	uint32_t n_clones;
	char name_prefix[VMCFG_NAME_LEN];
	char page_handler[VMCFG_PATH_LEN]; // empty: none
	uint32_t huge_pages;
	bool run, has_count, has_clones, has_huge_pages;
	struct vm_policy policy; // of all
};

struct net_body { // PATCH .../nets/{net}: what it does not have stays
	struct vmcfg_rate rx_rate, tx_rate;
	bool link_up, has_link, has_rx, has_tx;
};

struct drive_body { // PATCH .../drives/{drive}: what it does not have stays
	struct vmcfg_rate rate;
	uint64_t size_bytes;
	bool reread_size, has_rate;
};

struct pmem_body { // PATCH .../pmems/{pmem}
	struct vmcfg_rate rate;
	bool has_rate;
};

struct stop_body {
	uint32_t mode; // enum stop_mode
	uint32_t wait_ms;
};
enum stop_mode {
	STOP_POWER_BUTTON,
	STOP_CTRL_ALT_DEL,
	STOP_KILL,
};

struct snapshot_body {
	char name[VMCFG_NAME_LEN], vm[VMCFG_NAME_LEN];
	uint32_t format; // enum snap_memory_kind, or SNAPSHOT_FORMAT_DEFAULT
	bool incremental;
};
#define SNAPSHOT_FORMAT_DEFAULT UINT32_MAX

struct flatten_body {
	char name[VMCFG_NAME_LEN]; // empty: in place
	uint32_t format;           // enum snap_memory_kind, or STORE_FORMAT_KEEP
};

struct prepare_body {
	bool fill, wait;
	struct prepare_pool { // struct pool_settings
		uint32_t size, min, max, idle_s;
		bool has_size, has_max, has_idle;
	} pool;
	bool has_pool;
};

extern const struct js_table prepare_table, create_table, clone_table, stop_table, snapshot_table,
	flatten_table, net_body_table, drive_body_table, pmem_body_table, empty_table, lifetime_table,
	limits_table,       // of struct vm_policy, struct vm_limits
	balloon_set_table,  // of struct msg_balloon_set
	balloon_hint_table, // of struct msg_balloon_hint
	config_table;       // struct vmcfg as shown

// Decodes, fills in defaults (random MACs, "" as vsock path), checks, and gives an id.
// Free ret_b->metadata in every case.
int create_parse(struct js_body in, struct create_body *ret_b, struct api_err *err);

// Fills in defaults.
int prepare_parse(struct js_body in, struct prepare_body *ret_b, struct api_err *err);

// The policy of a clone; spec NULL: a plain one.
struct vm_policy clone_policy(const struct clone_body *b, const struct clone_spec *spec);

// clone_body_fini() in every case.
int clone_parse(const char *bytes, size_t len, struct clone_body *ret_b, struct api_err *err);
void clone_body_fini(struct clone_body *b);

// A whole document: its compact text, to be freed.
int metadata_parse(struct js_body in, char **ret_text, struct api_err *err);

// The guest reads it by vsock or the metadata service, so one must be there. text NULL: nothing to read,
// nothing to check.
int metadata_check(const struct vmcfg *cfg, const char *text, struct api_err *err);

// What huge_pages a clone has, of a snapshot or VM with `base`. b NULL: no request, so that of base.
uint32_t clone_huge_pages(uint32_t base, const struct clone_body *b, const struct clone_spec *s);

// The configuration of a clone: `base` with the overrides and a new id. Name and vsock
// path stay empty unless the clone gives them. An override for a device that the snapshot
// does not have is an error.
int clone_config(const struct vmcfg *base, const struct clone_body *b, const struct clone_spec *s,
		 struct vmcfg *ret_cfg, struct api_err *err);
