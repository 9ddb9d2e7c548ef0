// SPDX-License-Identifier: Apache-2.0
// Ephemeral copy-on-write layers of a front's drives, and what snapshots keep of them. Loop's thread, but for
// fc_layer_path(), which any may call. In struct vm_fds the first layer of a drive is what its snapshot has,
// if it has one, and the next is the VM's own.
#pragma once
#include "api/error.h"
#include "api/fc/snapfile.h"

// Where a snapshot has the layer of this drive: the file "<snapshot_path>.<drive id>.layer".
int fc_layer_path(char *buf, size_t size, const char *snapshot_path, const char *drive_id,
		  struct api_err *err);

// Opens those of a snapshot, which must be the ones that were saved with it.
int fc_open_frozen_layers(const char *snapshot_path, const struct vmcfg *cfg,
			  const struct fc_layer_file saved[VMCFG_MAX_DRIVES], struct vm_fds *fds,
			  struct api_err *err);

// A file without a name for each drive that has a layer; nothing is left behind on disk.
int fc_open_layers(const struct vmcfg *cfg, struct vm_fds *fds, struct api_err *err);
void fc_close_layers(struct vm_fds *fds); // idempotent
