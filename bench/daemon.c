// SPDX-License-Identifier: Apache-2.0
#include "bench/daemon.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/thaw.h"
#include "microvm/base/util.h"

#define WAIT_STEPS 2000 // of 5 ms: until the socket is there

extern char **environ;

void daemon_pause_ms(int ms) { poll(NULL, 0, ms); }

static void remove_tree(const char *dir)
{
	char path[1400];
	DIR *d = opendir(dir);
	for (struct dirent *e; d && (e = readdir(d));) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (unlink(path) && errno == EISDIR)
			remove_tree(path);
	}
	if (d)
		closedir(d);
	rmdir(dir);
}

js *daemon_call(struct daemon *d, const char *method, const char *path, const char *body, int *ret)
{
	struct thaw_request q = THAW_REQUEST_INIT;
	struct thaw_reply *r = NULL;
	struct api_err parse_err;
	js *v = NULL;
	size_t len = 0;

	q.method = method;
	q.path = path;
	q.body = body;
	q.body_len = body ? strlen(body) : 0;
	*ret = thaw_request(d->client, &q, &r);
	if (*ret) {
		const struct thaw_error *e = thaw_last_error(d->client);
		fprintf(stderr, "bench: %s %s: %u %s\n", method, path, e->status, e->message);
		return NULL;
	}
	const char *text = thaw_reply_body(r, &len);
	if (text[0] == '{')
		v = js_parse(text, len, &parse_err);
	thaw_reply_free(r);
	return v;
}

int daemon_act(struct daemon *d, const char *method, const char *path, const char *body)
{
	int r;
	js_free(daemon_call(d, method, path, body, &r));
	return r;
}

// The socket's file is there a moment before somebody listens.
static bool listens(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	MV_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return !mv_strcpy(a.sun_path, sizeof a.sun_path, path) && fd >= 0 &&
	       !connect(fd, (const struct sockaddr *)&a, sizeof a);
}

int daemon_start(const struct bench_env *env, struct daemon *d, const char *option)
{
	char program[1100], state[1400];

	snprintf(d->dir, sizeof d->dir, "%.500s/rest-XXXXXX", env->out);
	if (!mkdtemp(d->dir))
		return -errno;
	snprintf(d->socket, sizeof d->socket, "%s/thaw.sock", d->dir);
	snprintf(state, sizeof state, "%s/state", d->dir);
	snprintf(program, sizeof program, "%s/thawd", env->bin);
	char *argv[] = { program, "--socket",    d->socket, "--state-dir",
			 state,   "--log-level", "error",   (char *)(uintptr_t)option,
			 NULL };
	int r = posix_spawn(&d->pid, program, NULL, NULL, argv, environ);
	if (r)
		return -r;
	r = thaw_open(d->socket, &d->client);
	for (int i = 0; !r && !listens(d->socket); i++) {
		daemon_pause_ms(5);
		r = i < WAIT_STEPS ? 0 : -ETIMEDOUT;
	}
	return r;
}

void daemon_stop(struct daemon *d)
{
	thaw_close(d->client);
	if (d->pid > 0) {
		kill(d->pid, SIGTERM);
		waitpid(d->pid, NULL, 0);
	}
	if (d->dir[0])
		remove_tree(d->dir);
}
