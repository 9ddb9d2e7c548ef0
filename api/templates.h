// SPDX-License-Identifier: Apache-2.0
// Snapshots whose memory file was hashed and found good, and whose guest's CPU this host can
// give, in this run of the daemon. The
// record holds as long as the file is the same one, unchanged: manifest id, inode, size
// and times. Loop's thread only.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "api/server.h"
#include "snapshot/manifest.h"

struct known_snapshot {
	struct known_snapshot *next;
	char name[VMCFG_NAME_LEN], id[MV_UUID_LEN];
	bool verified;
	bool state_checked; // and the CPU and layers: enough for clones whose memory a page handler has
	uint64_t device, inode, size_bytes, modified_ns, changed_ns; // of the verified memory file
	unsigned next_clone;                                         // for default names
};

// The record of this snapshot, made when it is not there. NULL: no memory.
struct known_snapshot *template_get(struct server *s, const struct manifest *m);
bool template_is_verified(const struct known_snapshot *t, int memory_fd);
void template_set_verified(struct known_snapshot *t, int memory_fd);
void template_drop(struct server *s, const char *name); // deleted or found damaged
void templates_free(struct server *s);
