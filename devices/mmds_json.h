// SPDX-License-Identifier: Apache-2.0
// Looks things up in the text of a JSON document, without making anything of it but what was asked for. The
// text comes from the daemon, which has checked it; one that is no JSON is no danger here, and has nothing in
// it. Any thread; no state.
#pragma once
#include <stddef.h>

#include "microvm/base/util.h"

struct mmds_json { // a value: [p, end), without the white space around it
	const char *p, *end;
};

// What a path leads to from the document's top: keys and indexes of arrays, with '/' before each; '~1' and
// '~0' stand for '/' and '~' in a key (RFC 6901). Empty ones between them count for nothing. False: nothing.
bool mmds_json_find(const char *text, size_t len, const char *path, size_t path_len,
		    struct mmds_json *ret_value);

// As EC2's instance metadata service shows it: a string's characters; an object's keys, one a line, with '/'
// behind those that lead to objects. -ENOTSUP: neither.
int mmds_json_plain(const struct mmds_json *value, struct mv_buf *out);
