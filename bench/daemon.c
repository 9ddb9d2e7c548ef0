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

#include "api/client.h"
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
	struct client_reply r = { 0 };
	struct mv_err err = { 0 };
	struct api_err parse_err;
	js *v = NULL;

	*ret = client_call(d->client, method, path, body, body ? strlen(body) : 0, &r, &err);
	if (*ret)
		fprintf(stderr, "bench: %s %s: %s\n", method, path, err.msg);
	else if (r.status >= 300) {
		fprintf(stderr, "bench: %s %s: %u %s\n", method, path, r.status, r.body ? r.body : "");
		*ret = -EIO;
	} else if (r.len && r.body[0] == '{')
		v = js_parse(r.body, r.len, &parse_err);
	client_reply_fini(&r);
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

int daemon_start(const struct bench_env *env, struct daemon *d)
{
	char program[1100], state[1400];
	struct mv_err err = { 0 };

	snprintf(d->dir, sizeof d->dir, "%.500s/rest-XXXXXX", env->out);
	if (!mkdtemp(d->dir))
		return -errno;
	snprintf(d->socket, sizeof d->socket, "%s/thaw.sock", d->dir);
	snprintf(state, sizeof state, "%s/state", d->dir);
	snprintf(program, sizeof program, "%s/thawd", env->bin);
	char *argv[] = { program, "--socket", d->socket, "--state-dir", state, "--log-level", "error", NULL };
	int r = posix_spawn(&d->pid, program, NULL, NULL, argv, environ);
	if (r)
		return -r;
	r = client_new(d->socket, &d->client, &err);
	for (int i = 0; !r && !listens(d->socket); i++) {
		daemon_pause_ms(5);
		r = i < WAIT_STEPS ? 0 : -ETIMEDOUT;
	}
	return r;
}

void daemon_stop(struct daemon *d)
{
	client_free(d->client);
	if (d->pid > 0) {
		kill(d->pid, SIGTERM);
		waitpid(d->pid, NULL, 0);
	}
	if (d->dir[0])
		remove_tree(d->dir);
}
