// SPDX-License-Identifier: Apache-2.0
#include "microvm/cpu_report.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vcpu_state.h"

#define F1_ECX_TSC_DEADLINE (1u << 24)

// What KVM says that it supports.
static bool ask_list(int kvm_fd, struct x86_cpuid *ret_list)
{
	ret_list->head = (struct kvm_cpuid2){ .nent = X86_MAX_CPUID };
	if (kvm_fd < 0 || ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, ret_list))
		return false;
	// Not always among what KVM lists (KVM API 4.46).
	struct kvm_cpuid_entry2 *e = x86_cpuid_find(ret_list, 1, 0);
	if (e && ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
		e->ecx |= F1_ECX_TSC_DEADLINE;
	return true;
}

static void *close_vm(void *vm_fd)
{
	close((int)(intptr_t)vm_fd);
	return NULL;
}

// The end of a VM takes KVM milliseconds, and nobody needs to wait for it.
static void end_vm(int *vm_fd)
{
	pthread_t thread;
	if (*vm_fd < 0)
		return;
	if (pthread_create(&thread, NULL, close_vm, (void *)(intptr_t)*vm_fd))
		close(*vm_fd);
	else
		pthread_detach(thread);
}

// Adds what a vCPU shows of its own accord (kvm-pvm shows the guest's user mode the bare CPU, whatever is
// set).
static bool ask_vcpu(int kvm_fd, struct x86_cpuid *list)
{
	struct x86_cpuid shown = { .head.nent = X86_MAX_CPUID };
	__attribute__((cleanup(end_vm))) int vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0L);
	MV_FD vcpu_fd = vm_fd < 0 ? -1 : ioctl(vm_fd, KVM_CREATE_VCPU, 0L);
	if (vcpu_fd < 0 || ioctl(vcpu_fd, KVM_SET_CPUID2, list) || ioctl(vcpu_fd, KVM_GET_CPUID2, &shown))
		return false;
	x86_features_add(list, &shown);
	return true;
}

// Each is asked once per process, since the answer stays the same; and the vCPU only for what the list lacks:
// it takes a VM.
static bool read_host(const char *kvm_path, bool vcpu_too, struct x86_cpuid *ret_list)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static struct x86_cpuid host;
	static bool has_list, has_vcpu;
	pthread_mutex_lock(&lock);
	MV_FD kvm_fd = has_list && (has_vcpu || !vcpu_too) ? -1 : open(kvm_path, O_RDWR | O_CLOEXEC);
	has_list = has_list || ask_list(kvm_fd, &host);
	has_vcpu = has_vcpu || (vcpu_too && has_list && ask_vcpu(kvm_fd, &host));
	bool ok = has_list && (has_vcpu || !vcpu_too);
	if (ok)
		*ret_list = host;
	pthread_mutex_unlock(&lock);
	return ok;
}

// Fills compared, n_missing and missing.
static void compare(const struct x86_cpuid *guest, const char *kvm_path, struct cpu_report *r)
{
	struct x86_cpuid host;
	bool vcpu_too = false;
	do {
		mv_buf_fini(&r->missing);
		r->missing = (struct mv_buf){ 0 };
		r->compared = read_host(kvm_path, vcpu_too, &host);
		r->n_missing = r->compared ? x86_features_missing(guest, &host, &r->missing) : 0;
		vcpu_too = !vcpu_too;
	} while (r->n_missing && vcpu_too);
}

static void describe(struct x86_cpuid *guest, struct cpu_report *r)
{
	const struct kvm_cpuid_entry2 *e = x86_cpuid_find(guest, 1, 0);
	uint32_t v = e ? e->eax : 0;
	x86_cpuid_vendor(guest, r->vendor);
	r->stepping = v & 15;
	r->model_number = (v >> 4 & 15) | (v >> 12 & 0xf0);
	r->family = (v >> 8 & 15) + ((v >> 8 & 15) == 15 ? v >> 20 & 0xff : 0);
	for (uint32_t i = 0; i < 3; i++)
		if ((e = x86_cpuid_find(guest, 0x80000002 + i, 0)))
			memcpy(r->model + 16 * i, &e->eax, 16);
	for (char *p = r->model; *p; p++) // from a file
		if (*p < 0x20 || *p > 0x7e)
			*p = '?';
	x86_features(guest, &r->features);
}

int cpu_host(const char *kvm_path, char ret_vendor[13], uint32_t *ret_version)
{
	struct x86_cpuid host;
	const struct kvm_cpuid_entry2 *e =
		read_host(kvm_path, false, &host) ? x86_cpuid_find(&host, 1, 0) : NULL;
	if (!e)
		return -ENODEV;
	x86_cpuid_vendor(&host, ret_vendor);
	*ret_version = e->eax;
	return 0;
}

int cpu_report_arch(const void *vcpu, size_t len, const char *kvm_path, const struct vmcfg_cpu *cpu,
		    struct cpu_report *r, struct mv_err *err)
{
	struct x86_cpuid guest;
	MV_FREE struct vcpu_state *s = malloc(sizeof *s);
	int e = s ? mv_state_load(&x86_vcpu_table, vcpu, len, s, err) : mv_fail(err, ENOMEM, "out of memory");
	if (!e && x86_vcpu_cpuid(s, &guest))
		e = mv_fail(err, EINVAL, "state: the vCPU's CPUID is damaged");
	if (e)
		return e;
	describe(&guest, r);
	if (cpu)
		x86_cpuid_unset(&guest, cpu);
	if (kvm_path)
		compare(&guest, kvm_path, r);
	return 0;
}
