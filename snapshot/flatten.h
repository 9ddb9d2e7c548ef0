// SPDX-License-Identifier: Apache-2.0
// One complete memory file from a chain: chunk by chunk, by several threads, so that
// neither memory nor other files are needed. Touches nothing but what it is given.
#pragma once
#include "snapshot/chain.h"
#include "snapshot/memory.h"

// Fills fd, an empty file: compressed (chunk.h), or raw with pages of zeros as holes. n_threads 0:
// one per CPU. -EINVAL: a chunk is damaged; -ENOSPC and the like with a sentence.
int chain_flatten(const struct chain *c, int fd, enum snap_memory_kind kind, unsigned n_threads,
		  struct mv_err *err);
