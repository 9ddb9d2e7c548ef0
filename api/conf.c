// SPDX-License-Identifier: Apache-2.0
#include "api/conf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPACE " \t\r\n"

static char *trim(char *s)
{
	s += strspn(s, SPACE);
	for (size_t n = strlen(s); n && strchr(SPACE, s[n - 1]);)
		s[--n] = 0;
	return s;
}

static const char *take_line(char *line, conf_fn *fn, void *arg)
{
	char *key = trim(line), *value = strchr(key, '=');
	if (!*key || *key == '#')
		return NULL;
	if (!value)
		return "a line is: key = value";
	*value++ = 0;
	return fn(arg, trim(key), trim(value));
}

int conf_read(const char *path, conf_fn *fn, void *arg, struct mv_err *err)
{
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t cap = 0;
	int r = 0;
	if (!f)
		return mv_fail(err, errno, "%s: %s", path, strerror(errno));
	for (unsigned n = 1; !r && (errno = 0, getline(&line, &cap, f)) >= 0; n++) {
		const char *wrong = take_line(line, fn, arg);
		if (wrong)
			r = mv_fail(err, EINVAL, "%s:%u: %s: %s", path, n, trim(line), wrong);
	}
	if (!r && ferror(f))
		r = mv_fail(err, errno ? errno : EIO, "%s: can't be read", path);
	free(line);
	fclose(f);
	return r;
}
