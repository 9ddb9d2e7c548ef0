// SPDX-License-Identifier: Apache-2.0
// A store in a temporary folder, with snapshots that no VM was needed for.
#pragma once
#include "snapshot/store.h"
#include "tests/t.h"

enum { T_MEM_MIB = 4 };

struct t_store {
	char dir[64];
	struct store s;
	struct mv_err err;
	struct manifest m; // of the last one made
	int fds;
};

// Setup and teardown of a cmocka test; *state is the struct t_store. Leaked descriptors fail.
int t_store_setup(void **state);
int t_store_teardown(void **state);

// A draft with state, memory ("guest memory" is at 1 MiB, the rest zeros) and t->m for it; of one drive.
// -errno.
int t_store_begin(struct t_store *t, const char *name, struct store_draft *ret_draft);
int t_store_publish(struct t_store *t, const char *name); // such a draft; 0 or -errno
// The parts of it.
void t_store_manifest(struct manifest *m);
void t_store_write_state(int fd);
void t_store_write_memory(int fd);

// Publishes a snapshot or fails the test. parent (NULL: none) becomes its parent snapshot. needs_parent: the
// name is in its page 3, all others are the parent's.
void t_store_make(struct t_store *t, const char *name, const struct manifest *parent, bool needs_parent);
void t_store_must_make(struct t_store *t, const char *name); // without a parent

// Loads all of it and compares checksums: 0 or -errno, with t->err filled.
int t_store_use(struct t_store *t, const char *name);

char *t_store_path(const struct t_store *t, const char *below); // until the next call
unsigned t_store_entries(const struct t_store *t, const char *below);

// To damage a published file, whatever its mode; cut: to so many bytes.
int t_store_open_rw(struct t_store *t, const char *below);
void t_store_cut(struct t_store *t, const char *below, off_t size);
