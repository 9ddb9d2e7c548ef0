// SPDX-License-Identifier: Apache-2.0
// The balloon: its size, statistics, and rounds of free page hints.
#include <errno.h>
#include <string.h>

#include "api/fc/routes.h"

#define HINT_MS 60000 // of a round
#define HINT_DONE 1   // Firecracker's commands: 0 stop, 1 done, from 2 on a round's number
#define MIB_PAGES 256

static int need(const struct fc *fc, struct api_err *err)
{
	return fc->has_balloon ? 0 : api_fail(err, API_WRONG_STATE, "No balloon device found.");
}

int fc_get_balloon(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)body;
	int r = need(fc, err);
	if (!r)
		*ret_answer = js_encode(&fc_balloon_table, &fc->balloon);
	return r;
}

int fc_put_balloon(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_balloon *b = body;
	(void)id, (void)ret_answer;
	if (b->amount_mib > fc->machine.mem_size_mib)
		return api_fail(err, API_INVALID_VALUE,
				"Amount of pages requested cannot be used: more than the memory");
	fc->balloon = *b;
	fc->has_balloon = true;
	return 0;
}

static int set(struct fc *fc, const struct msg_balloon_set *s, struct api_err *err)
{
	int r = need(fc, err);
	return r ? r : fc_vmm_call(fc, MSG_BALLOON_SET, &msg_balloon_set_table, s, NULL, 0, NULL, err);
}

int fc_patch_balloon(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_balloon *b = body;
	const struct msg_balloon_set s = { .has_target = true, .target_mib = b->amount_mib };
	(void)id, (void)ret_answer;
	int r = set(fc, &s, err);
	if (!r)
		fc->balloon.amount_mib = b->amount_mib;
	return r;
}

int fc_patch_balloon_stats(struct fc *fc, const char *id, const void *body, js **ret_answer,
			   struct api_err *err)
{
	const struct fc_balloon *b = body;
	const struct msg_balloon_set s = { .has_interval = true,
					   .stats_interval_s = b->stats_polling_interval_s };
	(void)id, (void)ret_answer;
	int r = need(fc, err);
	if (!r && !b->stats_polling_interval_s != !fc->balloon.stats_polling_interval_s)
		r = api_fail(err, API_INVALID_VALUE,
			     "Statistics for the balloon device can't be enabled or disabled after boot.");
	r = r ? r : set(fc, &s, err);
	if (!r)
		fc->balloon.stats_polling_interval_s = b->stats_polling_interval_s;
	return r;
}

int fc_get_balloon_stats(struct fc *fc, const char *id, const void *body, js **ret_answer,
			 struct api_err *err)
{
	// Firecracker's names, in the order of msg_balloon_stat_names (virtio 1.2 section 5.5.6.4).
	static const char *const names[MSG_BALLOON_N_STATS] = {
		"swap_in",      "swap_out",         "major_faults", "minor_faults",        "free_memory",
		"total_memory", "available_memory", "disk_caches",  "hugetlb_allocations", "hugetlb_failures",
	};
	const struct msg_reply *a;
	(void)id, (void)body;
	int r = need(fc, err);
	if (!r && !fc->balloon.stats_polling_interval_s)
		r = api_fail(err, API_WRONG_STATE, "Statistics for the balloon device are not enabled");
	r = r ? r : fc_vmm_call(fc, MSG_BALLOON_STATS, NULL, NULL, NULL, 0, &a, err);
	if (r)
		return r;
	js *o = js_object();
	js_put_uint(o, "target_pages", a->balloon.target_pages);
	js_put_uint(o, "actual_pages", a->balloon.actual_pages);
	js_put_uint(o, "target_mib", a->balloon.target_pages / MIB_PAGES);
	js_put_uint(o, "actual_mib", a->balloon.actual_pages / MIB_PAGES);
	for (uint32_t i = 0; i < a->balloon.n_stats && i < MSG_BALLOON_N_STATS; i++)
		if (a->balloon.stat[i] != UINT64_MAX)
			js_put_uint(o, names[i], a->balloon.stat[i]);
	*ret_answer = o;
	return 0;
}

static int need_hinting(const struct fc *fc, struct api_err *err)
{
	int r = need(fc, err);
	if (!r && !fc->balloon.free_page_hinting)
		r = api_fail(err, API_WRONG_STATE, "The balloon has no free_page_hinting");
	return r;
}

int fc_start_hinting(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_hinting *h = body;
	const struct msg_balloon_hint m = { .wait_ms = HINT_MS };
	(void)id, (void)ret_answer;
	int r = need_hinting(fc, err);
	if (!r && fc->hint.call)
		r = api_fail(err, API_BUSY, "A round of free page hints is under way");
	if (!r && fc->state != FC_RUNNING)
		r = api_fail(err, API_WRONG_STATE, "The microVM does not run");
	r = r ? r : fc_vmm_send(fc, MSG_BALLOON_HINT, &msg_balloon_hint_table, &m, &fc->hint.call, err);
	if (r)
		return r;
	fc->hint.round = fc->hint.round < HINT_DONE + 1 ? HINT_DONE + 1 : fc->hint.round + 1;
	fc->hint.acknowledge = h->acknowledge_on_stop;
	fc->hint.guest_ended = false;
	return 0;
}

int fc_stop_hinting(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)body, (void)ret_answer;
	const struct msg_reply *a;
	int r = need_hinting(fc, err);
	return r ? r : fc_vmm_call(fc, MSG_BALLOON_STOP_HINT, NULL, NULL, NULL, 0, &a, err);
}

int fc_hinting_status(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)body;
	int r = need_hinting(fc, err);
	if (r)
		return r;
	*ret_answer = js_object();
	js_put_uint(*ret_answer, "host_cmd",
		    fc->hint.call          ? fc->hint.round
		    : fc->hint.acknowledge ? HINT_DONE
					   : 0);
	js_put(*ret_answer, "guest_cmd", fc->hint.guest_ended ? js_uint(0) : js_null());
	return 0;
}

void fc_on_answer(struct fc *fc, uint64_t id, const struct msg_reply *reply)
{
	if (id != fc->hint.call)
		return;
	fc->hint.call = 0;
	fc->hint.guest_ended = !reply->code;
	if (reply->code)
		fc_log(fc, reply->code == ECANCELED ? FC_INFO : FC_WARN, "Free page hints: %s", reply->text);
}
