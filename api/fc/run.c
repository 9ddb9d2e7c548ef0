// SPDX-License-Identifier: Apache-2.0
// What a VM does: the start, pause and resume, and what may change while it runs.
#include <string.h>

#include "api/fc/layers.h"
#include "api/fc/routes.h"
#include "api/fc/run.h"
#include "api/vmfds.h"
#include "microvm/base/util.h"

static js *text_answer(const char *key, const char *text)
{
	js *o = js_object();
	js_put_str(o, key, text);
	return o;
}

int fc_get_instance(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	static const char *const states[] = { "Not started", "Running", "Paused" }; // enum fc_state
	(void)id, (void)body, (void)err;
	*ret_answer = text_answer("id", fc->args->id);
	js_put_str(*ret_answer, "state", states[fc->state]);
	js_put_str(*ret_answer, "vmm_version", FC_VERSION);
	js_put_str(*ret_answer, "app_name", "Firecracker");
	return 0;
}

int fc_get_version(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)fc, (void)id, (void)body, (void)err;
	*ret_answer = text_answer("firecracker_version", FC_VERSION);
	return 0;
}

int fc_run_or_pause(struct fc *fc, bool run, struct api_err *err)
{
	if ((fc->state == FC_RUNNING) == run)
		return 0;
	int r = fc_vmm_call(fc, run ? MSG_RUN : MSG_PAUSE, NULL, NULL, NULL, 0, NULL, err);
	if (!r)
		fc->state = run ? FC_RUNNING : FC_PAUSED;
	return r;
}

int fc_patch_vm(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_vm_state *s = body;
	uint64_t before = mv_now_ns();
	bool changes = (fc->state == FC_RUNNING) != (bool)s->state;
	(void)id, (void)ret_answer;
	int r = fc_run_or_pause(fc, s->state, err);
	if (changes && !r)
		fc->counts.latency_us[s->state ? FC_RESUME : FC_PAUSE] = (mv_now_ns() - before) / 1000;
	return r;
}

void fc_forget_fds(struct fc *fc)
{
	vm_fds_close(&fc->fds); // the VM process has them
}

static int start(struct fc *fc, struct api_err *err)
{
	static struct msg_setup setup; // the loop's thread only
	int list[VM_FDS_MAX];
	if (fc->state != FC_NOT_STARTED)
		return api_fail(err, API_WRONG_STATE,
				"The requested operation is not supported after starting the microVM.");
	if (!fc->has_boot)
		return api_fail(err, API_WRONG_STATE, "Cannot start microvm without kernel configuration.");
	setup = (struct msg_setup){ 0 };
	fc_close_layers(&fc->fds); // of an earlier try
	int r = fc_make_config(fc, &setup.cfg, err);
	if (!r)
		r = fc_open_layers(&setup.cfg, &fc->fds, err);
	if (!r && fc->fds.kvm < 0)
		r = vmfds_kvm("/dev/kvm", &fc->fds.kvm, err);
	if (r)
		return r;
	unsigned n = vm_fds_pack(&fc->fds, list, &setup.fd_mask);
	r = fc_send_mmds(fc, err);
	r = r ? r : fc_vmm_call(fc, MSG_BOOT, &msg_setup_table, &setup, list, n, NULL, err);
	r = r ? r : fc_vmm_call(fc, MSG_RUN, NULL, NULL, NULL, 0, NULL, err);
	if (r) { // it may be configured differently, and tried again
		struct mv_err e = { 0 };
		if (fc_vmm_restart(fc, &e))
			fc_log(fc, FC_ERROR, "No VM process: %s", e.msg);
		return r;
	}
	fc->cfg = setup.cfg;
	fc->state = FC_RUNNING;
	fc_forget_fds(fc);
	fc_serial_start(&fc->port);
	return 0;
}

int fc_put_action(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_action *a = body;
	const struct msg_stop stop = { .mode = VM_STOP_CTRL_ALT_DEL };
	(void)id, (void)ret_answer;
	if (a->action_type == FC_INSTANCE_START)
		return start(fc, err);
	if (fc->state == FC_NOT_STARTED)
		return api_fail(err, API_WRONG_STATE,
				"The requested operation is not supported before starting the microVM.");
	if (a->action_type == FC_FLUSH_METRICS)
		return fc_metrics_flush(fc, err);
	return fc_vmm_call(fc, MSG_STOP, &msg_stop_table, &stop, NULL, 0, NULL, err);
}

int fc_patch_drive(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_drive *p = body;
	uint32_t i = 0;
	MV_FD fd = -1;
	(void)ret_answer;
	while (i < fc->n_drives && strcmp(fc->drive[i].drive_id, id) != 0)
		i++;
	if (i == fc->n_drives)
		return api_fail(err, API_INVALID_VALUE, "There is no drive \"%s\"", id);
	struct fc_drive *d = &fc->drive[i];
	struct msg_drive_set set = { .index = i,
				     .rate = fc->cfg.drive[i].rate,
				     .new_file = p->has_path_on_host };
	if (p->has_rate_limiter)
		fc_limiter_apply(&p->rate_limiter, &set.rate);
	int r = p->has_path_on_host ? vmfds_file("path_on_host", p->path_on_host,
						 !d->is_read_only && !d->layer, true, &fd, err)
				    : 0;
	r = r ? r : fc_vmm_call(fc, MSG_DRIVE_SET, &msg_drive_set_table, &set, &fd, fd >= 0, NULL, err);
	if (r)
		return r;
	fc->cfg.drive[i].rate = set.rate;
	if (p->has_rate_limiter)
		fc_limiter_merge(&p->rate_limiter, &d->rate_limiter, &d->has_rate_limiter);
	if (p->has_path_on_host) {
		memcpy(d->path_on_host, p->path_on_host, sizeof d->path_on_host);
		memcpy(fc->cfg.drive[i].path, p->path_on_host, sizeof fc->cfg.drive[i].path);
	}
	return 0;
}

int fc_patch_net(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_net *p = body;
	uint32_t i = 0;
	(void)ret_answer;
	while (i < fc->n_nets && strcmp(fc->net[i].iface_id, id) != 0)
		i++;
	if (i == fc->n_nets)
		return api_fail(err, API_INVALID_VALUE, "There is no network interface \"%s\"", id);
	struct fc_net *n = &fc->net[i];
	struct vmcfg_net *c = &fc->cfg.net[i];
	struct msg_net_set set = {
		.index = i, .link_up = true, .rx_rate = c->rx_rate, .tx_rate = c->tx_rate
	};
	if (p->has_rx_rate_limiter)
		fc_limiter_apply(&p->rx_rate_limiter, &set.rx_rate);
	if (p->has_tx_rate_limiter)
		fc_limiter_apply(&p->tx_rate_limiter, &set.tx_rate);
	int r = fc_vmm_call(fc, MSG_NET_SET, &msg_net_set_table, &set, NULL, 0, NULL, err);
	if (r)
		return r;
	c->rx_rate = set.rx_rate;
	c->tx_rate = set.tx_rate;
	if (p->has_rx_rate_limiter)
		fc_limiter_merge(&p->rx_rate_limiter, &n->rx_rate_limiter, &n->has_rx_rate_limiter);
	if (p->has_tx_rate_limiter)
		fc_limiter_merge(&p->tx_rate_limiter, &n->tx_rate_limiter, &n->has_tx_rate_limiter);
	return 0;
}

int fc_patch_pmem(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_pmem *p = body;
	uint32_t i = 0;
	(void)ret_answer;
	while (i < fc->n_pmems && strcmp(fc->pmem[i].id, id) != 0)
		i++;
	if (i == fc->n_pmems)
		return api_fail(err, API_INVALID_VALUE, "There is no pmem device \"%s\"", id);
	struct fc_pmem *d = &fc->pmem[i];
	struct msg_pmem_set set = { .index = i, .rate = fc->cfg.pmem[i].rate };
	if (!p->has_rate_limiter)
		return 0;
	fc_limiter_apply(&p->rate_limiter, &set.rate);
	int r = fc_vmm_call(fc, MSG_PMEM_SET, &msg_pmem_set_table, &set, NULL, 0, NULL, err);
	if (r)
		return r;
	fc->cfg.pmem[i].rate = set.rate;
	fc_limiter_merge(&p->rate_limiter, &d->rate_limiter, &d->has_rate_limiter);
	return 0;
}

int fc_refuse_hotplug(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)fc, (void)id, (void)body, (void)ret_answer;
	return api_fail(err, API_INVALID_VALUE,
			"Memory hotplug (virtio-mem) is not supported; use a balloon");
}
