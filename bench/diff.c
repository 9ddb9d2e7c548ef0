// SPDX-License-Identifier: Apache-2.0
// Files of the Firecracker-compatible mode: pages that changed, written raw, beside bare pwrite(2) of the
// same pages; the copy of the file that they are merged into; the state file. All in the page cache, no sync.
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "api/fc/outfile.h"
#include "api/fc/snapfile.h"
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"
#include "snapshot/memory.h"

enum { PAGE = 4096, N_PAGES = (64 << 20) / PAGE, STATE_BYTES = 24 << 10 };
static uint64_t set[N_PAGES / 64];

static double us_since(uint64_t ns) { return (double)(mv_now_ns() - ns) / 1000; }

static int scratch(const struct bench_env *env)
{
	int fd = open(env->out, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

// Runs of `run` pages, a tenth of memory. Returns how many pages.
static unsigned choose(unsigned run)
{
	unsigned n = 0;
	memset(set, 0, sizeof set);
	for (unsigned i = 0; i < N_PAGES; i++)
		if (i / run % 10 == 3) {
			set[i / 64] |= 1ULL << i % 64;
			n++;
		}
	return n;
}

// What has to be written, in the same pieces and nothing else.
static int bare(const struct gmem *m, unsigned run, int fd)
{
	int r = ftruncate(fd, (off_t)m->total_bytes) ? -errno : 0;
	for (uint64_t at = 3ull * run * PAGE, n; !r && at < m->total_bytes; at += 10ull * run * PAGE) {
		n = m->total_bytes - at < run * PAGE ? m->total_bytes - at : run * PAGE;
		r = mv_pwrite_full(fd, m->region[0].hva + at, (size_t)n, at);
	}
	return r;
}

static int changes(const struct bench_env *env, const struct gmem *m, unsigned run, const char *labels,
		   struct bench_results *res)
{
	struct bench_series *s[2] = {
		bench_labelled(res, "diff_page", "us", labels,
			       "per changed page, raw file with changes only"),
		bench_labelled(res, "diff_page_floor", "us", labels, "the same by bare pwrite"),
	};
	struct bench_series *ratio = bench_labelled(res, "diff_ratio", "ratio", labels, "floor / ours");
	double us[2] = { 0, 0 };
	unsigned n = choose(run);
	int r = 0;
	for (int i = 0; !r && i < (env->quick ? 15 : 50); i++) {
		for (int k = 0; !r && k < 2; k++) {
			const int floor = (i + k) & 1; // in turns
			struct mv_err err;
			uint64_t bytes, data;
			MV_FD fd = scratch(env);
			uint64_t start = mv_now_ns();
			r = fd < 0  ? fd
			    : floor ? bare(m, run, fd)
				    : snap_memory_write_changed(fd, m, set, &bytes, &data, &err);
			us[floor] = us_since(start) / n;
			bench_add(s[floor], us[floor]);
		}
		bench_add(ratio, us[1] / us[0]);
	}
	return r;
}

static int copies(const struct bench_env *env, const struct gmem *m, struct bench_results *res)
{
	struct bench_series *s = bench_series(res, "diff_base_copy", "us",
					      "per MiB of data in the file a Diff is merged into");
	char path[1200];
	struct mv_err err = { 0 };
	uint64_t bytes, data;
	snprintf(path, sizeof path, "%s/diff-base", env->out);
	MV_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : snap_memory_write(fd, m, &bytes, &data, &err);
	for (int i = 0; !r && i < (env->quick ? 7 : 20); i++) {
		FC_OUTFILE f = FC_OUTFILE_NONE;
		uint64_t start = mv_now_ns();
		r = fc_outfile_open(path, m->total_bytes, &f, &err);
		bench_add(s, us_since(start) / (double)(data >> 20));
	}
	unlink(path);
	return r;
}

static int state_files(const struct bench_env *env, struct bench_results *res)
{
	static uint8_t state[STATE_BYTES];
	static struct vmcfg cfg, got;
	struct bench_series *w =
		bench_series(res, "fc_state_write", "us", "state file, 24 KiB, written and checked");
	struct bench_series *rd =
		bench_series(res, "fc_state_read", "us", "the same read, into a sealed memfd");
	struct mv_err err;
	MV_FD raw = memfd_create("state", MFD_CLOEXEC);
	strcpy(cfg.name, "vm");
	mv_uuid(cfg.id);
	cfg.vcpus = 1;
	cfg.mem_mib = 128;
	strcpy(cfg.kernel, "/vmlinux");
	int r = raw < 0 ? -errno : snap_container_write(raw, SNAP_MAGIC_STATE, state, sizeof state, &err);
	for (int i = 0; !r && i < (env->quick ? 20 : 100); i++) {
		MV_FD fd = scratch(env);
		MV_FD state_fd = -1;
		uint64_t start = mv_now_ns();
		r = fd < 0 ? fd : fc_snapfile_write(fd, &cfg, raw, NULL, &err);
		bench_add(w, us_since(start));
		start = mv_now_ns();
		r = r ? r : fc_snapfile_read(fd, &got, &state_fd, NULL, &err);
		bench_add(rd, us_since(start));
	}
	return r;
}

int bench_diff(const struct bench_env *env, struct bench_results *res)
{
	struct gmem m = { 0 };
	struct mv_err err;
	int r = gmem_add(&m, 0, (uint64_t)N_PAGES * PAGE);
	r = r ? r : gmem_map(&m, -1, &err);
	for (unsigned i = 0; !r && i < N_PAGES; i++)
		memset(m.region[0].hva + (size_t)i * PAGE, (int)(1 + i % 250), PAGE);
	r = r ? r : changes(env, &m, 1, "{\"run_pages\": 1}", res);
	r = r ? r : changes(env, &m, 16, "{\"run_pages\": 16}", res);
	r = r ? r : copies(env, &m, res);
	r = r ? r : state_files(env, res);
	gmem_fini(&m);
	return r;
}
