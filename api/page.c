// SPDX-License-Identifier: Apache-2.0
#include "api/page.h"

#include <string.h>

#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

int page_query(struct http_req *r, struct page *ret_p, struct api_err *err)
{
	struct page p = { .after = http_query(r, "after"), .open = true };
	int result = query_uint(r, "limit", PAGE_MAX, 0, &p.limit, err);
	if (result)
		return result;
	if (http_query(r, "limit") && !p.limit)
		return api_fail(err, API_INVALID_VALUE, "limit: is not within 1..%d", PAGE_MAX);
	if (p.after && !vmcfg_name_ok(p.after))
		return api_fail(err, API_INVALID_VALUE, "after: \"%.70s\" is no name", p.after);
	p.open = !p.after;
	*ret_p = p;
	return 0;
}

bool page_has(struct page *p, const char *name)
{
	if (!vmcfg_name_ok(name))
		return p->open;
	p->open = !p->after || strcmp(name, p->after) > 0;
	if (p->open && p->limit && p->n == p->limit) {
		p->more = true;
		p->open = false;
	}
	if (p->open) {
		p->n++;
		mv_strcpy(p->last, sizeof p->last, name);
	}
	return p->open;
}

void page_put_next(js *o, const struct page *p)
{
	if (p->more)
		js_put_str(o, "next", p->last);
}
