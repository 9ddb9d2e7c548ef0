// SPDX-License-Identifier: Apache-2.0
#include "snapshot/manifest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "microvm/base/scratch.h"
#include "snapshot/format.h"

const char *const manifest_archs[] = { "x86_64", "aarch64", NULL };

const char *manifest_arch_name(uint32_t arch)
{
	return arch - 1u < MV_ARRAY_LEN(manifest_archs) - 1 ? manifest_archs[arch - 1u] : "unknown";
}

uint32_t manifest_arch_here(void)
{
	struct utsname u;
	for (uint32_t i = 0; !uname(&u) && manifest_archs[i]; i++)
		if (!strcmp(u.machine, manifest_archs[i]))
			return i + 1;
	return 0;
}

static const struct mv_field file_fields[] = {
	MV_STRING(struct manifest_file, name, 1),
	MV_INT(struct manifest_file, size_bytes, 2, MV_U64, 0, INT64_MAX),
	MV_INT(struct manifest_file, data_bytes, 3, MV_U64, 0, INT64_MAX),
	MV_INT(struct manifest_file, xxh3, 4, MV_U64, 0, UINT64_MAX),
	// An older reader skips it, and then finds that the size of a compressed file is wrong.
	MV_OPT_INT(struct manifest_file, format, MV_TAG_SKIP + 1, MV_U32, MANIFEST_RAW, MANIFEST_LZ4),
};
static MV_DEFINE_TABLE(file_table, struct manifest_file, file_fields);

// Tags that a reader without them may skip: what needs a parent is also told by its files.
// clang-format off
#define OPT_STRING(s, member, tag_)                                                               \
	{ .name = #member, .tag = (tag_), .type = MV_STR, .flags = MV_OPTIONAL,                    \
	  .offset = MV_OFF(s, member), .size = MV_SIZEOF(s, member) }
#define OPT_FLAG(s, member, tag_)                                                                 \
	{ .name = #member, .tag = (tag_), .type = MV_BOOL, .flags = MV_OPTIONAL,                   \
	  .offset = MV_OFF(s, member), .size = 1, .max = 1 }
// clang-format on

static const struct mv_field manifest_fields[] = {
	MV_STRING(struct manifest, name, 1),
	MV_STRING(struct manifest, id, 2),
	MV_STRING(struct manifest, parent, 3),
	MV_STRING(struct manifest, thaw_version, 4),
	MV_INT(struct manifest, created_unix_ns, 5, MV_U64, 0, INT64_MAX),
	MV_INT(struct manifest, arch, 6, MV_U32, MANIFEST_X86_64, MANIFEST_AARCH64),
	MV_SUB(struct manifest, cfg, 7, vmcfg_table),
	MV_ARRAY(struct manifest, file, n_files, 8, file_table),
	OPT_STRING(struct manifest, parent_snapshot, MV_TAG_SKIP + 1),
	OPT_STRING(struct manifest, parent_snapshot_id, MV_TAG_SKIP + 2),
	OPT_FLAG(struct manifest, needs_parent, MV_TAG_SKIP + 3),
};
MV_DEFINE_TABLE(manifest_table, struct manifest, manifest_fields);

const struct manifest_file *manifest_file_find(const struct manifest *m, const char *name)
{
	for (uint32_t i = 0; i < m->n_files; i++)
		if (!strcmp(m->file[i].name, name))
			return &m->file[i];
	return NULL;
}

static int check_parent(const struct manifest *m, struct mv_err *err)
{
	bool named = m->parent_snapshot[0];
	if (named && (!vmcfg_name_ok(m->parent_snapshot) || strlen(m->parent_snapshot_id) != MV_UUID_LEN - 1))
		return mv_fail(err, EINVAL, "manifest: \"%s\" with id \"%s\" is no parent snapshot",
			       m->parent_snapshot, m->parent_snapshot_id);
	if (named && m->needs_parent && !strcmp(m->parent_snapshot_id, m->id))
		return mv_fail(err, EINVAL, "manifest: the snapshot is its own parent");
	if (!named && (m->parent_snapshot_id[0] || m->needs_parent))
		return mv_fail(err, EINVAL, "manifest: a parent snapshot without a name");
	return 0;
}

void manifest_layer_name(char ret_name[32], uint32_t drive, uint32_t n)
{
	snprintf(ret_name, 32, "layer-%u.%u", drive, n);
}

uint32_t manifest_layers(const struct manifest *m, uint32_t drive)
{
	char name[32];
	uint32_t n = 0;
	for (;; n++) {
		manifest_layer_name(name, drive, n);
		if (n == VMCFG_MAX_LAYERS || !manifest_file_find(m, name))
			return n;
	}
}

static int check_layers(const struct manifest *m, uint32_t *ret_n, struct mv_err *err)
{
	uint32_t total = 0;
	for (uint32_t i = 0; i < m->cfg.n_drives; i++) {
		uint32_t n = manifest_layers(m, i);
		if ((n > 0) != (m->cfg.drive[i].layer != VMCFG_LAYER_NONE))
			return mv_fail(err, EINVAL, "manifest: drive %s and its layers do not fit",
				       m->cfg.drive[i].id);
		total += n;
	}
	*ret_n = total;
	return 0;
}

int manifest_check(const struct manifest *m, struct mv_err *err)
{
	const struct manifest_file *state = manifest_file_find(m, "state");
	const struct manifest_file *memory = manifest_file_find(m, "memory");

	if (!vmcfg_name_ok(m->name))
		return mv_fail(err, EINVAL, "manifest: \"%s\" is not a snapshot's name", m->name);
	if (strlen(m->id) != MV_UUID_LEN - 1)
		return mv_fail(err, EINVAL, "manifest: \"%s\" is not a snapshot's id", m->id);
	if (vmcfg_check(&m->cfg, err))
		return mv_wrap(err, "manifest: configuration of the VM");
	uint32_t n_layers = 0;
	int r = check_layers(m, &n_layers, err);
	if (r)
		return r;
	if (!state || !memory || m->n_files != 2 + n_layers)
		return mv_fail(err, EINVAL, "manifest: it must list one state and one memory file");
	if (state->format != MANIFEST_RAW)
		return mv_fail(err, EINVAL, "manifest: a compressed state file");
	if (memory->format == MANIFEST_RAW && m->needs_parent)
		return mv_fail(err, EINVAL, "manifest: a raw memory file that needs a parent");
	if (memory->format == MANIFEST_RAW && memory->size_bytes != (uint64_t)m->cfg.mem_mib << 20)
		return mv_fail(err, EINVAL, "manifest: a memory file of %llu bytes for a VM of %u MiB",
			       (unsigned long long)memory->size_bytes, m->cfg.mem_mib);
	return check_parent(m, err);
}

static int decode(const uint8_t *payload, size_t len, struct manifest *ret_m, struct mv_err *err)
{
	MV_FREE struct manifest *m = malloc(sizeof *m); // some 15 KiB
	if (!m)
		return mv_fail(err, ENOMEM, "manifest: out of memory");
	int r = mv_state_load(&manifest_table, payload, len, m, err);
	if (r) {
		mv_wrap(err, "manifest");
		return r;
	}
	r = manifest_check(m, err);
	if (!r)
		*ret_m = *m;
	return r;
}

int manifest_save(int fd, const struct manifest *m, struct mv_err *err)
{
	MV_BUF payload = { 0 };
	MV_FREE struct manifest *again = malloc(sizeof *again);

	mv_state_save(&manifest_table, m, &payload);
	if (payload.failed || !again)
		return mv_fail(err, ENOMEM, "manifest: out of memory, or a field out of its bounds");
	int r = decode(payload.p, payload.len, again, err); // never write what can't be read
	if (r)
		return r;
	r = snap_container_write(fd, SNAP_MAGIC_MANIFEST, payload.p, payload.len, err);
	if (r)
		mv_wrap(err, "manifest");
	return r;
}

int manifest_load(int fd, struct manifest *ret_m, struct mv_err *err)
{
	MV_SCRATCH uint8_t *payload = NULL;
	size_t len;
	int r = snap_container_read(fd, SNAP_MAGIC_MANIFEST, "manifest", SNAP_MANIFEST_MAX_BYTES, &payload,
				    &len, err);
	return r ? r : decode(payload, len, ret_m, err);
}
