// SPDX-License-Identifier: Apache-2.0
#include "api/fc/args.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PAYLOAD (1u << 30)

enum kind { TEXT, NUMBER64, SIZE, FLAG, IGNORED, REFUSED };
#define OFF(m) offsetof(struct fc_args, m)
static const struct {
	const char *name, *arg;
	enum kind kind;
	size_t offset;
	const char *what;
} options[] = {
	{ "api-sock", "PATH", TEXT, OFF(api_sock), "where to listen; default /run/firecracker.socket" },
	{ "id", "ID", TEXT, OFF(id), "of the VM: 1 to 64 letters, digits or -; default anonymous-instance" },
	{ "config-file", "FILE", TEXT, OFF(config_file), "a VM to configure and start at once" },
	{ "no-api", NULL, FLAG, OFF(no_api), "do not listen; needs --config-file" },
	{ "metadata", "FILE", TEXT, OFF(metadata), "the document of the metadata service" },
	{ "log-path", "PATH", TEXT, OFF(log_path), "file or FIFO for the log; default: standard output" },
	{ "level", "LEVEL", TEXT, OFF(level), "Off, Trace, Debug, Info, Warn or Error; default Info" },
	{ "show-level", NULL, FLAG, OFF(show_level), "the level in each line of the log" },
	{ "show-log-origin", NULL, FLAG, OFF(show_log_origin), "its place in the sources too" },
	{ "module", "MODULE", TEXT, OFF(module), "taken and without effect" },
	{ "metrics-path", "PATH", TEXT, OFF(metrics_path), "file or FIFO for metrics" },
	{ "boot-timer", NULL, FLAG, OFF(boot_timer), "log the time of the guest's first I/O" },
	{ "seccomp-filter", "FILE", REFUSED, 0, "refused: such a filter is for Firecracker's own process" },
	{ "no-seccomp", NULL, IGNORED, 0, "taken and without effect" },
	{ "http-api-max-payload-size", "BYTES", SIZE, OFF(max_payload_bytes),
	  "of a request's body; default 51200" },
	{ "mmds-size-limit", "BYTES", SIZE, OFF(mmds_size_limit),
	  "of the metadata; default: that of a body" },
	{ "start-time-us", "US", NUMBER64, OFF(start_time_us), "when it was started, CLOCK_MONOTONIC" },
	{ "start-time-cpu-us", "US", NUMBER64, OFF(start_time_cpu_us), "the same in its CPU time" },
	{ "parent-cpu-time-us", "US", NUMBER64, OFF(parent_cpu_time_us), "CPU time of who started it" },
	{ "enable-pci", NULL, REFUSED, 0, "refused: there is no PCI" },
	{ "snapshot-version", NULL, FLAG, OFF(snapshot_version), "print the version of snapshots and end" },
	{ "describe-snapshot", "FILE", TEXT, OFF(describe_snapshot), "print the version of one and end" },
	{ "version", NULL, FLAG, OFF(version), "print the version and end" },
	{ "help", NULL, FLAG, OFF(help), "print this and end" },
	{ "api-table", NULL, FLAG, OFF(table),
	  "print the calls and fields, as docs/firecracker.md has them" },
};
enum { N_OPTIONS = sizeof options / sizeof *options };

void fc_args_help(void)
{
	puts("usage: thaw-vmm --api-sock PATH [--id ID] [OPTION]...\n"
	     "One VM that is driven by Firecracker's API. Also by the name firecracker; "
	     "docs/firecracker.md.");
	for (int i = 0; i < N_OPTIONS; i++) {
		char left[48];
		snprintf(left, sizeof left, "--%s%s%s", options[i].name, options[i].arg ? " " : "",
			 options[i].arg ? options[i].arg : "");
		printf("  %-34s %s\n", left, options[i].what);
	}
	puts("Exit status: 0 when the guest has shut down, 1 on failure, 152 for a bad configuration file,\n"
	     "153 for bad arguments.");
}

static int number(const char *name, const char *text, uint64_t max, uint64_t *ret_n)
{
	char *end;
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (errno || *end || !isdigit((unsigned char)text[0]) || n > max) {
		fprintf(stderr, "--%s: \"%s\" is not a number up to %llu\n", name, text,
			(unsigned long long)max);
		return -EINVAL;
	}
	*ret_n = n;
	return 0;
}

static int take(int i, const char *value, struct fc_args *a)
{
	char *at = (char *)a + options[i].offset;
	uint64_t n = 0;
	int r = 0;
	switch (options[i].kind) {
	case TEXT: *(const char **)(void *)at = value; break;
	case FLAG: *(bool *)at = true; break;
	case NUMBER64:
		r = number(options[i].name, value, UINT64_MAX, &n);
		*(uint64_t *)(void *)at = n;
		break;
	case SIZE:
		r = number(options[i].name, value, MAX_PAYLOAD, &n);
		*(size_t *)(void *)at = (size_t)n;
		a->has_mmds_size_limit |= options[i].offset == OFF(mmds_size_limit);
		break;
	case REFUSED:
		fprintf(stderr, "--%s: %s; leave it out\n", options[i].name, options[i].what);
		return -EINVAL;
	case IGNORED: break;
	}
	return r;
}

static int check(const struct fc_args *a)
{
	size_t n = strlen(a->id);
	bool ok = n >= 1 && n <= 64;
	for (size_t i = 0; i < n; i++)
		ok = ok && (isalnum((unsigned char)a->id[i]) || a->id[i] == '-');
	if (!ok)
		fprintf(stderr, "--id: \"%s\" is not 1 to 64 letters, digits or -\n", a->id);
	else if (a->no_api && !a->config_file)
		fputs("--no-api: there would be nothing to do; give --config-file\n", stderr);
	return ok && (!a->no_api || a->config_file) ? 0 : -EINVAL;
}

int fc_args_parse(int argc, char **argv, struct fc_args *ret_args)
{
	struct option list[N_OPTIONS + 1] = { { 0 } };
	bool seen[N_OPTIONS] = { 0 };
	struct fc_args a = { .api_sock = "/run/firecracker.socket",
			     .id = "anonymous-instance",
			     .max_payload_bytes = 51200 };
	int c, i;
	for (i = 0; i < N_OPTIONS; i++)
		list[i] = (struct option){ options[i].name, options[i].arg ? required_argument : no_argument,
					   NULL, 1 };
	while ((c = getopt_long(argc, argv, "", list, &i)) == 1) {
		if (seen[i]) {
			fprintf(stderr, "--%s: there twice\n", options[i].name);
			return -EINVAL;
		}
		seen[i] = true;
		if (take(i, optarg, &a))
			return -EINVAL;
	}
	if (c != -1)
		return -EINVAL; // getopt has said why
	if (optind < argc) {
		fprintf(stderr, "\"%s\": there are only options; see --help\n", argv[optind]);
		return -EINVAL;
	}
	if (check(&a))
		return -EINVAL;
	if (!a.has_mmds_size_limit)
		a.mmds_size_limit = a.max_payload_bytes;
	*ret_args = a;
	return 0;
}
