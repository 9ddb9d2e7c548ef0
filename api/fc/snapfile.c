// SPDX-License-Identifier: Apache-2.0
#include "api/fc/snapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "microvm/base/bytes.h"
#include "microvm/base/scratch.h"
#include "microvm/cpu_report.h"
#include "microvm/sections.h"
#include "snapshot/memory_map.h"

// Part of the format: never renumbered, never reused.
enum { FC_ABOUT = 1, FC_STATE = 2, FC_LAYER = 3, FC_SKIP = 0x8000 };

enum {
	STATE_MAX = SNAP_STATE_MAX_BYTES + 4096, // with its container's header
	FILE_MAX = STATE_MAX + SNAP_MANIFEST_MAX_BYTES,
};

struct about {
	char thaw_version[32];
	uint64_t created_unix_ns;
	struct vmcfg cfg;
};

static const struct mv_field about_fields[] = {
	MV_STRING(struct about, thaw_version, 1),
	MV_INT(struct about, created_unix_ns, 2, MV_U64, 0, INT64_MAX),
	MV_SUB(struct about, cfg, 3, vmcfg_table),
};
static MV_DEFINE_TABLE(about_table, struct about, about_fields);

static const struct mv_field layer_fields[] = {
	MV_INT(struct fc_layer_file, size_bytes, 1, MV_U64, 1, INT64_MAX),
	MV_INT(struct fc_layer_file, head_xxh3, 2, MV_U64, 0, UINT64_MAX),
};
static MV_DEFINE_TABLE(layer_table, struct fc_layer_file, layer_fields);

// --- layers ---

int fc_layer_file_note(int fd, struct fc_layer_file *ret_note, struct mv_err *err)
{
	enum { HEAD_BYTES = 1 << 20 };
	struct fc_layer_file f = { .present = true };
	struct stat st;
	uint64_t data;
	int r = fstat(fd, &st) ? -errno : 0;
	f.size_bytes = r ? 0 : (uint64_t)st.st_size;
	r = r ? r
	      : snap_xxh3_file(fd, f.size_bytes < HEAD_BYTES ? f.size_bytes : HEAD_BYTES, &f.head_xxh3,
			       &data);
	if (r)
		return mv_fail(err, -r, "cannot read: %s", strerror(-r));
	*ret_note = f;
	return 0;
}

int fc_layer_file_check(int fd, const struct fc_layer_file *saved, struct mv_err *err)
{
	struct fc_layer_file f;
	int r = fc_layer_file_note(fd, &f, err);
	if (!r && f.size_bytes != saved->size_bytes)
		r = mv_fail(err, EINVAL, "has %llu bytes, the snapshot's layer has %llu",
			    (unsigned long long)f.size_bytes, (unsigned long long)saved->size_bytes);
	if (!r && f.head_xxh3 != saved->head_xxh3)
		r = mv_fail(err, EINVAL, "is another snapshot's, or damaged");
	return r;
}

// --- reading ---

struct parts {
	uint8_t *payload; // what state points into
	const uint8_t *state;
	size_t state_len;
	struct about *about;
	struct fc_layer_file layer[VMCFG_MAX_DRIVES];
};

static void parts_fini(struct parts *p)
{
	mv_scratch_free(p->payload);
	free(p->about);
}
#define PARTS __attribute__((cleanup(parts_fini))) struct parts

static int load_about(struct parts *p, const struct snap_section *sec, struct mv_err *err)
{
	p->about = malloc(sizeof *p->about);
	if (!p->about)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&about_table, sec->bytes, sec->len, p->about, err);
	return r ? r : vmcfg_check(&p->about->cfg, err);
}

static int sort_sections(struct parts *p, size_t len, struct mv_err *err)
{
	struct snap_section sec;
	size_t pos = 0;
	int r;
	while ((r = snap_section_next(p->payload, len, &pos, &sec, err)) > 0) {
		if (sec.kind == FC_ABOUT && !sec.index && !p->about) {
			if ((r = load_about(p, &sec, err)))
				return r;
		} else if (sec.kind == FC_STATE && !sec.index && !p->state) {
			p->state = sec.bytes;
			p->state_len = sec.len;
		} else if (sec.kind == FC_LAYER && sec.index < VMCFG_MAX_DRIVES &&
			   !p->layer[sec.index].present) {
			r = mv_state_load(&layer_table, sec.bytes, sec.len, &p->layer[sec.index], err);
			if (r)
				return r;
			p->layer[sec.index].present = true;
		} else if (sec.kind < FC_SKIP)
			return mv_fail(err, EINVAL, "section %u.%u does not belong there", sec.kind,
				       sec.index);
	}
	if (!r && (!p->about || !p->state))
		return mv_fail(err, EINVAL, "the VM's %s is missing", p->about ? "state" : "configuration");
	for (uint32_t i = 0; !r && i < VMCFG_MAX_DRIVES; i++) {
		const struct vmcfg *c = &p->about->cfg;
		bool wanted = i < c->n_drives && c->drive[i].layer != VMCFG_LAYER_NONE;
		if (wanted != p->layer[i].present)
			r = mv_fail(err, EINVAL, "drive %u: its layer is %s", i,
				    wanted ? "missing" : "there, and it has none");
	}
	return r;
}

static int read_parts(int fd, struct parts *ret_parts, struct mv_err *err)
{
	size_t len = 0;
	int r = snap_container_read(fd, FC_SNAPFILE_MAGIC, "snapshot", FILE_MAX, &ret_parts->payload, &len,
				    err);
	if (!r && (r = sort_sections(ret_parts, len, err)))
		mv_wrap(err, "snapshot");
	return r;
}

// In a memfd that nobody can write any more.
static int state_file(const struct parts *p, int *ret_fd, struct mv_err *err)
{
	const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	MV_FD fd = memfd_create("state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r = fd < 0 ? -errno : mv_pwrite_full(fd, p->state, p->state_len, 0);
	if (!r && fcntl(fd, F_ADD_SEALS, seals))
		r = -errno;
	if (r)
		return mv_fail(err, -r, "snapshot: cannot hold its state in memory: %s", strerror(-r));
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

int fc_snapfile_read(int fd, struct vmcfg *ret_cfg, int *ret_state_fd,
		     struct fc_layer_file ret_layers[VMCFG_MAX_DRIVES], struct mv_err *err)
{
	PARTS p = { 0 };
	int r = read_parts(fd, &p, err);
	r = r ? r : state_file(&p, ret_state_fd, err);
	if (r)
		return r;
	*ret_cfg = p.about->cfg;
	if (ret_layers)
		memcpy(ret_layers, p.layer, sizeof p.layer);
	return 0;
}

// --- writing ---

// The bytes of a state file, which must be a good one.
static int take_state(int fd, struct mv_buf *out, struct mv_err *err)
{
	MV_SCRATCH uint8_t *payload = NULL;
	size_t len;
	int r = snap_container_read(fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len, err);
	if (r)
		return r;
	struct stat st;
	MV_FREE uint8_t *all = fstat(fd, &st) || st.st_size > STATE_MAX ? NULL : malloc((size_t)st.st_size);
	r = all ? mv_pread_full(fd, all, (size_t)st.st_size, 0) : -ENOMEM;
	if (r)
		return mv_fail(err, -r, "state: cannot read: %s", strerror(-r));
	snap_section_append(out, FC_STATE, 0, all, (size_t)st.st_size);
	return 0;
}

int fc_snapfile_write(int fd, const struct vmcfg *cfg, int state_fd,
		      const struct fc_layer_file layers[VMCFG_MAX_DRIVES], struct mv_err *err)
{
	MV_BUF out = { 0 };
	MV_FREE struct about *about = calloc(1, sizeof *about);
	struct timespec now;
	struct stat st;

	if (!about)
		return mv_fail(err, ENOMEM, "out of memory");
	if (fstat(fd, &st) || st.st_size)
		return mv_fail(err, EINVAL, "snapshot: not an empty file");
	clock_gettime(CLOCK_REALTIME, &now);
	mv_strcpy(about->thaw_version, sizeof about->thaw_version, THAW_VERSION);
	about->created_unix_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	vmcfg_copy(&about->cfg, cfg);
	size_t mark = snap_section_begin(&out, FC_ABOUT, 0);
	mv_state_save(&about_table, about, &out);
	snap_section_end(&out, mark);
	for (uint32_t i = 0; layers && i < VMCFG_MAX_DRIVES; i++) {
		if (!layers[i].present)
			continue;
		mark = snap_section_begin(&out, FC_LAYER, i);
		mv_state_save(&layer_table, &layers[i], &out);
		snap_section_end(&out, mark);
	}
	int r = take_state(state_fd, &out, err);
	if (!r && out.failed)
		r = mv_fail(err, ENOMEM, "snapshot: out of memory, or a field out of its bounds");
	r = r ? r : snap_container_write(fd, FC_SNAPFILE_MAGIC, out.p, out.len, err);
	PARTS again = { 0 };
	return r ? r : read_parts(fd, &again, err);
}

// --- the CPU, and what a person wants to know ---

int fc_snapfile_check_cpu(int state_fd, const struct vmcfg_cpu *cpu, const char *kvm_path, struct mv_err *err)
{
	struct cpu_report c = { 0 };
	int r = cpu_report(state_fd, kvm_path, cpu, &c, err);
	if (!r && c.compared && c.n_missing)
		r = mv_fail(err, ENOTSUP, "this host's CPU or KVM lacks what the snapshot's guest uses: %s",
			    (const char *)c.missing.p);
	cpu_report_fini(&c);
	return r;
}

// Where memory is, if the state says so. (read_parts() does not look into the state: who uses it will.)
static int find_map(int state_fd, struct memory_map *ret_map, struct mv_err *err)
{
	MV_SCRATCH uint8_t *payload = NULL;
	struct snap_section sec;
	size_t len = 0, pos = 0;
	int r = snap_container_read(state_fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len,
				    err);
	while (!r && (r = snap_section_next(payload, len, &pos, &sec, err)) > 0)
		r = sec.kind == SECTION_MEMORY ? memory_map_parse(sec.bytes, sec.len, ret_map, err) : 0;
	return r;
}

__attribute__((format(printf, 3, 4))) static void print(char *buf, size_t n, const char *fmt, ...)
{
	size_t at = strlen(buf);
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(buf + at, n - at, fmt, ap);
	va_end(ap);
}

int fc_snapfile_describe(int fd, char *buf, size_t n, struct mv_err *err)
{
	PARTS p = { 0 };
	MV_FD state_fd = -1;
	__attribute__((cleanup(cpu_report_fini))) struct cpu_report cpu = { 0 };
	struct memory_map map = { 0 };
	struct tm tm;
	char when[32] = "";
	le16_t version[2]; // in the container's header, behind its magic

	int r = read_parts(fd, &p, err);
	r = r ? r : state_file(&p, &state_fd, err);
	r = r ? r : find_map(state_fd, &map, err);
	r = r ? r : cpu_report(state_fd, NULL, NULL, &cpu, err);
	if (!r && mv_pread_full(fd, version, sizeof version, sizeof FC_SNAPFILE_MAGIC - 1))
		r = mv_fail(err, EIO, "snapshot: cannot read");
	if (r || !n)
		return r;
	const struct vmcfg *c = &p.about->cfg;
	time_t t = (time_t)(p.about->created_unix_ns / 1000000000u);
	strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
	buf[0] = 0;
	print(buf, n, "v%u.%u.0\ncreated: %s by thaw %s\n", le16_get(version[0]), le16_get(version[1]), when,
	      p.about->thaw_version);
	print(buf, n, "vm: %s, %u vCPUs, %u MiB of memory\n", c->name, c->vcpus, c->mem_mib);
	print(buf, n, "cpu: %s %s\n", cpu.vendor, cpu.model);
	for (uint32_t i = 0; i < map.n_regions; i++)
		print(buf, n, "memory: 0x%llx bytes at guest address 0x%llx, 0x%llx in the file\n",
		      (unsigned long long)map.region[i].size_bytes, (unsigned long long)map.region[i].gpa,
		      (unsigned long long)map.region[i].file_offset);
	for (uint32_t i = 0; i < c->n_drives; i++)
		print(buf, n, "drive %s: %s%s\n", c->drive[i].id, c->drive[i].path,
		      c->drive[i].read_only ? " (read-only)"
		      : p.layer[i].present  ? " with a layer"
					    : "");
	for (uint32_t i = 0; i < c->n_nets; i++)
		print(buf, n, "network interface %s: %s\n", c->net[i].id, c->net[i].tap);
	for (uint32_t i = 0; i < c->n_pmems; i++)
		print(buf, n, "pmem %s: %s\n", c->pmem[i].id, c->pmem[i].path);
	if (c->vsock.present)
		print(buf, n, "vsock: CID %u, %s\n", c->vsock.cid, c->vsock.path);
	return 0;
}
