// SPDX-License-Identifier: Apache-2.0
#include "api/conf.h"

#include <errno.h>
#include <stdbool.h>
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
	static char *text; // what was taken points into it
	size_t cap = 0;
	FILE *f = fopen(path, "re");
	if (!f)
		return mv_fail(err, errno, "%s: %s", path, strerror(errno));
	text = NULL;
	errno = 0;
	ssize_t len = getdelim(&text, &cap, 0, f); // all of it
	bool whole = feof(f) && (len < 1 || text[len - 1]);
	int error = errno;
	fclose(f);
	if (!whole)
		return mv_fail(err, error ? error : EINVAL, "%s: %s", path,
			       error ? strerror(error) : "there is a NUL byte in it");
	char *rest = len < 1 ? NULL : text;
	for (unsigned n = 1; rest; n++) {
		char *line = strsep(&rest, "\n");
		const char *wrong = take_line(line, fn, arg);
		if (wrong)
			return mv_fail(err, EINVAL, "%s:%u: %s: %s", path, n, trim(line), wrong);
	}
	return 0;
}
