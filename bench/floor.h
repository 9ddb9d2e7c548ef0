// SPDX-License-Identifier: Apache-2.0
/*
 * The floor: how fast a VM can be restored by bare KVM ioctls and one mmap, in
 * the best order and with no monitor around them. What thaw takes longer than
 * this is thaw's own.
 *
 * The VM is the tiny guest (tests/guest), booted once by PVH and frozen while it
 * idles. A restore ends at the *first I/O*: the first KVM_EXIT_IO of the restored
 * guest, which is the first letter of the RESTORED that it prints because the
 * restorer pulsed the event interrupt (GSI 9), as thaw does for a new generation
 * ID. The memory file is in the page cache, as it is after a first clone.
 *
 * Single-threaded use. Needs /dev/kvm. No part of thaw is used.
 */
#ifndef BENCH_FLOOR_H
#define BENCH_FLOOR_H

#include <stdint.h>
#include <sys/types.h>

struct bench_floor;

/* Where the time of one restore went; the parts add up to total_ns. */
struct bench_floor_sample {
	uint64_t total_ns;
	uint64_t create_ns; /* open /dev/kvm, KVM_CREATE_VM */
	uint64_t memory_ns; /* mmap of the file; cold: and the memory slot */
	uint64_t vcpu_ns;   /* irqchip, vCPU, CPUID; pooled: 0 */
	uint64_t state_ns;  /* registers, local APIC, MSRs, irqchip, clock, interrupt */
	uint64_t run_ns;    /* KVM_RUN to the first I/O */
};

/*
 * Boots guest_elf with 128 MiB and one vCPU until it has said READY and idles,
 * keeps its state and writes its memory to a sparse file in dir (unlinked by
 * bench_floor_free). Also forks a process that keeps one idle VM alive, so that
 * no sample pays for the host's first VM. Returns 0 or -errno; *ret_floor then
 * belongs to the caller. -ETIMEDOUT: no READY, or never idle. -ENOTSUP: this architecture has no floor
 * (bench/ARCH/floor.c); nothing else is to be called then.
 */
int bench_floor_prepare(const char *guest_elf, const char *dir, struct bench_floor **ret_floor);

/*
 * One restore from nothing: open /dev/kvm ... first I/O. The VM is torn down
 * after the clock was stopped. Returns 0 or -errno (-EPROTO: the guest's first
 * exit was not the expected one); *ret_sample is untouched on failure.
 */
int bench_floor_cold_restore(struct bench_floor *f, struct bench_floor_sample *ret_sample);

/*
 * The same with everything done in advance that does not depend on the snapshot:
 * VM, memory slot over a reserved range, irqchip, vCPU, CPUID. Timed: the file
 * mapped over the range, the state, the run.
 */
int bench_floor_pooled_restore(struct bench_floor *f, struct bench_floor_sample *ret_sample);

/*
 * Forks n processes that hold one restored VM each, idle after its first I/O, until
 * bench_floor_release(). 0 or -errno; then none is left.
 */
int bench_floor_hold(struct bench_floor *f, unsigned n, pid_t *ret_pids);
void bench_floor_release(const pid_t *pids, unsigned n);

/* Accepts NULL. */
void bench_floor_free(struct bench_floor *f);

#endif
