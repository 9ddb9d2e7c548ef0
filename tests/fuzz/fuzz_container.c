// SPDX-License-Identifier: Apache-2.0
// Snapshot files (snapshot/format.h, manifest.h). The checksum would stop nearly every
// input, so the bytes are tried three ways: as a whole file, as the payload of a good
// state file whose sections are walked, and as the payload of a good manifest.
#include <stdlib.h>
#include <sys/mman.h>

#include "snapshot/format.h"
#include "snapshot/manifest.h"

static int fd = -1;

static void walk(const uint8_t *payload, size_t len)
{
	struct snap_section s;
	size_t pos = 0, last = 0;
	while (snap_section_next(payload, len, &pos, &s, NULL) == 1) {
		if (pos <= last || pos > len || s.bytes < payload || s.bytes + s.len != payload + pos)
			abort();
		last = pos;
	}
}

static void read_state(void)
{
	MV_FREE uint8_t *payload = NULL;
	size_t len = 0;
	struct mv_err err = { 0 };
	int r = snap_container_read(fd, SNAP_MAGIC_STATE, "state", 1 << 20, &payload, &len, &err);
	if (r ? !err.msg[0] || payload : !payload)
		abort();
	if (!r)
		walk(payload, len);
}

static void empty_file(void)
{
	if (ftruncate(fd, 0))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mv_err err = { 0 };
	static struct manifest m;

	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	empty_file();
	if (mv_pwrite_full(fd, data, size, 0))
		abort();
	read_state();

	empty_file();
	if (snap_container_write(fd, SNAP_MAGIC_STATE, data, size, &err))
		abort();
	read_state();

	empty_file();
	if (snap_container_write(fd, SNAP_MAGIC_MANIFEST, data, size, &err))
		abort();
	if (!manifest_load(fd, &m, &err) && manifest_check(&m, &err))
		abort();
	return 0;
}
