// SPDX-License-Identifier: Apache-2.0
// thaw: the command-line client of thawd. One table of commands, one of options.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli.h"
#include "api/paths.h"
#include "microvm/base/util.h"

// clang-format off
enum opt {
	O_JSON, O_SOCKET, O_HELP, O_VERSION, // for all
	O_KERNEL, O_INITRD, O_CMDLINE, O_VCPUS, O_MEMORY, O_DISCOVERY, O_BOOT, O_DRIVE, O_NET, O_VSOCK,
	O_NO_RNG, O_START, O_MODE, O_FOLLOW, O_READ, O_WRITE, O_CONSOLE, O_STATE, O_TIMEOUT, O_COUNT,
	O_NAME, O_PAUSED, O_CPU, O_FORCE, O_TREE, O_FORMAT, O_NO_FILL, O_WAIT, O_POOL, O_METADATA, O_SET,
	O_PAGE_HANDLER, O_TRACK_DIRTY, O_INCREMENTAL, O_SINCE, O_TYPES, O_TTL, O_IDLE, O_AUTO_DELETE,
	O_LIMIT, O_READY, O_READY_WHEN, O_RECORD, O_NO_POPULATE, O_LINK, O_RX_LIMIT, O_TX_LIMIT, O_SIZE,
	O_REREAD, O_BALLOON, O_TARGET, O_INTERVAL, O_PORT, O_PMEM, O_HUGE_PAGES, O_HINT,
	N_OPTS
};
#define BIT(o) (1ull << (o))
#define FOR_ALL (BIT(O_JSON) | BIT(O_SOCKET) | BIT(O_HELP) | BIT(O_VERSION))
#define POLICY (BIT(O_TTL) | BIT(O_IDLE) | BIT(O_AUTO_DELETE) | BIT(O_LIMIT))
#define DEVICES (BIT(O_DRIVE) | BIT(O_NET) | BIT(O_VSOCK) | BIT(O_PORT) | BIT(O_PMEM))

#define WITH(name_, opt_) { name_, required_argument, NULL, 256 + (opt_) }
#define BARE(name_, opt_) { name_, no_argument, NULL, 256 + (opt_) }
static const struct option long_options[] = {
	BARE("json", O_JSON), WITH("socket", O_SOCKET), BARE("help", O_HELP), BARE("version", O_VERSION),
	WITH("kernel", O_KERNEL), WITH("initrd", O_INITRD), WITH("cmdline", O_CMDLINE),
	WITH("vcpus", O_VCPUS), WITH("memory", O_MEMORY), WITH("discovery", O_DISCOVERY),
	WITH("boot", O_BOOT), WITH("drive", O_DRIVE), WITH("net", O_NET), WITH("vsock", O_VSOCK),
	BARE("no-rng", O_NO_RNG), BARE("track-dirty", O_TRACK_DIRTY), BARE("start", O_START),
	WITH("mode", O_MODE),
	BARE("follow", O_FOLLOW), BARE("read", O_READ), WITH("write", O_WRITE),
	WITH("console", O_CONSOLE), WITH("state", O_STATE), WITH("timeout", O_TIMEOUT),
	WITH("count", O_COUNT), WITH("name", O_NAME), BARE("paused", O_PAUSED), WITH("cpu", O_CPU),
	BARE("force", O_FORCE), BARE("tree", O_TREE), WITH("format", O_FORMAT),
	BARE("no-fill", O_NO_FILL), BARE("wait", O_WAIT), WITH("pool", O_POOL),
	WITH("metadata", O_METADATA), WITH("set", O_SET),
	WITH("page-handler", O_PAGE_HANDLER), BARE("incremental", O_INCREMENTAL), WITH("since", O_SINCE),
	WITH("types", O_TYPES), WITH("ttl", O_TTL), WITH("idle-timeout", O_IDLE),
	BARE("auto-delete", O_AUTO_DELETE), WITH("limit", O_LIMIT), BARE("ready", O_READY),
	WITH("ready-when", O_READY_WHEN), BARE("record", O_RECORD), BARE("no-populate", O_NO_POPULATE),
	WITH("link", O_LINK), WITH("rx-limit", O_RX_LIMIT), WITH("tx-limit", O_TX_LIMIT),
	WITH("size", O_SIZE), BARE("reread", O_REREAD),
	WITH("balloon", O_BALLOON), WITH("target", O_TARGET), WITH("stats-interval", O_INTERVAL),
	WITH("port", O_PORT), WITH("pmem", O_PMEM), WITH("huge-pages", O_HUGE_PAGES),
	BARE("hint", O_HINT), { 0 },
};

// clang-format on

#define POLICY_USAGE                                                                                         \
	"         [--ttl SEC] [--idle-timeout SEC] [--auto-delete]\n"                                        \
	"         [--limit memory_mib=N[,cpu_percent=N][,pids=N]]"

static const struct command {
	const char *name;
	int n_args;
	uint64_t options;
	cli_fn *fn;
	const char *usage, *what;
} commands[] = {
	{ "create", 1,
	  BIT(O_KERNEL) | BIT(O_INITRD) | BIT(O_CMDLINE) | BIT(O_VCPUS) | BIT(O_MEMORY) | BIT(O_DISCOVERY) |
		  BIT(O_BOOT) | DEVICES | BIT(O_NO_RNG) | BIT(O_TRACK_DIRTY) | BIT(O_START) | BIT(O_CPU) |
		  BIT(O_METADATA) | BIT(O_READY_WHEN) | BIT(O_BALLOON) | BIT(O_HUGE_PAGES) | POLICY,
	  cli_create,
	  "NAME --kernel FILE [--initrd FILE] [--cmdline TEXT] [--vcpus N] [--memory MIB]\n"
	  "         [--discovery acpi|cmdline] [--boot auto|pvh|linux64] [--no-rng] [--start]\n"
	  "         [--track-dirty] [--huge-pages none|thp|2M|1G]\n"
	  "         [--drive id=ID,path=FILE[,serial=S][,ro|,layer=LAYER[,layer_path=DIR]]\n"
	  "           "
	  "[,bandwidth=N[K|M|G|T][/s]][,iops=N][,block_size=N][,cache=CACHE][,direct][,queues=N]]...\n"
	  "         [--net id=ID,tap=TAP|,socket=PATH|,user[,loopback][,forward=FORWARD]...[,mac=MAC]\n"
	  "           [,mtu=N][,queues=N][,rx_bandwidth=N[K|M|G|T][/s]][,rx_iops=N][,tx_bandwidth=...]]...\n"
	  "         [--vsock cid=N[,path=SOCKET]] (FORWARD: [ADDRESS:]HOST_PORT:GUEST_PORT[/udp])\n"
	  "         [--cpu template=host|x86-64-v2|x86-64-v3[,disable=FEATURE]...] [--metadata "
	  "FILE]\n"
	  "         [--ready-when console=TEXT|vsock_port=N]\n"
	  "         [--port id=NAME[,path=SOCKET][,tty]]... [--pmem id=ID,path=FILE[,ro]]...\n"
	  "         [--balloon "
	  "target_mib=N[,deflate_on_oom][,free_page_reporting][,free_page_hinting]\n"
	  "           [,stats_interval_s=N]]\n" POLICY_USAGE,
	  "load a kernel into a new VM" },
	{ "start", 1, 0, cli_start, "NAME", "start a created VM" },
	{ "pause", 1, 0, cli_pause, "NAME", "stop its vCPUs" },
	{ "resume", 1, 0, cli_resume, "NAME", "let them go on" },
	{ "stop", 1, BIT(O_MODE) | BIT(O_TIMEOUT), cli_stop,
	  "NAME [--mode power-button|ctrl-alt-del|kill] [--timeout SEC]",
	  "ask the guest to end, or kill it; --timeout waits for the end" },
	{ "delete", 1, 0, cli_delete, "NAME", "end a VM and forget it" },
	{ "ls", 0, 0, cli_ls, "", "list VMs" },
	{ "show", 1, 0, cli_show, "NAME", "show a VM" },
	{ "devices", 1, 0, cli_devices, "NAME", "its virtio devices: features, queues, kicks, interrupts" },
	{ "console", 1, BIT(O_FOLLOW) | BIT(O_READ) | BIT(O_WRITE), cli_console,
	  "NAME [--read | --follow | --write TEXT]", "serial console; Ctrl-] leaves" },
	{ "wait", 1, BIT(O_CONSOLE) | BIT(O_STATE) | BIT(O_READY) | BIT(O_TIMEOUT), cli_wait,
	  "NAME --ready | --console TEXT | --state STATE [--timeout SEC]",
	  "wait until it is ready, for output, or for a state (30 s, or --timeout)" },
	{ "metadata", 1, BIT(O_SET), cli_metadata, "NAME [--set FILE|-]",
	  "the document that the guest reads over vsock: show or replace it" },
	{ "net-set", 2, BIT(O_LINK) | BIT(O_RX_LIMIT) | BIT(O_TX_LIMIT), cli_net_set,
	  "VM NET [--link up|down] [--rx-limit bandwidth=N[K|M|G|T][/s][,iops=N]|none] [--tx-limit ...]",
	  "cut or restore the link of a network device; how much may pass it, to and from the guest" },
	{ "drive-set", 2, BIT(O_SIZE) | BIT(O_REREAD) | BIT(O_LIMIT), cli_drive_set,
	  "VM DRIVE [--size BYTES | --reread] [--limit bandwidth=N[K|M|G|T][/s][,iops=N]|none]",
	  "enlarge a drive, or look at its file's size again; how much the guest may transfer" },
	{ "balloon", 1, BIT(O_TARGET) | BIT(O_INTERVAL) | BIT(O_HINT) | BIT(O_TIMEOUT), cli_balloon,
	  "NAME [--target MIB] [--stats-interval SEC] | NAME --hint [--timeout SEC]",
	  "its balloon and the guest's statistics, or another size of it; what the guest has free goes "
	  "back" },
	{ "snapshot", 2, BIT(O_FORMAT) | BIT(O_INCREMENTAL), cli_snapshot,
	  "VM NAME [--format raw|lz4|lz4-high] [--incremental]\n"
	  "         --incremental: only what changed since its last snapshot, or since it was cloned",
	  "take a snapshot; the VM goes on" },
	{ "snapshots", 0, BIT(O_TREE), cli_snapshots, "[--tree]", "list snapshots" },
	{ "snapshot-show", 1, 0, cli_snapshot_show, "NAME", "show a snapshot" },
	{ "snapshot-verify", 1, 0, cli_snapshot_verify, "NAME", "check all its bytes" },
	{ "snapshot-delete", 1, BIT(O_FORCE), cli_snapshot_delete,
	  "NAME [--force]\n"
	  "         --force: with the snapshots that need it, and although clones of it run",
	  "delete a snapshot" },
	{ "snapshot-flatten", 1, BIT(O_FORMAT) | BIT(O_NAME), cli_snapshot_flatten,
	  "NAME [--format raw|lz4|lz4-high] [--name NEW]",
	  "give it all of its memory, so that it needs no parent" },
	{ "snapshot-export", 2, 0, cli_snapshot_export, "NAME FILE|-", "write it to a file as one stream" },
	{ "snapshot-import", 2, 0, cli_snapshot_import, "NAME FILE|-", "make a snapshot from such a file" },
	{ "snapshot-prepare", 1, BIT(O_NO_FILL) | BIT(O_WAIT) | BIT(O_POOL), cli_snapshot_prepare,
	  "NAME [--no-fill] [--wait] [--pool size=N[,idle_s=S] | --pool max=N[,min=N][,idle_s=S]]",
	  "make its template, and a pool of clones to claim; --wait until all is there" },
	{ "clone", 1,
	  DEVICES | BIT(O_COUNT) | BIT(O_NAME) | BIT(O_PAUSED) | BIT(O_METADATA) | BIT(O_PAGE_HANDLER) |
		  BIT(O_RECORD) | BIT(O_NO_POPULATE) | BIT(O_HUGE_PAGES) | POLICY,
	  cli_clone,
	  "SNAPSHOT [--count N] [--name NAME] [--paused] [--record | --no-populate] [--drive "
	  "id=ID[,path=FILE][,ro|,layer=LAYER[,layer_path=DIR]]]...\n"
	  "         [--net id=ID[,tap=TAP|,socket=PATH|,user[,loopback][,forward=FORWARD]...][,mac=MAC]]...\n"
	  "         [--port id=NAME,path=SOCKET]... [--pmem id=ID,path=FILE]...\n"
	  "         [--vsock path=SOCKET[,cid=N]] [--metadata FILE] "
	  "[--page-handler SOCKET]\n"
	  "         [--huge-pages none|thp|2M|1G]\n" POLICY_USAGE "\n"
	  "         {n} in a value becomes the clone's number, 1 to N",
	  "start VMs from a snapshot" },
	{ "fork", 1, DEVICES | BIT(O_COUNT) | BIT(O_NAME) | BIT(O_PAUSED) | BIT(O_METADATA) | POLICY,
	  cli_fork,
	  "VM [--count N] [--name NAME] [--paused] [--drive ...]... [--net ...]... [--vsock ...]\n"
	  "         options as of clone",
	  "start VMs from one that runs, as it is now" },
	{ "events", 0, BIT(O_FOLLOW) | BIT(O_SINCE) | BIT(O_TYPES), cli_events,
	  "[--follow] [--since N] [--types vm,snapshot.created,...]\n"
	  "         without --follow: those that are kept, from event N on",
	  "what happened to VMs and snapshots" },
	{ "gc", 0, 0, cli_gc, "", "remove leftovers of crashes" },
	{ "info", 0, 0, cli_info, "", "the daemon's version and counts" },
	{ "doctor", 0, 0, cli_doctor, "", "can this host run VMs? Needs no daemon" },
};

static void print_help(FILE *f)
{
	fputs("usage: thaw COMMAND [ARGUMENTS] [--json] [--socket PATH]\n\n", f);
	for (size_t i = 0; i < MV_ARRAY_LEN(commands); i++)
		fprintf(f, "  %-16s %s\n", commands[i].name, commands[i].what);
	fputs("\nthaw COMMAND --help shows its arguments. --json prints the daemon's answer as it is.\n"
	      "The socket is --socket, THAW_SOCKET, or thawd's default.\n"
	      "Exit status: 0 done, 1 the daemon says no, 2 wrong usage, 3 no daemon, 4 time-out.\n",
	      f);
}

static bool number(const char *s, unsigned long *v, bool *has)
{
	char *end;
	*v = strtoul(s, &end, 10);
	*has = true;
	return *s >= '0' && *s <= '9' && !*end && *v <= UINT32_MAX;
}

static bool add(const char **list, unsigned *n, const char *s)
{
	if (*n >= CLI_MAX_MULTI)
		return false;
	list[(*n)++] = s;
	return true;
}

static bool take(struct cli *c, enum opt o, const char *arg)
{
	switch (o) {
	case O_JSON: return c->json = true;
	case O_SOCKET: return !mv_strcpy(c->socket, sizeof c->socket, arg);
	case O_KERNEL: c->kernel = arg; return true;
	case O_INITRD: c->initrd = arg; return true;
	case O_CMDLINE: c->cmdline = arg; return true;
	case O_VCPUS: return number(arg, &c->vcpus, &c->has_vcpus);
	case O_MEMORY: return number(arg, &c->memory, &c->has_memory);
	case O_DISCOVERY: c->discovery = arg; return true;
	case O_BOOT: c->boot = arg; return true;
	case O_DRIVE: return add(c->drive, &c->n_drives, arg);
	case O_NET: return add(c->net, &c->n_nets, arg);
	case O_VSOCK: c->vsock = arg; return true;
	case O_CPU: c->cpu = arg; return true;
	case O_NO_RNG: return c->no_rng = true;
	case O_TRACK_DIRTY: return c->track_dirty = true;
	case O_START: return c->start = true;
	case O_MODE: c->mode = arg; return true;
	case O_FOLLOW: return c->follow = true;
	case O_READ: return c->read = true;
	case O_WRITE: c->write = arg; return true;
	case O_CONSOLE: c->console = arg; return true;
	case O_STATE: c->state = arg; return true;
	case O_TIMEOUT: return number(arg, &c->timeout_s, &c->has_timeout);
	case O_COUNT: return number(arg, &c->count, &c->has_count);
	case O_NAME: c->name = arg; return true;
	case O_PAUSED: return c->paused = true;
	case O_FORCE: return c->force = true;
	case O_TREE: return c->tree = true;
	case O_FORMAT: c->format = arg; return true;
	case O_NO_FILL: return c->no_fill = true;
	case O_PAGE_HANDLER: c->page_handler = arg; return true;
	case O_HUGE_PAGES: c->huge_pages = arg; return true;
	case O_WAIT: return c->wait = true;
	case O_POOL: c->pool = arg; return true;
	case O_SINCE: c->since = arg; return true;
	case O_TYPES: c->types = arg; return true;
	case O_TTL: return number(arg, &c->ttl_s, &c->has_ttl);
	case O_IDLE: return number(arg, &c->idle_s, &c->has_idle);
	case O_AUTO_DELETE: return c->auto_delete = true;
	case O_LIMIT: c->limit = arg; return true;
	case O_READY: return c->ready = true;
	case O_PORT: return add(c->port, &c->n_ports, arg);
	case O_PMEM: return add(c->pmem, &c->n_pmems, arg);
	case O_BALLOON: c->balloon = arg; return true;
	case O_HINT: return c->hint = true;
	case O_TARGET: c->target = arg; return true;
	case O_INTERVAL: c->interval = arg; return true;
	case O_READY_WHEN: c->ready_when = arg; return true;
	case O_RECORD: return c->record = true;
	case O_NO_POPULATE: return c->no_populate = true;
	case O_LINK: c->link = arg; return true;
	case O_RX_LIMIT: c->rx_limit = arg; return true;
	case O_TX_LIMIT: c->tx_limit = arg; return true;
	case O_SIZE: c->size = arg; return true;
	case O_REREAD: return c->reread = true;
	case O_INCREMENTAL: return c->incremental = true;
	case O_METADATA: c->metadata = arg; return true;
	case O_SET: c->set = arg; return true;
	default: return false;
	}
}

static const struct command *find(const char *name)
{
	for (size_t i = 0; i < MV_ARRAY_LEN(commands); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

// EXIT_OK, or the exit status with a complaint printed; -1: help was printed.
static int parse(struct cli *c, int argc, char **argv, const struct command **ret_cmd)
{
	uint64_t given = 0;
	int n = 0;
	bool help = false;
	for (int k; (k = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
		enum opt o = (enum opt)(k - 256);
		if (k < 256)
			return EXIT_USAGE; // getopt has complained
		given |= BIT(o);
		if (o == O_HELP) {
			help = true;
		} else if (o == O_VERSION) {
			puts("thaw " THAW_VERSION);
			return -1;
		} else if (!take(c, o, optarg)) {
			return cli_fail(EXIT_USAGE, "--%s: \"%s\" won't do", long_options[o].name, optarg);
		}
	}
	const struct command *cmd = optind < argc ? find(argv[optind]) : NULL;
	if (!cmd && help) {
		print_help(stdout);
		return -1;
	}
	if (!cmd) {
		if (optind < argc)
			cli_fail(EXIT_USAGE, "there is no command \"%s\"", argv[optind]);
		print_help(stderr);
		return EXIT_USAGE;
	}
	if (help) {
		printf("usage: thaw %s %s\n%s.\n", cmd->name, cmd->usage, cmd->what);
		return -1;
	}
	for (int o = 0; o < N_OPTS; o++)
		if (given & BIT(o) & ~(FOR_ALL | cmd->options))
			return cli_fail(EXIT_USAGE, "%s has no option --%s; see thaw %s --help", cmd->name,
					long_options[o].name, cmd->name);
	for (int i = optind + 1; i < argc; i++, n++)
		if (n < cmd->n_args)
			c->pos[n] = argv[i];
	if (n != cmd->n_args)
		return cli_fail(EXIT_USAGE, "usage: thaw %s %s", cmd->name, cmd->usage);
	*ret_cmd = cmd;
	return EXIT_OK;
}

int main(int argc, char **argv)
{
	static struct cli c;
	const struct command *cmd = NULL;
	struct mv_err err;
	int status = parse(&c, argc, argv, &cmd);
	if (status)
		return status < 0 ? EXIT_OK : status;
	if (cmd->fn != cli_doctor && paths_default_socket(c.socket, &err))
		return cli_fail(EXIT_UNREACHABLE, "%s", err.msg);
	status = cmd->fn(&c);
	client_free(c.client);
	return fflush(stdout) ? EXIT_DAEMON_ERROR : status;
}
