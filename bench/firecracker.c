// SPDX-License-Identifier: Apache-2.0
// A snapshot loaded by Firecracker's API: what a client waits for, and when the guest goes on.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "bench/bench.h"
#include "microvm/base/util.h"

#define WAIT_NS 10000000000ull

extern char **environ;

struct front {
	pid_t pid;
	int fd;
	uint64_t spawned_ns;
	char socket[1200], log[1200];
};

static int front_start(const struct bench_env *env, struct front *f)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	f->fd = -1;
	f->pid = 0;
	snprintf(f->socket, sizeof f->socket, "%s/fc.sock", env->out);
	snprintf(f->log, sizeof f->log, "%s/fc.log", env->out);
	unlink(f->socket);
	unlink(f->log);
	if (mv_strcpy(a.sun_path, sizeof a.sun_path, f->socket))
		return -ENAMETOOLONG;
	char *argv[] = { "thaw-vmm", "--api-sock", f->socket, "--log-path", f->log, "--boot-timer", NULL };
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	f->spawned_ns = mv_now_ns();
	int r = posix_spawn(&f->pid, env->vmm, &files, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&files);
	if (r)
		return -r;
	f->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(f->fd, (struct sockaddr *)&a, sizeof a))
		if (mv_now_ns() - f->spawned_ns > WAIT_NS)
			return -ETIMEDOUT;
		else
			usleep(100);
	return 0;
}

static void front_end(struct front *f)
{
	mv_close(&f->fd);
	if (f->pid > 0) {
		kill(f->pid, SIGTERM);
		waitpid(f->pid, NULL, 0);
	}
	unlink(f->socket);
	unlink(f->log);
}

// One request; its answer must be a success.
static int call(struct front *f, const char *method, const char *path, const char *body)
{
	char text[4096];
	int n = snprintf(text, sizeof text, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s",
			 method, path, strlen(body), body);
	if (write(f->fd, text, (size_t)n) != n)
		return -EIO;
	ssize_t got = read(f->fd, text, sizeof text - 1);
	if (got < 12)
		return -EIO;
	text[got] = 0;
	if (text[9] == '2')
		return 0;
	fprintf(stderr, "bench: %s %s: %s\n", method, path, text);
	return -EPROTO;
}

// The log has it when the guest has done it.
static int first_io(const struct front *f, uint64_t *ret_us)
{
	char text[8192];
	for (uint64_t begin = mv_now_ns(); mv_now_ns() - begin < WAIT_NS; usleep(500)) {
		FILE *log = fopen(f->log, "re");
		size_t n = log ? fread(text, 1, sizeof text - 1, log) : 0;
		unsigned long long us;
		if (log)
			fclose(log);
		text[n] = 0;
		const char *at = strstr(text, " start, at ");
		if (at && sscanf(at, " start, at %llu us", &us) == 1) {
			*ret_us = us;
			return 0;
		}
	}
	return -ETIMEDOUT;
}

static int make_snapshot(const struct bench_env *env, const char *files)
{
	struct front f;
	char body[3000];
	uint64_t us;
	int r = front_start(env, &f);
	snprintf(body, sizeof body, "{\"kernel_image_path\":\"%s\"}", env->guest);
	r = r ? r : call(&f, "PUT", "/machine-config", "{\"vcpu_count\":1,\"mem_size_mib\":32}");
	r = r ? r : call(&f, "PUT", "/boot-source", body);
	r = r ? r : call(&f, "PUT", "/actions", "{\"action_type\":\"InstanceStart\"}");
	r = r ? r : first_io(&f, &us);
	r = r ? r : call(&f, "PATCH", "/vm", "{\"state\":\"Paused\"}");
	r = r ? r : call(&f, "PUT", "/snapshot/create", files);
	front_end(&f);
	return r;
}

int bench_firecracker(const struct bench_env *env, struct bench_results *res)
{
	char files[3000], body[3200], path[1200];
	struct bench_series *start =
		bench_series(res, "fc_start", "us", "exec of thaw-vmm to its API's first answer");
	struct bench_series *load =
		bench_series(res, "fc_load", "us", "PUT /snapshot/load with resume_vm to its 204");
	struct bench_series *io =
		bench_series(res, "fc_load_first_io", "us", "the same to the guest's first I/O");
	struct bench_series *all = bench_series(res, "fc_start_first_io", "us",
						"exec of thaw-vmm, load at once, to the guest's first I/O");
	int n = snprintf(files, sizeof files,
			 "{\"snapshot_path\":\"%s/fc.state\",\"mem_file_path\":\"%s/fc.mem\"", env->out,
			 env->out);
	snprintf(files + n, sizeof files - (size_t)n, "}");
	int r = make_snapshot(env, files);
	snprintf(body, sizeof body, "%.*s,\"resume_vm\":true}", n, files);
	for (int i = 0; !r && i < env->samples; i++) {
		struct front f;
		uint64_t us = 0;
		r = front_start(env, &f);
		r = r ? r : call(&f, "GET", "/version", "");
		uint64_t asked = mv_now_ns();
		r = r ? r : call(&f, "PUT", "/snapshot/load", body);
		uint64_t answered = mv_now_ns();
		r = r ? r : first_io(&f, &us);
		if (!r) {
			bench_add(start, (double)(asked - f.spawned_ns) / 1000);
			bench_add(load, (double)(answered - asked) / 1000);
			bench_add(io, (double)us - (double)asked / 1000);
			bench_add(all, (double)us - (double)f.spawned_ns / 1000);
		}
		front_end(&f);
	}
	snprintf(path, sizeof path, "%s/fc.state", env->out);
	unlink(path);
	snprintf(path, sizeof path, "%s/fc.mem", env->out);
	unlink(path);
	return r;
}
