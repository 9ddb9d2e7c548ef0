// SPDX-License-Identifier: Apache-2.0
// --config-file: one object whose keys are the calls it stands for. Each part is handed to the same code that
// answers a request, so both take and refuse the same.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/fc/routes.h"
#include "api/fc/run.h"
#include "microvm/base/util.h"

#define MAX_FILE_BYTES (1u << 20)

// In the order in which they are done.
static const struct part {
	const char *key, *path, *id_field; // id_field: it is a list of objects
} parts[] = {
	{ "logger", "/logger", NULL },
	{ "metrics", "/metrics", NULL },
	{ "machine-config", "/machine-config", NULL },
	{ "cpu-config", "/cpu-config", NULL },
	{ "boot-source", "/boot-source", NULL },
	{ "drives", "/drives/", "drive_id" },
	{ "pmem", "/pmem/", "id" },
	{ "network-interfaces", "/network-interfaces/", "iface_id" },
	{ "vsock", "/vsock", NULL },
	{ "entropy", "/entropy", NULL },
	{ "serial", "/serial", NULL },
	{ "balloon", "/balloon", NULL },
	{ "mmds-config", "/mmds/config", NULL },
	{ "memory-hotplug", "/hotplug/memory", NULL },
};

static char *read_file(const char *path, size_t *ret_len, struct api_err *err)
{
	FILE *f = fopen(path, "re");
	char *text = f ? malloc(MAX_FILE_BYTES) : NULL;
	size_t len = text ? fread(text, 1, MAX_FILE_BYTES, f) : 0;
	bool bad = !text || ferror(f) || len == MAX_FILE_BYTES;
	int why = errno;
	if (f)
		fclose(f);
	if (!bad) {
		*ret_len = len;
		return text;
	}
	free(text);
	api_fail(err, API_FILE_INVALID, "can't read %s: %s", path,
		 len == MAX_FILE_BYTES ? "more than 1 MiB" : strerror(why));
	return NULL;
}

static int put(struct fc *fc, const char *path, js *v, struct api_err *err)
{
	js *no_answer = NULL;
	MV_FREE char *text = js_text(js_copy(v), false);
	struct api_err why;
	if (!text)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the configuration");
	if (!fc_do(fc, "PUT", path, text, strlen(text), &no_answer, &why))
		return 0;
	return api_fail(err, why.code, "%s: %s", path + 1, why.msg);
}

// A text here is the path of a file with it, as in Firecracker's.
static int put_cpu(struct fc *fc, js *v, const char *path, struct api_err *err)
{
	size_t len = 0;
	MV_FREE char *text = read_file(path, &len, err);
	(void)v;
	js *from_file = text ? js_parse(text, len, err) : NULL;
	int r = from_file ? put(fc, "/cpu-config", from_file, err) : -EINVAL;
	js_free(from_file);
	return r;
}

static int do_part(struct fc *fc, const struct part *p, js *v, struct api_err *err)
{
	char path[32 + VMCFG_NAME_LEN];
	const char *file = js_str(v, "", NULL);
	int r = 0;
	if (js_is_null(v))
		return 0;
	if (!strcmp(p->key, "cpu-config") && file)
		return put_cpu(fc, v, file, err);
	if (!p->id_field)
		return put(fc, p->path, v, err);
	for (size_t i = 0; !r && i < js_len(v); i++) {
		snprintf(path, sizeof path, "%s%s", p->path, js_str(js_at(v, i), p->id_field, ""));
		r = put(fc, path, js_at(v, i), err);
	}
	return r;
}

static int do_all(struct fc *fc, js *v, struct api_err *err)
{
	const char *known[MV_ARRAY_LEN(parts) + 1] = { NULL };
	js *start;
	for (size_t i = 0; i < MV_ARRAY_LEN(parts); i++)
		known[i] = parts[i].key;
	const char *wrong = js_unknown_key(v, known);
	int r = 0;
	if (wrong)
		r = api_fail(err, API_UNKNOWN_FIELD, "unknown field `%.60s`", wrong);
	else if (js_is_null(js_member(v, "boot-source")) || !js_member(v, "drives"))
		r = api_fail(err, API_MISSING_FIELD, "boot-source and drives have to be there");
	for (size_t i = 0; !r && i < MV_ARRAY_LEN(parts); i++)
		r = do_part(fc, &parts[i], js_member(v, parts[i].key), err);
	if (r)
		return r;
	start = js_object();
	js_put_str(start, "action_type", fc_action_words[FC_INSTANCE_START]);
	r = put(fc, "/actions", start, err);
	js_free(start);
	return r;
}

int fc_load_config_file(struct fc *fc, const char *path, struct api_err *err)
{
	size_t len = 0;
	MV_FREE char *text = read_file(path, &len, err);
	js *v = text ? js_parse(text, len, err) : NULL;
	int r = v ? do_all(fc, v, err) : -EINVAL;
	js_free(v);
	return r;
}

int fc_read_mmds_file(struct fc *fc, const char *path, struct api_err *err)
{
	size_t len = 0;
	js *no_answer = NULL;
	MV_FREE char *text = read_file(path, &len, err);
	return text ? fc_do(fc, "PUT", "/mmds", text, len, &no_answer, err) : -EINVAL;
}
