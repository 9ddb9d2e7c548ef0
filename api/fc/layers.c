// SPDX-License-Identifier: Apache-2.0
// Ephemeral copy-on-write layers of a front's drives: files without a name in $TMPDIR or /var/tmp, so they
// end with the VM, however it ends.
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "api/fc/run.h"
#include "microvm/base/util.h"

int fc_open_layers(const struct vmcfg *cfg, struct vm_fds *fds, struct api_err *err)
{
	const char *folder = getenv("TMPDIR");
	folder = folder && folder[0] ? folder : "/var/tmp";
	for (uint32_t i = 0; i < cfg->n_drives; i++) {
		if (!cfg->drive[i].layer)
			continue;
		mv_close(&fds->layer[i][0]);
		fds->layer[i][0] = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (fds->layer[i][0] < 0)
			return api_fail(
				err, API_FILE_INVALID,
				"drive %s: can't make a layer in %s: %s; set TMPDIR to another folder",
				cfg->drive[i].id, folder, strerror(errno));
	}
	return 0;
}

void fc_close_layers(struct vm_fds *fds)
{
	for (uint32_t i = 0; i < VMCFG_MAX_DRIVES; i++)
		mv_close(&fds->layer[i][0]);
}
