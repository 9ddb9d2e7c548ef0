// SPDX-License-Identifier: Apache-2.0
// The field-table decoder (microvm/base/state.h) with every table that reads bytes from
// elsewhere. The first byte chooses the table. What loads must save, and load the same.
#include <stdlib.h>
#include <string.h>

#include "microvm/base/msg.h"
#include "microvm/base/vmcfg.h"
#include "snapshot/manifest.h"

static const struct mv_table *const tables[] = {
	&vmcfg_table,     &manifest_table,         &msg_setup_table, &msg_stop_table,
	&msg_bytes_table, &msg_console_read_table, &msg_reply_table, &msg_event_table,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mv_err err = { 0 };
	if (!size)
		return 0;
	const struct mv_table *t = tables[data[0] % MV_ARRAY_LEN(tables)];
	MV_FREE void *a = calloc(1, t->size);
	MV_FREE void *b = calloc(1, t->size);
	if (mv_state_load(t, data + 1, size - 1, a, &err)) {
		if (!err.code || !err.msg[0])
			abort();
		return 0;
	}
	MV_BUF out = { 0 };
	mv_state_save(t, a, &out);
	if (out.failed || mv_state_load(t, out.p, out.len, b, &err) || memcmp(a, b, t->size))
		abort();
	if (t == &vmcfg_table)
		vmcfg_check(a, &err);
	if (t == &manifest_table)
		manifest_check(a, &err);
	return 0;
}
