// SPDX-License-Identifier: Apache-2.0
// Looks for a text in a stream of bytes, one byte at a time (Knuth, Morris, Pratt 1977): nothing
// is kept of the stream but how much of the text its end is, so a guest can print what it
// likes. Loop's lock held.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "microvm/base/vmcfg.h"

struct ready_text {
	char text[VMCFG_MARKER_LEN];
	uint8_t len;
	uint8_t at;                     // bytes of text that the stream ends with
	uint8_t back[VMCFG_MARKER_LEN]; // [n]: the longest true prefix that the first n bytes end with
};

void ready_text_init(struct ready_text *r, const char text[VMCFG_MARKER_LEN]); // empty: is never found

// True: this byte was the last one of the text.
bool ready_text_byte(struct ready_text *r, uint8_t byte);
