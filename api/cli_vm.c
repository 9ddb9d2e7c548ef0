// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/cli.h"
#include "microvm/base/msg.h"
#include "microvm/base/util.h"

// One VM as a few lines.
static void print_vm(js *v)
{
	static const char *const times[] = { "ordered",    "kvm_ready", "loaded", "running",
					     "first_exit", "first_io",  "ready",  NULL };
	printf("name:      %s\nid:        %s\nstate:     %s\n", js_str(v, "name", ""), js_str(v, "id", ""),
	       js_str(v, "state", ""));
	if (js_get(v, "exit"))
		printf("exit:      %s %s\n", js_str(v, "exit.reason", ""), js_str(v, "exit.detail", ""));
	if (js_get(v, "pid"))
		printf("pid:       %" PRId64 "\n", js_int(v, "pid", 0));
	if (js_get(v, "forked_from"))
		printf("fork of:   %s\n", js_str(v, "forked_from", ""));
	if (js_get(v, "from_snapshot"))
		printf("snapshot:  %s\n", js_str(v, "from_snapshot", ""));
	printf("created:   %s\nvcpus:     %" PRId64 "\nmemory:    %" PRId64 " MiB\nkernel:    %s\n",
	       js_str(v, "created", ""), js_int(v, "config.vcpus", 0), js_int(v, "config.memory_mib", 0),
	       js_str(v, "config.kernel", ""));
	if (strcmp(js_str(v, "config.huge_pages", "none"), "none"))
		printf("pages:     %s\n", js_str(v, "config.huge_pages", ""));
	for (size_t i = 0; i < js_len(js_get(v, "config.drives")); i++) {
		js *d = js_at(js_get(v, "config.drives"), i);
		const char *layer = js_str(d, "layer", "none");
		printf("drive:     %s %s%s", js_str(d, "id", ""), js_str(d, "path", ""),
		       js_true(d, "read_only") ? " (read-only)" : "");
		if (strcmp(layer, "none"))
			printf(" (%s layer%s%s)", layer, js_get(d, "layer_path") ? " " : "",
			       js_str(d, "layer_path", ""));
		printf("\n");
	}
	for (size_t i = 0; i < js_len(js_get(v, "config.nets")); i++) {
		js *n = js_at(js_get(v, "config.nets"), i);
		printf("net:       %s %s %s\n", js_str(n, "id", ""),
		       js_get(n, "user") ? "user" : js_str(n, "tap", js_str(n, "socket", "metadata only")),
		       js_str(n, "mac", ""));
	}
	if (js_get(v, "config.vsock"))
		printf("vsock:     cid %" PRId64 " %s\n", js_int(v, "config.vsock.cid", 0),
		       js_str(v, "config.vsock.path", ""));
	for (size_t i = 0; i < js_len(js_get(v, "config.consoles")); i++) {
		js *p = js_at(js_get(v, "config.consoles"), i);
		printf("port:      %s %s%s\n", js_str(p, "id", ""), js_str(p, "path", ""),
		       js_true(p, "tty") ? " (tty)" : "");
	}
	for (size_t i = 0; i < js_len(js_get(v, "config.pmems")); i++) {
		js *p = js_at(js_get(v, "config.pmems"), i);
		printf("pmem:      %s %s%s\n", js_str(p, "id", ""), js_str(p, "path", ""),
		       js_true(p, "read_only") ? " (read-only)" : "");
	}
	if (js_get(v, "config.balloon"))
		printf("balloon:   %" PRId64 " MiB, to be %" PRId64 "; %" PRId64 " MiB given back\n",
		       js_int(v, "balloon.actual_mib", 0), js_int(v, "config.balloon.target_mib", 0),
		       js_int(v, "balloon.freed_mib", 0));
	if (js_get(v, "config.cpu")) {
		js *list = js_get(v, "config.cpu.disable");
		printf("cpu:       %s", js_str(v, "config.cpu.template", "host"));
		for (size_t i = 0; i < js_len(list); i++)
			printf("%s%s", i ? ", " : " without ", js_str(js_at(list, i), "", "?"));
		putchar('\n');
	}
	if (js_get(v, "lifetime.ttl_ms"))
		printf("ttl:       %" PRId64 " ms, %" PRId64 " ms left\n", js_int(v, "lifetime.ttl_ms", 0),
		       js_int(v, "lifetime.ttl_left_ms", js_int(v, "lifetime.ttl_ms", 0)));
	if (js_get(v, "lifetime.idle_timeout_ms"))
		printf("idle:      ends after %" PRId64 " ms\n", js_int(v, "lifetime.idle_timeout_ms", 0));
	if (js_get(v, "parking"))
		printf("parking:   %s; after %" PRId64 " ms without running, %" PRId64 " times so far\n",
		       js_true(v, "parking.parked") ? "parked" : "not parked",
		       js_int(v, "lifetime.idle_park_ms", 0), js_int(v, "parking.parks", 0));
	if (js_get(v, "limits"))
		printf("limits:    memory %" PRId64 " MiB, cpu %" PRId64 " %%, pids %" PRId64 " (0: none)\n",
		       js_int(v, "limits.memory_mib", 0), js_int(v, "limits.cpu_percent", 0),
		       js_int(v, "limits.pids", 0));
	for (int i = 0; times[i]; i++) {
		int64_t us = js_int(js_get(v, "timing_us"), times[i], -1);
		if (us >= 0)
			printf("%-14s %" PRId64 " us\n", times[i], us);
	}
}

static int finish(struct cli *c, int status, js *v, const char *done)
{
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	printf("%s %s\n", js_str(v, "name", c->pos[0]), done ? done : js_str(v, "state", ""));
	js_free(v);
	return EXIT_OK;
}

static int put_file_as(js *o, const char *key, const char *option, const char *path)
{
	char buf[PATH_MAX];
	if (!cli_absolute(path, buf))
		return cli_fail(EXIT_USAGE, "--%s: the path is too long", option);
	js_put_str(o, key, buf);
	return EXIT_OK;
}

static int put_file(js *o, const char *key, const char *path) { return put_file_as(o, key, key, path); }

static int put_devices(struct cli *c, js *o)
{
	static const char drive_keys[] =
		"id path serial ro layer layer_path bandwidth iops block_size cache direct queues";
	js *drives = js_list(), *nets = js_list(), *v = NULL;
	js_put(o, "drives", drives);
	js_put(o, "nets", nets);
	if (c->rootfs) {
		v = js_object();
		js_add(drives, v);
		js_put_str(v, "id", "root");
		js_put_str(v, "layer", "ephemeral");
		if (put_file_as(v, "path", "rootfs", c->rootfs))
			return EXIT_USAGE;
	}
	for (unsigned i = 0; i < c->n_drives; i++) {
		if (!(v = cli_parse_pairs("drive", c->drive[i], drive_keys, "block_size queues", 0)))
			return EXIT_USAGE;
		js_add(drives, v);
	}
	for (unsigned i = 0; i < c->n_nets; i++) {
		if (!(v = cli_parse_pairs("net", c->net[i],
					  "id tap socket user loopback forward mac mtu queues" CLI_NET_RATES,
					  "mtu queues", 0)))
			return EXIT_USAGE;
		js_add(nets, v);
	}
	if (c->metadata_service) {
		if (!(v = cli_parse_pairs("metadata-service", c->metadata_service,
					  "address version imds_compat net", "", 0)))
			return EXIT_USAGE;
		js_put(o, "metadata_service", v);
	}
	if (c->vsock) {
		if (!(v = cli_parse_pairs("vsock", c->vsock, "cid path", "cid", 0)))
			return EXIT_USAGE;
		js_put(o, "vsock", v);
	}
	js *ports = js_list();
	js_put(o, "consoles", ports);
	for (unsigned i = 0; i < c->n_ports; i++) {
		if (!(v = cli_parse_pairs("port", c->port[i], "id path tty", "", 0)))
			return EXIT_USAGE;
		js_add(ports, v);
	}
	js *pmems = js_list();
	js_put(o, "pmems", pmems);
	for (unsigned i = 0; i < c->n_pmems; i++) {
		if (!(v = cli_parse_pairs("pmem", c->pmem[i], "id path ro bandwidth iops", "", 0)))
			return EXIT_USAGE;
		js_add(pmems, v);
	}
	if (c->balloon) {
		if (!(v = cli_parse_pairs("balloon", c->balloon,
					  "target_mib stats_interval_s deflate_on_oom free_page_reporting "
					  "free_page_hinting",
					  "target_mib stats_interval_s", 0)))
			return EXIT_USAGE;
		js_put(o, "balloon", v);
	}
	if (c->ready_when) {
		if (!(v = cli_parse_pairs("ready-when", c->ready_when, "console vsock_port", "vsock_port",
					  0)))
			return EXIT_USAGE;
		js_put(o, "ready", v);
	}
	return EXIT_OK;
}

// --cpu "template=NAME,disable=FEATURE,disable=...": an object with a list.
static js *parse_cpu(const char *text)
{
	js *o = js_object(), *disable = js_list();
	js_put(o, "disable", disable);
	while (*text) {
		size_t n = strcspn(text, ",");
		char word[64], *value;
		snprintf(word, sizeof word, "%.*s", (int)n, text);
		value = strchr(word, '=');
		if (value)
			*value++ = 0;
		if (n >= sizeof word || !value || (strcmp(word, "template") && strcmp(word, "disable"))) {
			cli_fail(0, "--cpu: \"%.*s\" is neither template=NAME nor disable=FEATURE", (int)n,
				 text);
			js_free(o);
			return NULL;
		}
		if (word[0] == 't')
			js_put_str(o, "template", value);
		else
			js_add(disable, js_string(value));
		text += n + (text[n] == ',');
	}
	return o;
}

// What --rootfs needs on the command line unless it is given; a panic ends the VM by a reset.
static void put_cmdline(struct cli *c, js *o)
{
	if (c->cmdline)
		js_put_str(o, "cmdline", c->cmdline);
	else if (c->rootfs)
		js_put_str(o, "cmdline", "console=ttyS0 panic=-1 root=/dev/vda rw");
}

static int put_machine(struct cli *c, js *o)
{
	int status = put_file(o, "kernel", c->kernel);
	if (!status && c->initrd)
		status = put_file(o, "initrd", c->initrd);
	put_cmdline(c, o);
	if (c->has_vcpus)
		js_put_uint(o, "vcpus", c->vcpus);
	if (c->has_memory)
		js_put_uint(o, "memory_mib", c->memory);
	if (c->discovery)
		js_put_str(o, "discovery", c->discovery);
	if (c->boot)
		js_put_str(o, "boot", c->boot);
	if (c->huge_pages)
		js_put_str(o, "huge_pages", c->huge_pages);
	js_put_bool(o, "rng", !c->no_rng);
	js_put_bool(o, "track_dirty", c->track_dirty);
	if (!status && c->cpu) {
		js *cpu = parse_cpu(c->cpu);
		if (!cpu)
			return EXIT_USAGE;
		js_put(o, "cpu", cpu);
	}
	if (!status && c->metadata) {
		js *doc = cli_json_file(c->metadata);
		if (!doc)
			return EXIT_USAGE;
		js_put(o, "metadata", doc);
	}
	if (!status)
		status = put_devices(c, o);
	return status ? status : cli_put_policy(c, o);
}

js *cli_create_body(struct cli *c, const char *name, bool start)
{
	if (!c->kernel) {
		cli_fail(0, "give --kernel FILE");
		return NULL;
	}
	js *o = js_object();
	js_put_str(o, "name", name);
	js_put_bool(o, "start", start);
	if (put_machine(c, o))
		js_free(MV_TAKE(o));
	return o;
}

int cli_create(struct cli *c)
{
	js *o = cli_create_body(c, c->pos[0], c->start), *v = NULL;
	if (!o)
		return EXIT_USAGE;
	int status = cli_request(c, "POST", o, &v, "/v1/vms");
	return finish(c, status, v, NULL);
}

// --rx-limit and --tx-limit: keys as in --net, "none", or not given.
static int put_limit(js *o, const char *option, const char *key, const char *text)
{
	if (!text)
		return EXIT_OK;
	if (strcmp(text, "none"))
		return cli_put_pairs(o, option, text, "bandwidth iops", "", 0);
	js_put(o, key, js_object());
	return EXIT_OK;
}

int cli_net_set(struct cli *c)
{
	js *o, *v = NULL;
	if (!cli_name_ok(c->pos[0]) || !cli_name_ok(c->pos[1]))
		return EXIT_USAGE;
	if (!c->link && !c->rx_limit && !c->tx_limit)
		return cli_fail(EXIT_USAGE, "net-set: give --link, --rx-limit or --tx-limit");
	if (c->link && strcmp(c->link, "up") && strcmp(c->link, "down"))
		return cli_fail(EXIT_USAGE, "--link: \"%s\" is neither up nor down", c->link);
	o = js_object();
	if (c->link)
		js_put_bool(o, "link_up", !strcmp(c->link, "up"));
	int status = put_limit(o, "rx-limit", "rx_rate_limit", c->rx_limit);
	status = status ? status : put_limit(o, "tx-limit", "tx_rate_limit", c->tx_limit);
	if (status) {
		js_free(o);
		return status;
	}
	status = cli_request(c, "PATCH", o, &v, "/v1/vms/%s/nets/%s", c->pos[0], c->pos[1]);
	return finish(c, status, v, NULL);
}

int cli_drive_set(struct cli *c)
{
	js *o, *v = NULL;
	char *end = NULL;
	if (!cli_name_ok(c->pos[0]) || !cli_name_ok(c->pos[1]))
		return EXIT_USAGE;
	if (!c->size && !c->reread && !c->limit)
		return cli_fail(EXIT_USAGE, "drive-set: give --size, --reread or --limit");
	errno = 0;
	unsigned long long size = c->size ? strtoull(c->size, &end, 10) : 0;
	if (c->size && (*c->size < '0' || *c->size > '9' || *end || errno))
		return cli_fail(EXIT_USAGE, "--size: \"%s\" is not a number of bytes", c->size);
	o = js_object();
	if (c->size)
		js_put_uint(o, "size_bytes", size);
	if (c->reread)
		js_put_bool(o, "reread_size", true);
	int status = put_limit(o, "limit", "rate_limit", c->limit);
	if (status) {
		js_free(o);
		return status;
	}
	status = cli_request(c, "PATCH", o, &v, "/v1/vms/%s/drives/%s", c->pos[0], c->pos[1]);
	return finish(c, status, v, NULL);
}

int cli_pmem_set(struct cli *c)
{
	js *v = NULL;
	if (!cli_name_ok(c->pos[0]) || !cli_name_ok(c->pos[1]))
		return EXIT_USAGE;
	if (!c->limit)
		return cli_fail(EXIT_USAGE, "pmem-set: give --limit");
	js *o = js_object();
	int status = put_limit(o, "limit", "rate_limit", c->limit);
	if (status) {
		js_free(o);
		return status;
	}
	status = cli_request(c, "PATCH", o, &v, "/v1/vms/%s/pmems/%s", c->pos[0], c->pos[1]);
	return finish(c, status, v, NULL);
}

int cli_metadata(struct cli *c)
{
	js *v = NULL;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (c->set && !(v = cli_json_file(c->set)))
		return EXIT_USAGE;
	if (c->set)
		return cli_request(c, "PUT", v, &v, "/v1/vms/%s/metadata", c->pos[0]);
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s/metadata", c->pos[0]);
	return status ? status : cli_print_json(v);
}

static bool put_number(js *o, const char *key, const char *text)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end)
		return false;
	js_put_uint(o, key, v);
	return true;
}

int cli_balloon(struct cli *c)
{
	js *o = js_object(), *v = NULL, *stats;
	bool ok = (!c->target || put_number(o, "target_mib", c->target)) &&
		  (!c->stats_interval || put_number(o, "stats_interval_s", c->stats_interval));
	if (!ok || !cli_name_ok(c->pos[0])) {
		js_free(o);
		return ok ? EXIT_USAGE : cli_fail(EXIT_USAGE, "balloon: that is not a number");
	}
	bool set = c->target || c->stats_interval;
	if ((set && c->hint) || (c->has_timeout && !c->hint)) {
		js_free(o);
		return cli_fail(EXIT_USAGE, "balloon: --hint and its --timeout go with no other option");
	}
	if (c->has_timeout)
		js_put_uint(o, "timeout_ms", c->timeout_s * 1000ull);
	if (!set && !c->hint)
		js_free(MV_TAKE(o));
	int status = cli_request(c,
				 c->hint ? "POST"
				 : set   ? "PATCH"
					 : "GET",
				 o, &v, "/v1/vms/%s/balloon%s", c->pos[0], c->hint ? "/hint" : "");
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	printf("target:    %" PRId64 " MiB\nactual:    %" PRId64 " MiB\nfreed:     %" PRId64
	       " MiB in all, %" PRId64 " by the last hints\ninterval:  %" PRId64 " s\n",
	       js_int(v, "target_mib", 0), js_int(v, "actual_mib", 0), js_int(v, "freed_mib", 0),
	       js_int(v, "hinted_mib", 0), js_int(v, "stats_interval_s", 0));
	stats = js_get(v, "stats");
	for (size_t i = 0; i < MSG_BALLOON_N_STATS; i++)
		if (js_get(stats, msg_balloon_stat_names[i]))
			printf("%-20s %" PRId64 "\n", msg_balloon_stat_names[i],
			       js_int(stats, msg_balloon_stat_names[i], 0));
	js_free(v);
	return EXIT_OK;
}

static int verb(struct cli *c, const char *what, js *body)
{
	js *v = NULL;
	if (!cli_name_ok(c->pos[0])) {
		js_free(body);
		return EXIT_USAGE;
	}
	int status = cli_request(c, "POST", body, &v, "/v1/vms/%s/%s", c->pos[0], what);
	return finish(c, status, v, NULL);
}

int cli_start(struct cli *c) { return verb(c, "start", NULL); }
int cli_pause(struct cli *c) { return verb(c, "pause", NULL); }
int cli_resume(struct cli *c) { return verb(c, "resume", NULL); }

int cli_stop(struct cli *c)
{
	js *o, *v = NULL;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	if (c->has_timeout && c->timeout_s > 600)
		return cli_fail(EXIT_USAGE, "--timeout: %lu is not within 0..600", c->timeout_s);
	o = js_object();
	if (c->mode)
		js_put_str(o, "mode", c->mode);
	js_put_uint(o, "wait_ms", (c->has_timeout ? c->timeout_s : 0) * 1000);
	int status = cli_request(c, "POST", o, &v, "/v1/vms/%s/stop", c->pos[0]);
	bool late = !status && c->has_timeout && strcmp(js_str(v, "state", ""), "exited") != 0;
	status = finish(c, status, v, NULL);
	if (late && !status)
		return cli_fail(EXIT_TIMED_OUT, "%s has not ended in time; --mode kill ends it", c->pos[0]);
	return status;
}

int cli_delete(struct cli *c)
{
	js *v = NULL;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	int status = cli_request(c, "DELETE", NULL, &v, "/v1/vms/%s", c->pos[0]);
	if (!status && !c->json)
		printf("%s deleted\n", c->pos[0]);
	js_free(v);
	return status;
}

int cli_ls(struct cli *c)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms");
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	js *list = js_get(v, "vms");
	if (c->quiet) {
		cli_print_names(list);
		js_free(v);
		return EXIT_OK;
	}
	printf("%-24s %-8s %5s %8s %8s  %-16s %s\n", "NAME", "STATE", "VCPUS", "MIB", "PID", "SNAPSHOT",
	       "EXIT");
	for (size_t i = 0; i < js_len(list); i++) {
		js *m = js_at(list, i);
		printf("%-24s %-8s %5" PRId64 " %8" PRId64 " ", js_str(m, "name", ""), js_str(m, "state", ""),
		       js_int(m, "config.vcpus", 0), js_int(m, "config.memory_mib", 0));
		if (js_get(m, "pid"))
			printf("%8" PRId64, js_int(m, "pid", 0));
		else
			printf("%8s", "-");
		printf("  %-16s %s\n", js_str(m, "from_snapshot", "-"), js_str(m, "exit.reason", "-"));
	}
	js_free(v);
	return EXIT_OK;
}

int cli_show(struct cli *c)
{
	js *v = NULL;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s", c->pos[0]);
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	print_vm(v);
	js_free(v);
	return EXIT_OK;
}

int cli_info(struct cli *c)
{
	js *v = NULL;
	int status = cli_request(c, "GET", NULL, &v, "/v1/info");
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	printf("thawd %s (API %s), pid %" PRId64 "\nvms: %" PRId64 " (created %" PRId64 ", running %" PRId64
	       ", paused %" PRId64 ", exited %" PRId64 ")\nsnapshots: %" PRId64 "\n",
	       js_str(v, "version", "?"), js_str(v, "api", "?"), js_int(v, "pid", 0),
	       js_int(v, "vms.total", 0), js_int(v, "vms.created", 0), js_int(v, "vms.running", 0),
	       js_int(v, "vms.paused", 0), js_int(v, "vms.exited", 0), js_int(v, "snapshots", 0));
	js_free(v);
	return EXIT_OK;
}
