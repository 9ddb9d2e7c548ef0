// SPDX-License-Identifier: Apache-2.0
// The bodies of the messages between daemon and pager, for both.
#include "snapshot/pager.h"

static const struct mv_field template_fields[] = {
	MV_INT(struct pager_template, memory_bytes, 1, MV_U64, 1, (uint64_t)VMCFG_MAX_MEM_MIB << 20),
	MV_FLAG(struct pager_template, fill, 2),
	MV_FLAG(struct pager_template, raw_base, 3),
};
MV_DEFINE_TABLE(pager_template_table, struct pager_template, template_fields);

static const struct mv_field clone_fields[] = {
	MV_INT(struct pager_clone, template_id, 1, MV_U64, 0, UINT64_MAX),
	MV_SUB(struct pager_clone, lazy, 2, msg_lazy_table),
};
MV_DEFINE_TABLE(pager_clone_table, struct pager_clone, clone_fields);

static const struct mv_field corrupt_fields[] = {
	MV_INT(struct pager_corrupt, chunk, 1, MV_U64, 0, UINT64_MAX),
};
MV_DEFINE_TABLE(pager_corrupt_table, struct pager_corrupt, corrupt_fields);

static const struct mv_field working_set_fields[] = {
	MV_STRING(struct pager_working_set, snapshot_id, 1),
};
MV_DEFINE_TABLE(pager_working_set_table, struct pager_working_set, working_set_fields);
