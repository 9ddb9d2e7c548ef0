// SPDX-License-Identifier: Apache-2.0
// What clients configure before the start. Files, taps and sockets are opened at once, as Firecracker does
// it, so that what is wrong with them is the answer to the request that named them.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/fc/cpu.h"
#include "api/fc/routes.h"
#include "api/tap.h"
#include "api/vmfds.h"
#include "api/vmjson.h"
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"

#define DEFAULT_ARGS                                                                                         \
	"reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"

static void replace(int *fd, int by)
{
	mv_close(fd);
	*fd = by;
}

int fc_get_machine(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)body, (void)err;
	*ret_answer = js_encode(&fc_machine_table, &fc->machine);
	return 0;
}

static void forget_cpu_config(struct fc *fc)
{
	js_free(fc->cpu_config);
	fc->cpu_config = NULL;
	fc->cpu = (struct vmcfg_cpu){ 0 };
}

static int set_machine(struct fc *fc, const struct fc_machine *m, struct api_err *err)
{
	if (m->smt && m->vcpu_count > 1 && m->vcpu_count % 2)
		return api_fail(
			err, API_INVALID_VALUE,
			"The vCPU number is invalid! The vCPU number can only be 1 or an even number when "
			"SMT is enabled.");
	if (m->huge_pages == GMEM_2M && m->mem_size_mib % 2)
		return api_fail(err, API_INVALID_VALUE,
				"The memory size (MiB) is not a multiple of the huge pages' 2 MiB");
	if (m->has_cpu_template) // what comes last counts
		forget_cpu_config(fc);
	fc->machine = *m;
	fc->machine.has_cpu_template = true;
	return 0;
}

int fc_put_machine(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)ret_answer;
	return set_machine(fc, body, err);
}

int fc_patch_machine(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_machine *p = body;
	struct fc_machine m = fc->machine;
	(void)id, (void)ret_answer;
	m.vcpu_count = p->has_vcpu_count ? p->vcpu_count : m.vcpu_count;
	m.mem_size_mib = p->has_mem_size_mib ? p->mem_size_mib : m.mem_size_mib;
	m.smt = p->has_smt ? p->smt : m.smt;
	m.track_dirty_pages = p->has_track_dirty_pages ? p->track_dirty_pages : m.track_dirty_pages;
	m.huge_pages = p->has_huge_pages ? p->huge_pages : m.huge_pages;
	m.cpu_template = p->has_cpu_template ? p->cpu_template : m.cpu_template;
	m.has_cpu_template = p->has_cpu_template;
	if (!(p->has_vcpu_count || p->has_mem_size_mib || p->has_smt || p->has_track_dirty_pages ||
	      p->has_huge_pages || p->has_cpu_template))
		return api_fail(err, API_INVALID_VALUE, "Empty PATCH request.");
	return set_machine(fc, &m, err);
}

int fc_put_cpu(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_bytes *b = body;
	struct vmcfg_cpu cpu;
	js *v = NULL;
	(void)id, (void)ret_answer;
	int r = fc_cpu_parse(b->p, b->len, &v, &cpu, err);
	if (r)
		return r;
	forget_cpu_config(fc);
	fc->cpu_config = v;
	fc->cpu = cpu;
	fc->machine.cpu_template = FC_TEMPLATE_NONE;
	return 0;
}

int fc_put_boot(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_boot *b = body;
	MV_FD kernel = -1;
	MV_FD initrd = -1;
	(void)id, (void)ret_answer;
	int r = vmfds_file("kernel_image_path", b->kernel_image_path, false, false, &kernel, err);
	if (!r && b->has_initrd_path)
		r = vmfds_file("initrd_path", b->initrd_path, false, false, &initrd, err);
	if (r)
		return r;
	replace(&fc->fds.kernel, MV_TAKE_FD(kernel));
	replace(&fc->fds.initrd, MV_TAKE_FD(initrd));
	fc->boot = *b;
	fc->has_boot = true;
	return 0;
}

static bool other_root(const struct fc *fc, const char *drive_id, const char *pmem_id)
{
	for (uint32_t i = 0; i < fc->n_drives; i++)
		if (fc->drive[i].is_root_device && strcmp(fc->drive[i].drive_id, drive_id) != 0)
			return true;
	for (uint32_t i = 0; i < fc->n_pmems; i++)
		if (fc->pmem[i].root_device && strcmp(fc->pmem[i].id, pmem_id) != 0)
			return true;
	return false;
}

static int full(const char *what, unsigned most, struct api_err *err)
{
	return api_fail(err, API_LIMIT_REACHED, "More than %u %s", most, what);
}

static int check_drive(const struct fc *fc, const struct fc_drive *d, struct api_err *err)
{
	if (d->has_socket)
		return api_fail(err, API_INVALID_VALUE, "socket: vhost-user drives are not supported");
	if (!d->has_path_on_host)
		return api_fail(err, API_MISSING_FIELD, "path_on_host: is missing");
	if (d->is_root_device && other_root(fc, d->drive_id, ""))
		return api_fail(err, API_INVALID_VALUE, "A root block device already exists!");
	if (d->has_partuuid && (strchr(d->partuuid, ' ') || !d->partuuid[0]))
		return api_fail(err, API_INVALID_VALUE, "partuuid: is empty or has a space");
	if (d->layer && d->is_read_only)
		return api_fail(err, API_INVALID_VALUE, "layer: a read-only drive can have none");
	return 0;
}

// The root device is the first, whenever it comes: the guest's /dev/vda.
int fc_put_drive(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_drive *d = body;
	uint32_t at = 0, n = fc->n_drives;
	MV_FD fd = -1;
	(void)ret_answer;
	while (at < n && strcmp(fc->drive[at].drive_id, id) != 0)
		at++;
	if (at == VMCFG_MAX_DRIVES)
		return full("drives", VMCFG_MAX_DRIVES, err);
	int r = check_drive(fc, d, err);
	r = r ? r
	      : vmfds_file("path_on_host", d->path_on_host, !d->is_read_only && !d->layer, true, &fd, err);
	if (r)
		return r;
	if (at == n)
		fc->n_drives++;
	mv_close(&fc->fds.drive[at]);
	for (; d->is_root_device && at > 0; at--) {
		fc->drive[at] = fc->drive[at - 1];
		fc->fds.drive[at] = fc->fds.drive[at - 1];
	}
	fc->drive[at] = *d;
	fc->drive[at].has_is_read_only = fc->drive[at].has_cache_type = fc->drive[at].has_io_engine = true;
	fc->fds.drive[at] = MV_TAKE_FD(fd);
	return 0;
}

int fc_put_net(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_net *n = body;
	struct vmcfg_net c = { 0 };
	uint32_t at = 0;
	int fds[VMCFG_MAX_PAIRS] = { -1, -1, -1, -1, -1, -1, -1, -1 };
	_Static_assert(VMCFG_MAX_PAIRS == 8, "as many as above");
	(void)ret_answer;
	while (at < fc->n_nets && strcmp(fc->net[at].iface_id, id) != 0)
		at++;
	if (at == VMCFG_MAX_NETS)
		return full("network interfaces", VMCFG_MAX_NETS, err);
	for (uint32_t i = 0; i < fc->n_nets; i++)
		if (i != at && n->has_guest_mac && fc->net[i].has_guest_mac &&
		    !memcmp(n->guest_mac, fc->net[i].guest_mac, sizeof n->guest_mac))
			return api_fail(err, API_INVALID_VALUE,
					"The MAC address is already in use: interface %s",
					fc->net[i].iface_id);
	mv_strcpy(c.id, sizeof c.id, id);
	mv_strcpy(c.tap, sizeof c.tap, n->host_dev_name);
	if (!c.tap[0] || strchr(c.tap, '/') || strchr(c.tap, '%'))
		return api_fail(err, API_INVALID_VALUE, "host_dev_name: \"%s\" is not the name of a tap",
				c.tap);
	// The same tap again would be busy, by ourselves.
	if (at < fc->n_nets && !strcmp(n->host_dev_name, fc->net[at].host_dev_name)) {
		fc->net[at] = *n;
		return 0;
	}
	int r = vmfds_net(&c, fds, err);
	if (r)
		return r;
	if (at == fc->n_nets)
		fc->n_nets++;
	replace(&fc->fds.tap[at][0], fds[0]);
	fc->net[at] = *n;
	return 0;
}

int fc_put_pmem(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_pmem *p = body;
	uint32_t at = 0;
	MV_FD fd = -1;
	(void)ret_answer;
	while (at < fc->n_pmems && strcmp(fc->pmem[at].id, id) != 0)
		at++;
	if (at == VMCFG_MAX_PMEMS)
		return full("pmem devices", VMCFG_MAX_PMEMS, err);
	if (p->root_device && other_root(fc, "", id))
		return api_fail(err, API_INVALID_VALUE,
				"Attempt to add pmem as a root device while the root device is "
				"already configured");
	int r = vmfds_file("path_on_host", p->path_on_host, !p->read_only, false, &fd, err);
	if (r)
		return r;
	if (at == fc->n_pmems)
		fc->n_pmems++;
	replace(&fc->fds.pmem[at], MV_TAKE_FD(fd));
	fc->pmem[at] = *p;
	return 0;
}

int fc_put_vsock(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_vsock *v = body;
	struct vmcfg_vsock c = { .present = true, .cid = v->guest_cid };
	int fd = -1;
	(void)id, (void)ret_answer;
	if (strlen(v->uds_path) >= API_VSOCK_PATH_LEN)
		return api_fail(err, API_INVALID_VALUE,
				"uds_path: longer than %zu bytes, and _PORT comes behind it",
				(size_t)API_VSOCK_PATH_LEN - 1);
	memcpy(c.path, v->uds_path, sizeof c.path);
	if (fc->vsock_made[0]) { // that of an earlier request
		mv_close(&fc->fds.vsock);
		unlink(fc->vsock_made);
		fc->vsock_made[0] = 0;
		fc->has_vsock = false;
	}
	int r = vmfds_vsock(&c, &fd, err);
	if (r)
		return r;
	memcpy(fc->vsock_made, c.path, sizeof fc->vsock_made);
	fc->fds.vsock = fd;
	fc->vsock = *v;
	fc->has_vsock = true;
	return 0;
}

int fc_put_entropy(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_entropy *e = body;
	(void)id, (void)ret_answer;
	(void)err;
	fc->entropy = *e;
	fc->has_entropy = true;
	return 0;
}

int fc_put_serial(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)ret_answer;
	int r = fc_serial_set(&fc->port, body, err);
	if (r)
		return r;
	fc->serial = *(const struct fc_serial *)body;
	fc->has_serial = true;
	return 0;
}

int fc_put_logger(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)ret_answer;
	int r = fc_log_set(&fc->log, body, err);
	if (r)
		return r;
	fc->logger = *(const struct fc_logger *)body;
	fc->has_logger = true;
	return 0;
}

int fc_put_metrics(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_metrics *m = body;
	(void)id, (void)ret_answer;
	int r = fc_metrics_set(fc, m->metrics_path, err);
	if (r)
		return r;
	fc->metrics_file = *m;
	fc->has_metrics = true;
	return 0;
}

// --- as one object -----------------------------------------------------------------------
static js *list(const struct js_table *t, const void *first, size_t size, uint32_t n)
{
	js *l = js_list();
	for (uint32_t i = 0; i < n; i++)
		js_add(l, js_encode(t, (const uint8_t *)first + i * size));
	return l;
}

static js *maybe(bool there, const struct js_table *t, const void *obj)
{
	return there ? js_encode(t, obj) : js_null();
}

int fc_get_config(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	js *o = js_object(), *cpu = js_copy(fc->cpu_config);
	(void)id, (void)body, (void)err;
	js_put(o, "balloon", maybe(fc->has_balloon, &fc_balloon_table, &fc->balloon));
	js_put(o, "drives", list(&fc_drive_table, fc->drive, sizeof *fc->drive, fc->n_drives));
	js_put(o, "boot-source", maybe(fc->has_boot, &fc_boot_table, &fc->boot));
	js_put(o, "cpu-config", cpu ? cpu : js_null());
	js_put(o, "logger", maybe(fc->has_logger, &fc_logger_table, &fc->logger));
	js_put(o, "machine-config", js_encode(&fc_machine_table, &fc->machine));
	js_put(o, "metrics", maybe(fc->has_metrics, &fc_metrics_table, &fc->metrics_file));
	js_put(o, "mmds-config", maybe(fc->has_mmds_config, &fc_mmds_config_table, &fc->mmds_config));
	js_put(o, "network-interfaces", list(&fc_net_table, fc->net, sizeof *fc->net, fc->n_nets));
	js_put(o, "vsock", maybe(fc->has_vsock, &fc_vsock_table, &fc->vsock));
	js_put(o, "entropy", maybe(fc->has_entropy, &fc_entropy_table, &fc->entropy));
	js_put(o, "serial", maybe(fc->has_serial, &fc_serial_table, &fc->serial));
	js_put(o, "pmem", list(&fc_pmem_table, fc->pmem, sizeof *fc->pmem, fc->n_pmems));
	js_put(o, "memory-hotplug", js_null());
	*ret_answer = o;
	return 0;
}

// --- the VM's configuration and back ------------------------------------------------------

// What is appended stands before " -- ": what is behind is for init.
static int make_cmdline(const struct fc *fc, char *to, size_t size, struct api_err *err)
{
	const char *args = fc->boot.has_boot_args ? fc->boot.boot_args : DEFAULT_ARGS;
	const size_t n_kernel = vmcfg_kernel_args_len(args);
	char root[120] = "";
	if (fc->n_drives && fc->drive[0].is_root_device)
		snprintf(root, sizeof root, " root=%s%s %s",
			 fc->drive[0].has_partuuid ? "PARTUUID=" : "/dev/vda",
			 fc->drive[0].has_partuuid ? fc->drive[0].partuuid : "",
			 fc->drive[0].is_read_only ? "ro" : "rw");
	for (uint32_t i = 0; i < fc->n_pmems; i++)
		if (fc->pmem[i].root_device)
			snprintf(root, sizeof root, " root=/dev/pmem%u %s", i,
				 fc->pmem[i].read_only ? "ro" : "rw");
	int n = snprintf(to, size, "%.*s%spci=off%s%s%s", (int)n_kernel, args, n_kernel ? " " : "", root,
			 args[n_kernel] == '-' ? " " : "", args + n_kernel);
	return n < (int)size ? 0
			     : api_fail(err, API_INVALID_VALUE,
					"boot_args: longer than %zu bytes with what is appended", size - 1);
}

static void make_drive(const struct fc_drive *d, struct vmcfg_drive *c)
{
	memcpy(c->id, d->drive_id, sizeof c->id);
	memcpy(c->path, d->path_on_host, sizeof c->path);
	c->read_only = d->is_read_only;
	c->layer = d->layer;
	c->cache = d->cache_type == FC_WRITEBACK || d->layer ? VMCFG_CACHE_WRITEBACK : VMCFG_CACHE_UNSAFE;
	if (d->has_rate_limiter)
		fc_limiter_apply(&d->rate_limiter, &c->rate);
}

static void make_net(const struct fc_net *n, struct vmcfg_net *c)
{
	memcpy(c->id, n->iface_id, sizeof c->id);
	memcpy(c->tap, n->host_dev_name, sizeof c->tap);
	if (n->has_guest_mac)
		memcpy(c->mac, n->guest_mac, sizeof c->mac);
	else
		mv_random(c->mac, sizeof c->mac);
	if (!n->has_guest_mac)
		c->mac[0] = (uint8_t)((c->mac[0] & 0xfc) | 0x02); // locally administered, unicast
	c->mtu = n->has_mtu ? n->mtu : 0;
	if (n->has_rx_rate_limiter)
		fc_limiter_apply(&n->rx_rate_limiter, &c->rx_rate);
	if (n->has_tx_rate_limiter)
		fc_limiter_apply(&n->tx_rate_limiter, &c->tx_rate);
}

static void make_metadata(const struct fc *fc, struct vmcfg_metadata *m)
{
	const struct fc_mmds_config *f = &fc->mmds_config;
	if (!fc->has_mmds_config)
		return;
	m->present = true;
	m->version = f->version == FC_MMDS_V1 ? VMCFG_METADATA_V1 : VMCFG_METADATA_V2;
	m->imds_compat = f->imds_compat;
	mv_strcpy(m->address, sizeof m->address,
		  f->has_ipv4_address ? f->ipv4_address : VMCFG_METADATA_ADDRESS);
	m->n_nets = f->n_network_interfaces;
	memcpy(m->net, f->network_interfaces, sizeof m->net);
}

int fc_make_config(const struct fc *fc, struct vmcfg *ret_cfg, struct api_err *err)
{
	struct vmcfg *c = ret_cfg;
	struct mv_err e = { 0 };
	memset(c, 0, sizeof *c);
	mv_strcpy(c->name, sizeof c->name, fc->args->id[0] == '-' ? "vm" : fc->args->id);
	mv_uuid(c->id);
	c->vcpus = fc->machine.vcpu_count;
	c->mem_mib = fc->machine.mem_size_mib;
	c->track_dirty = fc->machine.track_dirty_pages;
	c->huge_pages = fc->machine.huge_pages;
	c->discovery = VMCFG_ACPI_AND_CMDLINE;
	c->cpu = fc->cpu;
	if (fc->machine.cpu_template && fc_cpu_template(fc->machine.cpu_template, &c->cpu, err))
		return -EINVAL;
	memcpy(c->kernel, fc->boot.kernel_image_path, sizeof c->kernel);
	if (fc->boot.has_initrd_path)
		memcpy(c->initrd, fc->boot.initrd_path, sizeof c->initrd);
	c->n_drives = fc->n_drives;
	for (uint32_t i = 0; i < fc->n_drives; i++)
		make_drive(&fc->drive[i], &c->drive[i]);
	c->n_nets = fc->n_nets;
	for (uint32_t i = 0; i < fc->n_nets; i++)
		make_net(&fc->net[i], &c->net[i]);
	tap_default_mtu(c);
	c->n_pmems = fc->n_pmems;
	for (uint32_t i = 0; i < fc->n_pmems; i++) {
		memcpy(c->pmem[i].id, fc->pmem[i].id, sizeof c->pmem[i].id);
		memcpy(c->pmem[i].path, fc->pmem[i].path_on_host, sizeof c->pmem[i].path);
		c->pmem[i].read_only = fc->pmem[i].read_only;
		if (fc->pmem[i].has_rate_limiter)
			fc_limiter_apply(&fc->pmem[i].rate_limiter, &c->pmem[i].rate);
	}
	if (fc->has_vsock) {
		c->vsock = (struct vmcfg_vsock){ .present = true, .cid = fc->vsock.guest_cid };
		memcpy(c->vsock.path, fc->vsock.uds_path, sizeof c->vsock.path);
	}
	make_metadata(fc, &c->metadata);
	c->rng = fc->has_entropy;
	if (fc->entropy.has_rate_limiter)
		fc_limiter_apply(&fc->entropy.rate_limiter, &c->rng_rate);
	if (fc->has_balloon)
		c->balloon =
			(struct vmcfg_balloon){ .present = true,
						.deflate_on_oom = fc->balloon.deflate_on_oom,
						.free_page_reporting = fc->balloon.free_page_reporting,
						.free_page_hinting = fc->balloon.free_page_hinting,
						.target_mib = fc->balloon.amount_mib,
						.stats_interval_s = fc->balloon.stats_polling_interval_s };
	int r = make_cmdline(fc, c->cmdline, sizeof c->cmdline, err);
	if (!r && vmcfg_check(c, &e))
		r = api_fail(err, API_INVALID_VALUE, "%s", e.msg);
	return r;
}

void fc_take_config(struct fc *fc, const struct vmcfg *c)
{
	fc->machine = (struct fc_machine){ .vcpu_count = c->vcpus,
					   .mem_size_mib = c->mem_mib,
					   .track_dirty_pages = c->track_dirty,
					   .huge_pages = c->huge_pages,
					   .cpu_template =
						   c->cpu.template == VMCFG_CPU_HOST
							   ? FC_TEMPLATE_NONE
							   : c->cpu.template - VMCFG_CPU_V2 + FC_TEMPLATE_V2,
					   .has_cpu_template = true };
	fc->has_boot = true;
	memcpy(fc->boot.kernel_image_path, c->kernel, sizeof c->kernel);
	memcpy(fc->boot.initrd_path, c->initrd, sizeof c->initrd);
	memcpy(fc->boot.boot_args, c->cmdline, sizeof c->cmdline);
	fc->boot.has_initrd_path = c->initrd[0];
	fc->boot.has_boot_args = true;
	fc->n_drives = c->n_drives;
	for (uint32_t i = 0; i < c->n_drives; i++) {
		struct fc_drive *d = &fc->drive[i];
		*d = (struct fc_drive){ .is_read_only = c->drive[i].read_only, .has_is_read_only = true };
		memcpy(d->drive_id, c->drive[i].id, sizeof d->drive_id);
		memcpy(d->path_on_host, c->drive[i].path, sizeof d->path_on_host);
		d->cache_type = c->drive[i].cache == VMCFG_CACHE_UNSAFE ? FC_UNSAFE : FC_WRITEBACK;
		d->layer = c->drive[i].layer;
		d->has_path_on_host = d->has_cache_type = d->has_io_engine = true;
		d->has_layer = d->layer;
		d->has_rate_limiter = fc_limiter_from(&c->drive[i].rate, &d->rate_limiter);
	}
	fc->n_nets = c->n_nets;
	for (uint32_t i = 0; i < c->n_nets; i++) {
		struct fc_net *n = &fc->net[i];
		*n = (struct fc_net){ .mtu = c->net[i].mtu, .has_mtu = c->net[i].mtu, .has_guest_mac = true };
		memcpy(n->iface_id, c->net[i].id, sizeof n->iface_id);
		memcpy(n->host_dev_name, c->net[i].tap, sizeof n->host_dev_name);
		memcpy(n->guest_mac, c->net[i].mac, sizeof n->guest_mac);
		n->has_rx_rate_limiter = fc_limiter_from(&c->net[i].rx_rate, &n->rx_rate_limiter);
		n->has_tx_rate_limiter = fc_limiter_from(&c->net[i].tx_rate, &n->tx_rate_limiter);
	}
	fc->n_pmems = c->n_pmems;
	for (uint32_t i = 0; i < c->n_pmems; i++) {
		fc->pmem[i] = (struct fc_pmem){ .read_only = c->pmem[i].read_only };
		memcpy(fc->pmem[i].id, c->pmem[i].id, sizeof c->pmem[i].id);
		memcpy(fc->pmem[i].path_on_host, c->pmem[i].path, sizeof c->pmem[i].path);
		fc->pmem[i].has_rate_limiter = fc_limiter_from(&c->pmem[i].rate, &fc->pmem[i].rate_limiter);
	}
	fc->has_vsock = c->vsock.present;
	fc->vsock = (struct fc_vsock){ .guest_cid = c->vsock.cid };
	memcpy(fc->vsock.uds_path, c->vsock.path, sizeof c->vsock.path);
	fc->has_mmds_config = c->metadata.present;
	fc->mmds_config = (struct fc_mmds_config){
		.n_network_interfaces = c->metadata.n_nets,
		.version = c->metadata.version == VMCFG_METADATA_V1 ? FC_MMDS_V1 : FC_MMDS_V2,
		.imds_compat = c->metadata.imds_compat,
		.has_ipv4_address = c->metadata.address[0],
	};
	memcpy(fc->mmds_config.network_interfaces, c->metadata.net, sizeof c->metadata.net);
	memcpy(fc->mmds_config.ipv4_address, c->metadata.address, sizeof c->metadata.address);
	fc->has_entropy = c->rng;
	fc->entropy.has_rate_limiter = fc_limiter_from(&c->rng_rate, &fc->entropy.rate_limiter);
	fc->has_balloon = c->balloon.present;
	fc->balloon = (struct fc_balloon){ .amount_mib = c->balloon.target_mib,
					   .stats_polling_interval_s = c->balloon.stats_interval_s,
					   .deflate_on_oom = c->balloon.deflate_on_oom,
					   .free_page_hinting = c->balloon.free_page_hinting,
					   .free_page_reporting = c->balloon.free_page_reporting };
}
