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
	char inner[sizeof err->msg], context[sizeof err->msg];
	va_list ap;

	if (!err)
		return -EIO;
	va_start(ap, fmt);
	vsnprintf(context, sizeof context, fmt, ap);
	va_end(ap);
	memcpy(inner, err->msg, sizeof inner);
	size_t used = (size_t)snprintf(err->msg, sizeof err->msg, "%s: ", context);
	if (used < sizeof err->msg)
		snprintf(err->msg + used, sizeof err->msg - used, "%s", inner);
	return -err->code;
}
