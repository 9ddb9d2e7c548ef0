// SPDX-License-Identifier: Apache-2.0
// What the parts of thaw-firecracker share: one VM, one front. One object, made by main.c, used on the loop's
// thread alone. The front speaks Firecracker's API to clients and microvm/base/msg.h to one thaw-vmm, which
// it started and which ends with it.
//
// Requests are done one after the other, as Firecracker does it: a call to the VM process waits for its
// answer right there (vmm.h). Meanwhile the loop turns (work.h), so requests that only read are answered, and
// what else the VM process says is handled.
#pragma once
#include "api/error.h"
#include "api/fc/args.h"
#include "api/fc/log.h"
#include "api/fc/metrics.h"
#include "api/fc/objects.h"
#include "api/fc/serial.h"
#include "api/fc/vmm.h"
#include "api/fc/work.h"
#include "microvm/base/loop.h"

// What GET /version says: of the API that is spoken, and who speaks it.
#define FC_API_VERSION "1.17.0"
#define FC_VERSION FC_API_VERSION "-thaw." THAW_VERSION

// Exit statuses, as Firecracker has them; 0 also when the guest shut down or asked for a reset.
enum fc_exit { FC_EXIT_OK, FC_EXIT_ERROR, FC_EXIT_BAD_CONFIG = 152, FC_EXIT_BAD_ARGUMENTS = 153 };

enum fc_state { FC_NOT_STARTED, FC_RUNNING, FC_PAUSED };

struct fc {
	const struct fc_args *args;
	struct mv_loop loop;
	struct http *http; // NULL: --no-api
	int exit_status;
	bool end;   // no more requests: it ends when the answers are out
	int signal; // that ends it; 0: none
	struct fc_work work;

	// Before the start: what clients configured, and what was opened for it. After a load: what the
	// snapshot says.
	struct fc_machine machine;
	struct fc_boot boot;
	struct fc_drive drive[VMCFG_MAX_DRIVES]; // the root device first
	struct fc_net net[VMCFG_MAX_NETS];
	struct fc_pmem pmem[VMCFG_MAX_PMEMS];
	uint32_t n_drives, n_nets, n_pmems;
	struct fc_vsock vsock;
	struct fc_entropy entropy;
	struct fc_serial serial;
	struct fc_balloon balloon;
	struct fc_logger logger;
	struct fc_metrics metrics_file;
	struct fc_mmds_config mmds_config;
	bool has_boot, has_vsock, has_entropy, has_serial, has_balloon, has_logger, has_metrics,
		has_mmds_config;
	js *cpu_config;       // NULL: none
	struct vmcfg_cpu cpu; // the same as thaw-vmm wants it
	char *mmds;           // the document; NULL: none
	bool configured;      // something that a snapshot would bring along
	struct vm_fds fds;

	enum fc_state state;
	struct vmcfg cfg; // of the VM that runs
	bool confirmed;   // the last snapshot was published, or what it was restored from is there
	char vsock_made[VMCFG_SOCKET_LEN]; // socket file that is ours to remove; empty: none

	struct fc_vmm vmm;
	struct fc_log log;
	struct fc_counts counts;
	struct fc_serial_port port;
	struct fc_hint {
		uint32_t round;                // of free page hints: 0: none yet
		uint64_t call;                 // that is under way; 0: none
		bool acknowledge, guest_ended; // guest_ended: the last round by the guest's own word
	} hint;
};

// Makes the configuration of the VM from what clients gave. -EINVAL: it does not fit together.
int fc_make_config(const struct fc *fc, struct vmcfg *ret_cfg, struct api_err *err);

// The other way round, of a VM that was loaded.
void fc_take_config(struct fc *fc, const struct vmcfg *cfg);

// Of a path or body: letters, digits and '_'.
bool fc_id_ok(const char *id);

// Reads --config-file and does what it says, the start included. --metadata likewise.
int fc_load_config_file(struct fc *fc, const char *path, struct api_err *err);
