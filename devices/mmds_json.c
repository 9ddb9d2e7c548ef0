// SPDX-License-Identifier: Apache-2.0
#include "devices/mmds_json.h"

#include <errno.h>
#include <string.h>

static void skip_space(struct mmds_json *v)
{
	while (v->p < v->end && (*v->p == ' ' || *v->p == '\n' || *v->p == '\r' || *v->p == '\t'))
		v->p++;
}

static bool take(struct mmds_json *v, char c)
{
	skip_space(v);
	if (v->p == v->end || *v->p != c)
		return false;
	v->p++;
	return true;
}

// The four digits behind \u; -1: none.
static int32_t hex4(struct mmds_json *v)
{
	int32_t n = 0;
	for (int i = 0; i < 4; i++, v->p++) {
		if (v->p == v->end)
			return -1;
		char c = *v->p;
		int32_t digit = c >= '0' && c <= '9'   ? c - '0'
				: c >= 'a' && c <= 'f' ? c - 'a' + 10
				: c >= 'A' && c <= 'F' ? c - 'A' + 10
						       : -1;
		if (digit < 0)
			return -1;
		n = n * 16 + digit;
	}
	return n;
}

static unsigned to_utf8(uint32_t code, char to[4])
{
	if (code < 0x80) {
		to[0] = (char)code;
		return 1;
	}
	unsigned n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
	for (unsigned i = n - 1; i; i--, code >>= 6)
		to[i] = (char)(0x80 | (code & 0x3f));
	to[0] = (char)(0xf00u >> n | code);
	return n;
}

static unsigned escaped(struct mmds_json *v, char to[4])
{
	static const char escapes[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
	const char *e = v->p < v->end && *v->p ? strchr(escapes, *v->p) : NULL;
	if (e) {
		v->p++;
		to[0] = means[e - escapes];
		return 1;
	}
	if (v->p == v->end || *v->p++ != 'u')
		return 0;
	int32_t code = hex4(v);
	if (code >> 10 == 0xd800 >> 10 && v->end - v->p >= 6 && v->p[0] == '\\' && v->p[1] == 'u') {
		v->p += 2;
		int32_t low = hex4(v);
		code = low >> 10 == 0xdc00 >> 10 ? 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff) : -1;
	}
	return code < 0 ? 0 : to_utf8((uint32_t)code, to);
}

// Behind the opening quote: the next character, as 1 to 4 bytes. 0: the string is over, or broken off.
static unsigned next_char(struct mmds_json *v, char to[4])
{
	if (v->p == v->end || *v->p == '"') {
		v->p += v->p < v->end;
		return 0;
	}
	to[0] = *v->p++;
	if (to[0] != '\\')
		return 1;
	unsigned n = escaped(v, to);
	if (!n)
		v->p = v->end;
	return n;
}

// A string of it goes to out, unless that is NULL.
static void take_string(struct mmds_json *v, struct mv_buf *out)
{
	char to[4];
	unsigned n;
	if (!take(v, '"'))
		v->p = v->end;
	while ((n = next_char(v, to)))
		if (out)
			mv_buf_append(out, to, n);
}

// The value here, and v behind it. False: there is none.
static bool take_value(struct mmds_json *v, struct mmds_json *ret_value)
{
	size_t depth = 0;
	skip_space(v);
	const char *start = v->p;
	do {
		if (v->p == v->end)
			return false;
		switch (*v->p) {
		case '"': take_string(v, NULL); break;
		case '{':
		case '[':
			depth++;
			v->p++;
			break;
		case '}':
		case ']':
			if (!depth--)
				return false;
			v->p++;
			break;
		default: // inside, a comma or colon may be part of it
			v->p++;
			while (v->p < v->end && !strchr("\"{}[],: \t\r\n", *v->p))
				v->p++;
		}
	} while (depth);
	*ret_value = (struct mmds_json){ start, v->p };
	return true;
}

// Is the key at v the `len` bytes of a path? v is behind it then in any case.
static bool take_key(struct mmds_json *v, const char *path, size_t len)
{
	const char *end = path + len;
	bool same = take(v, '"');
	char to[4];
	unsigned n;
	if (!same)
		v->p = v->end;
	while ((n = next_char(v, to)))
		for (unsigned i = 0; i < n; i++) {
			char c = same && path < end ? *path++ : 0;
			if (c == '~' && path < end && (*path == '0' || *path == '1'))
				c = *path++ == '0' ? '~' : '/';
			same = same && c && c == to[i];
		}
	return same && path == end;
}

static bool member(struct mmds_json v, const char *key, size_t len, struct mmds_json *ret_value)
{
	v.p++;
	do {
		bool found = take_key(&v, key, len);
		if (!take(&v, ':') || !take_value(&v, ret_value))
			return false;
		if (found)
			return true;
	} while (take(&v, ','));
	return false;
}

static bool element(struct mmds_json v, const char *digits, size_t len, struct mmds_json *ret_value)
{
	enum { MAX_DIGITS = 6 };
	size_t index = 0;
	if (!len || len > MAX_DIGITS || (digits[0] == '0' && len > 1))
		return false;
	for (; len; digits++, len--) {
		if (*digits < '0' || *digits > '9')
			return false;
		index = index * 10 + (size_t)(*digits - '0');
	}
	v.p++;
	do
		if (!take_value(&v, ret_value))
			return false;
	while (index-- && take(&v, ','));
	return index == SIZE_MAX;
}

bool mmds_json_find(const char *text, size_t len, const char *path, size_t path_len,
		    struct mmds_json *ret_value)
{
	struct mmds_json rest = { text, text + len }, v;
	if (!take_value(&rest, &v))
		return false;
	for (const char *end = path + path_len; path < end;) {
		const char *slash = memchr(path, '/', (size_t)(end - path));
		size_t n = (size_t)((slash ? slash : end) - path);
		if (n && !(*v.p == '{' ? member(v, path, n, &v) : *v.p == '[' && element(v, path, n, &v)))
			return false;
		path += n + (slash != NULL);
	}
	*ret_value = v;
	return true;
}

int mmds_json_plain(const struct mmds_json *value, struct mv_buf *out)
{
	struct mmds_json v = *value, member_value;
	if (*v.p == '"') {
		take_string(&v, out);
		return 0;
	}
	if (*v.p != '{')
		return -ENOTSUP;
	const char *between = "";
	v.p++;
	if (take(&v, '}'))
		return 0;
	do {
		mv_buf_append(out, between, strlen(between));
		take_string(&v, out);
		if (!take(&v, ':') || !take_value(&v, &member_value))
			break;
		between = *member_value.p == '{' ? "/\n" : "\n";
	} while (take(&v, ','));
	if (between[0] == '/')
		mv_buf_append(out, "/", 1);
	return 0;
}
