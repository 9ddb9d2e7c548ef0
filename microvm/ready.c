// SPDX-License-Identifier: Apache-2.0
#include "microvm/ready.h"

#include <string.h>

_Static_assert(VMCFG_MARKER_LEN <= UINT8_MAX, "lengths are bytes");

// How much of the text is there after one more byte.
static uint8_t step(const struct ready_text *r, uint8_t at, uint8_t byte)
{
	while (at && (uint8_t)r->text[at] != byte)
		at = r->back[at];
	return (uint8_t)(at + ((uint8_t)r->text[at] == byte));
}

void ready_text_init(struct ready_text *r, const char text[VMCFG_MARKER_LEN])
{
	*r = (struct ready_text){ .len = (uint8_t)strnlen(text, VMCFG_MARKER_LEN - 1) };
	memcpy(r->text, text, r->len);
	for (uint8_t n = 2; n <= r->len; n++)
		r->back[n] = step(r, r->back[n - 1], (uint8_t)text[n - 1]);
}

bool ready_text_byte(struct ready_text *r, uint8_t byte)
{
	if (!r->len)
		return false;
	r->at = step(r, r->at, byte);
	if (r->at < r->len)
		return false;
	r->at = r->back[r->len];
	return true;
}
