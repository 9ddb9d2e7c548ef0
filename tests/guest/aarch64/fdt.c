// SPDX-License-Identifier: Apache-2.0
// The device tree (Devicetree Specification 0.4, chapter 5), as far as the tiny guest asks it.
#include "tests/guest/aarch64/a64.h"

#define MAGIC 0xd00dfeed
#define MAX_BYTES 0x200000
enum { BEGIN_NODE = 1, END_NODE = 2, PROP = 3, NOP = 4, END = 9 };
enum { AT_MAGIC = 0, AT_BYTES = 4, AT_STRUCT = 8, AT_STRINGS = 12 };

static u32 be32(u64 addr) { return __builtin_bswap32(*(const u32 *)addr); }
static u64 be64(u64 addr) { return (u64)be32(addr) << 32 | be32(addr + 4); }

static void read_property(struct fdt_node *node, const char *name, u64 value, u32 len)
{
	if (same(name, "compatible") && len)
		node->compatible = (const char *)value;
	else if (same(name, "bootargs") && len)
		node->bootargs = (const char *)value;
	else if (same(name, "interrupts") && len >= 12 && be32(value) == 0)
		node->spi = be32(value + 4);
	else if (same(name, "reg"))
		for (u32 i = 0; i < FDT_MAX_REG && (i + 1) * 8 <= len; i++)
			node->reg[i] = be64(value + (u64)i * 8);
}

bool fdt_walk(u64 addr, void (*fn)(const struct fdt_node *node))
{
	struct fdt_node node = { 0 };
	u32 depth = 0, len;
	bool open = false; // its own properties are still to come
	if (!addr || addr % 8 || be32(addr + AT_MAGIC) != MAGIC || be32(addr + AT_BYTES) > MAX_BYTES)
		return false;
	u64 p = addr + be32(addr + AT_STRUCT), strings = addr + be32(addr + AT_STRINGS);
	for (u64 end = addr + be32(addr + AT_BYTES); p + 4 <= end;) {
		u32 token = be32(p);
		p += 4;
		if (open && token != PROP && token != NOP) {
			fn(&node);
			open = false;
		}
		switch (token) {
		case BEGIN_NODE:
			node = (struct fdt_node){ .name = (const char *)p,
						  .depth = depth++,
						  .compatible = "",
						  .bootargs = "",
						  .spi = FDT_NONE };
			open = true;
			for (len = 1; ((const char *)p)[len - 1]; len++)
				;
			p += (len + 3) & ~3u;
			break;
		case END_NODE: depth--; break;
		case PROP:
			len = be32(p);
			if (len > end - p)
				return false;
			read_property(&node, (const char *)strings + be32(p + 4), p + 8, len);
			p += 8 + ((len + 3) & ~3u);
			break;
		case NOP: break;
		case END: return depth == 0;
		default: return false;
		}
	}
	return false;
}
