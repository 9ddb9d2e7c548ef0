// SPDX-License-Identifier: Apache-2.0
// thaw-snapshot-editor: files of the Firecracker-compatible mode, with the commands of Firecracker's
// snapshot-editor. It runs beside VMs that use these files: what it changes is replaced, never written to.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "api/fc/outfile.h"
#include "api/fc/snapfile.h"
#include "microvm/base/util.h"

static int usage(FILE *to, int status)
{
	fputs("usage: thaw-snapshot-editor edit-memory rebase --memory-path FILE --diff-path FILE\n"
	      "       thaw-snapshot-editor info-vmstate version|vm-state --vmstate-path FILE\n"
	      "       thaw-snapshot-editor --version | --help\n"
	      "rebase lays the memory of a Diff snapshot over the memory of the snapshot before it; VMs that "
	      "run\n"
	      "from that go on with what they had.\n",
	      to);
	return status;
}

static int fail(const struct mv_err *err)
{
	fprintf(stderr, "thaw-snapshot-editor: %s\n", err->msg);
	return 1;
}

// The whole text, or its first line.
static int describe(const char *path, bool whole)
{
	char text[8192];
	struct mv_err err = { 0 };
	MV_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not hold us up
	if (fd < 0) {
		mv_fail(&err, errno, "cannot open %s: %s", path, strerror(errno));
		return fail(&err);
	}
	if (fc_snapfile_describe(fd, text, sizeof text, &err)) {
		mv_wrap(&err, "%s", path);
		return fail(&err);
	}
	if (!whole)
		text[strcspn(text, "\n") + 1] = 0;
	fputs(text, stdout);
	return 0;
}

// The value of an option among four words "--a A --b B", in either order; NULL: it is not there.
static const char *option(char **argv, int n, const char *name)
{
	for (int i = 0; i + 1 < n; i += 2)
		if (!strcmp(argv[i], name))
			return argv[i + 1];
	return NULL;
}

int main(int argc, char **argv)
{
	struct mv_err err = { 0 };
	if (argc == 2 && !strcmp(argv[1], "--version"))
		return puts("thaw-snapshot-editor " THAW_VERSION) < 0;
	if (argc == 2 && !strcmp(argv[1], "--help"))
		return usage(stdout, 0);
	if (argc == 7 && !strcmp(argv[1], "edit-memory") && !strcmp(argv[2], "rebase")) {
		const char *memory = option(argv + 3, 4, "--memory-path"),
			   *diff = option(argv + 3, 4, "--diff-path");
		if (memory && diff)
			return fc_memory_rebase(memory, diff, &err) ? fail(&err) : 0;
	}
	if (argc == 5 && !strcmp(argv[1], "info-vmstate") && !strcmp(argv[3], "--vmstate-path")) {
		if (!strcmp(argv[2], "version") || !strcmp(argv[2], "vm-state"))
			return describe(argv[4], !strcmp(argv[2], "vm-state"));
	}
	return usage(stderr, 2);
}
