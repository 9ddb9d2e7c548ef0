// SPDX-License-Identifier: Apache-2.0
// State files of the Firecracker-compatible mode (api/fc/snapfile.h): the bytes as a whole file, and as
// the payload of a container whose checksum is right, so that sections, configuration and state are reached.
#include <stdlib.h>
#include <sys/mman.h>

#include "api/fc/snapfile.h"
#include "microvm/base/util.h"

static int fd = -1;

static void try_file(void)
{
	static struct vmcfg cfg;
	struct mv_err err = { 0 };
	char text[500];
	MV_FD state_fd = -1;
	if (fc_snapfile_read(fd, &cfg, &state_fd, NULL, &err)) {
		if (!err.msg[0] || state_fd >= 0 || !fc_snapfile_describe(fd, text, sizeof text, &err))
			abort();
		return;
	}
	if (vmcfg_check(&cfg, &err))
		abort();
	fc_snapfile_check_cpu(state_fd, &cfg.cpu, NULL, &err); // of a state that nobody checked yet
	fc_snapfile_describe(fd, text, sizeof text, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mv_err err;
	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (ftruncate(fd, 0) || mv_pwrite_full(fd, data, size, 0))
		abort();
	try_file();
	if (ftruncate(fd, 0) || snap_container_write(fd, FC_SNAPFILE_MAGIC, data, size, &err))
		abort();
	try_file();
	return 0;
}
