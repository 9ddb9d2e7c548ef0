// SPDX-License-Identifier: Apache-2.0
// The verbs of `thaw` and their options: the one source of what the parser takes, of --help, of `thaw
// help --json` (from which the manual page is made) and of completion. Constant.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "api/cli.h"

enum cli_opt {
	O_END, // of a list of options
	O_JSON,
	O_SOCKET,
	O_NO_PROGRESS,
	O_IDEM_KEY,
	O_HELP,
	O_VERSION,
	O_KERNEL,
	O_INITRD,
	O_ROOTFS,
	O_CMDLINE,
	O_VCPUS,
	O_MEMORY,
	O_DISCOVERY,
	O_BOOT,
	O_DRIVE,
	O_NET,
	O_VSOCK,
	O_PORT,
	O_PMEM,
	O_BALLOON,
	O_CPU,
	O_METADATA,
	O_METADATA_SERVICE,
	O_READY_WHEN,
	O_HUGE_PAGES,
	O_NO_RNG,
	O_TRACK_DIRTY,
	O_START,
	O_MODE,
	O_TIMEOUT,
	O_READ,
	O_FOLLOW,
	O_WRITE,
	O_READY,
	O_CONSOLE,
	O_STATE,
	O_SET,
	O_LINK,
	O_RX_LIMIT,
	O_TX_LIMIT,
	O_SIZE,
	O_REREAD,
	O_HINT,
	O_TARGET,
	O_STATS_INTERVAL,
	O_FORMAT,
	O_INCREMENTAL,
	O_TREE,
	O_QUIET,
	O_FORCE,
	O_NAME,
	O_COUNT,
	O_PAUSED,
	O_RECORD,
	O_NO_POPULATE,
	O_PAGE_HANDLER,
	O_NO_FILL,
	O_WAIT,
	O_POOL,
	O_SINCE,
	O_TYPES,
	O_ONCE,
	O_INTERVAL,
	O_SORT,
	O_TTL,
	O_IDLE,
	O_PARK,
	O_AUTO_DELETE,
	O_LIMIT,
	O_SUITE,
	O_ARCH,
	O_DIR,
	O_MIRROR,
	O_KEYRING,
	O_INIT,
	N_OPTS
};

enum cli_opt_kind {
	KIND_FLAG,   // bool
	KIND_TEXT,   // const char *
	KIND_NUMBER, // unsigned long up to UINT32_MAX, and a bool: given
	KIND_LIST,   // const char *[CLI_MAX_MULTI], and an unsigned: how many
	KIND_PATH,   // char[PATH_MAX]
	KIND_OWN,    // the parser's own business
};

struct cli_option {
	const char *name, *arg, *what; // arg: NULL for a flag; a|b|c: one of these words
	uint8_t kind;
	uint16_t offset, offset2; // in struct cli
};
extern const struct cli_option cli_options[N_OPTS]; // [O_END] is empty
extern const uint8_t cli_for_all[];                 // the options that every verb has; O_END ends it
extern const uint8_t cli_configurable[];            // those that a configuration file may have

enum { CLI_ANY_ARGS = -1 };

struct cli_command {
	const char *name;       // one word or two
	const char *args;       // words; VM and SNAPSHOT are names of such, FILE and a|b|c as for options
	const char *aliases;    // other names, separated by ','
	const uint8_t *options; // O_END ends it
	cli_fn *fn;
	const char *what, *more; // a line; further sentences or ""
	bool no_daemon, hidden;
};
extern const struct cli_command cli_commands[];
extern const size_t cli_n_commands;

struct cli_exit_status {
	const char *status, *what;
};
extern const struct cli_exit_status cli_exit_statuses[];
extern const size_t cli_n_exit_statuses;

// The command that n words begin with: two-word names before those of one. *ret_used: how many words.
const struct cli_command *cli_find(const char *const *words, int n, int *ret_used);
bool cli_has_option(const struct cli_command *cmd, int o);
int cli_n_args(const struct cli_command *cmd);
