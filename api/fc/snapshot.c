// SPDX-License-Identifier: Apache-2.0
// Snapshots as files that the client names. The memory file is guest memory as it is; what a load maps of it
// is copied when the guest writes.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "api/fc/layers.h"
#include "api/fc/outfile.h"
#include "api/fc/routes.h"
#include "api/fc/run.h"
#include "api/fc/snapfile.h"
#include "api/tap.h"
#include "api/vmfds.h"
#include "api/vmjson.h"
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"
#include "snapshot/manifest.h"

#define KVM "/dev/kvm"

static int from(struct api_err *err, const struct mv_err *e) { return api_from(err, e, API_FILE_INVALID); }

// --- create ------------------------------------------------------------------------------
static int check_create(const struct fc *fc, struct api_err *err)
{
	if (fc->state != FC_PAUSED)
		return api_fail(err, API_WRONG_STATE,
				"Snapshots are taken of a paused microVM; PATCH /vm first");
	return 0;
}

// What is done to files, which may take long: by fc_aside(), so it knows nothing of the front.
struct files {
	const struct fc_create *asked;
	const struct vmcfg *cfg;
	struct fc_outfile state, other[1 + VMCFG_MAX_DRIVES]; // memory, then layers of drives
	unsigned n_others;
	int state_fd; // what the VM process writes
	struct mv_err err;
};

static void files_fini(struct files *f)
{
	fc_outfile_drop(&f->state);
	for (unsigned i = 0; i < MV_ARRAY_LEN(f->other); i++)
		fc_outfile_drop(&f->other[i]);
	mv_close(&f->state_fd);
}

static int open_layer(struct files *f, const char *drive_id)
{
	char path[PATH_MAX];
	struct api_err e;
	if (fc_layer_path(path, sizeof path, f->asked->snapshot_path, drive_id, &e))
		return mv_fail(&f->err, ENAMETOOLONG, "%s", e.msg);
	return fc_outfile_open(path, 0, &f->other[f->n_others++], &f->err);
}

static int open_files(void *arg)
{
	struct files *f = arg;
	uint64_t base_bytes = f->asked->snapshot_type ? (uint64_t)f->cfg->mem_mib << 20 : 0;
	f->state_fd = memfd_create("state", MFD_CLOEXEC);
	if (f->state_fd < 0)
		return mv_fail(&f->err, errno, "memfd: %s", strerror(errno));
	int r = fc_outfile_open(f->asked->snapshot_path, 0, &f->state, &f->err);
	r = r ? r : fc_outfile_open(f->asked->mem_file_path, base_bytes, &f->other[f->n_others++], &f->err);
	for (uint32_t i = 0; !r && i < f->cfg->n_drives; i++)
		if (f->cfg->drive[i].layer)
			r = open_layer(f, f->cfg->drive[i].id);
	return r;
}

static int publish_files(void *arg)
{
	struct files *f = arg;
	struct fc_layer_file layers[VMCFG_MAX_DRIVES] = { 0 };
	unsigned k = 1;
	int r = 0;
	for (uint32_t i = 0; !r && i < f->cfg->n_drives; i++)
		if (f->cfg->drive[i].layer)
			r = fc_layer_file_note(f->other[k++].fd, &layers[i], &f->err);
	r = r ? r : fc_snapfile_write(f->state.fd, f->cfg, f->state_fd, layers, &f->err);
	return r ? r : fc_outfile_publish(&f->state, f->other, f->n_others, &f->err);
}

static int create(struct fc *fc, const struct fc_create *c, struct api_err *err)
{
	struct msg_snapshot m = { .lz4 = SNAP_MEMORY_RAW,
				  .incremental = c->snapshot_type,
				  .confirmed = fc->confirmed,
				  .copy_layers = true };
	__attribute__((cleanup(files_fini))) struct files f = { .asked = c, .cfg = &fc->cfg, .state_fd = -1 };
	int fds[1 + MV_ARRAY_LEN(f.other)];
	f.state.fd = -1;
	for (unsigned i = 0; i < MV_ARRAY_LEN(f.other); i++)
		f.other[i].fd = -1;
	if (fc_aside(fc, open_files, &f))
		return from(err, &f.err);
	fds[0] = f.state_fd;
	for (unsigned i = 0; i < f.n_others; i++)
		fds[1 + i] = f.other[i].fd;
	fc->confirmed = false; // until all files are there
	int r = fc_vmm_call(fc, MSG_SNAPSHOT, &msg_snapshot_table, &m, fds, 1 + f.n_others, NULL, err);
	if (!r && fc_aside(fc, publish_files, &f))
		r = from(err, &f.err);
	fc->confirmed = !r;
	return r;
}

int fc_create_snapshot(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_create *c = body;
	uint64_t before = mv_now_ns();
	(void)id, (void)ret_answer;
	int r = check_create(fc, err);
	r = r ? r : create(fc, c, err);
	if (!r)
		fc->counts.latency_us[c->snapshot_type ? FC_DIFF_CREATE : FC_FULL_CREATE] =
			(mv_now_ns() - before) / 1000;
	return r;
}

// --- load ----------------------------------------------------------------------------------
static int override_nets(struct vmcfg *c, const struct fc_load *l, struct api_err *err)
{
	for (uint32_t k = 0; k < l->n_network_overrides; k++) {
		const struct fc_load_net *o = &l->network_overrides[k];
		uint32_t i = 0;
		while (i < c->n_nets && strcmp(c->net[i].id, o->iface_id) != 0)
			i++;
		if (i == c->n_nets)
			return api_fail(err, API_INVALID_VALUE,
					"network_overrides: the snapshot has no \"%s\"", o->iface_id);
		memcpy(c->net[i].tap, o->host_dev_name, sizeof c->net[i].tap);
		if (o->has_guest_mac)
			memcpy(c->net[i].mac, o->guest_mac, sizeof c->net[i].mac);
	}
	return 0;
}

static int override_drives(struct vmcfg *c, const struct fc_load *l, struct api_err *err)
{
	for (uint32_t k = 0; k < l->n_drive_overrides; k++) {
		const struct fc_load_drive *o = &l->drive_overrides[k];
		uint32_t i = 0;
		while (i < c->n_drives && strcmp(c->drive[i].id, o->drive_id) != 0)
			i++;
		if (i == c->n_drives)
			return api_fail(err, API_INVALID_VALUE, "drive_overrides: the snapshot has no \"%s\"",
					o->drive_id);
		if (o->has_path_on_host)
			memcpy(c->drive[i].path, o->path_on_host, sizeof c->drive[i].path);
		if (o->has_layer)
			c->drive[i].layer = o->layer;
		if (c->drive[i].layer) // its flushes cost nothing
			c->drive[i].cache = VMCFG_CACHE_WRITEBACK;
	}
	return 0;
}

static int override_all(struct vmcfg *c, const struct fc_load *l, const char *name, struct api_err *err)
{
	struct mv_err e = { 0 };
	mv_uuid(c->id);
	mv_strcpy(c->name, sizeof c->name, name[0] == '-' ? "vm" : name);
	if (l->has_vsock_override && !c->vsock.present)
		return api_fail(err, API_INVALID_VALUE, "vsock_override: the snapshot has no vsock device");
	if (l->has_vsock_override)
		memcpy(c->vsock.path, l->vsock_override.uds_path, sizeof c->vsock.path);
	if (l->has_vsock_override && l->vsock_override.has_guest_cid)
		c->vsock.cid = l->vsock_override.guest_cid;
	if (strlen(c->vsock.path) >= API_VSOCK_PATH_LEN)
		return api_fail(err, API_INVALID_VALUE, "vsock_override: uds_path is too long");
	c->track_dirty = l->track_dirty_pages || l->enable_diff_snapshots;
	if (l->has_huge_pages)
		c->huge_pages = l->huge_pages;
	int r = override_nets(c, l, err);
	r = r ? r : override_drives(c, l, err);
	if (!r && vmcfg_check(c, &e))
		r = api_fail(err, API_INVALID_VALUE, "%s", e.msg);
	return r;
}

static int open_memory(const struct vmcfg *c, const struct fc_load *l, struct vm_fds *f, struct api_err *err)
{
	const char *path = l->has_mem_backend ? l->mem_backend.backend_path : l->mem_file_path;
	struct mv_err e = { 0 };
	if (l->has_mem_backend && l->mem_backend.backend_type) {
		f->uffd = open("/dev/userfaultfd",
			       O_RDWR | O_CLOEXEC); // else by system call, which needs rights
		return vmfds_open_handler(path, &f->handler, err);
	}
	return fc_memory_open(path, c->mem_mib, &f->memory, &e) ? from(err, &e) : 0;
}

// What a snapshot of ours and the overrides name.
static int open_devices(struct fc *fc, const struct vmcfg *c, const char *snapshot_path,
			const struct fc_layer_file layers[VMCFG_MAX_DRIVES], struct vm_fds *f,
			struct api_err *err)
{
	int r = vmfds_open(c, KVM, VMFDS_CLONE, f, err);
	if (!r && c->vsock.present)
		memcpy(fc->vsock_made, c->vsock.path, sizeof fc->vsock_made);
	r = r ? r : fc_open_frozen_layers(snapshot_path, c, layers, f, err);
	return r ? r : fc_open_layers(c, f, err);
}

static int load(struct fc *fc, const struct fc_load *l, struct api_err *err)
{
	static struct msg_setup setup; // the loop's thread only
	struct fc_layer_file layers[VMCFG_MAX_DRIVES];
	int list[VM_FDS_MAX];
	struct mv_err e = { 0 };
	MV_FD state = -1;
	MV_FD file = -1;
	setup = (struct msg_setup){ .run = l->resume_vm };
	int r = vmfds_file("snapshot_path", l->snapshot_path, false, false, &file, err);
	if (r)
		return r;
	if (fc_snapfile_read(file, &setup.cfg, &state, layers, &e) ||
	    fc_snapfile_check_cpu(state, &setup.cfg.cpu, KVM, &e))
		return api_from(err, &e, API_SNAPSHOT_CORRUPT);
	r = override_all(&setup.cfg, l, fc->args->id, err);
	r = r ? r : open_devices(fc, &setup.cfg, l->snapshot_path, layers, &fc->fds, err);
	r = r ? r : open_memory(&setup.cfg, l, &fc->fds, err);
	if (r)
		return r;
	fc->fds.state = MV_TAKE_FD(state);
	unsigned n = vm_fds_pack(&fc->fds, list, &setup.fd_mask);
	r = fc_vmm_call(fc, MSG_RESTORE, &msg_setup_table, &setup, list, n, NULL, err);
	if (r)
		return r;
	fc->cfg = setup.cfg;
	fc->state = l->resume_vm ? FC_RUNNING : FC_PAUSED;
	fc->confirmed = true; // what it was restored from is there
	fc_forget_fds(fc);
	fc_take_config(fc, &fc->cfg);
	fc_serial_start(&fc->port);
	return 0;
}

static int check_load(const struct fc *fc, const struct fc_load *l, struct api_err *err)
{
	if (fc->configured)
		return api_fail(
			err, API_WRONG_STATE,
			"Loading a microVM snapshot not allowed after configuring boot-specific resources.");
	if (l->has_mem_backend == l->has_mem_file_path)
		return api_fail(err, API_INVALID_VALUE,
				"Either `mem_backend` or `mem_file_path` must be specified, and not both");
	if (l->has_track_dirty_pages && l->has_enable_diff_snapshots)
		return api_fail(
			err, API_INVALID_VALUE,
			"Either `track_dirty_pages` or `enable_diff_snapshots` can be specified, not both");
	return 0;
}

int fc_load_snapshot(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	uint64_t before = mv_now_ns();
	(void)id, (void)ret_answer;
	int r = check_load(fc, body, err);
	if (r)
		return r;
	r = load(fc, body, err);
	fc->counts.latency_us[FC_LOAD] = (mv_now_ns() - before) / 1000;
	if (!r)
		return 0;
	fc->end = true; // as Firecracker: it has no way back
	fc->exit_status = FC_EXIT_ERROR;
	return r;
}
