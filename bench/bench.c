// SPDX-License-Identifier: Apache-2.0
// The bench program: the floor and thaw side by side in one run, with the same guest.
// Prints a table and writes OUT/results.json.
#include "bench/bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int usage(FILE *to, int status)
{
	fputs("usage: bench --bin DIR --guest FILE --out DIR [--quick] [--verbose] [--only PART]\n"
	      "Measures the bare KVM floor and thaw with the tiny guest; writes OUT/results.json.\n",
	      to);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "bin", required_argument, NULL, 'b' }, { "guest", required_argument, NULL, 'g' },
		{ "out", required_argument, NULL, 'o' }, { "quick", no_argument, NULL, 'q' },
		{ "verbose", no_argument, NULL, 'v' },   { "only", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },      { 0 },
	};
	static const struct {
		const char *name;
		int (*run)(const struct bench_env *, struct bench_results *);
	} parts[] = { { "boot", bench_boot },
		      { "restore", bench_restore },
		      { "freeze", bench_freeze },
		      { "live", bench_live },
		      { "lazy", bench_lazy },
		      { "rest", bench_rest },
		      { "pool", bench_pool },
		      { "loop", bench_loop },
		      { "working-set", bench_working_set },
		      { "memory", bench_memory },
		      { "net", bench_net },
		      { "blk", bench_blk },
		      { "diff", bench_diff },
		      { "firecracker", bench_firecracker },
		      { "idle", bench_idle } };
	static struct bench_results res;
	struct bench_env env = { .samples = 200 };
	const char *only = NULL;
	int c, failed = 0;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (c) {
		case 'b': env.bin = optarg; break;
		case 'g': env.guest = optarg; break;
		case 'o': env.out = optarg; break;
		case 'q': env.quick = true; break;
		case 'p': only = optarg; break;
		case 'v': env.verbose = true; break;
		case 'h': return usage(stdout, 0);
		default: return usage(stderr, 2);
		}
	if (!env.bin || !env.guest || !env.out || optind != argc)
		return usage(stderr, 2);
	if (access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "bench: no access to /dev/kvm (%s); \"thaw doctor\" says more\n",
			strerror(errno));
		return 1;
	}
	if (env.quick)
		env.samples = 40;
	snprintf(env.vmm, sizeof env.vmm, "%s/thaw-vmm", env.bin);
	mkdir(env.out, 0755);
	for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
		if (only ? strcmp(only, parts[i].name) : parts[i].run == bench_idle) // a part of pool
			continue;
		int r = parts[i].run(&env, &res);
		if (r) {
			fprintf(stderr, "bench: part \"%s\" failed: %s\n", parts[i].name,
				strerror(r < 0 ? -r : r));
			failed = 1;
		}
	}
	bench_print(&res, stdout);
	char path[1100];
	snprintf(path, sizeof path, "%s/results.json", env.out);
	int r = bench_write_json(&res, path);
	if (r)
		fprintf(stderr, "bench: %s: %s\n", path, strerror(-r));
	bench_results_fini(&res);
	return failed || r;
}
