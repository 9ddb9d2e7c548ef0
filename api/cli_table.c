// SPDX-License-Identifier: Apache-2.0
#include "api/cli_table.h"

#include <stdio.h>
#include <string.h>

#include "microvm/base/util.h"

// clang-format off
#define AT(field) offsetof(struct cli, field)
#define FLAG(o, name, field, what) [o] = { name, NULL, what, KIND_FLAG, AT(field), 0 }
#define TEXT(o, name, arg, field, what) [o] = { name, arg, what, KIND_TEXT, AT(field), 0 }
#define NUMBER(o, name, arg, field, has, what) [o] = { name, arg, what, KIND_NUMBER, AT(field), AT(has) }
#define LIST(o, name, arg, field, n, what) [o] = { name, arg, what, KIND_LIST, AT(field), AT(n) }
#define RATE "N[K|M|G|T][/s]"
#define FORWARDS "[,forward=[ADDRESS:]HOST_PORT:GUEST_PORT[/udp]]..."

const struct cli_option cli_options[N_OPTS] = {
	FLAG(O_JSON, "json", json, "print the daemon's answer as JSON"),
	[O_SOCKET] = { "socket", "SOCKET", "where thawd listens (default: $THAW_SOCKET, or thawd's default)",
		       KIND_PATH, AT(socket), 0 },
	FLAG(O_NO_PROGRESS, "no-progress", no_progress, "no line on the terminal about what takes long"),
	TEXT(O_IDEM_KEY, "idempotency-key", "KEY", idempotency_key,
	     "do it once: what repeats it with the same KEY gets the first one's answer"),
	[O_HELP] = { "help", NULL, "show what the command takes", KIND_OWN, 0, 0 },
	[O_VERSION] = { "version", NULL, "show the version", KIND_OWN, 0, 0 },
	// of VMs
	TEXT(O_KERNEL, "kernel", "FILE", kernel, "ELF vmlinux or bzImage"),
	TEXT(O_INITRD, "initrd", "FILE", initrd, "initial RAM file system"),
	TEXT(O_ROOTFS, "rootfs", "FILE", rootfs,
	     "disk image as the drive \"root\", the first one; what the guest writes is gone with the VM"),
	TEXT(O_CMDLINE, "cmdline", "TEXT", cmdline, "kernel command line"),
	NUMBER(O_VCPUS, "vcpus", "N", vcpus, has_vcpus, "1 to 32 (default 1)"),
	NUMBER(O_MEMORY, "memory", "MIB", memory, has_memory, "of the guest (default 128)"),
	TEXT(O_DISCOVERY, "discovery", "acpi|cmdline", discovery, "how the guest finds its devices"),
	TEXT(O_BOOT, "boot", "auto|pvh|linux64", boot, "how the kernel is entered"),
	LIST(O_DRIVE, "drive",
	     "id=ID,path=FILE[,serial=S][,ro|,layer=ephemeral|,layer=kept,layer_path=DIR]"
	     "[,bandwidth=" RATE "][,iops=N][,block_size=N][,cache=CACHE][,direct][,queues=N]",
	     drive, n_drives,
	     "a disk; of a clone id and what differs from the snapshot's"),
	LIST(O_NET, "net",
	     "id=ID,tap=TAP|,socket=PATH|,user[,loopback]" FORWARDS "[,mac=MAC][,mtu=N]"
	     "[,queues=N][,rx_bandwidth=" RATE "][,rx_iops=N][,tx_bandwidth=" RATE "][,tx_iops=N]",
	     net, n_nets,
	     "a network device; of a clone id and what differs from the snapshot's"),
	TEXT(O_VSOCK, "vsock", "cid=N[,path=SOCKET]", vsock, "sockets between host and guest"),
	LIST(O_PORT, "port", "id=NAME[,path=SOCKET][,tty]", port, n_ports, "a virtio console port"),
	LIST(O_PMEM, "pmem", "id=ID,path=FILE[,ro][,bandwidth=" RATE "][,iops=N]", pmem, n_pmems,
	     "a file as memory of the guest"),
	TEXT(O_BALLOON, "balloon",
	     "target_mib=N[,deflate_on_oom][,free_page_reporting][,free_page_hinting]"
	     "[,stats_interval_s=N]",
	     balloon,
	     "a device by which the guest gives memory back"),
	TEXT(O_CPU, "cpu", "template=host|x86-64-v2|x86-64-v3|armv8-a|armv8.2-a[,disable=FEATURE]...", cpu,
	     "which features of the CPU the guest sees"),
	TEXT(O_METADATA, "metadata", "FILE|-", metadata,
	     "a JSON document that the guest reads over vsock or by its metadata service"),
	TEXT(O_METADATA_SERVICE, "metadata-service", "version=v1|v2[,address=IPV4][,imds_compat][,net=ID]...",
	     metadata_service, "the document by HTTP, in these nets or in all; they need no tap for that"),
	TEXT(O_READY_WHEN, "ready-when", "console=TEXT|vsock_port=N", ready_when,
	     "what makes the guest ready"),
	TEXT(O_HUGE_PAGES, "huge-pages", "none|thp|2M|1G", huge_pages, "pages of the guest's memory"),
	FLAG(O_NO_RNG, "no-rng", no_rng, "no entropy device"),
	FLAG(O_TRACK_DIRTY, "track-dirty", track_dirty, "so that snapshots can be incremental"),
	FLAG(O_START, "start", start, "and start it"),
	TEXT(O_MODE, "mode", "power-button|ctrl-alt-del|kill", mode, "how (default power-button)"),
	NUMBER(O_TIMEOUT, "timeout", "SEC", timeout_s, has_timeout, "how long to wait for that, up to 600"),
	FLAG(O_READ, "read", read, "what was said so far"),
	FLAG(O_FOLLOW, "follow", follow, "and what comes"),
	TEXT(O_WRITE, "write", "TEXT", write, "one line of input"),
	FLAG(O_READY, "ready", ready, "until the guest is ready (--ready-when of create)"),
	TEXT(O_CONSOLE, "console", "TEXT", console, "until the guest has said TEXT"),
	TEXT(O_STATE, "state", "created|running|paused|exited", state, "until the VM is in that state"),
	TEXT(O_SET, "set", "FILE|-", set, "replace it by a JSON file"),
	TEXT(O_LINK, "link", "up|down", link, "the guest sees the cable plugged in or pulled out"),
	TEXT(O_RX_LIMIT, "rx-limit", "bandwidth=" RATE "[,iops=N]|none", rx_limit, "to the guest"),
	TEXT(O_TX_LIMIT, "tx-limit", "bandwidth=" RATE "[,iops=N]|none", tx_limit, "from the guest"),
	TEXT(O_SIZE, "size", "BYTES", size,
	     "of drive-set: enlarge it to this; of guest build: of the image, N[K|M|G|T]"),
	FLAG(O_REREAD, "reread", reread, "look at its file's size again"),
	FLAG(O_HINT, "hint", hint, "have the guest name what it has free, and give that back"),
	TEXT(O_TARGET, "target", "MIB", target, "another size of the balloon"),
	TEXT(O_STATS_INTERVAL, "stats-interval", "SEC", stats_interval,
	     "how often the guest is asked for statistics; 0: never"),
	// of snapshots and clones
	TEXT(O_FORMAT, "format", "raw|lz4|lz4-high", format, "of the memory file"),
	FLAG(O_INCREMENTAL, "incremental", incremental,
	     "only what changed since its last snapshot, or since it was cloned"),
	FLAG(O_TREE, "tree", tree, "as a tree of parents"),
	FLAG(O_QUIET, "quiet", quiet, "just the names"),
	FLAG(O_FORCE, "force", force, "with the snapshots that need it, and although clones of it run"),
	TEXT(O_NAME, "name", "NAME", name, "of what is made"),
	NUMBER(O_COUNT, "count", "N", count, has_count, "so many, called NAME-1 to NAME-N"),
	FLAG(O_PAUSED, "paused", paused, "leave them paused"),
	FLAG(O_RECORD, "record", record, "the first one notes the working set"),
	FLAG(O_NO_POPULATE, "no-populate", no_populate, "don't use the recorded working set"),
	TEXT(O_PAGE_HANDLER, "page-handler", "SOCKET", page_handler, "who loads the memory"),
	FLAG(O_NO_FILL, "no-fill", no_fill, "load the template only where clones touch it"),
	FLAG(O_WAIT, "wait", wait, "until all of it is there"),
	TEXT(O_POOL, "pool", "size=N[,idle_s=S]|max=N[,min=N][,idle_s=S]", pool, "keep clones to be claimed"),
	// of what shows things
	TEXT(O_SINCE, "since", "N", since, "from event N on"),
	TEXT(O_TYPES, "types", "TYPE[,TYPE]...", types, "only these, or all of a kind: vm, snapshot, ..."),
	FLAG(O_ONCE, "once", once, "one table and no more"),
	NUMBER(O_INTERVAL, "interval", "SEC", interval_s, has_interval, "1 to 3600 (default 2)"),
	TEXT(O_SORT, "sort", "cpu|memory|faults", sort, "by what (default cpu)"),
	// how long and how much
	NUMBER(O_TTL, "ttl", "SEC", ttl_s, has_ttl, "the VM ends after so long"),
	NUMBER(O_IDLE, "idle-timeout", "SEC", idle_s, has_idle, "it ends after so long without work"),
	NUMBER(O_PARK, "idle-park", "MS", park_ms, has_park, "it is parked after so long without running"),
	FLAG(O_AUTO_DELETE, "auto-delete", auto_delete, "it is forgotten when it has ended"),
	TEXT(O_LIMIT, "limit", "KEY=N[,KEY=N]...", limit,
	     "of a VM: memory_mib, cpu_percent, pids; of a drive or pmem device: bandwidth=" RATE
	     ", iops, or none"),
	// of guests
	TEXT(O_SUITE, "suite", "bookworm|trixie", suite, "the release of Debian (default trixie)"),
	TEXT(O_ARCH, "arch", "amd64", arch, "of the guest"),
	TEXT(O_DIR, "dir", "DIR", dir, "where to; it is made (default guest-SUITE here)"),
	TEXT(O_MIRROR, "mirror", "URL", mirror,
	     "of the Debian archive (default $THAW_MIRROR, or http://deb.debian.org/debian)"),
	TEXT(O_KEYRING, "keyring", "FILE", keyring,
	     "who may sign it (default that of debian-archive-keyring)"),
	TEXT(O_INIT, "init", "FILE", init, "a program that becomes the image's /sbin/init"),
};

#define OPTIONS(...) (const uint8_t[]){ __VA_ARGS__, O_END }
#define NONE (const uint8_t[]){ O_END }
#define DEVICES O_DRIVE, O_NET, O_VSOCK, O_PORT, O_PMEM
#define LIFETIME O_TTL, O_IDLE, O_PARK, O_LIMIT
#define MACHINE O_KERNEL, O_INITRD, O_CMDLINE, O_VCPUS, O_MEMORY, O_DISCOVERY, O_BOOT, DEVICES, \
	O_BALLOON, O_CPU, O_METADATA, O_METADATA_SERVICE, O_READY_WHEN, O_HUGE_PAGES, O_NO_RNG, O_TRACK_DIRTY
#define CLONES O_COUNT, O_NAME, O_PAUSED, DEVICES, O_METADATA, O_IDEM_KEY, O_NO_PROGRESS

const uint8_t cli_for_all[] = { O_JSON, O_SOCKET, O_HELP, O_VERSION, O_END };
const uint8_t cli_configurable[] = {
	O_SOCKET, O_NO_PROGRESS, O_KERNEL, O_INITRD, O_VCPUS, O_MEMORY, O_DISCOVERY, O_BOOT, O_CPU,
	O_HUGE_PAGES, O_FORMAT, O_INTERVAL, O_SORT, O_END
};

const struct cli_command cli_commands[] = {
	{ "run", "", "", OPTIONS(O_ROOTFS, O_NAME, MACHINE, LIFETIME), cli_run,
	  "boot a new VM with its console here; delete it when it has ended",
	  "Ctrl-] ends the VM. Without --cmdline the console is ttyS0, a panic ends the VM, and --rootfs "
	  "is the root file system. Without --name it is run- and some digits.", false, false },
	{ "create", "NAME", "", OPTIONS(MACHINE, O_START, LIFETIME, O_AUTO_DELETE, O_IDEM_KEY),
	  cli_create,
	  "load a kernel into a new VM", "", false, false },
	{ "start", "VM", "", NONE, cli_start, "start a created VM", "", false, false },
	{ "pause", "VM", "", NONE, cli_pause, "stop its vCPUs", "", false, false },
	{ "resume", "VM", "", NONE, cli_resume, "let them go on", "", false, false },
	{ "stop", "VM", "", OPTIONS(O_MODE, O_TIMEOUT), cli_stop, "ask the guest to end, or kill it",
	  "--timeout waits for the end.", false, false },
	{ "delete", "VM", "rm", NONE, cli_delete, "end a VM and forget it", "", false, false },
	{ "ls", "", "", OPTIONS(O_QUIET), cli_ls, "list VMs", "", false, false },
	{ "ps", "", "", NONE, cli_ps, "list VMs with their age and what they use of the host", "",
	  false, false },
	{ "top", "", "", OPTIONS(O_ONCE, O_INTERVAL, O_SORT), cli_top, "what VMs use, again and again",
	  "CPU and faults are those of the interval. With --json one object per interval.", false, false },
	{ "show", "VM", "", NONE, cli_show, "show a VM", "", false, false },
	{ "devices", "VM", "", NONE, cli_devices,
	  "its virtio devices: features, queues, kicks, interrupts", "",
	  false, false },
	{ "console", "VM", "", OPTIONS(O_READ, O_FOLLOW, O_WRITE), cli_console, "the serial console",
	  "Ctrl-] leaves.", false, false },
	{ "wait", "VM", "", OPTIONS(O_READY, O_CONSOLE, O_STATE, O_TIMEOUT), cli_wait,
	  "wait until it is ready, for output, or for a state", "30 s, or --timeout.", false, false },
	{ "metadata", "VM", "", OPTIONS(O_SET), cli_metadata,
	  "the document that the guest reads over vsock or by its metadata service", "",
	  false, false },
	{ "net-set", "VM NET", "", OPTIONS(O_LINK, O_RX_LIMIT, O_TX_LIMIT), cli_net_set,
	  "cut or restore the link of a network device; limit what passes it", "", false, false },
	{ "drive-set", "VM DRIVE", "", OPTIONS(O_SIZE, O_REREAD, O_LIMIT), cli_drive_set,
	  "enlarge a drive; limit what the guest may transfer", "", false, false },
	{ "pmem-set", "VM PMEM", "", OPTIONS(O_LIMIT), cli_pmem_set,
	  "limit the flushes of a pmem device", "", false, false },
	{ "balloon", "VM", "", OPTIONS(O_TARGET, O_STATS_INTERVAL, O_HINT, O_TIMEOUT), cli_balloon,
	  "its balloon and the guest's statistics, or another size of it; what the guest has free goes back",
	  "", false, false },
	{ "snapshot create", "VM NAME", "snapshot",
	  OPTIONS(O_FORMAT, O_INCREMENTAL, O_IDEM_KEY, O_NO_PROGRESS), cli_snapshot,
	  "take a snapshot; the VM goes on",
	  "The alias does not take a VM whose name is one of the words behind \"snapshot\".", false, false },
	{ "snapshot ls", "", "snapshots", OPTIONS(O_TREE, O_QUIET), cli_snapshots, "list snapshots", "",
	  false, false },
	{ "snapshot show", "SNAPSHOT", "snapshot-show", NONE, cli_snapshot_show, "show a snapshot", "",
	  false, false },
	{ "snapshot verify", "SNAPSHOT", "snapshot-verify", OPTIONS(O_NO_PROGRESS), cli_snapshot_verify,
	  "check all its bytes", "",
	  false, false },
	{ "snapshot rm", "SNAPSHOT", "snapshot-delete", OPTIONS(O_FORCE), cli_snapshot_delete,
	  "delete a snapshot", "", false, false },
	{ "snapshot flatten", "SNAPSHOT", "snapshot-flatten",
	  OPTIONS(O_FORMAT, O_NAME, O_IDEM_KEY, O_NO_PROGRESS), cli_snapshot_flatten,
	  "give it all of its memory, so that it needs no parent", "With --name in a new snapshot.",
	  false, false },
	{ "snapshot export", "SNAPSHOT FILE|-", "snapshot-export", OPTIONS(O_NO_PROGRESS),
	  cli_snapshot_export,
	  "write it as one stream to a new file or standard output", "", false, false },
	{ "snapshot import", "NAME FILE|-", "snapshot-import", OPTIONS(O_NO_PROGRESS), cli_snapshot_import,
	  "make a snapshot from such a stream", "", false, false },
	{ "prepare", "SNAPSHOT", "snapshot prepare,snapshot-prepare",
	  OPTIONS(O_NO_FILL, O_WAIT, O_POOL, O_NO_PROGRESS),
	  cli_snapshot_prepare, "make its template, and a pool of clones to claim", "", false, false },
	{ "clone", "SNAPSHOT", "",
	  OPTIONS(CLONES, O_PAGE_HANDLER, O_RECORD, O_NO_POPULATE, O_HUGE_PAGES, LIFETIME, O_AUTO_DELETE),
	  cli_clone, "start VMs from a snapshot",
	  "Without --count one, of just the name. {n} in a value becomes the clone's number, 1 to N.",
	  false, false },
	{ "fork", "VM", "", OPTIONS(CLONES, LIFETIME, O_AUTO_DELETE), cli_fork,
	  "start VMs from one that runs, as it is now", "Options are as of clone.",
	  false, false },
	{ "bench", "SNAPSHOT", "", OPTIONS(O_COUNT, O_POOL, O_NO_PROGRESS), cli_bench,
	  "clone it and end the clone, N times; how long each stage took",
	  "-n is --count, 20 by default. --pool makes a pool first and waits before each clone until it is "
	  "full; a snapshot that had another pool, or none, has that again.", false, false },
	{ "events", "", "", OPTIONS(O_FOLLOW, O_SINCE, O_TYPES), cli_events, "what happened, one line each",
	  "Without --follow those that are kept; with it what comes, and what is kept only with --since.",
	  false, false },
	{ "guest fetch", "", "", OPTIONS(O_SUITE, O_ARCH, O_DIR, O_MIRROR, O_KEYRING), cli_guest_fetch,
	  "make a kernel, an initrd and a small root file system from Debian's packages",
	  "All is checked against the archive's signatures, and none of it runs on this host. Needs no root "
	  "and no daemon. Prints the command that boots it.", true, false },
	{ "guest build", "DIR|FILE|- FILE", "", OPTIONS(O_SIZE, O_INIT), cli_guest_build,
	  "make a root file system image of a folder or a tar archive, e.g. an exported container",
	  "The second FILE is the image, which is new. Needs no root and no daemon.", true, false },
	{ "gc", "", "", NONE, cli_gc, "remove leftovers of crashes", "", false, false },
	{ "info", "", "", NONE, cli_info, "the daemon's version and counts", "", false, false },
	{ "doctor", "", "", NONE, cli_doctor, "can this host run VMs? Needs no daemon", "", true, false },
	{ "completion", "bash|zsh|fish", "", NONE, cli_completion,
	  "print the completion script of a shell", "",
	  true, false },
	{ "help", "", "", NONE, cli_help, "this; --json: every command and option", "", true, false },
	{ "__complete", NULL, "", NONE, cli_complete, "what may come next, for completion scripts", "",
	  true, true },
};
const size_t cli_n_commands = MV_ARRAY_LEN(cli_commands);

const struct cli_exit_status cli_exit_statuses[] = {
	{ "0", "done; of run: the guest powered off or asked for a reset, or Ctrl-] ended it" },
	{ "1", "the daemon says no, some clones failed, or a check of doctor or what guest does failed" },
	{ "2", "wrong usage" },
	{ "3", "no daemon can be reached" },
	{ "4", "time-out of wait, or of stop with --timeout" },
	{ "5", "of run: the guest ended in another way, which standard error tells" },
	{ "128+N", "of run and console: signal N ended it" },
};
const size_t cli_n_exit_statuses = MV_ARRAY_LEN(cli_exit_statuses);
_Static_assert(EXIT_OK == 0 && EXIT_DAEMON_ERROR == 1 && EXIT_USAGE == 2 && EXIT_UNREACHABLE == 3 &&
	       EXIT_TIMED_OUT == 4 && EXIT_GUEST == 5, "as told");
// clang-format on

// name is words[0..], joined by one space.
static int matches(const char *name, size_t len, const char *const *words, int n)
{
	const char *space = memchr(name, ' ', len);
	size_t first = space ? (size_t)(space - name) : len;
	int used = space ? 2 : 1;
	if (n < used || strlen(words[0]) != first || strncmp(words[0], name, first))
		return 0;
	if (space && (strlen(words[1]) != len - first - 1 || strncmp(words[1], space + 1, len - first - 1)))
		return 0;
	return used;
}

const struct cli_command *cli_find(const char *const *words, int n, int *ret_used)
{
	const struct cli_command *found = NULL;
	int best = 0;
	for (size_t i = 0; i < cli_n_commands; i++) {
		const struct cli_command *cmd = &cli_commands[i];
		int used = matches(cmd->name, strlen(cmd->name), words, n);
		for (const char *p = cmd->aliases; *p && !used; p += strcspn(p, ","), p += *p == ',')
			used = matches(p, strcspn(p, ","), words, n);
		if (used > best) {
			best = used;
			found = cmd;
		}
	}
	if (found)
		*ret_used = best;
	return found;
}

bool cli_has_option(const struct cli_command *cmd, int o)
{
	for (const uint8_t *p = cmd->options; *p != O_END; p++)
		if (*p == o)
			return true;
	for (const uint8_t *p = cli_for_all; *p != O_END; p++)
		if (*p == o)
			return true;
	return false;
}

int cli_n_args(const struct cli_command *cmd)
{
	int n = 0;
	if (!cmd->args)
		return CLI_ANY_ARGS;
	for (const char *p = cmd->args; *p; p += strcspn(p, " "), p += *p == ' ')
		n++;
	return n;
}
