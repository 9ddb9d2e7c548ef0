// SPDX-License-Identifier: Apache-2.0
// thawd: the host daemon. Options, the listening socket, signals, start and end; what
// it does in between is in routes.c and the ops_*.c files.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#include "api/adopt.h"
#include "api/conf.h"
#include "api/events.h"
#include "api/idem.h"
#include "api/layers.h"
#include "api/lazy.h"
#include "api/lifetime.h"
#include "api/listen.h"
#include "api/metrics.h"
#include "api/openapi.h"
#include "api/paths.h"
#include "api/pool.h"
#include "api/routes.h"
#include "api/service.h"
#include "api/spare.h"
#include "api/spawner.h"
#include "api/templates.h"
#include "api/vmrec.h"
#include "api/vms.h"
#include "microvm/base/log.h"
#include "microvm/base/util.h"

#define ORPHAN_S 600
#define HEAP_KEPT_BYTES (4 << 20)
#define CONFIG "/etc/thaw/thawd.conf"
#define TABLE_FDS 16384                          // 4 of a VM: 4,000 of them; 130 KiB
#define STOP_WAIT_NS (5ull * 1000 * 1000 * 1000) // for VM processes to go when we end

struct options {
	char socket[PATH_MAX], state_dir[PATH_MAX], vmm[PATH_MAX], pager[PATH_MAX];
	const char *kvm, *cgroup;
	bool no_userfaultfd, activated; // activated: the socket is the service manager's
	uint64_t pool_max_bytes;        // 0: the default
	unsigned spares;
	int32_t cpu_latency_us; // -1: not given
	uint32_t orphan_s, keep_s;
	enum mv_level level;
};

static const char help[] =
	"usage: thawd [options]\n"
	"The daemon of thaw: keeps snapshots, runs microVMs, serves REST on a Unix socket.\n\n"
	"  --socket PATH     where to listen (THAW_SOCKET; default /run/thaw/thaw.sock for root,\n"
	"                    else $XDG_RUNTIME_DIR/thaw.sock)\n"
	"  --state-dir DIR   snapshots and sockets of VMs (default /var/lib/thaw for root, else\n"
	"                    ~/.local/share/thaw)\n"
	"  --vmm PATH        the VM program (default: thaw-vmm beside thawd, else in PATH)\n"
	"  --kvm PATH        the KVM device (default /dev/kvm)\n"
	"  --pool-memory MIB  most that clones prepared in advance may take (default: a quarter of\n"
	"                    the host's memory)\n"
	"  --cpu-latency US  while clones wait in pools, keep the host's CPUs out of idle states that take "
	"longer\n"
	"                    to leave, 0: out of all (default: as the host has it; costs power, takes root)\n"
	"  --spares N        VM processes kept ready for whoever starts a VM, 0 to 64 (default 2)\n"
	"  --cgroup PATH     a cgroup v2 without processes of its own, for VMs with limits (default: the\n"
	"                    daemon's own where systemd has delegated it)\n"
	"  --no-userfaultfd  load compressed snapshots as a whole before the first clone runs\n"
	"  --orphan-timeout SEC  how long VMs go on without a daemon (default 600; 0: they end with it)\n"
	"  --idempotency-time SEC  how long the answer to a request with an Idempotency-Key is kept\n"
	"                    (default 3600; at most 86400)\n"
	"  --config FILE     lines \"key = value\" for what is not given here, with the names of these\n"
	"                    options (default for root: /etc/thaw/thawd.conf, if it is there)\n"
	"  --log-level L     error, warn, info or debug (default info); the log is standard error\n"
	"  --openapi         print the interface as an OpenAPI document, as GET /v1/openapi.json, and end\n"
	"  --version, --help\n\n"
	"SIGTERM or SIGINT ends it and all its VMs. SIGHUP ends it alone: its VMs go on, and the next\n"
	"daemon with this state directory takes them over, as after a crash.\n"
	"Started by systemd (LISTEN_FDS) it takes the one socket it is given, and it says READY=1 to\n"
	"NOTIFY_SOCKET. Exit status: 0 ended as asked, 1 an error, 2 wrong usage.\n";

enum {
	OPT_SOCKET = 256,
	OPT_STATE,
	OPT_VMM,
	OPT_KVM,
	OPT_POOL_MEMORY,
	OPT_SPARES,
	OPT_CPU_LATENCY,
	OPT_CGROUP,
	OPT_NO_UFFD,
	OPT_ORPHAN,
	OPT_IDEM,
	OPT_CONFIG,
	OPT_LEVEL,
	OPT_OPENAPI,
	OPT_VERSION,
	OPT_HELP,
};

static const struct option long_options[] = {
	{ "socket", required_argument, NULL, OPT_SOCKET },
	{ "state-dir", required_argument, NULL, OPT_STATE },
	{ "vmm", required_argument, NULL, OPT_VMM },
	{ "kvm", required_argument, NULL, OPT_KVM },
	{ "pool-memory", required_argument, NULL, OPT_POOL_MEMORY },
	{ "spares", required_argument, NULL, OPT_SPARES },
	{ "cpu-latency", required_argument, NULL, OPT_CPU_LATENCY },
	{ "cgroup", required_argument, NULL, OPT_CGROUP },
	{ "no-userfaultfd", no_argument, NULL, OPT_NO_UFFD },
	{ "orphan-timeout", required_argument, NULL, OPT_ORPHAN },
	{ "idempotency-time", required_argument, NULL, OPT_IDEM },
	{ "config", required_argument, NULL, OPT_CONFIG },
	{ "log-level", required_argument, NULL, OPT_LEVEL },
	{ "openapi", no_argument, NULL, OPT_OPENAPI },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "help", no_argument, NULL, OPT_HELP },
	{ 0 },
};

static bool parse_level(const char *s, enum mv_level *ret_level)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(names); i++)
		if (!strcmp(names[i], s)) {
			*ret_level = (enum mv_level)i;
			return true;
		}
	return false;
}

static bool parse_number(const char *s, uint64_t max, uint64_t *ret_n)
{
	char *end;
	unsigned long long n = strtoull(s, &end, 10);
	if (*s < '0' || *s > '9' || *end || n > max)
		return false;
	*ret_n = n;
	return true;
}

static bool parse_mib(const char *s, uint64_t *ret_bytes)
{
	uint64_t mib = 0;
	if (!parse_number(s, 1u << 30, &mib) || !mib)
		return false;
	*ret_bytes = mib << 20;
	return true;
}

static bool parse_spares(const char *s, unsigned *ret_n)
{
	uint64_t n = 0;
	if (!parse_number(s, MAX_SPARES, &n))
		return false;
	*ret_n = (unsigned)n;
	return true;
}

static bool parse_latency(const char *s, int32_t *ret_us)
{
	uint64_t us = 0;
	if (!parse_number(s, INT32_MAX, &us))
		return false;
	*ret_us = (int32_t)us;
	return true;
}

static bool parse_seconds(const char *s, uint32_t max, uint32_t *ret_s)
{
	uint64_t n = 0;
	if (!parse_number(s, max, &n))
		return false;
	*ret_s = (uint32_t)n;
	return true;
}

static bool set(char *dst, const char *src) { return !mv_strcpy(dst, PATH_MAX, src); }

static int print_openapi(void)
{
	MV_FREE char *text = openapi_text();
	return text && fputs(text, stdout) >= 0 && !fflush(stdout) ? 1 : 2;
}

// arg is kept.
static bool set_option(struct options *o, int option, const char *arg)
{
	switch (option) {
	case OPT_SOCKET: return set(o->socket, arg);
	case OPT_STATE: return set(o->state_dir, arg);
	case OPT_VMM: return set(o->vmm, arg);
	case OPT_KVM: o->kvm = arg; return true;
	case OPT_SPARES: return parse_spares(arg, &o->spares);
	case OPT_CPU_LATENCY: return parse_latency(arg, &o->cpu_latency_us);
	case OPT_POOL_MEMORY: return parse_mib(arg, &o->pool_max_bytes);
	case OPT_CGROUP: o->cgroup = arg; return true;
	case OPT_NO_UFFD: o->no_userfaultfd = true; return true;
	case OPT_ORPHAN: return parse_seconds(arg, MSG_MAX_ORPHAN_S, &o->orphan_s);
	case OPT_IDEM: return parse_seconds(arg, IDEM_MAX_KEEP_S, &o->keep_s);
	case OPT_LEVEL: return parse_level(arg, &o->level);
	default: return false;
	}
}

// For what comes before the command line, so that that goes first.
static const char *take_setting(void *arg, const char *key, const char *value)
{
	const struct option *k = long_options;
	while (k->name && strcmp(k->name, key))
		k++;
	if (!k->name || (!k->has_arg && k->val != OPT_NO_UFFD) || k->val == OPT_CONFIG)
		return "there is no such setting; thawd --help has their names";
	if (k->val == OPT_NO_UFFD && !strcmp(value, "false"))
		return NULL;
	if (k->val == OPT_NO_UFFD && strcmp(value, "true"))
		return "it takes true or false";
	if (k->val == OPT_SOCKET && getenv("THAW_SOCKET"))
		return NULL;
	return *value && set_option(arg, k->val, value) ? NULL : "that value won't do";
}

static bool read_config(int argc, char **argv, struct options *o, struct mv_err *err)
{
	const char *given = NULL;
	bool runs = true;
	opterr = 0; // what is wrong is told when all is parsed
	for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
		if (c == OPT_CONFIG)
			given = optarg;
		else if (c == OPT_HELP || c == OPT_VERSION || c == OPT_OPENAPI)
			runs = false;
	opterr = 1;
	optind = 0;
	if (!runs || (!given && geteuid() != 0))
		return true;
	int r = conf_read(given ? given : CONFIG, take_setting, o, err);
	return !r || (r == -ENOENT && !given);
}

// 0: go on; otherwise the exit status + 1.
static int parse_options(int argc, char **argv, struct options *o)
{
	struct mv_err err;
	bool ok = true;
	if (!read_config(argc, argv, o, &err)) {
		fprintf(stderr, "thawd: %s\n", err.msg);
		return 3;
	}
	for (int c; ok && (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
		switch (c) {
		case OPT_CONFIG: break;
		case OPT_OPENAPI: return print_openapi();
		case OPT_VERSION: puts("thawd " THAW_VERSION); return 1;
		case OPT_HELP: fputs(help, stdout); return 1;
		default: ok = set_option(o, c, optarg);
		}
	}
	if (ok && optind == argc)
		return 0;
	fputs("thawd: wrong usage; try thawd --help\n", stderr);
	return 3;
}

// --- start ------------------------------------------------------------------------------
static void stdio_is_open(void)
{
	int fd;
	do
		fd = open("/dev/null", O_RDWR); // not close-on-exec: it stands in for 0, 1 or 2
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

// And makes room for TABLE_FDS at once, while there is one thread: with several the kernel waits some 20 ms
// for all CPUs (synchronize_rcu() in expand_fdtable()) each time that the table doubles.
static void raise_fd_limit(void)
{
	struct rlimit r;
	if (!getrlimit(RLIMIT_NOFILE, &r)) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
	int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC,
		       TABLE_FDS - 1); // fails when so many are not allowed: fine
	if (fd >= 0)
		close(fd);
}

// Where unnamed vsock sockets go. It is ours alone (the store is locked), so what is in it and of no VM
// with a record is left over from a daemon that was killed.
static bool owned(const void *s, const char *name) { return vmrec_owns(s, name); }

static int open_vsock_dir(struct server *s, const char *state_dir, struct mv_err *err)
{
	int n = snprintf(s->vsock_dir, sizeof s->vsock_dir, "%s/vsock", state_dir);
	if (n < 0 || (size_t)n >= sizeof s->vsock_dir)
		return mv_fail(err, ENAMETOOLONG,
			       "--state-dir %s: longer than %zu bytes, too long for Unix sockets in it",
			       state_dir, sizeof s->vsock_dir - sizeof "/vsock");
	if (mkdir(s->vsock_dir, 0750) && errno != EEXIST)
		return mv_fail(err, errno, "%s: %s", s->vsock_dir, strerror(errno));
	paths_remove_sockets(s->vsock_dir, owned, s);
	return 0;
}

static void note_turn(uint64_t busy_ns, uint64_t held_ns)
{
	metrics_observe(M_LOOP_SECONDS, busy_ns);
	metrics_observe(M_LOOP_HELD, held_ns);
}

static int start(struct server *s, const struct options *o, int *ret_listen_fd, struct mv_err *err)
{
	int r = paths_make_dirs(o->state_dir, 0700, err);
	if (!r)
		r = store_open(&s->store, o->state_dir, err);
	if (!r && (s->store.cleaned.removed || s->store.cleaned.kept))
		mv_log(MV_INFO, "leftovers of unfinished work: %u removed, %llu bytes freed, %u stay",
		       s->store.cleaned.removed, (unsigned long long)s->store.cleaned.freed_bytes,
		       s->store.cleaned.kept);
	if (!r && ((r = vm_calls_init(s)) || (r = lifetime_init(s)) || (r = pools_init(s))))
		mv_fail(err, -r, "no timer: %s", strerror(-r));
	if (!r)
		r = events_new(s, err);
	if (!r)
		r = vmrecs_init(s, o->state_dir, err);
	if (!r)
		r = worker_init(&s->reaper, &s->loop, err);
	if (!r)
		r = worker_init(&s->remover, &s->loop, err);
	if (!r)
		adopt_begin(s);
	if (!r)
		r = open_vsock_dir(s, o->state_dir, err);
	if (!r)
		r = layers_init(s, o->state_dir, err);
	if (!r)
		r = cgroup_base_open(&s->cgroup, o->cgroup, true, err);
	if (!r && (r = adopt_wait(s)))
		mv_fail(err, -r, "event loop: %s", strerror(-r));
	if (!r && s->stopping)
		return 0;
	if (!r && s->cpu_latency_us >= 0) { // can it be had? Else it is told now, not with the first pool
		MV_FD tried = -1;
		if ((r = cpu_latency_hold(s->cpu_latency_us, &tried, err)))
			mv_wrap(err, "--cpu-latency");
	}
	if (!r && (r = spares_init(s, o->spares)))
		mv_fail(err, -r, "no timer: %s", strerror(-r));
	if (!r && (r = openapi_init()))
		mv_fail(err, -r, "no memory");
	if (!r)
		r = worker_init(&s->worker, &s->loop, err);
	if (!r)
		r = worker_init(&s->reader, &s->loop, err);
	if (!r)
		r = spawner_init(s, err);
	if (!r && !o->activated)
		r = listen_unix(o->socket, ret_listen_fd, err);
	if (r)
		return r;
	r = http_new(&s->loop, *ret_listen_fd, api_dispatch, s, NULL, &s->http, err);
	if (r) {
		if (!o->activated)
			unlink(o->socket);
		return r;
	}
	http_set_uploads(s->http, api_is_upload);
	http_set_answered(s->http, api_answered);
	s->loop.on_turn = note_turn;
	return 0;
}

// --- end ----------------------------------------------------------------------------------
struct signals {
	struct server *s;
	int fd;
	struct mv_watch watch;
	struct mv_timer timer;
};

static void kill_vm(void *arg, struct vm *vm)
{
	(void)arg;
	vm_kill(vm);
}

static void leave_vm(void *arg, struct vm *vm)
{
	(void)arg;
	vm_leave(vm);
}

static void on_stop_late(void *arg)
{
	mv_log(MV_ERROR, "some VM processes did not go in time");
	mv_loop_stop(&((struct signals *)arg)->s->loop);
}

static void on_signal(void *arg, uint32_t events)
{
	struct signals *g = arg;
	struct signalfd_siginfo si;
	(void)events;
	if (read(g->fd, &si, sizeof si) != sizeof si)
		return;
	if (si.ssi_signo == SIGCHLD) {
		vm_reap_strays(g->s);
		return;
	}
	if (g->s->stopping)
		return;
	bool leave = si.ssi_signo == SIGHUP;
	mv_log(MV_INFO, "ending on signal %u; %u VMs have a process%s", si.ssi_signo, g->s->n_live,
	       leave ? "; they go on if they can" : "");
	g->s->stopping = true;
	service_tell("STOPPING=1");
	if (g->s->http)
		http_quiesce(g->s->http);
	pools_stop(g->s);
	spares_stop(g->s);
	vmrecs_flush(g->s);
	vms_each(g->s, leave ? leave_vm : kill_vm, NULL);
	server_try_end(g->s);
	if (!mv_timer_init(&g->s->loop, &g->timer, on_stop_late, g))
		mv_timer_arm(&g->timer, STOP_WAIT_NS);
}

static int take_signals(struct server *s, struct signals *g)
{
	sigset_t set_;
	sigemptyset(&set_);
	sigaddset(&set_, SIGTERM);
	sigaddset(&set_, SIGINT);
	sigaddset(&set_, SIGHUP);
	sigaddset(&set_, SIGCHLD);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); // of VMs forked by VMs
	signal(SIGPIPE, SIG_IGN);
	if (sigprocmask(SIG_BLOCK, &set_, NULL))
		return -errno;
	g->s = s;
	g->fd = signalfd(-1, &set_, SFD_CLOEXEC | SFD_NONBLOCK);
	return g->fd < 0 ? -errno : mv_watch_add(&s->loop, &g->watch, g->fd, EPOLLIN, on_signal, g);
}

static void first_vm(void *arg, struct vm *vm)
{
	struct vm **first = arg;
	if (!*first)
		*first = vm;
}

static void stop(struct server *s, const struct options *o, struct signals *g, bool listening)
{
	events_end(s); // before the streams are cut off
	if (listening)
		http_abort_bodies(s->http); // so that exports and imports end
	for (unsigned i = 0; i < MAX_TRANSFERS; i++)
		worker_fini(&s->transfers[i]);
	worker_fini(&s->usage_worker);
	worker_fini(&s->reader);
	worker_fini(&s->worker); // jobs in progress end and answer
	spawner_fini(s);
	worker_fini(&s->reaper);
	worker_fini(&s->remover);
	mv_works_finish(&s->loop); // and what is answered in pieces
	if (listening) {
		http_free(s->http);
		if (!o->activated)
			unlink(o->socket);
	}
	idem_free(s);
	events_free(s);
	for (struct vm *vm = NULL;; vm = NULL) {
		vms_each(s, first_vm, &vm);
		if (!vm)
			break;
		vms_remove(vm);
	}
	pools_stop(s);
	spares_stop(s);
	lifetime_free(s);
	cgroup_base_close(&s->cgroup);
	lazy_fini(s);
	vm_forget_processes(s);
	templates_free(s);
	store_index_free(&s->index);
	mv_close(&s->layers_fd);
	vmrecs_fini(s);
	store_close(&s->store);
	mv_timer_fini(&s->call_timer);
	mv_timer_fini(&g->timer);
	mv_watch_del(&g->watch);
	mv_close(&g->fd);
	mv_loop_fini(&s->loop);
}

static int take_service(struct options *o, int *ret_listen_fd, struct mv_err *err)
{
	char path[PATH_MAX];
	int fd = -1, r = service_init(err);
	if (!r)
		r = service_socket(&fd, path, err);
	if (r || fd < 0)
		return r;
	if (o->socket[0] && strcmp(o->socket, path))
		return mv_fail(err, EINVAL,
			       "--socket %.100s, but the service manager's socket is %.100s; "
			       "give one of them",
			       o->socket, path);
	mv_strcpy(o->socket, sizeof o->socket, path);
	o->activated = true;
	*ret_listen_fd = fd;
	return 0;
}

int main(int argc, char **argv)
{
	static struct server s;
	static struct options o = { .kvm = "/dev/kvm",
				    .orphan_s = ORPHAN_S,
				    .keep_s = IDEM_KEEP_S,
				    .level = MV_INFO,
				    .spares = 2,
				    .cpu_latency_us = -1 };
	struct signals g = { .fd = -1 };
	struct mv_err err = { 0 };
	int listen_fd = -1;

	int r = parse_options(argc, argv, &o);
	if (r)
		return r - 1;
	stdio_is_open();
	// What one request frees the next one takes: a page that is touched for the first time costs more
	// than most requests do.
	mallopt(M_TRIM_THRESHOLD, HEAP_KEPT_BYTES);
	mallopt(M_MMAP_THRESHOLD, HEAP_KEPT_BYTES / 4);
	mallopt(M_TOP_PAD, HEAP_KEPT_BYTES / 4);
	mv_log_init("thawd", o.level);
	raise_fd_limit();
	if (take_service(&o, &listen_fd, &err) || paths_default_socket(o.socket, &err) ||
	    paths_default_state(o.state_dir, &err) || paths_default_vmm(o.vmm, &err)) {
		mv_log(MV_ERROR, "%s", err.msg);
		return 1;
	}
	s.vmm_path = o.vmm;
	paths_default_pager(o.pager);
	s.pager_path = o.pager;
	s.pager.pidfd = s.pager.socket = -1;
	lazy_init(&s, o.no_userfaultfd);
	s.kvm_path = o.kvm;
	s.pool_max_bytes = o.pool_max_bytes;
	s.orphan_s = o.orphan_s;
	s.idem.keep_s = o.keep_s;
	TAILQ_INIT(&s.idem.kept);
	s.store = (struct store)STORE_CLOSED;
	s.layers_fd = s.cgroup.fd = s.vms_fd = s.cpu_latency_fd = -1;
	s.warming = (struct vm_process){ .socket = -1, .pidfd = -1 };
	s.cpu_latency_us = o.cpu_latency_us;
	r = mv_loop_init(&s.loop);
	if (!r)
		r = take_signals(&s, &g); // before any thread: all inherit the mask
	if (r)
		mv_fail(&err, -r, "start: %s", strerror(-r));
	else
		r = start(&s, &o, &listen_fd, &err);
	if (r) {
		mv_log(MV_ERROR, "%s", err.msg);
	} else {
		mv_log(MV_INFO, "version %s listens on %s", THAW_VERSION, o.socket);
		service_tell("READY=1");
		r = mv_loop_run(&s.loop);
	}
	stop(&s, &o, &g, s.http != NULL);
	return r ? 1 : 0;
}
