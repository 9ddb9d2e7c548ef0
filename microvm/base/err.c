// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int mv_fail(struct mv_err *err, int code, const char *fmt, ...)
{
	if (err) {
		va_list ap;
		va_start(ap, fmt);
		err->code = code;
		vsnprintf(err->msg, sizeof err->msg, fmt, ap);
		va_end(ap);
	}
	return -code;
}

int mv_wrap(struct mv_err *err, const char *fmt, ...)
{
	char context[sizeof err->msg];
	va_list ap;

	if (!err)
		return -EIO;
	va_start(ap, fmt);
	vsnprintf(context, sizeof context - 2, fmt, ap);
	va_end(ap);
	strcat(context, ": ");
	size_t used = strlen(context), keep = strnlen(err->msg, sizeof err->msg - 1 - used);
	memmove(err->msg + used, err->msg, keep);
	memcpy(err->msg, context, used);
	err->msg[used + keep] = 0;
	return -err->code;
}
