// SPDX-License-Identifier: Apache-2.0
// The host's pages under guest memory (enum gmem_pages), each kind beside a bare mapping of it: boot, the
// guest's first touch of its memory and a touch of what is there, restore, and what a clone takes.
//
// A kind that the host does not have is left out and said so: give it a pool before (vm.nr_hugepages).
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "microvm/base/gmem.h"
#include "tests/microvm/t_vmm.h"

enum { MEM_MIB = 96, TOUCH_MIB = 64, PAGES_PER_MIB = 256 };

static struct t_vmm vmm; // large

static double us_since(uint64_t ns) { return (double)(mv_now_ns() - ns) / 1000; }

static void touch(const struct gmem *m)
{
	volatile uint8_t *p = m->region[0].hva;
	for (size_t i = 0; i < (size_t)TOUCH_MIB * PAGES_PER_MIB; i++)
		p[i * GMEM_PAGE_BYTES] = 1;
}

// The pool's pages are touched when they are mapped, so the mapping is part of the first touch.
static int floor_touch(enum gmem_pages pages, struct bench_results *res, const char *labels)
{
	struct gmem m = { .pages = pages };
	uint64_t start = mv_now_ns();
	int r = gmem_add(&m, 0, (uint64_t)MEM_MIB << 20);
	r = r ? r : gmem_map(&m, -1, NULL);
	if (r)
		return r;
	touch(&m);
	bench_add(bench_labelled(res, "memory_touch_floor", "us", labels,
				 "a bare mapping: made and touched, per MiB"),
		  us_since(start) / TOUCH_MIB);
	gmem_fini(&m);
	return 0;
}

static int ask_touch(struct bench_series *s)
{
	char command[64], line[64];
	snprintf(command, sizeof command, "touch %d w 1", TOUCH_MIB * PAGES_PER_MIB);
	uint64_t start = mv_now_ns();
	int r = t_vmm_ask(&vmm, command, line, sizeof line);
	if (!r)
		bench_add(s, us_since(start) / TOUCH_MIB);
	return r;
}

// KiB of these lines of the VM process's smaps_rollup: its own pages, wherever they come from.
static double own_mib(void)
{
	static const char *const keys[] = { "Private_Clean:", "Private_Dirty:", "Private_Hugetlb:" };
	char path[64], line[160];
	double kib = 0;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", (int)vmm.pid);
	FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		for (size_t i = 0; i < MV_ARRAY_LEN(keys); i++)
			if (!strncmp(line, keys[i], strlen(keys[i])))
				kib += strtod(line + strlen(keys[i]), NULL);
	if (f)
		fclose(f);
	return kib / 1024;
}

// files: state and memory to restore from; NULL: boots.
static int start(const struct bench_env *env, const struct vmcfg *cfg, const int *files, double *ret_us)
{
	struct vm_fds f;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.kernel = files ? -1 : open(env->guest, O_RDONLY | O_CLOEXEC);
	f.state = files ? fcntl(files[0], F_DUPFD_CLOEXEC, 10) : -1;
	f.memory = files ? fcntl(files[1], F_DUPFD_CLOEXEC, 10) : -1;
	int r = t_vmm_start(&vmm, env->vmm);
	r = r ? r : t_vmm_setup(&vmm, files ? MSG_RESTORE : MSG_BOOT, cfg, &f, true);
	r = r ? r : t_vmm_expect(&vmm, files ? "RESTORED\n" : "READY\n", 10000);
	vm_fds_close(&f);
	if (!r)
		*ret_us = (double)(vmm.event.times.first_io - vmm.event.times.request) / 1000;
	return r;
}

static int measure(const struct bench_env *env, struct bench_results *res, enum gmem_pages pages,
		   const int files[2], const char *labels)
{
	struct vmcfg cfg;
	double us;
	t_tiny_config(&cfg);
	cfg.mem_mib = MEM_MIB;
	cfg.huge_pages = pages;
	int r = floor_touch(pages, res, labels);
	r = r ? r : start(env, &cfg, NULL, &us);
	if (!r)
		bench_add(bench_labelled(res, "memory_boot", "us", labels,
					 "order to the guest's first I/O, 96 MiB"),
			  us);
	r = r ? r
	      : ask_touch(bench_labelled(res, "memory_touch_first", "us", labels,
					 "the guest's first write to each page, per MiB"));
	r = r ? r
	      : ask_touch(bench_labelled(res, "memory_touch_again", "us", labels,
					 "the same once more, per MiB: the answer alone takes 2 ms"));
	t_vmm_end(&vmm);
	r = r ? r : start(env, &cfg, files, &us);
	if (!r) {
		bench_add(bench_labelled(res, "memory_restore", "us", labels,
					 "order to the clone's first I/O, 64 of 96 MiB are data"),
			  us);
		bench_add(bench_labelled(res, "memory_clone", "MiB", labels, "a clone's own memory then"),
			  own_mib());
		r = ask_touch(bench_labelled(res, "memory_touch_clone", "us", labels,
					     "a clone's first write to each page, per MiB"));
	}
	t_vmm_end(&vmm);
	return r;
}

static int make_snapshot(const struct bench_env *env, const int files[2])
{
	struct bench_results ignored = { 0 };
	struct vmcfg cfg;
	double us;
	t_tiny_config(&cfg);
	cfg.mem_mib = MEM_MIB;
	int r = start(env, &cfg, NULL, &us);
	r = r ? r : ask_touch(bench_series(&ignored, "first", "us", ""));
	r = r ? r : t_vmm_call(&vmm, MSG_SNAPSHOT, NULL, NULL, files, 2, 20000);
	t_vmm_end(&vmm);
	bench_results_fini(&ignored);
	return r;
}

int bench_memory(const struct bench_env *env, struct bench_results *res)
{
	static const struct {
		enum gmem_pages pages;
		const char *name, *labels;
	} kinds[] = { { GMEM_4K, "none", "{\"huge_pages\":\"none\"}" },
		      { GMEM_THP, "thp", "{\"huge_pages\":\"thp\"}" },
		      { GMEM_2M, "2M", "{\"huge_pages\":\"2M\"}" } };
	bool left_out[MV_ARRAY_LEN(kinds)] = { false };
	int files[2] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };
	int r = make_snapshot(env, files);
	for (size_t k = 0; k < MV_ARRAY_LEN(kinds); k++) {
		struct gmem m = { .pages = kinds[k].pages };
		left_out[k] = gmem_add(&m, 0, (uint64_t)MEM_MIB << 20) || gmem_map(&m, -1, NULL) == -ENOBUFS;
		gmem_fini(&m);
		if (left_out[k])
			printf("# memory: huge_pages %s left out: the host has not %d MiB of them free\n",
			       kinds[k].name, MEM_MIB);
	}
	for (int i = 0; !r && i < (env->quick ? 3 : 20); i++)
		for (size_t k = 0; !r && k < MV_ARRAY_LEN(kinds); k++)
			if (!left_out[k])
				r = measure(env, res, kinds[k].pages, files, kinds[k].labels);
	close(files[0]);
	close(files[1]);
	return r;
}
