// SPDX-License-Identifier: Apache-2.0
// thaw: the command-line client of thawd. Parses by the table of cli_table.h, then runs a verb.
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli_table.h"
#include "api/conf.h"
#include "microvm/base/util.h"

#define FIRST_OPT 256 // of getopt's values, above all characters

static bool number(const char *s, unsigned long *v)
{
	char *end;
	*v = strtoul(s, &end, 10);
	return *s >= '0' && *s <= '9' && !*end && *v <= UINT32_MAX;
}

static bool add(const char **list, unsigned *n, const char *s)
{
	if (*n >= CLI_MAX_MULTI)
		return false;
	list[(*n)++] = s;
	return true;
}

static bool take(struct cli *c, const struct cli_option *o, const char *arg)
{
	void *at = (char *)c + o->offset, *at2 = (char *)c + o->offset2;
	switch (o->kind) {
	case KIND_FLAG: return *(bool *)at = true;
	case KIND_TEXT: *(const char **)at = arg; return true;
	case KIND_NUMBER: *(bool *)at2 = true; return number(arg, at);
	case KIND_LIST: return add(at, at2, arg);
	case KIND_PATH: return !mv_strcpy(at, PATH_MAX, arg);
	default: return false;
	}
}

// --- the configuration file: for what the command has and was not given ------------------------------
struct configured {
	struct cli *c;
	const struct cli_command *cmd;
	const bool *given;
};

static const char *take_setting(void *arg, const char *key, const char *value)
{
	const struct configured *f = arg;
	const struct cli_option *o = NULL;
	const uint8_t *k = cli_configurable;
	for (; *k != O_END && strcmp(cli_options[*k].name, key);)
		k++;
	if (*k == O_END)
		return "there is no such setting; thaw --help lists them";
	o = &cli_options[*k];
	bool on = !strcmp(value, "true"), off = !strcmp(value, "false");
	bool applies =
		cli_has_option(f->cmd, *k) && !f->given[*k] && !(*k == O_SOCKET && getenv("THAW_SOCKET"));
	struct cli checked = { 0 };
	if (o->kind == KIND_FLAG && !on && !off)
		return "it takes true or false";
	if (!*value || !take(applies && !off ? f->c : &checked, o, value))
		return "that value won't do";
	return NULL;
}

static int configure(struct cli *c, const struct cli_command *cmd, const bool *given)
{
	char path[PATH_MAX];
	struct mv_err err;
	struct configured f = { c, cmd, given };
	const char *named = getenv("THAW_CONFIG"), *config = getenv("XDG_CONFIG_HOME"),
		   *home = getenv("HOME");
	int n = named               ? snprintf(path, sizeof path, "%s", named)
		: config && *config ? snprintf(path, sizeof path, "%s/thaw/config", config)
		: home && *home     ? snprintf(path, sizeof path, "%s/.config/thaw/config", home)
				    : 0;
	if (n <= 0)
		return EXIT_OK;
	int r = (size_t)n < sizeof path
			? conf_read(path, take_setting, &f, &err)
			: mv_fail(&err, ENAMETOOLONG, "the path of the configuration file is too long");
	// A file that this user may not even see is somebody else's: HOME is, after su.
	return !r || ((r == -ENOENT || r == -EACCES) && !named) ? EXIT_OK
								: cli_fail(EXIT_USAGE, "%s", err.msg);
}

static int wrong_usage(const struct cli_command *cmd)
{
	return cli_fail(EXIT_USAGE, "usage: thaw %s %s%s[OPTION]...; see thaw %s --help", cmd->name,
			cmd->args, *cmd->args ? " " : "", cmd->name);
}

// EXIT_OK, or the exit status with a complaint printed; -1: help was printed.
static int parse(struct cli *c, int argc, char **argv, const struct cli_command **ret_cmd)
{
	struct option options[N_OPTS] = { 0 }; // one less than N_OPTS, and the end
	bool given[N_OPTS] = { false };
	int used = 0;
	for (int o = 1; o < N_OPTS; o++)
		options[o - 1] = (struct option){ cli_options[o].name,
						  cli_options[o].arg ? required_argument : no_argument, NULL,
						  FIRST_OPT + o };
	for (int k; (k = getopt_long(argc, argv, "n:", options, NULL)) != -1;) {
		int o = k == 'n' ? O_COUNT : k - FIRST_OPT;
		if (o <= O_END || o >= N_OPTS)
			return EXIT_USAGE; // getopt has complained
		given[o] = true;
		if (o == O_VERSION) {
			puts("thaw " THAW_VERSION);
			return -1;
		}
		if (o != O_HELP && !take(c, &cli_options[o], optarg))
			return cli_fail(EXIT_USAGE, "--%s: \"%s\" won't do; it takes %s", cli_options[o].name,
					optarg, cli_options[o].arg);
	}
	const char *const *words = (const char *const *)argv + optind;
	int n = argc - optind;
	const struct cli_command *cmd = cli_find(words, n, &used);
	if (!cmd && n)
		return cli_fail(EXIT_USAGE, "there is no command \"%s\"; thaw --help lists them", words[0]);
	if (!cmd) {
		cli_print_help(given[O_HELP] ? stdout : stderr);
		return given[O_HELP] ? -1 : EXIT_USAGE;
	}
	if (given[O_HELP]) {
		cli_print_command_help(cmd);
		return -1;
	}
	for (int o = 1; o < N_OPTS; o++)
		if (given[o] && !cli_has_option(cmd, o))
			return cli_fail(EXIT_USAGE, "%s has no option --%s; see thaw %s --help", cmd->name,
					cli_options[o].name, cmd->name);
	c->pos = words + used;
	c->n_pos = n - used;
	if (!cmd->no_daemon && configure(c, cmd, given))
		return EXIT_USAGE;
	if (cli_n_args(cmd) != CLI_ANY_ARGS && c->n_pos != cli_n_args(cmd))
		return wrong_usage(cmd);
	*ret_cmd = cmd;
	return EXIT_OK;
}

int main(int argc, char **argv)
{
	static struct cli c;
	const struct cli_command *cmd = NULL;
	int status = parse(&c, argc, argv, &cmd);
	if (status)
		return status < 0 ? EXIT_OK : status;
	status = cmd->fn(&c);
	thaw_close(c.client);
	return fflush(stdout) ? EXIT_DAEMON_ERROR : status;
}
