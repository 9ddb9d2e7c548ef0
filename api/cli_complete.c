// SPDX-License-Identifier: Apache-2.0
// Completion: `thaw completion SHELL` prints a script that asks `thaw __complete -- WORD...`, where the last
// word is the one being typed. Each line of its answer is a candidate and, behind a tab, what it is; the
// line ":file" stands for all files. So the shells know nothing, and the table of cli_table.h all.
#include <stdio.h>
#include <string.h>

#include "api/cli_table.h"
#include "microvm/base/util.h"

static const char bash_script[] =
	"# bash completion of thaw; made by: thaw completion bash\n"
	"_thaw() {\n"
	"\tlocal line cur=${COMP_WORDS[COMP_CWORD]}\n"
	"\tlocal -a files\n"
	"\tCOMPREPLY=()\n"
	"\twhile IFS= read -r line; do\n"
	"\t\tif [ \"$line\" = :file ]; then\n"
	"\t\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\t\tmapfile -t files < <(compgen -f -- \"${cur#=}\")\n"
	"\t\t\tCOMPREPLY+=(\"${files[@]}\")\n"
	"\t\telse\n"
	"\t\t\tCOMPREPLY+=(\"${line%%$'\\t'*}\")\n"
	"\t\tfi\n"
	"\tdone < <(\"${COMP_WORDS[0]}\" __complete -- \"${COMP_WORDS[@]:1:COMP_CWORD}\" 2>/dev/null)\n"
	"}\n"
	"complete -F _thaw thaw\n";

static const char zsh_script[] =
	"#compdef thaw\n"
	"# zsh completion of thaw; made by: thaw completion zsh\n"
	"_thaw() {\n"
	"\tlocal line\n"
	"\tlocal -a values shown\n"
	"\tfor line in \"${(@f)$(${words[1]} __complete -- \"${(@)words[2,CURRENT]}\" 2>/dev/null)}\"; do\n"
	"\t\tif [[ $line = :file ]]; then\n"
	"\t\t\t_files\n"
	"\t\telif [[ -n $line ]]; then\n"
	"\t\t\tvalues+=(\"${line%%$'\\t'*}\")\n"
	"\t\t\tshown+=(\"${line/$'\\t'/  -- }\")\n"
	"\t\tfi\n"
	"\tdone\n"
	"\t(( ${#values} )) && compadd -l -d shown -a values\n"
	"}\n"
	"if [ \"$funcstack[1]\" = _thaw ]; then _thaw \"$@\"; else compdef _thaw thaw; fi\n";

static const char fish_script[] = "# fish completion of thaw; made by: thaw completion fish\n"
				  "function __thaw_complete\n"
				  "\tset -l words (commandline -opc) (commandline -ct)\n"
				  "\tfor line in ($words[1] __complete -- $words[2..-1] 2>/dev/null)\n"
				  "\t\tif test \"$line\" = :file\n"
				  "\t\t\t__fish_complete_path (commandline -ct)\n"
				  "\t\telse\n"
				  "\t\t\techo $line\n"
				  "\t\tend\n"
				  "\tend\n"
				  "end\n"
				  "complete -c thaw -f -a '(__thaw_complete)'\n";

int cli_completion(struct cli *c)
{
	static const struct {
		const char *shell, *script;
	} scripts[] = { { "bash", bash_script }, { "zsh", zsh_script }, { "fish", fish_script } };
	for (size_t i = 0; i < MV_ARRAY_LEN(scripts); i++)
		if (!strcmp(c->pos[0], scripts[i].shell))
			return fputs(scripts[i].script, stdout) < 0 ? EXIT_DAEMON_ERROR : EXIT_OK;
	return cli_fail(EXIT_USAGE, "completion: \"%s\" is none of bash, zsh and fish", c->pos[0]);
}

// --- what may come ----------------------------------------------------------------------------
static void offer(const char *cur, const char *prefix, const char *text, size_t len, const char *what)
{
	char word[128];
	size_t n = strlen(cur);
	if ((size_t)snprintf(word, sizeof word, "%s%.*s", prefix, (int)len, text) < sizeof word &&
	    !strncmp(word, cur, n))
		printf("%s%s%s\n", word, *what ? "\t" : "", what);
}

static void offer_names(struct cli *c, const char *cur, const char *kind)
{
	js *v = NULL;
	if (cli_request(c, "GET", NULL, &v, "/v1/%s", kind))
		return;
	js *list = js_get(v, kind);
	for (size_t i = 0; i < js_len(list); i++) {
		const char *name = js_str(js_at(list, i), "name", "");
		offer(cur, "", name, strlen(name), js_str(js_at(list, i), "state", ""));
	}
	js_free(v);
}

// A placeholder is in capitals only; what is not is a word to be offered.
static bool is_placeholder(const char *s, size_t n) { return strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") >= n; }

static void offer_value(struct cli *c, const char *cur, const char *arg, size_t len)
{
	if (memchr(arg, '=', len)) // keys and values
		return;
	for (const char *p = arg, *end = arg + len; p < end;) { // up to a space: the next argument
		size_t n = strcspn(p, "| ");
		if (n == 4 && !strncmp(p, "FILE", n))
			puts(":file");
		else if (n == 6 && !strncmp(p, "SOCKET", n))
			puts(":file");
		else if (n == 2 && !strncmp(p, "VM", n))
			offer_names(c, cur, "vms");
		else if (n == 8 && !strncmp(p, "SNAPSHOT", n))
			offer_names(c, cur, "snapshots");
		else if (!is_placeholder(p, n))
			offer(cur, "", p, n, "");
		p += n + 1;
	}
}

static void offer_options(const char *cur, const uint8_t *options)
{
	for (; *options != O_END; options++)
		offer(cur, "--", cli_options[*options].name, strlen(cli_options[*options].name),
		      cli_options[*options].what);
}

// "create, ls, ...": the second words of all commands with the first n characters of cmd.
static const char *family(const struct cli_command *cmd, size_t n, char *buf, size_t size)
{
	size_t at = 0;
	for (size_t i = 0; i < cli_n_commands && at < size; i++)
		if (!strncmp(cli_commands[i].name, cmd->name, n + 1))
			at += (size_t)snprintf(buf + at, size - at, "%s%s", at ? ", " : "",
					       cli_commands[i].name + n + 1);
	return buf;
}

// Whether an earlier command has the same first word: it is offered once.
static bool was_offered(size_t i)
{
	size_t n = strcspn(cli_commands[i].name, " ") + 1;
	for (size_t k = 0; k < i; k++)
		if (!strncmp(cli_commands[k].name, cli_commands[i].name, n))
			return true;
	return false;
}

static void offer_commands(const char *cur, const char *first)
{
	char seconds[128];
	for (size_t i = 0; i < cli_n_commands; i++) {
		const struct cli_command *cmd = &cli_commands[i];
		size_t n = strcspn(cmd->name, " ");
		bool two = cmd->name[n] == ' ';
		if (cmd->hidden)
			continue;
		if (!first && !(two && was_offered(i)))
			offer(cur, "", cmd->name, n,
			      two ? family(cmd, n, seconds, sizeof seconds) : cmd->what);
		else if (first && two && strlen(first) == n && !strncmp(first, cmd->name, n))
			offer(cur, "", cmd->name + n + 1, strlen(cmd->name + n + 1), cmd->what);
	}
}

static const struct cli_option *find_option(const char *word)
{
	for (int o = 1; o < N_OPTS; o++)
		if (!strncmp(word, "--", 2) && !strcmp(word + 2, cli_options[o].name))
			return &cli_options[o];
	return NULL;
}

static void offer_argument(struct cli *c, const char *cur, const struct cli_command *cmd, int n)
{
	const char *p = cmd->args;
	while (p && *p && n--)
		p += strcspn(p, " "), p += *p == ' ';
	if (p && *p)
		offer_value(c, cur, p, strcspn(p, " "));
}

#define MAX_WORDS 64

int cli_complete(struct cli *c)
{
	const char *words[MAX_WORDS] = { NULL }, *cur = c->n_pos ? c->pos[c->n_pos - 1] : "";
	const struct cli_option *pending = NULL; // it lacks its argument
	int n = 0, used = 0;
	for (int i = 0; i + 1 < c->n_pos && n < MAX_WORDS; i++) {
		const char *w = c->pos[i];
		if (!strcmp(w, "=")) // bash makes three words of --option=value
			continue;
		if (pending) {
			if (pending->kind == KIND_PATH && mv_strcpy(c->socket, sizeof c->socket, w))
				return EXIT_USAGE;
			pending = NULL;
		} else if (w[0] == '-') {
			const struct cli_option *o = find_option(w);
			pending = o && o->arg ? o : NULL;
		} else {
			words[n++] = w;
		}
	}
	const struct cli_command *cmd = cli_find(words, n, &used);
	if (pending) {
		offer_value(c, strcmp(cur, "=") ? cur : "", pending->arg, strlen(pending->arg));
	} else if (cur[0] == '-') {
		if (cmd)
			offer_options(cur, cmd->options);
		offer_options(cur, cli_for_all);
	} else if (!n) {
		offer_commands(cur, NULL);
	} else {
		if (n == 1)
			offer_commands(cur, words[0]);
		if (cmd)
			offer_argument(c, cur, cmd, n - used);
	}
	return EXIT_OK;
}
