// SPDX-License-Identifier: Apache-2.0
// LZ4 blocks (codec.c is the only includer of lz4). Any thread; allocates nothing.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

size_t codec_state_bytes(void);     // scratch memory that compressing needs, 8-byte aligned
size_t codec_bound(size_t n_bytes); // room that always suffices for the result

// The length of the result; 0: it does not fit into cap. high: smaller, and a sixth of the speed; no
// difference to who decompresses.
size_t codec_compress(void *state, bool high, const void *from, size_t n_bytes, void *to, size_t cap);

// Hostile input. 0 when it decodes to exactly n_bytes, else -EBADMSG (`to` is then unspecified).
int codec_decompress(const void *from, size_t len, void *to, size_t n_bytes);
