// SPDX-License-Identifier: Apache-2.0
// --help, and `thaw help --json`: the table of verbs for programs (scripts/man.py makes thaw(1) of it).
#include <stdio.h>
#include <string.h>

#include "api/cli_table.h"

void cli_print_help(FILE *f)
{
	fputs("usage: thaw COMMAND [ARGUMENTS] [OPTION]...\n\n", f);
	for (size_t i = 0; i < cli_n_commands; i++)
		if (!cli_commands[i].hidden)
			fprintf(f, "  %-16s %s\n", cli_commands[i].name, cli_commands[i].what);
	fputs("\nthaw COMMAND --help shows its arguments. --json prints the daemon's answer as it is.\n"
	      "The socket is --socket, THAW_SOCKET, or thawd's default.\n\n"
	      "~/.config/thaw/config, or the file that THAW_CONFIG names, has lines \"key = value\" for\n"
	      "what is not given on the command line. Keys:\n ",
	      f);
	for (const uint8_t *o = cli_configurable; *o != O_END; o++)
		fprintf(f, " %s", cli_options[*o].name);
	fputs(".\n\nExit status:\n", f);
	for (size_t i = 0; i < cli_n_exit_statuses; i++)
		fprintf(f, "  %-6s %s\n", cli_exit_statuses[i].status, cli_exit_statuses[i].what);
}

static void print_option(int o)
{
	const struct cli_option *opt = &cli_options[o];
	printf("  --%s%s%s%s\n        %s\n", opt->name, opt->arg ? " " : "", opt->arg ? opt->arg : "",
	       opt->kind == KIND_LIST ? " (again for more)" : "", opt->what);
}

void cli_print_command_help(const struct cli_command *cmd)
{
	const char *args = cmd->args ? cmd->args : "WORD...";
	printf("usage: thaw %s %s%s[OPTION]...\n%s.\n", cmd->name, args, *args ? " " : "", cmd->what);
	if (*cmd->more)
		printf("%s\n", cmd->more);
	if (*cmd->aliases)
		printf("Also called: %s\n", cmd->aliases);
	putchar('\n');
	for (const uint8_t *o = cmd->options; *o != O_END; o++)
		print_option(*o);
	for (const uint8_t *o = cli_for_all; *o != O_END; o++)
		print_option(*o);
}

static js *option_names(const uint8_t *o)
{
	js *list = js_list();
	for (; *o != O_END; o++)
		js_add(list, js_string(cli_options[*o].name));
	return list;
}

static js *command_json(const struct cli_command *cmd)
{
	js *o = js_object();
	js_put_str(o, "name", cmd->name);
	js_put_str(o, "what", cmd->what);
	js_put_str(o, "more", cmd->more);
	js_put(o, "args", js_split(cmd->args ? cmd->args : "", " "));
	js_put(o, "aliases", js_split(cmd->aliases, ","));
	js_put(o, "options", option_names(cmd->options));
	return o;
}

static js *option_json(const struct cli_option *opt)
{
	js *o = js_object();
	js_put_str(o, "name", opt->name);
	if (opt->arg)
		js_put_str(o, "arg", opt->arg);
	js_put_str(o, "what", opt->what);
	js_put_bool(o, "repeats", opt->kind == KIND_LIST);
	return o;
}

int cli_help(struct cli *c)
{
	if (!c->json) {
		cli_print_help(stdout);
		return EXIT_OK;
	}
	js *o = js_object(), *commands = js_list(), *options = js_list(), *statuses = js_list();
	js_put_str(o, "version", THAW_VERSION);
	js_put(o, "commands", commands);
	js_put(o, "options", options);
	js_put(o, "for_all", option_names(cli_for_all));
	js_put(o, "configurable", option_names(cli_configurable));
	js_put(o, "exit_statuses", statuses);
	for (size_t i = 0; i < cli_n_commands; i++)
		if (!cli_commands[i].hidden)
			js_add(commands, command_json(&cli_commands[i]));
	for (int i = 1; i < N_OPTS; i++)
		js_add(options, option_json(&cli_options[i]));
	for (size_t i = 0; i < cli_n_exit_statuses; i++) {
		js *s = js_object();
		js_put_str(s, "status", cli_exit_statuses[i].status);
		js_put_str(s, "what", cli_exit_statuses[i].what);
		js_add(statuses, s);
	}
	return cli_print_json(o);
}
