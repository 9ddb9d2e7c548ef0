// SPDX-License-Identifier: Apache-2.0
// What the commands of `thaw` share: parsed arguments, the call to the daemon, output.
// A command returns the exit status.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>

#include "api/json.h"
#include "lib/thaw.h"

enum {
	EXIT_OK,
	EXIT_DAEMON_ERROR,
	EXIT_USAGE,
	EXIT_UNREACHABLE,
	EXIT_TIMED_OUT,
	EXIT_GUEST,        // of run: its guest ended badly
	EXIT_SIGNAL = 128, // and the signal's number
};

#define CLI_MAX_MULTI 8
#define CLI_POOL_KEYS "size min max idle_s"                        // of --pool
#define CLI_NET_RATES " rx_bandwidth rx_iops tx_bandwidth tx_iops" // keys of --net

struct cli {
	char socket[PATH_MAX]; // "": libthaw's default
	bool json, no_progress;
	struct thaw_client *client; // opened at the first call
	const char *const *pos;     // positional arguments, as many as the command has
	int n_pos;
	// options; NULL or 0: not given
	const char *kernel, *initrd, *rootfs, *cmdline, *discovery, *boot, *vsock, *cpu, *mode, *write,
		*console, *state, *name, *format, *page_handler, *metadata, *metadata_service, *set, *since,
		*types, *limit, *ready_when, *huge_pages, *idempotency_key, *suite, *arch, *dir, *mirror,
		*keyring, *init;
	const char *drive[CLI_MAX_MULTI], *net[CLI_MAX_MULTI], *port[CLI_MAX_MULTI], *pmem[CLI_MAX_MULTI];
	unsigned n_drives, n_nets, n_ports, n_pmems;
	const char *pool, *size, *link, *rx_limit, *tx_limit;
	const char *balloon, *target, *stats_interval, *sort; // strings: given or not
	unsigned long vcpus, memory, count, timeout_s, wait_s, ttl_s, idle_s, park_ms, interval_s;
	bool has_vcpus, has_memory, has_count, has_timeout, has_wait, has_ttl, has_idle, has_park,
		has_interval;
	bool no_rng, track_dirty, start, follow, read, paused, force, tree, no_fill, wait, auto_delete;
	bool reread, quiet, once;
	bool incremental, ready, record, no_populate, hint;
};

typedef int cli_fn(struct cli *c);
cli_fn cli_create, cli_start, cli_pause, cli_resume, cli_stop, cli_delete, cli_ls, cli_show, cli_info,
	cli_metadata, cli_balloon, cli_drive_set, cli_net_set, cli_pmem_set; // cli_vm.c
cli_fn cli_wait;                                                             // cli_wait.c
cli_fn cli_devices;                                                          // cli_devices.c
cli_fn cli_console;                                                          // cli_console.c
cli_fn cli_run;                                                              // cli_run.c
cli_fn cli_ps, cli_top;                                                      // cli_top.c
cli_fn cli_snapshot, cli_snapshots, cli_snapshot_show, cli_snapshot_verify, cli_snapshot_prepare,
	cli_snapshot_delete, cli_snapshot_flatten, cli_clone, cli_fork; // cli_snapshot.c
cli_fn cli_snapshot_export, cli_snapshot_import, cli_gc;                // cli_store.c
cli_fn cli_bench;                                                       // cli_bench.c
cli_fn cli_events;                                                      // cli_events.c
cli_fn cli_guest_fetch, cli_guest_build;                                // cli_guest.c
cli_fn cli_doctor;                                                      // doctor.c
cli_fn cli_help;                                                        // cli_help.c
cli_fn cli_complete, cli_completion;                                    // cli_complete.c

struct cli_command;
void cli_print_help(FILE *f);
void cli_print_command_help(const struct cli_command *cmd);

// Prints "thaw: ..." on standard error and returns status.
int cli_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// --- cli_call.c
int cli_open(struct cli *c); // the client; the calls below do it by themselves
// The exit status for what a function of libthaw returned; its error is printed.
int cli_result(struct cli *c, int r);
// The decoded answer, to be freed, or NULL when it is empty. r is freed.
int cli_take(struct thaw_reply *r, js **ret_v);
// A request. body is taken over (NULL: none). EXIT_OK: *ret_v as cli_take(). Otherwise the error has been
// printed.
int cli_request(struct cli *c, const char *method, js *body, js **ret_v, const char *path_fmt, ...)
	__attribute__((format(printf, 5, 6)));

// --- cli_progress.c: a line on the terminal during the next requests, unless --no-progress or --json. What
// is given lives until cli_progress_end().
struct cli_progress {
	bool moves_bytes, prepares; // what else is told
	const char *kind;           // of the operation (operation.h), which is asked for beside; NULL: none
	uint64_t total_bytes;       // 0: not known
	// its own
	const char *doing, *what, *socket;
	struct thaw_client *beside;
	uint64_t start_ns, next_ns;
	bool shown;
};
int cli_progress_begin(struct cli *c, struct cli_progress *p, const char *doing, const char *what);
void cli_progress_end(struct cli *c, struct cli_progress *p);

// The body of POST /v1/vms; NULL: a complaint was printed.
js *cli_create_body(struct cli *c, const char *name, bool start);
void cli_print_names(js *list); // of VMs or snapshots, a line each

// The terminal, or standard input and output, as the console of VM `name`: until the guest ends, Ctrl-] is
// typed at a terminal, a signal comes, or the input ends (ends_with_input). The caller has blocked the
// signals of cli_block_signals(). Other than EXIT_OK: a complaint was printed.
struct cli_attached {
	enum thaw_attach_end end; // stopped: by a signal
	int signal_number;
	uint64_t offset; // what was said behind it is not shown yet
};
void cli_block_signals(void);
int cli_attach(struct cli *c, const char *name, bool ends_with_input, struct cli_attached *ret_a);
// What was said from an offset on, and with follow what is said until the VM's end.
int cli_show_output(struct cli *c, const char *name, uint64_t offset, bool follow);

void cli_print_snapshot(js *v);
void cli_print_tree(js *list); // of snapshots
// Prints v as JSON and frees it.
int cli_print_json(js *v);
bool cli_name_ok(const char *name); // complains itself

// --ttl, --idle-timeout, --idle-park, --auto-delete, --limit into a request's object.
int cli_put_policy(struct cli *c, js *o);

// --drive, --net, --vsock: "key=value,flag,..." into a JSON object. Keys of `numbers` become
// integers, "ro" becomes read_only, a path is made absolute, {n} becomes n (when n > 0).
// Both lists are space-separated. NULL: a complaint was printed.
int cli_put_pairs(js *o, const char *option, const char *text, const char *keys, const char *numbers,
		  unsigned n); // into one that is there
js *cli_parse_pairs(const char *option, const char *text, const char *keys, const char *numbers, unsigned n);
// The JSON in a file, "-": standard input. NULL: a complaint was printed.
js *cli_json_file(const char *path);
// An absolute path in buf (made from the working directory), or NULL when too long.
const char *cli_absolute(const char *path, char buf[PATH_MAX]);
