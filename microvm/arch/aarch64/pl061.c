// SPDX-License-Identifier: Apache-2.0
#include "pl061.h"

#define LINES 0xffu
#define POWER (1u << PL061_POWER_LINE)

static const struct mv_field fields[] = {
	MV_INT(struct pl061, pressed, 1, MV_U32, 0, 1),
	MV_INT(struct pl061, direction, 2, MV_U32, 0, LINES),
	MV_INT(struct pl061, level, 3, MV_U32, 0, LINES),
	MV_INT(struct pl061, both_edges, 4, MV_U32, 0, LINES),
	MV_INT(struct pl061, rising, 5, MV_U32, 0, LINES),
	MV_INT(struct pl061, enabled, 6, MV_U32, 0, LINES),
	MV_INT(struct pl061, raised, 7, MV_U32, 0, LINES),
	MV_INT(struct pl061, alternate, 8, MV_U32, 0, LINES),
};
MV_DEFINE_TABLE(pl061_table, struct pl061, fields);

// Addresses of DATA tell in bits 9 to 2 which lines are meant (3.2.1).
enum { DATA_END = 0x400, DIR = 0x400, IS = 0x404, IBE = 0x408, IEV = 0x40c, IE = 0x410 };
enum { RIS = 0x414, MIS = 0x418, IC = 0x41c, AFSEL = 0x420, ID = 0xfe0 };

static uint32_t lines(const struct pl061 *p) { return p->pressed ? POWER : 0; }

// What is raised now (3.2.3 to 3.2.6): a level for as long as it is there, an edge until IC.
static uint32_t raised(const struct pl061 *p)
{
	return p->raised | (p->level & ~(lines(p) ^ p->rising) & POWER);
}

static bool set_line(struct pl061 *p, bool pressed)
{
	uint32_t before = raised(p) & p->enabled;
	bool edge = (p->both_edges & POWER) || !(p->rising & POWER) == !pressed;
	if (!p->pressed == !pressed)
		return false;
	p->pressed = pressed;
	if (edge && !(p->level & POWER))
		p->raised |= POWER;
	return raised(p) & p->enabled & ~before;
}

bool pl061_press(struct pl061 *p) { return set_line(p, true); }

uint32_t pl061_read(struct pl061 *p, uint64_t offset, bool *ret_irq)
{
	// PrimeCell identification, a byte per register (3.4).
	static const uint8_t id[] = { 0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };
	uint32_t value;
	if (offset < DATA_END) {
		value = lines(p) & (uint32_t)(offset >> 2);
		if (value)
			*ret_irq = set_line(p, false);
		return value;
	}
	switch (offset) {
	case DIR: return p->direction;
	case IS: return p->level;
	case IBE: return p->both_edges;
	case IEV: return p->rising;
	case IE: return p->enabled;
	case RIS: return raised(p);
	case MIS: return raised(p) & p->enabled;
	case AFSEL: return p->alternate;
	case ID ... 0xffc: return offset % 4 ? 0 : id[(offset - ID) / 4];
	default: return 0;
	}
}

bool pl061_write(struct pl061 *p, uint64_t offset, uint32_t value)
{
	uint32_t before = raised(p) & p->enabled;
	value &= LINES;
	switch (offset) {
	case DIR: p->direction = value; break;
	case IS: p->level = value; break;
	case IBE: p->both_edges = value; break;
	case IEV: p->rising = value; break;
	case IE: p->enabled = value; break;
	case IC: p->raised &= ~value; break;
	case AFSEL: p->alternate = value; break;
	default: break; // DATA: no line is an output; the others are read only, or nobody's
	}
	return raised(p) & p->enabled & ~before;
}
