// SPDX-License-Identifier: Apache-2.0
// Bodies of API requests: what decodes must encode, and decode to the same. The first byte
// chooses the route.
#include <stdlib.h>
#include <string.h>

#include "api/vmjson.h"
#include "microvm/base/util.h"

static void check_error(const struct api_err *err)
{
	if (err->code == API_OK || err->code >= API_N_CODES || !err->msg[0])
		abort();
}

// What is parsed ahead decodes as what is parsed at once, in the same words.
static void create_ahead(const char *text, size_t len, int expected, const struct api_err *err,
			 const char *document)
{
	static struct create_body b;
	struct js_body in = js_body_text(text, len);
	struct api_err e = { 0 };
	int r = js_body_parse(&create_table, text, len, &in.tree, &e);
	if (!r) {
		r = create_parse(in, &b, &e);
		if (!r && (!document != !b.metadata || (document && strcmp(document, b.metadata) != 0)))
			abort();
		free(MV_TAKE(b.metadata));
	}
	if (r != expected || e.code != err->code || strcmp(e.msg, err->msg) != 0)
		abort();
	js_free(in.tree);
}

static void create(const char *text, size_t len)
{
	static struct create_body a, b;
	struct api_err err = { 0 };
	int r = create_parse(js_body_text(text, len), &a, &err);
	create_ahead(text, len, r, &err, a.metadata);
	free(MV_TAKE(a.metadata));
	if (r) {
		check_error(&err);
		return;
	}
	char *again = js_text(js_encode(&config_table, &a.cfg), false);
	if (!again || create_parse(js_body_text(again, strlen(again)), &b, &err))
		abort();
	memcpy(b.cfg.id, a.cfg.id, sizeof a.cfg.id); // random
	char *third = js_text(js_encode(&config_table, &b.cfg), false);
	if (!third || strcmp(again, third))
		abort();
	free(again);
	free(third);
}

static void clone(const char *text, size_t len)
{
	static struct vmcfg base = {
		.name = "base", .vcpus = 1, .mem_mib = 128, .kernel = "/k", .n_drives = 1, .n_nets = 1
	};
	static struct vmcfg c;
	struct clone_body b;
	struct api_err err = { 0 };
	memcpy(base.drive[0].id, "d", 2);
	memcpy(base.drive[0].path, "/d", 3);
	memcpy(base.net[0].id, "n", 2);
	memcpy(base.net[0].tap, "t", 2);
	base.net[0].mac[0] = 2;
	base.vsock = (struct vmcfg_vsock){ .present = true, .cid = 3 };
	int r = clone_parse(text, len, &b, &err);
	for (uint32_t i = 0; !r && b.clones && i < b.n_clones; i++)
		if (clone_config(&base, &b, &b.clones[i], &c, &err))
			check_error(&err);
	if (r)
		check_error(&err);
	clone_body_fini(&b);
}

static const struct js_table any_table = { .any = true };

// What it gives it takes, and gives again.
static void metadata(const char *text, size_t len)
{
	struct api_err err = { 0 };
	struct js_body in = js_body_text(text, len);
	char *a = NULL, *b = NULL;
	if (metadata_parse(js_body_text(text, len), &a, &err)) {
		check_error(&err);
		return;
	}
	if (metadata_parse(js_body_text(a, strlen(a)), &b, &err) || strcmp(a, b) != 0)
		abort();
	free(MV_TAKE(b));
	if (js_body_parse(&any_table, text, len, &in.tree, &err) || metadata_parse(in, &b, &err) ||
	    strcmp(a, b) != 0)
		abort();
	js_free(in.tree);
	free(a);
	free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct stop_body stop = { 0 };
	struct snapshot_body snapshot = { 0 };
	struct api_err err = { 0 };
	if (!size)
		return 0;
	const char *text = (const char *)data + 1;
	switch (data[0] % 5) {
	case 0: create(text, size - 1); break;
	case 1: clone(text, size - 1); break;
	case 2:
		if (js_decode(&stop_table, text, size - 1, &stop, &err))
			check_error(&err);
		break;
	case 3: metadata(text, size - 1); break;
	default:
		if (js_decode(&snapshot_table, text, size - 1, &snapshot, &err))
			check_error(&err);
	}
	return 0;
}
