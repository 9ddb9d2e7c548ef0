// SPDX-License-Identifier: Apache-2.0
#include "microvm/kvm.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "microvm/base/util.h"

int kvm_call(int fd, unsigned long request, void *arg, const char *name, struct mv_err *err)
{
	int r = ioctl(fd, request, arg);
	return r < 0 ? mv_fail(err, errno, "%s: %s", name, strerror(errno)) : r;
}

int kvm_capability(int fd, int capability)
{
	int r = ioctl(fd, KVM_CHECK_EXTENSION, (long)capability);
	return r < 0 ? 0 : r;
}

int kvm_create_vm(int kvm_fd, struct mv_err *err)
{
	int version = ioctl(kvm_fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return mv_fail(err, ENODEV, "/dev/kvm does not speak KVM API %d: run \"thaw doctor\"",
			       KVM_API_VERSION);
	int fd;
	do // interrupted by a signal: nothing was made
		fd = ioctl(kvm_fd, KVM_CREATE_VM, 0L);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? mv_fail(err, errno, "KVM_CREATE_VM: %s", strerror(errno)) : fd;
}

int kvm_set_memory(int vm_fd, const struct gmem *m, bool log_dirty, struct mv_err *err)
{
	for (unsigned i = 0; i < m->n_regions; i++) {
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			.guest_phys_addr = m->region[i].gpa,
			.memory_size = m->region[i].size_bytes,
			.userspace_addr = (uintptr_t)m->region[i].hva,
		};
		int r = kvm_call(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION", err);
		if (r < 0)
			return log_dirty && err->code == EINVAL
				       ? mv_wrap(err, "track_dirty: this KVM can't tell what a guest writes")
				       : r;
	}
	for (unsigned i = 0; i < m->n_files; i++) {
		struct kvm_userspace_memory_region slot = {
			.slot = m->n_regions + i,
			.flags = m->file[i].access == GMEM_READ_ONLY ? KVM_MEM_READONLY : 0,
			.guest_phys_addr = m->file[i].gpa,
			.memory_size = m->file[i].size_bytes,
			.userspace_addr = (uintptr_t)m->file[i].hva,
		};
		int r = kvm_call(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION", err);
		if (r < 0)
			return mv_wrap(err, "pmem");
	}
	return 0;
}

// The grace period is over when a slot could be made; which one does not matter.
int kvm_settle(int vm_fd, struct mv_err *err)
{
	struct kvm_userspace_memory_region slot = { .memory_size = mv_host_page_bytes() };
	void *p = mmap(NULL, slot.memory_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return mv_fail(err, errno, "out of memory");
	slot.userspace_addr = (uintptr_t)p;
	int r = kvm_call(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION", err);
	slot.memory_size = 0;
	r = r < 0 ? r : kvm_call(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION", err);
	munmap(p, mv_host_page_bytes());
	return r < 0 ? r : 0;
}

int kvm_get_dirty_log(int vm_fd, unsigned slot, uint64_t *bits, struct mv_err *err)
{
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bits };
	return kvm_call(vm_fd, KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG", err);
}

int kvm_create_vcpu(int vm_fd, unsigned index, struct mv_err *err)
{
	int fd = ioctl(vm_fd, KVM_CREATE_VCPU, (long)index);
	return fd < 0 ? mv_fail(err, errno, "KVM_CREATE_VCPU %u: %s", index, strerror(errno)) : fd;
}

int kvm_run_bytes(int kvm_fd)
{
	int r = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	return r < 0 ? -errno : r;
}

int kvm_irqfd(int vm_fd, int event_fd, uint32_t gsi, struct mv_err *err)
{
	struct kvm_irqfd q = { .fd = (uint32_t)event_fd, .gsi = gsi };
	return kvm_call(vm_fd, KVM_IRQFD, &q, "KVM_IRQFD", err);
}

int kvm_irqfd_off(int vm_fd, int event_fd, uint32_t gsi, struct mv_err *err)
{
	struct kvm_irqfd q = { .fd = (uint32_t)event_fd, .gsi = gsi, .flags = KVM_IRQFD_FLAG_DEASSIGN };
	return kvm_call(vm_fd, KVM_IRQFD, &q, "KVM_IRQFD", err);
}

int kvm_ioeventfd(int vm_fd, int event_fd, uint64_t gpa_, uint32_t value, struct mv_err *err)
{
	struct kvm_ioeventfd e = { .datamatch = value,
				   .addr = gpa_,
				   .len = 4,
				   .fd = event_fd,
				   .flags = KVM_IOEVENTFD_FLAG_DATAMATCH };
	return kvm_call(vm_fd, KVM_IOEVENTFD, &e, "KVM_IOEVENTFD", err);
}

int kvm_pulse_gsi(int vm_fd, uint32_t gsi)
{
	for (uint32_t level = 1;; level = 0) {
		struct kvm_irq_level line = { .irq = gsi, .level = level };
		if (ioctl(vm_fd, KVM_IRQ_LINE, &line) < 0)
			return -errno;
		if (!level)
			return 0;
	}
}
