// SPDX-License-Identifier: Apache-2.0
// Thaws N clones of a snapshot, prints how long each took, and ends them:
//
//   cc clone.c -o clone $(pkg-config --cflags --libs libthaw)
//   ./clone SNAPSHOT N
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <thaw.h>

int main(int argc, char **argv)
{
	struct thaw_client *c = NULL;
	struct thaw_reply *r = NULL;
	char body[64], path[64];

	if (argc != 3) {
		fprintf(stderr, "usage: clone SNAPSHOT N\n");
		return 2;
	}
	if (thaw_open(NULL, &c)) {
		fprintf(stderr, "no place for the socket; set THAW_SOCKET\n");
		return 1;
	}
	snprintf(body, sizeof body, "{\"count\":%d}", atoi(argv[2]));
	if (thaw_clone(c, argv[1], body, &r)) {
		fprintf(stderr, "%s\n", thaw_last_error(c)->message);
		thaw_close(c);
		return 1;
	}
	int failed = 0;
	for (size_t i = 0; i < thaw_reply_count(r, "clones"); i++) {
		snprintf(path, sizeof path, "clones.%zu.name", i);
		const char *name = thaw_reply_str(r, path, "?");
		snprintf(path, sizeof path, "clones.%zu.timing_us.running", i);
		int64_t us = thaw_reply_int(r, path, -1);
		if (us >= 0)
			printf("%s runs after %" PRId64 " us\n", name, us);
		if (us < 0 || thaw_vm_delete(c, name))
			failed = 1;
	}
	thaw_reply_free(r);
	thaw_close(c);
	return failed;
}
