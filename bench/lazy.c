// SPDX-License-Identifier: Apache-2.0
// Compressed memory: how fast it is written beside lz4 alone on the same bytes, and what a
// page costs the first clone of a template (filled by thaw-pager, 64 KiB at a time) and later
// ones, also when memory lies in a chain of files, and a VM with a page handler. Incremental against full
// snapshots of a clone's memory of which 1% was written. Without KVM: this process touches the memory as a
// clone's vCPU would.
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "microvm/base/util.h"
#include "microvm/lazy.h"
#include "snapshot/chunk.h"
#include "snapshot/codec.h"
#include "snapshot/memory.h"
#include "snapshot/pager.h"

enum { PAGE = 4096 };

extern char **environ;

// --- writing ---

// Guest memory with the bytes of a program in it, over and over, each 64 KiB different.
static int make_memory(const struct bench_env *env, uint64_t bytes, struct gmem *m)
{
	struct mv_err err;
	MV_FD fd = open(env->vmm, O_RDONLY | O_CLOEXEC);
	off_t len = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
	int r = len < CHUNK_BYTES ? -ENOENT : gmem_add(m, 0, bytes);
	r = r ? r : gmem_map(m, -1, &err);
	for (uint64_t at = 0; !r && at < bytes; at += CHUNK_BYTES)
		r = mv_pread_full(fd, m->region[0].hva + at, CHUNK_BYTES,
				  at / CHUNK_BYTES * 40013 % (uint64_t)(len - CHUNK_BYTES));
	return r;
}

// One thread, nothing else: bytes per second.
static double lz4_rate(const struct gmem *m)
{
	MV_FREE void *state = malloc(codec_state_bytes());
	MV_FREE uint8_t *to = malloc(codec_bound(CHUNK_BYTES));
	uint64_t start = mv_now_ns();
	for (uint64_t at = 0; state && to && at < m->total_bytes; at += CHUNK_BYTES)
		codec_compress(state, false, m->region[0].hva + at, CHUNK_BYTES, to,
			       codec_bound(CHUNK_BYTES));
	return (double)m->total_bytes * 1e9 / (double)(mv_now_ns() - start);
}

// Of this process; not disturbed by what else runs on the machine.
static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int open_scratch(const struct bench_env *env)
{
	int fd = open(env->out, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

static int write_rates(const struct bench_env *env, const struct gmem *m, struct bench_results *res)
{
	struct bench_series *ours = bench_series(res, "snapshot_write_rate", "bytes/s",
						 "memory written compressed, all CPUs, page cache");
	struct bench_series *floor =
		bench_series(res, "lz4_floor_rate", "bytes/s", "lz4 alone on the same bytes, one CPU");
	struct bench_series *ratio = bench_series(res, "snapshot_write_over_lz4", "ratio",
						  "snapshot_write_rate / (CPUs x lz4_floor_rate)");
	struct bench_series *cpu = bench_series(res, "snapshot_write_efficiency", "ratio",
						"CPU time of lz4 alone / CPU time of the write");
	struct mv_err err = { 0 };
	cpu_set_t set;
	double cpus = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
	for (int i = 0; i < (env->quick ? 5 : 15); i++) {
		uint64_t bytes;
		MV_FD fd = open_scratch(env);
		double cpu0 = cpu_seconds(), lz4 = lz4_rate(m), cpu1 = cpu_seconds();
		uint64_t start = mv_now_ns();
		int r = fd < 0 ? fd : chunk_write(fd, m, false, 0, &bytes, &err);
		if (r)
			return r;
		double rate = (double)m->total_bytes * 1e9 / (double)(mv_now_ns() - start);
		bench_add(cpu, (cpu1 - cpu0) / (cpu_seconds() - cpu1));
		bench_add(ours, rate);
		bench_add(floor, lz4);
		bench_add(ratio, rate / (cpus * lz4));
	}
	return 0;
}

// --- filling ---

struct pager {
	pid_t pid;
	int socket;
};

static int start_pager(const struct bench_env *env, struct pager *p)
{
	char path[1100];
	int pair[2];
	posix_spawn_file_actions_t files;
	snprintf(path, sizeof path, "%s/thaw-pager", env->bin);
	char *argv[] = { path, NULL };
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, pair[1], VMM_CONTROL_FD);
	int r = posix_spawn(&p->pid, path, &files, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&files);
	close(pair[1]);
	p->socket = pair[0];
	return -r;
}

static void stop_pager(struct pager *p)
{
	mv_close(&p->socket); // it ends by itself
	waitpid(p->pid, NULL, 0);
}

// Reads a byte of every page.
static double touch(const struct gmem *m)
{
	uint64_t start = mv_now_ns();
	for (uint64_t at = 0; at < m->total_bytes; at += PAGE)
		(void)*(volatile uint8_t *)(m->region[0].hva + at);
	return (double)(mv_now_ns() - start) / 1000 / ((double)m->total_bytes / PAGE);
}

// A clone's mapping of the memfd, its pages loaded on demand or all there.
static int map_clone(uint64_t bytes, int memfd, struct gmem *ret_m)
{
	struct mv_err err;
	*ret_m = (struct gmem){ 0 };
	int r = gmem_add(ret_m, 0, bytes);
	return r ? r : gmem_map(ret_m, memfd, &err);
}

static int fill_once(const struct bench_env *env, const int *file, unsigned n_files, uint64_t bytes,
		     double *ret_first, double *ret_second)
{
	struct pager p = { .socket = -1 };
	struct pager_template t = { bytes, false, false };
	struct pager_clone c = { .template_id = 1 };
	struct mv_err err;
	struct gmem first = { 0 }, second = { 0 };
	MV_FD memfd = memfd_create("memory", MFD_CLOEXEC);
	MV_FD status = memfd_create("status", MFD_CLOEXEC);
	MV_FD uffd = -1;
	int fds[2] = { memfd, status };
	int r = ftruncate(memfd, (off_t)bytes) ||
		ftruncate(status, (off_t)pager_status_bytes(bytes / CHUNK_BYTES));
	r = r ? -errno : start_pager(env, &p);
	if (r)
		return r;
	r = map_clone(bytes, memfd, &first);
	r = r ? r : lazy_register(&first, -1, 0, &uffd, &c.lazy, &err);
	r = r ? r : msg_send(p.socket, PAGER_FILES, 1, NULL, NULL, file, n_files);
	r = r ? r : msg_send(p.socket, PAGER_TEMPLATE, 1, &pager_template_table, &t, fds, 2);
	r = r ? r : msg_send(p.socket, PAGER_CLONE, 2, &pager_clone_table, &c, &uffd, 1);
	if (!r) {
		usleep(20000); // the pager has started
		*ret_first = touch(&first);
		r = map_clone(bytes, memfd, &second);
	}
	if (!r)
		*ret_second = touch(&second);
	stop_pager(&p);
	gmem_fini(&first);
	gmem_fini(&second);
	return r;
}

// What every fill has to do, in this process: per page.
static int fill_floor(int file, uint64_t bytes, double *ret_us)
{
	MV_FREE uint8_t *buf = malloc(2 * CHUNK_BYTES);
	MV_FD memfd = memfd_create("memory", MFD_CLOEXEC);
	struct chunk_index x;
	struct mv_err err;
	int r = !buf || ftruncate(memfd, (off_t)bytes) ? -ENOMEM : chunk_index_read(file, bytes, &x, &err);
	if (r)
		return r;
	uint64_t start = mv_now_ns();
	for (uint64_t i = 0; !r && i < x.n_chunks; i++) {
		r = chunk_read(&x, file, i, buf, buf + CHUNK_BYTES);
		r = r ? r : mv_pwrite_full(memfd, buf + CHUNK_BYTES, chunk_len(&x, i), i * CHUNK_BYTES);
	}
	*ret_us = (double)(mv_now_ns() - start) / 1000 / ((double)bytes / PAGE);
	chunk_index_fini(&x);
	return r;
}

static int fill_rates(const struct bench_env *env, const struct gmem *m, struct bench_results *res)
{
	struct bench_series *first = bench_series(
		res, "fill_first_clone", "us", "per 4 KiB page, lazy LZ4 through the pager, 64 KiB a fault");
	struct bench_series *second =
		bench_series(res, "fill_second_clone", "us", "per 4 KiB page, same template, all there");
	struct bench_series *floor = bench_series(res, "fill_floor", "us",
						  "per page: decode and write alone, one thread, no faults");
	struct bench_series *over = bench_series(res, "fill_first_over_floor", "ratio", "pairwise");
	struct mv_err err = { 0 };
	uint64_t bytes;
	MV_FD file = open_scratch(env);
	int r = file < 0 ? file : chunk_write(file, m, false, 0, &bytes, &err);
	for (int i = 0; !r && i < (env->quick ? 5 : 20); i++) {
		double a = 0, b = 0, c = 0;
		r = fill_once(env, &file, 1, m->total_bytes, &a, &b);
		r = r ? r : fill_floor(file, m->total_bytes, &c);
		if (r)
			break;
		bench_add(floor, c);
		bench_add(over, a / c);
		bench_add(first, a);
		bench_add(second, b);
	}
	return r;
}

// The program that is started here has its socket a moment later.
static int register_when_there(const struct gmem *m, const char *path, int *ret_uffd)
{
	struct mv_err err;
	int r = -ECONNREFUSED;
	for (int i = 0; r && i < 1000; i++, usleep(2000)) {
		MV_FD socket_fd = open(path, O_PATH | O_CLOEXEC);
		r = socket_fd < 0 ? -errno : lazy_register_with_handler(m, -1, socket_fd, ret_uffd, &err);
		if (r && r != -ENOENT && r != -ECONNREFUSED)
			break;
	}
	return r;
}

static int handler_once(const struct bench_env *env, const char *file, uint64_t bytes, double *ret_us)
{
	char program[1100], path[1100];
	struct gmem m = { 0 };
	pid_t pid;
	MV_FD uffd = -1;
	snprintf(program, sizeof program, "%s/thaw-page-handler", env->bin);
	snprintf(path, sizeof path, "%s/handler.sock", env->out);
	char *argv[] = { program, path, (char *)(uintptr_t)file, NULL };
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	int r = -posix_spawn(&pid, program, &files, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&files);
	if (r)
		return r;
	r = map_clone(bytes, -1, &m);
	r = r ? r : register_when_there(&m, path, &uffd);
	if (!r)
		*ret_us = touch(&m);
	kill(pid, SIGTERM);
	waitpid(pid, NULL, 0);
	gmem_fini(&m);
	return r;
}

static int handler_rates(const struct bench_env *env, const struct gmem *m, struct bench_results *res)
{
	static const char *const names[] = { "handler_fill_raw", "handler_fill" };
	static const char *const what[] = {
		"per 4 KiB page, thaw-page-handler from a raw file, 64 KiB a fault",
		"per 4 KiB page, thaw-page-handler from an LZ4 file, 64 KiB a fault"
	};
	struct mv_err err = { 0 };
	char path[1100];
	uint64_t bytes, data_bytes;
	int r = 0;
	snprintf(path, sizeof path, "%s/handler.memory", env->out);
	for (int lz4 = 0; !r && lz4 < 2; lz4++) {
		struct bench_series *s = bench_series(res, names[lz4], "us", what[lz4]);
		MV_FD file = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
		r = file < 0 ? -errno : snap_memory_write_as(lz4, file, m, &bytes, &data_bytes, &err);
		for (int i = 0; !r && i < (env->quick ? 5 : 20); i++) {
			double us = 0;
			r = handler_once(env, path, m->total_bytes, &us);
			if (!r)
				bench_add(s, us);
		}
	}
	unlink(path);
	return r;
}

// --- incremental ---

#define CHANGED_EVERY 100 // pages: 1%
#define MAX_DEPTH 64u

// A private mapping of a file with the bytes of m, as a clone has it.
static int clone_of(const struct gmem *m, struct gmem *ret_clone)
{
	struct mv_err err;
	MV_FD fd = memfd_create("memory", MFD_CLOEXEC);
	*ret_clone = (struct gmem){ 0 };
	int r = fd < 0 ? -errno : mv_pwrite_full(fd, m->region[0].hva, m->total_bytes, 0);
	r = r ? r : gmem_add(ret_clone, 0, m->total_bytes);
	return r ? r : gmem_map(ret_clone, fd, &err);
}

static void change(struct gmem *m, uint64_t turn)
{
	for (uint64_t at = turn % CHANGED_EVERY * PAGE; at < m->total_bytes; at += CHANGED_EVERY * PAGE)
		memset(m->region[0].hva + at, (int)turn + 1, PAGE / 2);
}

static int write_incremental(const struct bench_env *env, const struct gmem *m, struct bench_results *res)
{
	const char *labels = "{\"changed\": \"1/100\"}";
	struct bench_series *s[] = {
		bench_labelled(res, "snapshot_incremental_write", "us", labels,
			       "memory of a clone, incremental"),
		bench_labelled(res, "snapshot_incremental_full_write", "us", labels,
			       "the same, all of it, LZ4"),
		bench_labelled(res, "snapshot_incremental_bytes", "bytes", labels,
			       "size of the incremental file"),
		bench_labelled(res, "snapshot_incremental_full_bytes", "bytes", labels,
			       "size of the full one"),
	};
	struct mv_err err;
	struct gmem clone;
	int r = clone_of(m, &clone);
	if (!r)
		change(&clone, 0);
	for (int i = 0; !r && i < (env->quick ? 5 : 15); i++)
		for (unsigned full = 0; !r && full < 2; full++) {
			uint64_t bytes = 0, start = mv_now_ns();
			MV_FD fd = open_scratch(env);
			r = fd < 0 ? fd
			    : full ? chunk_write(fd, &clone, false, 0, &bytes, &err)
				   : chunk_write_changed(fd, &clone, NULL, false, 0, &bytes, &err);
			bench_add(s[full], (double)(mv_now_ns() - start) / 1000);
			bench_add(s[2 + full], (double)bytes);
		}
	gmem_fini(&clone);
	return r;
}

// The first clone of a template whose memory lies in 1 + depth files.
static int fill_chains(const struct bench_env *env, const struct gmem *m, struct bench_results *res)
{
	static const struct {
		unsigned depth;
		const char *labels;
	} depths[] = { { 0, "{\"depth\": 0}" },
		       { 1, "{\"depth\": 1}" },
		       { 8, "{\"depth\": 8}" },
		       { MAX_DEPTH, "{\"depth\": 64}" } };
	int file[1 + MAX_DEPTH], r = 0; // oldest last, at the end
	struct mv_err err;
	struct gmem now;
	uint64_t bytes;
	unsigned n = 0;
	r = clone_of(m, &now);
	for (; !r && n <= MAX_DEPTH; n++) {
		int *fd = &file[MAX_DEPTH - n];
		uint64_t *changed = calloc(m->total_bytes / PAGE / 64 + 1, sizeof *changed);
		for (uint64_t p = n % CHANGED_EVERY; changed && p < m->total_bytes / PAGE; p += CHANGED_EVERY)
			changed[p / 64] |= 1ULL << p % 64;
		if (n)
			change(&now, n);
		*fd = changed ? open_scratch(env) : -ENOMEM;
		r = *fd < 0 ? *fd
		    : n     ? chunk_write_changed(*fd, &now, changed, false, 0, &bytes, &err)
			    : chunk_write(*fd, &now, false, 0, &bytes, &err);
		free(changed);
	}
	for (unsigned k = 0; !r && k < MV_ARRAY_LEN(depths); k++) {
		unsigned depth = depths[k].depth;
		struct bench_series *s =
			bench_labelled(res, "snapshot_incremental_fill", "us", depths[k].labels,
				       "per 4 KiB page, first clone, by parents needed");
		for (int i = 0; !r && i < (env->quick ? 5 : 10); i++) {
			double a = 0, b = 0;
			r = fill_once(env, file + MAX_DEPTH - depth, depth + 1, m->total_bytes, &a, &b);
			bench_add(s, a);
		}
	}
	while (n)
		mv_close(&file[MAX_DEPTH - --n]);
	gmem_fini(&now);
	return r;
}

int bench_lazy(const struct bench_env *env, struct bench_results *res)
{
	struct gmem m = { 0 };
	int r = make_memory(env, env->quick ? 64 << 20 : 256 << 20, &m);
	r = r ? r : write_rates(env, &m, res);
	r = r ? r : fill_rates(env, &m, res);
	r = r ? r : handler_rates(env, &m, res);
	r = r ? r : write_incremental(env, &m, res);
	r = r ? r : fill_chains(env, &m, res);
	gmem_fini(&m);
	return r;
}
