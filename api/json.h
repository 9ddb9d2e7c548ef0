// SPDX-License-Identifier: Apache-2.0
// JSON in and out (json.c is the only includer of jansson).
//
// In: a table of fields describes a struct; one walker decodes an object into it and
// finds every error: duplicate or unknown fields, wrong types, values out of range,
// trailing data. The same table encodes the struct. Bytes in are hostile.
// Out: small builders; a failed allocation makes the whole value NULL in the end.
// Any thread; no shared state.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/error.h"

typedef struct json_t js; // jansson's json_t

enum js_type {
	JS_STR,   // char[size], no control characters
	JS_PATH,  // JS_STR, an absolute path
	JS_NAME,  // JS_STR, a name by vmcfg_name_ok()
	JS_UINT,  // uint32_t or uint64_t, by size
	JS_BOOL,  // bool
	JS_WORD,  // uint32_t: index into words
	JS_MAC,   // uint8_t[6] <-> "02:00:00:00:00:01", unicast and not zero
	JS_OBJ,   // a struct described by sub
	JS_LIST,  // array of structs described by sub, in place, up to max_count
	JS_LISTP, // the same behind a pointer: allocated by decoding, freed by the owner
	JS_ANY,  // any object, as compact text: a char *, allocated by decoding, freed by the owner; decoding
		 // only
	JS_STRS, // array of strings, char[max_count][size] in place
	JS_HEX,  // uint32_t or uint64_t, by size <-> "0x10a"
	// Only described (answers.h), not decoded or encoded:
	JS_UINTS, // array of integers
	JS_MAP,   // object of structs described by sub, by any key
	JS_TIME,  // RFC 3339 in UTC
	JS_CODE,  // one of API_CODES
};

enum {
	JS_REQUIRED = 1,
	JS_OMIT_EMPTY = 2, // encoding leaves "" and zero out
};

struct js_table;

struct js_field {
	const char *name;
	uint8_t type, flags;
	uint32_t offset, size; // size: of one element
	uint32_t max_count, count_offset;
	uint32_t present; // 1 + offset of a bool that says the field is there; 0: none
	uint64_t min, max;
	const char *const *words; // NULL-terminated
	const struct js_table *sub;
	const char *doc; // for people: unit, range, default
};

struct js_table {
	const struct js_field *fields;
	uint32_t n_fields;
	bool any;   // any object: only described
	bool nulls; // null is "not there", for what may be missing; and what is not there is encoded as null
	bool lenient; // unknown fields are ignored
};

// Decodes into *obj, which holds the defaults. On failure *obj is unspecified, but a
// JS_LISTP pointer in it is still to be freed. No bytes at all count as {}.
int js_decode(const struct js_table *t, const char *bytes, size_t len, void *obj, struct api_err *err);

// A body: text, or what js_body_parse() made of it.
struct js_body {
	const char *bytes;
	size_t len;
	js *tree; // NULL: parse the text
};
static inline struct js_body js_body_text(const char *bytes, size_t len)
{
	return (struct js_body){ bytes, len, NULL };
}
// The part of decoding that grows with the length of the text, for another thread; what grows with the
// table's limits is left. Each JS_ANY of t itself (all of it, if t is `any`) is made its text. *ret_tree:
// js_free().
int js_body_parse(const struct js_table *t, const char *bytes, size_t len, js **ret_tree,
		  struct api_err *err);
int js_decode_body(const struct js_table *t, struct js_body b, void *obj, struct api_err *err);
// One whole object as compact text of at most max bytes, to be freed. No bytes at all count as {}.
int js_decode_any(struct js_body b, size_t max, char **ret_text, struct api_err *err);
js *js_encode(const struct js_table *t, const void *obj);

// Builders. js_put* and js_add take over `v`; bytes that are not UTF-8 become '?'.
js *js_object(void);
js *js_list(void);
js *js_string(const char *s);
js *js_uint(uint64_t v);
js *js_boolean(bool v);
js *js_null(void);
js *js_copy(js *v); // a deep one; NULL stays NULL
void js_put(js *o, const char *key, js *v);
void js_put_str(js *o, const char *key, const char *s);
void js_put_uint(js *o, const char *key, uint64_t v);
void js_put_bool(js *o, const char *key, bool v);
void js_add(js *list, js *v);
js *js_split(const char *text, const char *separator); // a list of strings; "" is the empty list
char *js_text(js *v, bool pretty);                     // frees v; malloc'd text with a final newline, or NULL

// Readers, for a client. A path is "a.b"; what is missing or of another type reads as the default.
js *js_parse(const char *bytes, size_t len, struct api_err *err);
void js_free(js *v);
// RFC 7396; takes target, which may be NULL.
js *js_merge(js *target, js *patch);
js *js_get(js *v, const char *path);
js *js_member(js *o, const char *key); // key as it is, dots too
// The first key that is not in `known` (NULL-terminated); NULL: none.
const char *js_unknown_key(js *o, const char *const *known);
bool js_is_null(js *v); // JSON's null, or NULL
const char *js_str(js *v, const char *path, const char *otherwise);
int64_t js_int(js *v, const char *path, int64_t otherwise);
bool js_true(js *v, const char *path);
bool js_is_list(js *v);
bool js_is_object(js *v);
size_t js_len(js *list);
js *js_at(js *list, size_t i);
