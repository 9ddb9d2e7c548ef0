// SPDX-License-Identifier: Apache-2.0
/*
 * Theory of operation: see floor.h for what is measured. prepare() boots the
 * guest in a VM of its own, with just enough of a UART to let it talk, and reads
 * all state back; restore() makes a VM, gives it that state and runs it to the
 * first I/O. Both sorts of restore share every step; they differ in when the
 * clock is started.
 *
 * The order matters: the memory slot goes before KVM_CREATE_IRQCHIP (behind it,
 * the same ioctl waits milliseconds for an SRCU grace period), and sregs before
 * the local APIC before the MSRs (the APIC base enables the APIC, and the TSC
 * deadline MSR needs the APIC's timer mode).
 *
 * Sources: KVM API (Documentation/virt/kvm/api.rst); PVH: xen
 * include/public/arch-x86/hvm/start_info.h; 16550D data sheet.
 */
#include "bench/floor.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_BYTES (128UL << 20)
#define PAGE_BYTES 4096UL
#define START_INFO_GPA 0x6000UL
#define MEMMAP_GPA 0x6100UL
#define LOW_RAM_END 0x9fc00UL
#define HIGH_RAM_START 0x100000UL
#define EVENT_GSI 9
#define CPUID_MAX 256
#define COM1 0x3f8
#define BOOT_LIMIT_NS (10 * 1000000000ULL)
#define IDLE_CHECK_NS 20000000

/*
 * What a halted guest of ours needs: TSC, SYSENTER (3), PAT, MISC_ENABLE, SYSCALL
 * (4), KERNEL_GS_BASE. The TSC deadline comes last.
 */
static const uint32_t saved_msrs[] = { 0x10,       0x174,      0x175,      0x176,      0x277,      0x1a0,
				       0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0x6e0 };
#define NR_MSRS (sizeof saved_msrs / sizeof *saved_msrs)

struct vm {
	int kvm, fd, cpu;
	struct kvm_run *run;
	size_t run_bytes;
	void *mem;
};

static const struct vm vm_none = { .kvm = -1, .fd = -1, .cpu = -1 };

struct bench_floor {
	int mem_fd;
	char path[4096];
	pid_t keeper;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint8_t xsave[sizeof(struct kvm_xsave)];
	struct kvm_xcrs xcrs;
	struct kvm_lapic_state lapic;
	struct kvm_msrs *msrs; /* NR_MSRS of them */
	struct kvm_cpuid2 *cpuid;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_irqchip chip[3];
	struct kvm_clock_data clock;
};

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* 0 or -errno of an ioctl that says no more. */
static int ctl(int fd, unsigned long request, const void *arg)
{
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

/* --- a VM, in steps ------------------------------------------------------- */

static int vm_create(struct vm *vm)
{
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return -errno;
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0UL);
	return vm->fd < 0 ? -errno : 0;
}

/* The file, or with fd -1 zeroed memory; over the old mapping if there is one. */
static int vm_map(struct vm *vm, int fd)
{
	int flags = MAP_PRIVATE | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0) | (vm->mem ? MAP_FIXED : 0);
	void *m = mmap(vm->mem, MEMORY_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (m == MAP_FAILED)
		return -errno;
	vm->mem = m;
	return 0;
}

static int vm_slot(const struct vm *vm)
{
	struct kvm_userspace_memory_region r = {
		.memory_size = MEMORY_BYTES,
		.userspace_addr = (uintptr_t)vm->mem,
	};
	return ctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r);
}

static int vm_vcpu(struct vm *vm, const struct kvm_cpuid2 *cpuid)
{
	int rc = ctl(vm->fd, KVM_CREATE_IRQCHIP, NULL);
	if (rc)
		return rc;
	vm->cpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0UL);
	int bytes = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL);
	if (vm->cpu < 0 || bytes < 0)
		return -errno;
	void *run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->cpu, 0);
	if (run == MAP_FAILED)
		return -errno;
	vm->run = run;
	vm->run_bytes = (size_t)bytes;
	return ctl(vm->cpu, KVM_SET_CPUID2, cpuid);
}

static void vm_fini(struct vm *vm)
{
	if (vm->run)
		munmap(vm->run, vm->run_bytes);
	if (vm->cpu >= 0)
		close(vm->cpu);
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->kvm >= 0)
		close(vm->kvm);
	if (vm->mem)
		munmap(vm->mem, MEMORY_BYTES);
	*vm = vm_none;
}

#define VM_AUTO __attribute__((cleanup(vm_fini)))

/* --- state ----------------------------------------------------------------- */

static int state_save(struct bench_floor *f, const struct vm *vm)
{
	int rc;
	f->msrs->nmsrs = NR_MSRS;
	for (size_t i = 0; i < NR_MSRS; i++)
		f->msrs->entries[i].index = saved_msrs[i];
	for (uint32_t i = 0; i < 3; i++) {
		f->chip[i].chip_id = i;
		if ((rc = ctl(vm->fd, KVM_GET_IRQCHIP, &f->chip[i])))
			return rc;
	}
	/* MP state first: it makes KVM settle pending events. */
	if ((rc = ctl(vm->cpu, KVM_GET_MP_STATE, &f->mp_state)) ||
	    (rc = ctl(vm->cpu, KVM_GET_REGS, &f->regs)) || (rc = ctl(vm->cpu, KVM_GET_SREGS, &f->sregs)) ||
	    (rc = ctl(vm->cpu, KVM_GET_XSAVE, f->xsave)) || (rc = ctl(vm->cpu, KVM_GET_XCRS, &f->xcrs)) ||
	    (rc = ctl(vm->cpu, KVM_GET_LAPIC, &f->lapic)) ||
	    (rc = ctl(vm->cpu, KVM_GET_VCPU_EVENTS, &f->events)) ||
	    (rc = ctl(vm->fd, KVM_GET_CLOCK, &f->clock)))
		return rc;
	f->clock.flags = 0;
	int n = ioctl(vm->cpu, KVM_GET_MSRS, f->msrs);
	if (n < 0)
		return -errno;
	return n == NR_MSRS ? 0 : -ENOTSUP;
}

static int state_load(const struct bench_floor *f, const struct vm *vm)
{
	int rc;
	if ((rc = ctl(vm->cpu, KVM_SET_SREGS, &f->sregs)) || (rc = ctl(vm->cpu, KVM_SET_REGS, &f->regs)) ||
	    (rc = ctl(vm->cpu, KVM_SET_XCRS, &f->xcrs)) || (rc = ctl(vm->cpu, KVM_SET_XSAVE, f->xsave)) ||
	    (rc = ctl(vm->cpu, KVM_SET_LAPIC, &f->lapic)))
		return rc;
	int n = ioctl(vm->cpu, KVM_SET_MSRS, f->msrs);
	if (n != NR_MSRS)
		return n < 0 ? -errno : -ENOTSUP;
	for (int i = 0; i < 3; i++)
		if ((rc = ctl(vm->fd, KVM_SET_IRQCHIP, &f->chip[i])))
			return rc;
	if ((rc = ctl(vm->cpu, KVM_SET_VCPU_EVENTS, &f->events)) ||
	    (rc = ctl(vm->cpu, KVM_SET_MP_STATE, &f->mp_state)) ||
	    (rc = ctl(vm->fd, KVM_SET_CLOCK, &f->clock)))
		return rc;
	/* "You were restored": an edge on the event interrupt. */
	for (uint32_t level = 1; level <= 1; level--) {
		struct kvm_irq_level line = { .irq = EVENT_GSI, .level = level };
		if ((rc = ctl(vm->fd, KVM_IRQ_LINE, &line)))
			return rc;
	}
	return 0;
}

/* --- boot -------------------------------------------------------------------- */

static int read_at(int fd, void *to, size_t bytes, uint64_t offset)
{
	ssize_t n = pread(fd, to, bytes, (off_t)offset);
	return n < 0 ? -errno : (size_t)n == bytes ? 0 : -ENOEXEC;
}

/* Loads the segments and finds the PVH entry (ELF note 18 of "Xen"). */
static int load_elf(const char *path, uint8_t *mem, uint32_t *ret_entry)
{
	Elf64_Ehdr e;
	Elf64_Phdr p;
	uint32_t note[5] = { 0 }; /* name size, desc size, type, "Xen", address */
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int rc = read_at(fd, &e, sizeof e, 0);
	if (!rc && memcmp(e.e_ident, ELFMAG, SELFMAG) != 0)
		rc = -ENOEXEC;
	for (int i = 0; !rc && i < e.e_phnum; i++) {
		rc = read_at(fd, &p, sizeof p, e.e_phoff + (uint64_t)i * sizeof p);
		if (rc)
			break;
		if (p.p_type == PT_NOTE)
			rc = read_at(fd, note, sizeof note, p.p_offset);
		else if (p.p_type == PT_LOAD && p.p_paddr < MEMORY_BYTES &&
			 p.p_filesz <= MEMORY_BYTES - p.p_paddr)
			rc = read_at(fd, mem + p.p_paddr, p.p_filesz, p.p_offset);
	}
	close(fd);
	if (!rc && (note[2] != 18 || memcmp(&note[3], "Xen", 4) != 0))
		rc = -ENOEXEC;
	if (!rc)
		*ret_entry = note[4];
	return rc;
}

/* struct hvm_start_info, version 1, and its memory map. */
static void put_start_info(uint8_t *mem)
{
	const struct {
		uint32_t magic, version, flags, nr_modules;
		uint64_t modlist, cmdline, rsdp, memmap;
		uint32_t memmap_entries, reserved;
	} info = { .magic = 0x336ec578, .version = 1, .memmap = MEMMAP_GPA, .memmap_entries = 2 };
	const struct {
		uint64_t addr, size;
		uint32_t type, reserved;
	} map[2] = {
		{ .addr = 0, .size = LOW_RAM_END, .type = 1 },
		{ .addr = HIGH_RAM_START, .size = MEMORY_BYTES - HIGH_RAM_START, .type = 1 },
	};
	memcpy(mem + START_INFO_GPA, &info, sizeof info);
	memcpy(mem + MEMMAP_GPA, map, sizeof map);
}

static int set_pvh_entry(const struct vm *vm, uint32_t entry)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = entry, .rbx = START_INFO_GPA, .rflags = 2 };
	int rc = ctl(vm->cpu, KVM_GET_SREGS, &s);
	if (rc)
		return rc;
	s.cs = (struct kvm_segment){
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1
	};
	s.ds = s.es = s.fs = s.gs = s.ss = (struct kvm_segment){
		.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1
	};
	s.cr0 = 0x11; /* PE, ET */
	rc = ctl(vm->cpu, KVM_SET_SREGS, &s);
	return rc ? rc : ctl(vm->cpu, KVM_SET_REGS, &r);
}

/* As much UART as the guest needs to talk: always ready to send, nothing to read. */
static void uart(struct kvm_run *run, char *out, size_t *len, size_t max)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, run->io.port == COM1 + 5 ? 0x60 : 0, run->io.size * run->io.count);
	else if (run->io.port == COM1 && *len < max)
		out[(*len)++] = (char)*data;
}

/*
 * Runs until the guest has printed READY and halts. A timer signal, blocked but
 * while in KVM_RUN, ends the ioctl now and then to look.
 */
static int run_until_idle(const struct vm *vm)
{
	static const char ready[] = "READY\n";
	char out[sizeof ready - 1];
	size_t len = 0;
	uint64_t end = now_ns() + BOOT_LIMIT_NS;
	sigset_t alarm_only, old;
	timer_t timer;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	struct itimerspec tick = { .it_interval = { .tv_nsec = IDLE_CHECK_NS },
				   .it_value = { .tv_nsec = IDLE_CHECK_NS } };
	/* struct kvm_signal_mask and the kernel's signal set: none is blocked. */
	const uint32_t mask[3] = { 8 };
	int rc;

	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	if (timer_create(CLOCK_MONOTONIC, &ev, &timer))
		return -errno;
	sigprocmask(SIG_BLOCK, &alarm_only, &old);
	rc = ctl(vm->cpu, KVM_SET_SIGNAL_MASK, mask);
	timer_settime(timer, 0, &tick, NULL);
	while (!rc) {
		struct kvm_mp_state mp = { 0 };
		int stop = ctl(vm->cpu, KVM_RUN, NULL);
		if (!stop && vm->run->exit_reason == KVM_EXIT_IO) {
			uart(vm->run, out, &len, sizeof out);
		} else if (!stop) {
			rc = -EPROTO;
		} else if (stop != -EINTR) {
			rc = stop;
		} else {
			sigtimedwait(&alarm_only, NULL, &(struct timespec){ 0 });
			if (len == sizeof out && !memcmp(out, ready, len) &&
			    !ctl(vm->cpu, KVM_GET_MP_STATE, &mp) && mp.mp_state == KVM_MP_STATE_HALTED)
				break;
			if (now_ns() > end)
				rc = -ETIMEDOUT;
		}
	}
	timer_delete(timer);
	sigtimedwait(&alarm_only, NULL, &(struct timespec){ 0 });
	sigprocmask(SIG_SETMASK, &old, NULL);
	return rc;
}

/* Writes what is not zero, into the page cache. */
static int write_memory(int fd, const uint8_t *mem)
{
	static const uint8_t zero[PAGE_BYTES];
	if (ftruncate(fd, (off_t)MEMORY_BYTES))
		return -errno;
	for (uint64_t o = 0; o < MEMORY_BYTES; o += PAGE_BYTES)
		if (memcmp(mem + o, zero, PAGE_BYTES) != 0 &&
		    pwrite(fd, mem + o, PAGE_BYTES, (off_t)o) != (ssize_t)PAGE_BYTES)
			return -EIO;
	return 0;
}

/* A process that holds one VM until it is killed, or its parent dies. */
static int start_keeper(struct bench_floor *f)
{
	int done[2];
	char ok = 0;
	if (pipe2(done, O_CLOEXEC))
		return -errno;
	f->keeper = fork();
	if (f->keeper == 0) {
		struct vm vm = vm_none;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ok = !vm_create(&vm) && !vm_map(&vm, -1) && !vm_slot(&vm) && !vm_vcpu(&vm, f->cpuid);
		if (write(done[1], &ok, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(done[1]);
	ssize_t n = f->keeper < 0 ? 0 : read(done[0], &ok, 1);
	close(done[0]);
	return n == 1 && ok ? 0 : -ECHILD;
}

static int prepare(struct bench_floor *f, const char *guest_elf, const char *dir)
{
	VM_AUTO struct vm vm = vm_none;
	uint32_t entry = 0;
	int rc;
	if (snprintf(f->path, sizeof f->path, "%s/floor-%d.mem", dir, (int)getpid()) >= (int)sizeof f->path)
		return -ENAMETOOLONG;
	f->mem_fd = open(f->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (f->mem_fd < 0)
		return -errno;
	f->msrs = calloc(1, sizeof *f->msrs + NR_MSRS * sizeof *f->msrs->entries);
	f->cpuid = calloc(1, sizeof *f->cpuid + CPUID_MAX * sizeof *f->cpuid->entries);
	if (!f->msrs || !f->cpuid)
		return -ENOMEM;
	f->cpuid->nent = CPUID_MAX;
	if ((rc = vm_create(&vm)) || (rc = ctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, f->cpuid)) ||
	    (rc = vm_map(&vm, -1)) || (rc = vm_slot(&vm)) || (rc = vm_vcpu(&vm, f->cpuid)) ||
	    (rc = load_elf(guest_elf, vm.mem, &entry)))
		return rc;
	put_start_info(vm.mem);
	if ((rc = set_pvh_entry(&vm, entry)) || (rc = run_until_idle(&vm)) || (rc = state_save(f, &vm)) ||
	    (rc = write_memory(f->mem_fd, vm.mem)))
		return rc;
	return start_keeper(f);
}

int bench_floor_prepare(const char *guest_elf, const char *dir, struct bench_floor **ret_floor)
{
	struct bench_floor *f = calloc(1, sizeof *f);
	if (!f)
		return -ENOMEM;
	f->mem_fd = -1;
	int rc = prepare(f, guest_elf, dir);
	if (rc)
		bench_floor_free(f);
	else
		*ret_floor = f;
	return rc;
}

void bench_floor_free(struct bench_floor *f)
{
	if (!f)
		return;
	if (f->keeper > 0) {
		kill(f->keeper, SIGKILL);
		waitpid(f->keeper, NULL, 0);
	}
	if (f->mem_fd >= 0) {
		close(f->mem_fd);
		unlink(f->path);
	}
	free(f->msrs);
	free(f->cpuid);
	free(f);
}

/* --- restore ------------------------------------------------------------------- */

static int first_io(const struct vm *vm)
{
	int rc = ctl(vm->cpu, KVM_RUN, NULL);
	if (rc)
		return rc;
	const uint8_t *data = (uint8_t *)vm->run + vm->run->io.data_offset;
	return vm->run->exit_reason == KVM_EXIT_IO && vm->run->io.port == COM1 &&
			       vm->run->io.direction == KVM_EXIT_IO_OUT && *data == 'R'
		       ? 0
		       : -EPROTO;
}

static int make_and_restore(struct bench_floor *f, struct vm *vm)
{
	int rc = vm_create(vm);
	if (!rc && !(rc = vm_map(vm, f->mem_fd)) && !(rc = vm_slot(vm)) && !(rc = vm_vcpu(vm, f->cpuid)) &&
	    !(rc = state_load(f, vm)))
		rc = first_io(vm);
	return rc;
}

void bench_floor_release(const pid_t *pids, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (pids[i] > 0) {
			kill(pids[i], SIGKILL);
			waitpid(pids[i], NULL, 0);
		}
}

int bench_floor_hold(struct bench_floor *f, unsigned n, pid_t *ret_pids)
{
	int done[2];
	if (pipe2(done, O_CLOEXEC))
		return -errno;
	unsigned i = 0;
	char ok = 1;
	for (; i < n && ok == 1; i++) {
		ret_pids[i] = fork();
		if (ret_pids[i] == 0) {
			struct vm vm = vm_none;
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			ok = !make_and_restore(f, &vm);
			if (write(done[1], &ok, 1) != 1)
				_exit(1);
			for (;;)
				pause();
		}
		ok = ret_pids[i] > 0 && read(done[0], &ok, 1) == 1 && ok;
	}
	close(done[0]);
	close(done[1]);
	if (ok == 1)
		return 0;
	bench_floor_release(ret_pids, i);
	return -ECHILD;
}

static int restore(struct bench_floor *f, bool pooled, struct bench_floor_sample *ret_sample)
{
	VM_AUTO struct vm vm = vm_none;
	uint64_t t[6];
	int rc;
	t[0] = now_ns();
	if ((rc = vm_create(&vm)))
		return rc;
	t[1] = now_ns();
	if ((rc = vm_map(&vm, pooled ? -1 : f->mem_fd)) || (rc = vm_slot(&vm)))
		return rc;
	t[2] = now_ns();
	if ((rc = vm_vcpu(&vm, f->cpuid)))
		return rc;
	t[3] = now_ns();
	if (pooled) {
		t[0] = t[1] = t[3];
		if ((rc = vm_map(&vm, f->mem_fd)))
			return rc;
		t[2] = t[3] = now_ns();
	}
	if ((rc = state_load(f, &vm)))
		return rc;
	t[4] = now_ns();
	if ((rc = first_io(&vm)))
		return rc;
	t[5] = now_ns();
	*ret_sample = (struct bench_floor_sample){
		.total_ns = t[5] - t[0],
		.create_ns = t[1] - t[0],
		.memory_ns = t[2] - t[1],
		.vcpu_ns = t[3] - t[2],
		.state_ns = t[4] - t[3],
		.run_ns = t[5] - t[4],
	};
	return 0;
}

int bench_floor_cold_restore(struct bench_floor *f, struct bench_floor_sample *ret_sample)
{
	return restore(f, false, ret_sample);
}

int bench_floor_pooled_restore(struct bench_floor *f, struct bench_floor_sample *ret_sample)
{
	return restore(f, true, ret_sample);
}
