// SPDX-License-Identifier: Apache-2.0
// Requests to the Firecracker-compatible front, in any order and state, without a VM process: whatever they
// say, a refusal has a sentence, and what was taken can be shown. An input is a row of requests: which route,
// how much of a good body is left as it is, and bytes that are laid over it.
//
// Handlers open and make files, so there are no slashes or escapes in bodies and each input runs in a folder
// of its own.
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/fc/routes.h"
#include "api/fc/run.h"
#include "microvm/base/util.h"

#define FILE_BYTES (2 << 20) // of "f": enough for a drive and a pmem device
#define MAX_BODY 2048

static struct fc fc;
static struct fc_args args = { .id = "fuzz", .mmds_size_limit = 2000, .max_payload_bytes = 51200 };
static char folder[] = "/tmp/thaw-fuzz-fc-XXXXXX";
static int at_home = -1;

// Good ones; "f" is a file that is there. Each may be sent to any route.
static const char *const bodies[] = {
	"{\"vcpu_count\":2,\"mem_size_mib\":64,\"smt\":true,\"track_dirty_pages\":true,\"huge_pages\":"
	"\"2M\"}",
	"{\"kernel_image_path\":\"f\",\"initrd_path\":\"f\",\"boot_args\":\"a=1 -- b\"}",
	"{\"drive_id\":\"a\",\"path_on_host\":\"f\",\"is_root_device\":true,\"layer\":\"Ephemeral\","
	"\"rate_limiter\":{\"ops\":{\"size\":1,\"refill_time\":2,\"one_time_burst\":3}}}",
	"{\"drive_id\":\"b\",\"path_on_host\":\"f\",\"is_root_device\":false,\"is_read_only\":true}",
	"{\"iface_id\":\"a\",\"host_dev_name\":\"no-such-tap\",\"guest_mac\":\"02:00:00:00:00:01\",\"mtu\":"
	"1500}",
	"{\"id\":\"a\",\"path_on_host\":\"f\",\"rate_limiter\":{\"bandwidth\":{\"size\":1,\"refill_time\":1}}"
	"}",
	"{\"guest_cid\":3,\"uds_path\":\"v\"}",
	"{\"rate_limiter\":{\"bandwidth\":{\"size\":1000,\"refill_time\":100}}}",
	"{\"serial_out_path\":\"s\"}",
	"{\"amount_mib\":1,\"deflate_on_oom\":true,\"stats_polling_interval_s\":1,\"free_page_hinting\":"
	"true}",
	"{\"network_interfaces\":[\"a\"],\"version\":\"V2\",\"ipv4_address\":\"169.254.1.1\"}",
	"{\"level\":\"Error\",\"show_level\":true,\"log_path\":\"l\"}",
	"{\"metrics_path\":\"m\"}",
	"{\"action_type\":\"InstanceStart\"}",
	"{\"action_type\":\"FlushMetrics\"}",
	"{\"state\":\"Paused\"}",
	"{\"snapshot_type\":\"Diff\",\"snapshot_path\":\"ss\",\"mem_file_path\":\"sm\"}",
	"{\"snapshot_path\":\"f\",\"mem_backend\":{\"backend_type\":\"File\",\"backend_path\":\"f\"},"
	"\"network_overrides\":[{\"iface_id\":\"a\",\"host_dev_name\":\"t\"}],\"drive_overrides\":[{\"drive_"
	"id\":\"a\"}]}",
	"{\"cpuid_modifiers\":[{\"leaf\":\"0x7\",\"subleaf\":\"0x0\",\"flags\":0,\"modifiers\":"
	"[{\"register\":\"ebx\",\"bitmap\":\"0b0xxx_x\"}]}]}",
	"{\"a\":{\"b\":[1,2.5,null,\"x\"]},\"c\":true}",
	"{\"boot-source\":{\"kernel_image_path\":\"f\"},\"drives\":[{\"drive_id\":\"a\",\"path_on_host\":"
	"\"f\","
	"\"is_root_device\":true}],\"machine-config\":{\"vcpu_count\":1,\"mem_size_mib\":8},\"pmem\":[]}",
	"",
};

static void empty_folder(void)
{
	DIR *d = opendir(".");
	for (struct dirent *e; d && (e = readdir(d));)
		if (strcmp(e->d_name, "f") != 0 && e->d_name[0] != '.' && remove(e->d_name))
			abort();
	if (d)
		closedir(d);
}

static void leave(void)
{
	if (chdir(folder))
		return;
	empty_folder();
	unlink("f");
	rmdir(folder);
}

// What crashes is written where it was said, though the folder is another one then.
static void make_absolute(int argc, char **argv)
{
	static const char option[] = "-artifact_prefix=";
	char here[PATH_MAX];
	for (int i = 1; i < argc; i++) {
		const char *value = argv[i] + sizeof option - 1;
		if (strncmp(argv[i], option, sizeof option - 1) || value[0] == '/' ||
		    !getcwd(here, sizeof here))
			continue;
		if (asprintf(&argv[i], "%s%s/%s", option, here, value) < 0)
			abort();
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	make_absolute(*argc, *argv);
	at_home = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (at_home < 0 || !mkdtemp(folder) || chdir(folder))
		abort();
	MV_FD fd = open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, FILE_BYTES) || setenv("TMPDIR", folder, 1) || fchdir(at_home))
		abort();
	signal(SIGPIPE, SIG_IGN);
	atexit(leave);
	return 0;
}

static void begin(unsigned state)
{
	memset(&fc, 0, sizeof fc);
	fc.args = &args;
	fc.machine = (struct fc_machine){ .vcpu_count = 1, .mem_size_mib = 128, .has_cpu_template = true };
	fc.vmm.pidfd = fc.vmm.socket = fc.counts.fd = -1;
	vm_fds_init(&fc.fds);
	fc_log_init(&fc.log, args.id);
	fc.log.level = FC_OFF;
	fc_serial_init(&fc.port, &fc);
	fc.state = state % 3;
	if (mv_loop_init(&fc.loop))
		abort();
}

static void end(void)
{
	fc_vmm_stop(&fc);
	fc_serial_fini(&fc.port);
	fc_metrics_fini(&fc);
	fc_log_fini(&fc.log);
	vm_fds_close(&fc.fds);
	js_free(fc.cpu_config);
	free(fc.mmds);
	mv_loop_fini(&fc.loop);
}

static void check(int result, const struct api_err *err, js *answer)
{
	if (result ? !err->msg[0] || err->code == API_OK || err->code >= API_N_CODES : err->code != API_OK)
		abort();
	MV_FREE char *text = answer ? js_text(answer, false) : NULL;
	if (answer && !text)
		abort();
}

static void request(const char *method, const char *path, const char *body, size_t len)
{
	struct api_err err = { 0 };
	js *answer = NULL;
	int r = fc_do(&fc, method, path, body, len, &answer, &err);
	check(r, &err, answer);
}

// A configuration that was taken bit by bit is one, or says what it lacks.
static void check_whole(void)
{
	static struct vmcfg cfg;
	struct api_err err = { 0 };
	int r = fc_make_config(&fc, &cfg, &err);
	if (!r)
		fc_take_config(&fc, &cfg);
	check(r, &err, NULL);
	request("GET", "/vm/config", NULL, 0);
}

static void config_file(const char *body, size_t len)
{
	struct api_err err = { 0 };
	FILE *f = fopen("c", "we");
	if (!f || fwrite(body, 1, len, f) != len || fclose(f))
		abort();
	check(fc_load_config_file(&fc, "c", &err), &err, NULL);
}

// One request of the input; how many bytes it took.
static size_t one(const uint8_t *data, size_t size)
{
	char body[MAX_BODY], path[64];
	const struct fc_route *r = fc_route_at(data[0]);
	size_t n = data[3] < size - 4 ? data[3] : size - 4;
	size_t len = strlen(strcpy(body, bodies[data[1] % MV_ARRAY_LEN(bodies)])), at = data[2];
	for (size_t i = 0; i < n; i++) { // over it, and behind its end
		char c = (char)data[4 + i];
		at = at < len ? at : len;
		body[at++] = c == '/' || c == '\\' ? '_' : c;
		len = at > len ? at : len;
	}
	if (!r) {
		config_file(body, len);
		return 4 + n;
	}
	const char *brace = strchr(r->path, '{');
	snprintf(path, sizeof path, "%.*s%s", brace ? (int)(brace - r->path) : (int)strlen(r->path), r->path,
		 brace ? data[2] & 1 ? "a" : "b" : "");
	request(r->method, path, body, len);
	return 4 + n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size || chdir(folder))
		return 0;
	begin(data[0]);
	for (size_t at = 1; at + 4 <= size;)
		at += one(data + at, size - at);
	check_whole();
	end();
	empty_folder();
	return fchdir(at_home) ? -1 : 0;
}
