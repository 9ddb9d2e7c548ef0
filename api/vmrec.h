// SPDX-License-Identifier: Apache-2.0
// What is on disk of a running VM, so that the next daemon finds it when this one crashes or is
// upgraded:
//
//   <state>/vms/<id>.sock   the socket the VM process listens on when it has no daemon
//   <state>/vms/<id>        a record: what only the daemon knows of it
//
// A record is a container (snapshot/format.h): a head that every version has (le32 MSG_VERSION, le32
// pid, le64 start time of the process: field 22 of stat, proc(5)), and the table's fields. Both files are
// made once, by a thread, some milliseconds after who asked for the VM was answered: file systems may be
// slow, and clones don't wait for them. Until then the VM process, which has the socket, sees that it
// does not listen, and ends with this daemon. Nothing is synced: a crash of the host takes the VM along. VMs
// that are to end with their daemon have neither file. Loop's thread only.
#pragma once
#include "api/error.h"
#include "api/server.h"
#include "api/vm.h"

struct vmrec {
	struct vmcfg cfg;
	char from_snapshot[VMCFG_NAME_LEN], from_snapshot_id[MV_UUID_LEN];
	char forked_from[VMCFG_NAME_LEN], forked_from_id[MV_UUID_LEN];
	uint64_t created_unix_ns, requested_ns;
	uint64_t ttl_ms, idle_timeout_ms, idle_park_ms, first_ran_ns;
	bool owns_sockets, auto_delete;
	// from the head
	uint32_t version;
	pid_t pid;
	uint64_t start_ticks;
};

// Makes <state>/vms. -ENAMETOOLONG: no socket's name would fit.
int vmrecs_init(struct server *s, const char *state_dir, struct mv_err *err);
void vmrecs_flush(struct server *s); // all that is due is written; nothing will be from now on
void vmrecs_fini(struct server *s);  // idempotent

// Fills fds->orphan: the socket that is to listen for the VM; -1: it needs what ends with this daemon.
int vmrec_listen(struct vm *vm, struct vm_fds *fds, struct api_err *err);
void vmrec_keep(struct vm *vm);   // it is somebody's from now on
void vmrec_remove(struct vm *vm); // it has ended; idempotent
void vmrec_unlink(struct server *s, const char *id);

// Connects to a VM process that may be waiting; never blocks. -1: it can't be reached.
int vmrec_connect(const struct server *s, const char *id);

// The record of VM `id`. -EPROTO: of another MSG_VERSION, only what is of the head is there;
// anything else: damaged.
int vmrec_read(struct server *s, const char *id, struct vmrec *ret_record, struct mv_err *err);

// Is this file or folder, which is named <id>..., a VM's that has a record?
bool vmrec_owns(const struct server *s, const char *name);
