// SPDX-License-Identifier: Apache-2.0
#include "api/fc/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/fc/fc.h"
#include "api/fc/routes.h"
#include "microvm/base/util.h"

#define FLUSH_NS (60ull * 1000000000)

static struct msg_device device; // scratch of the loop's thread

static uint64_t since(uint64_t now, uint64_t *told) { return now - MV_TAKE_AS(*told, now); }

static js *requests(struct fc *fc, const char *method)
{
	js *o = js_object();
	struct fc_counts *c = &fc->counts;
	char key[64];
	const struct fc_route *r;
	for (unsigned i = 0; (r = fc_route_at(i)); i++) {
		if (!r->metric || strcmp(r->method, method))
			continue;
		snprintf(key, sizeof key, "%s_count", r->metric);
		js_put_uint(o, key, (uint64_t)js_int(o, key, 0) + MV_TAKE_AS(c->called[i], 0));
		snprintf(key, sizeof key, "%s_fails", r->metric);
		js_put_uint(o, key, (uint64_t)js_int(o, key, 0) + MV_TAKE_AS(c->failed[i], 0));
	}
	return o;
}

static bool ask_device(struct fc *fc, uint32_t slot)
{
	const struct msg_device_query q = { .slot = slot };
	const struct msg_reply *r;
	struct api_err ignored;
	struct mv_err e;
	return fc->state != FC_NOT_STARTED &&
	       !fc_vmm_call(fc, MSG_DEVICES, &msg_device_query_table, &q, NULL, 0, &r, &ignored) &&
	       !mv_state_load(&msg_device_table, r->data, r->n_data, &device, &e);
}

static js *queues(struct fc *fc, uint32_t slot, const char *const *names)
{
	js *o = js_object();
	for (unsigned q = 0; q < 4 && q < device.n_queues && names[q]; q++)
		js_put_uint(o, names[q],
			    since(device.queue[q].kicks_by_event + device.queue[q].kicks_by_exit,
				  &fc->counts.told_kicks[slot][q]));
	return o;
}

// Devices are in the order of slots: drives, nets, vsock...
static void put_devices(struct fc *fc, js *o)
{
	static const char *const block[] = { "queue_event_count", NULL };
	static const char *const net[] = { "rx_queue_event_count", "tx_queue_event_count", NULL };
	static const char *const vsock[] = { "rx_queue_event_count", "tx_queue_event_count",
					     "ev_queue_event_count", NULL };
	const struct vmcfg *c = &fc->cfg;
	char key[VMCFG_NAME_LEN + 8];
	uint32_t n = c->n_drives + c->n_nets + c->vsock.present;
	for (uint32_t slot = 0;
	     slot < n && slot < MV_ARRAY_LEN(fc->counts.told_kicks) && ask_device(fc, slot); slot++) {
		if (slot < c->n_drives) {
			snprintf(key, sizeof key, "block_%s", c->drive[slot].id);
			js_put(o, key, queues(fc, slot, block));
		} else if (slot < c->n_drives + c->n_nets) {
			snprintf(key, sizeof key, "net_%s", c->net[slot - c->n_drives].id);
			js_put(o, key, queues(fc, slot, net));
		} else {
			js_put(o, "vsock", queues(fc, slot, vsock));
		}
	}
}

static js *make_line(struct fc *fc)
{
	static const char *const latencies[] = { "full_create_snapshot", "diff_create_snapshot",
						 "load_snapshot", "pause_vm", "resume_vm" };
	struct fc_counts *c = &fc->counts;
	struct timespec now;
	js *o = js_object(), *p;
	clock_gettime(CLOCK_REALTIME, &now);
	js_put_uint(o, "utc_timestamp_ms", (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
	js_put(o, "api_server", p = js_object());
	js_put_uint(p, "process_startup_time_us", c->startup_us);
	js_put_uint(p, "process_startup_time_cpu_us", c->startup_cpu_us);
	js_put(o, "get_api_requests", requests(fc, "GET"));
	js_put(o, "put_api_requests", requests(fc, "PUT"));
	js_put(o, "patch_api_requests", requests(fc, "PATCH"));
	js_put(o, "latencies_us", p = js_object());
	for (unsigned i = 0; i < FC_N_LATENCIES; i++)
		js_put_uint(p, latencies[i], c->latency_us[i]);
	js_put(o, "logger", p = js_object());
	js_put_uint(p, "missed_log_count", since(fc->log.missed, &c->told_log_missed));
	js_put_uint(p, "missed_metrics_count", MV_TAKE_AS(c->missed, 0));
	js_put(o, "uart", p = js_object());
	js_put_uint(p, "missed_write_count", since(fc->port.lost_bytes, &c->told_lost));
	js_put_uint(p, "rate_limiter_dropped_bytes", since(fc->port.dropped_bytes, &c->told_dropped));
	put_devices(fc, o);
	return o;
}

int fc_metrics_flush(struct fc *fc, struct api_err *err)
{
	if (fc->counts.fd < 0)
		return 0;
	MV_FREE char *line = js_text(make_line(fc), false);
	if (!line)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the metrics");
	size_t len = strlen(line);
	if (write(fc->counts.fd, line, len) == (ssize_t)len)
		return 0;
	fc->counts.missed++;
	return api_fail(err, API_FILE_INVALID, "metrics_path: the line was not taken");
}

static void on_time(void *arg)
{
	struct fc *fc = arg;
	fc->work.flush_due = true;
	mv_timer_arm(&fc->counts.timer, FLUSH_NS);
}

int fc_metrics_set(struct fc *fc, const char *path, struct api_err *err)
{
	struct fc_counts *c = &fc->counts;
	if (c->fd >= 0)
		return api_fail(err, API_WRONG_STATE, "Metrics are initialized already");
	int r = fc_open_output("metrics_path", path, &c->fd, err);
	if (r)
		return r;
	c->has_timer = !mv_timer_init(&fc->loop, &c->timer, on_time, fc);
	if (!c->has_timer || mv_timer_arm(&c->timer, FLUSH_NS)) {
		fc_metrics_fini(fc);
		return api_fail(err, API_LIMIT_REACHED, "metrics_path: no timer");
	}
	return 0;
}

void fc_metrics_fini(struct fc *fc)
{
	if (fc->counts.has_timer)
		mv_timer_fini(&fc->counts.timer);
	fc->counts.has_timer = false;
	mv_close(&fc->counts.fd);
}
