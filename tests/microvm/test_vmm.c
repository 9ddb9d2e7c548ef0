// SPDX-License-Identifier: Apache-2.0
// The VM process by its control socket, with the tiny guest on the host's KVM.
// Takes THAW_VMM and THAW_GUEST (paths) from the environment.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "tests/microvm/t_vmm.h"

static const char *vmm, *guest;
static struct t_vmm a, b; // large; every test starts and ends what it uses

static void boot_fds(struct vm_fds *f, const char *kernel)
{
	vm_fds_init(f);
	f->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f->kernel = open(kernel, O_RDONLY | O_CLOEXEC);
	assert_true(f->kvm >= 0 && f->kernel >= 0);
}

static void boot(struct t_vmm *v, const struct vmcfg *c)
{
	struct vm_fds f;
	boot_fds(&f, guest);
	assert_int_equal(t_vmm_start(v, vmm), 0);
	assert_int_equal(t_vmm_setup(v, MSG_BOOT, c, &f, true), 0);
	assert_int_equal(t_vmm_expect(v, "READY\n", 10000), 0);
}

static void ask(struct t_vmm *v, const char *command, const char *answer)
{
	char line[300];
	assert_int_equal(t_vmm_ask(v, command, line, sizeof line), 0);
	assert_string_equal(line, answer);
}

static void test_boot_protocols(void **state)
{
	(void)state;
	for (uint32_t boot_as = VMCFG_BOOT_AUTO; boot_as <= VMCFG_BOOT_LINUX64; boot_as++) {
		struct vmcfg c;
		t_tiny_config(&c);
		c.boot = boot_as;
		boot(&a, &c);
		ask(&a, "echo hello", "OK hello");
		ask(&a, "mem", "OK 133823488"); // without 0x9fc00-0x100000, see layout.h
		assert_int_equal(t_vmm_type(&a, "exit\n"), 0);
		assert_int_equal(t_vmm_wait_state(&a, VM_EXITED, 5000), 0);
		assert_int_equal(a.event.reason, VM_EXIT_SHUTDOWN);
		assert_int_equal(t_vmm_end(&a), 0);
	}
}

static void test_exit_reasons(void **state)
{
	static const struct {
		const char *command;
		enum vm_exit reason;
	} cases[] = { { "reset\n", VM_EXIT_RESET }, { "triple\n", VM_EXIT_TRIPLE_FAULT } };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(cases); i++) {
		struct vmcfg c;
		t_tiny_config(&c);
		boot(&a, &c);
		assert_int_equal(t_vmm_type(&a, cases[i].command), 0);
		assert_int_equal(t_vmm_wait_state(&a, VM_EXITED, 5000), 0);
		assert_int_equal(a.event.reason, cases[i].reason);
		assert_int_equal(t_vmm_end(&a), 0);
	}
}

static int temp_file(void)
{
	char name[] = "/tmp/thaw-test-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);
	assert_true(fd >= 0);
	unlink(name);
	return fd;
}

static void snapshot(struct t_vmm *v, int fds[2])
{
	fds[0] = temp_file();
	fds[1] = temp_file();
	assert_int_equal(t_vmm_call(v, MSG_SNAPSHOT, NULL, NULL, fds, 2, 20000), 0);
}

static int restore(struct t_vmm *v, const struct vmcfg *c, const int fds[2])
{
	struct vm_fds f;
	vm_fds_init(&f);
	f.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f.state = dup(fds[0]);
	f.memory = dup(fds[1]);
	assert_int_equal(t_vmm_start(v, vmm), 0);
	return t_vmm_setup(v, MSG_RESTORE, c, &f, true);
}

static void test_snapshot_and_clone(void **state)
{
	struct vmcfg c;
	int fds[2];
	char id_a[64], id_b[64], sum_a[64], sum_b[64];
	(void)state;
	t_tiny_config(&c);
	boot(&a, &c);
	ask(&a, "store the nonce", "OK");
	ask(&a, "touch 1000 w 7", "OK 1000");
	assert_int_equal(t_vmm_ask(&a, "sum 0 1000", sum_a, sizeof sum_a), 0);
	assert_int_equal(t_vmm_ask(&a, "genid", id_a, sizeof id_a), 0);
	snapshot(&a, fds);
	assert_true(a.reply.memory_data_bytes >= 1000 * 4096);
	assert_true(a.reply.memory_data_bytes < 3000 * 4096);
	assert_int_equal(a.reply.memory_bytes, 128 << 20);
	// The source goes on.
	ask(&a, "load", "OK the nonce");
	ask(&a, "store changed later", "OK");

	assert_int_equal(restore(&b, &c, fds), 0);
	assert_true(b.reply.times.running >= b.reply.times.loaded);
	assert_int_equal(t_vmm_expect(&b, "RESTORED\n", 5000), 0);
	ask(&b, "load", "OK the nonce");
	assert_int_equal(t_vmm_ask(&b, "sum 0 1000", sum_b, sizeof sum_b), 0);
	assert_string_equal(sum_a, sum_b);
	assert_int_equal(t_vmm_ask(&b, "genid", id_b, sizeof id_b), 0);
	assert_string_not_equal(id_a, id_b);
	// Writes of one are not seen by the other.
	ask(&b, "store clone", "OK");
	ask(&a, "load", "OK changed later");
	assert_int_equal(t_vmm_end(&a), 0);
	ask(&b, "load", "OK clone");
	// A snapshot of a clone.
	int fds2[2];
	snapshot(&b, fds2);
	assert_int_equal(t_vmm_end(&b), 0);
	assert_int_equal(restore(&a, &c, fds2), 0);
	assert_int_equal(t_vmm_expect(&a, "RESTORED\n", 5000), 0);
	ask(&a, "load", "OK clone");
	assert_int_equal(t_vmm_ask(&a, "sum 0 1000", sum_b, sizeof sum_b), 0);
	assert_string_equal(sum_a, sum_b);
	assert_int_equal(t_vmm_end(&a), 0);
	for (int i = 0; i < 2; i++) {
		close(fds[i]);
		close(fds2[i]);
	}
}

// The VM writes all over its memory while the snapshot is being written: the snapshot has
// what was there before.
static void test_live_snapshot(void **state)
{
	struct vmcfg c;
	int fds[2] = { temp_file(), temp_file() };
	char before[64], after[64], restored[64];
	(void)state;
	t_tiny_config(&c);
	c.mem_mib = 256;
	boot(&a, &c);
	ask(&a, "touch 16384 w 7", "OK 16384"); // a quarter
	assert_int_equal(t_vmm_ask(&a, "sum 0 16384", before, sizeof before), 0);
	uint64_t id = t_vmm_send(&a, MSG_SNAPSHOT, fds, 2);
	assert_int_not_equal(id, 0);
	ask(&a, "touch 16384 w 9", "OK 16384");
	// A second one has to wait for the first.
	if (a.late_id != id) {
		int other[2] = { temp_file(), temp_file() };
		int r = t_vmm_call(&a, MSG_SNAPSHOT, NULL, NULL, other, 2, 20000);
		assert_true(r == EBUSY || a.late_id == id);
		close(other[0]);
		close(other[1]);
	}
	assert_int_equal(t_vmm_wait(&a, id, 20000), 0);
	assert_true(a.late.pause_ns > 0);
	assert_true(a.late.memory_data_bytes >= 16384ull * 4096);
	assert_int_equal(t_vmm_ask(&a, "sum 0 16384", after, sizeof after), 0);
	assert_string_not_equal(before, after);
	assert_int_equal(restore(&b, &c, fds), 0);
	assert_int_equal(t_vmm_expect(&b, "RESTORED\n", 5000), 0);
	assert_int_equal(t_vmm_ask(&b, "sum 0 16384", restored, sizeof restored), 0);
	assert_string_equal(before, restored);
	assert_int_equal(t_vmm_end(&b), 0);

	// A guest that ends meanwhile: the snapshot is finished, then the process.
	close(fds[0]);
	close(fds[1]);
	fds[0] = temp_file();
	fds[1] = temp_file();
	id = t_vmm_send(&a, MSG_SNAPSHOT, fds, 2);
	assert_int_equal(t_vmm_type(&a, "exit\n"), 0);
	assert_int_equal(t_vmm_wait(&a, id, 20000), 0);
	assert_int_equal(t_vmm_wait_state(&a, VM_EXITED, 5000), 0);
	assert_int_equal(t_vmm_end(&a), 0);
	close(fds[0]);
	close(fds[1]);
}

static void test_vcpus(void **state)
{
	static const uint32_t counts[] = { 2, 4 };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(counts); i++) {
		struct vmcfg c;
		int fds[2];
		t_tiny_config(&c);
		c.vcpus = counts[i];
		boot(&a, &c);
		ask(&a, "store smp", "OK");
		snapshot(&a, fds);
		assert_int_equal(t_vmm_end(&a), 0);
		assert_int_equal(restore(&b, &c, fds), 0);
		assert_int_equal(t_vmm_expect(&b, "RESTORED\n", 5000), 0);
		ask(&b, "load", "OK smp");
		assert_int_equal(t_vmm_end(&b), 0);
		close(fds[0]);
		close(fds[1]);
	}
}

// A timer that is pending at the snapshot fires in the source and in the clone, after
// what was left of its time.
static void test_timer(void **state)
{
	struct vmcfg c;
	int fds[2];
	(void)state;
	t_tiny_config(&c);
	boot(&a, &c);
	ask(&a, "timer 50", "OK");
	assert_int_equal(t_vmm_expect(&a, "TIMER\n", 5000), 0);
	ask(&a, "timer 1500", "OK");
	uint64_t armed = mv_now_ns();
	snapshot(&a, fds);
	uint64_t least = mv_now_ns() - armed < 1000000000u ? 200u * 1000000 : 0;
	assert_int_equal(t_vmm_expect(&a, "TIMER\n", 5000), 0);
	uint64_t start = mv_now_ns();
	assert_int_equal(restore(&b, &c, fds), 0);
	assert_int_equal(t_vmm_expect(&b, "RESTORED\n", 5000), 0);
	assert_int_equal(t_vmm_expect(&b, "TIMER\n", 5000), 0);
	uint64_t took = mv_now_ns() - start;
	assert_in_range(took, least, 4000u * 1000000);
	ask(&b, "timer 20", "OK"); // and goes on to work
	assert_int_equal(t_vmm_expect(&b, "TIMER\n", 5000), 0);
	assert_int_equal(t_vmm_end(&a), 0);
	assert_int_equal(t_vmm_end(&b), 0);
	close(fds[0]);
	close(fds[1]);
}

static void test_pause(void **state)
{
	struct vmcfg c;
	(void)state;
	t_tiny_config(&c);
	boot(&a, &c);
	assert_int_equal(t_vmm_call(&a, MSG_PAUSE, NULL, NULL, NULL, 0, 5000), 0);
	assert_int_equal(t_vmm_type(&a, "echo late\n"), 0);
	assert_int_not_equal(t_vmm_expect(&a, "late", 300), 0); // it stands still
	assert_int_equal(t_vmm_call(&a, MSG_RUN, NULL, NULL, NULL, 0, 5000), 0);
	assert_int_equal(t_vmm_expect(&a, "OK late\n", 5000), 0); // the input was kept
	assert_int_equal(t_vmm_call(&a, MSG_RUN, NULL, NULL, NULL, 0, 5000), EBUSY);
	assert_int_equal(t_vmm_end(&a), 0);
}

// The configuration must fit the state, and the files must be whole.
static void test_bad_restore(void **state)
{
	struct vmcfg c, other;
	int fds[2], cut[2];
	(void)state;
	t_tiny_config(&c);
	boot(&a, &c);
	snapshot(&a, fds);
	assert_int_equal(t_vmm_end(&a), 0);

	other = c;
	other.vcpus = 2;
	assert_int_equal(restore(&b, &other, fds), EINVAL);
	assert_non_null(strstr(b.reply.text, "vCPUs"));
	t_vmm_end(&b);
	other = c;
	other.rng = false;
	assert_int_equal(restore(&b, &other, fds), EINVAL);
	assert_non_null(strstr(b.reply.text, "devices"));
	t_vmm_end(&b);

	cut[0] = fds[0];
	cut[1] = temp_file(); // empty memory
	assert_int_equal(restore(&b, &c, cut), EINVAL);
	t_vmm_end(&b);
	cut[0] = temp_file(); // empty state
	cut[1] = fds[1];
	assert_int_equal(restore(&b, &c, cut), EINVAL);
	t_vmm_end(&b);
}

static void test_bad_kernels(void **state)
{
	struct vmcfg c;
	struct vm_fds f;
	static const char *const texts[] = { "", "#!/bin/sh\nnot a kernel\n", "\177ELF\1\1\1 32 bit" };
	(void)state;
	t_tiny_config(&c);
	for (size_t i = 0; i < MV_ARRAY_LEN(texts); i++) {
		boot_fds(&f, guest);
		close(f.kernel);
		f.kernel = temp_file();
		assert_int_equal(write(f.kernel, texts[i], strlen(texts[i])), strlen(texts[i]));
		assert_int_equal(t_vmm_start(&a, vmm), 0);
		assert_int_equal(t_vmm_setup(&a, MSG_BOOT, &c, &f, false), ENOEXEC);
		t_vmm_end(&a);
	}
}

// A reader gets its answer while the guest prints on and on, not at its next pause for
// breath. The best of some tries: this machine may be busy, too.
static void test_console_while_printing(void **state)
{
	struct vmcfg c;
	uint64_t least = UINT64_MAX;
	(void)state;
	t_tiny_config(&c);
	boot(&a, &c);
	ask(&a, "chatter", "OK");
	for (int i = 0; i < 5; i++) {
		struct msg_console_read q = { .offset = a.reply.console_end + 100,
					      .max_bytes = 1,
					      .wait_ms = 60000 };
		assert_int_equal(
			t_vmm_call(&a, MSG_CONSOLE_READ, &msg_console_read_table, &q, NULL, 0, 20000), 0);
		assert_int_equal(a.reply.console_offset, q.offset);
		assert_int_equal(a.reply.n_data, 1);
		uint64_t late = a.reply.console_end - q.offset;
		least = late < least ? late : least;
	}
	assert_in_range(least, 1, 300);
	assert_int_equal(t_vmm_end(&a), 0);
}

// Garbage on the control socket, and its end, end the process; it never hangs or crashes.
static void test_control_end(void **state)
{
	(void)state;
	assert_int_equal(t_vmm_start(&a, vmm), 0);
	assert_int_equal(write(a.fd, "garbage", 7), 7);
	int status = t_vmm_end(&a);
	assert_true(WIFEXITED(status));
	assert_int_equal(t_vmm_start(&a, vmm), 0);
	assert_int_equal(t_vmm_call(&a, MSG_PAUSE, NULL, NULL, NULL, 0, 5000), EBUSY);
	assert_int_equal(t_vmm_call(&a, 77, NULL, NULL, NULL, 0, 5000), EPROTO);
	assert_int_equal(t_vmm_end(&a), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_boot_protocols), cmocka_unit_test(test_exit_reasons),
		cmocka_unit_test(test_pause),          cmocka_unit_test(test_snapshot_and_clone),
		cmocka_unit_test(test_vcpus),          cmocka_unit_test(test_timer),
		cmocka_unit_test(test_bad_restore),    cmocka_unit_test(test_bad_kernels),
		cmocka_unit_test(test_control_end),    cmocka_unit_test(test_console_while_printing),
		cmocka_unit_test(test_live_snapshot),
	};
	vmm = getenv("THAW_VMM") ? getenv("THAW_VMM") : "build/bin/thaw-vmm";
	guest = getenv("THAW_GUEST") ? getenv("THAW_GUEST") : "build/tests/guest/tiny";
	if (access("/dev/kvm", R_OK | W_OK)) {
		printf("1..0 # SKIP no access to /dev/kvm\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
