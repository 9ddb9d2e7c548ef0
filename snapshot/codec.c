// SPDX-License-Identifier: Apache-2.0
#include "snapshot/codec.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <lz4hc.h>

#define HIGH_LEVEL 3 // of lz4hc: most of what there is to gain, at a sixth of the speed

size_t codec_state_bytes(void)
{
	int fast = LZ4_sizeofState(), high = LZ4_sizeofStateHC();
	return (size_t)(fast > high ? fast : high);
}

size_t codec_bound(size_t n_bytes) { return (size_t)LZ4_compressBound((int)n_bytes); }

size_t codec_compress(void *state, bool high, const void *from, size_t n_bytes, void *to, size_t cap)
{
	if (n_bytes > LZ4_MAX_INPUT_SIZE || cap > INT_MAX)
		return 0;
	int n = high ? LZ4_compress_HC_extStateHC(state, from, to, (int)n_bytes, (int)cap, HIGH_LEVEL)
		     : LZ4_compress_fast_extState(state, from, to, (int)n_bytes, (int)cap, 1);
	return n > 0 ? (size_t)n : 0;
}

int codec_decompress(const void *from, size_t len, void *to, size_t n_bytes)
{
	if (len > INT_MAX || n_bytes > INT_MAX)
		return -EBADMSG;
	int n = LZ4_decompress_safe(from, to, (int)len, (int)n_bytes);
	return n >= 0 && (size_t)n == n_bytes ? 0 : -EBADMSG;
}
