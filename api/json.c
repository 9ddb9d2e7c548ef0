// SPDX-License-Identifier: Apache-2.0
#include "api/json.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/vmcfg.h"

#define PATH_TEXT 200 // where a field is, as shown in messages
// The one key of an object that js_body_parse() put in the place of another one, with the text of that. No
// UTF-8, so what was parsed can't have it.
#define TEXT_KEY "\xff"

static int decode_object(const struct js_table *t, json_t *o, uint8_t *obj, const char *where,
			 struct api_err *err);

// Cut when too long: it only goes into messages.
__attribute__((format(printf, 2, 3))) static void place(char at[PATH_TEXT], const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(at, PATH_TEXT, fmt, ap);
	va_end(ap);
}

static void list_fields(const struct js_table *t, char *text, size_t size)
{
	size_t used = 0;
	text[0] = 0;
	for (uint32_t i = 0; i < t->n_fields && used < size; i++)
		used += (size_t)snprintf(text + used, size - used, "%s%s", i ? ", " : "", t->fields[i].name);
}

static const struct js_field *find_field(const struct js_table *t, const char *name)
{
	for (uint32_t i = 0; i < t->n_fields; i++)
		if (!strcmp(t->fields[i].name, name))
			return &t->fields[i];
	return NULL;
}

static int wrong_type(const char *where, const char *must, json_t *v, struct api_err *err)
{
	static const char *const names[] = { "an object",     "an array", "a string", "an integer",
					     "a real number", "true",     "false",    "null" };
	return api_fail(err, API_WRONG_TYPE, "%s: must be %s, not %s", where, must, names[json_typeof(v)]);
}

static int decode_string(const struct js_field *f, json_t *v, char *dst, const char *where,
			 struct api_err *err)
{
	if (!json_is_string(v))
		return wrong_type(where, "a string", v, err);
	const char *s = json_string_value(v);
	size_t len = json_string_length(v);
	if (len >= f->size)
		return api_fail(err, API_INVALID_VALUE, "%s: longer than %u bytes", where, f->size - 1);
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
			return api_fail(err, API_INVALID_VALUE, "%s: has a control character", where);
	if (f->type == JS_PATH && s[0] != '/')
		return api_fail(err, API_INVALID_VALUE,
				"%s: \"%.100s\" is not an absolute path; start it with /", where, s);
	if (f->type == JS_NAME && !vmcfg_name_ok(s))
		return api_fail(err, API_INVALID_VALUE,
				"%s: \"%s\" is not a name; use 1 to 64 letters, digits, '_', '.' or "
				"'-', starting with a letter or digit",
				where, s);
	memcpy(dst, s, len + 1);
	return 0;
}

static int decode_uint(const struct js_field *f, json_t *v, uint8_t *dst, const char *where,
		       struct api_err *err)
{
	if (!json_is_integer(v))
		return wrong_type(where, "an integer", v, err);
	json_int_t n = json_integer_value(v);
	if (n < 0 || (uint64_t)n < f->min || (uint64_t)n > f->max)
		return api_fail(err, API_INVALID_VALUE,
				"%s: %" JSON_INTEGER_FORMAT " is not within %" PRIu64 "..%" PRIu64, where, n,
				f->min, f->max);
	if (f->size == 4)
		*(uint32_t *)(void *)dst = (uint32_t)n;
	else
		*(uint64_t *)(void *)dst = (uint64_t)n;
	return 0;
}

static int decode_word(const struct js_field *f, json_t *v, uint8_t *dst, const char *where,
		       struct api_err *err)
{
	char all[120];
	size_t used = 0;
	if (!json_is_string(v))
		return wrong_type(where, "a string", v, err);
	for (uint32_t i = 0; f->words[i]; i++)
		if (!strcmp(f->words[i], json_string_value(v))) {
			*(uint32_t *)(void *)dst = i;
			return 0;
		}
	for (uint32_t i = 0; f->words[i] && used < sizeof all; i++)
		used += (size_t)snprintf(all + used, sizeof all - used, "%s\"%s\"", i ? " or " : "",
					 f->words[i]);
	return api_fail(err, API_INVALID_VALUE, "%s: must be %s", where, all);
}

static int decode_mac(json_t *v, uint8_t *dst, const char *where, struct api_err *err)
{
	static const uint8_t zero[6];
	uint8_t m[6];
	if (!json_is_string(v))
		return wrong_type(where, "a string", v, err);
	const char *s = json_string_value(v);
	static const char form[] = "hh:hh:hh:hh:hh:hh";
	bool ok = strlen(s) == 17;
	for (size_t i = 0; ok && i < 17; i++)
		ok = form[i] == ':' ? s[i] == ':' : strchr("0123456789abcdefABCDEF", s[i]) != NULL;
	for (size_t i = 0; ok && i < 6; i++)
		m[i] = (uint8_t)strtoul(s + 3 * i, NULL, 16);
	if (!ok || (m[0] & 1) || !memcmp(m, zero, 6))
		return api_fail(err, API_INVALID_VALUE,
				"%s: must be a unicast MAC address like 02:00:00:00:00:01", where);
	memcpy(dst, m, 6);
	return 0;
}

static int decode_hex(const struct js_field *f, json_t *v, uint8_t *dst, const char *where,
		      struct api_err *err)
{
	const char *s = json_string_value(v);
	size_t n = s && !strncmp(s, "0x", 2) ? strspn(s + 2, "0123456789abcdefABCDEF") : 0;
	if (!n || n > 2 * f->size || s[2 + n])
		return api_fail(err, API_INVALID_VALUE,
				"%s: must be a text of 0x and up to %u hexadecimal digits", where,
				2 * f->size);
	uint64_t u64 = strtoull(s, NULL, 16);
	uint32_t u32 = (uint32_t)u64;
	memcpy(dst, f->size == sizeof u32 ? (void *)&u32 : (void *)&u64, f->size);
	return 0;
}

static int decode_any(const struct js_field *f, json_t *v, char **ret_text, const char *where,
		      struct api_err *err)
{
	if (!json_is_object(v))
		return wrong_type(where, "an object", v, err);
	json_t *made = json_object_get(v, TEXT_KEY);
	char *text = made ? strdup(json_string_value(made)) : json_dumps(v, JSON_COMPACT);
	if (!text)
		return api_fail(err, API_OUT_OF_MEMORY, "%s: no memory for it", where);
	*ret_text = text;
	if (strlen(text) > f->max)
		return api_fail(err, API_INVALID_VALUE,
				"%s: %zu bytes without spaces; at most %" PRIu64 " fit", where, strlen(text),
				f->max);
	return 0;
}

static int decode_list(const struct js_field *f, json_t *v, uint8_t *obj, const char *where,
		       struct api_err *err)
{
	if (!json_is_array(v))
		return wrong_type(where, "an array", v, err);
	size_t n = json_array_size(v);
	if (n > f->max_count)
		return api_fail(err, API_INVALID_VALUE, "%s: %zu elements; at most %u are allowed", where, n,
				f->max_count);
	uint8_t *elements = obj + f->offset;
	if (f->type == JS_LISTP) {
		elements = calloc(n ? n : 1, f->size);
		if (!elements)
			return api_fail(err, API_OUT_OF_MEMORY, "%s: no memory for it", where);
		*(void **)(void *)(obj + f->offset) = elements;
	}
	*(uint32_t *)(void *)(obj + f->count_offset) = (uint32_t)n;
	for (size_t i = 0; i < n; i++) {
		char at[PATH_TEXT];
		place(at, "%s[%zu]", where, i);
		json_t *element = json_array_get(v, i);
		uint8_t *dst = elements + i * f->size;
		int r = f->type == JS_STRS ? decode_string(f, element, (char *)dst, at, err)
					   : decode_object(f->sub, element, dst, at, err);
		if (r)
			return r;
	}
	return 0;
}

static int decode_field(const struct js_field *f, json_t *v, uint8_t *obj, const char *where,
			struct api_err *err)
{
	uint8_t *dst = obj + f->offset;
	switch (f->type) {
	case JS_STR:
	case JS_PATH:
	case JS_NAME: return decode_string(f, v, (char *)dst, where, err);
	case JS_UINT: return decode_uint(f, v, dst, where, err);
	case JS_BOOL:
		if (!json_is_boolean(v))
			return wrong_type(where, "true or false", v, err);
		*(bool *)dst = json_is_true(v);
		return 0;
	case JS_WORD: return decode_word(f, v, dst, where, err);
	case JS_MAC: return decode_mac(v, dst, where, err);
	case JS_HEX: return decode_hex(f, v, dst, where, err);
	case JS_OBJ: return decode_object(f->sub, v, dst, where, err);
	case JS_ANY: return decode_any(f, v, (char **)(void *)dst, where, err);
	default: return decode_list(f, v, obj, where, err);
	}
}

static int decode_object(const struct js_table *t, json_t *o, uint8_t *obj, const char *where,
			 struct api_err *err)
{
	const char *key, *dot = where[0] ? "." : "";
	char at[PATH_TEXT];
	json_t *v;

	if (!json_is_object(o))
		return wrong_type(where[0] ? where : "body", "an object", o, err);
	json_object_foreach (o, key, v) {
		const struct js_field *f = find_field(t, key);
		if (!f && !t->lenient) {
			char known[200];
			list_fields(t, known, sizeof known);
			return api_fail(err, API_UNKNOWN_FIELD, "%s%s%.64s: no such field; known are: %s",
					where, dot, key, known[0] ? known : "none");
		}
	}
	for (uint32_t i = 0; i < t->n_fields; i++) {
		const struct js_field *f = &t->fields[i];
		v = json_object_get(o, f->name);
		if (t->nulls && json_is_null(v))
			v = NULL;
		place(at, "%s%s%s", where, dot, f->name);
		if (!v && (f->flags & JS_REQUIRED))
			return api_fail(err, API_MISSING_FIELD, "%s: is missing (%s)", at, f->doc);
		if (!v)
			continue;
		int r = decode_field(f, v, obj, at, err);
		if (r)
			return r;
		if (f->present)
			*(bool *)(obj + f->present - 1) = true;
	}
	return 0;
}

js *js_parse(const char *bytes, size_t len, struct api_err *err)
{
	json_error_t e;
	json_t *v = json_loadb(bytes, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
	if (!v)
		api_fail(err, API_INVALID_JSON, "line %d, column %d: %s", e.line, e.column, e.text);
	return v;
}

// A reference.
static int get_tree(struct js_body b, json_t **ret_v, struct api_err *err)
{
	json_t *v = b.tree ? json_incref(b.tree) : b.len ? js_parse(b.bytes, b.len, err) : json_object();
	if (!v)
		return b.len ? -EINVAL : api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	*ret_v = v;
	return 0;
}

int js_decode_body(const struct js_table *t, struct js_body b, void *obj, struct api_err *err)
{
	json_t *v;
	int r = get_tree(b, &v, err);
	if (r)
		return r;
	r = decode_object(t, v, obj, "", err);
	json_decref(v);
	return r;
}

int js_decode(const struct js_table *t, const char *bytes, size_t len, void *obj, struct api_err *err)
{
	return js_decode_body(t, js_body_text(bytes, len), obj, err);
}

// In place of v, whose reference is taken; what is no object is left to be refused. NULL: no memory.
static json_t *text_of(json_t *v)
{
	if (!json_is_object(v))
		return v;
	char *text = json_dumps(v, JSON_COMPACT);
	json_t *o = json_object();
	if (!text || !o || json_object_set_new_nocheck(o, TEXT_KEY, json_string_nocheck(text))) {
		json_decref(o);
		o = NULL;
	}
	free(text);
	json_decref(v);
	return o;
}

int js_body_parse(const struct js_table *t, const char *bytes, size_t len, js **ret_tree, struct api_err *err)
{
	json_t *v;
	int r = get_tree(js_body_text(bytes, len), &v, err);
	if (r)
		return r;
	if (t->any)
		v = text_of(v);
	for (uint32_t i = 0; v && json_is_object(v) && i < t->n_fields; i++) {
		json_t *field = json_object_get(v, t->fields[i].name);
		if (t->fields[i].type != JS_ANY || !field)
			continue;
		field = text_of(json_incref(field));
		if (!field || json_object_set_new(v, t->fields[i].name, field)) {
			json_decref(v);
			v = NULL;
		}
	}
	if (!v)
		return api_fail(err, API_OUT_OF_MEMORY, "no memory for the request");
	*ret_tree = v;
	return 0;
}

int js_decode_any(struct js_body b, size_t max, char **ret_text, struct api_err *err)
{
	const struct js_field f = { .max = max };
	char *text = NULL;
	json_t *v;
	int r = get_tree(b, &v, err);
	if (r)
		return r;
	r = decode_any(&f, v, &text, "body", err);
	json_decref(v);
	if (r)
		free(text);
	else
		*ret_text = text;
	return r;
}

static bool is_empty(const struct js_field *f, const uint8_t *obj)
{
	const uint8_t *p = obj + f->offset;
	if (f->type == JS_LIST || f->type == JS_STRS)
		return !*(const uint32_t *)(const void *)(obj + f->count_offset);
	for (uint32_t i = 0; i < (f->type <= JS_NAME ? 1 : f->size); i++)
		if (p[i])
			return false;
	return true;
}

static json_t *text_value(const char *s)
{
	json_t *v = json_string(s);
	if (v)
		return v;
	char *safe = strdup(s); // not UTF-8
	for (char *p = safe; p && *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	v = safe ? json_string(safe) : NULL;
	free(safe);
	return v;
}

static json_int_t read_uint(const struct js_field *f, const uint8_t *p)
{
	uint32_t u32;
	uint64_t u64;
	memcpy(&u32, p, sizeof u32);
	if (f->size == sizeof u32)
		return u32;
	memcpy(&u64, p, sizeof u64);
	return (json_int_t)u64;
}

static json_t *encode_field(const struct js_field *f, const uint8_t *obj)
{
	const uint8_t *p = obj + f->offset;
	char mac[18], hex[19];
	switch (f->type) {
	case JS_STR:
	case JS_PATH:
	case JS_NAME: return text_value((const char *)p);
	case JS_UINT: return json_integer(read_uint(f, p));
	case JS_BOOL: return json_boolean(*(const bool *)p);
	case JS_WORD: {
		uint32_t k = *(const uint32_t *)(const void *)p, n = 0;
		while (f->words[n])
			n++;
		return json_string(k < n ? f->words[k] : "unknown");
	}
	case JS_MAC:
		snprintf(mac, sizeof mac, "%02x:%02x:%02x:%02x:%02x:%02x", p[0], p[1], p[2], p[3], p[4],
			 p[5]);
		return json_string(mac);
	case JS_HEX:
		snprintf(hex, sizeof hex, "0x%" PRIx64, (uint64_t)read_uint(f, p));
		return json_string(hex);
	case JS_OBJ: return js_encode(f->sub, p);
	case JS_ANY: return NULL;
	default: break;
	}
	json_t *list = json_array();
	uint32_t n = *(const uint32_t *)(const void *)(obj + f->count_offset);
	if (f->type == JS_LISTP)
		p = *(uint8_t *const *)(const void *)p;
	for (uint32_t i = 0; i < n; i++, p += f->size)
		json_array_append_new(list, f->type == JS_STRS ? text_value((const char *)p)
							       : js_encode(f->sub, p));
	return list;
}

js *js_encode(const struct js_table *t, const void *obj)
{
	const uint8_t *base = obj;
	json_t *o = json_object();
	for (uint32_t i = 0; i < t->n_fields; i++) {
		const struct js_field *f = &t->fields[i];
		if (f->present && !*(const bool *)(base + f->present - 1)) {
			if (t->nulls)
				json_object_set_new(o, f->name, json_null());
			continue;
		}
		if ((f->flags & JS_OMIT_EMPTY) && is_empty(f, base))
			continue;
		json_object_set_new(o, f->name, encode_field(f, base));
	}
	return o;
}

js *js_object(void) { return json_object(); }
js *js_list(void) { return json_array(); }
js *js_string(const char *s) { return text_value(s); }
js *js_boolean(bool v) { return json_boolean(v); }
js *js_null(void) { return json_null(); }
js *js_copy(js *v) { return json_deep_copy(v); }
bool js_is_null(js *v) { return !v || json_is_null(v); }
void js_put(js *o, const char *key, js *v) { json_object_set_new(o, key, v); }
void js_put_str(js *o, const char *key, const char *s) { json_object_set_new(o, key, text_value(s)); }
js *js_uint(uint64_t v) { return json_integer(v > INT64_MAX ? INT64_MAX : (json_int_t)v); }
void js_put_uint(js *o, const char *key, uint64_t v) { json_object_set_new(o, key, js_uint(v)); }
void js_put_bool(js *o, const char *key, bool v) { json_object_set_new(o, key, json_boolean(v)); }
void js_add(js *list, js *v) { json_array_append_new(list, v); }

js *js_split(const char *text, const char *separator)
{
	js *list = json_array();
	while (*text) {
		const char *end = strstr(text, separator);
		size_t n = end ? (size_t)(end - text) : strlen(text);
		json_array_append_new(list, json_stringn(text, n));
		text += n + (end ? strlen(separator) : 0);
	}
	return list;
}

char *js_text(js *v, bool pretty)
{
	char *text = v ? json_dumps(v, pretty ? JSON_INDENT(2) : JSON_COMPACT) : NULL;
	json_decref(v);
	size_t len = text ? strlen(text) : 0;
	char *line = text ? realloc(text, len + 2) : NULL;
	if (line)
		memcpy(line + len, "\n", 2);
	else
		free(text);
	return line;
}

void js_free(js *v) { json_decref(v); }

js *js_member(js *o, const char *key) { return json_object_get(o, key); }

js *js_merge(js *target, js *patch)
{
	const char *key;
	json_t *v;
	if (!json_is_object(patch)) {
		json_decref(target);
		return json_deep_copy(patch);
	}
	if (!json_is_object(target)) {
		json_decref(target);
		target = json_object();
	}
	json_object_foreach (patch, key, v) {
		if (json_is_null(v))
			json_object_del(target, key);
		else
			json_object_set_new(target, key,
					    js_merge(json_incref(json_object_get(target, key)), v));
	}
	return target;
}

const char *js_unknown_key(js *o, const char *const *known)
{
	const char *key;
	json_t *v;
	json_object_foreach (o, key, v) {
		unsigned i = 0;
		while (known[i] && strcmp(known[i], key))
			i++;
		if (!known[i])
			return key;
	}
	return NULL;
}

js *js_get(js *v, const char *path)
{
	while (v && *path) {
		char key[64];
		size_t n = strcspn(path, ".");
		if (n >= sizeof key)
			return NULL;
		memcpy(key, path, n);
		key[n] = 0;
		v = json_object_get(v, key);
		path += n + (path[n] == '.');
	}
	return v;
}

const char *js_str(js *v, const char *path, const char *otherwise)
{
	const char *s = json_string_value(js_get(v, path));
	return s ? s : otherwise;
}

int64_t js_int(js *v, const char *path, int64_t otherwise)
{
	js *n = js_get(v, path);
	return json_is_integer(n) ? json_integer_value(n) : otherwise;
}

bool js_true(js *v, const char *path) { return json_is_true(js_get(v, path)); }
bool js_is_list(js *v) { return json_is_array(v); }
bool js_is_object(js *v) { return json_is_object(v); }
size_t js_len(js *list) { return json_array_size(list); }
js *js_at(js *list, size_t i) { return json_array_get(list, i); }
