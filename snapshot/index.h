// SPDX-License-Identifier: Apache-2.0
// How many snapshots a store has and what they take, without reading every manifest each
// time: the folder's time stamp says whether anything changed, a manifest's inode and change
// time whether it is still the same. So changes by hand are seen, too. One thread.
#pragma once
#include <time.h>

#include "snapshot/store.h"

struct index_entry {
	char *name;
	uint64_t inode, changed_ns; // of the manifest; 0: there was none
	struct store_usage usage;
};

struct store_index { // zero-initialised: empty
	struct index_entry *list;
	size_t n;
	uint64_t folder_ns; // when the folder had changed, as of the last look; 0: look again
	struct store_usage total;
	uint64_t n_reads; // manifests read so far, for tests
};

// 0, or -errno with the index as it was.
int store_index_refresh(struct store_index *x, struct store *s);
// Is a look at that folder_ns still good? One system call.
bool store_index_holds(uint64_t folder_ns, const struct store *s);
// Its files changed: what they take is looked at again. NULL: of all.
void store_index_forget(struct store_index *x, const char *name);
void store_index_free(struct store_index *x);
