// SPDX-License-Identifier: Apache-2.0
// What the commands of `thaw` share: parsed arguments, the call to the daemon, output.
// A command returns the exit status.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>

#include "api/client.h"
#include "api/json.h"

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
#define CLI_NET_RATES " rx_bandwidth rx_iops tx_bandwidth tx_iops" // keys of --net

struct cli {
	char socket[PATH_MAX];
	bool json;
	struct client *client;  // opened at the first call
	const char *const *pos; // positional arguments, as many as the command has
	int n_pos;
	// options; NULL or 0: not given
	const char *kernel, *initrd, *rootfs, *cmdline, *discovery, *boot, *vsock, *cpu, *mode, *write,
		*console, *state, *name, *format, *page_handler, *metadata, *metadata_service, *set, *since,
		*types, *limit, *ready_when, *huge_pages;
	const char *drive[CLI_MAX_MULTI], *net[CLI_MAX_MULTI], *port[CLI_MAX_MULTI], *pmem[CLI_MAX_MULTI];
	unsigned n_drives, n_nets, n_ports, n_pmems;
	const char *pool, *size, *link, *rx_limit, *tx_limit;
	const char *balloon, *target, *stats_interval, *sort; // strings: given or not
	unsigned long vcpus, memory, count, timeout_s, wait_s, ttl_s, idle_s, interval_s;
	bool has_vcpus, has_memory, has_count, has_timeout, has_wait, has_ttl, has_idle, has_interval;
	bool no_rng, track_dirty, start, follow, read, paused, force, tree, no_fill, wait, auto_delete;
	bool reread, quiet, once;
	bool incremental, ready, record, no_populate, hint;
};

typedef int cli_fn(struct cli *c);
cli_fn cli_create, cli_start, cli_pause, cli_resume, cli_stop, cli_delete, cli_ls, cli_show, cli_info,
	cli_metadata, cli_balloon, cli_drive_set, cli_net_set; // cli_vm.c
cli_fn cli_wait;                                               // cli_wait.c
cli_fn cli_devices;                                            // cli_devices.c
cli_fn cli_console;                                            // cli_console.c
cli_fn cli_run;                                                // cli_run.c
cli_fn cli_ps, cli_top;                                        // cli_top.c
cli_fn cli_snapshot, cli_snapshots, cli_snapshot_show, cli_snapshot_verify, cli_snapshot_prepare,
	cli_snapshot_delete, cli_snapshot_flatten, cli_clone, cli_fork; // cli_snapshot.c
cli_fn cli_snapshot_export, cli_snapshot_import, cli_gc;                // cli_store.c
cli_fn cli_events;                                                      // cli_events.c
cli_fn cli_doctor;                                                      // doctor.c
cli_fn cli_help;                                                        // cli_help.c
cli_fn cli_complete, cli_completion;                                    // cli_complete.c

struct cli_command;
void cli_print_help(FILE *f);
void cli_print_command_help(const struct cli_command *cmd);

// Prints "thaw: ..." on standard error and returns status.
int cli_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// A request. body is taken over (NULL: none). EXIT_OK: *ret_v holds the decoded answer (or
// NULL when it has no JSON), to be freed. Otherwise the error has been printed.
int cli_request(struct cli *c, const char *method, js *body, js **ret_v, const char *path_fmt, ...)
	__attribute__((format(printf, 5, 6)));
int cli_open(struct cli *c); // the client; the calls below do it by themselves
int cli_raw(struct cli *c, const char *method, const char *path, const void *body, size_t len,
	    struct client_reply *ret_r);
// A body from in_fd or an answer to out_fd; -1: none. Otherwise the error has been printed.
int cli_stream(struct cli *c, const char *method, const char *path, int in_fd, int out_fd,
	       struct client_reply *ret_r);
// A GET whose answer goes to fn as it comes; an exit status of fn ends it and is returned.
int cli_follow(struct cli *c, const char *path, client_data_fn *fn, void *arg, struct client_reply *ret_r);
// EXIT_OK for 2xx; otherwise prints the daemon's error.
int cli_check(struct cli *c, const struct client_reply *r);

// The body of POST /v1/vms; NULL: a complaint was printed.
js *cli_create_body(struct cli *c, const char *name, bool start);
void cli_print_names(js *list); // of VMs or snapshots, a line each

// The terminal, or standard input and output, as the console of VM `name`: until the guest ends, Ctrl-] is
// typed at a terminal, or a signal comes. The caller has blocked the signals of cli_block_signals().
enum cli_left {
	LEFT_EXITED, // all it said was shown
	LEFT_TYPED,  // Ctrl-], or the end of the input if `wait_input` is false
	LEFT_SIGNAL, // *ret_signal
};
struct cli_attach;
void cli_block_signals(void);
// Other than EXIT_OK: a complaint was printed. A thread goes on with the output after LEFT_TYPED and
// LEFT_SIGNAL; cli_detach() waits until the guest has ended (wait) or leaves it alone, until this process
// ends.
int cli_attach(struct cli *c, const char *name, bool wait_input, enum cli_left *ret_left, int *ret_signal,
	       struct cli_attach **ret_a);
void cli_detach(struct cli_attach *a, bool wait); // NULL allowed

void cli_print_snapshot(js *v);
void cli_print_tree(js *list); // of snapshots
// Prints v as JSON and frees it.
int cli_print_json(js *v);
bool cli_name_ok(const char *name); // complains itself

// --ttl, --idle-timeout, --auto-delete, --limit into a request's object.
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
