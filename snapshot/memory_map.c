// SPDX-License-Identifier: Apache-2.0
#include "snapshot/memory_map.h"

#include <errno.h>

#include "microvm/base/state.h"

#define MAX_GPA (1ULL << 52) // x86's and arm64's largest physical address

static const struct mv_field region_fields[] = {
	MV_INT(struct memory_map_region, gpa, 1, MV_U64, 0, MAX_GPA),
	MV_INT(struct memory_map_region, size_bytes, 2, MV_U64, GMEM_PAGE_BYTES, MAX_GPA),
	MV_INT(struct memory_map_region, file_offset, 3, MV_U64, 0, MAX_GPA),
};
static MV_DEFINE_TABLE(region_table, struct memory_map_region, region_fields);

static const struct mv_field map_fields[] = {
	MV_ARRAY(struct memory_map, region, n_regions, 1, region_table),
};
static MV_DEFINE_TABLE(map_table, struct memory_map, map_fields);

static void map_of(const struct gmem *m, struct memory_map *ret_map)
{
	*ret_map = (struct memory_map){ .n_regions = m->n_regions };
	for (unsigned i = 0; i < m->n_regions; i++)
		ret_map->region[i] = (struct memory_map_region){ m->region[i].gpa, m->region[i].size_bytes,
								 m->region[i].file_offset };
}

void memory_map_save(const struct gmem *m, struct mv_buf *out)
{
	struct memory_map map;
	map_of(m, &map);
	mv_state_save(&map_table, &map, out);
}

int memory_map_parse(const uint8_t *bytes, size_t len, struct memory_map *ret_map, struct mv_err *err)
{
	struct memory_map map;
	uint64_t end_gpa = 0, end_offset = 0; // none of it overflows: see MAX_GPA
	int r = mv_state_load(&map_table, bytes, len, &map, err);
	for (uint32_t i = 0; !r && i < map.n_regions; i++) {
		const struct memory_map_region *g = &map.region[i];
		if (g->gpa < end_gpa || g->file_offset != end_offset)
			return mv_fail(err, EINVAL, "memory region %u does not follow the one before", i);
		end_gpa = g->gpa + g->size_bytes;
		end_offset += g->size_bytes;
	}
	if (!r)
		*ret_map = map;
	return r;
}

int memory_map_check(const struct memory_map *map, const struct gmem *m, struct mv_err *err)
{
	struct memory_map here;
	map_of(m, &here);
	if (map->n_regions != here.n_regions)
		return mv_fail(err, EINVAL, "the snapshot's memory is in %u regions, this thaw makes %u",
			       map->n_regions, here.n_regions);
	for (uint32_t i = 0; i < here.n_regions; i++) {
		const struct memory_map_region *a = &map->region[i];
		const struct memory_map_region *b = &here.region[i];
		if (a->gpa != b->gpa || a->size_bytes != b->size_bytes || a->file_offset != b->file_offset)
			return mv_fail(err, EINVAL,
				       "the snapshot has 0x%llx bytes at 0x%llx, this thaw 0x%llx at 0x%llx",
				       (unsigned long long)a->size_bytes, (unsigned long long)a->gpa,
				       (unsigned long long)b->size_bytes, (unsigned long long)b->gpa);
	}
	return 0;
}
