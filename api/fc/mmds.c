// SPDX-License-Identifier: Apache-2.0
// The document of the metadata service. It is kept here; the VM process has a copy that its guest reads.
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/fc/routes.h"
#include "api/fc/run.h"
#include "microvm/base/util.h"

int fc_send_mmds(struct fc *fc, struct api_err *err)
{
	static struct msg_metadata m; // the loop's thread only
	if (!fc->mmds)
		return 0;
	m.n_data = (uint32_t)strlen(fc->mmds);
	memcpy(m.data, fc->mmds, m.n_data);
	return fc_vmm_call(fc, MSG_METADATA, &msg_metadata_table, &m, NULL, 0, NULL, err);
}

// Takes v.
static int keep(struct fc *fc, js *v, struct api_err *err)
{
	size_t limit = fc->args->mmds_size_limit;
	char *text = js_text(v, false);
	if (!text)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the document");
	if (limit >= MSG_METADATA_BYTES)
		limit = MSG_METADATA_BYTES - 1;
	if (strlen(text) - 1 > limit) { // but for the newline
		size_t len = strlen(text) - 1;
		free(text);
		return api_fail(err, API_INVALID_VALUE, "The MMDS document has %zu bytes; at most %zu fit",
				len, limit);
	}
	char *before = MV_TAKE_AS(fc->mmds, text);
	int r = fc_send_mmds(fc, err);
	if (!r) {
		free(before);
		return 0;
	}
	free(fc->mmds);
	fc->mmds = before;
	return r;
}

int fc_put_mmds_config(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_mmds_config *c = body;
	uint8_t a[4];
	(void)id, (void)ret_answer;
	if (!c->n_network_interfaces)
		return api_fail(err, API_INVALID_VALUE,
				"The list of network interface IDs to allow MMDS requests is empty.");
	for (uint32_t i = 0; i < c->n_network_interfaces; i++) {
		uint32_t k = 0;
		while (k < fc->n_nets && strcmp(fc->net[k].iface_id, c->network_interfaces[i]) != 0)
			k++;
		if (k == fc->n_nets)
			return api_fail(err, API_INVALID_VALUE, "network_interfaces: there is no \"%s\"",
					c->network_interfaces[i]);
	}
	if (c->has_ipv4_address && (inet_pton(AF_INET, c->ipv4_address, a) != 1 || a[0] != 169 ||
				    a[1] != 254 || a[2] < 1 || a[2] > 254))
		return api_fail(
			err, API_INVALID_VALUE,
			"The MMDS IPv4 address is not link local: \"%s\"; 169.254.1.0 to 169.254.254.255",
			c->ipv4_address);
	fc->mmds_config = *c;
	fc->has_mmds_config = true;
	return 0;
}

int fc_get_mmds(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	(void)id, (void)body;
	*ret_answer = fc->mmds ? js_parse(fc->mmds, strlen(fc->mmds), err) : js_object();
	return *ret_answer ? 0 : -EINVAL;
}

int fc_put_mmds(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_bytes *b = body;
	js *v = js_parse(b->p, b->len, err);
	(void)id, (void)ret_answer;
	return v ? keep(fc, v, err) : -EINVAL;
}

int fc_patch_mmds(struct fc *fc, const char *id, const void *body, js **ret_answer, struct api_err *err)
{
	const struct fc_bytes *b = body;
	(void)id, (void)ret_answer;
	if (!fc->mmds)
		return api_fail(err, API_WRONG_STATE, "The MMDS data store is not initialized.");
	js *patch = js_parse(b->p, b->len, err);
	js *whole = patch ? js_parse(fc->mmds, strlen(fc->mmds), err) : NULL;
	whole = whole ? js_merge(whole, patch) : NULL;
	js_free(patch);
	return whole ? keep(fc, whole, err) : -EINVAL;
}
