// SPDX-License-Identifier: Apache-2.0
#include "pl031.h"

#include <time.h>

static const struct mv_field fields[] = {
	MV_INT(struct pl031, lead_s, 1, MV_U32, 0, UINT32_MAX),
	MV_INT(struct pl031, match_s, 2, MV_U32, 0, UINT32_MAX),
	MV_INT(struct pl031, mask, 3, MV_U32, 0, 1),
};
MV_DEFINE_TABLE(pl031_table, struct pl031, fields);

enum { DATA = 0x00, MATCH = 0x04, LOAD = 0x08, CONTROL = 0x0c, MASK = 0x10, ID = 0xfe0 };

static uint32_t host_s(void) { return (uint32_t)time(NULL); }

uint32_t pl031_read(const struct pl031 *p, uint64_t offset)
{
	// PrimeCell identification, a byte per register (3.4.9 and 3.4.10).
	static const uint8_t id[] = { 0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };
	switch (offset) {
	case DATA:
	case LOAD: return host_s() + p->lead_s;
	case MATCH: return p->match_s;
	case CONTROL: return 1; // always running
	case MASK: return p->mask;
	case ID ... 0xffc: return offset % 4 ? 0 : id[(offset - ID) / 4];
	default: return 0; // no interrupt is pending
	}
}

void pl031_write(struct pl031 *p, uint64_t offset, uint32_t value)
{
	switch (offset) {
	case LOAD: p->lead_s = value - host_s(); break;
	case MATCH: p->match_s = value; break;
	case MASK: p->mask = value & 1; break;
	default: break; // read only, or nobody's
	}
}
