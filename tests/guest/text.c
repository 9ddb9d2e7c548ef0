// SPDX-License-Identifier: Apache-2.0
// The tiny guest's text: comparisons, words and numbers of lines and of the command line.
#include "tests/guest/tiny.h"

bool starts(const char *s, const char *with)
{
	while (*with)
		if (*s++ != *with++)
			return false;
	return true;
}

bool same(const char *a, const char *b) { return starts(a, b) && starts(b, a); }

void copy_text(char *to, const char *from, u64 size)
{
	while (--size && *from)
		*to++ = *from++;
	*to = 0;
}

// Cuts the next word off *s.
char *word(char **s)
{
	while (**s == ' ')
		++*s;
	char *w = *s;
	while (**s && **s != ' ')
		++*s;
	if (**s)
		*(*s)++ = 0;
	return w;
}

bool number(const char **s, u64 *v)
{
	u64 base = 10, d;
	const char *p = *s;
	if (starts(p, "0x")) {
		base = 16;
		p += 2;
	}
	const char *from = p;
	for (*v = 0;; p++, *v = *v * base + d) {
		char c = (char)(*p | 0x20);
		d = *p >= '0' && *p <= '9' ? (u64)(*p - '0')
		    : c >= 'a' && c <= 'f' ? (u64)(c - 'a' + 10)
					   : 99;
		if (d >= base)
			break;
	}
	*s = p;
	return p > from;
}

bool arg_number(char **args, u64 *v)
{
	const char *w = word(args);
	return number(&w, v) && !*w;
}

// NAME=NUMBER on the command line.
bool cmdline_number(const char *name, u64 *v)
{
	for (const char *p = machine.cmdline; *p; p++) {
		const char *s = p;
		if ((p != machine.cmdline && p[-1] != ' ') || !starts(p, name))
			continue;
		while (*name++)
			s++;
		return number(&s, v);
	}
	return false;
}
