// SPDX-License-Identifier: Apache-2.0
// State is declared once: a table of fields describes a struct, and one walker
// saves, loads, checks and lists it. Used for device state and CPU state in
// snapshots, for the manifest, and for the daemon<->VM messages.
//
// Encoding of one field: le16 tag, le16 zero, le32 length, payload; integers are
// little-endian at their declared width. An array is the field repeated. Rules:
//  - tags are unique in a table and never reused;
//  - an unknown tag below MV_TAG_SKIP is an error, from there on it is skipped
//    (a newer minor version may add such fields);
//  - a field that is not MV_OPTIONAL must be there; absent optional ones are zero;
//  - every integer is range-checked, every string NUL-terminated and printable.
// Bytes in are hostile. Loading works on a scratch copy: the object is written
// only when all of it is good.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/err.h"
#include "microvm/base/util.h"

#define MV_TAG_SKIP 0x8000u

enum mv_ftype {
	MV_U8,
	MV_U16,
	MV_U32,
	MV_U64,
	MV_BOOL,
	MV_STR,   // char[size]
	MV_BYTES, // uint8_t[size], exactly that long
	MV_BLOB,  // uint8_t[size], variable: the length is the uint32_t at count_offset
	MV_TABLE, // a struct described by `sub`
};

enum { MV_OPTIONAL = 1 };

struct mv_table;

struct mv_field {
	const char *name;
	uint16_t tag;
	uint8_t type, flags;
	uint32_t offset;
	uint32_t size;         // bytes of one element
	uint32_t max_count;    // 0: a single element; else an array of up to that many
	uint32_t count_offset; // of a uint32_t: elements in use (arrays) or length (MV_BLOB)
	uint64_t min, max;     // integers only
	const struct mv_table *sub;
};

struct mv_table {
	const char *name;
	uint32_t size; // of the struct
	uint32_t n_fields;
	const struct mv_field *fields;
};

#define MV_SIZEOF(type, member) ((uint32_t)sizeof(((type *)0)->member))
#define MV_OFF(type, member) ((uint32_t)offsetof(type, member))

// clang-format off
// One line per field. `s` is the struct type.
#define MV_INT(s, member, tag_, ftype, min_, max_)                                                \
	{ .name = #member, .tag = (tag_), .type = (ftype), .offset = MV_OFF(s, member),            \
	  .size = MV_SIZEOF(s, member), .min = (min_), .max = (max_) }
#define MV_OPT_INT(s, member, tag_, ftype, min_, max_)                                            \
	{ .name = #member, .tag = (tag_), .type = (ftype), .flags = MV_OPTIONAL,                   \
	  .offset = MV_OFF(s, member), .size = MV_SIZEOF(s, member), .min = (min_), .max = (max_) }
#define MV_FLAG(s, member, tag_)                                                                  \
	{ .name = #member, .tag = (tag_), .type = MV_BOOL, .offset = MV_OFF(s, member), .size = 1,  \
	  .max = 1 }
#define MV_OPT_FLAG(s, member, tag_)                                                              \
	{ .name = #member, .tag = (tag_), .type = MV_BOOL, .flags = MV_OPTIONAL,                   \
	  .offset = MV_OFF(s, member), .size = 1, .max = 1 }
#define MV_STRING(s, member, tag_)                                                                \
	{ .name = #member, .tag = (tag_), .type = MV_STR, .offset = MV_OFF(s, member),             \
	  .size = MV_SIZEOF(s, member) }
#define MV_OPT_STRING(s, member, tag_)                                                            \
	{ .name = #member, .tag = (tag_), .type = MV_STR, .flags = MV_OPTIONAL,                    \
	  .offset = MV_OFF(s, member), .size = MV_SIZEOF(s, member) }
#define MV_RAW(s, member, tag_)                                                                   \
	{ .name = #member, .tag = (tag_), .type = MV_BYTES, .offset = MV_OFF(s, member),           \
	  .size = MV_SIZEOF(s, member) }
#define MV_VAR(s, member, len_member, tag_)                                                       \
	{ .name = #member, .tag = (tag_), .type = MV_BLOB, .offset = MV_OFF(s, member),            \
	  .size = MV_SIZEOF(s, member), .count_offset = MV_OFF(s, len_member) }
#define MV_SUB(s, member, tag_, table_)                                                           \
	{ .name = #member, .tag = (tag_), .type = MV_TABLE, .offset = MV_OFF(s, member),           \
	  .size = MV_SIZEOF(s, member), .sub = &(table_) }
#define MV_OPT_SUB(s, member, tag_, table_)                                                       \
	{ .name = #member, .tag = (tag_), .type = MV_TABLE, .flags = MV_OPTIONAL,                  \
	  .offset = MV_OFF(s, member), .size = MV_SIZEOF(s, member), .sub = &(table_) }
// An array of structs with a uint32_t count member.
#define MV_ARRAY(s, member, count_member, tag_, table_)                                           \
	{ .name = #member, .tag = (tag_), .type = MV_TABLE, .offset = MV_OFF(s, member),           \
	  .size = MV_SIZEOF(s, member[0]),                                                         \
	  .max_count = MV_SIZEOF(s, member) / MV_SIZEOF(s, member[0]),                             \
	  .count_offset = MV_OFF(s, count_member), .sub = &(table_) }

#define MV_DEFINE_TABLE(var, s, field_array)                                                      \
	const struct mv_table var = { .name = #s, .size = sizeof(s),                               \
				      .n_fields = MV_ARRAY_LEN(field_array), .fields = field_array }

// clang-format on

// Appends the encoding of obj. Strings and counts out of their bounds are a
// programming error and make out->failed.
void mv_state_save(const struct mv_table *t, const void *obj, struct mv_buf *out);

// Decodes and checks. On failure *ret_obj is untouched. -EINVAL: bad bytes (the
// message names the field), -ENOMEM.
int mv_state_load(const struct mv_table *t, const void *bytes, size_t len, void *ret_obj, struct mv_err *err);
