// SPDX-License-Identifier: Apache-2.0
// Boot and restore of the tiny guest inside one VM process, without daemon and REST.
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/microvm/t_vmm.h"

static struct t_vmm vmm; // large

static int boot(const struct bench_env *env, const struct vmcfg *cfg)
{
	struct vm_fds f;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.kernel = open(env->guest, O_RDONLY | O_CLOEXEC);
	int r = t_vmm_start(&vmm, env->vmm);
	r = r ? r : t_vmm_setup(&vmm, MSG_BOOT, cfg, &f, true);
	r = r ? r : t_vmm_expect(&vmm, "READY\n", 10000);
	vm_fds_close(&f);
	return r;
}

// The event with the time of the first I/O comes by itself; wait for it.
static int wait_first_io(void) { return t_vmm_wait_state(&vmm, VM_RUNNING, 5000); }

int bench_boot(const struct bench_env *env, struct bench_results *res)
{
	struct vmcfg cfg;
	t_tiny_config(&cfg);
	struct bench_series *share =
		bench_series(res, "boot_monitor_share", "us", "thaw-vmm exec to first guest instruction");
	struct bench_series *ready =
		bench_series(res, "boot_first_io", "us", "thaw-vmm exec to the tiny guest's first I/O");
	for (int i = 0; i < env->samples; i++) {
		int r = boot(env, &cfg);
		r = r ? r : wait_first_io();
		if (r) {
			t_vmm_end(&vmm);
			return r;
		}
		const struct msg_times *t = &vmm.event.times;
		bench_add(share, (double)(t->running - vmm.spawned_ns) / 1000);
		bench_add(ready, (double)(t->first_io - vmm.spawned_ns) / 1000);
		if (env->verbose)
			printf("# main %llu request %llu kvm_ready %llu loaded %llu running %llu\n",
			       (unsigned long long)(t->process_start - vmm.spawned_ns) / 1000,
			       (unsigned long long)(t->request - t->process_start) / 1000,
			       (unsigned long long)(t->kvm_ready - t->request) / 1000,
			       (unsigned long long)(t->loaded - t->kvm_ready) / 1000,
			       (unsigned long long)(t->running - t->loaded) / 1000);
		t_vmm_end(&vmm);
	}
	return 0;
}

static int restore_once(const struct bench_env *env, const struct vmcfg *cfg, const int files[2])
{
	struct vm_fds f;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.state = fcntl(files[0], F_DUPFD_CLOEXEC, 10);
	f.memory = fcntl(files[1], F_DUPFD_CLOEXEC, 10);
	int r = t_vmm_start(&vmm, env->vmm);
	r = r ? r : t_vmm_setup(&vmm, MSG_RESTORE, cfg, &f, true);
	r = r ? r : wait_first_io();
	vm_fds_close(&f);
	return r;
}

int bench_restore(const struct bench_env *env, struct bench_results *res)
{
	struct vmcfg cfg;
	struct bench_floor *floor = NULL;
	struct bench_floor_sample sample;
	int files[2] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };

	struct bench_series *cold_floor =
		bench_series(res, "floor_cold_restore", "us", "bare ioctls, from nothing to first guest I/O");
	struct bench_series *pool_floor = bench_series(res, "floor_pooled_restore", "us",
						       "the same, all but mapping and state done before");
	struct bench_series *run_floor = bench_series(res, "floor_claim_run", "us",
						      "of it KVM_RUN alone: all of a claim that is not ours");
	struct bench_series *inproc =
		bench_series(res, "clone_cold_inproc", "us", "thaw-vmm: main() to first guest I/O");
	struct bench_series *load =
		bench_series(res, "clone_cold_load", "us", "thaw-vmm: order received to first guest I/O");
	struct bench_series *ratio = bench_series(res, "clone_cold_over_floor", "ratio",
						  "clone_cold_inproc / floor_cold_restore, pairwise");
	t_tiny_config(&cfg);
	int r = boot(env, &cfg);
	r = r ? r : t_vmm_call(&vmm, MSG_SNAPSHOT, NULL, NULL, files, 2, 20000);
	t_vmm_end(&vmm);
	r = r ? r : bench_floor_prepare(env->guest, env->out, &floor);
	if (r == -ENOTSUP)
		r = 0; // an architecture without one
	for (int i = 0; !r && i < env->samples; i++) {
		double bare = 0;
		if (floor) {
			if ((r = bench_floor_cold_restore(floor, &sample)))
				break;
			bare = (double)sample.total_ns / 1000;
			bench_add(cold_floor, bare);
			if ((r = bench_floor_pooled_restore(floor, &sample)))
				break;
			bench_add(pool_floor, (double)sample.total_ns / 1000);
			bench_add(run_floor, (double)sample.run_ns / 1000);
		}
		if ((r = restore_once(env, &cfg, files))) {
			t_vmm_end(&vmm);
			break;
		}
		const struct msg_times *t = &vmm.event.times;
		double ours = (double)(t->first_io - t->process_start) / 1000;
		bench_add(inproc, ours);
		bench_add(load, (double)(t->first_io - t->request) / 1000);
		if (floor)
			bench_add(ratio, ours / bare);
		if (env->verbose)
			printf("# kvm_ready %llu loaded %llu running %llu first_exit %llu first_io %llu\n",
			       (unsigned long long)(t->kvm_ready - t->request) / 1000,
			       (unsigned long long)(t->loaded - t->kvm_ready) / 1000,
			       (unsigned long long)(t->running - t->loaded) / 1000,
			       (unsigned long long)(t->first_exit - t->running) / 1000,
			       (unsigned long long)(t->first_io - t->running) / 1000);
		t_vmm_end(&vmm);
	}
	bench_floor_free(floor);
	close(files[0]);
	close(files[1]);
	return r;
}
