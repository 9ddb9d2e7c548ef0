// SPDX-License-Identifier: Apache-2.0
// Live snapshots: how long the VM stands still, by memory size and by how much of it is dirty;
// once with a memory file whose writer is held up, to show that storage does not matter; and
// incremental ones, that write what changed since the one before.
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/microvm/t_vmm.h"

static struct t_vmm vmm; // large

// Stops the forked writer as soon as it is there: storage that takes for ever. Lets it go on
// after ms milliseconds.
static void hold_writer(pid_t vmm_pid, int ms)
{
	char path[64];
	int pid = 0;
	snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)vmm_pid, (int)vmm_pid);
	for (int i = 0; i < 1000 && !pid; i++) {
		FILE *f = fopen(path, "re");
		if (f && fscanf(f, "%d", &pid) != 1)
			pid = 0;
		if (f)
			fclose(f);
	}
	if (!pid || kill(pid, SIGSTOP))
		return;
	poll(NULL, 0, ms);
	kill(pid, SIGCONT);
}

static int one(struct bench_series *pause, struct bench_series *total, bool hold)
{
	int files[2] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };
	uint64_t sent = mv_now_ns(), id = t_vmm_send(&vmm, MSG_SNAPSHOT, files, 2);
	if (hold)
		hold_writer(vmm.pid, 50);
	int r = id ? t_vmm_wait(&vmm, id, 60000) : -EPIPE;
	if (!r) {
		bench_add(pause, (double)vmm.late.pause_ns / 1000);
		bench_add(total, (double)(mv_now_ns() - sent) / 1000);
	}
	close(files[0]);
	close(files[1]);
	return r;
}

static int measure(const struct bench_env *env, struct bench_results *res, unsigned mem_mib, unsigned dirty,
		   const char *labels)
{
	struct vmcfg cfg;
	struct vm_fds f;
	char command[64], line[64];
	struct bench_series *pause =
		bench_labelled(res, "snapshot_live_pause", "us", labels, "live snapshot: vCPUs stand still");
	struct bench_series *total = bench_labelled(res, "snapshot_live_total", "us", labels,
						    "live snapshot: asked to written (raw, page cache)");
	t_tiny_config(&cfg);
	cfg.mem_mib = mem_mib;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.kernel = open(env->guest, O_RDONLY | O_CLOEXEC);
	int r = t_vmm_start(&vmm, env->vmm);
	r = r ? r : t_vmm_setup(&vmm, MSG_BOOT, &cfg, &f, true);
	vm_fds_close(&f);
	r = r ? r : t_vmm_expect(&vmm, "READY\n", 10000);
	for (int i = 0; !r && i < (env->quick ? 8 : 40); i++) {
		snprintf(command, sizeof command, "touch %u w %d", mem_mib * 256 / dirty, i + 1);
		r = t_vmm_ask(&vmm, command, line, sizeof line);
		r = r ? r : one(pause, total, false);
		if (!r && dirty == 4 && mem_mib == 256)
			r = one(bench_labelled(
					res, "snapshot_live_pause", "us",
					"{\"memory_mib\": 256, \"dirty\": \"1/4\", \"writer\": \"held\"}",
					"the same, the writer held up for 50 ms"),
				bench_labelled(
					res, "snapshot_live_total", "us",
					"{\"memory_mib\": 256, \"dirty\": \"1/4\", \"writer\": \"held\"}",
					"the same, the writer held up for 50 ms"),
				true);
	}
	t_vmm_end(&vmm);
	return r;
}

// A sixteenth of memory is written between two snapshots.
static int incremental(const struct bench_env *env, struct bench_results *res)
{
	struct vmcfg cfg;
	struct vm_fds f;
	char command[64], line[64];
	const char *labels = "{\"memory_mib\": 256, \"changed\": \"1/16\"}";
	struct bench_series *pause = bench_labelled(res, "snapshot_incremental_pause", "us", labels,
						    "incremental snapshot: vCPUs stand still");
	struct bench_series *total = bench_labelled(res, "snapshot_incremental_total", "us", labels,
						    "incremental snapshot: asked to written (page cache)");
	t_tiny_config(&cfg);
	cfg.mem_mib = 256;
	cfg.track_dirty = true;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.kernel = open(env->guest, O_RDONLY | O_CLOEXEC);
	int r = t_vmm_start(&vmm, env->vmm);
	r = r ? r : t_vmm_setup(&vmm, MSG_BOOT, &cfg, &f, true);
	vm_fds_close(&f);
	r = r ? r : t_vmm_expect(&vmm, "READY\n", 10000);
	r = r ? r : t_vmm_ask(&vmm, "touch 16384 w 1", line, sizeof line);
	for (int i = 0; !r && i < (env->quick ? 8 : 40); i++) { // the first one is full
		struct msg_snapshot how = { .lz4 = 1, .incremental = i > 0, .confirmed = i > 0 };
		int files[2] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };
		uint64_t sent = mv_now_ns();
		r = t_vmm_call(&vmm, MSG_SNAPSHOT, &msg_snapshot_table, &how, files, 2, 60000);
		if (!r && i) {
			bench_add(pause, (double)vmm.reply.pause_ns / 1000);
			bench_add(total, (double)(mv_now_ns() - sent) / 1000);
		}
		close(files[0]);
		close(files[1]);
		snprintf(command, sizeof command, "touch 4096 w %d", i + 1);
		r = r ? r : t_vmm_ask(&vmm, command, line, sizeof line);
	}
	t_vmm_end(&vmm);
	return r;
}

int bench_live(const struct bench_env *env, struct bench_results *res)
{
	int r = measure(env, res, 128, 4, "{\"memory_mib\": 128, \"dirty\": \"1/4\"}");
	r = r ? r : measure(env, res, 256, 4, "{\"memory_mib\": 256, \"dirty\": \"1/4\"}");
	r = r ? r : measure(env, res, 1024, 4, "{\"memory_mib\": 1024, \"dirty\": \"1/4\"}");
	return r ? r : incremental(env, res);
}
