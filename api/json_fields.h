// SPDX-License-Identifier: Apache-2.0
// Lines of the tables that json.h describes, for the files that have such tables.
#pragma once
#include "api/json.h"
#include "microvm/base/state.h"

// clang-format off
// One line per field: struct, member, flags, and what is special about its type.
#define F_TEXT(s, member, name_, type_, flags_, doc_)                                              \
	{ .name = (name_), .type = (type_), .flags = (flags_), .offset = MV_OFF(s, member),         \
	  .size = MV_SIZEOF(s, member), .doc = (doc_) }
#define F_UINT(s, member, name_, flags_, min_, max_, doc_)                                         \
	{ .name = (name_), .type = JS_UINT, .flags = (flags_), .offset = MV_OFF(s, member),         \
	  .size = MV_SIZEOF(s, member), .min = (min_), .max = (max_), .doc = (doc_) }
#define F_BOOL(s, member, name_, doc_)                                                             \
	{ .name = (name_), .type = JS_BOOL, .offset = MV_OFF(s, member), .size = 1, .doc = (doc_) }
#define F_WORD(s, member, name_, words_, doc_)                                                     \
	{ .name = (name_), .type = JS_WORD, .offset = MV_OFF(s, member),                            \
	  .size = MV_SIZEOF(s, member), .words = (words_), .doc = (doc_) }
#define F_LIST(s, member, count, name_, flags_, table_, doc_)                                      \
	{ .name = (name_), .type = JS_LIST, .flags = (flags_), .offset = MV_OFF(s, member),         \
	  .size = MV_SIZEOF(s, member[0]),                                                         \
	  .max_count = MV_SIZEOF(s, member) / MV_SIZEOF(s, member[0]),                             \
	  .count_offset = MV_OFF(s, count), .sub = &(table_), .doc = (doc_) }
#define PRESENT(s, member) .present = 1 + MV_OFF(s, member)
#define DEFINE_JS(var, array)                                                                      \
	const struct js_table var = { .fields = (array), .n_fields = MV_ARRAY_LEN(array) }
// clang-format on
