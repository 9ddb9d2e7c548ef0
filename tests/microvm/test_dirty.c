// SPDX-License-Identifier: Apache-2.0
// Incremental snapshots, VM side: what a VM's files hold is compared, byte for byte, with a full
// snapshot of the same pause. First the bookkeeping alone, without KVM; then the tiny guest,
// whose memory is written by itself, by devices and by the VMM.
// Takes THAW_VMM and THAW_GUEST (paths) from the environment.
#include "tests/t_chunk.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "microvm/dirty.h"
#include "microvm/kvm.h"
#include "tests/microvm/t_work.h"

enum { MEM_BYTES = T_MEM_BYTES };

static struct t_vmm a, b; // large; every test starts and ends what it uses
static uint8_t *memory;   // what the files taken so far make of the memory

// --- bookkeeping ---

static void take(struct dirty *d, struct gmem *m, uint64_t written, bool confirmed, uint64_t expected)
{
	struct mv_err err = { 0 };
	struct msg_snapshot how = { .lz4 = 1, .confirmed = confirmed };
	m->written[0] = written;
	assert_int_equal(dirty_check(d, &how, &err), 0);
	assert_int_equal(dirty_take(d, m, -1, confirmed, &err), 0);
	assert_int_equal(d->set[0], expected);
	assert_int_equal(m->written[0], 0);
}

static void a_set_is_kept_until_it_is_confirmed(void **state)
{
	struct gmem m = { .total_bytes = 64 * T_PAGE }; // without regions KVM is not asked
	struct mv_err err = { 0 };
	struct dirty d;
	(void)state;
	assert_int_equal(dirty_init(&d, &m, true, true, &err), 0);
	take(&d, &m, 1, false, 1);
	take(&d, &m, 2, true, 2);
	take(&d, &m, 4, false, 2 | 4);
	take(&d, &m, 8, false, 2 | 4 | 8);
	take(&d, &m, 16, true, 16);
	dirty_failed(&d); // this one did not come about: the word is of the one before
	take(&d, &m, 32, true, 16 | 32);
	take(&d, &m, 64, true, 64);
	dirty_fini(&d, &m);
	assert_null(m.written);
	dirty_fini(&d, &m);
}

// KVM's log of a host with larger pages: each bit is several of ours.
static void logs_of_larger_pages(void **state)
{
	uint64_t log[2] = { 1ull << 63 | 1, 1ull << 2 };
	(void)state;
	for (unsigned each = 1; each <= 16; each *= 4) {
		uint64_t set[2 + 2 * 16] = { 0, 1 }, first = 64;
		dirty_add_log(set, first, log, 67, each);
		for (uint64_t page = 0; page < 64 * MV_ARRAY_LEN(set); page++) {
			uint64_t k = (page - first) / each; // of the log
			bool in = page >= first && (k == 0 || k == 63 || k == 66);
			assert_int_equal(set[page / 64] >> page % 64 & 1, in || page == 64);
		}
	}
}

static void a_parent_is_needed(void **state)
{
	struct gmem m = { .total_bytes = 64 * T_PAGE };
	struct msg_snapshot raw = { .incremental = 1 }, inc = { .lz4 = 1, .incremental = 1 },
			    yes = { .lz4 = 1, .incremental = 1, .confirmed = 1 };
	struct mv_err err = { 0 };
	struct dirty d;
	(void)state;
	assert_int_equal(dirty_init(&d, &m, true, false, &err), 0);
	assert_int_equal(dirty_check(&d, &raw, &err), 0); // whoever has the files knows the parent
	assert_int_equal(dirty_check(&d, &inc, &err), -EINVAL);
	assert_message(err, "must be full");
	assert_int_equal(dirty_check(&d, &yes, &err), -EINVAL); // there is nothing to be confirmed
	take(&d, &m, 1, true, 1);
	assert_int_equal(dirty_check(&d, &inc, &err), -EINVAL); // the full one did not become one
	dirty_failed(&d);
	assert_int_equal(dirty_check(&d, &yes, &err), -EINVAL);
	take(&d, &m, 1, false, 1);
	assert_int_equal(dirty_check(&d, &yes, &err), 0);
	assert_int_equal(dirty_check(&d, &inc, &err), 0); // and it stays so
	dirty_fini(&d, &m);
	assert_int_equal(dirty_init(&d, &m, false, false, &err), 0);
	assert_int_equal(dirty_check(&d, &yes, &err), -EINVAL);
	assert_message(err, "track_dirty");
	assert_int_equal(dirty_init(&d, &m, false, true, &err), 0);
	assert_int_equal(dirty_check(&d, &inc, &err), 0);
	assert_null(m.written);
}

static void a_failing_kvm_loses_nothing(void **state)
{
	enum { NO_FD = 100000 }; // -1 would be a parked VM: its log was kept before
	struct gmem m = { .total_bytes = 64 * T_PAGE, .n_regions = 1 };
	struct mv_err err = { 0 };
	struct dirty d;
	(void)state;
	m.region[0].size_bytes = m.total_bytes;
	assert_int_equal(dirty_init(&d, &m, true, true, &err), 0);
	m.written[0] = 5;
	assert_int_equal(dirty_take(&d, &m, NO_FD, true, &err), -EBADF);
	assert_message(err, "KVM_GET_DIRTY_LOG");
	m.n_regions = 0;
	take(&d, &m, 5 | 8, true, 5 | 8);
	dirty_fini(&d, &m);
}

// --- the tiny guest ---

// A machine with two slots, whose words follow each other in the set; a few instructions of real mode.
static void two_slots(void **state)
{
	static const uint8_t code[] = {
		0xb8, 0x00, 0x80, 0x8e, 0xd8, // mov $0x8000, %ax; mov %ax, %ds
		0xa2, 0x34, 0x12,             // mov %al, 0x1234: page 1 of the second
		0xb8, 0x00, 0x00, 0x8e, 0xd8, // mov $0, %ax; mov %ax, %ds
		0xa2, 0x34, 0x32,             // mov %al, 0x3234: page 3 of the first
		0xf4,
	};
	enum { BYTES = 64 * T_PAGE, CODE = 0x5000 };
	struct mv_err err = { 0 };
	struct gmem m = { 0 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct dirty d;
	(void)state;
	need_kvm();
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = kvm_create_vm(kvm, &err);
	assert_int_equal(gmem_add(&m, 0, BYTES), 0);
	assert_int_equal(gmem_add(&m, 0x80000, BYTES), 0);
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	assert_int_equal(dirty_init(&d, &m, true, true, &err), 0);
	assert_int_equal(kvm_set_memory(vm, &m, true, &err), 0);
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000); // Intel without unrestricted guests
	memcpy(m.region[0].hva + CODE, code, sizeof code);
	int vcpu = kvm_create_vcpu(vm, 0, &err);
	struct kvm_run *run =
		mmap(NULL, (size_t)kvm_run_bytes(kvm), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	assert_true(run != MAP_FAILED);
	assert_int_equal(ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cs.base = sregs.cs.selector = 0;
	assert_int_equal(ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
	for (unsigned turn = 0; turn < 2; turn++) {
		assert_int_equal(ioctl(vcpu, KVM_SET_REGS, &regs), 0);
		assert_int_equal(ioctl(vcpu, KVM_RUN, 0), 0);
		assert_int_equal(run->exit_reason, KVM_EXIT_HLT);
		assert_int_equal(gmem_write(&m, gpa(0x80000 + BYTES - 1), "x", 1), 0);
		assert_int_equal(dirty_take(&d, &m, vm, true, &err), 0);
		assert_int_equal(d.set[0], 1ULL << 3);
		assert_int_equal(d.set[1], 1ULL << 1 | 1ULL << 63);
	}
	assert_int_equal(dirty_take(&d, &m, vm, true, &err), 0);
	assert_int_equal(d.set[0] | d.set[1], 0);
	munmap(run, (size_t)kvm_run_bytes(kvm));
	close(vcpu);
	close(vm);
	close(kvm);
	dirty_fini(&d, &m);
	gmem_fini(&m);
}

enum { FULL, INCREMENTAL = 1, CONFIRMED = 2 };

static int snapshot(struct t_vmm *v, unsigned flags, int state_fd, int memory_fd)
{
	struct msg_snapshot how = { .lz4 = flags & INCREMENTAL,
				    .incremental = flags & INCREMENTAL,
				    .confirmed = flags / CONFIRMED };
	int fds[2] = { state_fd, memory_fd };
	return t_vmm_call(v, MSG_SNAPSHOT, &msg_snapshot_table, &how, fds, 2, 20000);
}

// A full one, uncompressed: its state and memory files.
static void full(struct t_vmm *v, unsigned flags, int ret_fds[2])
{
	ret_fds[0] = t_file();
	ret_fds[1] = t_file();
	assert_int_equal(snapshot(v, flags, ret_fds[0], ret_fds[1]), 0);
}

static void load_base(const int fds[2]) { assert_int_equal(mv_pread_full(fds[1], memory, MEM_BYTES, 0), 0); }

// An incremental one, put over memory[]. Returns how many pages it holds.
static uint64_t increment(struct t_vmm *v, unsigned flags)
{
	int fds[2] = { t_file(), t_file() };
	assert_int_equal(snapshot(v, INCREMENTAL | flags, fds[0], fds[1]), 0);
	assert_int_equal(v->reply.memory_bytes, lseek(fds[1], 0, SEEK_END));
	uint64_t n = t_apply(fds[1], memory, MEM_BYTES, NULL, NULL);
	close_both(fds);
	return n;
}

static bool same_as_now(struct t_vmm *v)
{
	int fds[2];
	uint8_t page[T_PAGE];
	bool same = true;
	full(v, FULL, fds); // its set is not confirmed, so the next incremental one has it too
	for (unsigned i = 0; same && i < MEM_BYTES / T_PAGE; i++) {
		assert_int_equal(mv_pread_full(fds[1], page, T_PAGE, (uint64_t)i * T_PAGE), 0);
		same = !memcmp(page, memory + i * T_PAGE, T_PAGE);
		if (!same)
			print_message("# page %u differs\n", i);
	}
	close_both(fds);
	return same;
}

static void tracked_from_boot(void **state)
{
	struct vmcfg c;
	int fds[2];
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	fds[0] = fds[1] = t_file();
	assert_int_equal(snapshot(&a, INCREMENTAL, fds[0], fds[1]), EINVAL);
	close(fds[0]);
	full(&a, FULL, fds);
	load_base(fds);
	for (unsigned round = 0; round < 4; round++) {
		work(&a, round);
		order(&a, MSG_PAUSE);
		uint64_t n = increment(&a, CONFIRMED);
		assert_in_range(n, 70, 70 + FEW);
		assert_true(same_as_now(&a));
		assert_in_range(increment(&a, FULL), n, 2 * n); // that one again, for it was not confirmed
		assert_int_equal(increment(&a, CONFIRMED), 0);
		order(&a, MSG_RUN);
	}
	assert_int_equal(t_vmm_end(&a), 0);
	close_both(fds);
}

// The guest writes on while snapshots are taken: nothing falls between two of them.
static void tracked_while_running(void **state)
{
	struct vmcfg c;
	int fds[2];
	char command[60];
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	full(&a, FULL, fds);
	load_base(fds);
	for (unsigned i = 0; i < 12; i++) {
		snprintf(command, sizeof command, "touch 4000 w %u\nrand 64\nblk r %u\n", i + 1, i);
		assert_int_equal(t_vmm_type(&a, command), 0);
		increment(&a, CONFIRMED);
		if (i % 3 == 2) // the rest of it
			for (int k = 0; k < 9; k++)
				assert_int_equal(t_vmm_expect(&a, "OK", 10000), 0);
	}
	order(&a, MSG_PAUSE);
	increment(&a, CONFIRMED);
	assert_true(same_as_now(&a));
	assert_int_equal(t_vmm_end(&a), 0);
	close_both(fds);
}

static void what_failed_comes_again(void **state)
{
	struct vmcfg c;
	int fds[2], bad;
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	full(&a, FULL, fds);
	load_base(fds);

	work(&a, 1); // its writer fails: memory file not empty
	bad = t_file();
	assert_int_equal(write(bad, "x", 1), 1);
	assert_int_equal(snapshot(&a, INCREMENTAL | CONFIRMED, fds[0], bad), EINVAL);
	close(bad);
	work(&a, 2);
	order(&a, MSG_PAUSE);
	assert_in_range(increment(&a, CONFIRMED), 90, 90 + FEW);
	assert_true(same_as_now(&a));

	order(&a, MSG_RUN);
	increment(&a, FULL); // with what same_as_now() left over
	work(&a, 3);         // written, but not published
	int lost[2] = { t_file(), t_file() };
	assert_int_equal(snapshot(&a, INCREMENTAL | CONFIRMED, lost[0], lost[1]), 0);
	close_both(lost);
	work(&a, 4);
	order(&a, MSG_PAUSE);
	assert_in_range(increment(&a, FULL), 90, 90 + FEW);
	assert_true(same_as_now(&a));

	order(&a, MSG_RUN); // and with a wrong word it is missing: the comparison sees it
	increment(&a, FULL);
	work(&a, 5);
	lost[0] = t_file();
	lost[1] = t_file();
	assert_int_equal(snapshot(&a, INCREMENTAL | CONFIRMED, lost[0], lost[1]), 0);
	close_both(lost);
	order(&a, MSG_PAUSE);
	assert_int_equal(increment(&a, CONFIRMED) < FEW, true);
	assert_false(same_as_now(&a));
	assert_int_equal(t_vmm_end(&a), 0);
	close_both(fds);
}

static void of_clones(void **state)
{
	struct vmcfg c;
	int fds[2];
	(void)state;
	need_kvm();
	config(&c, false);
	boot(&a, &c);
	work(&a, 0);
	int none[2] = { t_file(), t_file() };
	assert_int_equal(snapshot(&a, INCREMENTAL, none[0], none[1]), EINVAL);
	assert_non_null(strstr(a.reply.text, "track_dirty"));
	close_both(none);
	full(&a, FULL, fds);
	assert_int_equal(t_vmm_end(&a), 0);
	for (unsigned track = 0; track < 2; track++) {
		c.track_dirty = track;
		assert_int_equal(t_vmm_start(&b, t_vmm_path()), 0);
		restore(&b, &c, fds[0], fds[1]);
		load_base(fds);
		work(&b, 1);
		order(&b, MSG_PAUSE);
		uint64_t n = increment(&b, FULL);
		assert_in_range(n, 70, 70 + FEW);
		assert_true(same_as_now(&b));
		order(&b, MSG_RUN);
		work(&b, 2);
		order(&b, MSG_PAUSE);
		increment(&b, FULL);
		assert_true(same_as_now(&b));
		// Untracked, each one is against the snapshot the clone was made from.
		load_base(fds);
		increment(&b, CONFIRMED);
		assert_int_equal(same_as_now(&b), !track);
		assert_int_equal(t_vmm_end(&b), 0);
	}
	close_both(fds);
}

// A clone of the running VM, by MSG_FORK.
static void fork_off(struct t_vmm *parent, struct t_vmm *clone, const struct vmcfg *c)
{
	static uint8_t buf[MSG_MAX_BYTES];
	int zygote[2], control[2];
	struct vm_fds f;
	struct msg m;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, zygote), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control), 0);
	assert_int_equal(t_vmm_call(parent, MSG_FORK, NULL, NULL, &zygote[1], 1, 10000), 0);
	close(zygote[1]);
	assert_int_equal(msg_send(zygote[0], ZYGOTE_FORK, 1, NULL, NULL, &control[1], 1), 0);
	close(control[1]);
	assert_int_equal(msg_recv(zygote[0], buf, &m), 0);
	assert_int_equal(m.type, ZYGOTE_FORKED);
	close(zygote[0]);
	memset(clone, 0, sizeof *clone);
	clone->fd = control[0]; // it ends with this; it is not our child
	machine_fds(&f);
	assert_int_equal(t_vmm_setup(clone, MSG_RESTORE, c, &f, true), 0);
	assert_int_equal(t_vmm_expect(clone, "RESTORED\n", 10000), 0);
}

// A fork is no snapshot: the VM's set goes on, and the clone has none to begin with.
static void of_forks(void **state)
{
	struct vmcfg c;
	int fds[2], none[2];
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	full(&a, FULL, fds);
	load_base(fds);
	work(&a, 1);
	fork_off(&a, &b, &c);
	work(&a, 2);
	order(&a, MSG_PAUSE);
	assert_in_range(increment(&a, CONFIRMED), 90, 90 + FEW);
	assert_true(same_as_now(&a));

	none[0] = none[1] = t_file();
	assert_int_equal(snapshot(&b, INCREMENTAL | CONFIRMED, none[0], none[1]), EINVAL);
	close(none[0]);
	close_both(fds);
	full(&b, FULL, fds);
	load_base(fds);
	work(&b, 3);
	order(&b, MSG_PAUSE);
	assert_in_range(increment(&b, CONFIRMED), 70, 70 + FEW);
	assert_true(same_as_now(&b));
	assert_int_equal(t_vmm_end(&b), 0);
	assert_int_equal(t_vmm_end(&a), 0);
	close_both(fds);
}

// --- a clone whose memory is loaded on demand ---

static struct {
	pthread_t thread;
	int uffd, file_fd, template_fd, stop[2];
	struct msg_lazy lazy;
	unsigned n_filled; // chunks
	bool failed;
} pager;

static void fill(uint64_t address)
{
	static uint8_t chunk[CHUNK_BYTES];
	for (unsigned i = 0; i < pager.lazy.n_regions; i++) {
		const struct msg_lazy_region *r = &pager.lazy.region[i];
		if (address < r->hva || address - r->hva >= r->size_bytes)
			continue;
		uint64_t at = (address - r->hva) / CHUNK_BYTES * CHUNK_BYTES;
		struct uffdio_range wake = { r->hva + at, CHUNK_BYTES };
		pager.failed |= mv_pread_full(pager.file_fd, chunk, sizeof chunk, r->file_offset + at) ||
				mv_pwrite_full(pager.template_fd, chunk, sizeof chunk, r->file_offset + at) ||
				ioctl(pager.uffd, UFFDIO_WAKE, &wake);
		__atomic_fetch_add(&pager.n_filled, 1, __ATOMIC_SEQ_CST);
		return;
	}
	pager.failed = true;
}

static void *serve(void *arg)
{
	struct uffd_msg m;
	(void)arg;
	for (;;) {
		struct pollfd p[2] = { { .fd = pager.uffd, .events = POLLIN },
				       { .fd = pager.stop[0], .events = POLLIN } };
		poll(p, 2, -1);
		if (p[1].revents)
			return NULL;
		while (read(pager.uffd, &m, sizeof m) == sizeof m)
			if (m.event == UFFD_EVENT_PAGEFAULT)
				fill(m.arg.pagefault.address);
	}
}

static void on_lazy(struct t_vmm *v, const struct msg_lazy *lazy, int uffd)
{
	(void)v;
	pager.lazy = *lazy;
	pager.uffd = uffd;
	if (pthread_create(&pager.thread, NULL, serve, NULL))
		abort();
}

static unsigned n_filled(void) { return __atomic_load_n(&pager.n_filled, __ATOMIC_SEQ_CST); }

static void of_lazy_clones_without_loading_all(void **state)
{
	struct vmcfg c;
	struct stat before, after;
	int fds[2];
	(void)state;
	need_kvm();
	int probe = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK); // as the VM process opens it
	if (probe < 0) {
		print_message("# SKIP no userfaultfd that sees KVM's faults\n");
		skip();
	}
	close(probe);
	config(&c, false);
	boot(&a, &c);
	ask(&a, "fill 0 4000 3");
	full(&a, FULL, fds);
	assert_int_equal(t_vmm_end(&a), 0);
	for (unsigned track = 0; track < 2; track++) {
		c.track_dirty = track;
		memset(&pager, 0, sizeof pager);
		pager.file_fd = fds[1];
		pager.template_fd = t_file();
		assert_int_equal(pipe(pager.stop), 0);
		assert_int_equal(ftruncate(pager.template_fd, MEM_BYTES), 0);
		assert_int_equal(t_vmm_start(&b, t_vmm_path()), 0);
		b.on_lazy = on_lazy;
		b.lazy = true;
		restore(&b, &c, fds[0], pager.template_fd);
		load_base(fds);
		work(&b, 1);
		// A buffer that the device got, and gave back as it was: it stays unloaded.
		char line[100];
		assert_int_equal(t_vmm_ask(&b, "blk p 99 3500", line, sizeof line), 0);
		assert_memory_equal(line, "ERR", 3);
		order(&b, MSG_PAUSE);
		unsigned n = n_filled();
		assert_in_range(n, 1, MEM_BYTES / CHUNK_BYTES / 2);
		assert_int_equal(fstat(pager.template_fd, &before), 0);
		assert_in_range(increment(&b, FULL), 70, 70 + FEW);
		assert_int_equal(fstat(pager.template_fd, &after), 0);
		assert_int_equal(n_filled(), n);
		assert_int_equal(after.st_blocks, before.st_blocks);
		assert_true(same_as_now(&b)); // a full one loads all of it
		assert_int_equal(n_filled(), MEM_BYTES / CHUNK_BYTES);
		assert_int_equal(t_vmm_end(&b), 0);
		assert_int_equal(write(pager.stop[1], "x", 1), 1);
		pthread_join(pager.thread, NULL);
		assert_false(pager.failed);
		close(pager.uffd);
		close(pager.template_fd);
		close_both(pager.stop);
	}
	close_both(fds);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_set_is_kept_until_it_is_confirmed),
		cmocka_unit_test(logs_of_larger_pages),
		cmocka_unit_test(a_parent_is_needed),
		cmocka_unit_test(a_failing_kvm_loses_nothing),
		cmocka_unit_test(two_slots),
		cmocka_unit_test(tracked_from_boot),
		cmocka_unit_test(tracked_while_running),
		cmocka_unit_test(what_failed_comes_again),
		cmocka_unit_test(of_clones),
		cmocka_unit_test(of_forks),
		cmocka_unit_test(of_lazy_clones_without_loading_all),
	};
	memory = malloc(MEM_BYTES);
	if (!memory)
		return 1;
	int r = cmocka_run_group_tests_name("microvm/dirty", tests, NULL, NULL);
	free(memory);
	return r;
}
