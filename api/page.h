// SPDX-License-Identifier: Apache-2.0
// Pages of a list in the order of names: ?limit=N&after=NAME; the answer's `next` is the next page's `after`.
// What comes or goes meanwhile moves nothing else from one page to another. On the stack of a handler.
#pragma once
#include "api/routes.h"

#define PAGE_MAX 1000

struct page {
	const char *after; // NULL: from the first; lives as long as the request
	uint64_t limit, n; // limit: 0: none
	bool open, more;
	char last[ROUTE_NAME_LEN];
};

int page_query(struct http_req *r, struct page *ret_p, struct api_err *err);

// To be asked about each name, in order: is it on this page? What has no proper name (a foreign entry of the
// store) is where the name before it is.
bool page_has(struct page *p, const char *name);

void page_put_next(js *o, const struct page *p);
