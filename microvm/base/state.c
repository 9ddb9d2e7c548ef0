// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/bytes.h"
#include "microvm/base/scratch.h"

struct tlv_head {
	le16_t tag, zero;
	le32_t len;
};

enum { MAX_FIELDS = 64 }; // per table; presence is tracked in one word

static void put_head(struct mv_buf *out, uint16_t tag, size_t len)
{
	struct tlv_head h = { .tag = le16_make(tag), .len = le32_make((uint32_t)len) };
	mv_buf_append(out, &h, sizeof h);
}

static uint64_t int_get(const void *p, uint32_t size)
{
	uint64_t v = 0;
	switch (size) {
	case 1: v = *(const uint8_t *)p; break;
	case 2: {
		uint16_t x;
		memcpy(&x, p, 2);
		v = x;
		break;
	}
	case 4: {
		uint32_t x;
		memcpy(&x, p, 4);
		v = x;
		break;
	}
	case 8: memcpy(&v, p, 8); break;
	}
	return v;
}

static void int_put(void *p, uint32_t size, uint64_t v)
{
	switch (size) {
	case 1: *(uint8_t *)p = (uint8_t)v; break;
	case 2: {
		uint16_t x = (uint16_t)v;
		memcpy(p, &x, 2);
		break;
	}
	case 4: {
		uint32_t x = (uint32_t)v;
		memcpy(p, &x, 4);
		break;
	}
	case 8: memcpy(p, &v, 8); break;
	}
}

static void save_one(const struct mv_field *f, const uint8_t *p, const uint8_t *obj, struct mv_buf *out)
{
	switch (f->type) {
	case MV_STR: {
		size_t len = strnlen((const char *)p, f->size);
		if (len == f->size)
			out->failed = true;
		else {
			put_head(out, f->tag, len);
			mv_buf_append(out, p, len);
		}
		break;
	}
	case MV_BYTES:
		put_head(out, f->tag, f->size);
		mv_buf_append(out, p, f->size);
		break;
	case MV_BLOB: {
		uint64_t len = int_get(obj + f->count_offset, 4);
		if (len > f->size)
			out->failed = true;
		else {
			put_head(out, f->tag, len);
			mv_buf_append(out, p, len);
		}
		break;
	}
	case MV_TABLE: {
		size_t at = out->len;
		put_head(out, f->tag, 0);
		mv_state_save(f->sub, p, out);
		if (!out->failed) {
			le32_t len = le32_make((uint32_t)(out->len - at - sizeof(struct tlv_head)));
			memcpy(out->p + at + offsetof(struct tlv_head, len), &len, sizeof len);
		}
		break;
	}
	default: {
		le64_t v = le64_make(int_get(p, f->size));
		put_head(out, f->tag, f->size);
		mv_buf_append(out, &v, f->size);
	}
	}
}

void mv_state_save(const struct mv_table *t, const void *obj, struct mv_buf *out)
{
	const uint8_t *o = obj;
	for (unsigned i = 0; i < t->n_fields; i++) {
		const struct mv_field *f = &t->fields[i];
		uint64_t n = f->max_count ? int_get(o + f->count_offset, 4) : 1;
		if (f->max_count && n > f->max_count) {
			out->failed = true;
			return;
		}
		for (uint64_t k = 0; k < n; k++)
			save_one(f, o + f->offset + k * f->size, o, out);
	}
}

static int load_one(const struct mv_table *t, const struct mv_field *f, const uint8_t *in, uint32_t len,
		    uint8_t *p, uint8_t *obj, struct mv_err *err)
{
	switch (f->type) {
	case MV_STR:
		if (len >= f->size)
			return mv_fail(err, EINVAL, "%s.%s: longer than %u characters", t->name, f->name,
				       f->size - 1);
		for (uint32_t i = 0; i < len; i++)
			if (in[i] < 0x20 || in[i] == 0x7f)
				return mv_fail(err, EINVAL, "%s.%s: control character", t->name, f->name);
		memcpy(p, in, len);
		p[len] = 0;
		return 0;
	case MV_BYTES:
		if (len != f->size)
			break;
		memcpy(p, in, len);
		return 0;
	case MV_BLOB:
		if (len > f->size)
			break;
		memcpy(p, in, len);
		int_put(obj + f->count_offset, 4, len);
		return 0;
	case MV_TABLE: return mv_state_load(f->sub, in, len, p, err);
	default: {
		if (len != f->size)
			break;
		le64_t raw = { 0 };
		memcpy(&raw, in, len);
		uint64_t v = le64_get(raw);
		if (v < f->min || v > f->max)
			return mv_fail(err, EINVAL, "%s.%s: %llu is not within %llu..%llu", t->name, f->name,
				       (unsigned long long)v, (unsigned long long)f->min,
				       (unsigned long long)f->max);
		int_put(p, f->size, v);
		return 0;
	}
	}
	return mv_fail(err, EINVAL, "%s.%s: wrong length %u", t->name, f->name, len);
}

static const struct mv_field *find_field(const struct mv_table *t, uint16_t tag, unsigned *ret_index)
{
	for (unsigned i = 0; i < t->n_fields; i++)
		if (t->fields[i].tag == tag) {
			*ret_index = i;
			return &t->fields[i];
		}
	return NULL;
}

int mv_state_load(const struct mv_table *t, const void *bytes, size_t len, void *ret_obj, struct mv_err *err)
{
	const uint8_t *in = bytes;
	uint64_t seen = 0;
	MV_SCRATCH uint8_t *scratch = mv_scratch(t->size);

	if (!scratch)
		return mv_fail(err, ENOMEM, "out of memory");
	if (t->n_fields > MAX_FIELDS)
		return mv_fail(err, EINVAL, "%s: table too large", t->name);
	while (len) {
		struct tlv_head h;
		if (len < sizeof h)
			return mv_fail(err, EINVAL, "%s: cut off", t->name);
		memcpy(&h, in, sizeof h);
		in += sizeof h;
		len -= sizeof h;
		uint16_t tag = le16_get(h.tag);
		uint32_t flen = le32_get(h.len);
		if (le16_get(h.zero) || flen > len)
			return mv_fail(err, EINVAL, "%s: field %u is cut off or malformed", t->name, tag);
		unsigned index = 0;
		const struct mv_field *f = find_field(t, tag, &index);
		if (!f && tag < MV_TAG_SKIP)
			return mv_fail(err, EINVAL, "%s: unknown field %u (made by a newer version?)",
				       t->name, tag);
		if (f) {
			uint64_t at = 0;
			if (f->max_count) {
				at = int_get(scratch + f->count_offset, 4);
				if (at >= f->max_count)
					return mv_fail(err, EINVAL, "%s.%s: more than %u", t->name, f->name,
						       f->max_count);
				int_put(scratch + f->count_offset, 4, at + 1);
			} else if (seen & 1ULL << index)
				return mv_fail(err, EINVAL, "%s.%s: there twice", t->name, f->name);
			seen |= 1ULL << index;
			int r = load_one(t, f, in, flen, scratch + f->offset + at * f->size, scratch, err);
			if (r)
				return r;
		}
		in += flen;
		len -= flen;
	}
	for (unsigned i = 0; i < t->n_fields; i++)
		if (!(seen & 1ULL << i) && !(t->fields[i].flags & MV_OPTIONAL) && !t->fields[i].max_count)
			return mv_fail(err, EINVAL, "%s.%s: missing", t->name, t->fields[i].name);
	memcpy(ret_obj, scratch, t->size);
	return 0;
}
