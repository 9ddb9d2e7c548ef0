// SPDX-License-Identifier: Apache-2.0
// thaw-firecracker: one VM behind Firecracker's API. thaw-vmm executes it when it is called with options or
// by the name firecracker (microvm/main.c); it starts a thaw-vmm of its own, which is the VM and ends with
// it.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "api/fc/routes.h"
#include "api/fc/run.h"
#include "api/fc/snapfile.h"
#include "microvm/base/util.h"

#define BACKLOG 128

static struct fc fc; // large, and one of a kind

struct signals {
	int fd;
	struct mv_watch watch;
	sigset_t set;
};

// They end it, as they end Firecracker: when the terminal is as it was.
static void on_signal(void *arg, uint32_t events)
{
	struct signals *g = arg;
	struct signalfd_siginfo s;
	(void)events;
	if (read(g->fd, &s, sizeof s) != sizeof s)
		return;
	fc.signal = (int)s.ssi_signo;
	fc_vmm_hurry(&fc);
}

static int take_signals(struct signals *g)
{
	sigemptyset(&g->set);
	sigaddset(&g->set, SIGTERM);
	sigaddset(&g->set, SIGINT);
	sigaddset(&g->set, SIGHUP);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGTTOU, SIG_IGN); // in the background it may still set the terminal back
	if (sigprocmask(SIG_BLOCK, &g->set, NULL))
		return -errno;
	g->fd = signalfd(-1, &g->set, SFD_CLOEXEC | SFD_NONBLOCK);
	return g->fd < 0 ? -errno : mv_watch_add(&fc.loop, &g->watch, g->fd, EPOLLIN, on_signal, g);
}

// 0, 1 and 2 are there, so that no file gets their number.
static void stdio_is_open(void)
{
	while (open("/dev/null", O_RDWR) <= STDERR_FILENO)
		;
	close(STDERR_FILENO + 1);
}

// Beside this program, under its true name.
static int find_vmm(char *path, size_t size, struct mv_err *err)
{
	char self[PATH_MAX];
	static const char *const places[] = { "/thaw-vmm", "/../../bin/thaw-vmm" };
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0)
		return mv_fail(err, errno, "/proc/self/exe: %s", strerror(errno));
	self[n] = 0;
	*strrchr(self, '/') = 0;
	for (size_t i = 0; i < MV_ARRAY_LEN(places); i++)
		if (snprintf(path, size, "%s%s", self, places[i]) < (int)size && !access(path, X_OK))
			return 0;
	return mv_fail(err, ENOENT, "there is no thaw-vmm in %s", self);
}

// A path that is taken, by whatever, is an error; so a VM never takes another's place.
static int listen_on(const char *path, int *ret_fd, struct mv_err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (mv_strcpy(a.sun_path, sizeof a.sun_path, path))
		return mv_fail(err, ENAMETOOLONG,
			       "Failed to open the API socket at: %s. Check that it is not longer "
			       "than %zu bytes.",
			       path, sizeof a.sun_path - 1);
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return mv_fail(err, errno, "socket: %s", strerror(errno));
	if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, BACKLOG))
		return mv_fail(err, errno,
			       "Failed to open the API socket at: %s. Check that it is not already used. "
			       "(%s)",
			       path, strerror(errno));
	*ret_fd = MV_TAKE_FD(fd);
	return 0;
}

static uint64_t clock_us(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void note_startup(const struct fc_args *a)
{
	uint64_t now = clock_us(CLOCK_MONOTONIC), cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID);
	if (a->start_time_us && now > a->start_time_us)
		fc.counts.startup_us = now - a->start_time_us;
	if (cpu > a->start_time_cpu_us)
		fc.counts.startup_cpu_us = cpu - a->start_time_cpu_us + a->parent_cpu_time_us;
}

static int serve(const struct fc_args *a, struct mv_err *err)
{
	const struct http_limits limits = { .body_bytes = a->max_payload_bytes,
					    .connections = FC_MAX_CONNECTIONS,
					    .no_idle = true };
	int fd = -1, r = listen_on(a->api_sock, &fd, err);
	r = r ? r : http_new(&fc.loop, fd, fc_dispatch, &fc, &limits, &fc.http, err);
	if (r)
		return r;
	note_startup(a);
	fc_log(&fc, FC_INFO, "Listening on API socket (\"%s\").", a->api_sock);
	return 0;
}

// What the options say, in the words of the API.
static int configure(const struct fc_args *a, struct api_err *err)
{
	struct fc_logger g = { .show_level = a->show_level,
			       .show_log_origin = a->show_log_origin,
			       .has_log_path = a->log_path,
			       .has_level = a->level,
			       .has_show_level = a->show_level,
			       .has_show_log_origin = a->show_log_origin };
	struct fc_metrics m = { { 0 } };
	if ((a->log_path && mv_strcpy(g.log_path, sizeof g.log_path, a->log_path)) ||
	    (a->level && mv_strcpy(g.level, sizeof g.level, a->level)) ||
	    (a->metrics_path && mv_strcpy(m.metrics_path, sizeof m.metrics_path, a->metrics_path)))
		return api_fail(err, API_INVALID_VALUE, "--log-path, --level or --metrics-path is too long");
	int r = 0;
	if (a->log_path || a->level || a->show_level || a->show_log_origin)
		r = fc_put_logger(&fc, NULL, &g, NULL, err);
	if (!r && a->metrics_path)
		r = fc_put_metrics(&fc, NULL, &m, NULL, err);
	return r;
}

static int fail(int status, const char *text)
{
	fc_log(&fc, FC_ERROR, "%s", text);
	fprintf(stderr, "Error: %s\n", text);
	return status;
}

static int begin(const struct fc_args *a, struct signals *g)
{
	struct mv_err e = { 0 };
	struct api_err err = { 0 };
	int r = mv_loop_init(&fc.loop);
	r = r ? r : take_signals(g);
	if (r)
		return fail(FC_EXIT_ERROR, strerror(-r));
	if (configure(a, &err))
		return fail(FC_EXIT_ERROR, err.msg);
	fc_log(&fc, FC_INFO, "Running Firecracker-compatible thaw " THAW_VERSION " (API " FC_API_VERSION ")");
	if (find_vmm(fc.vmm.path, sizeof fc.vmm.path, &e) || fc_vmm_start(&fc, &e))
		return fail(FC_EXIT_ERROR, e.msg);
	if (a->metadata && fc_read_mmds_file(&fc, a->metadata, &err))
		return fail(FC_EXIT_BAD_CONFIG, err.msg);
	if (a->config_file && fc_load_config_file(&fc, a->config_file, &err))
		return fail(FC_EXIT_BAD_CONFIG, err.msg);
	if (!a->no_api && serve(a, &e))
		return fail(FC_EXIT_ERROR, e.msg);
	return FC_EXIT_OK;
}

static void end(void)
{
	struct api_err err;
	if (fc.http)
		http_free(fc.http); // the last answers leave
	if (fc_metrics_flush(&fc, &err))
		fc_log(&fc, FC_ERROR, "Failed to flush metrics: %s", err.msg);
	fc_vmm_stop(&fc);
	fc_serial_fini(&fc.port);
	if (fc.vsock_made[0])
		unlink(fc.vsock_made);
	if (fc.vmm.exited)
		fc_log(&fc, fc.exit_status ? FC_ERROR : FC_INFO, "The guest has ended: %s%s%s",
		       vm_exit_name(fc.vmm.exit_reason), fc.vmm.exit_detail[0] ? ": " : "",
		       fc.vmm.exit_detail);
	if (!fc.exit_status && !fc.signal)
		fc_log(&fc, FC_INFO, "Firecracker exiting successfully. exit_code=0");
	fc_metrics_fini(&fc);
	fc_log_fini(&fc.log);
}

static int describe(const char *path)
{
	char text[4096];
	struct mv_err err = { 0 };
	MV_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		mv_fail(&err, errno, "%s: %s", path, strerror(errno));
	if (fd < 0 || fc_snapfile_describe(fd, text, sizeof text, &err)) {
		fprintf(stderr, "Error: %s\n", err.msg);
		return FC_EXIT_ERROR;
	}
	fputs(text, stdout);
	return FC_EXIT_OK;
}

int main(int argc, char **argv)
{
	static struct fc_args a;
	struct signals g = { .fd = -1 };
	// Clients look whether the process they started is one of the name that they called, "firecracker".
	const char *slash = argc ? strrchr(argv[0], '/') : NULL;
	if (argc)
		prctl(PR_SET_NAME, slash ? slash + 1 : argv[0]);
	if (fc_args_parse(argc, argv, &a))
		return FC_EXIT_BAD_ARGUMENTS;
	if (a.help)
		fc_args_help();
	else if (a.version)
		puts("Firecracker v" FC_VERSION);
	else if (a.snapshot_version)
		puts(FC_SNAPFILE_VERSION);
	else if (a.table)
		fc_print_table();
	if (a.help || a.version || a.snapshot_version || a.table)
		return FC_EXIT_OK;
	if (a.describe_snapshot)
		return describe(a.describe_snapshot);
	stdio_is_open();
	mv_log_init("thaw-firecracker", MV_WARN);
	fc.args = &a;
	fc.machine = (struct fc_machine){ .vcpu_count = 1, .mem_size_mib = 128, .has_cpu_template = true };
	fc.vmm.pidfd = fc.vmm.socket = fc.counts.fd = -1;
	vm_fds_init(&fc.fds);
	fc_log_init(&fc.log, a.id);
	fc_serial_init(&fc.port, &fc);
	fc.exit_status = begin(&a, &g);
	if (fc.exit_status == FC_EXIT_OK && fc_work(&fc))
		fc.exit_status = FC_EXIT_ERROR;
	end();
	if (fc.signal) { // to be seen as what it was
		signal(fc.signal, SIG_DFL);
		raise(fc.signal);
		sigprocmask(SIG_UNBLOCK, &g.set, NULL);
	}
	return fc.exit_status;
}
