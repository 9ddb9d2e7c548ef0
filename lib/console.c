// SPDX-License-Identifier: Apache-2.0
// The serial console: pieces of it, and both directions at once. Attached, the output's long poll is in one
// slot and the input's PUT in the other, so that neither waits for the other; no thread.
//
//   READING --nothing came--> ASKING (GET of the VM) --it has exited--> LAST (a piece without waiting)
//   --empty--> end
//      ^_____something came_____|______it runs_____|                    ^___something came___|
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/private.h"

#define WAIT_MS 20000u
#define MAX_INPUT 4096

int thaw_console_read(struct thaw_client *c, const char *vm, uint64_t *offset, unsigned wait_ms,
		      struct thaw_reply **ret)
{
	struct thaw_reply *r = NULL;
	if (!lib_name_ok(vm))
		return lib_wrong_name(c, vm);
	int e = lib_call(c, "GET", NULL, &r, "/v1/vms/%s/console?offset=%" PRIu64 "&wait_ms=%u", vm, *offset,
			 wait_ms);
	if (e)
		return e;
	const char *next = thaw_reply_header(r, "Thaw-Console-Next");
	if (next)
		*offset = strtoull(next, NULL, 10);
	if (ret)
		*ret = r;
	else
		thaw_reply_free(r);
	return next ? 0 : lib_fail(c, EPROTO, "the daemon's answer makes no sense");
}

static struct thaw_request put_of(const char *path, const void *bytes, size_t n)
{
	struct thaw_request q = THAW_REQUEST_INIT;
	q.method = "PUT";
	q.path = path;
	q.body = bytes;
	q.body_len = n;
	return q;
}

int thaw_console_write(struct thaw_client *c, const char *vm, const void *bytes, size_t n)
{
	char path[120];
	if (!lib_name_ok(vm))
		return lib_wrong_name(c, vm);
	snprintf(path, sizeof path, "/v1/vms/%s/console", vm);
	struct thaw_request q = put_of(path, bytes, n);
	return thaw_request(c, &q, NULL);
}

// --- attached -------------------------------------------------------------------------------------
enum output { READING, ASKING, LAST, EXITED };

struct attached {
	struct thaw_client *c;
	const char *vm;
	struct thaw_attach a;
	enum output output;
	bool input_over, escaped;
	char path[200], input_path[120], input[MAX_INPUT];
};

static int begin_output(struct attached *t)
{
	struct thaw_request q = THAW_REQUEST_INIT;
	if (t->output == ASKING)
		snprintf(t->path, sizeof t->path, "/v1/vms/%s", t->vm);
	else
		snprintf(t->path, sizeof t->path, "/v1/vms/%s/console?offset=%" PRIu64 "&wait_ms=%u", t->vm,
			 t->a.offset, t->output == LAST ? 0 : WAIT_MS);
	q.method = "GET";
	q.path = t->path;
	q.stream = 1;
	return lib_begin(t->c, LIB_BESIDE, &q);
}

static int show(struct attached *t, const char *p, size_t n)
{
	while (n && t->a.out_fd >= 0) {
		ssize_t w = write(t->a.out_fd, p, n);
		if (w < 0 && errno != EINTR)
			return lib_fail(t->c, errno, "can't write the console's output: %s", strerror(errno));
		if (w > 0) {
			p += w;
			n -= (size_t)w;
		}
	}
	return 0;
}

static int take_output(struct attached *t)
{
	struct thaw_reply *r = NULL;
	size_t n = 0;
	int e = lib_end(t->c, LIB_BESIDE, &r);
	if (e)
		return e;
	if (t->output == ASKING) {
		t->output = strcmp(thaw_reply_str(r, "state", ""), "exited") ? READING : LAST;
	} else {
		const char *bytes = thaw_reply_body(r, &n), *next = thaw_reply_header(r, "Thaw-Console-Next");
		e = next ? show(t, bytes, n) : lib_fail(t->c, EPROTO, "the daemon's answer makes no sense");
		if (!e)
			t->a.offset = strtoull(next, NULL, 10);
		if (!n)
			t->output = t->output == LAST ? EXITED : ASKING;
	}
	thaw_reply_free(r);
	return e ? e : t->output == EXITED ? 0 : begin_output(t);
}

static int take_input(struct attached *t)
{
	ssize_t n = read(t->a.in_fd, t->input, sizeof t->input);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n <= 0) {
		t->input_over = true;
		return 0;
	}
	const char *escape = t->a.escape >= 0 ? memchr(t->input, t->a.escape, (size_t)n) : NULL;
	t->escaped = escape != NULL;
	n = escape ? escape - t->input : n;
	struct thaw_request q = put_of(t->input_path, t->input, (size_t)n);
	q.stream = 1;
	return n ? lib_begin(t->c, LIB_MAIN, &q) : 0;
}

// One turn; *ret_end is set when *ret_over is.
static int turn(struct attached *t, bool *ret_over, enum thaw_attach_end *ret_end)
{
	bool sending = lib_in_progress(t->c, LIB_MAIN);
	struct pollfd p[] = { { .fd = t->a.stop_fd, .events = POLLIN },
			      { .fd = t->a.in_fd, .events = POLLIN } };
	unsigned first = t->a.stop_fd < 0, n = 1 - first;
	if (t->a.in_fd >= 0 && !t->input_over && !t->escaped && !sending)
		n++;
	int r = lib_step(t->c, p + first, n);
	if (!r && sending && !lib_in_progress(t->c, LIB_MAIN))
		r = lib_end(t->c, LIB_MAIN, NULL);
	if (!r && !lib_in_progress(t->c, LIB_BESIDE))
		r = take_output(t);
	if (r)
		return r;
	if (!first && p[0].revents) {
		*ret_end = THAW_ATTACH_STOPPED;
		*ret_over = true;
		return 0;
	}
	if (n && first + n == 2 && p[1].revents)
		r = take_input(t);
	bool idle = !lib_in_progress(t->c, LIB_MAIN);
	*ret_over = t->output == EXITED || (idle && (t->escaped || (t->input_over && t->a.ends_with_input)));
	*ret_end = t->output == EXITED ? THAW_ATTACH_EXITED
		   : t->escaped        ? THAW_ATTACH_ESCAPED
				       : THAW_ATTACH_INPUT_ENDED;
	return r;
}

int thaw_console_attach(struct thaw_client *c, const char *vm, struct thaw_attach *a,
			enum thaw_attach_end *ret_end)
{
	struct attached *t = calloc(1, sizeof *t);
	enum thaw_attach_end end = THAW_ATTACH_EXITED;
	bool over = false;
	if (!t)
		return lib_fail(c, ENOMEM, "out of memory");
	t->c = c;
	t->vm = vm;
	int r = lib_name_ok(vm) ? lib_take_sized(c, &t->a, sizeof t->a, a) : lib_wrong_name(c, vm);
	bool taken = !r;
	if (taken) {
		snprintf(t->input_path, sizeof t->input_path, "/v1/vms/%s/console", vm);
		r = begin_output(t);
	}
	while (!r && !over)
		r = turn(t, &over, &end);
	lib_abandon(c, LIB_MAIN);
	lib_abandon(c, LIB_BESIDE);
	if (taken)
		a->offset = t->a.offset;
	free(t);
	if (!r)
		*ret_end = end;
	return r;
}
