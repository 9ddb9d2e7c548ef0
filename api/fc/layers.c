// SPDX-License-Identifier: Apache-2.0
// Copy-on-write layers of a front's drives. What a VM writes goes to files without a name in $TMPDIR or
// /var/tmp, so they end with the VM, however it ends. A snapshot has a copy of them beside the file at
// snapshot_path, one for each drive; a load puts a fresh one over that.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "api/fc/layers.h"
#include "api/vmfds.h"
#include "microvm/base/util.h"

int fc_layer_path(char *buf, size_t size, const char *snapshot_path, const char *drive_id,
		  struct api_err *err)
{
	if (snprintf(buf, size, "%s.%s.layer", snapshot_path, drive_id) >= (int)size)
		return api_fail(err, API_INVALID_VALUE, "snapshot_path: too long for the layer of drive %s",
				drive_id);
	return 0;
}

static int open_frozen(const char *snapshot_path, const struct vmcfg_drive *d,
		       const struct fc_layer_file *saved, int *ret_fd, struct api_err *err)
{
	char path[PATH_MAX], what[VMCFG_NAME_LEN + 30];
	struct mv_err e = { 0 };
	MV_FD fd = -1;
	snprintf(what, sizeof what, "the layer of drive %s", d->id);
	int r = fc_layer_path(path, sizeof path, snapshot_path, d->id, err);
	r = r ? r : vmfds_file(what, path, false, false, &fd, err);
	if (!r && fc_layer_file_check(fd, saved, &e))
		r = api_fail(err, API_SNAPSHOT_CORRUPT, "%s: %s %s", what, path, e.msg);
	if (!r)
		*ret_fd = MV_TAKE_FD(fd);
	return r;
}

int fc_open_frozen_layers(const char *snapshot_path, const struct vmcfg *cfg,
			  const struct fc_layer_file saved[VMCFG_MAX_DRIVES], struct vm_fds *fds,
			  struct api_err *err)
{
	int r = 0;
	for (uint32_t i = 0; !r && i < cfg->n_drives; i++) {
		if (saved[i].present && !cfg->drive[i].layer)
			r = api_fail(err, API_INVALID_VALUE,
				     "drive_overrides: drive %s: what its guest wrote is in a layer, so it "
				     "can't be "
				     "without",
				     cfg->drive[i].id);
		else if (saved[i].present)
			r = open_frozen(snapshot_path, &cfg->drive[i], &saved[i], &fds->layer[i][0], err);
	}
	return r;
}

int fc_open_layers(const struct vmcfg *cfg, struct vm_fds *fds, struct api_err *err)
{
	const char *folder = getenv("TMPDIR");
	folder = folder && folder[0] ? folder : "/var/tmp";
	for (uint32_t i = 0; i < cfg->n_drives; i++) {
		int *fd = fds->layer[i] + (fds->layer[i][0] >= 0);
		if (!cfg->drive[i].layer)
			continue;
		*fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (*fd < 0)
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
		for (uint32_t k = 0; k < 2; k++)
			mv_close(&fds->layer[i][k]);
}
