// SPDX-License-Identifier: Apache-2.0
// The files of drives' copy-on-write layers. Each drive with a layer has a folder with the
// files "0" (the oldest), "1"... The last one belongs to the VM alone; those below it are
// read-only for ever, and hard links to the same files of snapshots.
//
//   ephemeral   <state>/layers/<vm id>.<drive number>/, removed with the VM
//   kept        the drive's layer_path, on the same file system; never removed
//
//   layers_open       links what the snapshot has, adds an empty file on top
//   layers_freeze     a snapshot begins: one more empty file
//   layers_freeze_end the VM has taken it (it is the new top), or not (it is removed)
//   layers_link       the frozen ones become part of the snapshot
//
// An empty file on top, left behind by a crash, is as good as a fresh one.
// Loop's thread only.
#pragma once
#include "api/error.h"
#include "api/vm.h"
#include "snapshot/manifest.h"
#include "snapshot/store.h"

// Makes <state>/layers and removes what is there of VMs that have no record (vmrec.h).
int layers_init(struct server *s, const char *state_dir, struct mv_err *err);

// What a clone's layers are put over: those of a snapshot, or the first n_layers of each drive of
// a VM. Neither: a new VM.
struct layer_source {
	const struct manifest *snapshot;
	const struct vm *vm;
	uint32_t n_layers[VMCFG_MAX_DRIVES];
};

// Fills fds->layer for all drives with a layer. On failure nothing is left behind (descriptors are
// in fds).
int layers_open(struct vm *vm, const struct layer_source *from, struct vm_fds *fds, struct api_err *err);

// Two descriptors per drive with a layer, as MSG_SNAPSHOT wants them; the caller closes them.
struct layer_fds {
	int fd[2 * VMCFG_MAX_DRIVES];
	unsigned n;
};
int layers_freeze(struct vm *vm, struct layer_fds *ret_fds, struct api_err *err);
void layer_fds_close(struct layer_fds *f);
void layers_freeze_end(struct vm *vm, bool frozen); // no freeze in progress: nothing happens
int layers_link(struct vm *vm, struct store_draft *d, struct mv_err *err);

// A VM of an earlier daemon says how many layers of each drive it uses. -errno: it can't be.
int layers_adopt(struct vm *vm, const uint8_t n_layers[VMCFG_MAX_DRIVES]);

// The VM is gone: removes its ephemeral layers. Idempotent.
void layers_remove(struct vm *vm);
