// SPDX-License-Identifier: Apache-2.0
// snapshot/transfer.c. Checksums would stop nearly every input, so the bytes are tried as a whole
// stream, and as a list of record heads and contents that get right checksums.
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "microvm/base/bytes.h"
#include "snapshot/format.h"
#include "snapshot/transfer.h"

static struct store store;
static int fd = -1;
static uint64_t at;
static uint8_t manifest[65536];
static size_t manifest_len;

static void check(bool good)
{
	if (!good)
		abort();
}

static void put(const void *bytes, size_t len)
{
	check(!mv_pwrite_full(fd, bytes, len, at));
	at += len;
}

static void put_record(uint32_t kind, uint32_t file, uint64_t offset, const void *bytes, size_t len)
{
	struct {
		le32_t kind, file;
		le64_t offset, len, xxh3;
	} h = { le32_make(kind), le32_make(file), le64_make(offset), le64_make(len), le64_make(0) };
	h.xxh3 = le64_make(snap_xxh3_record(&h, 24, bytes, len));
	put(&h, sizeof h);
	put(bytes, len);
}

static void put_header(void)
{
	struct {
		char magic[8];
		le16_t major, minor;
		le32_t zero;
		le64_t xxh3;
	} h = { .major = le16_make(SNAP_FORMAT_MAJOR) };
	memcpy(h.magic, TRANSFER_MAGIC, 8);
	h.xxh3 = le64_make(snap_xxh3_record(&h, 16, "", 0));
	check(!ftruncate(fd, 0));
	at = 0;
	put(&h, sizeof h);
}

static void import(void)
{
	static struct manifest m;
	struct store_draft d;
	struct mv_err err = { 0 };
	check(lseek(fd, 0, SEEK_SET) == 0);
	check(!store_begin_import(&store, "x", &d, &err));
	int r = store_import_read(&d, fd, &m, &err);
	check(r ? err.msg[0] && err.code == -r : !manifest_check(&m, &err));
	store_abort(&store, &d);
}

static void make_manifest(void)
{
	static struct manifest m = { .arch = MANIFEST_X86_64, .n_files = 2 };
	int f = memfd_create("manifest", MFD_CLOEXEC);
	strcpy(m.name, "x");
	mv_uuid(m.id);
	strcpy(m.cfg.name, "vm");
	strcpy(m.cfg.kernel, "/vmlinux");
	m.cfg.vcpus = 1;
	m.cfg.mem_mib = 4;
	strcpy(m.file[0].name, "state");
	m.file[0].size_bytes = 1000;
	strcpy(m.file[1].name, "memory");
	m.file[1].size_bytes = 4 << 20;
	check(!manifest_save(f, &m, NULL));
	ssize_t n = pread(f, manifest, sizeof manifest, 0);
	check(n > 0);
	manifest_len = (size_t)n;
	close(f);
}

static char dir[] = "/tmp/thaw-fuzz-XXXXXX";

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static void remove_dir(void) { nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mv_err err;
	if (fd < 0) {
		fd = memfd_create("fuzz", MFD_CLOEXEC);
		check(mkdtemp(dir) && !atexit(remove_dir) && !store_open(&store, dir, &err));
		make_manifest();
	}
	check(!ftruncate(fd, 0));
	at = 0;
	put(data, size);
	import();

	put_header();
	put_record(1, 0, 0, manifest, manifest_len);
	for (size_t i = 0; i + 8 <= size;) { // kind, file, two of offset in 128 KiB, offset, length
		uint64_t offset = (uint64_t)(data[i + 2] | data[i + 3] << 8) << 17 | data[i + 4];
		size_t len = (size_t)data[i + 5] << (data[i + 6] & 7);
		if (len > size - i - 8)
			len = size - i - 8;
		put_record(data[i] & 3, data[i + 1] & 3, offset, data + i + 8, len);
		i += 8 + len;
	}
	import();

	put_header();
	put_record(1, 0, 0, data, size); // as the manifest
	import();
	return 0;
}
