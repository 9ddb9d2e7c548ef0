// SPDX-License-Identifier: Apache-2.0
#include "api/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static const struct api_code_info codes[API_N_CODES] = { [API_OK] = { "ok", 200, "", "" },
#define X(sym, status, name, cause, remedy) [API_##sym] = { name, status, cause, remedy },
							 API_CODES(X)
#undef X
};

const struct api_code_info *api_code_info(enum api_code code)
{
	return &codes[code < API_N_CODES ? code : API_INTERNAL];
}

int api_fail(struct api_err *err, enum api_code code, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	err->code = code;
	vsnprintf(err->msg, sizeof err->msg, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

int api_from(struct api_err *err, const struct mv_err *e, enum api_code otherwise)
{
	enum api_code code = otherwise;
	switch (e->code) {
	case ENOMEM: code = API_OUT_OF_MEMORY; break;
	case ENOSPC:
	case EDQUOT: code = API_NO_SPACE; break;
	case EMFILE:
	case ENFILE:
	case EAGAIN: code = API_LIMIT_REACHED; break;
	case EBUSY: code = API_IN_USE; break;
	default: break;
	}
	return api_fail(err, code, "%s", e->msg);
}
