// SPDX-License-Identifier: Apache-2.0
#include "api/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

#define MAX_JSON_FILE (1u << 20)

int cli_fail(int status, const char *fmt, ...)
{
	va_list ap;
	fputs("thaw: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return status;
}

int cli_put_policy(struct cli *c, js *o)
{
	if (c->has_ttl)
		js_put_uint(o, "ttl_ms", c->ttl_s * 1000ull);
	if (c->has_idle)
		js_put_uint(o, "idle_timeout_ms", c->idle_s * 1000ull);
	if (c->has_park)
		js_put_uint(o, "idle_park_ms", c->park_ms);
	if (c->auto_delete)
		js_put_bool(o, "auto_delete", true);
	if (!c->limit)
		return EXIT_OK;
	js *v = cli_parse_pairs("limit", c->limit, "memory_mib cpu_percent pids",
				"memory_mib cpu_percent pids", 0);
	if (!v)
		return EXIT_USAGE;
	js_put(o, "limits", v);
	return EXIT_OK;
}

int cli_print_json(js *v)
{
	char *text = js_text(v, true);
	if (!text)
		return cli_fail(EXIT_DAEMON_ERROR, "out of memory");
	fputs(text, stdout);
	free(text);
	return EXIT_OK;
}

js *cli_json_file(const char *path)
{
	FILE *f = strcmp(path, "-") ? fopen(path, "re") : stdin;
	struct api_err err;
	MV_BUF b = { 0 };
	char part[4096];
	size_t n;
	js *v = NULL;
	while (f && (n = fread(part, 1, sizeof part, f)) && b.len <= MAX_JSON_FILE)
		mv_buf_append(&b, part, n);
	if (!f || ferror(f))
		cli_fail(0, "%s: %s", path, strerror(errno));
	else if (b.failed || b.len > MAX_JSON_FILE)
		cli_fail(0, "%s: larger than %u bytes", path, MAX_JSON_FILE);
	else if (!(v = js_parse(b.p ? (const char *)b.p : "", b.len, &err)))
		cli_fail(0, "%s: %s", path, err.msg);
	if (f && f != stdin)
		fclose(f);
	return v;
}

void cli_print_names(js *list)
{
	for (size_t i = 0; i < js_len(list); i++)
		printf("%s\n", js_str(js_at(list, i), "name", ""));
}

bool cli_name_ok(const char *name)
{
	if (vmcfg_name_ok(name))
		return true;
	cli_fail(0,
		 "\"%s\" is not a name: use 1 to 64 letters, digits, '_', '.' or '-', starting with "
		 "a letter or digit",
		 name);
	return false;
}

const char *cli_absolute(const char *path, char buf[PATH_MAX])
{
	char cwd[PATH_MAX];
	if (path[0] == '/')
		return mv_strcpy(buf, PATH_MAX, path) ? NULL : buf;
	if (!getcwd(cwd, sizeof cwd) || (size_t)snprintf(buf, PATH_MAX, "%s/%s", cwd, path) >= PATH_MAX)
		return NULL;
	return buf;
}

static bool in_list(const char *list, const char *word)
{
	size_t len = strlen(word);
	for (const char *p = list; len && (p = strstr(p, word)); p += len)
		if ((p == list || p[-1] == ' ') && (!p[len] || p[len] == ' '))
			return true;
	return false;
}

// Replaces {n}; false when it does not fit.
static bool expand(const char *s, unsigned n, char *out, size_t size)
{
	size_t used = 0;
	while (*s) {
		if (used + 12 > size)
			return false;
		if (n && !strncmp(s, "{n}", 3)) {
			used += (size_t)snprintf(out + used, size - used, "%u", n);
			s += 3;
		} else {
			out[used++] = *s++;
		}
	}
	out[used] = 0;
	return true;
}

// The user network of a net; made by the first word about it.
static js *user_of(js *o)
{
	if (!js_get(o, "user"))
		js_put(o, "user", js_object());
	return js_get(o, "user");
}

// Cuts off and gives what follows the last `c`; NULL: there is none.
static char *cut_last(char *text, char c)
{
	char *p = strrchr(text, c);
	if (p)
		*p++ = 0;
	return p;
}

static bool put_port(js *o, const char *key, const char *text)
{
	char *end = NULL;
	unsigned long v = text && *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : 0;
	js_put_uint(o, key, v);
	return end && !*end;
}

// [ADDRESS:]HOST_PORT:GUEST_PORT[/udp]; whether the values can be is the daemon's business.
static int put_forward(js *user, char *text)
{
	js *f = js_object();
	const char *protocol = cut_last(text, '/'), *guest = cut_last(text, ':'), *host = cut_last(text, ':');
	if (!js_get(user, "forward"))
		js_put(user, "forward", js_list());
	js_add(js_get(user, "forward"), f);
	if (host)
		js_put_str(f, "host_address", text);
	if (protocol)
		js_put_str(f, "protocol", protocol);
	if (!put_port(f, "guest_port", guest) || !put_port(f, "host_port", host ? host : text))
		return cli_fail(EXIT_USAGE, "--net: forward: use [ADDRESS:]HOST_PORT:GUEST_PORT[/udp]");
	return 0;
}

// A rate: N with K, M, G or T for powers of 1024 and perhaps /s behind it, as a limit per second.
static int put_rate(js *o, const char *option, const char *key, const char *value)
{
	const char *kind = strstr(key, "iops") ? "ops" : "bandwidth";
	const char *of = key[0] == 'r' || key[0] == 't' ? key : option; // rx_iops; --rx-limit iops
	const char *limit = of[0] == 'r' ? "rx_rate_limit" : of[0] == 't' ? "tx_rate_limit" : "rate_limit";
	static const char units[] = "KMGT";
	char *end;
	errno = 0;
	uint64_t v = strtoull(value, &end, 10);
	const char *unit = *end ? strchr(units, *end) : NULL;
	unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
	end += unit != NULL;
	if (!strcmp(end, "/s"))
		end += 2;
	if (*value < '0' || *value > '9' || *end || errno || v > UINT64_MAX >> shift)
		return cli_fail(EXIT_USAGE, "--%s: %s=%s: use a number, with K, M, G or T behind it", option,
				key, value);
	if (!js_get(o, limit))
		js_put(o, limit, js_object());
	js *bucket = js_object();
	js_put_uint(bucket, "size", v << shift);
	js_put_uint(bucket, "refill_time_ms", 1000);
	js_put(js_get(o, limit), kind, bucket);
	return 0;
}

static int put_pair(js *o, const char *option, const char *key, char *value, const char *keys,
		    const char *numbers)
{
	char path[PATH_MAX], *end;
	if (!value && !strcmp(key, "ro") && in_list(keys, "ro")) {
		js_put_bool(o, "read_only", true);
		return 0;
	}
	if (!value && !strcmp(key, "direct") && in_list(keys, "direct")) {
		js_put_bool(o, "direct", true);
		return 0;
	}
	if (!value && !strcmp(key, "user") && in_list(keys, "user")) {
		user_of(o);
		return 0;
	}
	if (!value && !strcmp(key, "loopback") && in_list(keys, "loopback")) {
		js_put_bool(user_of(o), "host_loopback", true);
		return 0;
	}
	if (!value && in_list("deflate_on_oom free_page_reporting free_page_hinting tty imds_compat", key) &&
	    in_list(keys, key)) {
		js_put_bool(o, key, true);
		return 0;
	}
	if (!value || !in_list(keys, key))
		return cli_fail(EXIT_USAGE, "--%s: \"%s\" is none of: %s", option, key, keys);
	if (in_list(numbers, key)) {
		unsigned long long v = strtoull(value, &end, 10);
		if (*value < '0' || *value > '9' || *end)
			return cli_fail(EXIT_USAGE, "--%s: %s=%s is not a number", option, key, value);
		js_put_uint(o, key, v);
	} else if (!strcmp(key, "net")) {
		if (!js_get(o, "nets"))
			js_put(o, "nets", js_list());
		js_add(js_get(o, "nets"), js_string(value));
	} else if (!strcmp(key, "forward")) {
		return put_forward(user_of(o), value);
	} else if (strstr(key, "bandwidth") || strstr(key, "iops")) {
		return put_rate(o, option, key, value);
	} else if (!strcmp(key, "path") || !strcmp(key, "layer_path") || !strcmp(key, "socket")) {
		if (!cli_absolute(value, path))
			return cli_fail(EXIT_USAGE, "--%s: the path is too long", option);
		js_put_str(o, key, path);
	} else {
		js_put_str(o, key, value);
	}
	return 0;
}

int cli_put_pairs(js *o, const char *option, const char *text, const char *keys, const char *numbers,
		  unsigned n)
{
	char work[PATH_MAX + 512], *save = NULL;
	if (!expand(text, n, work, sizeof work))
		return cli_fail(EXIT_USAGE, "--%s: too long", option);
	for (char *p = strtok_r(work, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		char *value = strchr(p, '=');
		if (value)
			*value++ = 0;
		if (put_pair(o, option, p, value, keys, numbers))
			return EXIT_USAGE;
	}
	return EXIT_OK;
}

js *cli_parse_pairs(const char *option, const char *text, const char *keys, const char *numbers, unsigned n)
{
	js *o = js_object();
	if (cli_put_pairs(o, option, text, keys, numbers, n)) {
		js_free(o);
		return NULL;
	}
	return o;
}
