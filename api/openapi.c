// SPDX-License-Identifier: Apache-2.0
// GET /v1/openapi.json, an OpenAPI 3.1 document: made of the tables by which requests are routed and their
// bodies decoded, of error.h's codes, and of answers.h. So what it says of requests is what is done.
#include "api/openapi.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/answers.h"
#include "api/etag.h"
#include "api/routes.h"
#include "api/vmjson.h"
#include "microvm/base/util.h"

// What more than one place shows, or what clients want a name for.
static const struct {
	const char *name;
	const struct js_table *table;
} schemas[] = {
	{ "VM", &vm_answer },
	{ "VMList", &vm_list_answer },
	{ "VMConfig", &config_table },
	{ "VMCreate", &create_table },
	{ "VMStop", &stop_table },
	{ "VMUsage", &usage_answer },
	{ "Devices", &devices_answer },
	{ "Limits", &limits_table },
	{ "Balloon", &balloon_answer },
	{ "BalloonPatch", &balloon_set_table },
	{ "BalloonHint", &balloon_hint_table },
	{ "NetPatch", &net_body_table },
	{ "DrivePatch", &drive_body_table },
	{ "PmemPatch", &pmem_body_table },
	{ "Snapshot", &snapshot_answer },
	{ "SnapshotList", &snapshot_list_answer },
	{ "SnapshotCreate", &snapshot_table },
	{ "SnapshotCreated", &snapshot_created_answer },
	{ "SnapshotImported", &imported_answer },
	{ "SnapshotVerified", &verify_answer },
	{ "Flatten", &flatten_table },
	{ "Flattened", &flatten_answer },
	{ "Prepare", &prepare_table },
	{ "Prepared", &prepare_answer },
	{ "Clone", &clone_table },
	{ "Clones", &clone_answer },
	{ "Forks", &fork_answer },
	{ "Event", &event_answer },
	{ "Info", &info_answer },
	{ "Operations", &operation_list_answer },
	{ "GC", &gc_answer },
	{ "Error", &error_answer },
};

static js *schema_of(const struct js_table *t);

static js *reference(const struct js_table *t)
{
	char ref[80];
	for (unsigned i = 0; i < MV_ARRAY_LEN(schemas); i++)
		if (schemas[i].table == t) {
			js *o = js_object();
			snprintf(ref, sizeof ref, "#/components/schemas/%s", schemas[i].name);
			js_put_str(o, "$ref", ref);
			return o;
		}
	return schema_of(t);
}

static js *typed(const char *type)
{
	js *o = js_object();
	js_put_str(o, "type", type);
	return o;
}

static js *text_schema(const struct js_field *f, const char *pattern)
{
	js *o = typed("string");
	if (f->size)
		js_put_uint(o, "maxLength", f->size - 1);
	if (pattern)
		js_put_str(o, "pattern", pattern);
	return o;
}

static js *list_of(js *item, uint32_t max)
{
	js *o = typed("array");
	js_put(o, "items", item);
	if (max)
		js_put_uint(o, "maxItems", max);
	return o;
}

static js *words_schema(const char *const *words)
{
	js *o = typed("string"), *list = js_list();
	for (; *words; words++)
		js_add(list, js_string(*words));
	js_put(o, "enum", list);
	return o;
}

static js *codes_schema(void)
{
	js *o = typed("string"), *list = js_list();
	for (int c = API_OK + 1; c < API_N_CODES; c++)
		js_add(list, js_string(api_code_info((enum api_code)c)->name));
	js_put(o, "enum", list);
	return o;
}

static js *uint_schema(const struct js_field *f)
{
	js *o = typed("integer");
	js_put_uint(o, "minimum", f->min);
	if (f->max)
		js_put_uint(o, "maximum", f->max);
	if (f->size)
		js_put_str(o, "format", f->size == 8 ? "int64" : "int32");
	return o;
}

static js *map_of(js *values)
{
	js *o = typed("object");
	js_put(o, "additionalProperties", values);
	return o;
}

static js *type_schema(const struct js_field *f)
{
	js *o;
	switch ((enum js_type)f->type) {
	case JS_STR: return text_schema(f, NULL);
	case JS_PATH: return text_schema(f, "^/");
	case JS_NAME: return text_schema(f, "^[A-Za-z0-9][A-Za-z0-9_.-]*$");
	case JS_MAC: return text_schema(&(struct js_field){ 0 }, "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$");
	case JS_HEX:
		return text_schema(&(struct js_field){ 0 },
				   f->size == 8 ? "^0x[0-9a-fA-F]{1,16}$" : "^0x[0-9a-fA-F]{1,8}$");
	case JS_UINT: return uint_schema(f);
	case JS_BOOL: return typed("boolean");
	case JS_WORD: return words_schema(f->words);
	case JS_OBJ: return reference(f->sub);
	case JS_LIST:
	case JS_LISTP: return list_of(reference(f->sub), f->max_count);
	case JS_STRS: return list_of(text_schema(f, NULL), f->max_count);
	case JS_UINTS: return list_of(typed("integer"), 0);
	case JS_MAP: return map_of(reference(f->sub));
	case JS_ANY: return typed("object");
	case JS_CODE: return codes_schema();
	case JS_TIME:
		o = typed("string");
		js_put_str(o, "format", "date-time");
		return o;
	}
	return NULL;
}

// What the doc says behind "default ", if that is a value of the field's type; else it is in the description.
static js *default_of(const struct js_field *f)
{
	const char *at = f->doc ? strstr(f->doc, "default ") : NULL;
	if (!at)
		return NULL;
	at += strlen("default ");
	size_t n = strcspn(at, " ,;:)");
	char word[64], *end;
	snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), at);
	if (f->type == JS_UINT) {
		unsigned long long v = strtoull(word, &end, 10);
		return *word && !*end ? js_uint(v) : NULL;
	}
	if (f->type == JS_BOOL && (!strcmp(word, "true") || !strcmp(word, "false")))
		return js_boolean(!strcmp(word, "true"));
	for (const char *const *w = f->type == JS_WORD ? f->words : NULL; w && *w; w++)
		if (!strcmp(*w, word))
			return js_string(word);
	if (f->type == JS_STR && word[0] >= '0' && word[0] <= '9')
		return js_string(word);
	return NULL;
}

static js *field_schema(const struct js_field *f)
{
	js *o = type_schema(f), *otherwise = default_of(f);
	if (f->doc && f->doc[0])
		js_put_str(o, "description", f->doc);
	if (otherwise)
		js_put(o, "default", otherwise);
	return o;
}

static js *schema_of(const struct js_table *t)
{
	js *o = typed("object"), *fields = js_object(), *required = js_list();
	if (t->any) {
		js_free(fields), js_free(required);
		return o;
	}
	for (uint32_t i = 0; i < t->n_fields; i++) {
		js_put(fields, t->fields[i].name, field_schema(&t->fields[i]));
		if (t->fields[i].flags & JS_REQUIRED)
			js_add(required, js_string(t->fields[i].name));
	}
	js_put(o, "properties", fields);
	js_put(o, "required", required);
	js_put_bool(o, "additionalProperties", false);
	return o;
}

// --- routes ----------------------------------------------------------------------------
static js *content(const char *type, const struct js_table *t)
{
	js *o = js_object(), *media = js_object();
	if (t)
		js_put(media, "schema", reference(t));
	js_put(o, type, media);
	return o;
}

static js *parameter(const char *in, const char *name, const char *doc, js *schema)
{
	js *o = js_object();
	js_put_str(o, "name", name);
	js_put_str(o, "in", in);
	if (!strcmp(in, "path"))
		js_put_bool(o, "required", true);
	js_put_str(o, "description", doc);
	js_put(o, "schema", schema);
	return o;
}

static js *parameters(const struct route *t)
{
	static const struct js_field name = { .type = JS_NAME, .size = ROUTE_NAME_LEN };
	js *list = js_list();
	char word[ROUTE_NAME_LEN], doc[ROUTE_NAME_LEN + 40];
	for (const char *p = t->pattern; (p = strchr(p, '{')); p++) {
		snprintf(word, sizeof word, "%.*s", (int)strcspn(p + 1, "}"), p + 1);
		snprintf(doc, sizeof doc, "%s", !strcmp(word, "name") ? "name, or id of a VM" : "its id");
		js_add(list, parameter("path", word, doc, type_schema(&name)));
	}
	for (uint32_t i = 0; t->query && i < t->query->n_fields; i++) {
		const struct js_field *q = &t->query->fields[i];
		js_add(list, parameter("query", q->name, q->doc, field_schema(q)));
	}
	for (unsigned i = 0; i < api_n_headers; i++) {
		const struct route_header *h = &api_headers[i];
		if (h->in_request && h->of(t))
			js_add(list,
			       parameter("header", h->field.name, h->field.doc, type_schema(&h->field)));
	}
	return list;
}

static void put_headers(js *response, const struct route *t)
{
	js *all = js_object();
	for (unsigned i = 0; i < api_n_headers; i++) {
		const struct route_header *h = &api_headers[i];
		if (h->in_request || !h->of(t))
			continue;
		js *o = js_object();
		js_put_str(o, "description", h->field.doc);
		js_put(o, "schema", type_schema(&h->field));
		js_put(all, h->field.name, o);
	}
	js_put(response, "headers", all);
}

static void put_response(js *responses, unsigned status, const struct route *t)
{
	char code[12];
	js *o = js_object();
	js_put_str(o, "description", status == 207 ? "some of them" : t->doc);
	put_headers(o, t);
	if (t->answer || t->produces)
		js_put(o, "content", content(t->produces ? t->produces : "application/json", t->answer));
	snprintf(code, sizeof code, "%u", status);
	js_put(responses, code, o);
}

static void put_unchanged(js *responses)
{
	js *o = js_object();
	js_put_str(o, "description", "it has the version of If-None-Match");
	js_put(responses, "304", o);
}

static js *operation(const struct route *t)
{
	js *o = js_object(), *responses = js_object(), *body = js_object(), *error = js_object();
	char id[120];
	size_t n = 0;
	for (const char *p = t->pattern + strlen("/v1/"); *p && n < 80; p++)
		if (*p != '{' && *p != '}')
			id[n++] = *p == '/' || *p == '.' || *p == '-' ? '_' : *p;
	id[n] = 0;
	snprintf(id + n, sizeof id - n, "_%s", t->method);
	js_put_str(o, "operationId", id);
	js_put_str(o, "summary", t->doc);
	js_put(o, "parameters", parameters(t));
	if (t->body || t->consumes) {
		js_put(body, "content", content(t->consumes ? t->consumes : "application/json", t->body));
		js_put(o, "requestBody", body);
	} else {
		js_free(body);
	}
	put_response(responses, t->status, t);
	if (t->other_status)
		put_response(responses, t->other_status, t);
	if (etag_unchanged_of(t))
		put_unchanged(responses);
	js_put_str(error, "description", "see x-error-codes");
	js_put(error, "content", content("application/json", &error_answer));
	js_put(responses, "default", error);
	js_put(o, "responses", responses);
	return o;
}

static js *paths(void)
{
	js *o = js_object();
	for (unsigned i = 0; i < api_n_routes; i++) {
		char method[8] = "";
		for (unsigned k = 0; k < sizeof method - 1 && api_routes[i].method[k]; k++)
			method[k] = (char)(api_routes[i].method[k] | 0x20);
		js *path = js_member(o, api_routes[i].pattern);
		if (!path)
			js_put(o, api_routes[i].pattern, path = js_object());
		js_put(path, method, operation(&api_routes[i]));
	}
	return o;
}

static js *error_codes(void)
{
	js *list = js_list();
	for (int c = API_OK + 1; c < API_N_CODES; c++) {
		const struct api_code_info *info = api_code_info((enum api_code)c);
		js *o = js_object();
		js_put_str(o, "code", info->name);
		js_put_uint(o, "status", info->status);
		js_put_str(o, "cause", info->cause);
		js_put_str(o, "remedy", info->remedy);
		js_add(list, o);
	}
	return list;
}

char *openapi_text(void)
{
	js *o = js_object(), *info = js_object(), *components = js_object(), *named = js_object();
	js_put_str(o, "openapi", "3.1.0");
	js_put_str(info, "title", "thaw");
	js_put_str(info, "version", THAW_VERSION);
	js_put_str(info, "description", "The REST interface of thawd, HTTP/1.1 on a Unix socket");
	js_put(o, "info", info);
	js_put(o, "paths", paths());
	for (unsigned i = 0; i < MV_ARRAY_LEN(schemas); i++)
		js_put(named, schemas[i].name, schema_of(schemas[i].table));
	js_put(components, "schemas", named);
	js_put(o, "components", components);
	js_put(o, "x-error-codes", error_codes());
	return js_text(o, false);
}

static char *made; // it never changes, and takes milliseconds to make
static size_t made_len;

int openapi_init(void)
{
	made = openapi_text();
	made_len = made ? strlen(made) : 0;
	return made ? 0 : -ENOMEM;
}

void op_openapi(struct server *s, struct http_req *r, const char *name)
{
	(void)s, (void)name;
	char *text = malloc(made_len);
	if (text)
		memcpy(text, made, made_len);
	http_reply(r, text ? 200 : 500, "application/json", text, text ? made_len : 0, NULL, 0);
}
