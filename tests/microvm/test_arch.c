// SPDX-License-Identifier: Apache-2.0
// The x86-64 machine's state on the host's KVM, in this process; no guest runs. Takes
// THAW_GUEST (path) from the environment.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include <cmocka.h>

#include "microvm/kvm.h"
#include "microvm/save.h"
#include "microvm/vcpu.h"
#include "tests/microvm/t_vmm.h"

#define N_CPUS 3
#define MSR_TSC 0x10
#define MSR_MISC_ENABLE 0x1a0
#define MSR_MTRR_PHYS_BASE_0 0x200
#define MSR_MTRR_FIX64K 0x250
#define MSR_MTRR_DEF_TYPE 0x2ff

static const char *guest;
static struct vm a, b; // large; every test makes and frees what it uses

static void make(struct vm *vm)
{
	struct vmcfg c;
	struct vm_fds f;
	struct mv_err err = { 0 };
	t_tiny_config(&c);
	c.vcpus = N_CPUS;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.kernel = open(guest, O_RDONLY | O_CLOEXEC);
	memset(vm, 0, sizeof *vm);
	assert_int_equal(vm_init(vm, &err), 0);
	assert_int_equal(vm_boot(vm, &c, &f, &err), 0);
}

static const struct kvm_cpuid_entry2 *leaf(const struct kvm_cpuid2 *list, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < list->nent; i++)
		if (list->entries[i].function == function && list->entries[i].index == index)
			return &list->entries[i];
	return NULL;
}

// What a guest may count on: one socket; nothing that a snapshot could not carry.
static void test_cpuid(void **state)
{
	MV_FREE struct kvm_cpuid2 *list = calloc(1, sizeof *list + 256 * sizeof list->entries[0]);
	const struct kvm_cpuid_entry2 *e;
	(void)state;
	make(&a);
	for (uint32_t cpu = 0; cpu < N_CPUS; cpu++) {
		list->nent = 256;
		assert_int_equal(ioctl(a.vcpu[cpu].fd, KVM_GET_CPUID2, list), 0);
		assert_non_null(e = leaf(list, 1, 0));
		assert_int_equal(e->ebx >> 24, cpu);
		assert_false(e->ecx & 1u << 5); // VMX
		assert_true(e->ecx & 1u << 31); // a hypervisor
		if ((e = leaf(list, 0x80000001, 0)))
			assert_false(e->ecx & 0x11800004u); // SVM, performance counters
		if ((e = leaf(list, 0x80000007, 0)))
			assert_false(e->edx & 1u << 8); // a TSC that never stops
		if (leaf(list, 0xb, 0)) {
			assert_non_null(e = leaf(list, 0xb, 1));
			assert_int_equal(e->eax, 2);             // bits of the APIC id below the package
			assert_int_equal(e->ebx, N_CPUS);        // CPUs in it
			assert_int_equal(e->ecx >> 8 & 0xff, 2); // this level is cores
			assert_int_equal(e->edx, cpu);
		}
	}
	vm_fini(&a);
}

static uint64_t get_msr(const struct vm *vm, unsigned cpu, uint32_t index)
{
	MV_FREE struct kvm_msrs *m = calloc(1, sizeof *m + sizeof m->entries[0]);
	m->nmsrs = 1;
	m->entries[0].index = index;
	assert_int_equal(ioctl(vm->vcpu[cpu].fd, KVM_GET_MSRS, m), 1);
	return m->entries[0].data;
}

static void set_msr(const struct vm *vm, unsigned cpu, uint32_t index, uint64_t value)
{
	MV_FREE struct kvm_msrs *m = calloc(1, sizeof *m + sizeof m->entries[0]);
	m->nmsrs = 1;
	m->entries[0] = (struct kvm_msr_entry){ .index = index, .data = value };
	assert_int_equal(ioctl(vm->vcpu[cpu].fd, KVM_SET_MSRS, m), 1);
}

// Every CPU starts as firmware would leave it, and memory types survive a snapshot, though
// KVM does not list their registers.
static void test_msrs(void **state)
{
	MV_BUF saved = { 0 };
	struct mv_err err = { 0 };
	(void)state;
	make(&a);
	make(&b);
	for (unsigned cpu = 0; cpu < N_CPUS; cpu++) {
		assert_int_equal(get_msr(&a, cpu, MSR_MISC_ENABLE) & 1, 1);
		assert_int_equal(get_msr(&a, cpu, MSR_MTRR_DEF_TYPE), 0x806);
	}
	set_msr(&a, 1, MSR_MTRR_PHYS_BASE_0, 0xc0000000);
	set_msr(&a, 1, MSR_MTRR_PHYS_BASE_0 + 1, 0xfc0000800);
	set_msr(&a, 1, MSR_MTRR_FIX64K, 0x0606060606060606);
	set_msr(&a, 1, MSR_MTRR_DEF_TYPE, 0xc06);
	assert_int_equal(arch_vcpu_save(&a.vcpu[1], &saved, &err), 0);
	assert_int_equal(arch_vcpu_load(&b.vcpu[1], saved.p, saved.len, &err), 0);
	assert_int_equal(get_msr(&b, 1, MSR_MTRR_PHYS_BASE_0), 0xc0000000);
	assert_int_equal(get_msr(&b, 1, MSR_MTRR_PHYS_BASE_0 + 1), 0xfc0000800);
	assert_int_equal(get_msr(&b, 1, MSR_MTRR_FIX64K), 0x0606060606060606);
	assert_int_equal(get_msr(&b, 1, MSR_MTRR_DEF_TYPE), 0xc06);
	vm_fini(&a);
	vm_fini(&b);
}

static uint64_t clock_of(const struct vm *vm)
{
	struct kvm_clock_data c = { 0 };
	assert_int_equal(ioctl(vm->vm_fd, KVM_GET_CLOCK, &c), 0);
	return c.clock;
}

// The guest's clock goes on by the time between snapshot and first run, also when the
// snapshot is of a VM that was itself restored and has not run yet.
static void test_clock(void **state)
{
	const uint64_t hours_ns = 10000000000000, pause_ns = 50000000;
	const struct timespec pause = { .tv_nsec = (long)pause_ns };
	struct kvm_clock_data c = { .clock = hours_ns };
	MV_BUF first = { 0 };
	MV_BUF second = { 0 };
	struct mv_err err = { 0 };
	(void)state;
	make(&a);
	make(&b);
	assert_int_equal(ioctl(a.vm_fd, KVM_SET_CLOCK, &c), 0);
	assert_int_equal(arch_vm_save(&a, &first, &err), 0);
	assert_int_equal(arch_vm_load(&b, first.p, first.len, &err), 0);
	assert_int_equal(arch_vm_catch_up(&b, &err), 0);
	assert_int_equal(arch_vm_save(&b, &second, &err), 0); // not run yet
	assert_int_equal(arch_vm_load(&a, second.p, second.len, &err), 0);
	nanosleep(&pause, NULL);
	assert_int_equal(arch_vm_catch_up(&a, &err), 0);
	assert_in_range(clock_of(&a), hours_ns + pause_ns, hours_ns + 200 * pause_ns);
	// A pause is no restore: the clock is not set again.
	arch_vm_resume(&a);
	assert_in_range(clock_of(&a), hours_ns + pause_ns, hours_ns + 200 * pause_ns);
	vm_fini(&a);
	vm_fini(&b);
}

// How far b's TSC is ahead of a's; of the quickest of some readings, in microseconds.
static int64_t tsc_lead_us(unsigned cpu)
{
	int64_t lead = 0, khz = ioctl(a.vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
	uint64_t best = UINT64_MAX;
	assert_true(khz > 0);
	for (int i = 0; i < 10; i++) {
		uint64_t before = get_msr(&a, cpu, MSR_TSC), it = get_msr(&b, cpu, MSR_TSC);
		uint64_t after = get_msr(&a, cpu, MSR_TSC);
		if (after - before < best)
			lead = (int64_t)(it - before - (after - before) / 2) * 1000 / khz;
		best = after - before < best ? after - before : best;
	}
	return lead;
}

static void sleep_ms(unsigned ms)
{
	nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L }, NULL);
}

// A copy's TSC is where the TSC of the VM is that it is of, whenever it is loaded and whenever it runs; so is
// that of a copy of a copy that never ran.
static void test_tsc(void **state)
{
	static const struct {
		unsigned to_load_ms, to_save_ms;
	} wait[] = { { 0, 0 }, { 200, 0 }, { 200, 300 }, { 1200, 0 }, { 0, 1200 }, { 100, 2200 } };
	const int64_t near_us = 20000; // between reading its TSC and its clock, on a slow host
	struct mv_err err = { 0 };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(wait); i++) {
		MV_BUF first = { 0 };
		MV_BUF second = { 0 };
		make(&a);
		make(&b);
		assert_int_equal(saved_vm_kvm_state(&a, &first, &err), 0);
		sleep_ms(wait[i].to_load_ms);
		assert_int_equal(saved_vm_kvm_load(&b, first.p, first.len, &err), 0);
		assert_int_equal(arch_vm_catch_up(&b, &err), 0);
		for (unsigned cpu = 0; cpu < N_CPUS; cpu++)
			assert_in_range(tsc_lead_us(cpu) + near_us, 0, 2 * near_us);
		sleep_ms(wait[i].to_save_ms);
		assert_int_equal(saved_vm_kvm_state(&b, &second, &err), 0);
		vm_fini(&b);
		make(&b);
		assert_int_equal(saved_vm_kvm_load(&b, second.p, second.len, &err), 0);
		assert_int_equal(arch_vm_catch_up(&b, &err), 0);
		for (unsigned cpu = 0; cpu < N_CPUS; cpu++)
			assert_in_range(tsc_lead_us(cpu) + near_us, 0, 2 * near_us);
		vm_fini(&a);
		vm_fini(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cpuid),
		cmocka_unit_test(test_msrs),
		cmocka_unit_test(test_clock),
		cmocka_unit_test(test_tsc),
	};
	guest = getenv("THAW_GUEST") ? getenv("THAW_GUEST") : "build/tests/guest/tiny";
	if (access("/dev/kvm", R_OK | W_OK)) {
		printf("1..0 # SKIP no access to /dev/kvm\n");
		return 0;
	}
	vcpu_setup_signal();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
