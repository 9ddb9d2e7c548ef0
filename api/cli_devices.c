// SPDX-License-Identifier: Apache-2.0
// thaw devices: one block of lines per device, one line per queue, then the vCPUs' exits.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/cli.h"

static bool has(js *list, const char *word)
{
	for (size_t i = 0; i < js_len(list); i++)
		if (!strcmp(js_str(js_at(list, i), "", ""), word))
			return true;
	return false;
}

// The words of a list, but those of another one.
static void print_words(const char *label, js *list, js *but)
{
	printf("  %-10s", label);
	for (size_t i = 0; i < js_len(list); i++) {
		const char *word = js_str(js_at(list, i), "", "?");
		if (!but || !has(but, word))
			printf(" %s", word);
	}
	putchar('\n');
}

static void print_device(js *d)
{
	js *offered = js_get(d, "features.offered"), *acked = js_get(d, "features.acked"),
	   *queues = js_get(d, "queues");
	printf("%s (%s, slot %" PRId64 ")\n", js_str(d, "name", "?"), js_str(d, "type", "?"),
	       js_int(d, "slot", 0));
	print_words("status", js_get(d, "status"), NULL);
	print_words("in use", acked, NULL);
	print_words("not taken", offered, acked);
	printf("  %5s %9s %9s %9s %9s %9s %9s %9s %9s\n", "QUEUE", "SIZE", "KICKS", "BY EXIT", "CONTINUED",
	       "POPPED", "USED", "IRQS", "NO IRQ");
	for (size_t i = 0; i < js_len(queues); i++) {
		static const char *const columns[] = {
			"kicks_by_event", "kicks_by_exit",         "continued", "popped", "used",
			"interrupts",     "interrupts_suppressed", NULL
		};
		js *q = js_at(queues, i);
		printf("  %5" PRId64 " %4" PRId64 "/%-4" PRId64, js_int(q, "index", 0), js_int(q, "size", 0),
		       js_int(q, "max_size", 0));
		for (int k = 0; columns[k]; k++)
			printf(" %9" PRId64, js_int(q, columns[k], 0));
		putchar('\n');
	}
}

int cli_devices(struct cli *c)
{
	js *v = NULL;
	if (!cli_name_ok(c->pos[0]))
		return EXIT_USAGE;
	int status = cli_request(c, "GET", NULL, &v, "/v1/vms/%s/devices", c->pos[0]);
	if (status)
		return status;
	if (c->json)
		return cli_print_json(v);
	js *devices = js_get(v, "devices"), *vcpus = js_get(v, "vcpus");
	for (size_t i = 0; i < js_len(devices); i++)
		print_device(js_at(devices, i));
	for (size_t i = 0; i < js_len(vcpus); i++) {
		js *e = js_at(vcpus, i);
		printf("vcpu %" PRId64 ": exits to user space: mmio %" PRId64 ", io %" PRId64 ", hlt %" PRId64
		       ", other %" PRId64 "\n",
		       js_int(e, "index", 0), js_int(e, "exits.mmio", 0), js_int(e, "exits.io", 0),
		       js_int(e, "exits.hlt", 0), js_int(e, "exits.other", 0));
	}
	js_free(v);
	return EXIT_OK;
}
