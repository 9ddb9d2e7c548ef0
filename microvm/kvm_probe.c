// SPDX-License-Identifier: Apache-2.0
#include "microvm/kvm_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "microvm/base/util.h"

#define GUEST_BYTES 0x10000u          // a page of any size
#define SLOW_NS_PER_INSTRUCTION 100.0 // hardware: about 1, emulation: about 600
#define RUNS_MAX 16

static void check_capabilities(int kvm_fd, struct kvm_probe *p)
{
	size_t used = 0;
	for (size_t i = 0; i < kvm_probe_n_needed && used < sizeof p->missing; i++)
		if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, kvm_probe_needed[i].capability) <= 0)
			used += (size_t)snprintf(p->missing + used, sizeof p->missing - used, "%s%s",
						 used ? " " : "", kvm_probe_needed[i].name);
	p->max_vcpus = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
}

int kvm_probe_step(struct kvm_probe *p, const char *what, long result)
{
	if (result >= 0)
		return 0;
	snprintf(p->guest_error, sizeof p->guest_error, "%s: %s", what, strerror(errno));
	return -1;
}

static void time_guest(int vcpu_fd, volatile struct kvm_run *run, struct kvm_probe *p)
{
	uint64_t start = mv_now_ns();
	for (int i = 0; i < RUNS_MAX; i++) {
		if (ioctl(vcpu_fd, KVM_RUN, 0) && errno != EINTR && kvm_probe_step(p, "KVM_RUN", -1))
			return;
		if (run->exit_reason != kvm_probe_last_exit)
			continue;
		p->guest_ran = true;
		p->ns_per_instruction = (double)(mv_now_ns() - start) / (2.0 * KVM_PROBE_LOOPS);
		p->hardware_speed = p->ns_per_instruction < SLOW_NS_PER_INSTRUCTION;
		return;
	}
	snprintf(p->guest_error, sizeof p->guest_error, "KVM exit reason %u", run->exit_reason);
}

static void run_guest(int kvm_fd, int vm_fd, uint8_t *memory, struct kvm_probe *p)
{
	struct kvm_userspace_memory_region slot = { .guest_phys_addr = kvm_probe_gpa,
						    .memory_size = GUEST_BYTES,
						    .userspace_addr = (uintptr_t)memory };
	if (kvm_probe_step(p, "KVM_SET_USER_MEMORY_REGION", ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot)))
		return;
	MV_FD vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	int run_bytes = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (kvm_probe_step(p, "KVM_CREATE_VCPU", vcpu_fd) ||
	    kvm_probe_step(p, "KVM_GET_VCPU_MMAP_SIZE", run_bytes))
		return;
	struct kvm_run *run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	if (run == MAP_FAILED) {
		kvm_probe_step(p, "mmap", -1);
		return;
	}
	if (!kvm_probe_prepare(vm_fd, vcpu_fd, memory, p))
		time_guest(vcpu_fd, run, p);
	munmap(run, (size_t)run_bytes);
}

static void probe_guest(int kvm_fd, struct kvm_probe *p)
{
	uint8_t *memory = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		kvm_probe_step(p, "mmap", -1);
		return;
	}
	MV_FD vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (!kvm_probe_step(p, "KVM_CREATE_VM", vm_fd))
		run_guest(kvm_fd, vm_fd, memory, p);
	munmap(memory, GUEST_BYTES);
}

int kvm_probe(const char *device, struct kvm_probe *ret_p, struct mv_err *err)
{
	struct kvm_probe p = { 0 };
	MV_FD fd = open(device, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return mv_fail(err, errno == EPERM ? EACCES : errno, "%s: %s", device, strerror(errno));
	p.api_version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (p.api_version < 0)
		return mv_fail(err, ENOTTY, "%s is not KVM", device);
	if (p.api_version == KVM_API_VERSION) {
		check_capabilities(fd, &p);
		probe_guest(fd, &p);
	}
	*ret_p = p;
	return 0;
}
